//! The admin API's JSON. A promise to scripts: fields are added, never changed.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

pub use modelhost_core::artifact::check_file_name;

/// `POST /v1/models/{prefix}/{name}/versions`: registers a version whose files were uploaded before.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Register {
    /// The text of `model.toml`.
    pub manifest: String,
    /// SHA-256 of each file that the manifest names, by name.
    #[serde(deserialize_with = "few_files")]
    pub files: BTreeMap<String, String>,
    /// Whether it gets all traffic at once.
    #[serde(default)]
    pub promote: bool,
    /// Where it runs; without it in the default deployment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployment: Option<String>,
}

/// Most files of a version: those that a manifest may name, and its component.
const MAX_FILES: usize = 1025;

/// Reads no more files than a version may have, so that a body takes few times its length.
fn few_files<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, String>, D::Error> {
    struct Few;

    impl<'de> Visitor<'de> for Few {
        type Value = BTreeMap<String, String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "digests of at most {MAX_FILES} files by their names")
        }

        fn visit_map<M: MapAccess<'de>>(self, mut entries: M) -> Result<Self::Value, M::Error> {
            let mut files = BTreeMap::new();
            while let Some((name, digest)) = entries.next_entry()? {
                files.insert(name, digest);
                if files.len() > MAX_FILES {
                    return Err(M::Error::custom(format_args!("files: more than {MAX_FILES}")));
                }
            }
            Ok(files)
        }
    }

    from.deserialize_map(Few)
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
    /// Whether its versions stay in memory.
    #[serde(default)]
    pub pinned: bool,
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
    /// Where it runs.
    #[serde(default)]
    pub deployment: String,
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

/// `POST …/versions/{version}/preload`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Preloaded {
    /// Whether it is in memory.
    pub loaded: bool,
}

/// `POST …/pin`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// Whether the versions that the policy names stay in memory.
    pub pinned: bool,
}

/// `PUT …/deployment`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Placement {
    /// Where they run from now on.
    pub deployment: String,
    /// One version; without it all that there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
}

/// A deployment's bounds, for `PUT` (a new one) and `PATCH /v1/deployments/{name}`: what is left out gets its default,
/// or keeps its value. Also a table `[deployments.NAME]` of the configuration file.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BoundsChange {
    /// Predictions that run at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instances: Option<u32>,
    /// Predictions that wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<u32>,
    /// Linear memory of its live instances together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
    /// Code, images and idle instances of its versions in memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loaded_mib: Option<u64>,
    /// Threads for predictions that run long; 0: one a core.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<u32>,
    /// For versions whose manifest asks for none: `request`, `instance`, or `auto` for what the component allows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub isolation: Option<String>,
    /// Imports beyond the harmless ones that manifests may ask for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Vec<String>>,
}

/// A deployment: its bounds, what it holds and does now, and what it did since it started.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeploymentRow {
    /// Its name.
    pub name: String,
    /// Predictions that may run at once.
    pub instances: u32,
    /// Predictions that may wait.
    pub queue: u32,
    /// Linear memory that its live instances may have together.
    pub memory_mib: u64,
    /// What its versions in memory may take.
    pub loaded_mib: u64,
    /// Threads for predictions that run long.
    pub threads: u32,
    /// For versions whose manifest asks for none.
    pub isolation: String,
    /// Imports that manifests may ask for.
    pub capabilities: Vec<String>,
    /// Versions placed in it.
    pub versions: u32,
    /// Those in memory.
    pub loaded: u32,
    /// Their bytes.
    pub loaded_bytes: u64,
    /// Predictions that run.
    pub running: u32,
    /// Predictions that wait.
    pub waiting: u32,
    /// Instances that wait for a prediction.
    pub idle_instances: u32,
    /// Linear memory of its live instances, in bytes.
    pub memory_bytes: u64,
    /// Share of its instances that were busy in the last 15 seconds: 0 to 1.
    pub utilisation: f64,
    /// Predictions let in.
    pub admitted: u64,
    /// How long they waited, in seconds.
    pub queue_seconds: f64,
    /// Refused on arrival: the queue was full.
    pub refused: u64,
    /// Refused on arrival: they would have waited past their deadline.
    pub hopeless: u64,
    /// Refused while they waited, for models with fewer waiting.
    pub shed: u64,
    /// Versions brought into memory.
    pub loads: u64,
    /// How long that took, in seconds.
    pub load_seconds: f64,
    /// Versions that could not be loaded.
    pub load_failures: u64,
    /// Versions unloaded to make room.
    pub evictions: u64,
}

/// `POST /v1/deployments/{name}/recreate`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recreate {
    /// Only say what would become unavailable.
    pub dry_run: bool,
}

/// What tearing a deployment down means.
#[derive(Debug, Serialize, Deserialize)]
pub struct Recreation {
    /// Its name.
    pub name: String,
    /// Whether it was done.
    pub done: bool,
    /// Predictions that wait and are refused.
    pub refused: u32,
    /// Predictions that run and finish.
    pub finishing: u32,
    /// Versions in memory, whose next callers wait until they are loaded again.
    pub unloaded: Vec<UnloadedVersion>,
}

/// A version that tearing its deployment down unloads.
#[derive(Debug, Serialize, Deserialize)]
pub struct UnloadedVersion {
    /// `prefix/name`.
    pub model: String,
    /// Its number.
    pub version: u32,
    /// Percent of its model's traffic.
    pub percent: f64,
    /// How long loading it took, on average.
    pub load_ms: f64,
}

/// What a version took since the host started, and what it holds: a row of `GET /v1/usage`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UsageRow {
    /// `prefix/name`.
    pub model: String,
    /// Its number.
    pub version: u32,
    /// Where it runs.
    pub deployment: String,
    /// Answered requests of callers.
    pub answered: u64,
    /// Failed requests of callers.
    pub failed: u64,
    /// Rows predicted.
    pub rows: u64,
    /// Processor time of its instances, in seconds, copies shown to it as a challenger included.
    pub cpu_seconds: f64,
    /// The same per run, in microseconds.
    pub cpu_us_per_prediction: f64,
    /// What evaluates its graphs and where, e.g. `onnxruntime 1.23.2 on cuda:0`, each once; empty while none is in
    /// memory.
    pub graphs: Vec<String>,
    /// Time of their evaluations since they were loaded, in seconds: of the processor, or spent waiting for a GPU.
    pub graph_seconds: f64,
    /// Waiting, in seconds.
    pub queue_seconds: f64,
    /// How long answers took, waiting included: (upper bound in microseconds, answers) of every class that has any.
    pub latency: Vec<(u64, u64)>,
    /// Predictions that run.
    pub running: u32,
    /// Predictions that wait.
    pub waiting: u32,
    /// Instances that wait for a prediction.
    pub idle_instances: u32,
    /// Bytes that it holds; absent when it is not in memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loaded_bytes: Option<u64>,
    /// Most linear memory of one of its instances, in bytes.
    pub peak_instance_bytes: u64,
    /// How often it was brought into memory.
    pub loads: u64,
    /// How long that took, in seconds.
    pub load_seconds: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registration_has_few_files() {
        let read = |count: usize| {
            let files: BTreeMap<String, &str> = (0..count).map(|at| (at.to_string(), "")).collect();
            serde_json::from_value::<Register>(serde_json::json!({"manifest": "", "files": files}))
        };
        assert_eq!(read(MAX_FILES).unwrap().files.len(), MAX_FILES);
        assert!(read(MAX_FILES + 1).unwrap_err().to_string().contains("files: more than 1025"));
    }
}
