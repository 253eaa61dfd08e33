//! Deployments: what operators see and change of them, free of HTTP.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use modelhost_core::deployment::{Bounds, DeploymentName};
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::event::{DeploymentStatus, VersionUsage};
use modelhost_core::graph::GraphStatus;
use modelhost_core::model::{ModelName, ModelVersion};
use modelhost_core::version::Isolation;

use crate::resources::{Admin, policy_wire};
use crate::wire;

impl wire::BoundsChange {
    /// These bounds with what is given here changed. Errors: invalid argument, naming what cannot be.
    pub fn apply(&self, old: Bounds) -> Result<Bounds, Error> {
        let bytes = |mib: u64| mib.saturating_mul(1 << 20);
        Ok(Bounds {
            instances: self.instances.unwrap_or(old.instances),
            queue: self.queue.unwrap_or(old.queue),
            memory_bytes: self.memory_mib.map_or(old.memory_bytes, bytes),
            loaded_bytes: self.loaded_mib.map_or(old.loaded_bytes, bytes),
            threads: match self.threads {
                None => old.threads,
                Some(0) => None,
                threads => threads,
            },
            isolation: match self.isolation.as_deref() {
                None => old.isolation,
                Some("auto") => None,
                Some(word) => Some(Isolation::parse(word)?),
            },
            capabilities: self.capabilities.clone().unwrap_or(old.capabilities),
        })
    }
}

impl Admin {
    /// Every deployment, by name.
    pub fn deployments(&self) -> Vec<wire::DeploymentRow> {
        self.lifecycle.deployments().into_iter().map(row).collect()
    }

    /// One deployment. Errors: not found; internal.
    pub async fn deployment(&self, name: &DeploymentName) -> Result<wire::DeploymentRow, Error> {
        self.status(name).await.map(row)
    }

    /// Makes a deployment. Errors: invalid argument (name, bounds); conflict when there is one of that name; internal.
    pub async fn create_deployment(
        &self,
        name: &DeploymentName,
        bounds: &wire::BoundsChange,
    ) -> Result<wire::DeploymentRow, Error> {
        let new = |there: Option<&Bounds>| match there {
            Some(_) => Err(Error::new(ErrorCode::Conflict, format!("deployment {name} exists already"))),
            None => bounds.apply(Bounds::on_host(self.host_instances)),
        };
        self.set_bounds(name, new).await
    }

    /// Changes bounds; what runs, waits and is loaded stays, as far as it fits. Errors: not found; invalid argument;
    /// internal.
    pub async fn update_deployment(
        &self,
        name: &DeploymentName,
        change: &wire::BoundsChange,
    ) -> Result<wire::DeploymentRow, Error> {
        let changed = |now: Option<&Bounds>| change.apply(now.ok_or_else(|| no_deployment(name))?.clone());
        self.set_bounds(name, changed).await
    }

    async fn set_bounds(
        &self,
        name: &DeploymentName,
        change: impl FnOnce(Option<&Bounds>) -> Result<Bounds, Error>,
    ) -> Result<wire::DeploymentRow, Error> {
        let checked = |now: Option<&Bounds>| {
            let bounds = change(now)?;
            bounds.check(self.host_instances)?;
            Ok(bounds)
        };
        self.catalog.change_deployment(name, checked, |snapshot| self.lifecycle.publish(snapshot)).await?;
        tracing::info!(deployment = %name, "bounds set");
        self.deployment(name).await
    }

    /// Says what tearing a deployment down means, and does it unless it is a dry run: what waits is refused, what runs
    /// finishes, versions are unloaded, and those that policies pin are loaded again. Errors: not found; what loading
    /// says.
    pub async fn recreate_deployment(
        &self,
        name: &DeploymentName,
        dry_run: bool,
    ) -> Result<wire::Recreation, Error> {
        let status = self.status(name).await?;
        let (lifecycle, own) = (Arc::clone(&self.lifecycle), name.clone());
        let loaded = move || {
            let usage = lifecycle.usage().into_iter().filter(|usage| usage.deployment == own);
            Ok(usage.filter(|usage| usage.loaded_bytes.is_some()).collect::<Vec<_>>())
        };
        let loaded = self.intake.work(loaded).await?;
        let recreation = wire::Recreation {
            name: name.to_string(),
            done: !dry_run,
            refused: status.waiting,
            finishing: status.running,
            unloaded: loaded.iter().map(|usage| self.unloaded(usage)).collect(),
        };
        if dry_run {
            return Ok(recreation);
        }
        self.lifecycle.recreate(name)?;
        tracing::info!(deployment = %name, "recreated");
        for usage in loaded {
            let model = self.model(&usage.version.model)?;
            let number = usage.version.number;
            let named = model.policy.as_ref().filter(|policy| policy.is_pinned());
            if named.is_some_and(|policy| policy.versions().contains(&number)) {
                self.lifecycle.ready(&usage.version).await?;
            }
        }
        Ok(recreation)
    }

