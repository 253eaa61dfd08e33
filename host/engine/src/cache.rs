//! Compiled code on disk, named by everything it was made from.
//!
//! An entry is an image (`.cwasm`): a version's memory and wasmtime's tables, with a hole where its machine code belongs. The machine code
//! (`.text`) is a file of its own, named by its content: all versions of one runtime have the same. Loading native code that somebody
//! changed would run it, so the digests of both stand in a third file (`.sha256`) and are checked before anything is mapped. What is
//! missing, torn or changed is made again. The folder is bounded: what was used longest ago goes first, and what is mapped stays mapped.

use std::collections::HashMap;
use std::fs::{self, File, FileTimes};
use std::hash::Hasher;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use modelhost_core::artifact::Digest;
use modelhost_core::error::Error;
use moka::policy::EvictionPolicy;
use sha2::{Digest as _, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

use crate::text::{self, Text};

/// What a file is written by: blocks of zeros become holes, because a snapshot's free heap is mostly zeros.
const BLOCK: usize = 4096;

/// A file's time may be this much older than the clock when it was written.
const CLOCK_GRAIN: Duration = Duration::from_secs(1);

/// How names of files begin that are not whole yet.
const TEMPORARY: &str = ".new-";

/// What is read of a file at a time; whole blocks.
const READ: usize = 64 * BLOCK;

/// The folder of compiled code.
pub(crate) struct Cache {
    dir: Arc<Path>,
    /// Bytes on disk by key, the latest use last; what leaves it is removed.
    entries: moka::sync::Cache<Digest, u64>,
    /// Machine code that is mapped somewhere, by its digest, so that it is checked once.
    texts: Mutex<HashMap<Digest, Weak<Text>>>,
}

/// Names one entry: a hash over all that decides its content.
pub(crate) struct Key(Sha256);

impl Key {
    /// Starts from the engine's settings: other settings or another release make other code.
    pub(crate) fn new(engine: &Engine, kind: &str) -> Self {
        let mut key = Self(Sha256::new());
        std::hash::Hash::hash(&engine.precompile_compatibility_hash(), &mut key);
        key.with(kind.as_bytes())
    }

    /// Adds one field; its length goes in too, so that fields cannot run into each other.
    pub(crate) fn with(mut self, field: &[u8]) -> Self {
        self.0.update((field.len() as u64).to_le_bytes());
        self.0.update(field);
        self
    }

    fn finish(self) -> Digest {
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

/// Mapped code and the bytes that it can take of memory: the file's, without its holes.
pub(crate) struct Code {
    pub(crate) component: Component,
    pub(crate) bytes: u64,
    /// Whether its pages are those of a file, which can be read again.
    pub(crate) is_file: bool,
}

/// Gives back the pages of a component whose code is a file's ([`Code::is_file`]): who touches one reads it again from the page cache.
pub(crate) fn give_back_pages(component: &Component) -> io::Result<()> {
    let image = component.image_range();
    let length = (image.end as usize).saturating_sub(image.start as usize);
    #[expect(unsafe_code, reason = "madvise is told an address; see SAFETY")]
    // SAFETY: the range is a private mapping of a file, which lives as long as `component`. Its pages are as in the file, because wasmtime
    // refuses code with relocations and makes the mapping read-only before it runs; the file is never written after it has its name.
    unsafe {
        rustix::mm::madvise(image.start.cast_mut().cast(), length, rustix::mm::Advice::LinuxDontNeed)?;
    }
    Ok(())
}

impl Cache {
    /// Opens the folder, making it if need be, and keeps it within `bytes` of disk. What is there is counted in a thread of its own.
    /// Errors: internal, with the path.
    pub(crate) fn open(dir: &Path, bytes: u64) -> Result<Self, Error> {
        let in_dir = |error| Error::internal(format!("cache folder {}: {error}", dir.display()));
        fs::create_dir_all(dir).map_err(in_dir)?;
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
        let cache = Self { dir, entries, texts: Mutex::default() };
        let (dir, entries) = (Arc::clone(&cache.dir), cache.entries.clone());
        #[expect(clippy::disallowed_methods, reason = "tells older files from this process's")]
        let since = SystemTime::now();
        let count = move || count(&dir, &entries, since);
        std::thread::Builder::new().name("compiled".into()).spawn(count).map_err(in_dir)?;
        Ok(cache)
    }

    /// The entry, or the one that `make` compiles, which is kept for the next time.
    pub(crate) fn get_or_make(
        &self,
        engine: &Engine,
        key: Key,
        make: impl FnOnce() -> Result<Vec<u8>, Error>,
    ) -> Result<Code, Error> {
        let key = key.finish();
        if let Some(code) = self.get(engine, key) {
            return Ok(code);
        }
        let made = make()?;
        if let Err(error) = self.put(key, &made) {
            tracing::warn!(%error, "compiled code is not kept: it will be compiled again");
        } else if let Some(code) = self.get(engine, key) {
            return Ok(code);
        }
        Ok(Code { component: load_code(engine, &made)?, bytes: made.len() as u64, is_file: false })
    }

    /// Maps the entry, if it is there and is what was written.
    pub(crate) fn find(&self, engine: &Engine, key: Key) -> Option<Code> {
        self.get(engine, key.finish())
    }

    fn get(&self, engine: &Engine, key: Digest) -> Option<Code> {
        let image = path(&self.dir, &key, "cwasm");
        let digests = fs::read_to_string(path(&self.dir, &key, "sha256")).ok()?;
        let (image_digest, text_digest) = digests.trim().split_once('\n')?;
        let file = File::open(&image).ok()?;
        let unusable = |error: &dyn std::fmt::Display| {
            tracing::warn!(%error, path = %image.display(), "compiled code cannot be used: compiling again");
        };
        if Digest::parse(image_digest).ok()? != digest_of_file(&file).ok()? {
            unusable(&"it is not what was written");
            return None;
        }
        let text_digest = Digest::parse(text_digest).ok()?;
        let text = self.text(text_digest).inspect_err(|error| unusable(error)).ok()?;
        let component =
            text::with(&text, || map_code(engine, &image)).inspect_err(|error| unusable(error)).ok()?;
        let bytes = on_disk(&file.metadata().ok()?);
        self.used(text_digest, text.bytes(), text.file());
        self.used(key, bytes, &file);
        Some(Code { component, bytes, is_file: true })
    }

    /// The machine code of this digest, opened and checked unless it is in use.
    fn text(&self, digest: Digest) -> io::Result<Arc<Text>> {
        let mut texts = self.texts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(text) = texts.get(&digest).and_then(Weak::upgrade) {
            return Ok(text);
        }
        let file = File::open(path(&self.dir, &digest, "text"))?;
        if digest_of_file(&file)? != digest {
            return Err(io::Error::other("its machine code is not what was written"));
        }
        let text = Arc::new(Text::new(file)?);
        texts.retain(|_, text| text.strong_count() > 0);
        texts.insert(digest, Arc::downgrade(&text));
        Ok(text)
    }

    /// Notes the use, also for the next process.
    fn used(&self, key: Digest, bytes: u64, file: &File) {
        self.entries.get_with(key, || bytes);
        #[expect(clippy::disallowed_methods, reason = "orders files; decides nothing else")]
        let now = FileTimes::new().set_modified(SystemTime::now());
        drop(file.set_times(now)); // only the order of removal depends on it
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

    /// Whole or not at all, also after a crash. Returns the bytes of disk it takes.
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

/// SHA-256 over the length and the blocks that are not all zeros, each with its place: what a hole holds need not be read.
#[derive(Default)]
struct BlockDigest {
    hash: Sha256,
    block: u64,
}

impl BlockDigest {
    /// The next bytes, from the start of a block; only the last part may end within one.
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
        // Without holes, or on a file system that does not tell, everything is data.
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

/// Without holes.
fn on_disk(meta: &fs::Metadata) -> u64 {
    meta.blocks() * 512
}

/// What is missing is made again.
fn remove(dir: &Path, key: &Digest) {
    for extension in ["sha256", "cwasm", "text"] {
        drop(fs::remove_file(path(dir, key, extension)));
    }
}

/// Enters what an earlier process left, the longest unused first, and removes what it left half written before `since`.
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

fn map_code(engine: &Engine, path: &Path) -> Result<Component, Error> {
    #[expect(unsafe_code, reason = "native code can only be loaded on trust; see SAFETY")]
    // SAFETY: the file's content has the digest that this process or an earlier one recorded after compiling it
    // (`get`, `put`); wasmtime itself checks that it was made by the same release with the same settings.
    let component = unsafe { Component::deserialize_file(engine, path) };
    component.map_err(|error| Error::internal(format!("compiled code cannot be mapped: {error:#}")))
}

fn load_code(engine: &Engine, code: &[u8]) -> Result<Component, Error> {
    #[expect(unsafe_code, reason = "native code can only be loaded on trust; see SAFETY")]
    // SAFETY: the bytes come straight from `precompile_component` of this very engine.
    let component = unsafe { Component::deserialize(engine, code) };
    component.map_err(|error| Error::internal(format!("compiled code cannot be loaded: {error:#}")))
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
