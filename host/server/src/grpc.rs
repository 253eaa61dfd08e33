//! The Open Inference Protocol over gRPC, health and reflection. Served on the ports that serve HTTP, told apart by
//! content type.
//!
//! Messages of predictions are framed here and go the way of every prediction; health and reflection are tonic's.

mod control;
mod frames;
mod infer;
mod small;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::StreamBody;
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::{Request, Response};
use modelhost_core::error::{Error, ErrorCode};
use modelhost_protocol::{oip_grpc, status};
use modelhost_serving::Target;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};
use tonic_health::server::HealthReporter;
use tower::util::BoxCloneSyncService;

use crate::answer::shown;
use crate::body::{ResponseBody, Small, streamed};
use crate::coding::Coding;
use crate::exchange::Exchange;
use crate::public::Public;
use crate::watch::Watch;
use control::Method;

const GRPC: &str = "application/grpc";

/// What messages may be compressed with.
const CODINGS: &str = "identity,gzip,deflate,zstd";

const SERVICE: &str = "inference.GRPCInferenceService";

/// Longest text of a failure: many clients refuse trailers of 8 KiB, and a character may take three there.
const MAX_TEXT: usize = 2 << 10;

type Handler = BoxCloneSyncService<Request<Small>, Response<tonic::body::Body>, Infallible>;

/// What a call's path names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Called {
    Infer,
    Stream,
    Control(Method),
    Health,
    Reflection,
    ReflectionAlpha,
    Nothing,
}

impl Called {
    fn parse(path: &str) -> Self {
        match path.strip_prefix('/').and_then(|path| path.split_once('/')) {
            Some((SERVICE, "ModelInfer")) => Self::Infer,
            Some((SERVICE, "ModelStreamInfer")) => Self::Stream,
            Some((SERVICE, method)) => Method::parse(method).map_or(Self::Nothing, Self::Control),
            Some(("grpc.health.v1.Health", _)) => Self::Health,
            Some(("grpc.reflection.v1.ServerReflection", _)) => Self::Reflection,
            Some(("grpc.reflection.v1alpha.ServerReflection", _)) => Self::ReflectionAlpha,
            _ => Self::Nothing,
        }
    }

    /// The metric label. A stream's messages are told of apart, as `grpc_infer`.
    fn name(self) -> &'static str {
        match self {
            Self::Infer => "grpc_infer",
            Self::Stream => "grpc_stream",
            Self::Control(method) => method.name(),
            Self::Health => "grpc_health",
            Self::Reflection | Self::ReflectionAlpha => "grpc_reflection",
            Self::Nothing => "unknown",
        }
    }
}

/// Every gRPC service of the host.
pub(crate) struct Services {
    public: Arc<Public>,
    health: Handler,
    reflection: Handler,
    reflection_alpha: Handler,
    reporter: HealthReporter,
}

impl Services {
    /// Errors: internal, when the committed descriptors are malformed.
    pub(crate) fn new(public: &Arc<Public>) -> Result<Self, Error> {
        let (reporter, health) = tonic_health::server::health_reporter();
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(oip_grpc::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let malformed = |error| Error::internal(format!("the gRPC descriptors are malformed: {error}"));
        Ok(Self {
            public: Arc::clone(public),
            health: BoxCloneSyncService::new(health),
            reflection: BoxCloneSyncService::new(reflection().build_v1().map_err(malformed)?),
            reflection_alpha: BoxCloneSyncService::new(reflection().build_v1alpha().map_err(malformed)?),
            reporter,
        })
    }

    /// Whether a request is gRPC's.
    pub(crate) fn takes<B>(request: &Request<B>) -> bool {
        let kind = request.headers().get(CONTENT_TYPE);
        kind.is_some_and(|kind| kind.as_bytes().starts_with(GRPC.as_bytes()))
    }

    /// Answers one call; failures are in its trailers. `checked`: whether its sender may ask at all.
    pub(crate) async fn handle(
        &self,
        request: Request<Incoming>,
        checked: Result<(), Error>,
    ) -> Result<Response<ResponseBody>, Infallible> {
        let (mut head, body) = request.into_parts();
        let watch = head.extensions.remove::<Arc<Watch>>();
        let called = Called::parse(head.uri.path());
        let limit = limit(&self.public, &head.headers);
        let mut exchange = Exchange::begin(&self.public, called.name(), &head.headers, watch, limit);
        if let Err(refusal) = checked {
            return Ok(refused(&mut exchange, &refusal));
        }
        let handler = match called {
            Called::Infer => return Ok(infer::infer(exchange, &head.headers, body).await),
            Called::Stream => return Ok(infer::stream(exchange, head.headers, body)),
            Called::Control(method) => {
                return Ok(control::answer(exchange, method, &head.headers, body).await);
            }
            Called::Health => &self.health,
            Called::Reflection => &self.reflection,
            Called::ReflectionAlpha => &self.reflection_alpha,
            Called::Nothing => {
                let error = Error::new(ErrorCode::Unsupported, "there is no such service or method");
                return Ok(refused(&mut exchange, &error));
            }
        };
        Ok(small::answer(exchange, head, body, handler.clone()).await)
    }

    /// Tells health watchers whether the host serves.
    pub(crate) async fn set_serving(&self, serving: bool) {
        use tonic_health::ServingStatus::{NotServing, Serving};
        let status = if serving { Serving } else { NotServing };
        for service in ["", SERVICE] {
            self.reporter.set_service_status(service, status).await;
        }
    }
}

/// An empty version is none.
fn target<'a>(model: &'a str, version: &'a str) -> Target<'a> {
    Target { model, version: (!version.is_empty()).then_some(version) }
}

/// A response of one message.
fn respond(
    message: Vec<Bytes>,
    coding: Option<Coding>,
    headers: impl Iterator<Item = (HeaderName, HeaderValue)>,
) -> Response<ResponseBody> {
    let pieces = stream::iter(message).map(|piece| Ok::<_, Infallible>(Frame::data(piece)));
    let last = stream::once(async { Ok(Frame::trailers(trailers(None))) });
    let mut response = Response::new(streamed(StreamBody::new(pieces.chain(last))));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(GRPC));
    if let Some(coding) = coding {
        response.headers_mut().insert("grpc-encoding", HeaderValue::from_static(coding.as_str()));
    }
    response.headers_mut().extend(headers);
    response
}

