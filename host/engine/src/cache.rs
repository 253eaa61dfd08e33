//! Compiled code on disk, named by everything that it was made from.
//!
//! An entry is an image (`.cwasm`): a version's memory and wasmtime's tables, with a hole in place of its machine
//! code. The machine code (`.text`) is a file of its own, named by its content, because all versions of a runtime
//! have the same. Loaded native code is run, so changed files must not be loaded. A third file (`.sha256`) has the
//! digests of both, which are checked before mapping. A missing, torn or changed file is made again. The folder is
//! bounded. The least recently used files are removed first. Mapped files stay mapped.

use std::fs::{self, File, FileTimes};
use std::hash::Hasher;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use modelhost_core::artifact::Digest;
use modelhost_core::error::Error;
use moka::policy::EvictionPolicy;
use sha2::{Digest as _, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

use crate::text::{self, Text};

/// Files are written in blocks. Blocks of zeros become holes, because the free heap in a snapshot is mostly zeros.
const BLOCK: usize = 4096;

/// The time of a file may lag behind the clock by so much.
const CLOCK_GRAIN: Duration = Duration::from_secs(1);

/// The prefix of unfinished files.
const TEMPORARY: &str = ".new-";

/// Machine code files that are kept open, one per runtime.
const MAX_TEXTS: u64 = 256;

/// Images whose check is remembered.
const MAX_CHECKED: u64 = 100_000;

/// How often a use is recorded in the file's time, which orders the files for the next process.
const NOTE_EVERY: Duration = Duration::from_secs(3600);

/// Bytes that are read at a time, in whole blocks.
const READ: usize = 64 * BLOCK;

/// The folder of compiled code.
pub(crate) struct Cache {
    dir: Arc<Path>,
    /// Bytes on disk by key, in the order of their last use. An evicted entry is removed from disk.
    entries: moka::sync::Cache<Digest, u64>,
    /// Checked machine code by digest, kept open.
    texts: moka::sync::Cache<Digest, Arc<Text>>,
    /// Images that this process checked, their state at that time, and the digest of their machine code.
    checked: moka::sync::Cache<Digest, (Stamp, Digest)>,
}

/// Changes whenever a file is written or replaced: device, inode, length, and the time of its last change, which
/// cannot be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp([u64; 5]);

impl Stamp {
    fn of(meta: &fs::Metadata) -> Self {
        let change = [meta.ctime(), meta.ctime_nsec()].map(i64::cast_unsigned);
        Self([meta.dev(), meta.ino(), meta.len(), change[0], change[1]])
    }
}

/// The name of an entry: a hash of everything that decides its content.
pub(crate) struct Key(Sha256);

impl Key {
    /// Begins with the engine's settings, because other settings or another release make other code.
    pub(crate) fn new(engine: &Engine, kind: &str) -> Self {
        let mut key = Self(Sha256::new());
        std::hash::Hash::hash(&engine.precompile_compatibility_hash(), &mut key);
        key.with(kind.as_bytes())
    }

    /// Adds a field and its length, so that adjacent fields cannot be confused.
    pub(crate) fn with(mut self, field: &[u8]) -> Self {
        self.0.update((field.len() as u64).to_le_bytes());
        self.0.update(field);
        self
    }

    /// Adds a list with its name and count, so that adjacent lists cannot be confused.
    pub(crate) fn with_list(self, name: &str, fields: &[String]) -> Self {
        let key = self.with(name.as_bytes()).with(&(fields.len() as u64).to_le_bytes());
        fields.iter().fold(key, |key, field| key.with(field.as_bytes()))
    }

    /// The entry's name.
    pub(crate) fn digest(self) -> Digest {
        Digest::from_bytes(self.0.finalize().into())
    }
}

impl Hasher for Key {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        0 // never asked for: the whole SHA-256 is the key
    }
}

/// Mapped code, and the bytes that it may take in memory. Holes of the file do not count.
pub(crate) struct Code {
    pub(crate) component: Component,
    pub(crate) bytes: u64,
    /// Whether its pages belong to a file and can be read again.
    pub(crate) is_file: bool,
}

/// Gives back the pages of a component that is mapped from a file ([`Code::is_file`]). They are read again from the
/// page cache when they are used.
pub(crate) fn give_back_pages(component: &Component) -> io::Result<()> {
    let image = component.image_range();
    let length = (image.end as usize).saturating_sub(image.start as usize);
    #[expect(unsafe_code, reason = "madvise is told an address; see SAFETY")]
    // SAFETY: the range is a private mapping of a file, which lives as long as `component`. Its pages are as in the
    // file, because wasmtime refuses code with relocations and makes the mapping read-only before it runs; the file
    // is never written after it has its name.
    unsafe {
        rustix::mm::madvise(image.start.cast_mut().cast(), length, rustix::mm::Advice::LinuxDontNeed)?;
    }
    Ok(())
}

