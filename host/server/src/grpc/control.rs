//! The protocol's calls that are no predictions: one small message in, one out.

use std::sync::Arc;
use std::time::Instant;

use hyper::body::Incoming;
use hyper::{Request, Response};
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::event::Statistics;
use modelhost_core::version::{Model, Version};
use modelhost_protocol::oip_grpc::{self, pb};
use prost::Message;

use super::frames::{Frames, framed};
use super::{refuse_request, respond, target};
use crate::body::ResponseBody;
use crate::control::index;
use crate::public::{MAX_CONTROL_BYTES, Public};
use crate::watch::Watch;

/// Answers one call.
pub(super) async fn answer(
    public: &Arc<Public>,
    method: &str,
    request: Request<Incoming>,
) -> Response<ResponseBody> {
    let until = Instant::now() + public.request_timeout;
    let answered = async {
        let (mut head, body) = request.into_parts();
        let watch = head.extensions.remove::<Arc<Watch>>();
        let mut frames = Frames::new(&head.headers, body, MAX_CONTROL_BYTES, watch.clone())?;
        let begun = frames.begin(until).await?.ok_or_else(|| Error::invalid("body: it has no message"))?;
        let content = frames.finish(&begun, public.serving.bodies().charge(), until).await?;
        let (message, _charge) = content.plain().await?;
        let answer = public.grpc_control(method, &message).await?;
        Ok(match watch {
            Some(watch) => watch.send(answer.into(), None, until.max(Instant::now() + public.patience.read)),
            None => answer.into(),
        })
    };
    match answered.await {
        Ok(answer) => respond(framed(answer, false), None, std::iter::empty()),
        Err(error) => refuse_request(&error, "").into_http(),
    }
}

fn read<M: Message + Default>(message: &[u8]) -> Result<M, Error> {
    M::decode(message).map_err(|error| Error::invalid(format!("body: {error}")))
}

impl Public {
    async fn grpc_control(self: &Arc<Self>, method: &str, message: &[u8]) -> Result<Vec<u8>, Error> {
        Ok(match method {
            "ServerLive" => pb::ServerLiveResponse { live: true }.encode_to_vec(),
            "ServerReady" => pb::ServerReadyResponse { ready: self.check_ready().is_ok() }.encode_to_vec(),
            "ServerMetadata" => oip_grpc::server_metadata(env!("CARGO_PKG_VERSION")).encode_to_vec(),
            "ModelReady" => {
                let asked: pb::ModelReadyRequest = read(message)?;
                let why = self.serving.unavailable(target(&asked.name, &asked.version))?;
                pb::ModelReadyResponse { ready: why.is_none() }.encode_to_vec()
            }
            "ModelMetadata" => {
                let asked: pb::ModelMetadataRequest = read(message)?;
                let (model, version) = self.describe(&asked.name, &asked.version)?;
                oip_grpc::model_metadata(&model, &version).encode_to_vec()
            }
            "ModelConfig" => {
                let asked: pb::ModelConfigRequest = read(message)?;
                let (_, version) = self.describe(&asked.name, &asked.version)?;
                oip_grpc::model_config(&version, &self.serving.graphs(&version)).encode_to_vec()
            }
            "ModelStatistics" => self.grpc_statistics(read(message)?).await?,
            "RepositoryIndex" => {
                let asked: pb::RepositoryIndexRequest = read(message)?;
                let serving = Arc::clone(&self.serving);
                let list = move || Ok(oip_grpc::index(&index(&serving, asked.ready)?).encode_to_vec());
                self.aside(list).await?
            }
            "RepositoryModelLoad" => {
                let asked: pb::RepositoryModelLoadRequest = read(message)?;
                oip_grpc::check_load(&asked.parameters)?;
                self.load_model(&asked.model_name).await?;
                pb::RepositoryModelLoadResponse {}.encode_to_vec()
            }
            "RepositoryModelUnload" => {
                let asked: pb::RepositoryModelUnloadRequest = read(message)?;
                oip_grpc::check_load(&asked.parameters)?;
                self.unload_model(&asked.model_name)?;
                pb::RepositoryModelUnloadResponse {}.encode_to_vec()
            }
            "TraceSetting" => {
                let asked: pb::TraceSettingRequest = read(message)?;
                if !asked.model_name.is_empty() {
                    self.describe(&asked.model_name, "")?;
                }
                let settings = self.set_traces(oip_grpc::read_trace_settings(&asked)?)?;
                oip_grpc::trace_settings(settings).encode_to_vec()
            }
            "LogSettings" => {
                let settings = self.set_logs(oip_grpc::read_log_settings(&read(message)?)?)?;
                oip_grpc::log_settings(settings).encode_to_vec()
            }
            _ => return Err(Error::new(ErrorCode::Unsupported, "there is no such method")),
        })
    }

    async fn grpc_statistics(&self, asked: pb::ModelStatisticsRequest) -> Result<Vec<u8>, Error> {
        let serving = Arc::clone(&self.serving);
        self.aside(move || {
            let target = (!asked.name.is_empty()).then(|| target(&asked.name, &asked.version));
            let statistics = serving.statistics(target)?;
            let seen: Vec<(&Version, Statistics)> =
                statistics.iter().map(|(version, seen)| (&**version, *seen)).collect();
            Ok(oip_grpc::statistics(&seen).encode_to_vec())
        })
        .await
    }

    fn describe(&self, name: &str, version: &str) -> Result<(Arc<Model>, Arc<Version>), Error> {
        self.serving.describe(target(name, version))
    }
}
