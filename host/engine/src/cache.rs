//! Compiled code on disk, named by everything it was made from.
//!
//! Loading native code that somebody changed would run it, so each file's SHA-256 stands in a second file and is
//! checked before the code is mapped. A file that is missing, torn or changed is made again.

use std::fs::{self, File};
use std::hash::Hasher;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use modelhost_core::artifact::Digest;
use modelhost_core::error::Error;
use sha2::{Digest as _, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

/// The folder of compiled code.
pub(crate) struct Cache {
    dir: PathBuf,
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

impl Cache {
    /// Opens the folder, making it if need be. Errors: internal, with the path.
    pub(crate) fn open(dir: &Path) -> Result<Self, Error> {
        fs::create_dir_all(dir)
            .map_err(|error| Error::internal(format!("cache folder {}: {error}", dir.display())))?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// The entry, or the one that `make` compiles, which is kept for the next time.
    pub(crate) fn get_or_make(
        &self,
        engine: &Engine,
        key: Key,
        make: impl FnOnce() -> Result<Vec<u8>, Error>,
    ) -> Result<Component, Error> {
        let digest = key.finish();
        if let Some(component) = self.get(engine, digest) {
            return Ok(component);
        }
        let code = make()?;
        if let Err(error) = self.put(digest, &code) {
            tracing::warn!(%error, "compiled code is not kept: it will be compiled again");
        }
        load_code(engine, &code)
    }

    /// Maps the entry, if it is there and is what was written.
    pub(crate) fn find(&self, engine: &Engine, key: Key) -> Option<Component> {
        self.get(engine, key.finish())
    }

    fn get(&self, engine: &Engine, key: Digest) -> Option<Component> {
        let path = self.path(key, "cwasm");
        let expected = fs::read_to_string(self.path(key, "sha256")).ok()?;
        let mut hash = Sha256::new();
        io::copy(&mut File::open(&path).ok()?, &mut hash).ok()?;
        if Digest::parse(expected.trim()).ok()? != Digest::from_bytes(hash.finalize().into()) {
            tracing::warn!(path = %path.display(), "compiled code is not what was written: compiling again");
            return None;
        }
        map_code(engine, &path)
            .inspect_err(|error| tracing::warn!(%error, path = %path.display(), "compiling again"))
            .ok()
    }

    fn put(&self, key: Digest, code: &[u8]) -> io::Result<()> {
        let digest = Digest::from_bytes(Sha256::digest(code).into());
        self.write(&self.path(key, "cwasm"), code)?;
        self.write(&self.path(key, "sha256"), digest.to_string().as_bytes())
    }

    /// Whole or not at all, also after a crash.
    fn write(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(&self.dir)?;
        file.write_all(content)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    }

    fn path(&self, key: Digest, extension: &str) -> PathBuf {
        self.dir.join(format!("{key}.{extension}"))
    }
}

fn map_code(engine: &Engine, path: &Path) -> Result<Component, Error> {
    #[expect(unsafe_code, reason = "native code can only be loaded on trust; see SAFETY")]
    // SAFETY: the file's content has the digest that this process or an earlier one recorded after compiling it
    // (`get`); wasmtime itself checks that it was made by the same release with the same settings.
    let component = unsafe { Component::deserialize_file(engine, path) };
    component.map_err(|error| Error::internal(format!("compiled code cannot be mapped: {error:#}")))
}

fn load_code(engine: &Engine, code: &[u8]) -> Result<Component, Error> {
    #[expect(unsafe_code, reason = "native code can only be loaded on trust; see SAFETY")]
    // SAFETY: the bytes come straight from `precompile_component` of this very engine.
    let component = unsafe { Component::deserialize(engine, code) };
    component.map_err(|error| Error::internal(format!("compiled code cannot be loaded: {error:#}")))
}
