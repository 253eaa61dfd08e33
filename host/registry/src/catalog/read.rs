//! Reads the whole catalogue at start. A limit may be lower than it was, and another release may have written a row.
//! What cannot be understood is logged by name and left out, so that the rest is served. Its rows and its content
//! stay.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures_util::TryStreamExt;
use modelhost_core::artifact::{Artifact, Digest};
use modelhost_core::deployment::Bounds;
use modelhost_core::error::Error;
use modelhost_core::model::{ModelName, ModelVersion};
use modelhost_core::version::{Isolation, Limits, LoadReport, Model, Snapshot, Version};
use sqlx::Row;
use sqlx::sqlite::{SqlitePool, SqliteRow};

use super::policies::parse_policy;
use super::{database, deployments, digest_of, share};
use crate::columns::SharedColumns;
use crate::manifest::Manifest;
use crate::rows::{self, SignatureRow};

/// Reads everything. `cap` bounds the limits of every version. `default` are the bounds of the default deployment
/// until an operator changes them. Errors: internal, if the database cannot be read.
pub(super) async fn all(
    pool: &SqlitePool,
    cap: &Limits,
    default: &Bounds,
    columns: &mut SharedColumns,
) -> Result<Snapshot, Error> {
    let mut models = models(pool).await?;
    versions(pool, &mut models, cap, columns).await?;
    for row in
        sqlx::query("SELECT model_id, name, number FROM aliases").fetch_all(pool).await.map_err(database)?
    {
        if let Some(model) = models.get_mut(&row.try_get::<i64, _>(0).map_err(database)?) {
            let Ok(number) = ModelVersion::new(row.try_get(2).map_err(database)?) else { continue };
            model.aliases.insert(row.try_get(1).map_err(database)?, number);
        }
    }
    deployments::read_placements(pool, &mut models).await?;
    let by_name = models.into_values().map(|model| (model.name.clone(), Arc::new(model)));
    Ok(Snapshot { models: by_name.collect(), deployments: deployments::read(pool, default).await? })
}

/// The blobs of all versions, including those that could not be read.
pub(super) async fn blobs(pool: &SqlitePool) -> Result<HashSet<Digest>, Error> {
    let query = sqlx::query("SELECT component FROM versions UNION SELECT digest FROM artifacts");
    let rows = query.fetch_all(pool).await.map_err(database)?;
    let digests = rows.iter().filter_map(|row| Digest::parse(row.try_get(0).ok()?).ok());
    Ok(digests.collect())
}

async fn models(pool: &SqlitePool) -> Result<HashMap<i64, Model>, Error> {
    let rows = sqlx::query(
        "SELECT m.id, m.name, p.policy, b.policy FROM models m LEFT JOIN policies p ON p.id = m.policy_id
         LEFT JOIN policies b ON b.id = p.back_id",
    );
    let mut models = HashMap::new();
    for row in rows.fetch_all(pool).await.map_err(database)? {
        let name: &str = row.try_get(1).map_err(database)?;
        match model(&row) {
            Ok(model) => drop(models.insert(row.try_get(0).map_err(database)?, model)),
            Err(error) => {
                tracing::error!(model = name, error = %error.chain(), "this model cannot be served: left out")
            }
        }
    }
    Ok(models)
}

fn model(row: &SqliteRow) -> Result<Model, Error> {
    let name = ModelName::parse(row.try_get(1).map_err(database)?)?;
    let policy = |at| {
        let text: Option<&str> = row.try_get(at).map_err(database)?;
        text.map(parse_policy).transpose()
    };
    Ok(Model { policy: policy(2)?, previous: policy(3)?, ..Model::new(name) })
}

async fn versions(
    pool: &SqlitePool,
    models: &mut HashMap<i64, Model>,
    cap: &Limits,
    columns: &mut SharedColumns,
) -> Result<(), Error> {
    let mut artifacts = artifacts(pool).await?;
    let query = sqlx::query(
        "SELECT model_id, number, manifest, component, signature, isolation, isolation_note FROM versions",
    );
    let mut rows = query.fetch(pool); // one at a time: all manifests together are large
    while let Some(row) = rows.try_next().await.map_err(database)? {
        let key: (i64, u32) = (row.try_get(0).map_err(database)?, row.try_get(1).map_err(database)?);
        let Some(model) = models.get_mut(&key.0) else { continue };
        let files = artifacts.remove(&key).unwrap_or_default();
        match version(&row, &model.name, files, cap, columns) {
            Ok(version) => drop(model.versions.insert(version.number, Arc::new(version))),
            Err(error) => {
                let (model, error) = (&model.name, error.chain());
                tracing::error!(%model, version = key.1, %error, "this version cannot be served: left out");
            }
        }
    }
    Ok(())
}

/// By model and number.
type Artifacts = HashMap<(i64, u32), Vec<Result<Artifact, Error>>>;

async fn artifacts(pool: &SqlitePool) -> Result<Artifacts, Error> {
    let mut artifacts = Artifacts::new();
    let query = sqlx::query("SELECT model_id, number, name, digest, bytes FROM artifacts ORDER BY position");
    for row in query.fetch_all(pool).await.map_err(database)? {
        let (name, bytes) = (row.try_get(2).map_err(database)?, row.try_get::<i64, _>(4).map_err(database)?);
        let artifact = Digest::parse(row.try_get(3).map_err(database)?).map(|digest| Artifact {
            name,
            digest,
            bytes: u64::try_from(bytes).unwrap_or(0),
        });
        let key = (row.try_get(0).map_err(database)?, row.try_get(1).map_err(database)?);
        artifacts.entry(key).or_default().push(artifact);
    }
    Ok(artifacts)
}

fn version(
    row: &SqliteRow,
    model: &ModelName,
    files: Vec<Result<Artifact, Error>>,
    cap: &Limits,
    columns: &mut SharedColumns,
) -> Result<Version, Error> {
    let number = ModelVersion::new(row.try_get(1).map_err(database)?)?;
    let manifest: &str = row.try_get(2).map_err(database)?;
    let component = Digest::parse(row.try_get(3).map_err(database)?)?;
    let files = files.into_iter().collect::<Result<_, _>>()?;
    let parsed = Manifest::parse(manifest)?;
    let mut package = parsed.package(component, files, cap)?;
    if let Err(error) = package.check_artifacts() {
        tracing::warn!(%model, version = %number, error = %error.chain(), "this version will not load");
    }
    let signature: SignatureRow = rows::read("signature", row.try_get(4).map_err(database)?)?;
    let isolation = match row.try_get(5).map_err(database)? {
        "request" => Isolation::Request,
        _ => Isolation::Instance,
    };
    let isolation_note = row.try_get(6).map_err(database)?;
    let mut report = LoadReport { signature: signature.signature()?, isolation, isolation_note };
    share(columns, &mut package, &mut report);
    let (digest, card, platform) = (digest_of(&package, manifest), parsed.card(), parsed.platform());
    Ok(Version { model: model.clone(), number, digest, package, report, card, platform })
}
