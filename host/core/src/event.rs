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