impl Cache {
    /// Opens the folder or makes it, and keeps it within `bytes` of disk. A thread counts the existing files. Errors:
    /// internal.
    pub(crate) fn open(dir: &Path, bytes: u64) -> Result<Self, Error> {
        let unopened = |error: io::Error| {
            let cause = format!("{}: {error}", dir.display());
            Error::internal("the folder of compiled code cannot be opened").because(cause)
        };
        fs::create_dir_all(dir).map_err(unopened)?;
        let dir: Arc<Path> = dir.into();
        let removed = Arc::clone(&dir);
        let entries = moka::sync::Cache::builder()
            .max_capacity(bytes >> 10)
            .weigher(|_: &Digest, bytes: &u64| u32::try_from(bytes >> 10).unwrap_or(u32::MAX))
            .eviction_policy(EvictionPolicy::lru())
            .eviction_listener(move |key, _, cause| {
                if cause.was_evicted() {
                    remove(&removed, &key);
                }
            })
            .build();
        let (texts, checked) = (moka::sync::Cache::new(MAX_TEXTS), moka::sync::Cache::new(MAX_CHECKED));
        let cache = Self { dir, entries, texts, checked };
        let (dir, entries) = (Arc::clone(&cache.dir), cache.entries.clone());
        #[expect(clippy::disallowed_methods, reason = "tells older files from this process's")]
        let since = SystemTime::now();
        let count = move || count(&dir, &entries, since);
        std::thread::Builder::new().name("compiled".into()).spawn(count).map_err(unopened)?;
        Ok(cache)
    }

    /// Stores compiled code and maps it.
    pub(crate) fn keep(&self, engine: &Engine, key: Digest, made: &[u8]) -> Result<Code, Error> {
        if let Err(error) = self.put(key, made) {
            tracing::warn!(%error, "compiled code is not kept: it will be compiled again");
        } else if let Some(code) = self.get(engine, key) {
            return Ok(code);
        }
        Ok(Code { component: load_code(engine, made)?, bytes: made.len() as u64, is_file: false })
    }

    /// Maps the entry, if it exists and is unchanged.
    pub(crate) fn get(&self, engine: &Engine, key: Digest) -> Option<Code> {
        let image = path(&self.dir, &key, "cwasm");
        let file = File::open(&image).ok()?;
        let unusable = |error: &dyn std::fmt::Display| {
            tracing::warn!(%error, path = %image.display(), "compiled code cannot be used: compiling again");
        };
        let text_digest = self.check(key, &file).inspect_err(|error| unusable(error)).ok()?;
        let text = self.text(text_digest).inspect_err(|error| unusable(error)).ok()?;
        let meta = file.metadata().ok()?;
        let component = text::with(&text, || map_code(engine, &file))
            .inspect_err(|error| unusable(&error.chain()))
            .ok()?;
        self.entries.get_with(text_digest, || text.bytes());
        self.entries.get_with(key, || on_disk(&meta));
        Some(Code { component, bytes: on_disk(&meta), is_file: true })
    }

    /// Checks that the image is unchanged, and returns the digest of its machine code. A file that did not change
    /// since its last check is not read again.
    fn check(&self, key: Digest, file: &File) -> io::Result<Digest> {
        let stamp = Stamp::of(&file.metadata()?);
        if let Some((_, text)) = self.checked.get(&key).filter(|(then, _)| *then == stamp) {
            return Ok(text);
        }
        let digests = fs::read_to_string(path(&self.dir, &key, "sha256"))?;
        let parsed =
            digests.trim().split_once('\n').map(|(image, text)| (Digest::parse(image), Digest::parse(text)));
        let Some((Ok(image), Ok(text))) = parsed else {
            return Err(io::Error::other("its digests cannot be read"));
        };
        note_use(file);
        let stamp = Stamp::of(&file.metadata()?); // before it is read, so that a later change is seen
        if digest_of_file(file)? != image {
            return Err(io::Error::other("it is not what was written"));
        }
        self.checked.insert(key, (stamp, text));
        Ok(text)
    }

    /// The machine code with this digest. It is checked when it is opened.
    fn text(&self, digest: Digest) -> io::Result<Arc<Text>> {
        let open = || -> io::Result<Arc<Text>> {
            let file = File::open(path(&self.dir, &digest, "text"))?;
            if digest_of_file(&file)? != digest {
                return Err(io::Error::other("its machine code is not what was written"));
            }
            note_use(&file);
            Ok(Arc::new(Text::new(file)?))
        };
        self.texts.try_get_with(digest, open).map_err(|error| io::Error::other(error.to_string()))
    }

