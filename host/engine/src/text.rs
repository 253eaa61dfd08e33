//! Machine code that several components share: one file, mapped in place of each component's own code.
//!
//! wasmtime maps a component's file and asks for its code to be made executable ([`CustomCodeMemory`]). At that point
//! the shared file is mapped over the hole. The loading thread tells which file that is.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use object::read::elf::ElfFile64;
use object::{Object, ObjectSection};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mprotect};
use wasmtime::CustomCodeMemory;

thread_local! {
    /// The machine code of the component that this thread loads.
    static LOADING: RefCell<Option<Arc<Text>>> = const { RefCell::new(None) };
}

/// A checked file of machine code.
pub(crate) struct Text {
    file: File,
    bytes: u64,
}

impl Text {
    /// Errors: its size cannot be read.
    pub(crate) fn new(file: File) -> io::Result<Self> {
        let bytes = file.metadata()?.len();
        Ok(Self { file, bytes })
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Loads a component with this machine code.
pub(crate) fn with<T>(text: &Arc<Text>, load: impl FnOnce() -> T) -> T {
    struct Reset;
    impl Drop for Reset {
        fn drop(&mut self) {
            LOADING.set(None);
        }
    }
    LOADING.set(Some(Arc::clone(text)));
    let _reset = Reset;
    load()
}

/// The range of the machine code in compiled code. `None` if there is none, or if it does not fill whole pages.
pub(crate) fn range(code: &[u8]) -> Option<Range<usize>> {
    let file = ElfFile64::<object::Endianness>::parse(code).ok()?;
    let (start, length) = file.section_by_name(".text")?.file_range()?;
    let (start, length) = (usize::try_from(start).ok()?, usize::try_from(length).ok()?);
    let page = rustix::param::page_size();
    (length > 0 && start.is_multiple_of(page) && length.is_multiple_of(page)).then_some(start..start + length)
}

/// Makes code executable: the shared code if there is one, else the component's own.
pub(crate) struct SharedText;

impl CustomCodeMemory for SharedText {
    fn required_alignment(&self) -> usize {
        rustix::param::page_size()
    }

    fn publish_executable(&self, start: *const u8, length: usize) -> wasmtime::Result<()> {
        let start = start.cast_mut().cast();
        let text = LOADING.with_borrow(Option::clone);
        if let Some(text) = text {
            if text.bytes != length as u64 {
                let bytes = text.bytes;
                return Err(wasmtime::format_err!(
                    "{bytes} bytes of machine code do not fit a hole of {length}"
                ));
            }
            let flags = MapFlags::PRIVATE | MapFlags::FIXED;
            #[expect(unsafe_code, reason = "replaces a mapping at an address; see SAFETY")]
            // SAFETY: wasmtime owns these pages, calls this before anything runs in them and unmaps them when the
            // component ends. The file's content has the digest that was recorded when this very component was
            // compiled (`cache`).
            unsafe {
                mmap(start, length, ProtFlags::READ | ProtFlags::EXEC, flags, &text.file, 0)?;
            }
        } else {
            #[expect(unsafe_code, reason = "changes the protection of an address; see SAFETY")]
            // SAFETY: as wasmtime itself would: these pages are its own, hold the code it compiled, and nothing runs
            // in them yet.
            unsafe {
                mprotect(start, length, MprotectFlags::READ | MprotectFlags::EXEC)?;
            }
        }
        Ok(())
    }

    /// Called before the pages are unmapped. That needs no change of their protection.
    fn unpublish_executable(&self, _: *const u8, _: usize) -> wasmtime::Result<()> {
        Ok(())
    }
}
