//! Log lines, as text for people or JSON for programs, on standard error.

use std::sync::OnceLock;

use modelhost_core::error::{Error, ErrorCode};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The filter of this process's log, once it runs.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

const LEVELS: [LevelFilter; 6] = [
    LevelFilter::OFF,
    LevelFilter::ERROR,
    LevelFilter::WARN,
    LevelFilter::INFO,
    LevelFilter::DEBUG,
    LevelFilter::TRACE,
];

/// Starts logging for this process. `filter` is a `tracing` directive list, e.g. `info,modelhost_engine=debug`. Does
/// nothing when logging runs already. Errors: a malformed filter.
pub fn start_logs(format: LogFormat, filter: &str) -> Result<(), String> {
    let filter = EnvFilter::try_new(filter).map_err(|error| format!("log filter {filter:?}: {error}"))?;
    let (filter, handle) = reload::Layer::new(filter);
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    if tracing_subscriber::registry().with(filter).with(lines).try_init().is_ok() {
        drop(FILTER.set(handle)); // nobody else sets it: only one of us started logging
    }
    Ok(())
}

/// The most verbose level that is written anywhere: 0 nothing, 1 errors, 2 warnings, 3 information, 4 debugging, 5 everything.
pub fn log_level() -> u8 {
    let current = LevelFilter::current();
    LEVELS.iter().zip(0..).find(|(level, _)| **level == current).map_or(0, |(_, number)| number)
}

/// Writes lines up to this level from now on, for the whole process. Errors: unsupported, when this process does not log;
/// internal.
pub fn set_log_level(level: u8) -> Result<(), Error> {
    let filter =
        FILTER.get().ok_or_else(|| Error::new(ErrorCode::Unsupported, "this process writes no log"))?;
    let level = LEVELS.get(usize::from(level)).copied().unwrap_or(LevelFilter::TRACE);
    let set = filter.reload(EnvFilter::default().add_directive(level.into()));
    set.map_err(|error| Error::internal(format!("the log's level: {error}")))
}
