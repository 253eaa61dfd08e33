//! Content by digest, as files. A file gets its name only when it is whole and on disk.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use modelhost_core::artifact::Digest;
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::ports::{BlobStore, BoxFuture};
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;
use tokio::sync::Semaphore;

use crate::disk_full;

/// Blobs that are read at once. Further reads wait. Each read takes a blocking thread and holds the whole blob in
/// memory.
const READING_AT_ONCE: usize = 8;

/// A folder of blobs, `ab/abcd…`, named by SHA-256.
#[derive(Debug, Clone)]
pub struct Blobs {
    dir: PathBuf,
    reading: Arc<Semaphore>,
}

impl Blobs {
    /// Opens the folder or makes it, and removes partial uploads of a crash. Errors: internal.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let blobs = Self { dir: dir.to_owned(), reading: Arc::new(Semaphore::new(READING_AT_ONCE)) };
        let partial = blobs.partial();
        let result = fs::remove_dir_all(&partial).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        });
        result.and_then(|()| make_folder(&partial)).map_err(|error| failed(&partial, &error))?;
        Ok(blobs)
    }

    /// Starts an upload. Errors: internal.
    pub fn upload(&self) -> Result<Upload, Error> {
        let file = NamedTempFile::new_in(self.partial()).map_err(|error| failed(&self.dir, &error))?;
        Ok(Upload { blobs: self.clone(), file, hash: Sha256::new(), bytes: 0 })
    }

    /// Stores this content. Errors: internal.
    pub fn put(&self, content: &[u8]) -> Result<Digest, Error> {
        let mut upload = self.upload()?;
        upload.write(content)?;
        upload.finish(None)
    }

    /// The size of a blob in bytes, if it is stored.
    pub fn size(&self, digest: Digest) -> Option<u64> {
        fs::metadata(self.path(digest)).ok().map(|meta| meta.len())
    }

    /// Removes all blobs but these. Call it only at start, when no upload waits for its registration.
    pub fn retain(&self, keep: &HashSet<Digest>) -> Result<usize, Error> {
        let mut removed = 0;
        let entries = |dir: &Path| -> Result<Vec<PathBuf>, Error> {
            let list = fs::read_dir(dir).and_then(|list| list.map(|entry| Ok(entry?.path())).collect());
            list.map_err(|error| failed(dir, &error))
        };
        for folder in entries(&self.dir)?.into_iter().filter(|path| *path != self.partial()) {
            for path in entries(&folder)? {
                let digest = path.file_name().and_then(|name| name.to_str()).map(Digest::parse);
                if matches!(digest, Some(Ok(digest)) if !keep.contains(&digest)) {
                    fs::remove_file(&path).map_err(|error| failed(&path, &error))?;
                    removed += 1;
                }
            }
        }
        Ok(removed)
    }

    fn partial(&self) -> PathBuf {
        self.dir.join("partial")
    }

    fn path(&self, digest: Digest) -> PathBuf {
        let name = digest.to_string();
        self.dir.join(name.get(..2).unwrap_or_default()).join(name)
    }

    fn read_checked(&self, digest: Digest, most: u64) -> Result<Bytes, Error> {
        let path = self.path(digest);
        let content = read_at_most(&path, most).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::not_found(format!("blob {digest} is not stored")),
            io::ErrorKind::FileTooLarge => {
                let text = format!("blob {digest} is larger than the {most} bytes allowed");
                Error::new(ErrorCode::TooLarge, text)
            }
            _ => failed(&path, &error),
        })?;
        if Digest::from_bytes(Sha256::digest(&content).into()) == digest {
            return Ok(content.into());
        }
        Err(Error::internal(format!(
            "blob {digest} is corrupt: its content has another digest; upload it again"
        )))
    }
}

impl BlobStore for Blobs {
    fn read<'a>(&'a self, digest: &'a Digest, most: u64) -> BoxFuture<'a, Result<Bytes, Error>> {
        let (blobs, digest) = (self.clone(), *digest);
        Box::pin(async move {
            let place = Arc::clone(&blobs.reading).acquire_owned().await;
            let place = place.map_err(|_| Error::internal("reading blobs has ended"))?;
            let read = move || {
                let _until_read = place;
                blobs.read_checked(digest, most)
            };
            let unread = |error| Error::internal(format!("blob {digest} was not read")).because(error);
            tokio::task::spawn_blocking(read).await.map_err(unread)?
        })
    }
}

/// An upload in progress. If it is dropped unfinished, it leaves nothing behind.
pub struct Upload {
    blobs: Blobs,
    file: NamedTempFile,
    hash: Sha256,
    bytes: u64,
}

