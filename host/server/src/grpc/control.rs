//! The protocol's calls that are no predictions: one small message in, one out.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use hyper::Response;
use hyper::body::Incoming;
use hyper::header::HeaderMap;
use modelhost_core::budget::Charge;
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::event::Statistics;
use modelhost_core::version::{Model, Version};
use modelhost_protocol::oip_grpc::{self, pb};
use modelhost_serving::Target;
use prost::Message;

use super::frames::{Frames, framed};
use super::infer::guarded;
use super::{refused, respond, target};
use crate::aside::Key;
use crate::body::ResponseBody;
use crate::control::{index, is_little};
use crate::exchange::{Exchange, Stage};
use crate::public::{MAX_CONTROL_BYTES, Public};

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    ServerLive,
    ServerReady,
    ServerMetadata,
    ModelReady,
    ModelMetadata,
    ModelConfig,
    ModelStatistics,
    RepositoryIndex,
    RepositoryModelLoad,
    RepositoryModelUnload,
    TraceSetting,
    LogSettings,
}

impl Method {
    pub(super) fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "ServerLive" => Self::ServerLive,
            "ServerReady" => Self::ServerReady,
            "ServerMetadata" => Self::ServerMetadata,
            "ModelReady" => Self::ModelReady,
            "ModelMetadata" => Self::ModelMetadata,
            "ModelConfig" => Self::ModelConfig,
            "ModelStatistics" => Self::ModelStatistics,
            "RepositoryIndex" => Self::RepositoryIndex,
            "RepositoryModelLoad" => Self::RepositoryModelLoad,
            "RepositoryModelUnload" => Self::RepositoryModelUnload,
            "TraceSetting" => Self::TraceSetting,
            "LogSettings" => Self::LogSettings,
            _ => return None,
        })
    }

    /// The metric label.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::ServerLive | Self::ServerReady => "grpc_health",
            Self::ServerMetadata => "grpc_server_metadata",
            Self::ModelReady => "grpc_model_ready",
            Self::ModelMetadata => "grpc_model_metadata",
            Self::ModelConfig => "grpc_model_config",
            Self::ModelStatistics => "grpc_statistics",
            Self::RepositoryIndex | Self::RepositoryModelLoad | Self::RepositoryModelUnload => {
                "grpc_repository"
            }
            Self::TraceSetting | Self::LogSettings => "grpc_settings",
        }
    }
}

/// Answers one call.
pub(super) async fn answer(
    mut exchange: Exchange,
    method: Method,
    headers: &HeaderMap,
    body: Incoming,
) -> Response<ResponseBody> {
    let until = exchange.deadline.instant();
    let late = |_| Error::new(ErrorCode::DeadlineExceeded, "it was not done in time");
    let answered = tokio::time::timeout_at(until.into(), one(&mut exchange, method, headers, body)).await;
    match answered.map_err(late).flatten() {
        Ok((message, charge)) => {
            exchange.answered(200, message.len() as u64);
            let pieces = framed(message, false);
            let pieces = guarded(exchange.watch.as_ref(), pieces, Some(charge), exchange.read_by());
            respond(pieces, None, exchange.headers())
        }
        Err(error) => refused(&mut exchange, &error),
    }
}

async fn one(
    exchange: &mut Exchange,
    method: Method,
    headers: &HeaderMap,
    body: Incoming,
) -> Result<(Bytes, Charge), Error> {
    exchange.stage = Stage::Body;
    let (public, until) = (Arc::clone(exchange.public()), exchange.deadline.instant());
    let charge = || public.serving.bodies().charge();
    let mut frames = Frames::new(headers, body, MAX_CONTROL_BYTES, exchange.watch.clone(), charge())?;
    let begun = frames.begin(until).await?.ok_or_else(|| Error::invalid("body: it has no message"))?;
    let content = frames.finish(&begun, charge(), until).await?;
    let (message, _charge) = content.plain().await?;
    exchange.received_bytes = message.len() as u64;
    let (answer, mut charge) = (public.grpc_control(method, &message, until).await?, charge());
    charge.grow(answer.len())?;
    exchange.stage = Stage::Done;
    Ok((answer, charge))
}

fn read<M: Message + Default>(message: &[u8]) -> Result<M, Error> {
    M::decode(message).map_err(|error| Error::invalid(format!("body: {error}")).because(error))
}