    fn put(&self, key: Digest, code: &[u8]) -> io::Result<()> {
        let range = text::range(code).ok_or_else(|| io::Error::other("compiled code has no machine code"))?;
        let mut image = code.to_vec();
        let text =
            image.get_mut(range).ok_or_else(|| io::Error::other("machine code lies outside its file"))?;
        let text_digest = digest_of(text);
        let text_path = path(&self.dir, &text_digest, "text");
        let there = File::open(&text_path).and_then(|file| digest_of_file(&file));
        if there.ok() != Some(text_digest) {
            let bytes = self.write(&text_path, text)?;
            self.entries.insert(text_digest, bytes);
        } else {
            self.entries.get(&text_digest);
        }
        text.fill(0);
        let bytes = self.write(&path(&self.dir, &key, "cwasm"), &image)?;
        let digests = format!("{}\n{text_digest}", digest_of(&image));
        self.write(&path(&self.dir, &key, "sha256"), digests.as_bytes())?;
        self.entries.insert(key, bytes);
        self.entries.run_pending_tasks();
        Ok(())
    }

    /// Writes the whole file or nothing, even if the host crashes. Returns its bytes on disk.
    fn write(&self, path: &Path, content: &[u8]) -> io::Result<u64> {
        let mut file = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(&self.dir)?;
        for block in content.chunks(BLOCK) {
            if is_zero(block) {
                file.seek(SeekFrom::Current(i64::try_from(block.len()).unwrap_or(0)))?;
            } else {
                file.write_all(block)?;
            }
        }
        file.as_file().set_len(content.len() as u64)?;
        file.as_file().sync_all()?;
        let bytes = on_disk(&file.as_file().metadata()?);
        file.persist(path)?;
        Ok(bytes)
    }
}

fn path(dir: &Path, key: &Digest, extension: &str) -> PathBuf {
    dir.join(format!("{key}.{extension}"))
}

/// SHA-256 of the length, and of all non-zero blocks with their positions. So holes need not be read.
#[derive(Default)]
struct BlockDigest {
    hash: Sha256,
    block: u64,
}

impl BlockDigest {
    /// Adds content that begins at a block. Only the last call may end within a block.
    fn add(&mut self, content: &[u8]) {
        for block in content.chunks(BLOCK) {
            if !is_zero(block) {
                self.hash.update(self.block.to_le_bytes());
                self.hash.update(block);
            }
            self.block += 1;
        }
    }

    fn finish(mut self, length: u64) -> Digest {
        self.hash.update(length.to_le_bytes());
        Digest::from_bytes(self.hash.finalize().into())
    }
}

fn digest_of(content: &[u8]) -> Digest {
    let mut digest = BlockDigest::default();
    digest.add(content);
    digest.finish(content.len() as u64)
}

fn digest_of_file(file: &File) -> io::Result<Digest> {
    let length = file.metadata()?.len();
    let mut digest = BlockDigest::default();
    let mut buffer = vec![0; READ];
    let mut at = 0;
    while at < length {
        // A file without holes is all data. So is every file on a file system that does not report holes.
        let data = match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => data - data % BLOCK as u64,
            Err(rustix::io::Errno::NXIO) => break,
            Err(_) => at,
        };
        let hole = rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(data)).unwrap_or(length);
        at = data;
        while at < hole {
            let wanted = usize::try_from((length - at).min(READ as u64)).unwrap_or(READ);
            let Some(part) = buffer.get_mut(..wanted) else { break };
            file.read_exact_at(part, at)?;
            digest.block = at / BLOCK as u64;
            digest.add(part);
            at += wanted as u64;
        }
    }
    Ok(digest.finish(length))
}

fn is_zero(block: &[u8]) -> bool {
    block.iter().all(|byte| *byte == 0)
}

/// The size of a file without its holes.
fn on_disk(meta: &fs::Metadata) -> u64 {
    meta.blocks() * 512
}

/// Removes the files of an entry. They are made again when they are needed.
fn remove(dir: &Path, key: &Digest) {
    for extension in ["sha256", "cwasm", "text"] {
        drop(fs::remove_file(path(dir, key, extension)));
    }
}

/// Adds the files of earlier processes, the least recently used first. Removes files that were left unfinished before
/// `since`.
fn count(dir: &Path, entries: &moka::sync::Cache<Digest, u64>, since: SystemTime) {
    let Ok(listed) = fs::read_dir(dir) else { return };
    let mut found = Vec::new();
    for entry in listed.flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let Some((meta, name)) = entry.metadata().ok().zip(name.to_str()) else { continue };
        let Ok(used) = meta.modified() else { continue };
        let key = name.strip_suffix(".cwasm").or_else(|| name.strip_suffix(".text"));
        match key.map(Digest::parse) {
            Some(Ok(key)) => found.push((used, key, on_disk(&meta))),
            _ if name.starts_with(TEMPORARY) && used < since - CLOCK_GRAIN => drop(fs::remove_file(path)),
            _ => {}
        }
    }
    found.sort_unstable();
    for (_, key, bytes) in found {
        entries.get_with(key, || bytes);
    }
    entries.run_pending_tasks();
}

