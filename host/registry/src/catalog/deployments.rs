//! Deployments, and the versions that run in them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use modelhost_core::deployment::{Bounds, DeploymentName};
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::model::{ModelName, ModelVersion};
use modelhost_core::version::{Model, Snapshot};
use sqlx::sqlite::{SqlitePool, SqliteRow};
use sqlx::{Row, Sqlite, Transaction};

use super::policies::policy_ids;
use super::{Catalog, changed, database, find_version, now_ms};
use crate::rows::{self, BoundsRow};

impl Catalog {
    /// Moves one version of a model, or all of them, to a deployment. Errors: not found; invalid argument, if the
    /// deployment does not allow a version's capabilities; internal.
    pub async fn place(
        &self,
        name: &ModelName,
        number: Option<ModelVersion>,
        deployment: &DeploymentName,
        publish: impl FnOnce(Arc<Snapshot>),
    ) -> Result<(), Error> {
        let _writer = self.writer.lock().await;
        let latest = self.snapshot();
        let bounds = find(&latest, deployment)?;
        let model = super::find(&latest, name)?;
        let numbers = match number {
            Some(number) => vec![find_version(&model, number)?.number],
            None => model.versions.keys().copied().collect(),
        };
        for version in numbers.iter().filter_map(|number| model.versions.get(number)) {
            bounds.allow(deployment, &version.package.capabilities)?;
        }
        let insert = async |tx: &mut Transaction<'_, Sqlite>| {
            let (model_id, _, _) = policy_ids(tx, name).await?;
            for number in &numbers {
                insert_placement(tx, model_id, *number, deployment).await?;
            }
            Ok(())
        };
        self.write(insert).await?;
        let placed = changed(&latest, name, |model| {
            numbers.iter().for_each(|number| place(model, *number, deployment));
        });
        self.replace(placed, publish);
        Ok(())
    }

    /// Makes deployments, or changes the bounds of existing ones. Errors: internal.
    pub async fn set_deployments(
        &self,
        deployments: BTreeMap<DeploymentName, Bounds>,
        publish: impl FnOnce(Arc<Snapshot>),
    ) -> Result<(), Error> {
        let _writer = self.writer.lock().await;
        self.write_deployments(deployments, publish).await
    }

    /// Changes the bounds of a deployment with `change`, which gets the current ones if it exists. Errors: those of
    /// `change`; internal.
    pub async fn change_deployment(
        &self,
        name: &DeploymentName,
        change: impl FnOnce(Option<&Bounds>) -> Result<Bounds, Error>,
        publish: impl FnOnce(Arc<Snapshot>),
    ) -> Result<(), Error> {
        let _writer = self.writer.lock().await;
        let bounds = change(self.snapshot().deployments.get(name))?;
        self.write_deployments([(name.clone(), bounds)].into(), publish).await
    }

    /// The caller holds the writer.
    async fn write_deployments(
        &self,
        deployments: BTreeMap<DeploymentName, Bounds>,
        publish: impl FnOnce(Arc<Snapshot>),
    ) -> Result<(), Error> {
        let insert = async |tx: &mut Transaction<'_, Sqlite>| {
            for (name, bounds) in &deployments {
                sqlx::query(
                    "INSERT INTO deployments (name, bounds, created_ms) VALUES (?, ?, ?)
                     ON CONFLICT (name) DO UPDATE SET bounds = excluded.bounds",
                )
                .bind(name.as_str())
                .bind(rows::write("bounds", &BoundsRow::from(bounds))?)
                .bind(now_ms())
                .execute(&mut **tx)
                .await
                .map_err(database)?;
            }
            Ok(())
        };
        self.write(insert).await?;
        let mut snapshot = Snapshot::clone(&self.snapshot());
        snapshot.deployments.extend(deployments);
        self.replace(Arc::new(snapshot), publish);
        Ok(())
    }

    /// Removes an empty deployment. Errors: not found; conflict, if versions run in it or it is the default one;
    /// internal.
    pub async fn delete_deployment(
        &self,
        name: &DeploymentName,
        publish: impl FnOnce(Arc<Snapshot>),
    ) -> Result<(), Error> {
        let _writer = self.writer.lock().await;
        let mut snapshot = Snapshot::clone(&self.snapshot());
        find(&snapshot, name)?;
        let conflict = |text: String| Err(Error::new(ErrorCode::Conflict, text));
        if *name == DeploymentName::default() {
            return conflict(format!(
                "deployment {name} cannot be deleted: versions run in it unless placed elsewhere"
            ));
        }
        let placed = snapshot.models.values().flat_map(|model| {
            let here = model.placed.iter().filter(|(_, deployment)| *deployment == name);
            here.map(|(number, _)| format!("{} version {number}", model.name))
        });
        let mut placed: Vec<_> = placed.collect();
        placed.sort_unstable();
        if let Some(first) = placed.first() {
            let count = placed.len();
            return conflict(format!(
                "deployment {name} holds {count} versions ({first}, …): place them elsewhere first"
            ));
        }
        let remove = async |tx: &mut Transaction<'_, Sqlite>| {
            let remove = sqlx::query("DELETE FROM deployments WHERE name = ?").bind(name.as_str());
            remove.execute(&mut **tx).await.map(drop).map_err(database)
        };
        self.write(remove).await?;
        snapshot.deployments.remove(name);
        self.replace(Arc::new(snapshot), publish);
        Ok(())
    }
}

