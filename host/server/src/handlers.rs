//! The public port: from a path to one call, and its answer back. Translates; decides nothing.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, Response, StatusCode};
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::infer::InferRequest;
use modelhost_core::model::ModelVersion;
use modelhost_core::routing::StickyKey;
use modelhost_protocol::{oip_rest, records, status};
use modelhost_serving::{Failure, Serving, Target};
use modelhost_telemetry::Metrics;

/// The header that names the version that answered.
const VERSION_HEADER: &str = "modelhost-version";

/// What the public port serves from.
pub(crate) struct Public {
    pub(crate) serving: Arc<Serving>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) max_body_bytes: usize,
    pub(crate) request_timeout: Duration,
    pub(crate) draining: AtomicBool,
}

/// Why there is no answer, and which version it was, once that was decided.
struct Refusal {
    error: Error,
    version: Option<ModelVersion>,
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self { error, version: None }
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self { error: failure.error, version: Some(failure.version) }
    }
}

type Answer = Result<Response<Full<Bytes>>, Refusal>;

/// A path, taken apart.
#[derive(Debug, PartialEq)]
enum Route<'a> {
    Metrics,
    ServerMetadata,
    Live,
    Ready,
    ModelMetadata(Target<'a>),
    ModelReady(Target<'a>),
    Infer(Target<'a>),
    Records(Target<'a>),
}

impl Public {
    pub(crate) async fn handle(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        let (name, answer) = self.dispatch(request).await;
        let response = answer.unwrap_or_else(|refusal| refuse(&refusal));
        self.metrics.http_request(name, response.status().as_u16());
        Ok(response)
    }

    async fn dispatch(&self, request: Request<Incoming>) -> (&'static str, Answer) {
        let (head, body) = request.into_parts();
        let Some(route) = route(head.uri.path()) else {
            let text = format!("there is nothing at {}", head.uri.path());
            return ("unknown", Err(Error::not_found(text).into()));
        };
        let method = match route {
            Route::Infer(_) | Route::Records(_) => Method::POST,
            _ => Method::GET,
        };
        if head.method != method {
            return (route.name(), Ok(wrong_method(&method)));
        }
        let answer = match &route {
            Route::Metrics => Ok(text(self.metrics.render())),
            Route::ServerMetadata => Ok(json(&oip_rest::server_metadata(env!("CARGO_PKG_VERSION")))),
            Route::Live => Ok(json(&serde_json::json!({"live": true}))),
            Route::Ready => self.ready(),
            Route::ModelMetadata(target) => self.model_metadata(*target),
            Route::ModelReady(target) => self.model_ready(*target),
            Route::Infer(target) => self.infer(*target, &head.headers, body).await,
            Route::Records(target) => self.records(*target, &head.headers, body).await,
        };
        (route.name(), answer)
    }

    fn ready(&self) -> Answer {
        if self.draining.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorCode::Unavailable, "the host is shutting down").into());
        }
        Ok(json(&serde_json::json!({"ready": true})))
    }

    fn model_metadata(&self, target: Target<'_>) -> Answer {
        let (model, version) = self.serving.describe(target)?;
        Ok(json(&oip_rest::model_metadata(&model, &version)))
    }

    fn model_ready(&self, target: Target<'_>) -> Answer {
        let (model, _) = self.serving.describe(target)?;
        if target.version.is_none() && model.policy.is_none() {
            let text = format!("model {} has no promoted version yet", target.model);
            return Err(Error::new(ErrorCode::Unavailable, text).into());
        }
        Ok(json(&serde_json::json!({"name": target.model, "ready": true})))
    }

    async fn infer(&self, target: Target<'_>, headers: &HeaderMap, body: Incoming) -> Answer {
        let body = self.collect(body).await?;
        let mut request = oip_rest::decode(&body)?;
        let id = request.id.take();
        let key = |key: &StickyKey| match key {
            StickyKey::Header(name) => header_key(headers, name),
            StickyKey::Field(field) => parameter_key(&request, field),
        };
        let resolved = self.serving.resolve(target, key, fastrand::u64(..))?;
        let answer = resolved.infer(request, self.request_timeout).await?;
        let number = resolved.version().number;
        let body = oip_rest::encode(resolved.version(), id.as_deref(), &answer.outputs)
            .map_err(|error| Refusal { error, version: Some(number) })?;
        Ok(prediction(number, body))
    }

    async fn records(&self, target: Target<'_>, headers: &HeaderMap, body: Incoming) -> Answer {
        let body = self.collect(body).await?;
        let mut sticky_field = None;
        let key = |key: &StickyKey| match key {
            StickyKey::Header(name) => header_key(headers, name),
            StickyKey::Field(field) => {
                sticky_field = Some(field.clone());
                records::first_field(&body, field)
            }
        };
        let resolved = self.serving.resolve(target, key, fastrand::u64(..))?;
        let number = resolved.version().number;
        let refused = |error| Refusal { error, version: Some(number) };
        let request = records::decode(&body, resolved.version(), sticky_field.as_deref()).map_err(refused)?;
        let answer = resolved.infer(request, self.request_timeout).await?;
        let body = records::encode(resolved.version(), &answer.outputs).map_err(refused)?;
        Ok(prediction(number, body))
    }

    /// The whole body, within its bounds in bytes and time.
    async fn collect(&self, body: Incoming) -> Result<Bytes, Error> {
        let most = self.max_body_bytes;
        let too_large =
            || Error::new(ErrorCode::TooLarge, format!("body: larger than the {most} bytes allowed"));
        if body.size_hint().lower() > most as u64 {
            return Err(too_large());
        }
        match tokio::time::timeout(self.request_timeout, Limited::new(body, most).collect()).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
            Ok(Err(error)) => Err(Error::invalid(format!("body: {error}"))),
            Err(_) => Err(Error::new(ErrorCode::DeadlineExceeded, "body: it did not arrive in time")),
        }
    }
}

