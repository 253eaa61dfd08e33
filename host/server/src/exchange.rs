//! One request on its way, and the one place that tells metrics, traces and the log of it, however it ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use modelhost_core::infer::{Deadline, InferRequest, Parameter};
use modelhost_core::version::Version;
use modelhost_serving::Cached;
use modelhost_telemetry::{Finished, Trace};

use crate::public::Public;
use crate::watch::Watch;

/// The header that names the version that answered.
const VERSION_HEADER: &str = "modelhost-version";

/// The header that names a request; comes back as it came.
const REQUEST_ID_HEADER: &str = "x-request-id";

/// The header that names our span. Source: W3C Trace Context, level 2 draft.
const TRACE_HEADER: &str = "traceresponse";

/// The header that says whether an answer came from the response cache: `hit` or `miss`.
const CACHE_HEADER: &str = "modelhost-cache";

/// The status of a request whose client left before its answer, as web servers have it.
const CLIENT_LEFT: u16 = 499;

/// How far a request came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Head,
    Body,
    Decode,
    Infer,
    Encode,
    Done,
}

impl Stage {
    fn as_str(self) -> &'static str {
        match self {
            Self::Head => "head",
            Self::Body => "body",
            Self::Decode => "decode",
            Self::Infer => "infer",
            Self::Encode => "encode",
            Self::Done => "done",
        }
    }
}

/// What is known of a request, filled in on its way. Dropped, it is observed.
pub(crate) struct Exchange {
    public: Arc<Public>,
    /// What was asked: one of a few fixed words.
    route: &'static str,
    pub(crate) started: Instant,
    /// Its arrival, waiting and running end by then.
    pub(crate) deadline: Deadline,
    /// Its connection.
    pub(crate) watch: Option<Arc<Watch>>,
    /// The caller's `x-request-id`, or one of ours.
    pub(crate) request_id: String,
    /// Its place in a trace, where somebody traces.
    trace: Option<Trace>,
    pub(crate) stage: Stage,
    /// Who answers, once that is decided.
    pub(crate) version: Option<Arc<Version>>,
    /// What the response cache did, where the version uses it.
    pub(crate) cached: Option<Cached>,
    pub(crate) received_bytes: u64,
    pub(crate) sent_bytes: u64,
    pub(crate) decode: Duration,
    pub(crate) queue: Duration,
    pub(crate) infer: Duration,
    pub(crate) encode: Duration,
    /// `None`: its client left.
    status: Option<u16>,
    /// Another tells of it.
    handed_over: bool,
}

impl Exchange {
    /// The request that these headers begin; it must be answered within `limit`.
    pub(crate) fn begin(
        public: &Arc<Public>,
        route: &'static str,
        headers: &HeaderMap,
        watch: Option<Arc<Watch>>,
        limit: Duration,
    ) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let trace = public.traces.begin(text("traceparent"));
        let own_id = || trace.map_or_else(|| format!("{:032x}", fastrand::u128(..)), |trace| trace.id());
        let started = Instant::now();
        Self {
            public: Arc::clone(public),
            route,
            started,
            deadline: Deadline::after(started, limit),
            watch,
            request_id: text(REQUEST_ID_HEADER)
                .filter(|id| is_request_id(id))
                .map_or_else(own_id, str::to_owned),
            trace,
            stage: Stage::Head,
            version: None,
            cached: None,
            received_bytes: 0,
            sent_bytes: 0,
            decode: Duration::ZERO,
            queue: Duration::ZERO,
            infer: Duration::ZERO,
            encode: Duration::ZERO,
            status: None,
            handed_over: false,
        }
    }

    /// Hands the telling over to whoever makes the answer while it is sent.
    pub(crate) fn hand_over(&mut self) -> Self {
        self.handed_over = true;
        Self {
            public: Arc::clone(&self.public),
            watch: self.watch.clone(),
            request_id: self.request_id.clone(),
            version: self.version.clone(),
            status: None,
            handed_over: false,
            ..*self
        }
    }

    pub(crate) fn public(&self) -> &Arc<Public> {
        &self.public
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

    /// When a decoded request must be answered: its own `timeout` parameter (microseconds, Triton's schedule policy)
    /// counts from now and can only shorten the time.
    pub(crate) fn deadline_of(&self, request: &InferRequest) -> Deadline {
        let asked = request.parameters.iter().find(|(name, _)| name == "timeout");
        let micros = asked.and_then(|(_, value)| match value {
            Parameter::Int(micros) => u64::try_from(*micros).ok().filter(|micros| *micros > 0),
            Parameter::Text(_) | Parameter::Float(_) | Parameter::Bool(_) => None,
        });
        let asked = micros.map(|micros| Deadline::after(Instant::now(), Duration::from_micros(micros)));
        asked.filter(|asked| asked.instant() < self.deadline.instant()).unwrap_or(self.deadline)
    }

    /// When the answer must have been read: within the host's time for a request, and never at once.
    pub(crate) fn read_by(&self) -> Instant {
        (self.started + self.public.request_timeout).max(Instant::now() + self.public.patience.read)
    }

    /// It was answered so.
    pub(crate) fn answered(&mut self, status: u16, sent_bytes: u64) {
        (self.status, self.sent_bytes) = (Some(status), sent_bytes);
    }

    /// The model and the number of the version that answers, once that is decided.
    fn names(&self) -> (&str, Option<u32>) {
        let version = self.version.as_ref();
        (version.map_or("", |version| version.model.as_str()), version.map(|version| version.number.get()))
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if self.handed_over {
            return;
        }
        let status = self.status.unwrap_or(CLIENT_LEFT);
        self.public.metrics.http_request(self.route, status);
        self.trace_it(status);
        if self.public.access_log {
            self.log_it(status);
        }
    }
}

impl Exchange {
    fn trace_it(&self, status: u16) {
        let Some(trace) = &self.trace else { return };
        let (model, version) = self.names();
        self.public.traces.end(
            trace,
            &Finished {
                name: self.route,
                took: self.started.elapsed(),
                model,
                version,
                status,
                parts: [
                    ("modelhost.decode_seconds", self.decode),
                    ("modelhost.queue_seconds", self.queue),
                    ("modelhost.infer_seconds", self.infer),
                    ("modelhost.encode_seconds", self.encode),
                ],
            },
        );
    }

    fn log_it(&self, status: u16) {
        let (model, version) = self.names();
        let micros = |took: Duration| u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        tracing::info!(
            target: "access",
            route = self.route,
            status,
            stage = self.stage.as_str(),
            request_id = self.request_id,
            model,
            version = version.unwrap_or_default(),
            received_bytes = self.received_bytes,
            sent_bytes = self.sent_bytes,
            took_us = micros(self.started.elapsed()),
            decode_us = micros(self.decode),
            queue_us = micros(self.queue),
            infer_us = micros(self.infer),
            encode_us = micros(self.encode),
            cache = match self.cached {
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