pub(super) fn find<'a>(snapshot: &'a Snapshot, name: &DeploymentName) -> Result<&'a Bounds, Error> {
    let found = snapshot.deployments.get(name);
    found.ok_or_else(|| Error::not_found(format!("deployment {name} does not exist")))
}

pub(super) fn place(model: &mut Model, number: ModelVersion, deployment: &DeploymentName) {
    if *deployment == DeploymentName::default() {
        model.placed.remove(&number);
    } else {
        model.placed.insert(number, deployment.clone());
    }
}

/// A version without a row runs in the default deployment.
pub(super) async fn insert_placement(
    tx: &mut Transaction<'_, Sqlite>,
    model_id: i64,
    number: ModelVersion,
    deployment: &DeploymentName,
) -> Result<(), Error> {
    sqlx::query("DELETE FROM placements WHERE model_id = ? AND number = ?")
        .bind(model_id)
        .bind(number.get())
        .execute(&mut **tx)
        .await
        .map_err(database)?;
    if *deployment != DeploymentName::default() {
        sqlx::query("INSERT INTO placements (model_id, number, deployment) VALUES (?, ?, ?)")
            .bind(model_id)
            .bind(number.get())
            .bind(deployment.as_str())
            .execute(&mut **tx)
            .await
            .map_err(database)?;
    }
    Ok(())
}

pub(super) async fn read(
    pool: &SqlitePool,
    default: &Bounds,
) -> Result<BTreeMap<DeploymentName, Bounds>, Error> {
    let mut deployments = BTreeMap::from([(DeploymentName::default(), default.clone())]);
    let rows = sqlx::query("SELECT name, bounds FROM deployments").fetch_all(pool).await.map_err(database)?;
    for row in rows {
        match deployment(&row) {
            Ok((name, bounds)) => drop(deployments.insert(name, bounds)),
            Err(error) => {
                let name: &str = row.try_get(0).map_err(database)?;
                let error = error.chain();
                tracing::error!(deployment = name, %error, "not readable: its versions run in the default one");
            }
        }
    }
    Ok(deployments)
}

fn deployment(row: &SqliteRow) -> Result<(DeploymentName, Bounds), Error> {
    let bounds = rows::read::<BoundsRow>("bounds", row.try_get(1).map_err(database)?)?.bounds()?;
    Ok((DeploymentName::parse(row.try_get(0).map_err(database)?)?, bounds))
}

pub(super) async fn read_placements(
    pool: &SqlitePool,
    models: &mut HashMap<i64, Model>,
) -> Result<(), Error> {
    let rows = sqlx::query("SELECT model_id, number, deployment FROM placements");
    for row in rows.fetch_all(pool).await.map_err(database)? {
        if let Some(model) = models.get_mut(&row.try_get::<i64, _>(0).map_err(database)?) {
            let Ok(number) = ModelVersion::new(row.try_get(1).map_err(database)?) else { continue };
            match DeploymentName::parse(row.try_get(2).map_err(database)?) {
                Ok(name) => place(model, number, &name),
                Err(error) => {
                    let (model, error) = (&model.name, error.chain());
                    tracing::error!(%model, version = %number, %error, "it runs in the default deployment")
                }
            }
        }
    }
    Ok(())
}
