//! One deployment at work: its queue, its threads, the memory of its instances and its versions in memory.

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
    /// Requests and answers that it holds.
    pub(crate) bodies: Arc<ByteBudget>,
    pub(crate) threads: ArcSwap<Threads>,
    bounds: ArcSwap<Bounds>,
    /// Requests between their arrival and their answer.
    present: AtomicU32,
    loaded: Mutex<Loaded>,
    /// What all deployments of this host have loaded together, and may have.
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
    /// Of all of them.
    bytes: u64,
}

struct Kept {
    slot: Arc<Slot>,
    /// As of the last look: warm instances come and go.
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

    /// Does not count it any more.
    fn remove(&mut self, slot: &Arc<Slot>) -> bool {
        let removed = self.kept.remove(&key(slot));
        self.bytes -= removed.as_ref().map_or(0, |kept| kept.bytes);
        removed.is_some()
    }

    /// The least valuable one that does not serve and is not pinned.
    fn least(&self, now: Instant) -> Option<(f32, Arc<Slot>)> {
        let idle = self.kept.values().filter(|kept| kept.slot.may_be_evicted());
        let valued = idle.map(|kept| (kept.slot.value(kept.bytes, now), &kept.slot));
        valued.min_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(value, slot)| (value, Arc::clone(slot)))
    }

    /// Takes in what slots hold now.
    fn look(&mut self, looked: &[(Arc<Slot>, Footprint)]) {
        for (slot, footprint) in looked {
            if let Some(kept) = self.kept.get_mut(&key(slot)) {
                kept.bytes = footprint.bytes;
            }
        }
        self.bytes = self.kept.values().map(|kept| kept.bytes).sum();
    }
}

/// A request's presence in its deployment, until it is answered.
pub(crate) struct Arrival(Arc<Pool>);

impl Drop for Arrival {
    fn drop(&mut self) {
        self.0.present.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What all deployments of this host share.
pub(crate) struct Places {
    /// How many versions this process can have in memory: each takes memory mappings and a file.
    limit: u32,
    taken: AtomicU32,
    pools: Mutex<Vec<Weak<Pool>>>,
    pub(crate) loads: Arc<Loads>,
    /// Requests and answers that the host holds. One deployment may have half of it.
    pub(crate) bodies: Arc<ByteBudget>,
    /// What streams hold of it while they wait for their callers: at most a quarter.
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

    /// Takes a place for one more version. When all are taken, the least valuable version of the host makes room, whatever deployment
    /// it is in: a full neighbour starves nobody. Holds no pool's lock while it asks another. Errors: resource exhausted.
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
                    "{limit} versions are in memory and serve or are pinned, and this host can hold no more: see loaded_versions in its configuration, and vm.max_map_count"
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

    /// From now on these bounds hold. What runs, waits and is loaded stays, as far as it fits.
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

    /// Whether a request would find a place now. Errors: resource exhausted: such a request is not worth reading.
    pub(crate) fn check_room(&self) -> Result<(), Error> {
        if self.present.load(Ordering::Relaxed) < self.places_for_requests() {
            Ok(())
        } else {
            Err(self.full())
        }
    }

    /// Lets a request in, to be decoded, to wait and to run. Errors: resource exhausted, when all that may run and wait are there.
    pub(crate) fn arrive(self: &Arc<Self>) -> Result<Arrival, Error> {
        self.try_arrive().ok_or_else(|| self.full())
    }

    /// The same, for whoever asks again if there is no place; nobody counts it as refused.
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

    /// Takes in a version that was just loaded, unless it was unloaded meanwhile: room is made by unloading the least valuable ones that do
    /// not serve and are not pinned. Errors: resource exhausted, when that is not enough; the version is not kept then.
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
                "it takes {bytes} MiB, and of the {limit} MiB that versions of deployment {} may take, {held} MiB serve or are pinned",
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

    /// Takes a version out of memory; `how` tells its residence why. False: it is not there. What is unloaded is dropped after the lock:
    /// whoever drops it waits for the system to unmap it, unless it still runs.
    pub(crate) fn unload(&self, slot: &Arc<Slot>, how: fn(&Residence) -> Option<Arc<Ready>>) -> bool {
        let _unloaded;
        let mut loaded = self.lock();
        _unloaded = how(&slot.residence);
        loaded.remove(slot)
    }

    /// Unloads a version to make room, if it still idles.
    fn make_room_by(&self, slot: &Arc<Slot>) {
        let _unloaded;
        let mut loaded = self.lock();
        if slot.may_be_evicted() && loaded.remove(slot) {
            _unloaded = slot.residence.unload();
            self.evictions.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Ends warm instances that idle for so long, and unloads what no longer fits.
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

    /// What the versions hold now. They are asked without the lock: there may be thousands.
    fn look(&self) -> Vec<(Arc<Slot>, Footprint)> {
        let footprint = |slot: Arc<Slot>| {
            let footprint = slot.footprint();
            (slot, footprint)
        };
        let looked: Vec<_> = self.slots().into_iter().map(footprint).collect();
        self.lock().look(&looked);
        looked
    }

    /// Unloads until `more` bytes fit, the least valuable first. What comes back is to be dropped without the lock.
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

    /// What it holds and does now; `versions` are placed in it.
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
