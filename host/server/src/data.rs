//! The data folder: one process uses it, and nobody but its owner reads it.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use modelhost_core::error::{Error, ErrorCode};

const FOLDER: u32 = 0o700;
const FILE: u32 = 0o600;
const OTHERS: u32 = 0o077;

/// What a host keeps in its folder.
const OURS: [&str; 6] = ["blobs", "compiled", "catalogue.db", "catalogue.db-wal", "catalogue.db-shm", "lock"];

/// Makes the folder, closes it to others, and makes sure that this process alone uses it. Errors: internal; conflict.
pub(crate) fn open(dir: &Path) -> Result<File, Error> {
    let open = || -> io::Result<File> {
        for folder in ["", "blobs", "compiled"] {
            DirBuilder::new().recursive(true).mode(FOLDER).create(dir.join(folder))?;
        }
        File::options().create(true).truncate(false).write(true).mode(FILE).open(dir.join("lock"))
    };
    let file = open().map_err(|error| Error::internal(format!("data folder {}: {error}", dir.display())))?;
    file.try_lock().map_err(|error| {
        Error::new(
            ErrorCode::Conflict,
            format!("data folder {} is used by another host: {error}", dir.display()),
        )
    })?;
    close(dir);
    Ok(file)
}

/// Closes what a host keeps, and the folder where nothing else lies in it. What is closed already is not looked
/// through.
fn close(dir: &Path) {
    let closed = || -> io::Result<bool> {
        let (mut changed, mut shared) = (false, false);
        for entry in fs::read_dir(dir)? {
            let name = entry?.file_name();
            match OURS.iter().any(|ours| name == *ours) {
                true => changed |= close_all(&dir.join(name))?,
                false => shared = true,
            }
        }
        Ok((!shared && restrict(dir, FOLDER)?) | changed)
    };
    match closed() {
        Ok(false) => {}
        Ok(true) => {
            tracing::warn!(dir = %dir.display(), "others could read the data folder: now only its owner can")
        }
        Err(error) => {
            tracing::warn!(%error, dir = %dir.display(), "others can read the data folder, and it could not be closed");
        }
    }
}

/// Whether others could read it. What a folder holds first, so that a start that was cut short begins again.
fn close_all(path: &Path) -> io::Result<bool> {
    let kind = path.symlink_metadata()?.file_type();
    if kind.is_file() {
        return restrict(path, FILE);
    }
    if !kind.is_dir() || path.metadata()?.permissions().mode() & OTHERS == 0 {
        return Ok(false);
    }
    for entry in fs::read_dir(path)? {
        close_all(&entry?.path())?;
    }
    restrict(path, FOLDER)
}

/// Whether others could read it.
fn restrict(path: &Path, mode: u32) -> io::Result<bool> {
    let open = path.metadata()?.permissions().mode() & OTHERS != 0;
    if open {
        fs::set_permissions(path, Permissions::from_mode(mode))?;
    }
    Ok(open)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_could_read_is_closed() {
        let outside = tempfile::tempdir().unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        let (dir, target) = (outside.path().join("data"), outside.path().join("target"));
        fs::create_dir_all(dir.join("blobs/ab")).unwrap();
        for path in [&target, &dir.join("catalogue.db"), &dir.join("blobs/ab/abcd")] {
            fs::write(path, "x").unwrap();
            fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
        }
        std::os::unix::fs::symlink(&target, dir.join("blobs/link")).unwrap();
        fs::set_permissions(&dir, Permissions::from_mode(0o755)).unwrap();
        drop(open(&dir).unwrap());
        assert_eq!([mode(&dir), mode(&dir.join("blobs/ab")), mode(&dir.join("compiled"))], [FOLDER; 3]);
        for file in ["catalogue.db", "blobs/ab/abcd", "lock"] {
            assert_eq!(mode(&dir.join(file)), FILE, "{file}");
        }
        assert_eq!(mode(&target), 0o644, "a link is not followed");
        fs::set_permissions(&dir, Permissions::from_mode(0o755)).unwrap();
        fs::write(dir.join("notes.txt"), "somebody else's").unwrap();
        drop(open(&dir).unwrap());
        assert_eq!((mode(&dir), mode(&dir.join("blobs"))), (0o755, FOLDER), "a shared folder stays as it is");
    }
}