impl Upload {
    /// Appends to the content. Errors: internal; resource exhausted, on a full disk.
    pub fn write(&mut self, chunk: &[u8]) -> Result<(), Error> {
        self.hash.update(chunk);
        self.bytes += chunk.len() as u64;
        self.file.write_all(chunk).map_err(|error| failed(&self.blobs.dir, &error))
    }

    /// Bytes written so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Stores the content durably. Errors: invalid argument, if its digest is not `expected`; internal; resource
    /// exhausted, on a full disk.
    pub fn finish(self, expected: Option<Digest>) -> Result<Digest, Error> {
        let digest = Digest::from_bytes(self.hash.finalize().into());
        if let Some(expected) = expected.filter(|expected| *expected != digest) {
            return Err(Error::invalid(format!("blob: {expected} was announced, content of {digest} came")));
        }
        let path = self.blobs.path(digest);
        let store = || -> io::Result<()> {
            let folder = path.parent().unwrap_or(&self.blobs.dir);
            make_folder(folder)?;
            self.file.as_file().sync_all()?;
            self.file.persist(&path)?;
            fs::File::open(folder)?.sync_all()?;
            fs::File::open(&self.blobs.dir)?.sync_all()
        };
        store().map_err(|error| failed(&path, &error))?;
        Ok(digest)
    }
}

/// Other users must not read what authors upload. `tempfile` makes its files so by itself.
fn make_folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Reads a file, but not if it is larger than `most`.
fn read_at_most(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let file = fs::File::open(path)?;
    let length = file.metadata()?.len();
    if length > most {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut content = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
    file.take(length).read_to_end(&mut content)?;
    Ok(content)
}

/// The path and the system's error are for the log.
fn failed(path: &Path, error: &io::Error) -> Error {
    let told = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => disk_full(),
        _ => Error::internal("this host cannot read or write its files of versions"),
    };
    told.because(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Blobs) {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        (dir, blobs)
    }

    #[test]
    fn content_comes_back_by_digest() {
        let (_dir, blobs) = store();
        let digest = blobs.put(b"weights").unwrap();
        assert_eq!(blobs.read_checked(digest, 7).unwrap(), b"weights"[..]);
        assert_eq!(blobs.size(digest), Some(7));
        let error = blobs.read_checked(digest, 6).unwrap_err();
        assert_eq!(error.code, ErrorCode::TooLarge);
        assert!(error.message.ends_with("is larger than the 6 bytes allowed"), "{error}");
    }

    #[test]
    fn where_a_file_lies_is_for_the_log() {
        let (dir, blobs) = store();
        let digest = Digest::from_bytes([7; 32]);
        fs::create_dir_all(blobs.path(digest)).unwrap();
        let error = blobs.read_checked(digest, 1 << 20).unwrap_err();
        assert_eq!(error.code, ErrorCode::Internal);
        assert_eq!(error.message, "this host cannot read or write its files of versions");
        let (logged, path) = (error.chain().to_string(), dir.path().display().to_string());
        assert!(logged.contains(&path) && logged.contains("Is a directory"), "{logged}");
        let full = failed(dir.path(), &io::ErrorKind::StorageFull.into());
        assert_eq!((full.code, full.message.contains('/')), (ErrorCode::ResourceExhausted, false));
        assert!(full.chain().to_string().contains(&path), "{}", full.chain());
    }

    #[test]
    fn refuses_content_of_another_digest() {
        let (_dir, blobs) = store();
        let mut upload = blobs.upload().unwrap();
        upload.write(b"other").unwrap();
        let expected = Digest::from_bytes([0; 32]);
        assert_eq!(upload.finish(Some(expected)).unwrap_err().code, ErrorCode::InvalidArgument);
        assert_eq!(blobs.size(expected), None);
    }

    #[test]
    fn says_when_a_blob_rotted() {
        let (_dir, blobs) = store();
        let digest = blobs.put(b"weights").unwrap();
        fs::write(blobs.path(digest), b"weighty").unwrap();
        let error = blobs.read_checked(digest, 7).unwrap_err();
        assert!(error.message.contains("corrupt"), "{error}");
        blobs.put(b"weights").unwrap();
        assert!(blobs.read_checked(digest, 7).is_ok(), "an upload mends it");
    }

    #[test]
    fn keeps_what_is_referenced_and_drops_what_a_crash_left() {
        let (dir, blobs) = store();
        let kept = blobs.put(b"kept").unwrap();
        let orphan = blobs.put(b"orphan").unwrap();
        fs::write(blobs.partial().join("half"), b"ha").unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        assert_eq!(blobs.retain(&HashSet::from([kept])), Ok(1));
        assert_eq!((blobs.size(kept), blobs.size(orphan)), (Some(4), None));
        assert_eq!(fs::read_dir(blobs.partial()).unwrap().count(), 0);
    }
}