/// How a call ended.
fn trailers(refused: Option<Status>) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    let status = refused.unwrap_or_else(|| Status::new(Code::Ok, ""));
    if status.add_header(&mut trailers).is_err() {
        trailers.insert("grpc-status", HeaderValue::from(i32::from(Code::Internal)));
    }
    trailers
}

/// Ends a call with a failure.
fn refused(exchange: &mut Exchange, error: &Error) -> Response<ResponseBody> {
    exchange.answered(status::http(error.code), 0);
    let mut refused = refusal(error, &exchange.request_id);
    refused.metadata_mut().as_mut().extend(exchange.headers());
    refused.into_http()
}

fn refusal(error: &Error, request_id: &str) -> Status {
    let shown = shown(error, request_id).message;
    let text = shown.get(..shown.floor_char_boundary(MAX_TEXT)).unwrap_or_default();
    let mut refused = Status::new(Code::from_i32(status::grpc(error.code)), text);
    refused.metadata_mut().insert("modelhost-code", MetadataValue::from_static(error.code.as_str()));
    if error.code == ErrorCode::UnsupportedFormat {
        refused.metadata_mut().insert("grpc-accept-encoding", MetadataValue::from_static(CODINGS));
    }
    refused
}

/// How long the host takes for a call, or the caller waits, whichever is shorter.
fn limit(public: &Public, headers: &HeaderMap) -> Duration {
    asked_time(headers).map_or(public.request_timeout, |asked| asked.min(public.request_timeout))
}

/// How long the caller waits.
fn asked_time(headers: &HeaderMap) -> Option<Duration> {
    headers.get("grpc-timeout").and_then(|value| grpc_timeout(value.as_bytes()))
}

/// Up to 8 digits and a unit. Source: the gRPC over HTTP/2 specification, "Timeout".
fn grpc_timeout(text: &[u8]) -> Option<Duration> {
    let (unit, digits) = text.split_last().filter(|(_, digits)| digits.len() <= 8)?;
    let number: u32 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    let number = u64::from(number);
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_have_units() {
        for (text, expected) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("20m", Some(Duration::from_millis(20))),
            ("7u", Some(Duration::from_micros(7))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("999999999S", None),
            ("5", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(grpc_timeout(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn paths_name_services_and_methods() {
        for (path, expected) in [
            ("/inference.GRPCInferenceService/ModelInfer", "grpc_infer"),
            ("/inference.GRPCInferenceService/ModelStreamInfer", "grpc_stream"),
            ("/inference.GRPCInferenceService/RepositoryIndex", "grpc_repository"),
            ("/inference.GRPCInferenceService/Nothing", "unknown"),
            ("/grpc.health.v1.Health/Watch", "grpc_health"),
            ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "grpc_reflection"),
            ("//ModelInfer", "unknown"),
            ("ModelInfer", "unknown"),
        ] {
            assert_eq!(Called::parse(path).name(), expected, "{path}");
        }
    }

    #[test]
    fn a_refusal_fits_in_trailers() {
        let long = Error::new(ErrorCode::UnsupportedFormat, "é".repeat(100_000));
        let mut trailers = HeaderMap::new();
        refusal(&long, "").add_header(&mut trailers).unwrap();
        let bytes: usize = trailers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        assert!(bytes < 8 << 10, "{bytes}");
        assert_eq!(trailers["grpc-accept-encoding"], CODINGS);
    }
}
