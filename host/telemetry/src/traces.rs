//! W3C trace context of requests, and their spans to an OpenTelemetry collector over OTLP.
//!
//! Source: W3C Trace Context, level 1 (`traceparent` in) and the level 2 draft (`traceresponse` out). The SDK batches
//! the export and bounds its queue. It drops a span that does not fit.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use modelhost_core::error::{Error, ErrorCode};
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchSpanProcessor, SpanData, SpanEvents, SpanLinks, SpanProcessor};

/// A request's place in a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trace {
    trace: u128,
    parent: Option<u64>,
    span: u64,
    sampled: bool,
}

impl Trace {
    /// Joins the trace of a `traceparent` header. Begins a new one if the header is missing or malformed.
    fn begin(traceparent: Option<&str>, sample: impl FnOnce() -> bool) -> Self {
        let span = fastrand::u64(1..);
        match traceparent.and_then(parse) {
            Some((trace, parent, sampled)) => Self { trace, parent: Some(parent), span, sampled },
            None => Self { trace: fastrand::u128(1..), parent: None, span, sampled: sample() },
        }
    }

    /// The trace's id, 32 hexadecimal digits.
    pub fn id(&self) -> String {
        format!("{:032x}", self.trace)
    }

    /// Whether the caller named the trace.
    pub fn is_joined(&self) -> bool {
        self.parent.is_some()
    }
}

/// The value of the `traceresponse` header: the trace, our span, and whether it is recorded.
impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, u8::from(self.sampled))
    }
}

