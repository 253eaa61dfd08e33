//! A running deployment: its queue, its threads, the memory of its instances, and its versions in memory.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use modelhost_core::budget::ByteBudget;
use modelhost_core::deployment::{Bounds, DeploymentName, MemoryBudget};
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::event::{DeploymentStatus, DeploymentTotals, Tally};
use modelhost_core::ports::Footprint;

use crate::admission::Admission;
use crate::loads::Loads;
use crate::residence::{Ready, Residence};
use crate::slot::Slot;
use crate::threads::Threads;

#[cfg(test)]
mod tests;

pub(crate) struct Pool {
    pub(crate) name: DeploymentName,
    pub(crate) admission: Admission,
    pub(crate) memory: Arc<MemoryBudget>,
    /// Bytes of its requests and answers.
    pub(crate) bodies: Arc<ByteBudget>,
    pub(crate) threads: ArcSwap<Threads>,
    bounds: ArcSwap<Bounds>,
    /// Requests that arrived and are not answered yet.
    present: AtomicU32,
    loaded: Mutex<Loaded>,
    /// The places that all deployments share.
    pub(crate) places: Arc<Places>,
    loads: AtomicU64,
    load_nanos: AtomicU64,
    load_failures: AtomicU64,
    evictions: AtomicU64,
}

/// The versions in memory, by the address of their slot.
#[derive(Default)]
struct Loaded {
    kept: HashMap<usize, Kept>,
    /// Bytes of all of them.
    bytes: u64,
}

struct Kept {
    slot: Arc<Slot>,
    /// Bytes at the last look. They change as warm instances come and go.
    bytes: u64,
    _place: Place,
}

fn key(slot: &Arc<Slot>) -> usize {
    Arc::as_ptr(slot).addr()
}

impl Loaded {
    fn keep(&mut self, slot: &Arc<Slot>, bytes: u64, place: Place) {
        self.bytes += bytes;
        self.kept.insert(key(slot), Kept { slot: Arc::clone(slot), bytes, _place: place });
    }

    /// Removes a version from the count.
    fn remove(&mut self, slot: &Arc<Slot>) -> bool {
        let removed = self.kept.remove(&key(slot));
        self.bytes -= removed.as_ref().map_or(0, |kept| kept.bytes);
        removed.is_some()
    }

    /// The least valuable version that neither serves nor is pinned.
    fn least(&self, now: Instant) -> Option<(f32, Arc<Slot>)> {
        let idle = self.kept.values().filter(|kept| kept.slot.may_be_evicted());
        let valued = idle.map(|kept| (kept.slot.value(kept.bytes, now), &kept.slot));
        valued.min_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(value, slot)| (value, Arc::clone(slot)))
    }

    /// Updates the bytes of the slots.
    fn look(&mut self, looked: &[(Arc<Slot>, Footprint)]) {
        for (slot, footprint) in looked {
            if let Some(kept) = self.kept.get_mut(&key(slot)) {
                kept.bytes = footprint.bytes;
            }
        }
        self.bytes = self.kept.values().map(|kept| kept.bytes).sum();
    }
}

/// A request in its deployment, from its arrival to its answer.
pub(crate) struct Arrival(Arc<Pool>);

