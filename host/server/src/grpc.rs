//! The Open Inference Protocol over gRPC, health and reflection. Served on the ports that serve HTTP, told apart by content type.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{Stream, StreamExt};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderMap};
use hyper::{Request, Response};
use modelhost_core::error::Error;
use modelhost_core::event::Statistics;
use modelhost_core::routing::StickyKey;
use modelhost_core::version::Version;
use modelhost_protocol::oip_grpc::pb;
use modelhost_protocol::oip_grpc::pb::grpc_inference_service_server::{
    GrpcInferenceService, GrpcInferenceServiceServer,
};
use modelhost_protocol::{oip_grpc, status};
use modelhost_serving::Target;
use tonic::codec::CompressionEncoding::{Deflate, Gzip, Zstd};
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};
use tonic_health::server::HealthReporter;
use tower::util::BoxCloneSyncService;
use tower::{Service, ServiceExt};

use crate::body::{ResponseBody, streamed};
use crate::call::Record;
use crate::handlers::{Public, header_key, parameter_key, shown};

type Handler = BoxCloneSyncService<Request<Incoming>, Response<tonic::body::Body>, Infallible>;

/// Every gRPC service of the host.
pub(crate) struct Services {
    inference: GrpcInferenceServiceServer<Grpc>,
    health: Handler,
    reflection: Handler,
    reflection_alpha: Handler,
    reporter: HealthReporter,
}

