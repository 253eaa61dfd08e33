//! The catalogue: models, versions, policies with their history, aliases. SQLite in WAL mode, one writer at a time.
//!
//! A change is written first and published second; whoever was told of it finds it after a crash. The published
//! [`Snapshot`] is built from the rows once, at start, and afterwards follows each change.

mod deployments;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::TryStreamExt;
use modelhost_core::artifact::{Artifact, Digest};
use modelhost_core::deployment::{Bounds, DeploymentName};
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::model::{ModelName, ModelVersion};
use modelhost_core::name;
use modelhost_core::routing::Policy;
use modelhost_core::version::{Isolation, Limits, LoadReport, Model, Package, Snapshot, Version};
use sha2::{Digest as _, Sha256};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{Connection, Row, Sqlite, Transaction};
use tokio::sync::Mutex;

use crate::columns::SharedColumns;
use crate::manifest::Manifest;
use crate::rows::{self, PolicyRow, SignatureRow};

/// The catalogue of one host.
pub struct Catalog {
    pool: SqlitePool,
    /// Held while a change is prepared and written, so that changes happen one after another.
    writer: Mutex<SharedColumns>,
    /// The latest published state.
    latest: RwLock<Arc<Snapshot>>,
}

/// A version that loaded and is to be kept.
pub struct Registration<'a> {
    /// Whose version.
    pub model: &'a ModelName,
    /// The text of `model.toml`.
    pub manifest: &'a str,
    /// What was loaded.
    pub package: Package,
    /// What loading it brought to light.
    pub report: LoadReport,
    /// Where it runs.
    pub deployment: DeploymentName,
}

/// One policy that a model had.
pub struct HistoryEntry {
    /// What was done, e.g. `promote 7`.
    pub action: String,
    /// The policy since then.
    pub policy: Policy,
    /// When, in milliseconds since 1970 (UTC).
    pub at_ms: i64,
    /// Whether it is in force now.
    pub current: bool,
}

