//! What the public port answers besides predictions: lists, pages, health, settings.

mod pages;
mod repository;
mod settings;

use std::sync::Arc;

use hyper::Response;
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::version::{Model, Version};
use modelhost_protocol::{oip_rest, tf_serving};
use modelhost_serving::Target;
use serde_json::{Value, json};

pub(crate) use pages::{is_form, wants_html};
pub(crate) use repository::index;

use crate::answer::{TEXT, body, json};
use crate::body::ResponseBody;
use crate::dialects::JSON;
use crate::public::{Answer, Call, Public};
use crate::route::Route;

impl Public {
    pub(crate) async fn control(self: &Arc<Self>, route: Route<'_>, call: &mut Call) -> Answer {
        match route {
            Route::Root => self.root(call).await,
            Route::Metrics => self.render_metrics(call).await,
            Route::ServerMetadata => Ok(json(&oip_rest::server_metadata(env!("CARGO_PKG_VERSION")))),
            Route::Live => Ok(json(&json!({"live": true}))),
            Route::Ready => self.ready(),
            Route::Models => self.models(call).await,
            Route::ModelMetadata(target) => self.model_metadata(target, call).await,
            Route::ModelReady(target) => self.model_ready(target),
            Route::ModelConfig(target) => self.model_config(target, call).await,
            Route::Statistics(target) => self.statistics(target, call).await,
            Route::Index => self.index(call).await,
            Route::Load(model) => self.load(model, call).await,
            Route::Unload(model) => self.unload(model, call).await,
            Route::TraceSettings(target) => self.trace_settings(target, call).await,
            Route::LogSettings => self.log_settings(call).await,
            Route::Model(target) => self.page(target, call).await,
            Route::OpenApi(target) => self.openapi(target, call).await,
            Route::Docs(target) => self.docs(target),
            Route::Asset(name) => Self::asset(name),
            Route::V1Unsupported(target, verb) => self.tf_unsupported(target, verb),
            Route::V1Status(target) => self.tf_status(target, call).await,
            Route::V1Metadata(target) => self.tf_metadata(target, call).await,
            Route::Ping(target) => self.ping(self.or_default(target)?),
            Route::Version => Ok(Self::version()),
            Route::Infer(_) | Route::V1Predict(_) | Route::Invocations(_) => {
                Err(Error::internal("a prediction went another way")) // `Public::dispatch` takes them
            }
        }
    }

    async fn render_metrics(self: &Arc<Self>, call: &Call) -> Answer {
        let public = Arc::clone(self);
        let text = move || Ok(public.metrics.render().into());
        self.document(
            call,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            "metrics".to_owned(),
            text,
        )
        .await
    }

    fn ready(&self) -> Answer {
        self.check_ready()?;
        Ok(json(&json!({"ready": true})))
    }

    async fn models(&self, call: &Call) -> Answer {
        let serving = Arc::clone(&self.serving);
        let names = move || {
            let models = serving.models();
            let names: Vec<_> = models.iter().map(|model| model.name.as_str()).collect();
            Ok(json!({"models": names}))
        };
        self.list(call, "models".to_owned(), names).await
    }

    /// Answers with JSON that is made aside.
    async fn list(
        &self,
        call: &Call,
        name: String,
        work: impl FnOnce() -> Result<Value, Error> + Send + 'static,
    ) -> Answer {
        self.document(call, JSON, name, move || Ok(work()?.to_string().into())).await
    }

    /// Answers with what is known of a model: at once where that is little. `kind` tells what is told of it.
    async fn known(
        &self,
        target: Target<'_>,
        call: &Call,
        kind: &str,
        tell: impl FnOnce(&Model, &Version) -> Result<Value, Error> + Send + 'static,
    ) -> Answer {
        let (model, version) = self.serving.describe(target)?;
        if is_little(&model, &version) {
            return Ok(json(&tell(&model, &version)?));
        }
        // A model is made anew when something changes.
        let name = format!("{kind} {} {} {:p}", model.name, version.number, Arc::as_ptr(&model));
        self.list(call, name, move || tell(&model, &version)).await
    }

    /// 200 while the model can answer, 404 otherwise, as MLflow's clients expect.
    fn ping(&self, target: Target<'_>) -> Answer {
        let mut response = body(TEXT, "\n");
        if self.check_ready().is_err() || self.serving.unavailable(target)?.is_some() {
            *response.status_mut() = hyper::StatusCode::NOT_FOUND;
        }
        Ok(response)
    }

    fn version() -> Response<ResponseBody> {
        body(TEXT, env!("CARGO_PKG_VERSION"))
    }

    /// Errors: unsupported, always.
    fn tf_unsupported(&self, target: Target<'_>, verb: &str) -> Answer {
        self.serving.describe(target)?;
        Err(tf_serving::refuse_verb(verb))
    }

    async fn tf_status(&self, target: Target<'_>, call: &Call) -> Answer {
        let (serving, explicit) = (Arc::clone(&self.serving), target.version.is_some());
        let ready = self.serving.unavailable(target)?.is_none();
        let kind = if explicit { "v1 version" } else { "v1 status" };
        let tell = move |model: &Model, version: &Version| {
            let mut versions = serving.availability(Some(model.name.as_str()))?;
            if explicit {
                versions.retain(|(other, _)| other.number == version.number);
            }
            let versions: Vec<(u32, Option<String>)> =
                versions.into_iter().map(|(version, why)| (version.number.get(), why)).collect();
            Ok(tf_serving::status(model.name.as_str(), ready, &versions))
        };
        self.known(target, call, kind, tell).await
    }

    async fn tf_metadata(&self, target: Target<'_>, call: &Call) -> Answer {
        self.known(target, call, "v1 metadata", |model, version| Ok(tf_serving::metadata(model, version)))
            .await
    }

    /// Errors: unsupported, unless the operator lets callers steer.
    pub(crate) fn check_control(&self) -> Result<(), Error> {
        if self.repository_control {
            return Ok(());
        }
        let text = "callers may not load, unload or change settings here: the operator allows it with --repository-control";
        Err(Error::new(ErrorCode::Unsupported, text))
    }
}

/// Whether telling of a model takes no longer than a short prediction: it has few versions, and this one a short
/// signature.
pub(crate) fn is_little(model: &Model, version: &Version) -> bool {
    /// Versions, tensors and columns.
    const LITTLE: usize = 256;
    let signature = &version.report.signature;
    let tensors = signature.inputs.iter().chain(&signature.outputs);
    let items: usize = tensors.map(|spec| 1 + spec.columns.len()).sum();
    model.versions.len() + items <= LITTLE
}
