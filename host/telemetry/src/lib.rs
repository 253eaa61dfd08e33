//! What operators watch: metrics in the Prometheus text format, and log lines.

mod logs;
mod metrics;

pub use logs::{LogFormat, start_logs};
pub use metrics::{Metrics, agreement_label};
