//! What happened, for observers: metrics now, prediction log and drift later.

use std::time::Duration;

use crate::error::ErrorCode;
use crate::model::ModelVersion;

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
}
