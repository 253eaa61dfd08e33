//! The log, on standard error: text for people or JSON for programs. A record is always one line. Its texts may hold
//! line breaks, because many are words of authors and callers.

use std::borrow::Cow;
use std::io::{self, Write};
use std::sync::OnceLock;

use modelhost_core::error::{Error, ErrorCode};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

/// The format of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// Text for people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// The filter of this process's log. Set when logging starts.
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
    let lines = fmt::layer().with_writer(|| Records);
    let lines = match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    if tracing_subscriber::registry().with(filter).with(lines).try_init().is_ok() {
        drop(FILTER.set(handle)); // nobody else sets it: only one of us started logging
    }
    Ok(())
}

/// Writes to standard error. `tracing` writes each record with one call.
struct Records;

impl Write for Records {
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        io::stderr().write_all(&one_line(record))?;
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Escapes all line breaks of a record but the last one.
fn one_line(record: &[u8]) -> Cow<'_, [u8]> {
    let text = record.strip_suffix(b"\n").unwrap_or(record);
    if !text.iter().any(|byte| matches!(byte, b'\n' | b'\r')) {
        return Cow::Borrowed(record);
    }
    let mut line = Vec::with_capacity(record.len() + 16);
    for byte in text {
        match byte {
            b'\n' => line.extend(b"\\n"),
            b'\r' => line.extend(b"\\r"),
            byte => line.push(*byte),
        }
    }
    line.push(b'\n');
    Cow::Owned(line)
}

/// The most verbose level that is logged: 0 nothing, 1 errors, 2 warnings, 3 information, 4 debugging, 5 everything.
pub fn log_level() -> u8 {
    let current = LevelFilter::current();
    LEVELS.iter().zip(0..).find(|(level, _)| **level == current).map_or(0, |(_, number)| number)
}

/// Logs up to this level from now on, for the whole process. Errors: unsupported, when this process does not log;
/// internal.
pub fn set_log_level(level: u8) -> Result<(), Error> {
    let filter =
        FILTER.get().ok_or_else(|| Error::new(ErrorCode::Unsupported, "this process writes no log"))?;
    let level = LEVELS.get(usize::from(level)).copied().unwrap_or(LevelFilter::TRACE);
    let set = filter.reload(EnvFilter::default().add_directive(level.into()));
    set.map_err(|error| Error::internal("the log's level cannot be set").because(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_one_line() {
        for (record, line) in [
            ("INFO registered\n", "INFO registered\n"),
            ("WARN graph \"a\nERROR forged\r\n\"\n", "WARN graph \"a\\nERROR forged\\r\\n\"\n"),
            ("\n\n", "\\n\n"),
            ("", ""),
        ] {
            assert_eq!(one_line(record.as_bytes()), line.as_bytes(), "{record:?}");
        }
    }
}
