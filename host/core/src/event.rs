//! Events for observers: metrics now, prediction log and drift later.

use std::sync::Arc;
use std::time::Duration;

use crate::deployment::{Bounds, DeploymentName};
use crate::error::ErrorCode;
use crate::graph::{GraphStatus, Histogram};
use crate::model::ModelVersion;
use crate::version::Version;

/// The role in which a version saw a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Its answer went to the caller.
    Primary,
    /// It saw a copy; no caller waited for it.
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
    /// The role of the version: whether a caller waited.
    pub role: Role,
    /// `None` when it was answered.
    pub error: Option<ErrorCode>,
    /// Rows in the request.
    pub rows: u64,
    /// Time that it waited for a free instance, and for the version to load.
    pub queued: Duration,
    /// Time that it ran.
    pub ran: Duration,
    /// Processor time of its instance, for as many predictions as this one stands for. Asking the system for the time
    /// costs something, so not every prediction is measured; the count of the others is 0.
    pub cpu: Tally,
}

/// How a challenger's answer compares with the answer that the caller got.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Agreement {
    /// Datatypes and shapes are equal. This is the largest |difference| of any number in any output.
    Compared(f64),
    /// The outputs, datatypes, shapes or texts differ.
    Differs,
    /// The challenger failed.
    Failed,
    /// The copy was dropped: the challenger could not keep up.
    Dropped,
}

/// One request that a challenger saw or should have seen.
#[derive(Debug)]
pub struct Comparison {
    /// The version that answered the caller.
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

/// The work of a version as a primary since the host started, in the terms of Triton's statistics extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statistics {
    /// Milliseconds since 1970 of the last prediction; 0: never.
    pub last_inference_ms: u64,
    /// Rows predicted. Rows answered from the cache do not count.
    pub rows: u64,
    /// Runs. Answers from the cache do not count.
    pub runs: u64,
    /// Predictions that were answered: the time that they waited and ran.
    pub success: Tally,
    /// Predictions that failed: the time that they waited and ran.
    pub fail: Tally,
    /// Waiting for an instance.
    pub queue: Tally,
    /// Reading the request.
    pub decode: Tally,
    /// Running.
    pub infer: Tally,
    /// Writing the response.
    pub encode: Tally,
    /// Answers found in the response cache: the time of looking them up.
    pub cache_hit: Tally,
    /// Answers not found there: the time of looking them up, running and storing them.
    pub cache_miss: Tally,
    /// Processor time of its instances, by samples. Predictions that were answered and that failed count, for callers
    /// and as a challenger.
    pub cpu: Tally,
}

/// What a deployment holds and does at one moment, and its totals since it started.
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
    /// Predictions that were let in, and the time that they waited.
    pub admitted: Tally,
    /// Predictions refused on arrival, because the queue was full.
    pub refused: u64,
    /// Predictions refused on arrival, because they would have waited past their deadline.
    pub hopeless: u64,
    /// Predictions refused while they waited, in favour of a model that had fewer waiting.
    pub shed: u64,
    /// Versions brought into memory, and the time that it took.
    pub loads: Tally,
    /// Versions that could not be loaded.
    pub load_failures: u64,
    /// Versions unloaded to make room.
    pub evictions: u64,
}

/// What a version took since the host started, and what it holds now.
#[derive(Debug, Clone)]
pub struct VersionUsage {
    /// The version.
    pub version: Arc<Version>,
    /// The deployment that it runs in.
    pub deployment: DeploymentName,
    /// Its work so far.
    pub statistics: Statistics,
    /// How long its answers to callers took, waiting included. Every class that has answers is (upper bound in
    /// microseconds, answers).
    pub latency: Vec<(u64, u64)>,
    /// Predictions that run.
    pub running: u32,
    /// Predictions that wait for an instance.
    pub waiting: u32,
    /// Instances that wait for a prediction.
    pub idle_instances: u32,
    /// Bytes that it holds. `None` when it is not in memory.
    pub loaded_bytes: Option<u64>,
    /// The most linear memory, in bytes, that one of its instances had since the version was loaded.
    pub peak_instance_bytes: u64,
    /// How often it was brought into memory, and how long that took.
    pub loads: Tally,
    /// Its graphs, while it is in memory.
    pub graphs: Vec<GraphStatus>,
    /// Rows of its runs, where its requests are joined before its component.
    pub batch_rows: Option<Histogram>,
}