impl Catalog {
    /// Opens the database, making it if need be, and reads what it holds; `cap` bounds every version's limits,
    /// `default` is what the default deployment has until somebody changes it. Errors: internal, naming the file.
    pub async fn open(path: &Path, cap: &Limits, default: &Bounds) -> Result<Self, Error> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .foreign_keys(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full);
        let pool =
            SqlitePoolOptions::new().max_connections(4).connect_with(options).await.map_err(database)?;
        sqlx::migrate!()
            .run(&pool)
            .await
            .map_err(|error| Error::internal(format!("catalogue {}: {error}", path.display())))?;
        let mut columns = SharedColumns::default();
        let snapshot = read_all(&pool, cap, default, &mut columns).await?;
        Ok(Self { pool, writer: Mutex::new(columns), latest: RwLock::new(Arc::new(snapshot)) })
    }

    /// What is registered now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.latest.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The blobs that versions refer to.
    pub fn blobs(&self) -> HashSet<Digest> {
        let snapshot = self.snapshot();
        let versions = snapshot.models.values().flat_map(|model| model.versions.values());
        versions
            .flat_map(|version| {
                let artifacts = version.package.artifacts.iter().map(|artifact| artifact.digest);
                artifacts.chain([version.package.component])
            })
            .collect()
    }

    /// Keeps a version under the model's next number, which is never used again. `publish` makes it callable.
    /// Errors: internal; nothing is registered then.
    pub async fn register(
        &self,
        registration: Registration<'_>,
        publish: impl FnOnce(Arc<Snapshot>),
    ) -> Result<Arc<Version>, Error> {
        let mut columns = self.writer.lock().await;
        let latest = self.snapshot();
        let Registration { model: name, manifest, package, report, deployment } = registration;
        deployments::find(&latest, &deployment)?;
        if package.response_cache && report.isolation != Isolation::Request {
            return Err(Error::invalid(
                "response_cache: only a version that runs in fresh instances (isolation = \"request\") answers equal requests equally",
            ));
        }
        let insert = async |tx: &mut Transaction<'_, Sqlite>| {
            let (model_id, number) = next_version(tx, name).await?;
            let version = version_of(name, number, manifest, package, report, &mut columns)?;
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

    /// Puts the policy that `change` makes of the current one in force and into the history. With `keep_back` a rollback
    /// returns to where it would have returned before. `prepare` runs first, with every version the policy names: what it
    /// refuses leaves everything as it was. Errors: not found; conflict; what `change` and `prepare` say; internal.
    pub async fn set_policy(
        &self,
        name: &ModelName,
        action: &str,
        keep_back: bool,
        change: impl FnOnce(&Model) -> Result<Policy, Error>,
        prepare: impl AsyncFnOnce(Vec<Arc<Version>>) -> Result<(), Error>,
        publish: impl FnOnce(Arc<Snapshot>),
    ) -> Result<Policy, Error> {
        let _writer = self.writer.lock().await;
        let latest = self.snapshot();
        let model = find(&latest, name)?;
        let policy = change(&model)?;
        prepare(versions_of(&model, &policy)?).await?;
        let insert = async |tx: &mut Transaction<'_, Sqlite>| {
            let (model_id, current, back) = policy_ids(tx, name).await?;
            let back = if keep_back { back } else { current };
            insert_policy(tx, model_id, action, &policy, back).await
        };
        self.write(insert).await?;
        self.replace(
            changed(&latest, name, |model| {
                let old = model.policy.replace(policy.clone());
                if !keep_back {
                    model.previous = old;
                }
            }),
            publish,
        );
        Ok(policy)
    }

    /// Returns to the policy before the one in force; repeated, further back. `prepare` and errors: as for [`Self::set_policy`];
    /// conflict when there is none.
    pub async fn rollback(
        &self,
        name: &ModelName,
        prepare: impl AsyncFnOnce(Vec<Arc<Version>>) -> Result<(), Error>,
        publish: impl FnOnce(Arc<Snapshot>),
    ) -> Result<Policy, Error> {
        let _writer = self.writer.lock().await;
        let latest = self.snapshot();
        let model = find(&latest, name)?;
        let nothing =
            || Error::new(ErrorCode::Conflict, format!("model {name} has no earlier policy to roll back to"));
        let policy = model.previous.clone().ok_or_else(nothing)?;
        prepare(versions_of(&model, &policy)?).await?;
        let insert = async |tx: &mut Transaction<'_, Sqlite>| {
            let (model_id, _, back) = policy_ids(tx, name).await?;
            let back = back.ok_or_else(nothing)?;
            let row = sqlx::query("SELECT back_id FROM policies WHERE id = ?")
                .bind(back)
                .fetch_one(&mut **tx)
                .await;
            let before = row.and_then(|row| row.try_get::<Option<i64>, _>(0)).map_err(database)?;
            insert_policy(tx, model_id, "rollback", &policy, before).await?;
            read_policy(&mut **tx, before).await
        };
        let previous = self.write(insert).await?;
        self.replace(
            changed(&latest, name, |model| {
                model.policy = Some(policy.clone());
                model.previous = previous;
            }),
            publish,
        );
        Ok(policy)
    }

    /// Points an alias at a version, or removes it. `prepare`: the version must load. Errors: not found; what `prepare` says; internal.
    pub async fn set_alias(
        &self,
        name: &ModelName,
        alias: &str,
        number: Option<ModelVersion>,
        prepare: impl AsyncFnOnce(Vec<Arc<Version>>) -> Result<(), Error>,
        publish: impl FnOnce(Arc<Snapshot>),
    ) -> Result<(), Error> {
        name::check_in_path("alias", alias, &WORDS_AFTER_A_MODEL)?;
        let _writer = self.writer.lock().await;
        let latest = self.snapshot();
        let model = find(&latest, name)?;
        let query = match number {
            Some(number) => {
                prepare(vec![find_version(&model, number)?]).await?;
                sqlx::query(
                    "INSERT INTO aliases (model_id, name, number) SELECT id, ?2, ?3 FROM models WHERE name = ?1
                     ON CONFLICT (model_id, name) DO UPDATE SET number = excluded.number",
                )
                .bind(name.as_str())
                .bind(alias)
                .bind(number.get())
            }
            None if !model.aliases.contains_key(alias) => {
                return Err(Error::not_found(format!("model {name} has no alias {alias:?}")));
            }
            None => sqlx::query(
                "DELETE FROM aliases WHERE name = ?2 AND model_id = (SELECT id FROM models WHERE name = ?1)",
            )
            .bind(name.as_str())
            .bind(alias),
        };
        query.execute(&self.pool).await.map_err(database)?;
        self.replace(
            changed(&latest, name, |model| {
                match number {
                    Some(number) => model.aliases.insert(alias.to_owned(), number),
                    None => model.aliases.remove(alias),
                };
            }),
            publish,
        );
        Ok(())
    }

    /// Every policy the model had, the latest first; at most `limit`. Errors: not found; internal.
    pub async fn history(&self, name: &ModelName, limit: u32) -> Result<Vec<HistoryEntry>, Error> {
        find(&self.snapshot(), name)?;
        let rows = sqlx::query(
            "SELECT p.action, p.policy, p.created_ms, p.id = m.policy_id FROM policies p
             JOIN models m ON m.id = p.model_id WHERE m.name = ? ORDER BY p.id DESC LIMIT ?",
        )
        .bind(name.as_str())
        .bind(limit)
        .fetch_all(&self.pool)
        .await
        .map_err(database)?;
        let entry = |row: &sqlx::sqlite::SqliteRow| -> Result<HistoryEntry, Error> {
            Ok(HistoryEntry {
                action: row.try_get(0).map_err(database)?,
                policy: parse_policy(row.try_get(1).map_err(database)?)?,
                at_ms: row.try_get(2).map_err(database)?,
                current: row.try_get(3).map_err(database)?,
            })
        };
        rows.iter().map(entry).collect()
    }

    /// Closes the database, so that its log is folded in.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    fn replace(&self, snapshot: Arc<Snapshot>, publish: impl FnOnce(Arc<Snapshot>)) {
        *self.latest.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&snapshot);
        publish(snapshot);
    }

    /// All of `change`, durably, or nothing. A connection that failed is closed: after a full disk, its transaction is
    /// in a state that SQLite and the driver do not agree on.
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