impl Public {
    async fn grpc_control(
        self: &Arc<Self>,
        method: Method,
        message: &[u8],
        until: Instant,
    ) -> Result<Bytes, Error> {
        let answer = match method {
            Method::ServerLive => pb::ServerLiveResponse { live: true }.encode_to_vec(),
            Method::ServerReady => {
                pb::ServerReadyResponse { ready: self.check_ready().is_ok() }.encode_to_vec()
            }
            Method::ServerMetadata => oip_grpc::server_metadata(env!("CARGO_PKG_VERSION")).encode_to_vec(),
            Method::ModelReady => {
                let asked: pb::ModelReadyRequest = read(message)?;
                let why = self.serving.unavailable(target(&asked.name, &asked.version))?;
                pb::ModelReadyResponse { ready: why.is_none() }.encode_to_vec()
            }
            Method::ModelMetadata => {
                let asked: pb::ModelMetadataRequest = read(message)?;
                let tell = |model: &Model, version: &Version| Ok(oip_grpc::model_metadata(model, version));
                return self.grpc_known(target(&asked.name, &asked.version), until, "metadata", tell).await;
            }
            Method::ModelConfig => {
                let asked: pb::ModelConfigRequest = read(message)?;
                let serving = Arc::clone(&self.serving);
                let tell = move |_: &Model, version: &Version| {
                    Ok(oip_grpc::model_config(version, &serving.graphs(version)))
                };
                return self.grpc_known(target(&asked.name, &asked.version), until, "config", tell).await;
            }
            Method::ModelStatistics => return self.grpc_statistics(read(message)?, until).await,
            Method::RepositoryIndex => {
                let asked: pb::RepositoryIndexRequest = read(message)?;
                let (serving, ready) = (Arc::clone(&self.serving), asked.ready);
                let list = move || Ok(oip_grpc::index(&index(&serving, ready)?));
                return self.grpc_list(format!("index {ready}"), until, list).await;
            }
            Method::RepositoryModelLoad => {
                let asked: pb::RepositoryModelLoadRequest = read(message)?;
                oip_grpc::check_load(&asked.parameters)?;
                self.load_model(&asked.model_name).await?;
                pb::RepositoryModelLoadResponse {}.encode_to_vec()
            }
            Method::RepositoryModelUnload => {
                let asked: pb::RepositoryModelUnloadRequest = read(message)?;
                oip_grpc::check_load(&asked.parameters)?;
                self.unload_model(&asked.model_name)?;
                pb::RepositoryModelUnloadResponse {}.encode_to_vec()
            }
            Method::TraceSetting => {
                let asked: pb::TraceSettingRequest = read(message)?;
                if !asked.model_name.is_empty() {
                    self.serving.describe(target(&asked.model_name, ""))?;
                }
                let settings = self.set_traces(oip_grpc::read_trace_settings(&asked)?)?;
                oip_grpc::trace_settings(settings).encode_to_vec()
            }
            Method::LogSettings => {
                let settings = self.set_logs(oip_grpc::read_log_settings(&read(message)?)?)?;
                oip_grpc::log_settings(settings).encode_to_vec()
            }
        };
        Ok(answer.into())
    }

    /// What is known of a model: told at once where that is little.
    async fn grpc_known<M: Message>(
        &self,
        target: Target<'_>,
        until: Instant,
        kind: &str,
        tell: impl FnOnce(&Model, &Version) -> Result<M, Error> + Send + 'static,
    ) -> Result<Bytes, Error> {
        let (model, version) = self.serving.describe(target)?;
        if is_little(&model, &version) {
            return Ok(tell(&model, &version)?.encode_to_vec().into());
        }
        let name = format!("{kind} {} {:p}", version.number, Arc::as_ptr(&model));
        self.grpc_list(name, until, move || tell(&model, &version)).await
    }

    /// A message that is made aside.
    async fn grpc_list<M: Message>(
        &self,
        name: String,
        until: Instant,
        work: impl FnOnce() -> Result<M, Error> + Send + 'static,
    ) -> Result<Bytes, Error> {
        let key = Key { name: format!("gRPC {name}"), accepts: None };
        Ok(self.aside.make(key, until, move || Ok(work()?.encode_to_vec().into())).await?.bytes)
    }

    async fn grpc_statistics(
        &self,
        asked: pb::ModelStatisticsRequest,
        until: Instant,
    ) -> Result<Bytes, Error> {
        let serving = Arc::clone(&self.serving);
        let tell = move |asked: Option<Target<'_>>| {
            let statistics = serving.statistics(asked)?;
            let seen: Vec<(&Version, Statistics)> =
                statistics.iter().map(|(version, seen)| (&**version, *seen)).collect();
            Ok(oip_grpc::statistics(&seen))
        };
        if asked.name.is_empty() {
            return self.grpc_list("statistics".to_owned(), until, move || tell(None)).await;
        }
        let explicit = !asked.version.is_empty();
        let kind = if explicit { "statistics of" } else { "statistics of all" };
        let of_model = move |model: &Model, version: &Version| {
            let number = version.number.to_string();
            tell(Some(target(model.name.as_str(), if explicit { &number } else { "" })))
        };
        self.grpc_known(target(&asked.name, &asked.version), until, kind, of_model).await
    }
}
