//! The table of routes, the deployments, and the versions in memory.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use modelhost_core::deployment::DeploymentName;
use modelhost_core::error::Error;
use modelhost_core::event::{DeploymentStatus, VersionUsage};
use modelhost_core::graph::GraphStatus;
use modelhost_core::model::{ModelName, ModelVersion};
use modelhost_core::ports::{BoxFuture, Lifecycle, ModelRuntime, Observer, Recorder};
use modelhost_core::routing;
use modelhost_core::version::{Model, Snapshot, Version};

use crate::cache::ResponseCache;
use crate::mirror::Mirror;
use crate::pool::{Places, Pool};
use crate::residence::Who;
use crate::slot::Slot;

#[cfg(test)]
mod tests;

/// How often idle instances are looked for.
const TIDY_EVERY: Duration = Duration::from_secs(1);

/// The settings of serving.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Versions in memory at once, over all deployments.
    pub loaded_versions: u32,
    /// Longest time of a plugin's `load`. If no load ends for a multiple of this, loading is considered stalled.
    pub load_deadline: Duration,
    /// A warm instance that idles for so long is ended.
    pub idle_instance: Duration,
    /// Bytes of cached answers.
    pub response_cache_bytes: u64,
    /// Bytes of requests and answers that are held at once. One deployment may hold half of them.
    pub body_bytes: u64,
    /// Waiting and running copies for challengers. Further copies are dropped and counted. One model may have half of
    /// them.
    pub mirror_queue: usize,
    /// Bytes of the tensors of these copies. One model may have half of them.
    pub mirror_bytes: u32,
    /// Copies of one model that run at once.
    pub mirror_concurrency: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            loaded_versions: 10_000,
            load_deadline: Duration::from_secs(60),
            idle_instance: Duration::from_secs(60),
            response_cache_bytes: 64 << 20,
            body_bytes: 1 << 30,
            mirror_queue: 1024,
            mirror_bytes: 64 << 20,
            mirror_concurrency: 2,
        }
    }
}

/// Everything that serves predictions.
pub struct Serving {
    pub(crate) table: ArcSwap<Table>,
    pub(crate) mirror: Arc<Mirror>,
    pub(crate) cache: ResponseCache,
    runtime: Arc<dyn ModelRuntime>,
    observer: Arc<dyn Observer>,
    pub(crate) places: Arc<Places>,
    load_deadline: Duration,
    /// Held while a new table is made, and while all slots of a model change together.
    pools: Mutex<BTreeMap<DeploymentName, Arc<Pool>>>,
}

/// By `prefix/name`.
pub(crate) type Table = HashMap<ModelName, Arc<Route>>;

/// The slots of one model. A change of the model makes a new route, which keeps the slots.
pub(crate) struct Route {
    pub(crate) model: Arc<Model>,
    pub(crate) seed: u64,
    /// Of the widest table that a version takes.
    pub(crate) columns: usize,
    slots: BTreeMap<ModelVersion, Arc<Slot>>,
}

impl Route {
    pub(crate) fn slot(&self, number: ModelVersion) -> Option<Arc<Slot>> {
        self.slots.get(&number).cloned()
    }

    pub(crate) fn slots(&self) -> impl Iterator<Item = &Arc<Slot>> {
        self.slots.values()
    }
}

impl Serving {
    /// Serves nothing until a snapshot is published. Needs a tokio runtime.
    pub fn new(config: Config, runtime: Arc<dyn ModelRuntime>, observer: Arc<dyn Observer>) -> Arc<Self> {
        let serving = Arc::new(Self {
            table: ArcSwap::default(),
            cache: ResponseCache::new(config.response_cache_bytes),
            mirror: Mirror::new(&config),
            runtime,
            observer,
            places: Places::new(config.loaded_versions, config.body_bytes),
            load_deadline: config.load_deadline,
            pools: Mutex::default(),
        });
        let weak = Arc::downgrade(&serving);
        tokio::spawn(async move {
            let mut tick = tokio::time::interval(TIDY_EVERY);
            loop {
                tick.tick().await;
                let Some(serving) = weak.upgrade() else { return };
                let pools: Vec<_> = serving.pools().values().cloned().collect();
                pools.iter().for_each(|pool| pool.tidy(config.idle_instance));
            }
        });
        serving
    }

    /// Loads the pinned versions one after another, so that they are ready for their first callers. A failure is
    /// logged, and the first caller tries again.
    pub async fn preload(&self) {
        let routes: Vec<_> = self.table.load().values().cloned().collect();
        for slot in routes.iter().flat_map(|route| route.slots()).filter(|slot| slot.residence.is_pinned()) {
            drop(slot.load(Who::Caller).await); // a failure is logged where it happens
        }
    }

    /// Why loading is stalled at `now`, if it is. Then the host answers no request for a cold version.
    pub fn stalled(&self, now: Instant) -> Option<String> {
        self.places.loads.stalled(now, self.load_deadline)
    }

    /// What the version's graphs did since it was loaded.
    pub fn graphs(&self, version: &Version) -> Vec<GraphStatus> {
        self.slot_of(version).map(|slot| slot.graphs()).unwrap_or_default()
    }

    fn slot_of(&self, version: &Version) -> Result<Arc<Slot>, Error> {
        let slot = self.table.load().get(&version.model).and_then(|route| route.slot(version.number));
        slot.ok_or_else(|| {
            Error::not_found(format!("model {} has no version {}", version.model, version.number))
        })
    }