fn versions_of(model: &Model, policy: &Policy) -> Result<Vec<Arc<Version>>, Error> {
    policy.versions().into_iter().map(|number| find_version(model, number)).collect()
}

/// What stands where an alias may stand, in `/models/{prefix}/{name}/…`.
const WORDS_AFTER_A_MODEL: [&str; 6] = ["ping", "health", "version", "invocations", "docs", "openapi.json"];

fn changed(latest: &Arc<Snapshot>, name: &ModelName, change: impl FnOnce(&mut Model)) -> Arc<Snapshot> {
    let mut snapshot = Snapshot::clone(latest);
    let model = snapshot.models.entry(name.clone()).or_insert_with(|| Arc::new(Model::new(name.clone())));
    change(Arc::make_mut(model));
    Arc::new(snapshot)
}

/// Puts a version together; its digest covers everything that decides its answers and bounds.
fn version_of(
    model: &ModelName,
    number: ModelVersion,
    manifest: &str,
    mut package: Package,
    mut report: LoadReport,
    columns: &mut SharedColumns,
) -> Result<Version, Error> {
    columns.share(&mut package.columns);
    let specs = report.signature.inputs.iter_mut().chain(&mut report.signature.outputs);
    specs.for_each(|spec| columns.share(&mut spec.columns));
    let mut hash = Sha256::new();
    hash.update(package.component.to_string());
    for artifact in &package.artifacts {
        hash.update(format!("\n{} {}", artifact.digest, artifact.name));
    }
    hash.update(format!("\n\n{manifest}"));
    let parsed = Manifest::parse(manifest)?;
    let platform = format!("modelhost_{}", parsed.runtime.as_deref().unwrap_or("component"));
    Ok(Version {
        model: model.clone(),
        number,
        digest: Digest::from_bytes(hash.finalize().into()),
        package,
        report,
        card: parsed.card(),
        platform,
    })
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
        "INSERT INTO versions (model_id, number, digest, manifest, component, signature, isolation, isolation_note, created_ms)
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

/// The model, its policy in force, and where that one's rollback returns to.
async fn policy_ids(
    tx: &mut Transaction<'_, Sqlite>,
    name: &ModelName,
) -> Result<(i64, Option<i64>, Option<i64>), Error> {
    let row = sqlx::query(
        "SELECT m.id, m.policy_id, p.back_id FROM models m LEFT JOIN policies p ON p.id = m.policy_id WHERE m.name = ?",
    )
    .bind(name.as_str())
    .fetch_one(&mut **tx)
    .await
    .map_err(database)?;
    let column = |at: usize| row.try_get::<Option<i64>, _>(at).map_err(database);
    Ok((row.try_get(0).map_err(database)?, column(1)?, column(2)?))
}

async fn insert_policy(
    tx: &mut Transaction<'_, Sqlite>,
    model_id: i64,
    action: &str,
    policy: &Policy,
    back: Option<i64>,
) -> Result<(), Error> {
    let row = sqlx::query(
        "INSERT INTO policies (model_id, action, policy, back_id, created_ms) VALUES (?, ?, ?, ?, ?) RETURNING id",
    )
    .bind(model_id)
    .bind(action)
    .bind(rows::write("policy", &PolicyRow::from(policy))?)
    .bind(back)
    .bind(now_ms())
    .fetch_one(&mut **tx)
    .await
    .map_err(database)?;
    sqlx::query("UPDATE models SET policy_id = ? WHERE id = ?")
        .bind(row.try_get::<i64, _>(0).map_err(database)?)
        .bind(model_id)
        .execute(&mut **tx)
        .await
        .map_err(database)?;
    Ok(())
}

async fn read_policy(
    executor: impl sqlx::Executor<'_, Database = Sqlite>,
    id: Option<i64>,
) -> Result<Option<Policy>, Error> {
    let Some(id) = id else { return Ok(None) };
    let row = sqlx::query("SELECT policy FROM policies WHERE id = ?").bind(id).fetch_one(executor).await;
    let text: String = row.and_then(|row| row.try_get(0)).map_err(database)?;
    parse_policy(&text).map(Some)
}

fn parse_policy(text: &str) -> Result<Policy, Error> {
    rows::read::<PolicyRow>("policy", text)?.policy()
}

async fn read_all(
    pool: &SqlitePool,
    cap: &Limits,
    default: &Bounds,
    columns: &mut SharedColumns,
) -> Result<Snapshot, Error> {
    let mut models: HashMap<i64, Model> = HashMap::new();
    let rows = sqlx::query(
        "SELECT m.id, m.name, p.policy, b.policy FROM models m LEFT JOIN policies p ON p.id = m.policy_id
         LEFT JOIN policies b ON b.id = p.back_id",
    );
    for row in rows.fetch_all(pool).await.map_err(database)? {
        let name = ModelName::parse(row.try_get(1).map_err(database)?)?;
        let policy = |at| -> Result<_, Error> {
            let text: Option<&str> = row.try_get(at).map_err(database)?;
            text.map(parse_policy).transpose()
        };
        let model = Model { policy: policy(2)?, previous: policy(3)?, ..Model::new(name) };
        models.insert(row.try_get(0).map_err(database)?, model);
    }
    read_versions(pool, &mut models, cap, columns).await?;
    for row in
        sqlx::query("SELECT model_id, name, number FROM aliases").fetch_all(pool).await.map_err(database)?
    {
        if let Some(model) = models.get_mut(&row.try_get::<i64, _>(0).map_err(database)?) {
            let number = ModelVersion::new(row.try_get(2).map_err(database)?)?;
            model.aliases.insert(row.try_get(1).map_err(database)?, number);
        }
    }
    deployments::read_placements(pool, &mut models).await?;
    let by_name = models.into_values().map(|model| (model.name.clone(), Arc::new(model)));
    Ok(Snapshot { models: by_name.collect(), deployments: deployments::read(pool, default).await? })
}

async fn read_versions(
    pool: &SqlitePool,
    models: &mut HashMap<i64, Model>,
    cap: &Limits,
    columns: &mut SharedColumns,
) -> Result<(), Error> {
    let mut artifacts: HashMap<(i64, u32), Vec<Artifact>> = HashMap::new();
    let query = sqlx::query("SELECT model_id, number, name, digest, bytes FROM artifacts ORDER BY position");
    for row in query.fetch_all(pool).await.map_err(database)? {
        let artifact = Artifact {
            name: row.try_get(2).map_err(database)?,
            digest: Digest::parse(row.try_get(3).map_err(database)?)?,
            bytes: u64::try_from(row.try_get::<i64, _>(4).map_err(database)?).unwrap_or(0),
        };
        let key = (row.try_get(0).map_err(database)?, row.try_get(1).map_err(database)?);
        artifacts.entry(key).or_default().push(artifact);
    }
    let query = sqlx::query(
        "SELECT model_id, number, manifest, component, signature, isolation, isolation_note FROM versions",
    );
    let mut rows = query.fetch(pool); // one at a time: all manifests together are large
    while let Some(row) = rows.try_next().await.map_err(database)? {
        let (model_id, number): (i64, u32) =
            (row.try_get(0).map_err(database)?, row.try_get(1).map_err(database)?);
        let Some(model) = models.get_mut(&model_id) else { continue };
        let manifest: &str = row.try_get(2).map_err(database)?;
        let component = Digest::parse(row.try_get(3).map_err(database)?)?;
        let files = artifacts.remove(&(model_id, number)).unwrap_or_default();
        let package = Manifest::parse(manifest)?.package(component, files, cap)?;
        let signature: SignatureRow = rows::read("signature", row.try_get(4).map_err(database)?)?;
        let isolation = match row.try_get(5).map_err(database)? {
            "request" => Isolation::Request,
            _ => Isolation::Instance,
        };
        let isolation_note = row.try_get(6).map_err(database)?;
        let report = LoadReport { signature: signature.signature()?, isolation, isolation_note };
        let number = ModelVersion::new(number)?;
        let version = version_of(&model.name, number, manifest, package, report, columns)?;
        model.versions.insert(number, Arc::new(version));
    }
    Ok(())
}

fn now_ms() -> i64 {
    #[expect(clippy::disallowed_methods, reason = "a record's date, which decides nothing")]
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

fn database(error: sqlx::Error) -> Error {
    let full = error.as_database_error().and_then(|error| error.code()).is_some_and(|code| code == "13");
    let code = if full { ErrorCode::ResourceExhausted } else { ErrorCode::Internal };
    Error::new(code, format!("catalogue: {error}"))
}

#[cfg(test)]
mod tests;
