//! What operators watch: metrics in the Prometheus text format, and the log.

mod graphs;
mod host;
mod logs;
mod metrics;
mod statistics;
mod traces;
mod triton;
mod usage;

pub use graphs::ReadGpus;
pub use host::{Clients, ReadClients};
pub use logs::{LogFormat, log_level, set_log_level, start_logs};
pub use metrics::{Metrics, agreement_label};
pub use traces::{Finished, Trace, Traces};
pub use usage::ReadUsage;
