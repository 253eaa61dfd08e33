//! What is registered: the catalogue in SQLite, the artifacts by digest, and the
//! [`Snapshot`](modelhost_core::version::Snapshot) that is built from them. What was acknowledged survives `kill -9`.

mod blobs;
mod catalog;
mod columns;
mod manifest;
mod rows;

use modelhost_core::error::{Error, ErrorCode};

pub use blobs::{Blobs, Upload};
pub use catalog::{Back, Catalog, Change, HistoryEntry, Registration};
pub use manifest::{Feature, Manifest, Training};
pub use rows::ShareRow;

/// A full disk is nobody's fault, and a later try may succeed.
fn disk_full() -> Error {
    Error::new(ErrorCode::ResourceExhausted, "no space is left on this host's disk")
}