    pub(crate) fn pools(&self) -> MutexGuard<'_, BTreeMap<DeploymentName, Arc<Pool>>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes routes to these models. Unchanged models keep their slots.
    fn route_to<'a>(
        &self,
        models: impl Iterator<Item = &'a Arc<Model>>,
        pools: &BTreeMap<DeploymentName, Arc<Pool>>,
    ) -> Table {
        let old = self.table.load();
        let route = |model: &'a Arc<Model>| {
            let before = old.get(&model.name);
            let kept = |route: &&Arc<Route>| {
                let in_place = |slot: &Arc<Slot>| {
                    pools.get(&slot.pool.name).is_some_and(|pool| Arc::ptr_eq(pool, &slot.pool))
                };
                Arc::ptr_eq(&route.model, model) && route.slots().all(in_place)
            };
            let route =
                before.filter(kept).cloned().or_else(|| self.new_route(model, before, pools).map(Arc::new));
            route.map(|route| (model.name.clone(), route))
        };
        models.filter_map(route).collect()
    }

    fn new_route(
        &self,
        model: &Arc<Model>,
        before: Option<&Arc<Route>>,
        pools: &BTreeMap<DeploymentName, Arc<Pool>>,
    ) -> Option<Route> {
        let pinned =
            model.policy.iter().filter(|policy| policy.is_pinned()).flat_map(|policy| policy.versions());
        let pinned: Vec<_> = pinned.collect();
        let slot = |(number, version): (&ModelVersion, &Arc<Version>)| {
            let pool =
                pools.get(&model.deployment(*number)).or_else(|| pools.get(&DeploymentName::default()))?;
            let slot = match before.and_then(|route| route.slot(*number)) {
                Some(slot) if Arc::ptr_eq(&slot.pool, pool) => slot,
                Some(old) => {
                    old.retire();
                    let withdrawn = old.residence.is_withdrawn();
                    self.new_slot(version, pool, Arc::clone(&old.recorder), withdrawn)
                }
                None => self.new_slot(version, pool, self.observer.recorder(&version.model, *number), false),
            };
            slot.residence.pin(pinned.contains(number));
            Some((*number, slot))
        };
        let slots = model.versions.iter().map(slot).collect::<Option<_>>()?;
        let tables = model.versions.values().filter_map(|version| version.report.signature.table());
        let columns = tables.map(|table| table.columns.len()).max().unwrap_or(0);
        Some(Route { model: Arc::clone(model), seed: routing::seed(model.name.as_str()), columns, slots })
    }

    fn new_slot(
        &self,
        version: &Arc<Version>,
        pool: &Arc<Pool>,
        recorder: Arc<dyn Recorder>,
        withdrawn: bool,
    ) -> Arc<Slot> {
        let (version, pool, runtime) = (Arc::clone(version), Arc::clone(pool), Arc::clone(&self.runtime));
        Arc::new(Slot::new(version, pool, runtime, recorder, withdrawn))
    }
}

impl Lifecycle for Serving {
    fn ready<'a>(&'a self, version: &'a Version) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move { self.slot_of(version)?.load(Who::Operator).await.map(drop) })
    }

    fn unload(&self, version: &Version) -> bool {
        self.slot_of(version).is_ok_and(|slot| slot.unload())
    }

    fn is_ready(&self, version: &Version) -> bool {
        self.slot_of(version).is_ok_and(|slot| slot.is_ready())
    }

    fn publish(&self, snapshot: Arc<Snapshot>) {
        let mut pools = self.pools();
        for (name, bounds) in &snapshot.deployments {
            match pools.get(name) {
                Some(pool) => pool.set_bounds(bounds),
                None => drop(pools.insert(name.clone(), Pool::new(name, bounds, &self.places))),
            }
        }
        let gone: Vec<_> =
            pools.keys().filter(|name| !snapshot.deployments.contains_key(*name)).cloned().collect();
        let closed: Vec<_> = gone.iter().filter_map(|name| pools.remove(name)).collect();
        self.table.store(Arc::new(self.route_to(snapshot.models.values(), &pools)));
        closed.iter().for_each(|pool| pool.admission.close());
    }

    fn recreate(&self, name: &DeploymentName) -> Result<(), Error> {
        let mut pools = self.pools();
        let not_found = || Error::not_found(format!("deployment {name} does not exist"));
        let old = pools.get(name).cloned().ok_or_else(not_found)?;
        pools.insert(name.clone(), Pool::new(name, &old.bounds(), &self.places));
        let models: Vec<_> = self.table.load().values().map(|route| Arc::clone(&route.model)).collect();
        self.table.store(Arc::new(self.route_to(models.iter(), &pools)));
        old.admission.close();
        Ok(())
    }

    fn deployments(&self) -> Vec<DeploymentStatus> {
        let mut placed: HashMap<DeploymentName, u32> = HashMap::new();
        let table = self.table.load();
        for slot in table.values().flat_map(|route| route.slots()) {
            *placed.entry(slot.pool.name.clone()).or_default() += 1;
        }
        let pools: Vec<_> = self.pools().values().cloned().collect();
        let status = |pool: &Arc<Pool>| pool.status(placed.get(&pool.name).copied().unwrap_or(0));
        pools.iter().map(status).collect()
    }

    fn usage(&self) -> Vec<VersionUsage> {
        let table = self.table.load();
        let mut usage: Vec<_> =
            table.values().flat_map(|route| route.slots()).filter_map(|slot| slot.usage()).collect();
        usage.sort_by(|a, b| (&a.version.model, a.version.number).cmp(&(&b.version.model, b.version.number)));
        usage
    }
}
