//! Policies with their history, and aliases.
//!
//! A change is planned on the current state. Then its versions are loaded, which runs guest code and holds up no
//! other change. At last it is written, but only if the current state is still the one that it was planned on.
//! Otherwise it is refused, because it was decided on an outdated state.

use std::sync::Arc;

use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::model::{ModelName, ModelVersion};
use modelhost_core::name::check_in_path;
use modelhost_core::routing::Policy;
use modelhost_core::version::{Model, Snapshot, Version};
use sqlx::{Row, Sqlite, Transaction};

use super::{Catalog, changed, database, find, find_version, now_ms};
use crate::rows::{self, PolicyRow};

/// A new policy.
pub struct Change {
    /// The action for the history, e.g. `promote 7`.
    pub action: String,
    /// The policy.
    pub policy: Policy,
    /// Where a rollback of this change leads.
    pub back: Back,
}

/// Where a rollback leads.
#[derive(Debug, Clone, Copy)]
pub enum Back {
    /// To the policy before this change.
    ToThePolicyBefore,
    /// To where it led before this change.
    AsBefore,
    /// One step further back. This change is a rollback itself.
    Further,
}

/// A policy in a model's history.
pub struct HistoryEntry {
    /// The action, e.g. `promote 7`.
    pub action: String,
    /// The policy since then.
    pub policy: Policy,
    /// The time, in milliseconds since 1970 (UTC).
    pub at_ms: i64,
    /// Whether it is in force now.
    pub current: bool,
}

impl Catalog {
    /// Puts a new policy in force and into the history. `plan` makes it from the current one. `prepare` then gets
    /// every version that it names. If `prepare` fails, nothing changes. Other changes go on while it runs. Errors:
    /// not found; those of `plan` and `prepare`; conflict, naming the change that was made meanwhile; internal.
    pub async fn set_policy(
        &self,
        name: &ModelName,
        plan: impl FnOnce(&Model) -> Result<Change, Error>,
        prepare: impl AsyncFnOnce(Vec<Arc<Version>>) -> Result<(), Error>,
        publish: impl FnOnce(Arc<Snapshot>),
    ) -> Result<Policy, Error> {
        let before = find(&self.snapshot(), name)?;
        let Change { action, policy, back } = plan(&before)?;
        prepare(versions_of(&before, &policy)?).await?;
        let _writer = self.writer.lock().await;
        let latest = self.snapshot();
        let now = find(&latest, name)?;
        if (&now.policy, &now.previous) != (&before.policy, &before.previous) {
            return Err(self.changed_meanwhile(name).await);
        }
        let insert = async |tx: &mut Transaction<'_, Sqlite>| {
            let (model_id, current, current_back) = policy_ids(tx, name).await?;
            let back = match back {
                Back::ToThePolicyBefore => current,
                Back::AsBefore => current_back,
                Back::Further => back_of(tx, current_back).await?,
            };
            insert_policy(tx, model_id, &action, &policy, back).await?;
            read_policy(tx, back).await
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

    async fn changed_meanwhile(&self, name: &ModelName) -> Error {
        let row = sqlx::query(
            "SELECT p.action FROM policies p JOIN models m ON m.policy_id = p.id WHERE m.name = ?",
        )
        .bind(name.as_str())
        .fetch_one(&self.pool)
        .await;
        match row.and_then(|row| row.try_get::<String, _>(0)) {
            Ok(action) => Error::new(
                ErrorCode::Conflict,
                format!(
                    "model {name}: its policy was changed meanwhile by \"{action}\"; ask again if you still want to"
                ),
            ),
            Err(error) => database(error),
        }
    }

    /// Points an alias at a version, or removes the alias. `prepare` gets the version first. Errors: not found; those
    /// of `prepare`; conflict, if the alias was changed meanwhile; internal.
    pub async fn set_alias(
        &self,
        name: &ModelName,
        alias: &str,
        number: Option<ModelVersion>,
        prepare: impl AsyncFnOnce(Vec<Arc<Version>>) -> Result<(), Error>,
        publish: impl FnOnce(Arc<Snapshot>),
    ) -> Result<(), Error> {
        check_in_path("alias", alias, &WORDS_AFTER_A_MODEL)?;
        let before = find(&self.snapshot(), name)?;
        if let Some(number) = number {
            prepare(vec![find_version(&before, number)?]).await?;
        }
        let _writer = self.writer.lock().await;
        let latest = self.snapshot();
        let model = find(&latest, name)?;
        if model.aliases.get(alias) != before.aliases.get(alias) {
            let now = model.aliases.get(alias).map_or("removed".to_owned(), |now| format!("set to {now}"));
            let text =
                format!("model {name}: alias {alias:?} was {now} meanwhile; ask again if you still want to");
            return Err(Error::new(ErrorCode::Conflict, text));
        }
        let query = match number {
            Some(number) => sqlx::query(
                "INSERT INTO aliases (model_id, name, number) SELECT id, ?2, ?3 FROM models WHERE name = ?1
                 ON CONFLICT (model_id, name) DO UPDATE SET number = excluded.number",
            )
            .bind(name.as_str())
            .bind(alias)
            .bind(number.get()),
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

    /// The policies that a model had, the latest first, at most `limit`. Errors: not found; internal.
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
}

fn versions_of(model: &Model, policy: &Policy) -> Result<Vec<Arc<Version>>, Error> {
    policy.versions().into_iter().map(|number| find_version(model, number)).collect()
}

/// Words that take the place of an alias in `/models/{prefix}/{name}/…`.
const WORDS_AFTER_A_MODEL: [&str; 6] = ["ping", "health", "version", "invocations", "docs", "openapi.json"];

/// The ids of the model, of its current policy, and of the policy that a rollback restores.
pub(super) async fn policy_ids(
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

/// The policy that a rollback of this one restores.
async fn back_of(tx: &mut Transaction<'_, Sqlite>, id: Option<i64>) -> Result<Option<i64>, Error> {
    let row = sqlx::query("SELECT back_id FROM policies WHERE id = ?").bind(id).fetch_one(&mut **tx).await;
    row.and_then(|row| row.try_get(0)).map_err(database)
}

async fn read_policy(tx: &mut Transaction<'_, Sqlite>, id: Option<i64>) -> Result<Option<Policy>, Error> {
    let Some(id) = id else { return Ok(None) };
    let row = sqlx::query("SELECT policy FROM policies WHERE id = ?").bind(id).fetch_one(&mut **tx).await;
    let text: String = row.and_then(|row| row.try_get(0)).map_err(database)?;
    parse_policy(&text).map(Some)
}

pub(super) fn parse_policy(text: &str) -> Result<Policy, Error> {
    rows::read::<PolicyRow>("policy", text)?.policy()
}
