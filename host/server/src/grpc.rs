//! The Open Inference Protocol over gRPC, health and reflection. Served on the ports that serve HTTP, told apart by content type.
//!
//! Messages of predictions are framed here and go the way of every prediction; health and reflection are tonic's.

mod control;
mod frames;
mod infer;

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::StreamBody;
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::{Request, Response};
use modelhost_core::error::Error;
use modelhost_protocol::{oip_grpc, status};
use modelhost_serving::Target;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};
use tonic_health::server::HealthReporter;
use tower::ServiceExt;
use tower::util::BoxCloneSyncService;

use crate::answer::shown;
use crate::body::{ResponseBody, Small, streamed};
use crate::coding::Coding;
use crate::public::Public;
use crate::watch::Watch;

const GRPC: &str = "application/grpc";

const SERVICE: &str = "inference.GRPCInferenceService";

/// Largest body of a call for health or reflection.
const MAX_SMALL_BYTES: usize = 64 << 10;

type Handler = BoxCloneSyncService<Request<Small>, Response<tonic::body::Body>, Infallible>;

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
        if let Err(refusal) = checked {
            return Ok(refuse_request(&refusal, "").into_http());
        }
        let path = request.uri().path().to_owned();
        let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or_default();
        let handler = match (service, method) {
            (SERVICE, "ModelInfer") => return Ok(infer::infer(&self.public, request).await),
            (SERVICE, "ModelStreamInfer") => return Ok(infer::stream(&self.public, request)),
            (SERVICE, method) => return Ok(control::answer(&self.public, method, request).await),
            ("grpc.health.v1.Health", _) => &self.health,
            ("grpc.reflection.v1.ServerReflection", _) => &self.reflection,
            ("grpc.reflection.v1alpha.ServerReflection", _) => &self.reflection_alpha,
            _ => return Ok(Status::unimplemented("there is no such service").into_http()),
        };
        let watch = request.extensions().get::<Arc<Watch>>().cloned();
        let small = |body| Small::new(body, MAX_SMALL_BYTES, self.public.patience.idle, watch);
        Ok(handler.clone().oneshot(request.map(small)).await?.map(streamed))
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

fn refuse_request(error: &Error, request_id: &str) -> Status {
    let mut refused = Status::new(Code::from_i32(status::grpc(error.code)), shown(error, request_id).message);
    refused.metadata_mut().insert("modelhost-code", MetadataValue::from_static(error.code.as_str()));
    refused
}
