//! HTTP for the resources. Each change runs in a task of its own, to its end.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use modelhost_core::artifact::Digest;
use modelhost_core::deployment::DeploymentName;
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::model::{ModelName, ModelVersion};
use serde::{Deserialize, Serialize};

use crate::intake::{MAX_JSON, SMALL_JSON};
use crate::resources::Admin;
use crate::wire;

type Shared = State<Arc<Admin>>;
type Answer = Result<Response, Refusal>;

/// The admin API over these resources.
pub fn router(admin: Arc<Admin>) -> Router {
    const MODEL: &str = "/v1/models/{prefix}/{name}";
    let model = |rest: &str| format!("{MODEL}{rest}");
    Router::new()
        .route("/v1/prefixes", get(prefixes))
        .route("/v1/models", get(models))
        .route(MODEL, get(show))
        .route(&model("/blobs/{digest}"), put(upload).get(has_blob))
        .route(&model("/versions"), post(register))
        .route(&model("/versions/{version}/unload"), post(unload))
        .route(&model("/versions/{version}/preload"), post(preload))
        .route(&model("/pin"), post(pin))
        .route(&model("/deployment"), put(place))
        .route("/v1/deployments", get(deployments))
        .route("/v1/deployments/{deployment}", put(create).patch(update).get(deployment).delete(delete))
        .route("/v1/deployments/{deployment}/recreate", post(recreate))
        .route("/v1/usage", get(usage))
        .route(&model("/promote"), post(promote))
        .route(&model("/rollback"), post(rollback))
        .route(&model("/split"), post(split))
        .route(&model("/challenge"), post(challenge))
        .route(&model("/aliases/{alias}"), put(alias).delete(remove_alias))
        .route(&model("/history"), get(history))
        .fallback(async || Refusal(Error::not_found("the admin API has no such path")).into_response())
        .with_state(admin)
}

#[derive(Deserialize)]
struct ModelPath {
    prefix: String,
    name: String,
}

impl ModelPath {
    fn model(&self) -> Result<ModelName, Error> {
        ModelName::parse(&format!("{}/{}", self.prefix, self.name))
    }
}

#[derive(Deserialize)]
struct PrefixQuery {
    prefix: Option<String>,
}

async fn prefixes(State(admin): Shared) -> Answer {
    list(&admin, "prefixes".to_owned(), |admin| Ok(admin.prefixes())).await
}

async fn deployments(State(admin): Shared) -> Answer {
    list(&admin, "deployments".to_owned(), |admin| Ok(admin.deployments())).await
}

async fn usage(State(admin): Shared) -> Answer {
    list(&admin, "usage".to_owned(), |admin| Ok(admin.usage())).await
}

async fn models(State(admin): Shared, Query(query): Query<PrefixQuery>) -> Answer {
    let name = format!("models {:?}", query.prefix);
    list(&admin, name, move |admin| Ok(admin.models(query.prefix.as_deref()))).await
}

async fn show(State(admin): Shared, Path(path): Path<ModelPath>) -> Answer {
    let name = path.model()?;
    list(&admin, format!("show {name}"), move |admin| admin.show(&name)).await
}

async fn history(State(admin): Shared, Path(path): Path<ModelPath>) -> Answer {
    let name = path.model()?;
    let entries = admin.history(&name).await?;
    // Read before it is asked for: nobody else's.
    let told = format!("history {name} {:p}", entries.as_ptr());
    list(&admin, told, move |_| Ok(entries.into_iter().map(wire::HistoryRow::from).collect::<Vec<_>>())).await
}

async fn register(State(admin): Shared, Path(path): Path<ModelPath>, body: Body) -> Answer {
    let (name, request) = (path.model()?, admin.intake.json::<wire::Register>(body, MAX_JSON).await?);
    // Dropped with this future, when the caller leaves.
    let (_stays, left) = tokio::sync::oneshot::channel();
    to_end(async move { admin.register(&name, &request, left).await }).await
}

