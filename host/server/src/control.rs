//! What the public port answers besides predictions: lists, pages, health, settings.

mod pages;
mod repository;
mod settings;

use std::sync::Arc;

use hyper::Response;
use modelhost_core::error::{Error, ErrorCode};
use modelhost_protocol::{oip_rest, tf_serving};
use modelhost_serving::Target;
use serde_json::json;

pub(crate) use pages::{is_form, wants_html};
pub(crate) use repository::index;

use crate::answer::{TEXT, body, json};
use crate::body::ResponseBody;
use crate::public::{Answer, Call, Public};
use crate::route::Route;

impl Public {
    pub(crate) async fn control(self: &Arc<Self>, route: Route<'_>, call: &mut Call) -> Answer {
        match route {
            Route::Root => self.root(call).await,
            Route::Metrics => self.render_metrics().await,
            Route::ServerMetadata => Ok(json(&oip_rest::server_metadata(env!("CARGO_PKG_VERSION")))),
            Route::Live => Ok(json(&json!({"live": true}))),
            Route::Ready => self.ready(),
            Route::Models => self.models().await,
            Route::ModelMetadata(target) => self.model_metadata(target),
            Route::ModelReady(target) => self.model_ready(target),
            Route::ModelConfig(target) => self.model_config(target),
            Route::Statistics(target) => self.statistics(target).await,
            Route::Index => self.index(call).await,
            Route::Load(model) => self.load(model, call).await,
            Route::Unload(model) => self.unload(model, call).await,
            Route::TraceSettings(target) => self.trace_settings(target, call).await,
            Route::LogSettings => self.log_settings(call).await,
            Route::Model(target) => self.page(target, call).await,
            Route::OpenApi(target) => self.openapi(target).await,
            Route::Docs(target) => self.docs(target),
            Route::Asset(name) => Self::asset(name),
            Route::V1Unsupported(target, verb) => self.tf_unsupported(target, verb),
            Route::V1Status(target) => self.tf_status(target),
            Route::V1Metadata(target) => self.tf_metadata(target),
            Route::Ping(target) => self.ping(self.or_default(target)?),
            Route::Version => Ok(Self::version()),
            Route::Infer(_) | Route::V1Predict(_) | Route::Invocations(_) => {
                Err(Error::internal("a prediction went another way")) // `Public::dispatch` takes them
            }
        }
    }

    async fn render_metrics(self: &Arc<Self>) -> Answer {
        let public = Arc::clone(self);
        let text = self.aside(move || Ok(public.metrics.render())).await?;
        Ok(body("application/openmetrics-text; version=1.0.0; charset=utf-8", text))
    }

    fn ready(&self) -> Answer {
        self.check_ready()?;
        Ok(json(&json!({"ready": true})))
    }

    async fn models(self: &Arc<Self>) -> Answer {
        let public = Arc::clone(self);
        let names = move || {
            let models = public.serving.models();
            let names: Vec<_> = models.iter().map(|model| model.name.as_str()).collect();
            Ok(json(&json!({"models": names})))
        };
        self.aside(names).await
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

    fn tf_status(&self, target: Target<'_>) -> Answer {
        let ready = self.serving.unavailable(target)?.is_none();
        let mut versions = self.serving.availability(Some(target.model))?;
        if target.version.is_some() {
            let (_, version) = self.serving.describe(target)?;
            versions.retain(|(other, _)| other.number == version.number);
        }
        let versions: Vec<(u32, Option<String>)> =
            versions.into_iter().map(|(version, why)| (version.number.get(), why)).collect();
        Ok(json(&tf_serving::status(target.model, ready, &versions)))
    }

    fn tf_metadata(&self, target: Target<'_>) -> Answer {
        let (model, version) = self.serving.describe(target)?;
        Ok(json(&tf_serving::metadata(&model, &version)))
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
