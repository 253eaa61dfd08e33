//! One request on its way: what it is, and what the access log and the metrics say of it afterwards.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use modelhost_core::error::Error;
use modelhost_core::infer::{InferRequest, Parameter};
use modelhost_core::tensor::Tensor;
use modelhost_core::version::Version;
use modelhost_serving::{Cached, Resolved};
use modelhost_telemetry::{Finished, Trace, Traces};

use crate::handlers::Public;

/// The header that names the version that answered.
const VERSION_HEADER: &str = "modelhost-version";

/// The header that names a request; comes back as it came.
const REQUEST_ID_HEADER: &str = "x-request-id";

/// The header that names our span. Source: W3C Trace Context, level 2 draft.
const TRACE_HEADER: &str = "traceresponse";

/// The header that says whether an answer came from the response cache: `hit` or `miss`.
const CACHE_HEADER: &str = "modelhost-cache";

/// What is known of a request, filled in on its way.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) started: Instant,
    /// The caller's `x-request-id`, or one of ours.
    pub(crate) request_id: String,
    /// Its place in a trace, where somebody traces.
    pub(crate) trace: Option<Trace>,
    /// Who answers, once that is decided.
    pub(crate) version: Option<Arc<Version>>,
    pub(crate) received_bytes: u64,
    /// Its answer is still being made when its headers go out; who makes it says when it is done.
    pub(crate) streams: bool,
    /// What the response cache did, where the version uses it.
    pub(crate) cached: Option<Cached>,
    pub(crate) decode: Duration,
    pub(crate) queue: Duration,
    pub(crate) infer: Duration,
    pub(crate) encode: Duration,
}

impl Record {
    /// The request that these headers begin.
    pub(crate) fn begin(headers: &HeaderMap, traces: &Traces) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let trace = traces.begin(text("traceparent"));
        let own_id = || trace.map_or_else(|| format!("{:032x}", fastrand::u128(..)), |trace| trace.id());
        Self {
            started: Instant::now(),
            request_id: text(REQUEST_ID_HEADER)
                .filter(|id| is_request_id(id))
                .map_or_else(own_id, str::to_owned),
            trace,
            version: None,
            received_bytes: 0,
            streams: false,
            cached: None,
            decode: Duration::ZERO,
            queue: Duration::ZERO,
            infer: Duration::ZERO,
            encode: Duration::ZERO,
        }
    }

    /// The headers that every answer carries: who answered, which request it was, where in which trace.
    pub(crate) fn headers(&self) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
        let version = self.version.as_ref();
        let version = version.map(|version| (VERSION_HEADER, HeaderValue::from(version.number.get())));
        let id = HeaderValue::from_str(&self.request_id).ok().map(|id| (REQUEST_ID_HEADER, id));
        let trace = self.trace.and_then(|trace| HeaderValue::from_str(&trace.to_string()).ok());
        let trace = trace.map(|trace| (TRACE_HEADER, trace));
        let (cache, age) = match self.cached {
            None => (None, None),
            Some(Cached::Miss) => (Some((CACHE_HEADER, HeaderValue::from_static("miss"))), None),
            Some(Cached::Hit(age)) => (
                Some((CACHE_HEADER, HeaderValue::from_static("hit"))),
                Some(("age", HeaderValue::from(age.as_secs()))),
            ),
        };
        let named = |(name, value)| (HeaderName::from_static(name), value);
        [version, id, trace, cache, age].into_iter().flatten().map(named)
    }

    /// The model and the number of the version that answers, once that is decided.
    pub(crate) fn names(&self) -> (&str, Option<u32>) {
        let version = self.version.as_ref();
        (version.map_or("", |version| version.model.as_str()), version.map(|version| version.number.get()))
    }

    /// Runs one decoded request and encodes its answer. `limit` bounds waiting and running together; the request's own `timeout`
    /// parameter (microseconds, Triton's schedule policy) can only shorten it.
    pub(crate) async fn predict<T>(
        &mut self,
        resolved: &Resolved,
        request: InferRequest,
        limit: Duration,
        encode: impl FnOnce(&Version, &[Tensor]) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let asked =
            request.parameters.iter().find(|(name, _)| name == "timeout").and_then(
                |(_, value)| match value {
                    Parameter::Int(micros) => u64::try_from(*micros).ok().filter(|micros| *micros > 0),
                    Parameter::Text(_) | Parameter::Float(_) | Parameter::Bool(_) => None,
                },
            );
        let limit = asked.map_or(limit, |micros| limit.min(Duration::from_micros(micros)));
        let answer = resolved.infer(request, limit).await?;
        self.queue += answer.queued;
        self.infer += answer.ran;
        self.cached = answer.cached;
        let encoding = Instant::now();
        let encoded = encode(resolved.version(), &answer.outputs);
        self.encode += encoding.elapsed();
        resolved.codec(self.decode, self.encode);
        encoded
    }
}

/// Tells everybody who watches that a request was answered.
impl Public {
    pub(crate) fn answered(&self, route: &'static str, status: u16, sent_bytes: u64, record: &Record) {
        self.metrics.http_request(route, status);
        let took = record.started.elapsed();
        let (model, version) = record.names();
        if let Some(trace) = &record.trace {
            self.traces.end(
                trace,
                &Finished {
                    name: route,
                    took,
                    model,
                    version,
                    status,
                    parts: [
                        ("modelhost.decode_seconds", record.decode),
                        ("modelhost.queue_seconds", record.queue),
                        ("modelhost.infer_seconds", record.infer),
                        ("modelhost.encode_seconds", record.encode),
                    ],
                },
            );
        }
        if !self.access_log {
            return;
        }
        let micros = |took: Duration| u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        tracing::info!(
            target: "access",
            route,
            status,
            request_id = record.request_id,
            model,
            version = version.unwrap_or_default(),
            received_bytes = record.received_bytes,
            sent_bytes,
            took_us = micros(took),
            decode_us = micros(record.decode),
            queue_us = micros(record.queue),
            infer_us = micros(record.infer),
            encode_us = micros(record.encode),
            cache = match record.cached {
                None => "",
                Some(Cached::Hit(_)) => "hit",
                Some(Cached::Miss) => "miss",
            },
        );
    }
}

/// Short enough for a log line, and printable.
fn is_request_id(text: &str) -> bool {
    !text.is_empty() && text.len() <= 128 && text.bytes().all(|byte| byte.is_ascii_graphic())
}