async fn promote(State(admin): Shared, Path(path): Path<ModelPath>, body: Body) -> Answer {
    let (name, request) = (path.model()?, admin.intake.json::<wire::VersionRef>(body, SMALL_JSON).await?);
    let number = ModelVersion::new(request.version)?;
    to_end(async move { admin.promote(&name, number).await }).await
}

async fn rollback(State(admin): Shared, Path(path): Path<ModelPath>) -> Answer {
    let name = path.model()?;
    to_end(async move { admin.rollback(&name).await }).await
}

async fn split(State(admin): Shared, Path(path): Path<ModelPath>, body: Body) -> Answer {
    let (name, request) = (path.model()?, admin.intake.json::<wire::Split>(body, SMALL_JSON).await?);
    to_end(async move { admin.split(&name, &request).await }).await
}

async fn challenge(State(admin): Shared, Path(path): Path<ModelPath>, body: Body) -> Answer {
    let (name, request) = (path.model()?, admin.intake.json::<wire::Challenge>(body, SMALL_JSON).await?);
    to_end(async move { admin.challenge(&name, &request).await }).await
}

#[derive(Deserialize)]
struct AliasPath {
    prefix: String,
    name: String,
    alias: String,
}

async fn alias(State(admin): Shared, Path(path): Path<AliasPath>, body: Body) -> Answer {
    let number = ModelVersion::new(admin.intake.json::<wire::VersionRef>(body, SMALL_JSON).await?.version)?;
    set_alias(admin, path, Some(number)).await
}

async fn remove_alias(State(admin): Shared, Path(path): Path<AliasPath>) -> Answer {
    set_alias(admin, path, None).await
}

async fn set_alias(admin: Arc<Admin>, path: AliasPath, number: Option<ModelVersion>) -> Answer {
    let AliasPath { prefix, name, alias } = path;
    let name = ModelPath { prefix, name }.model()?;
    to_end(async move {
        admin.alias(&name, &alias, number).await?;
        admin.aliases(&name)
    })
    .await
}

#[derive(Deserialize)]
struct VersionPath {
    prefix: String,
    name: String,
    version: String,
}

async fn unload(State(admin): Shared, Path(path): Path<VersionPath>) -> Answer {
    let VersionPath { prefix, name, version } = path;
    json(admin.unload(&ModelPath { prefix, name }.model()?, ModelVersion::parse(&version)?)?)
}

async fn preload(State(admin): Shared, Path(path): Path<VersionPath>) -> Answer {
    let VersionPath { prefix, name, version } = path;
    let (name, number) = (ModelPath { prefix, name }.model()?, ModelVersion::parse(&version)?);
    to_end(async move { admin.preload(&name, number).await }).await
}

async fn pin(State(admin): Shared, Path(path): Path<ModelPath>, body: Body) -> Answer {
    let (name, request) = (path.model()?, admin.intake.json::<wire::Pin>(body, SMALL_JSON).await?);
    to_end(async move { admin.pin(&name, request.pinned).await }).await
}

async fn place(State(admin): Shared, Path(path): Path<ModelPath>, body: Body) -> Answer {
    let (name, request) = (path.model()?, admin.intake.json::<wire::Placement>(body, SMALL_JSON).await?);
    to_end(async move { admin.place(&name, &request).await }).await
}

async fn deployment(State(admin): Shared, Path(name): Path<String>) -> Answer {
    json(admin.deployment(&DeploymentName::parse(&name)?).await?)
}

async fn create(State(admin): Shared, Path(name): Path<String>, body: Body) -> Answer {
    let (name, request) =
        (DeploymentName::parse(&name)?, admin.intake.json::<wire::BoundsChange>(body, SMALL_JSON).await?);
    to_end(async move { admin.create_deployment(&name, &request).await }).await
}