    #[expect(clippy::cast_precision_loss, reason = "an average for people")]
    fn unloaded(&self, usage: &VersionUsage) -> wire::UnloadedVersion {
        let (model, number) = (&usage.version.model, usage.version.number);
        let policy = self.model(model).ok().and_then(|model| model.policy.as_ref().map(policy_wire));
        let share =
            policy.and_then(|policy| policy.shares.into_iter().find(|share| share.version == number.get()));
        wire::UnloadedVersion {
            model: model.to_string(),
            version: number.get(),
            percent: share.map_or(0.0, |share| share.percent),
            load_ms: usage.loads.nanos as f64 / 1e6 / usage.loads.count.max(1) as f64,
        }
    }

    /// Removes an empty deployment. Errors: not found; conflict when versions run in it; internal.
    pub async fn delete_deployment(&self, name: &DeploymentName) -> Result<(), Error> {
        self.catalog.delete_deployment(name, |snapshot| self.lifecycle.publish(snapshot)).await?;
        tracing::info!(deployment = %name, "deleted");
        Ok(())
    }

    /// Moves versions to a deployment: one, or all of the model. Errors: not found; invalid argument when the
    /// deployment does not allow what a version was granted; internal.
    pub async fn place(
        &self,
        name: &ModelName,
        placement: &wire::Placement,
    ) -> Result<wire::ModelDetail, Error> {
        let deployment = DeploymentName::parse(&placement.deployment)?;
        let number = placement.version.map(ModelVersion::new).transpose()?;
        let publish = |snapshot| self.lifecycle.publish(snapshot);
        self.catalog.place(name, number, &deployment, publish).await?;
        tracing::info!(model = %name, %deployment, "placed");
        self.show(name)
    }

    /// What versions took that were used since the host started or are in memory.
    pub fn usage(&self) -> Vec<wire::UsageRow> {
        self.lifecycle.usage().into_iter().map(usage_row).collect()
    }

    pub(crate) fn bounds(&self, name: &DeploymentName) -> Result<Bounds, Error> {
        let found = self.catalog.snapshot().deployments.get(name).cloned();
        found.ok_or_else(|| no_deployment(name))
    }

    /// All deployments are looked at, and their versions.
    async fn status(&self, name: &DeploymentName) -> Result<DeploymentStatus, Error> {
        let (lifecycle, name) = (Arc::clone(&self.lifecycle), name.clone());
        let find = move || {
            let found = lifecycle.deployments().into_iter().find(|status| status.name == name);
            found.ok_or_else(|| no_deployment(&name))
        };
        self.intake.work(find).await
    }
}

fn no_deployment(name: &DeploymentName) -> Error {
    Error::not_found(format!("deployment {name} does not exist"))
}

fn seconds(nanos: u64) -> f64 {
    Duration::from_nanos(nanos).as_secs_f64()
}

fn row(status: DeploymentStatus) -> wire::DeploymentRow {
    let (bounds, totals) = (status.bounds, status.totals);
    wire::DeploymentRow {
        name: status.name.to_string(),
        instances: bounds.instances,
        queue: bounds.queue,
        memory_mib: bounds.memory_bytes >> 20,
        loaded_mib: bounds.loaded_bytes >> 20,
        threads: status.threads,
        isolation: bounds.isolation.map_or("auto", Isolation::as_str).to_owned(),
        capabilities: bounds.capabilities,
        versions: status.versions,
        loaded: status.loaded,
        loaded_bytes: status.loaded_bytes,
        running: status.running,
        waiting: status.waiting,
        idle_instances: status.idle_instances,
        memory_bytes: status.memory_bytes,
        utilisation: status.utilisation,
        admitted: totals.admitted.count,
        queue_seconds: seconds(totals.admitted.nanos),
        refused: totals.refused,
        hopeless: totals.hopeless,
        shed: totals.shed,
        loads: totals.loads.count,
        load_seconds: seconds(totals.loads.nanos),
        load_failures: totals.load_failures,
        evictions: totals.evictions,
    }
}

#[expect(clippy::cast_precision_loss, reason = "an average for people")]
fn usage_row(usage: VersionUsage) -> wire::UsageRow {
    let did = usage.statistics;
    let places: BTreeSet<String> = usage.graphs.iter().map(GraphStatus::place).collect();
    wire::UsageRow {
        model: usage.version.model.to_string(),
        version: usage.version.number.get(),
        deployment: usage.deployment.to_string(),
        answered: did.success.count,
        failed: did.fail.count,
        rows: did.rows,
        cpu_seconds: seconds(did.cpu.nanos),
        cpu_us_per_prediction: did.cpu.nanos as f64 / 1e3 / did.cpu.count.max(1) as f64,
        graphs: places.into_iter().collect(),
        graph_seconds: usage.graphs.iter().map(|graph| graph.busy.as_secs_f64()).sum(),
        queue_seconds: seconds(did.queue.nanos),
        latency: usage.latency,
        running: usage.running,
        waiting: usage.waiting,
        idle_instances: usage.idle_instances,
        loaded_bytes: usage.loaded_bytes,
        peak_instance_bytes: usage.peak_instance_bytes,
        loads: usage.loads.count,
        load_seconds: seconds(usage.loads.nanos),
    }
}