impl Services {
    /// Errors: internal, when the committed descriptors are malformed.
    pub(crate) fn new(public: &Arc<Public>) -> Result<Self, Error> {
        let (reporter, health) = tonic_health::server::health_reporter();
        let most = public.max_body_bytes;
        let mut inference = GrpcInferenceServiceServer::new(Grpc { public: Arc::clone(public) })
            .max_decoding_message_size(most)
            .max_encoding_message_size(usize::MAX);
        for coding in [Gzip, Deflate, Zstd] {
            inference = inference.accept_compressed(coding).send_compressed(coding);
        }
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(oip_grpc::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let malformed = |error| Error::internal(format!("the gRPC descriptors are malformed: {error}"));
        Ok(Self {
            inference,
            health: BoxCloneSyncService::new(health),
            reflection: BoxCloneSyncService::new(reflection().build_v1().map_err(malformed)?),
            reflection_alpha: BoxCloneSyncService::new(reflection().build_v1alpha().map_err(malformed)?),
            reporter,
        })
    }

    /// Whether a request is gRPC's.
    pub(crate) fn takes<B>(request: &Request<B>) -> bool {
        let kind = request.headers().get(CONTENT_TYPE);
        kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
    }

    /// Answers one call; failures are in its trailers.
    pub(crate) async fn handle(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<ResponseBody>, Infallible> {
        let service = request.uri().path().split('/').nth(1).unwrap_or_default();
        let response = match service {
            "inference.GRPCInferenceService" => self.inference.clone().call(request).await?,
            "grpc.health.v1.Health" => self.health.clone().oneshot(request).await?,
            "grpc.reflection.v1.ServerReflection" => self.reflection.clone().oneshot(request).await?,
            "grpc.reflection.v1alpha.ServerReflection" => {
                self.reflection_alpha.clone().oneshot(request).await?
            }
            other => Status::unimplemented(format!("there is no service {other:?}")).into_http(),
        };
        Ok(response.map(streamed))
    }

    /// Tells health watchers whether the host serves.
    pub(crate) async fn set_serving(&self, serving: bool) {
        use tonic_health::ServingStatus::{NotServing, Serving};
        let status = if serving { Serving } else { NotServing };
        for service in ["", "inference.GRPCInferenceService"] {
            self.reporter.set_service_status(service, status).await;
        }
    }
}

/// The inference service.
#[derive(Clone)]
struct Grpc {
    public: Arc<Public>,
}

type Answer<T> = Result<tonic::Response<T>, Status>;

impl Grpc {
    /// Answers one request; `limit` is what the caller still waits.
    async fn predict(
        &self,
        headers: &HeaderMap,
        message: pb::ModelInferRequest,
        limit: Duration,
        record: &mut Record,
    ) -> Result<pb::ModelInferResponse, Error> {
        let (model, version) = (message.model_name.clone(), message.model_version.clone());
        let decoding = Instant::now();
        let (mut request, form) = oip_grpc::decode(message)?;
        let key = |key: &StickyKey| match key {
            StickyKey::Header(name) => header_key(headers, name),
            StickyKey::Field(field) => parameter_key(&request, field),
        };
        let resolved = self.public.resolve(target(&model, &version), record, key)?;
        let id = request.id.take();
        record.decode = decoding.elapsed();
        let encode = |version: &Version, outputs: &[_]| oip_grpc::encode(version, id, outputs, &form);
        record.predict(&resolved, request, limit, encode).await
    }

    async fn infer(
        &self,
        headers: &HeaderMap,
        message: pb::ModelInferRequest,
        limit: Duration,
    ) -> (Record, Result<pb::ModelInferResponse, Error>) {
        let mut record = Record::begin(headers, &self.public.traces);
        record.received_bytes = message.raw_input_contents.iter().map(|raw| raw.len() as u64).sum();
        let answer = self.predict(headers, message, limit, &mut record).await;
        let status = answer.as_ref().err().map_or(200, |error| status::http(error.code));
        let raw = answer.as_ref().map_or(&[][..], |answer| &answer.raw_output_contents);
        self.public.answered("grpc_infer", status, raw.iter().map(|raw| raw.len() as u64).sum(), &record);
        (record, answer)
    }

    fn limit(&self, headers: &HeaderMap) -> Duration {
        let asked = headers.get("grpc-timeout").and_then(|value| grpc_timeout(value.as_bytes()));
        asked.map_or(self.public.request_timeout, |asked| asked.min(self.public.request_timeout))
    }

    fn describe(
        &self,
        name: &str,
        version: &str,
    ) -> Result<(Arc<modelhost_core::version::Model>, Arc<Version>), Status> {
        self.public.serving.describe(target(name, version)).map_err(|error| refuse(&error))
    }
}

/// An empty version is none.
fn target<'a>(model: &'a str, version: &'a str) -> Target<'a> {
    Target { model, version: (!version.is_empty()).then_some(version) }
}

fn refuse(error: &Error) -> Status {
    refuse_request(error, "")
}

fn refuse_request(error: &Error, request_id: &str) -> Status {
    let mut refused = Status::new(Code::from_i32(status::grpc(error.code)), shown(error, request_id).message);
    refused.metadata_mut().insert("modelhost-code", MetadataValue::from_static(error.code.as_str()));
    refused
}

/// Digits and a unit. Source: the gRPC over HTTP/2 specification, "Timeout".
fn grpc_timeout(text: &[u8]) -> Option<Duration> {
    let (unit, digits) = text.split_last()?;
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(number.checked_mul(3600)?),
        b'M' => Duration::from_secs(number.checked_mul(60)?),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

/// Names the version and the request in the answer's metadata.
fn label(metadata: &mut tonic::metadata::MetadataMap, record: &Record) {
    metadata.as_mut().extend(record.headers());
}

#[tonic::async_trait]
impl GrpcInferenceService for Grpc {
    async fn server_live(&self, _: tonic::Request<pb::ServerLiveRequest>) -> Answer<pb::ServerLiveResponse> {
        Ok(pb::ServerLiveResponse { live: true }.into())
    }

    async fn server_ready(
        &self,
        _: tonic::Request<pb::ServerReadyRequest>,
    ) -> Answer<pb::ServerReadyResponse> {
        Ok(pb::ServerReadyResponse { ready: self.public.check_ready().is_ok() }.into())
    }

    async fn model_ready(
        &self,
        request: tonic::Request<pb::ModelReadyRequest>,
    ) -> Answer<pb::ModelReadyResponse> {
        let asked = request.get_ref();
        match self.public.serving.unavailable(target(&asked.name, &asked.version)) {
            Ok(why) => Ok(pb::ModelReadyResponse { ready: why.is_none() }.into()),
            Err(error) => Err(refuse(&error)),
        }
    }

    async fn server_metadata(
        &self,
        _: tonic::Request<pb::ServerMetadataRequest>,
    ) -> Answer<pb::ServerMetadataResponse> {
        Ok(oip_grpc::server_metadata(env!("CARGO_PKG_VERSION")).into())
    }

    async fn model_metadata(
        &self,
        request: tonic::Request<pb::ModelMetadataRequest>,
    ) -> Answer<pb::ModelMetadataResponse> {
        let (model, version) = self.describe(&request.get_ref().name, &request.get_ref().version)?;
        Ok(oip_grpc::model_metadata(&model, &version).into())
    }

    async fn model_config(
        &self,
        request: tonic::Request<pb::ModelConfigRequest>,
    ) -> Answer<pb::ModelConfigResponse> {
        let (_, version) = self.describe(&request.get_ref().name, &request.get_ref().version)?;
        Ok(oip_grpc::model_config(&version, &self.public.serving.graphs(&version)).into())
    }

    /// Dropped, and the guest stopped, when the caller goes away or its deadline passes.
    async fn model_infer(
        &self,
        request: tonic::Request<pb::ModelInferRequest>,
    ) -> Answer<pb::ModelInferResponse> {
        let (metadata, _, message) = request.into_parts();
        let headers = metadata.into_headers();
        let (record, answer) = self.infer(&headers, message, self.limit(&headers)).await;
        match answer {
            Ok(answer) => {
                let mut response = tonic::Response::new(answer);
                label(response.metadata_mut(), &record);
                Ok(response)
            }
            Err(error) => {
                let mut refused = refuse_request(&error, &record.request_id);
                label(refused.metadata_mut(), &record);
                Err(refused)
            }
        }
    }

    type ModelStreamInferStream =
        Pin<Box<dyn Stream<Item = Result<pb::ModelStreamInferResponse, Status>> + Send>>;

    /// Answers in the order asked, one after another. A failure is a message of the stream, which goes on, unless the caller asked
    /// for gRPC errors (`triton_grpc_error: true`): then it ends the stream.
    async fn model_stream_infer(
        &self,
        request: tonic::Request<tonic::Streaming<pb::ModelInferRequest>>,
    ) -> Answer<Self::ModelStreamInferStream> {
        let (metadata, _, messages) = request.into_parts();
        let headers = metadata.into_headers();
        let as_status = headers.get("triton_grpc_error").is_some_and(|value| value == "true");
        let until = Instant::now() + self.limit(&headers);
        let endless = !headers.contains_key("grpc-timeout");
        let state = (self.clone(), headers, messages, false);
        let answers =
            futures_util::stream::unfold(state, move |(grpc, headers, mut messages, ended)| async move {
                if ended {
                    return None;
                }
                let message = match messages.next().await? {
                    Ok(message) => message,
                    Err(status) => return Some((Err(status), (grpc, headers, messages, true))),
                };
                let left = until.saturating_duration_since(Instant::now());
                let limit = if endless { grpc.public.request_timeout } else { left };
                let id = message.id.clone();
                let (record, answer) = grpc.infer(&headers, message, limit).await;
                let (answer, ended) = match answer {
                    Ok(response) => {
                        let infer_response = Some(response);
                        (
                            Ok(pb::ModelStreamInferResponse { error_message: String::new(), infer_response }),
                            false,
                        )
                    }
                    Err(error) if as_status => (Err(refuse_request(&error, &record.request_id)), true),
                    Err(error) => {
                        (Ok(oip_grpc::stream_failure(id, &shown(&error, &record.request_id))), false)
                    }
                };
                Some((answer, (grpc, headers, messages, ended)))
            });
        Ok(tonic::Response::new(Box::pin(answers)))
    }

    async fn model_statistics(
        &self,
        request: tonic::Request<pb::ModelStatisticsRequest>,
    ) -> Answer<pb::ModelStatisticsResponse> {
        let asked = request.get_ref();
        let target = (!asked.name.is_empty()).then(|| target(&asked.name, &asked.version));
        let statistics = self.public.serving.statistics(target).map_err(|error| refuse(&error))?;
        let seen: Vec<(&Version, Statistics)> =
            statistics.iter().map(|(version, seen)| (&**version, *seen)).collect();
        Ok(oip_grpc::statistics(&seen).into())
    }

    async fn repository_index(
        &self,
        request: tonic::Request<pb::RepositoryIndexRequest>,
    ) -> Answer<pb::RepositoryIndexResponse> {
        let entries =
            self.public.repository_index(request.get_ref().ready).map_err(|error| refuse(&error))?;
        Ok(oip_grpc::index(&entries).into())
    }

    async fn repository_model_load(
        &self,
        request: tonic::Request<pb::RepositoryModelLoadRequest>,
    ) -> Answer<pb::RepositoryModelLoadResponse> {
        let asked = request.get_ref();
        oip_grpc::check_load(&asked.parameters).map_err(|error| refuse(&error))?;
        self.public.load_model(&asked.model_name).await.map_err(|error| refuse(&error))?;
        Ok(pb::RepositoryModelLoadResponse {}.into())
    }

    async fn repository_model_unload(
        &self,
        request: tonic::Request<pb::RepositoryModelUnloadRequest>,
    ) -> Answer<pb::RepositoryModelUnloadResponse> {
        let asked = request.get_ref();
        oip_grpc::check_load(&asked.parameters).map_err(|error| refuse(&error))?;
        self.public.unload_model(&asked.model_name).map_err(|error| refuse(&error))?;
        Ok(pb::RepositoryModelUnloadResponse {}.into())
    }

    async fn trace_setting(
        &self,
        request: tonic::Request<pb::TraceSettingRequest>,
    ) -> Answer<pb::TraceSettingResponse> {
        let settings = oip_grpc::read_trace_settings(request.get_ref());
        let settings = settings.and_then(|settings| self.public.set_traces(settings));
        Ok(oip_grpc::trace_settings(settings.map_err(|error| refuse(&error))?).into())
    }

    async fn log_settings(
        &self,
        request: tonic::Request<pb::LogSettingsRequest>,
    ) -> Answer<pb::LogSettingsResponse> {
        let settings = oip_grpc::read_log_settings(request.get_ref());
        let settings = settings.and_then(|settings| self.public.set_logs(settings));
        Ok(oip_grpc::log_settings(settings.map_err(|error| refuse(&error))?).into())
    }
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
            ("5", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(grpc_timeout(text.as_bytes()), expected, "{text}");
        }
    }
}