impl Route<'_> {
    /// The metric label.
    fn name(&self) -> &'static str {
        match self {
            Self::Metrics => "metrics",
            Self::ServerMetadata => "server_metadata",
            Self::Live | Self::Ready => "health",
            Self::ModelMetadata(_) => "model_metadata",
            Self::ModelReady(_) => "model_ready",
            Self::Infer(_) => "infer",
            Self::Records(_) => "records",
        }
    }
}

/// Takes a path apart. A model's name is the two segments after `models`; stock clients send its slash unescaped.
fn route(path: &str) -> Option<Route<'_>> {
    if let Some(rest) = path.strip_prefix("/v2/models/") {
        let (model, rest) = split_name(rest)?;
        let (version, verb) = match rest.strip_prefix("versions/") {
            Some(rest) => {
                rest.split_once('/').map_or((Some(rest), ""), |(version, verb)| (Some(version), verb))
            }
            None => (None, rest),
        };
        let target = Target { model, version };
        return match verb {
            "" => Some(Route::ModelMetadata(target)),
            "ready" => Some(Route::ModelReady(target)),
            "infer" => Some(Route::Infer(target)),
            _ => None,
        };
    }
    if let Some(rest) = path.strip_prefix("/models/") {
        let (model, version) = split_name(rest)?;
        let version = version.strip_suffix('/').unwrap_or(version);
        let version = (!version.is_empty()).then_some(version);
        return (!version.is_some_and(|version| version.contains('/')))
            .then_some(Route::Records(Target { model, version }));
    }
    match path {
        "/metrics" => Some(Route::Metrics),
        "/v2" | "/v2/" => Some(Route::ServerMetadata),
        "/v2/health/live" => Some(Route::Live),
        "/v2/health/ready" => Some(Route::Ready),
        _ => None,
    }
}

/// `a/b/rest` into `a/b` and `rest`.
fn split_name(path: &str) -> Option<(&str, &str)> {
    let slash = path.find('/')?;
    let name_end = path.get(slash + 1..)?.find('/').map_or(path.len(), |end| slash + 1 + end);
    let (name, rest) = path.split_at_checked(name_end)?;
    Some((name, rest.strip_prefix('/').unwrap_or(rest)))
}

fn header_key(headers: &HeaderMap, name: &str) -> Option<Vec<u8>> {
    headers.get(name).map(|value| value.as_bytes().to_vec())
}

fn parameter_key(request: &InferRequest, field: &str) -> Option<Vec<u8>> {
    let found = request.parameters.iter().find(|(name, _)| name == field);
    found.map(|(_, value)| value.to_string().into_bytes())
}

fn prediction(version: ModelVersion, body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = json_bytes(body.into());
    response.headers_mut().insert(VERSION_HEADER, HeaderValue::from(version.get()));
    response
}

fn json(value: &serde_json::Value) -> Response<Full<Bytes>> {
    json_bytes(value.to_string().into())
}

fn json_bytes(body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn text(body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn wrong_method(allowed: &Method) -> Response<Full<Bytes>> {
    let mut response = json(&serde_json::json!({"error": format!("only {allowed} is answered here")}));
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    if let Ok(value) = HeaderValue::from_str(allowed.as_str()) {
        response.headers_mut().insert(hyper::header::ALLOW, value);
    }
    response
}

/// The host's own failures are logged, and shown without what is inside.
fn refuse(refusal: &Refusal) -> Response<Full<Bytes>> {
    let Refusal { error, version } = refusal;
    let code = error.code;
    let body = if code == ErrorCode::Internal {
        let reference = format!("{:016x}", fastrand::u64(..));
        tracing::error!(%error, reference, "a request failed");
        oip_rest::error(&Error::internal(format!(
            "the host failed; its log has the reason under {reference}"
        )))
    } else {
        oip_rest::error(error)
    };
    let mut response = json(&body);
    *response.status_mut() =
        StatusCode::from_u16(status::http(code)).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if matches!(code, ErrorCode::ResourceExhausted | ErrorCode::Unavailable) {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    if let Some(version) = version {
        response.headers_mut().insert(VERSION_HEADER, HeaderValue::from(version.get()));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_model_version_and_verb() {
        let target = |version| Target { model: "a/b", version };
        for (path, expected) in [
            ("/v2", Some(Route::ServerMetadata)),
            ("/v2/models/a/b", Some(Route::ModelMetadata(target(None)))),
            ("/v2/models/a/b/versions/6", Some(Route::ModelMetadata(target(Some("6"))))),
            ("/v2/models/a/b/ready", Some(Route::ModelReady(target(None)))),
            ("/v2/models/a/b/infer", Some(Route::Infer(target(None)))),
            ("/v2/models/a/b/versions/v6/infer", Some(Route::Infer(target(Some("v6"))))),
            ("/v2/models/a/b/versions/6/nope", None),
            ("/v2/models/a", None),
            ("/models/a/b", Some(Route::Records(target(None)))),
            ("/models/a/b/", Some(Route::Records(target(None)))),
            ("/models/a/b/v6/", Some(Route::Records(target(Some("v6"))))),
            ("/models/a/b/v6/x", None),
            ("/", None),
        ] {
            assert_eq!(route(path), expected, "{path}");
        }
    }
}