impl Drop for Arrival {
    fn drop(&mut self) {
        self.0.present.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What all deployments of this host share.
pub(crate) struct Places {
    /// How many versions this process can hold. Each takes memory mappings and a file.
    limit: u32,
    taken: AtomicU32,
    pools: Mutex<Vec<Weak<Pool>>>,
    pub(crate) loads: Arc<Loads>,
    /// Bytes of requests and answers of the host. One deployment may have half of them.
    pub(crate) bodies: Arc<ByteBudget>,
    /// The part of these bytes that streams hold while they wait for their callers, at most a quarter.
    pub(crate) streams: Arc<ByteBudget>,
    body_bytes: u64,
}

impl Places {
    pub(crate) fn new(limit: u32, body_bytes: u64) -> Arc<Self> {
        let bodies = ByteBudget::new("this host", body_bytes);
        let streams = bodies.part("this host, for streams,", body_bytes / 4);
        let (taken, pools, loads) = (AtomicU32::new(0), Mutex::default(), Arc::default());
        Arc::new(Self { limit, taken, pools, loads, bodies, streams, body_bytes })
    }

    /// Takes a place for one more version. If all are taken, the least valuable version of the host is unloaded, in
    /// whatever deployment it is. So a full deployment does not keep others from loading. Holds no pool's lock while
    /// it asks another pool. Errors: resource exhausted.
    fn take(self: &Arc<Self>) -> Result<Place, Error> {
        loop {
            let before = self.taken.fetch_add(1, Ordering::Relaxed);
            let place = Place(Arc::clone(self));
            if before < self.limit {
                return Ok(place);
            }
            drop(place);
            let now = Instant::now();
            let least = self.pools().into_iter().filter_map(|pool| {
                let (value, slot) = pool.lock().least(now)?;
                Some((value, pool, slot))
            });
            let Some((_, pool, slot)) = least.min_by(|(a, ..), (b, ..)| a.total_cmp(b)) else {
                let limit = self.limit;
                return Err(exhausted(format!(
                    "{limit} versions are in memory and serve or are pinned, and this host can hold no more: see \
                     loaded_versions in its configuration, and vm.max_map_count"
                )));
            };
            pool.make_room_by(&slot);
        }
    }

    fn pools(&self) -> Vec<Arc<Pool>> {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        pools.retain(|pool| pool.strong_count() > 0);
        pools.iter().filter_map(Weak::upgrade).collect()
    }
}

/// A version's place in memory.
struct Place(Arc<Places>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pool {
    pub(crate) fn new(name: &DeploymentName, bounds: &Bounds, places: &Arc<Places>) -> Arc<Self> {
        let pool = Arc::new(Self {
            name: name.clone(),
            admission: Admission::new(bounds),
            memory: Arc::new(MemoryBudget::new(bounds.memory_bytes)),
            bodies: places.bodies.part(format!("deployment {name}"), places.body_bytes / 2),
            threads: ArcSwap::from_pointee(Threads::new(name, bounds.threads)),
            bounds: ArcSwap::from_pointee(bounds.clone()),
            present: AtomicU32::new(0),
            loaded: Mutex::default(),
            places: Arc::clone(places),
            loads: AtomicU64::new(0),
            load_nanos: AtomicU64::new(0),
            load_failures: AtomicU64::new(0),
            evictions: AtomicU64::new(0),
        });
        places.pools.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&pool));
        pool
    }

    /// Sets new bounds. Running and waiting requests stay. Loaded versions stay as far as they fit.
    pub(crate) fn set_bounds(&self, bounds: &Bounds) {
        let old = self.bounds.swap(Arc::new(bounds.clone()));
        if *old == *bounds {
            return;
        }
        self.admission.set_bounds(bounds);
        self.memory.set_limit(bounds.memory_bytes);
        if old.threads != bounds.threads {
            self.threads.store(Arc::new(Threads::new(&self.name, bounds.threads)));
        }
        let evicted = self.evict(&mut self.lock(), 0);
        drop(evicted);
    }

    pub(crate) fn bounds(&self) -> Arc<Bounds> {
        self.bounds.load_full()
    }

    /// Whether a request would find a place now. Errors: resource exhausted. Such a request is not worth reading.
    pub(crate) fn check_room(&self) -> Result<(), Error> {
        if self.present.load(Ordering::Relaxed) < self.places_for_requests() {
            Ok(())
        } else {
            Err(self.full())
        }
    }

    /// Takes a place for a request, which may then be decoded, wait and run. Errors: resource exhausted, if all
    /// places are taken.
    pub(crate) fn arrive(self: &Arc<Self>) -> Result<Arrival, Error> {
        self.try_arrive().ok_or_else(|| self.full())
    }

    /// As [`Self::arrive`], for callers that try again. Does not count a refusal.
    pub(crate) fn try_arrive(self: &Arc<Self>) -> Option<Arrival> {
        let arrival = Arrival(Arc::clone(self));
        let before = self.present.fetch_add(1, Ordering::Relaxed);
        (before < self.places_for_requests()).then_some(arrival)
    }

    fn places_for_requests(&self) -> u32 {
        let bounds = self.bounds.load();
        bounds.instances.saturating_add(bounds.queue)
    }

    fn full(&self) -> Error {
        self.admission.refused();
        let (name, queue) = (&self.name, self.bounds.load().queue);
        exhausted(format!("every instance of deployment {name} is busy and {queue} requests wait already"))
    }

    /// Keeps a version that was just loaded, unless it was unloaded meanwhile. Makes room by unloading the least
    /// valuable versions that neither serve nor are pinned. Errors: resource exhausted, if that is not enough. The
    /// version is not kept then.
    pub(crate) fn take_in(&self, slot: &Arc<Slot>, model: Ready, took: Duration) -> Result<(), Error> {
        self.loads.fetch_add(1, Ordering::Relaxed);
        self.load_nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        if !slot.residence.is_wanted() {
            slot.residence.loaded(model, false); // for whoever asked before
            return Ok(());
        }
        let bytes = model.footprint().bytes;
        let place = self.places.take()?;
        let _evicted; // dropped after the lock
        let mut loaded = self.lock();
        _evicted = self.evict(&mut loaded, bytes);
        let limit = self.bounds.load().loaded_bytes;
        if loaded.bytes + bytes > limit {
            let (held, bytes, limit) = (loaded.bytes >> 20, (bytes >> 20) + 1, limit >> 20);
            return Err(exhausted(format!(
                "it takes {bytes} MiB, and of the {limit} MiB that versions of deployment {} may take, {held} MiB \
                 serve or are pinned",
                self.name
            )));
        }
        if slot.residence.loaded(model, true) {
            loaded.keep(slot, bytes, place);
        }
        Ok(())
    }

    pub(crate) fn load_failed(&self) {
        self.load_failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Unloads a version. `how` tells its residence the reason. Returns false if it was not in memory. The version is
    /// dropped after the lock is released, because unmapping it takes time.
    pub(crate) fn unload(&self, slot: &Arc<Slot>, how: fn(&Residence) -> Option<Arc<Ready>>) -> bool {
        let _unloaded;
        let mut loaded = self.lock();
        _unloaded = how(&slot.residence);
        loaded.remove(slot)
    }

    /// Unloads a version to make room, if it is still idle.
    fn make_room_by(&self, slot: &Arc<Slot>) {
        let _unloaded;
        let mut loaded = self.lock();
        if slot.may_be_evicted() && loaded.remove(slot) {
            _unloaded = slot.residence.unload();
            self.evictions.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Ends warm instances that idle for so long, and unloads versions that no longer fit.
    pub(crate) fn tidy(&self, idle: Duration) {
        for slot in self.slots() {
            slot.tidy(idle);
        }
        self.look();
        let evicted = self.evict(&mut self.lock(), 0);
        drop(evicted); // after the lock
        self.admission.utilisation();
    }

    fn slots(&self) -> Vec<Arc<Slot>> {
        self.lock().kept.values().map(|kept| Arc::clone(&kept.slot)).collect()
    }

    /// Looks at what the versions hold now. Does not hold the lock meanwhile, because there may be thousands.
    fn look(&self) -> Vec<(Arc<Slot>, Footprint)> {
        let footprint = |slot: Arc<Slot>| {
            let footprint = slot.footprint();
            (slot, footprint)
        };
        let looked: Vec<_> = self.slots().into_iter().map(footprint).collect();
        self.lock().look(&looked);
        looked
    }

    /// Unloads the least valuable versions until `more` bytes fit. The caller drops them after the lock is released.
    fn evict(&self, loaded: &mut Loaded, more: u64) -> Vec<Arc<Ready>> {
        let (limit, now) = (self.bounds.load().loaded_bytes, Instant::now());
        let mut evicted = Vec::new();
        while loaded.bytes + more > limit {
            let Some((_, slot)) = loaded.least(now) else { break };
            loaded.remove(&slot);
            evicted.extend(slot.residence.unload());
            self.evictions.fetch_add(1, Ordering::Relaxed);
        }
        evicted
    }

    fn lock(&self) -> MutexGuard<'_, Loaded> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The current status. `versions` are placed in this deployment.
    pub(crate) fn status(&self, versions: u32) -> DeploymentStatus {
        let (running, waiting) = self.admission.counts();
        let looked = self.look();
        let idle_instances = looked.iter().map(|(_, footprint)| footprint.idle_instances).sum();
        let (loaded, loaded_bytes) = {
            let loaded = self.lock();
            (u32::try_from(loaded.kept.len()).unwrap_or(u32::MAX), loaded.bytes)
        };
        DeploymentStatus {
            name: self.name.clone(),
            bounds: Bounds::clone(&self.bounds.load()),
            threads: self.threads.load().count(),
            versions,
            loaded,
            loaded_bytes,
            running,
            waiting,
            idle_instances,
            memory_bytes: self.memory.used(),
            utilisation: self.admission.utilisation(),
            totals: DeploymentTotals {
                loads: Tally {
                    count: self.loads.load(Ordering::Relaxed),
                    nanos: self.load_nanos.load(Ordering::Relaxed),
                },
                load_failures: self.load_failures.load(Ordering::Relaxed),
                evictions: self.evictions.load(Ordering::Relaxed),
                ..self.admission.totals()
            },
        }
    }
}

fn exhausted(text: String) -> Error {
    Error::new(ErrorCode::ResourceExhausted, text)
}
