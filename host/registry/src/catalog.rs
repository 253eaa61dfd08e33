//! The catalogue: models, versions, policies with their history, aliases. SQLite in WAL mode, with one writer at a
//! time.
//!
//! A change is written first and published second, so that an acknowledged change survives a crash. The published
//! [`Snapshot`] is built from the rows once, at start. After that it follows each change. The writer is never held
//! while guest code runs.

mod deployments;
mod policies;
mod read;

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use modelhost_core::artifact::Digest;
use modelhost_core::deployment::{Bounds, DeploymentName};
use modelhost_core::error::Error;
use modelhost_core::model::{ModelName, ModelVersion};
use modelhost_core::version::{Card, Isolation, Limits, LoadReport, Model, Package, Snapshot, Version};
use sha2::{Digest as _, Sha256};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{Connection, Row, Sqlite, Transaction};
use tokio::sync::Mutex;

use crate::columns::SharedColumns;
use crate::disk_full;
use crate::rows::{self, SignatureRow};

pub use policies::{Back, Change, HistoryEntry};

/// The catalogue of one host.
pub struct Catalog {
    pool: SqlitePool,
    /// Held while a change is written and published, so that changes happen one after another.
    writer: Mutex<SharedColumns>,
    /// The latest published state.
    latest: RwLock<Arc<Snapshot>>,
}

/// A loaded version, to be registered.
pub struct Registration<'a> {
    /// The version's model.
    pub model: &'a ModelName,
    /// The text of `model.toml`.
    pub manifest: &'a str,
    /// The loaded package.
    pub package: Package,
    /// The report of its load.
    pub report: LoadReport,
    /// The manifest's information for people.
    pub card: Card,
    /// `<project>_<format>`.
    pub platform: String,
    /// The version's deployment.
    pub deployment: DeploymentName,
}

impl Catalog {
    /// Opens the database or makes it, and reads its content. `cap` bounds the limits of every version. `default` are
    /// the bounds of the default deployment until an operator changes them. Errors: internal.
    pub async fn open(path: &Path, cap: &Limits, default: &Bounds) -> Result<Self, Error> {
        let unopened = |error: &dyn std::fmt::Display| {
            Error::internal("the catalogue cannot be opened").because(format!("{}: {error}", path.display()))
        };
        // SQLite would make the file as readable as the umask allows. The files that it makes beside this one copy
        // this mode.
        let file = File::options().create(true).append(true).mode(0o600).open(path);
        drop(file.map_err(|error| unopened(&error))?);
        let options = SqliteConnectOptions::new()
            .filename(path)
            .foreign_keys(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full);
        let pool = SqlitePoolOptions::new().max_connections(4).connect_with(options).await;
        let pool = pool.map_err(|error| unopened(&error))?;
        sqlx::migrate!().run(&pool).await.map_err(|error| unopened(&error))?;
        let mut columns = SharedColumns::default();
        forget_unused(&pool).await?;
        let snapshot = read::all(&pool, cap, default, &mut columns).await?;
        Ok(Self { pool, writer: Mutex::new(columns), latest: RwLock::new(Arc::new(snapshot)) })
    }

    /// The current state.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.latest.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The blobs that versions refer to. Errors: internal.
    pub async fn blobs(&self) -> Result<HashSet<Digest>, Error> {
        read::blobs(&self.pool).await
    }

    /// Records that a prefix uploaded this content. Registrations of the prefix may name it from now on. Errors:
    /// internal.
    pub async fn possess(&self, prefix: &str, digest: Digest) -> Result<(), Error> {
        let _writer = self.writer.lock().await;
        self.write(async |tx: &mut Transaction<'_, Sqlite>| {
            sqlx::query("INSERT OR IGNORE INTO possessions (prefix, digest, created_ms) VALUES (?, ?, ?)")
                .bind(prefix)
                .bind(digest.to_string())
                .bind(now_ms())
                .execute(&mut **tx)
                .await
                .map(drop)
                .map_err(database)
        })
        .await
    }

    /// Whether a prefix uploaded this content. Errors: internal.
    pub async fn possesses(&self, prefix: &str, digest: Digest) -> Result<bool, Error> {
        let row = sqlx::query("SELECT EXISTS (SELECT 1 FROM possessions WHERE prefix = ? AND digest = ?)")
            .bind(prefix)
            .bind(digest.to_string())
            .fetch_one(&self.pool)
            .await;
        row.and_then(|row| row.try_get(0)).map_err(database)
    }

    /// Registers a version under the model's next number, which is never used again. `publish` makes it callable. If
    /// this fails, nothing is registered. Errors: not found; invalid argument; internal.
    pub async fn register(
        &self,
        registration: Registration<'_>,
        publish: impl FnOnce(Arc<Snapshot>),
    ) -> Result<Arc<Version>, Error> {
        let Registration { model: name, manifest, mut package, mut report, card, platform, deployment } =
            registration;
        let digest = digest_of(&package, manifest);
        let mut columns = self.writer.lock().await;
        let latest = self.snapshot();
        deployments::find(&latest, &deployment)?.allow(&deployment, &package.capabilities)?;
        if package.response_cache && report.isolation != Isolation::Request {
            return Err(Error::invalid(
                "response_cache: only a version that runs in fresh instances (isolation = \"request\") gives \
                 equal answers to equal requests",
            ));
        }
        share(&mut columns, &mut package, &mut report);
        let insert = async |tx: &mut Transaction<'_, Sqlite>| {
            let (model_id, number) = next_version(tx, name).await?;
            let version = Version { model: name.clone(), number, digest, package, report, card, platform };
            insert_version(tx, model_id, &version, manifest).await?;
            deployments::insert_placement(tx, model_id, number, &deployment).await?;
            Ok(Arc::new(version))
        };
        let version = self.write(insert).await?;
        let number = version.number;
        self.replace(
            changed(&latest, name, |model| {
                model.versions.insert(number, Arc::clone(&version));
                deployments::place(model, number, &deployment);
            }),
            publish,
        );
        Ok(version)
    }

    /// Closes the database, which writes its log into it.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    fn replace(&self, snapshot: Arc<Snapshot>, publish: impl FnOnce(Arc<Snapshot>)) {
        *self.latest.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&snapshot);
        publish(snapshot);
    }

    /// Writes all of `change` durably, or nothing. A connection that failed is closed, because after a full disk
    /// SQLite and its driver disagree on the state of the transaction.
    async fn write<T>(
        &self,
        change: impl AsyncFnOnce(&mut Transaction<'_, Sqlite>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut connection = self.pool.acquire().await.map_err(database)?;
        let result = async {
            let mut tx = connection.begin_with("BEGIN IMMEDIATE").await.map_err(database)?;
            let value = change(&mut tx).await?;
            tx.commit().await.map_err(database)?;
            Ok(value)
        }
        .await;
        if result.is_err() {
            connection.close_on_drop();
        }
        result
    }
}