async fn update(State(admin): Shared, Path(name): Path<String>, body: Body) -> Answer {
    let (name, request) =
        (DeploymentName::parse(&name)?, admin.intake.json::<wire::BoundsChange>(body, SMALL_JSON).await?);
    to_end(async move { admin.update_deployment(&name, &request).await }).await
}

async fn recreate(State(admin): Shared, Path(name): Path<String>, body: Body) -> Answer {
    let (name, request) =
        (DeploymentName::parse(&name)?, admin.intake.json::<wire::Recreate>(body, SMALL_JSON).await?);
    to_end(async move { admin.recreate_deployment(&name, request.dry_run).await }).await
}

async fn delete(State(admin): Shared, Path(name): Path<String>) -> Answer {
    let name = DeploymentName::parse(&name)?;
    to_end(async move { admin.delete_deployment(&name).await }).await
}

#[derive(Deserialize)]
struct BlobPath {
    prefix: String,
    name: String,
    digest: String,
}

async fn upload(State(admin): Shared, Path(path): Path<BlobPath>, body: Body) -> Answer {
    let BlobPath { prefix, name, digest } = path;
    admin.upload(&ModelPath { prefix, name }.model()?, Digest::parse(&digest)?, body).await?;
    Ok(StatusCode::CREATED.into_response())
}

async fn has_blob(State(admin): Shared, Path(path): Path<BlobPath>) -> Answer {
    let BlobPath { prefix, name, digest } = path;
    let digest = Digest::parse(&digest)?;
    let bytes = admin.blob(&ModelPath { prefix, name }.model()?, digest).await?;
    let bytes = bytes.ok_or_else(|| Error::not_found(format!("blob {digest} was not uploaded")))?;
    json(serde_json::json!({"digest": digest.to_string(), "bytes": bytes}))
}

async fn to_end<T: Serialize + Send + 'static>(
    change: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Answer {
    let result = tokio::spawn(change).await;
    json(result.map_err(|error| Error::internal(format!("the change did not end: {error}")))??)
}

/// Answers with what grows with the host's models, made aside. `name` tells lists apart that are made of different
/// things.
async fn list<T: Serialize>(
    admin: &Arc<Admin>,
    name: String,
    make: impl FnOnce(&Admin) -> Result<T, Error> + Send + 'static,
) -> Answer {
    let own = Arc::clone(admin);
    let work = move || {
        let written = serde_json::to_vec(&make(&own)?);
        written.map_err(|error| Error::internal("a list could not be written").because(error))
    };
    let made = (admin.aside)(name, Box::new(work)).await?;
    Ok(([(CONTENT_TYPE, "application/json")], made).into_response())
}

fn json(value: impl Serialize) -> Answer {
    Ok(Json(value).into_response())
}

/// What the admin API answers with.
pub type Reply = Response;

/// The answer of a failure.
pub fn refuse(error: Error) -> Reply {
    Refusal(error).into_response()
}

struct Refusal(Error);

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self(error) = self;
        let status = match error.code {
            ErrorCode::InvalidArgument => StatusCode::BAD_REQUEST,
            ErrorCode::PermissionDenied => StatusCode::FORBIDDEN,
            ErrorCode::NotFound => StatusCode::NOT_FOUND,
            ErrorCode::Conflict => StatusCode::CONFLICT,
            ErrorCode::UnsupportedFormat => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            ErrorCode::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            // The component or its artifacts do not do what they should: a refusal, not this host's failure.
            ErrorCode::PluginFault | ErrorCode::Unsupported => StatusCode::UNPROCESSABLE_ENTITY,
            ErrorCode::ResourceExhausted => StatusCode::INSUFFICIENT_STORAGE,
            ErrorCode::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            ErrorCode::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
            ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        if error.code == ErrorCode::Internal {
            tracing::error!(error = %error.chain(), "admin request failed");
        }
        let body = wire::Failure { error: error.message, code: error.code.as_str().to_owned() };
        (status, Json(body)).into_response()
    }
}