/// Records a use in the file's time, for the order of removal in the next process.
#[expect(clippy::disallowed_methods, reason = "orders files; decides nothing else")]
fn note_use(file: &File) {
    let now = SystemTime::now();
    let noted = file.metadata().and_then(|meta| meta.modified());
    if noted.is_ok_and(|noted| now.duration_since(noted).is_ok_and(|ago| ago > NOTE_EVERY)) {
        drop(file.set_times(FileTimes::new().set_modified(now))); // only that order depends on it
    }
}

fn map_code(engine: &Engine, file: &File) -> Result<Component, Error> {
    // Maps the very file that was checked, even if its name was reused.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    #[expect(unsafe_code, reason = "native code can only be loaded on trust; see SAFETY")]
    // SAFETY: the file's content has the digest that this process or an earlier one recorded after compiling it
    // (`check`); wasmtime itself checks that it was made by the same release with the same settings.
    let component = unsafe { Component::deserialize_file(engine, path) };
    component.map_err(|error| Error::internal("compiled code cannot be mapped").because(error))
}

fn load_code(engine: &Engine, code: &[u8]) -> Result<Component, Error> {
    #[expect(unsafe_code, reason = "native code can only be loaded on trust; see SAFETY")]
    // SAFETY: the bytes come straight from the compiler that this process started; wasmtime itself checks that it was
    // made by the same release with the same settings.
    let component = unsafe { Component::deserialize(engine, code) };
    component.map_err(|error| crate::fault::in_step("compile", &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(content: &[u8]) {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), 1 << 30).unwrap();
        let path = dir.path().join("file");
        cache.write(&path, content).unwrap();
        assert_eq!(fs::read(&path).unwrap(), content);
        let whole = digest_of(content);
        assert_eq!(digest_of_file(&File::open(&path).unwrap()).unwrap(), whole, "with holes");
        fs::write(&path, content).unwrap();
        assert_eq!(digest_of_file(&File::open(&path).unwrap()).unwrap(), whole, "without");
        if let Some(first) = content.first() {
            let file = File::options().write(true).open(&path).unwrap();
            file.write_all_at(&[first ^ 1], 0).unwrap();
            assert_ne!(digest_of_file(&File::open(&path).unwrap()).unwrap(), whole, "changed");
        }
    }

    #[test]
    fn holes_are_neither_written_nor_hashed() {
        check(b"");
        check(b"short");
        check(&[0; 3 * BLOCK]);
        for (before, zeros, after) in
            [(1, 2 * READ, 5), (READ, READ, READ), (BLOCK, 3 * BLOCK + 7, 1), (0, READ + 1, 0)]
        {
            let mut content = vec![7; before];
            content.extend(vec![0; zeros]);
            content.extend(vec![9; after]);
            check(&content);
        }
    }

    #[test]
    fn what_was_used_longest_ago_goes_first() {
        let dir = tempfile::tempdir().unwrap();
        let key = |byte| Digest::from_bytes([byte; 32]);
        let there = |byte| path(dir.path(), &key(byte), "cwasm").exists();
        let engine = crate::compile::engine(&crate::compile::Config::new("".into())).unwrap();
        let component = |byte: u8| {
            let bytes = "x".repeat(30 << 10);
            let wat = format!(
                "(component (core module (memory 1) (data (i32.const {byte}) {bytes:?}) (func nop)))"
            );
            engine.precompile_component(&wat::parse_str(wat).unwrap()).unwrap()
        };
        let size = Cache::open(dir.path(), 1 << 30).unwrap();
        size.put(key(0), &component(0)).unwrap();
        let size = on_disk(&fs::metadata(path(dir.path(), &key(0), "cwasm")).unwrap());
        remove(dir.path(), &key(0));
        let text = rustix::param::page_size() as u64;
        let cache = Cache::open(dir.path(), 3 * size + size / 2 + text).unwrap();
        for byte in 1..=3 {
            cache.put(key(byte), &component(byte)).unwrap();
        }
        assert!(there(1) && there(2) && there(3));
        assert!(cache.get(&engine, key(1)).is_some());
        cache.put(key(4), &component(4)).unwrap();
        let texts = fs::read_dir(dir.path())
            .unwrap()
            .flatten()
            .filter(|entry| entry.path().extension().unwrap() == "text");
        assert_eq!(texts.count(), 1, "machine code is shared");
        assert_eq!([1, 2, 3, 4].map(there), [true, false, true, true]);
        assert!(!path(dir.path(), &key(2), "sha256").exists());
    }
}