fn find(snapshot: &Snapshot, name: &ModelName) -> Result<Arc<Model>, Error> {
    snapshot
        .models
        .get(name)
        .cloned()
        .ok_or_else(|| Error::not_found(format!("model {name} is not registered")))
}

fn find_version(model: &Model, number: ModelVersion) -> Result<Arc<Version>, Error> {
    let found = model.versions.get(&number).cloned();
    found.ok_or_else(|| Error::not_found(format!("model {} has no version {number}", model.name)))
}

fn changed(latest: &Arc<Snapshot>, name: &ModelName, change: impl FnOnce(&mut Model)) -> Arc<Snapshot> {
    let mut snapshot = Snapshot::clone(latest);
    let model = snapshot.models.entry(name.clone()).or_insert_with(|| Arc::new(Model::new(name.clone())));
    change(Arc::make_mut(model));
    Arc::new(snapshot)
}

/// The digest covers everything that decides a version's answers and bounds.
fn digest_of(package: &Package, manifest: &str) -> Digest {
    let mut hash = Sha256::new();
    hash.update(package.component.to_string());
    for artifact in &package.artifacts {
        hash.update(format!("\n{} {}", artifact.digest, artifact.name));
    }
    hash.update(format!("\n\n{manifest}"));
    Digest::from_bytes(hash.finalize().into())
}

/// The versions of a model usually have the same columns. Equal lists are kept once.
fn share(columns: &mut SharedColumns, package: &mut Package, report: &mut LoadReport) {
    columns.share(&mut package.columns);
    let specs = report.signature.inputs.iter_mut().chain(&mut report.signature.outputs);
    specs.for_each(|spec| columns.share(&mut spec.columns));
}

async fn next_version(
    tx: &mut Transaction<'_, Sqlite>,
    name: &ModelName,
) -> Result<(i64, ModelVersion), Error> {
    let row = sqlx::query(
        "INSERT INTO models (name, created_ms, next_version) VALUES (?, ?, 2)
         ON CONFLICT (name) DO UPDATE SET next_version = next_version + 1 RETURNING id, next_version - 1",
    )
    .bind(name.as_str())
    .bind(now_ms())
    .fetch_one(&mut **tx)
    .await
    .map_err(database)?;
    let number: u32 = row.try_get(1).map_err(database)?;
    Ok((row.try_get(0).map_err(database)?, ModelVersion::new(number)?))
}

async fn insert_version(
    tx: &mut Transaction<'_, Sqlite>,
    model_id: i64,
    version: &Version,
    manifest: &str,
) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO versions
         (model_id, number, digest, manifest, component, signature, isolation, isolation_note, created_ms)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(model_id)
    .bind(version.number.get())
    .bind(version.digest.to_string())
    .bind(manifest)
    .bind(version.package.component.to_string())
    .bind(rows::write("signature", &SignatureRow::from(&version.report.signature))?)
    .bind(version.report.isolation.as_str())
    .bind(&version.report.isolation_note)
    .bind(now_ms())
    .execute(&mut **tx)
    .await
    .map_err(database)?;
    for (position, artifact) in (0_i64..).zip(&version.package.artifacts) {
        sqlx::query("INSERT INTO artifacts (model_id, number, position, name, digest, bytes) VALUES (?, ?, ?, ?, ?, ?)")
            .bind(model_id)
            .bind(version.number.get())
            .bind(position)
            .bind(&artifact.name)
            .bind(artifact.digest.to_string())
            .bind(i64::try_from(artifact.bytes).unwrap_or(i64::MAX))
            .execute(&mut **tx)
            .await
            .map_err(database)?;
    }
    Ok(())
}

/// Unused content is removed at start, so no prefix has it any more.
async fn forget_unused(pool: &SqlitePool) -> Result<(), Error> {
    sqlx::query(
        "DELETE FROM possessions
         WHERE digest NOT IN (SELECT component FROM versions UNION SELECT digest FROM artifacts)",
    )
    .execute(pool)
    .await
    .map(drop)
    .map_err(database)
}

fn now_ms() -> i64 {
    #[expect(clippy::disallowed_methods, reason = "a record's date, which decides nothing")]
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

/// SQLite's own words are for the log.
fn database(error: sqlx::Error) -> Error {
    let full = error.as_database_error().and_then(|error| error.code()).is_some_and(|code| code == "13");
    let told = if full { disk_full() } else { Error::internal("the catalogue cannot be read or written") };
    told.because(error)
}

#[cfg(test)]
mod tests;
