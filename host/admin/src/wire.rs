//! The admin API's JSON. A promise to scripts: fields are added, never changed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// `POST /v1/models/{prefix}/{name}/versions`: registers a version whose files were uploaded before.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Register {
    /// The text of `model.toml`.
    pub manifest: String,
    /// SHA-256 of each file that the manifest names, by name.
    pub files: BTreeMap<String, String>,
    /// Whether it gets all traffic at once.
    #[serde(default)]
    pub promote: bool,
}

/// What was registered.
#[derive(Debug, Serialize, Deserialize)]
pub struct Registered {
    /// `prefix/name`.
    pub model: String,
    /// Its number.
    pub version: u32,
    /// SHA-256 over runtime, artifacts and manifest.
    pub digest: String,
    /// `request` or `instance`.
    pub isolation: String,
    /// Why it runs in warm instances although nobody asked for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// `POST …/promote`, `PUT …/aliases/{alias}`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VersionRef {
    /// A version's number.
    pub version: u32,
}

/// `POST …/split`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Split {
    /// Weights relative to their sum.
    pub weights: Vec<Weight>,
    /// `header:NAME` or `field:NAME`: the same caller reaches the same version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sticky: Option<String>,
}

/// One version's part of a split.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Weight {
    /// Its number.
    pub version: u32,
    /// Relative to the others'.
    pub weight: u32,
}

/// `POST …/challenge`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Challenge {
    /// Versions that see every request in the shadow; none ends it.
    pub challengers: Vec<u32>,
}

/// A policy.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Policy {
    /// The version that the others are measured against.
    pub primary: u32,
    /// Who serves how much.
    pub shares: Vec<Share>,
    /// Who sees every request in the shadow.
    pub challengers: Vec<u32>,
    /// What identifies a caller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sticky: Option<String>,
}

/// What a version serves.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Share {
    /// Its number.
    pub version: u32,
    /// Percent of the traffic, to 0.01.
    pub percent: f64,
}

/// A prefix, in `GET /v1/prefixes`.
#[derive(Debug, Serialize, Deserialize)]
pub struct PrefixRow {
    /// Its name.
    pub prefix: String,
    /// How many models it holds.
    pub models: usize,
}

/// A model, in `GET /v1/models`.
#[derive(Debug, Serialize, Deserialize)]
pub struct ModelRow {
    /// `prefix/name`.
    pub model: String,
    /// How many versions it has.
    pub versions: usize,
    /// The latest one.
    pub latest: Option<u32>,
    /// Absent until a version was promoted.
    pub policy: Option<Policy>,
}

/// A version, in `GET …/versions`.
#[derive(Debug, Serialize, Deserialize)]
pub struct VersionRow {
    /// Its number.
    pub version: u32,
    /// SHA-256 over runtime, artifacts and manifest.
    pub digest: String,
    /// `request` or `instance`.
    pub isolation: String,
    /// Whether it is in memory.
    pub loaded: bool,
    /// Percent of the traffic it serves now.
    pub percent: f64,
    /// Whether it challenges.
    pub challenger: bool,
    /// Names that point at it.
    pub aliases: Vec<String>,
    /// The manifest's description.
    pub description: String,
}

/// `GET /v1/models/{prefix}/{name}`.
#[derive(Debug, Serialize, Deserialize)]
pub struct ModelDetail {
    /// `prefix/name`.
    pub model: String,
    /// Absent until a version was promoted.
    pub policy: Option<Policy>,
    /// Movable names.
    pub aliases: BTreeMap<String, u32>,
    /// By number.
    pub versions: Vec<VersionRow>,
    /// How challengers' answers compare with the served ones since the host started.
    pub challengers: Vec<Comparisons>,
}

/// How one challenger compares with one serving version.
#[derive(Debug, Serialize, Deserialize)]
pub struct Comparisons {
    /// Who answered the caller.
    pub served: u32,
    /// Who saw the copy.
    pub challenger: u32,
    /// Copies by outcome: `equal`, `close` (within 1e-6), `differs`, `failed`, `dropped`.
    pub outcomes: BTreeMap<String, u64>,
}

/// One line of `GET …/history`.
#[derive(Debug, Serialize, Deserialize)]
pub struct HistoryRow {
    /// What was done.
    pub action: String,
    /// The policy since then.
    pub policy: Policy,
    /// Milliseconds since 1970, UTC.
    pub at_ms: i64,
    /// Whether it is in force.
    pub current: bool,
}

/// What a failed call answers.
#[derive(Debug, Serialize, Deserialize)]
pub struct Failure {
    /// For people.
    pub error: String,
    /// For programs: the error code's name.
    pub code: String,
}

/// `POST …/unload`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Unloaded {
    /// Whether it was in memory.
    pub unloaded: bool,
}