/// `00-{trace}-{span}-{flags}` in lower-case hexadecimal. Neither id may be zero. Later versions may append fields.
fn parse(text: &str) -> Option<(u128, u64, bool)> {
    let mut parts = text.trim().split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hex = |part: &str, length: usize| {
        part.len() == length && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let shaped = hex(version, 2) && hex(trace, 32) && hex(span, 16) && hex(flags, 2);
    if !shaped || version == "ff" || (version == "00" && parts.next().is_some()) {
        return None;
    }
    let trace = u128::from_str_radix(trace, 16).ok().filter(|trace| *trace != 0)?;
    let span = u64::from_str_radix(span, 16).ok().filter(|span| *span != 0)?;
    Some((trace, span, u8::from_str_radix(flags, 16).ok()? & 1 == 1))
}

/// A finished request, as its span shows it.
#[derive(Debug)]
pub struct Finished<'a> {
    /// The action, e.g. `infer`.
    pub name: &'static str,
    /// How long ago it began.
    pub took: Duration,
    /// The model, if it is known.
    pub model: &'a str,
    /// The version that answered, if it is known.
    pub version: Option<u32>,
    /// The HTTP status.
    pub status: u16,
    /// Reading, waiting, running, writing.
    pub parts: [(&'static str, Duration); 4],
}

/// Decides which requests are traced and sends their spans.
#[derive(Default)]
pub struct Traces {
    export: Option<BatchSpanProcessor>,
    off: AtomicBool,
    /// One in this many requests is traced. 0 stands for 1.
    rate: AtomicU32,
    seen: AtomicU64,
}

impl Traces {
    /// Sends spans to a collector's OTLP/gRPC endpoint, e.g. `http://localhost:4317`. Needs a tokio runtime.
    /// Errors: invalid argument, for a malformed endpoint.
    pub fn export_to(endpoint: &str) -> Result<Self, Error> {
        let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).build();
        let exporter =
            exporter.map_err(|error| Error::invalid(format!("otlp_endpoint {endpoint:?}: {error}")))?;
        let resource = Resource::builder().with_service_name("modelhost").build();
        let mut processor = BatchSpanProcessor::builder(exporter).build();
        processor.set_resource(&resource);
        Ok(Self { export: Some(processor), ..Self::default() })
    }

    /// The place of a request in a trace. `None` if its caller names no trace and spans are not exported.
    pub fn begin(&self, traceparent: Option<&str>) -> Option<Trace> {
        let exports = self.export.is_some() && !self.off.load(Ordering::Relaxed);
        if traceparent.is_none() && !exports {
            return None;
        }
        let rate = u64::from(self.rate.load(Ordering::Relaxed).max(1));
        Some(Trace::begin(traceparent, || {
            exports && self.seen.fetch_add(1, Ordering::Relaxed).is_multiple_of(rate)
        }))
    }

    /// Sends the span of an answered request, if it is sampled.
    #[expect(clippy::disallowed_methods, reason = "a span says when it was; nothing is decided by it")]
    pub fn end(&self, trace: &Trace, finished: &Finished<'_>) {
        let Some(processor) =
            self.export.as_ref().filter(|_| trace.sampled && !self.off.load(Ordering::Relaxed))
        else {
            return;
        };
        let now = SystemTime::now();
        let mut attributes = vec![
            KeyValue::new("http.response.status_code", i64::from(finished.status)),
            KeyValue::new("modelhost.model", finished.model.to_owned()),
        ];
        if let Some(version) = finished.version {
            attributes.push(KeyValue::new("modelhost.version", i64::from(version)));
        }
        for (name, took) in finished.parts {
            attributes.push(KeyValue::new(name, took.as_secs_f64()));
        }
        processor.on_end(SpanData {
            span_context: SpanContext::new(
                TraceId::from(trace.trace),
                SpanId::from(trace.span),
                TraceFlags::SAMPLED,
                false,
                TraceState::default(),
            ),
            parent_span_id: trace.parent.map_or(SpanId::INVALID, SpanId::from),
            parent_span_is_remote: trace.parent.is_some(),
            span_kind: SpanKind::Server,
            name: finished.name.into(),
            start_time: now.checked_sub(finished.took).unwrap_or(now),
            end_time: now,
            attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: if finished.status >= 500 { Status::error("") } else { Status::Unset },
            instrumentation_scope: InstrumentationScope::builder("modelhost").build(),
        });
    }

    /// Whether spans are exported, and one in how many requests.
    pub fn settings(&self) -> (bool, u32) {
        let on = self.export.is_some() && !self.off.load(Ordering::Relaxed);
        (on, self.rate.load(Ordering::Relaxed).max(1))
    }

    /// Changes what is exported from now on. Errors: unsupported, if no collector is configured.
    pub fn set(&self, on: Option<bool>, rate: Option<u32>) -> Result<(), Error> {
        if self.export.is_none() && on == Some(true) {
            return Err(Error::new(
                ErrorCode::Unsupported,
                "traces are exported only where otlp_endpoint is configured",
            ));
        }
        if let Some(on) = on {
            self.off.store(!on, Ordering::Relaxed);
        }
        if let Some(rate) = rate {
            self.rate.store(rate, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Sends the spans that wait. Blocks, so call it off the async threads.
    pub fn flush(&self) {
        if let Some(processor) = &self.export
            && let Err(error) = processor.shutdown()
        {
            tracing::warn!(%error, "the last spans were not sent");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_traceparent() {
        let trace = "0af7651916cd43dd8448eb211c80319c";
        let span = "b7ad6b7169203331";
        for (text, expected) in [
            (format!("00-{trace}-{span}-01"), Some(true)),
            (format!("00-{trace}-{span}-00"), Some(false)),
            (format!("cc-{trace}-{span}-01-more"), Some(true)),
            (format!("00-{trace}-{span}-01-more"), None),
            (format!("ff-{trace}-{span}-01"), None),
            (format!("00-{}-{span}-01", trace.to_uppercase()), None),
            (format!("00-{}-{span}-01", "0".repeat(32)), None),
            (format!("00-{trace}-{}-01", "0".repeat(16)), None),
            (format!("00-{trace}-01"), None),
            (String::new(), None),
        ] {
            assert_eq!(parse(&text).map(|(_, _, sampled)| sampled), expected, "{text}");
        }
        let joined = Trace::begin(Some(&format!("00-{trace}-{span}-01")), || false);
        assert_eq!((joined.id().as_str(), joined.is_joined()), (trace, true));
        assert!(joined.to_string().starts_with(&format!("00-{trace}-")));
        assert!(joined.to_string().ends_with("-01"));
    }

    #[test]
    fn a_request_has_no_trace_unless_somebody_wants_one() {
        let traces = Traces::default();
        assert_eq!(traces.begin(None), None);
        assert!(!traces.begin(Some("garbage")).unwrap().is_joined());
        assert!(traces.set(Some(true), None).is_err());
    }
}
