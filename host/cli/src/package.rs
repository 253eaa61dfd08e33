//! Sends a package: every file that its manifest names, then the manifest.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use anyhow::{Context, Result};
use modelhost_admin::wire;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::client::{Client, Failure};

/// What a manifest says of files; the host reads the rest.
#[derive(Deserialize)]
struct Files {
    component: Option<String>,
    #[serde(default)]
    artifacts: Vec<String>,
}

/// Uploads the files that the host does not have yet, and puts the registration together.
pub(crate) fn upload(client: &Client, folder: &Path) -> Result<wire::Register> {
    let path = folder.join("model.toml");
    let manifest = fs::read_to_string(&path).map_err(|error| wrong(&path, &error))?;
    let named: Files = toml::from_str(&manifest).map_err(|error| wrong(&path, &error))?;
    let mut files = BTreeMap::new();
    for name in named.component.into_iter().chain(named.artifacts) {
        let path = folder.join(&name);
        let digest = digest(&path).map_err(|error| wrong(&path, &error))?;
        if !client.has_blob(&digest)? {
            let file = File::open(&path).map_err(|error| wrong(&path, &error))?;
            client.put_blob(&digest, file).with_context(|| format!("uploading {}", path.display()))?;
        }
        files.insert(name, digest);
    }
    Ok(wire::Register { manifest, files, promote: false, deployment: None })
}

fn digest(path: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    io::copy(&mut File::open(path)?, &mut hash)?;
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn wrong(path: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::Caller(format!("{}: {error}", path.display()))
}
