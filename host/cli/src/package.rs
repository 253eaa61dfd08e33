//! Uploads a package: every file that its manifest names, then the manifest. A package may come from a stranger, so no
//! file outside its folder is read.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::Path;

use anyhow::{Context, Result};
use modelhost_admin::wire;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::client::{Client, Failure};

/// The most bytes of a manifest that are read. A host accepts fewer.
const MAX_MANIFEST: u64 = 16 << 20;

/// The manifest's keys that name files. The host reads the rest.
#[derive(Deserialize)]
struct Files {
    component: Option<String>,
    #[serde(default)]
    artifacts: Vec<String>,
}

/// Uploads to `blobs` the files that the host does not have yet. Returns the registration.
pub(crate) fn upload(client: &Client, blobs: &str, folder: &Path) -> Result<wire::Register> {
    let path = folder.join("model.toml");
    let mut manifest = String::new();
    let text = open(folder, "model.toml")?.take(MAX_MANIFEST).read_to_string(&mut manifest);
    text.map_err(|error| wrong(&path, &error))?;
    let named: Files = toml::from_str(&manifest).map_err(|error| wrong(&path, &error))?;
    let mut files = BTreeMap::new();
    for name in named.component.into_iter().chain(named.artifacts) {
        let path = folder.join(&name);
        let mut file = open(folder, &name)?;
        let digest = digest(&mut file).map_err(|error| wrong(&path, &error))?;
        let blob = format!("{blobs}/{digest}");
        if !client.has(&blob)? {
            client.put_file(&blob, file).with_context(|| format!("uploading {}", path.display()))?;
        }
        files.insert(name, digest);
    }
    Ok(wire::Register { manifest, files, promote: false, deployment: None })
}

/// Opens a file of the folder. Errors: `Caller` if its name or a link leads out of the folder, or it is not a regular
/// file.
fn open(folder: &Path, name: &str) -> Result<File, Failure> {
    let path = folder.join(name);
    wire::check_file_name(name).map_err(|error| Failure::Caller(error.message))?;
    let resolved = path.canonicalize().map_err(|error| wrong(&path, &error))?;
    let folder = folder.canonicalize().map_err(|error| wrong(folder, &error))?;
    if !resolved.starts_with(&folder) {
        return Err(wrong(&path, &format!("leads out of the package, to {}", resolved.display())));
    }
    // Check before opening: opening a pipe waits for its writer.
    if !resolved.metadata().map_err(|error| wrong(&path, &error))?.is_file() {
        return Err(wrong(&path, &"is not a regular file"));
    }
    File::open(resolved).map_err(|error| wrong(&path, &error))
}

/// The file's digest. Rewinds the file to its start.
fn digest(file: &mut File) -> io::Result<String> {
    let mut hash = Sha256::new();
    io::copy(file, &mut hash)?;
    file.rewind()?;
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn wrong(path: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::Caller(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_files_of_the_package_are_read() {
        let outside = tempfile::tempdir().unwrap();
        let folder = outside.path().join("package");
        fs::create_dir_all(folder.join("weights")).unwrap();
        fs::write(outside.path().join("secret"), "s").unwrap();
        fs::write(folder.join("weights/a.bin"), "a").unwrap();
        symlink("../secret", folder.join("out")).unwrap();
        symlink(outside.path(), folder.join("folder-out")).unwrap();
        symlink("weights/a.bin", folder.join("in")).unwrap();
        symlink("/dev/zero", folder.join("device")).unwrap();
        let absolute = outside.path().join("secret").display().to_string();
        for (name, expected) in [
            ("weights/a.bin", None),
            ("in", None),
            ("../secret", Some("without \"..\"")),
            ("weights/../../secret", Some("without \"..\"")),
            (&absolute, Some("not absolute")),
            ("out", Some("leads out of the package")),
            ("folder-out/secret", Some("leads out of the package")),
            ("device", Some("leads out of the package")),
            ("weights", Some("is not a regular file")),
            ("nowhere", Some("No such file")),
        ] {
            let opened = open(&folder, name).map(drop);
            match expected {
                None => assert!(opened.is_ok(), "{name}: {opened:?}"),
                Some(text) => {
                    let error = opened.unwrap_err().to_string();
                    assert!(error.contains(text), "{name}: {error}");
                }
            }
        }
        // The folder itself may be a link.
        symlink(&folder, outside.path().join("link")).unwrap();
        assert!(open(&outside.path().join("link"), "in").is_ok());
    }
}
