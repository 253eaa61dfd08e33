//! The public port: from a path to one call, and its answer back. Translates; decides nothing.

mod answer;
mod csv;
mod mlflow;
mod oip;
mod page;
mod route;
mod settings;
mod tf_serving;

use std::borrow::Cow;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, VARY};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response};
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::infer::InferRequest;
use modelhost_core::model::ModelName;
use modelhost_core::routing::StickyKey;
use modelhost_protocol::{oip_rest, records};
use modelhost_serving::{Resolved, Serving, Target};
use modelhost_telemetry::{Metrics, Traces};

use answer::{JSON, body, json, wrong_method};
pub(crate) use answer::{refuse, shown};
use page::{is_form, wants_html};
use route::Route;

use crate::body::{Bounds, Coding, ResponseBody, collect, drain, whole};
use crate::call::Record;

/// What the public port serves from.
pub(crate) struct Public {
    pub(crate) serving: Arc<Serving>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) default_model: Option<ModelName>,
    pub(crate) max_body_bytes: usize,
    pub(crate) max_stream_bytes: usize,
    pub(crate) request_timeout: Duration,
    pub(crate) traces: Traces,
    pub(crate) access_log: bool,
    pub(crate) repository_control: bool,
    pub(crate) draining: AtomicBool,
}

type Answer = Result<Response<ResponseBody>, Error>;

/// One request.
struct Call {
    head: Parts,
    body: Option<Incoming>,
    record: Record,
}

