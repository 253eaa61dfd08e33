//! What happened, for observers: metrics now, prediction log and drift later.

use std::sync::Arc;
use std::time::Duration;

use crate::deployment::{Bounds, DeploymentName};
use crate::error::ErrorCode;
use crate::graph::{GraphStatus, Histogram};
use crate::model::ModelVersion;
use crate::version::Version;

/// In which role a version saw a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Its answer went to the caller.
    Primary,
    /// It saw a copy; nobody waited for it.
    Challenger,
}

impl Role {
    /// The metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Challenger => "challenger",
        }
    }
}

/// One prediction, however it ended.
#[derive(Debug)]
pub struct Prediction {
    /// Whether a caller waited.
    pub role: Role,
    /// `None` when it was answered.
    pub error: Option<ErrorCode>,
    /// Rows in the request.
    pub rows: u64,
    /// Waiting for a free instance (and for the version to load).
    pub queued: Duration,
    /// Running.
    pub ran: Duration,
    /// Processor time of its instance, for as many predictions as it stands for: asking the system for it costs, so that not every
    /// prediction is measured, and those that are not have a count of 0.
    pub cpu: Tally,
}

/// How a challenger's answer compares with the one the caller got.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Agreement {
    /// Equal datatypes and shapes; the largest |difference| of any number in any output.
    Compared(f64),
    /// Other outputs, datatypes, shapes or texts.
    Differs,
    /// The challenger failed.
    Failed,
    /// The copy was dropped: the challenger could not keep up.
    Dropped,
}

/// One request that a challenger saw or should have seen.
#[derive(Debug)]
pub struct Comparison {
    /// Who answered the caller.
    pub served: ModelVersion,
    /// The outcome.
    pub agreement: Agreement,
}

/// How often something happened and how long it took in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Times.
    pub count: u64,
    /// Nanoseconds, all of them together.
    pub nanos: u64,
}

/// What a version did as a primary since the host started, in the terms of Triton's statistics extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statistics {
    /// Milliseconds since 1970 of the last prediction; 0: never.
    pub last_inference_ms: u64,
    /// Rows predicted; those answered from the cache do not count.
    pub rows: u64,
    /// Runs; answers from the cache do not count.
    pub runs: u64,
    /// Answered predictions: waiting and running.
    pub success: Tally,
    /// Failed predictions: waiting and running.
    pub fail: Tally,
    /// Waiting for an instance.
    pub queue: Tally,
    /// Reading the request.
    pub decode: Tally,
    /// Running.
    pub infer: Tally,
    /// Writing the response.
    pub encode: Tally,
    /// Answers found in the response cache: looking them up.
    pub cache_hit: Tally,
    /// Answers not found there: looking them up, running and storing them.
    pub cache_miss: Tally,
    /// Processor time of its instances, whether they answered or failed, for callers and as a challenger; by samples.
    pub cpu: Tally,
}

/// What a deployment holds and does at one moment, and what it did since it started.
#[derive(Debug, Clone, PartialEq)]
pub struct DeploymentStatus {
    /// Its name.
    pub name: DeploymentName,
    /// Its bounds.
    pub bounds: Bounds,
    /// Threads for predictions that run long.
    pub threads: u32,
    /// Versions placed in it.
    pub versions: u32,
    /// Those in memory.
    pub loaded: u32,
    /// Their bytes: code, images, idle instances.
    pub loaded_bytes: u64,
    /// Predictions that run.
    pub running: u32,
    /// Predictions that wait for an instance.
    pub waiting: u32,
    /// Instances that wait for a prediction.
    pub idle_instances: u32,
    /// Linear memory of its live instances, in bytes.
    pub memory_bytes: u64,
    /// Share of its instances that were busy, averaged over the last seconds: 0 to 1.
    pub utilisation: f64,
    /// Totals since it started.
    pub totals: DeploymentTotals,
}

/// What a deployment did since it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeploymentTotals {
    /// Predictions that were let in, and how long they waited.
    pub admitted: Tally,
    /// Refused on arrival: the queue was full.
    pub refused: u64,
    /// Refused on arrival: they would have waited past their deadline.
    pub hopeless: u64,
    /// Refused while they waited, for a model that had fewer waiting.
    pub shed: u64,
    /// Versions brought into memory, and how long that took.
    pub loads: Tally,
    /// Versions that could not be loaded.
    pub load_failures: u64,
    /// Versions unloaded to make room.
    pub evictions: u64,
}

/// What a version took since the host started, and what it holds.
#[derive(Debug, Clone)]
pub struct VersionUsage {
    /// Which version.
    pub version: Arc<Version>,
    /// Where it runs.
    pub deployment: DeploymentName,
    /// What it did.
    pub statistics: Statistics,
    /// How long its answers to callers took, waiting included: (upper bound in microseconds, answers) of every class that has any.
    pub latency: Vec<(u64, u64)>,
    /// Predictions that run.
    pub running: u32,
    /// Predictions that wait for an instance.
    pub waiting: u32,
    /// Instances that wait for a prediction.
    pub idle_instances: u32,
    /// Bytes that it holds; `None`: it is not in memory.
    pub loaded_bytes: Option<u64>,
    /// Most linear memory that one of its instances had, in bytes, since it was loaded.
    pub peak_instance_bytes: u64,
    /// How often it was brought into memory, and how long that took.
    pub loads: Tally,
    /// Its graphs, while it is in memory.
    pub graphs: Vec<GraphStatus>,
    /// Rows of its runs, where its requests are joined before its component.
    pub batch_rows: Option<Histogram>,
}
