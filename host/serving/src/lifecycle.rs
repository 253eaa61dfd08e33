//! The table of routes, and which versions are in memory.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use modelhost_core::deployment::{Model, Snapshot, Version};
use modelhost_core::error::Error;
use modelhost_core::model::{ModelName, ModelVersion};
use modelhost_core::ports::{BoxFuture, Lifecycle, ModelRuntime, Observer};
use modelhost_core::routing;

use crate::cache::ResponseCache;
use crate::mirror::Mirror;
use crate::slot::Slot;

/// Serving's settings.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Versions in memory at once; beyond it the longest idle one that no policy names is unloaded.
    pub loaded_versions: usize,
    /// Bytes of answers that are kept for equal requests.
    pub response_cache_bytes: u64,
    /// Copies for challengers that wait; one more is dropped and counted.
    pub mirror_queue: usize,
    /// Bytes of those copies' tensors.
    pub mirror_bytes: u32,
    /// Copies that run at once.
    pub mirror_concurrency: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            loaded_versions: 1000,
            response_cache_bytes: 64 << 20,
            mirror_queue: 1024,
            mirror_bytes: 64 << 20,
            mirror_concurrency: 2,
        }
    }
}

/// Everything that serves predictions.
pub struct Serving {
    pub(crate) table: ArcSwap<HashMap<ModelName, Arc<Route>>>,
    pub(crate) runtime: Arc<dyn ModelRuntime>,
    pub(crate) mirror: Mirror,
    pub(crate) cache: ResponseCache,
    observer: Arc<dyn Observer>,
    config: Config,
}

/// One model's slots. Made anew when its model changes; the slots live on.
pub(crate) struct Route {
    pub(crate) model: Arc<Model>,
    pub(crate) seed: u64,
    slots: BTreeMap<ModelVersion, Arc<Slot>>,
}

impl Route {
    pub(crate) fn slot(&self, number: ModelVersion) -> Option<Arc<Slot>> {
        self.slots.get(&number).cloned()
    }

    pub(crate) fn slots(&self) -> impl Iterator<Item = &Arc<Slot>> {
        self.slots.values()
    }

    /// Whether traffic reaches it, or would after a rollback.
    fn is_routed(&self, number: ModelVersion) -> bool {
        let policies = [&self.model.policy, &self.model.previous];
        policies.into_iter().flatten().any(|policy| policy.versions().contains(&number))
    }
}

impl Serving {
    /// Serves nothing until a snapshot is published. Needs a tokio runtime, for the challengers' tasks.
    pub fn new(config: Config, runtime: Arc<dyn ModelRuntime>, observer: Arc<dyn Observer>) -> Arc<Self> {
        Arc::new_cyclic(|serving: &Weak<Self>| Self {
            table: ArcSwap::default(),
            cache: ResponseCache::new(config.response_cache_bytes),
            mirror: Mirror::start(&config, Arc::clone(&runtime), serving),
            runtime,
            observer,
            config,
        })
    }

    /// Loads what policies name, one after another, so that first callers find it ready. What fails is logged, and tried
    /// again by its first caller.
    pub async fn preload(&self) {
        let routes: Vec<_> = self.table.load().values().cloned().collect();
        for route in routes {
            let named = route.model.policy.iter().flat_map(|policy| policy.versions());
            for slot in named.filter_map(|number| route.slot(number)) {
                if let Err(error) = self.load(&slot, false).await {
                    let (model, version) = (&slot.version.model, slot.version.number);
                    tracing::warn!(%model, %version, %error, "not loaded");
                }
            }
        }
    }

    pub(crate) async fn load(&self, slot: &Arc<Slot>, retry: bool) -> Result<(), Error> {
        let (_, newly) = slot.load(&*self.runtime, retry).await?;
        if newly {
            tracing::info!(model = %slot.version.model, version = %slot.version.number, "loaded");
            self.make_room(slot);
        }
        Ok(())
    }

    /// Unloads the longest idle versions that no policy names, down to the bound.
    pub(crate) fn make_room(&self, keep: &Arc<Slot>) {
        let table = self.table.load();
        let loaded = |route: &Arc<Route>| {
            let route = Arc::clone(route);
            let slots: Vec<_> = route.slots.values().filter(|slot| slot.is_ready()).cloned().collect();
            slots.into_iter().map(move |slot| (route.is_routed(slot.version.number), slot))
        };
        let all: Vec<_> = table.values().flat_map(loaded).collect();
        let over = all.len().saturating_sub(self.config.loaded_versions);
        let mut idle: Vec<_> = all
            .iter()
            .filter(|(routed, slot)| !routed && !Arc::ptr_eq(slot, keep))
            .map(|(_, slot)| slot)
            .collect();
        idle.sort_by_key(|slot| slot.last_used());
        for slot in idle.into_iter().take(over) {
            slot.unload();
        }
    }

    fn slot_of(&self, version: &Version) -> Result<Arc<Slot>, Error> {
        let slot = self.table.load().get(&version.model).and_then(|route| route.slot(version.number));
        slot.ok_or_else(|| {
            Error::not_found(format!("model {} has no version {}", version.model, version.number))
        })
    }

    fn new_slot(&self, version: Arc<Version>) -> Arc<Slot> {
        let recorder = self.observer.recorder(&version.model, version.number);
        Arc::new(Slot::new(version, recorder))
    }
}

impl Lifecycle for Serving {
    fn ready<'a>(&'a self, version: &'a Version) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move { self.load(&self.slot_of(version)?, true).await })
    }

    fn unload(&self, version: &Version) -> bool {
        self.slot_of(version).is_ok_and(|slot| slot.unload())
    }

    fn is_ready(&self, version: &Version) -> bool {
        self.slot_of(version).is_ok_and(|slot| slot.is_ready())
    }

    fn publish(&self, snapshot: Arc<Snapshot>) {
        let old = self.table.load();
        let routes = snapshot.models.iter().map(|(name, model)| {
            let before = old.get(name);
            if let Some(route) = before.filter(|route| Arc::ptr_eq(&route.model, model)) {
                return (name.clone(), Arc::clone(route));
            }
            let slots = model.versions.iter().map(|(number, version)| {
                let slot = before.and_then(|route| route.slot(*number));
                (*number, slot.unwrap_or_else(|| self.new_slot(Arc::clone(version))))
            });
            let route = Route {
                model: Arc::clone(model),
                seed: routing::seed(name.as_str()),
                slots: slots.collect(),
            };
            (name.clone(), Arc::new(route))
        });
        let table: HashMap<_, _> = routes.collect();
        self.table.store(Arc::new(table));
    }
}