impl Public {
    pub(crate) async fn handle(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<ResponseBody>, Infallible> {
        let (head, body) = request.into_parts();
        let record = Record::begin(&head.headers, &self.traces);
        let uri = head.uri.clone();
        // Some clients escape the slash of a model's name.
        let path = match uri.path() {
            path if path.contains('%') => Cow::Owned(path.replace("%2F", "/").replace("%2f", "/")),
            path => Cow::Borrowed(path),
        };
        let mut call = Call { head, body: Some(body), record };
        let (name, answer) = match Route::parse(&path) {
            Some(route) => (route.name(), self.dispatch(route, &mut call).await),
            None => ("unknown", Err(Error::not_found(format!("there is nothing at {path}")))),
        };
        let response = answer.unwrap_or_else(|error| refuse(&error, &call.record.request_id));
        if let Some(body) = call.body.take().filter(|body| !body.is_end_stream()) {
            drain(body).await;
        }
        let response = finish(response, &call).await;
        let sent = response.body().size_hint().exact().unwrap_or_default();
        if !call.record.streams {
            self.answered(name, response.status().as_u16(), sent, &call.record);
        }
        Ok(response)
    }

    async fn dispatch(self: &Arc<Self>, route: Route<'_>, call: &mut Call) -> Answer {
        // A HEAD is answered as a GET; the connection leaves the body out.
        let reads = matches!(call.head.method, Method::GET | Method::HEAD);
        let method = if reads { &Method::GET } else { &call.head.method };
        if !route.methods().contains(method) {
            return Ok(wrong_method(route.methods()));
        }
        match route {
            Route::Root => self.root(call),
            Route::Metrics => Ok(self.render_metrics()),
            Route::ServerMetadata => Ok(json(&oip_rest::server_metadata(env!("CARGO_PKG_VERSION")))),
            Route::Live => Ok(json(&serde_json::json!({"live": true}))),
            Route::Ready => self.ready(),
            Route::Models => Ok(self.models()),
            Route::ModelMetadata(target) => self.model_metadata(target),
            Route::ModelReady(target) => self.model_ready(target),
            Route::ModelConfig(target) => self.model_config(target),
            Route::Statistics(target) => self.statistics(target),
            Route::Infer(target) => self.infer(target, call).await,
            Route::Index => self.index(call).await,
            Route::Load(model) => self.load(model, call).await,
            Route::Unload(model) => self.unload(model, call).await,
            Route::TraceSettings(target) => self.trace_settings(target, call).await,
            Route::LogSettings => self.log_settings(call).await,
            Route::Model(target) if reads => self.page(target, call),
            Route::Model(target) => self.short(target, call).await,
            Route::OpenApi(target) => self.openapi(target),
            Route::Docs(target) => self.docs(target),
            Route::Asset(name) => Self::asset(name),
            Route::V1Predict(target) => self.tf_predict(target, call).await,
            Route::V1Unsupported(target, verb) => self.tf_unsupported(target, verb),
            Route::V1Status(target) => self.tf_status(target),
            Route::V1Metadata(target) => self.tf_metadata(target),
            Route::Ping(target) => self.ping(self.or_default(target)?),
            Route::Version => Ok(Self::version()),
            Route::Invocations(target) => self.invocations(self.or_default(target)?, call).await,
        }
    }

    fn render_metrics(&self) -> Response<ResponseBody> {
        body("application/openmetrics-text; version=1.0.0; charset=utf-8", self.metrics.render())
    }

    /// Whether new requests are welcome. Errors: unavailable, while shutting down.
    pub(crate) fn check_ready(&self) -> Result<(), Error> {
        if self.draining.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorCode::Unavailable, "the host is shutting down"));
        }
        Ok(())
    }

    /// The short URL: records, a CSV file or a form, by content type.
    async fn short(self: &Arc<Self>, target: Target<'_>, call: &mut Call) -> Answer {
        let kind = call.head.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
        if kind.starts_with(b"text/csv") {
            self.csv(target, call).await
        } else if is_form(kind) && wants_html(&call.head.headers) {
            self.form(target, call).await
        } else {
            self.records(target, call).await
        }
    }

    async fn records(&self, target: Target<'_>, call: &mut Call) -> Answer {
        let body = self.collect(call).await?;
        let bytes = body.len();
        let decoding = Instant::now();
        let (resolved, sticky_field) =
            self.resolve_by(target, call, |field| records::first_field(&body, field))?;
        let version = Arc::clone(resolved.version());
        let decode = move || records::decode(&body, &version, sticky_field.as_deref());
        let request = resolved.work(bytes, decode).await?;
        call.record.decode = decoding.elapsed();
        let predicted =
            call.record.predict(&resolved, request, self.request_timeout, records::encode).await?;
        Ok(answer::body(JSON, predicted))
    }

    /// Decides who answers, and notes it.
    pub(crate) fn resolve(
        &self,
        target: Target<'_>,
        record: &mut Record,
        key: impl FnOnce(&StickyKey) -> Option<Vec<u8>>,
    ) -> Result<Resolved, Error> {
        let resolved = self.serving.resolve(target, key, fastrand::u64(..))?;
        record.version = Some(Arc::clone(resolved.version()));
        Ok(resolved)
    }

    /// As [`Self::resolve`], by a header or by a field that `find` finds in the body; returns the field, which may then stand beside the
    /// columns.
    fn resolve_by(
        &self,
        target: Target<'_>,
        call: &mut Call,
        find: impl FnOnce(&str) -> Option<Vec<u8>>,
    ) -> Result<(Resolved, Option<String>), Error> {
        let mut sticky_field = None;
        let key = |key: &StickyKey| match key {
            StickyKey::Header(name) => header_key(&call.head.headers, name),
            StickyKey::Field(field) => {
                sticky_field = Some(field.clone());
                find(field)
            }
        };
        let resolved = self.resolve(target, &mut call.record, key)?;
        Ok((resolved, sticky_field))
    }

    /// The whole body, decompressed, within its bounds in bytes and time.
    async fn collect(&self, call: &mut Call) -> Result<Bytes, Error> {
        let Some(body) = &mut call.body else { return Ok(Bytes::new()) };
        let bounds = Bounds { most: self.max_body_bytes, time: self.request_timeout };
        let body = collect(&call.head.headers, body, bounds).await?;
        call.record.received_bytes = body.len() as u64;
        Ok(body)
    }
}

/// Puts on what every response carries, and compresses it if the caller wants that.
async fn finish(mut response: Response<ResponseBody>, call: &Call) -> Response<ResponseBody> {
    response.headers_mut().extend(call.record.headers());
    let Some(coding) = Coding::for_response(&call.head.headers) else { return response };
    if response.headers().contains_key(CONTENT_ENCODING) {
        return response;
    }
    let (mut head, body) = response.into_parts();
    let ResponseBody::Whole(body) = body else { return Response::from_parts(head, body) };
    let plain =
        body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_else(|never| match never {});
    head.headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
    let Some(coded) = coding.compress(&plain).await else { return Response::from_parts(head, whole(plain)) };
    head.headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding.as_str()));
    head.headers.remove(CONTENT_LENGTH);
    Response::from_parts(head, whole(coded))
}

/// The value of a sticky header.
pub(crate) fn header_key(headers: &HeaderMap, name: &str) -> Option<Vec<u8>> {
    headers.get(name).map(|value| value.as_bytes().to_vec())
}

/// The value of a sticky request parameter.
pub(crate) fn parameter_key(request: &InferRequest, field: &str) -> Option<Vec<u8>> {
    let found = request.parameters.iter().find(|(name, _)| name == field);
    found.map(|(_, value)| value.to_string().into_bytes())
}
