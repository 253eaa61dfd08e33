//! Log and trace settings that callers may see, and set where the operator lets them.

use modelhost_core::error::{Error, ErrorCode};
use modelhost_protocol::control::{LogSettings, TraceSettings};
use modelhost_protocol::oip_rest;
use modelhost_serving::Target;

use crate::answer::json;
use crate::public::{Answer, Call, Public};

impl Public {
    pub(super) async fn log_settings(&self, call: &mut Call) -> Answer {
        let asked = oip_rest::read_log_settings(&self.collect_control(call).await?)?;
        Ok(json(&oip_rest::log_settings(self.set_logs(asked)?)))
    }

    pub(super) async fn trace_settings(&self, target: Option<Target<'_>>, call: &mut Call) -> Answer {
        if let Some(target) = target {
            self.serving.describe(target)?;
        }
        let asked = oip_rest::read_trace_settings(&self.collect_control(call).await?)?;
        if target.is_some() && asked != TraceSettings::default() {
            let text = "trace settings are the whole host's: set them at /v2/trace/setting";
            return Err(Error::new(ErrorCode::Unsupported, text));
        }
        Ok(json(&oip_rest::trace_settings(self.set_traces(asked)?)))
    }

    /// Sets what is asked; returns what is in force. Levels nest: the lines of a level come with those of the graver
    /// ones. Errors: unsupported, when callers may not set anything.
    pub(crate) fn set_logs(&self, asked: LogSettings) -> Result<LogSettings, Error> {
        if asked != LogSettings::default() {
            self.check_control()?;
            let now = log_settings(modelhost_telemetry::log_level());
            let verbose = asked.verbose_level.or(now.verbose_level).unwrap_or(0);
            let on = |asked: Option<bool>, now: Option<bool>| asked.or(now).unwrap_or(false);
            let level = match verbose {
                0 if on(asked.info, now.info) => 3,
                0 if on(asked.warning, now.warning) => 2,
                0 => u8::from(on(asked.error, now.error)),
                1 => 4,
                _ => 5,
            };
            modelhost_telemetry::set_log_level(level)?;
        }
        Ok(log_settings(modelhost_telemetry::log_level()))
    }

    /// Sets what is asked; returns what is in force. Errors: unsupported, when callers may not set anything or traces
    /// are not exported.
    pub(crate) fn set_traces(&self, asked: TraceSettings) -> Result<TraceSettings, Error> {
        if asked != TraceSettings::default() {
            self.check_control()?;
            self.traces.set(asked.on, asked.rate)?;
        }
        let (on, rate) = self.traces.settings();
        Ok(TraceSettings { on: Some(on), rate: Some(rate) })
    }
}

/// 0: nothing, 1: errors, 2: warnings, 3: information, 4: debugging, 5: everything.
fn log_settings(level: u8) -> LogSettings {
    LogSettings {
        error: Some(level >= 1),
        warning: Some(level >= 2),
        info: Some(level >= 3),
        verbose_level: Some(u32::from(level.saturating_sub(3))),
    }
}
