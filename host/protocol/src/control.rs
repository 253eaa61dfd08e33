//! What the Open Inference Protocol's extensions let a client see and set, free of any transport.

use modelhost_core::error::{Error, ErrorCode};

/// One version in the repository's index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexEntry {
    /// `prefix/name`.
    pub model: String,
    /// The version's number.
    pub version: u32,
    /// Why it cannot answer, when it cannot. A version that loads on its first request can.
    pub unavailable: Option<String>,
}

impl IndexEntry {
    /// The extension's word.
    pub(crate) fn state(&self) -> &'static str {
        if self.unavailable.is_none() { "READY" } else { "UNAVAILABLE" }
    }
}

/// What a load or unload must not carry: the parameters of Triton's that replace a model's files or settings.
/// Errors: unsupported, naming the parameter.
pub(crate) fn check_repository_parameter(name: &str) -> Result<(), Error> {
    if name == "unload_dependents" {
        return Ok(());
    }
    let text = format!(
        "parameter {name:?}: a load brings back a registered version as it is; another one is registered with the \
         admin API"
    );
    Err(Error::new(ErrorCode::Unsupported, text))
}

/// Which log lines are written. A setting that a client leaves out stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogSettings {
    /// What went wrong.
    pub error: Option<bool>,
    /// What may go wrong.
    pub warning: Option<bool>,
    /// What happened.
    pub info: Option<bool>,
    /// 0: none of these; 1: for debugging; 2 and above: everything.
    pub verbose_level: Option<u32>,
}

impl LogSettings {
    /// Takes one setting by its name on the wire. Errors: invalid argument (an unknown name or another type),
    /// unsupported (a log file, a format).
    pub(crate) fn set(&mut self, name: &str, value: SettingValue<'_>) -> Result<(), Error> {
        match (name, value) {
            ("log_error", SettingValue::Bool(flag)) => self.error = Some(flag),
            ("log_warning", SettingValue::Bool(flag)) => self.warning = Some(flag),
            ("log_info", SettingValue::Bool(flag)) => self.info = Some(flag),
            ("log_verbose_level", SettingValue::Number(level)) => self.verbose_level = Some(level),
            ("log_file", SettingValue::Text("")) | ("log_format", SettingValue::Text("default")) => {}
            ("log_file" | "log_format", _) => {
                let text = format!("setting {name:?}: the host's command line decides it");
                return Err(Error::new(ErrorCode::Unsupported, text));
            }
            ("log_error" | "log_warning" | "log_info", _) => {
                return Err(Error::invalid(format!("setting {name:?} is not a bool")));
            }
            ("log_verbose_level", _) => {
                return Err(Error::invalid(format!("setting {name:?} is not a number from 0")));
            }
            _ => return Err(Error::invalid(format!("setting {name:?} is unknown"))),
        }
        Ok(())
    }
}

/// A log setting's value on the wire.
pub(crate) enum SettingValue<'a> {
    Bool(bool),
    Number(u32),
    Text(&'a str),
    Other,
}

/// Which requests are traced. A setting that a client leaves out stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TraceSettings {
    /// Whether spans are exported at all.
    pub on: Option<bool>,
    /// One in this many requests, those that come with a sampled trace apart.
    pub rate: Option<u32>,
}

impl TraceSettings {
    /// Takes one setting; its values are strings, none of them clears it. Errors: invalid argument, naming the setting;
    /// unsupported, for settings of Triton's own trace files.
    pub(crate) fn set(&mut self, name: &str, values: &[&str]) -> Result<(), Error> {
        let wrong = |why: &str| Error::invalid(format!("setting {name:?}: {values:?} {why}"));
        match (name, values) {
            ("trace_level", []) => self.on = Some(true),
            ("trace_level", values) => {
                let known = |value: &&str| matches!(*value, "OFF" | "TIMESTAMPS");
                if !values.iter().all(known) {
                    return Err(wrong("is not OFF or TIMESTAMPS"));
                }
                self.on = Some(!values.contains(&"OFF"));
            }
            ("trace_rate", []) => self.rate = Some(1),
            ("trace_rate", [rate]) => {
                let rate = rate.parse().ok().filter(|rate| *rate > 0);
                self.rate = Some(rate.ok_or_else(|| wrong("is not a number from 1"))?);
            }
            ("trace_mode", [] | ["opentelemetry"])
            | ("trace_count", [] | ["-1"])
            | ("log_frequency", [] | ["0"]) => {}
            ("trace_file" | "trace_mode" | "trace_count" | "log_frequency" | "trace_config", _) => {
                let text =
                    format!("setting {name:?}: traces are exported over OTLP, as the configuration says");
                return Err(Error::new(ErrorCode::Unsupported, text));
            }
            _ => return Err(wrong("is unknown")),
        }
        Ok(())
    }

    /// Every setting by its name on the wire.
    pub(crate) fn values(self) -> [(&'static str, String); 4] {
        [
            ("trace_level", if self.on == Some(true) { "TIMESTAMPS" } else { "OFF" }.to_owned()),
            ("trace_rate", self.rate.unwrap_or(1).to_string()),
            ("trace_count", "-1".to_owned()),
            ("trace_mode", "opentelemetry".to_owned()),
        ]
    }
}
