//! One deployment at work: its queue, its threads, the memory of its instances and its versions in memory.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use modelhost_core::deployment::{Bounds, DeploymentName, MemoryBudget};
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::event::{DeploymentStatus, DeploymentTotals, Tally};

use crate::admission::Admission;
use crate::slot::Slot;
use crate::threads::Threads;

pub(crate) struct Pool {
    pub(crate) name: DeploymentName,
    pub(crate) admission: Admission,
    pub(crate) memory: Arc<MemoryBudget>,
    pub(crate) threads: ArcSwap<Threads>,
    bounds: ArcSwap<Bounds>,
    /// Requests between their arrival and their answer.
    present: AtomicU32,
    /// The versions in memory.
    loaded: Mutex<Vec<Arc<Slot>>>,
    /// What all deployments of this host have loaded together, and may have.
    places: Arc<Places>,
    loads: AtomicU64,
    load_nanos: AtomicU64,
    load_failures: AtomicU64,
    evictions: AtomicU64,
}

/// A request's presence in its deployment, until it is answered.
pub(crate) struct Arrival(Arc<Pool>);

impl Drop for Arrival {
    fn drop(&mut self) {
        self.0.present.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How many versions this process can have in memory: each takes memory mappings and a file.
pub(crate) struct Places {
    pub(crate) limit: u32,
    taken: AtomicU32,
}

impl Places {
    pub(crate) fn new(limit: u32) -> Arc<Self> {
        Arc::new(Self { limit, taken: AtomicU32::new(0) })
    }
}

impl Pool {
    pub(crate) fn new(name: &DeploymentName, bounds: &Bounds, places: &Arc<Places>) -> Arc<Self> {
        Arc::new(Self {
            name: name.clone(),
            admission: Admission::new(bounds),
            memory: Arc::new(MemoryBudget::new(bounds.memory_bytes)),
            threads: ArcSwap::from_pointee(Threads::new(name, bounds.threads)),
            bounds: ArcSwap::from_pointee(bounds.clone()),
            present: AtomicU32::new(0),
            loaded: Mutex::default(),
            places: Arc::clone(places),
            loads: AtomicU64::new(0),
            load_nanos: AtomicU64::new(0),
            load_failures: AtomicU64::new(0),
            evictions: AtomicU64::new(0),
        })
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
        self.evict(&mut self.lock(), 0);
    }

    pub(crate) fn bounds(&self) -> Arc<Bounds> {
        self.bounds.load_full()
    }

    /// Lets a request in, to be read, to wait and to run. Errors: resource exhausted, when all that may run and wait are there: such a
    /// request is not worth reading.
    pub(crate) fn arrive(self: &Arc<Self>) -> Result<Arrival, Error> {
        let arrival = Arrival(Arc::clone(self));
        let before = self.present.fetch_add(1, Ordering::Relaxed);
        let bounds = self.bounds.load();
        if before < bounds.instances.saturating_add(bounds.queue) {
            return Ok(arrival);
        }
        self.admission.refused();
        let queue = bounds.queue;
        let name = &self.name;
        Err(exhausted(format!(
            "every instance of deployment {name} is busy and {queue} requests wait already"
        )))
    }

    /// Takes in a version that was just loaded: room is made by unloading the least valuable ones that do not serve and are not pinned.
    /// Errors: resource exhausted, when that is not enough; the version is not kept then.
    pub(crate) fn admit(&self, slot: &Arc<Slot>, took: Duration) -> Result<(), Error> {
        let bytes = slot.bytes();
        let mut loaded = self.lock();
        let held = self.evict(&mut loaded, bytes);
        let limit = self.bounds.load().loaded_bytes;
        if held + bytes > limit {
            let (held, bytes, limit) = (held >> 20, (bytes >> 20) + 1, limit >> 20);
            return Err(exhausted(format!(
                "it takes {bytes} MiB, and of the {limit} MiB that versions of deployment {} may take, {held} MiB serve or are pinned",
                self.name
            )));
        }
        if self.places.taken.fetch_add(1, Ordering::Relaxed) >= self.places.limit {
            self.places.taken.fetch_sub(1, Ordering::Relaxed);
            let limit = self.places.limit;
            return Err(exhausted(format!(
                "{limit} versions are in memory, and this host can hold no more: see loaded_versions in its configuration, and vm.max_map_count"
            )));
        }
        loaded.push(Arc::clone(slot));
        self.loads.fetch_add(1, Ordering::Relaxed);
        self.load_nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        Ok(())
    }

    pub(crate) fn load_failed(&self) {
        self.load_failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes a version out of memory. False: it is not there.
    pub(crate) fn unload(&self, slot: &Arc<Slot>) -> bool {
        let mut loaded = self.lock();
        let Some(at) = loaded.iter().position(|known| Arc::ptr_eq(known, slot)) else { return false };
        loaded.swap_remove(at);
        self.drop_loaded(slot);
        true
    }

    /// Ends warm instances that idle for so long, and unloads what no longer fits.
    pub(crate) fn tidy(&self, idle: Duration) {
        let slots: Vec<_> = self.lock().clone();
        for slot in slots {
            slot.tidy(idle);
        }
        self.evict(&mut self.lock(), 0);
        self.admission.utilisation();
    }

    /// Unloads until `more` bytes and one more version fit, the least valuable first. Returns the bytes of what is left.
    fn evict(&self, loaded: &mut Vec<Arc<Slot>>, more: u64) -> u64 {
        let limit = self.bounds.load().loaded_bytes;
        let mut held = total(loaded);
        let no_place = || more > 0 && self.places.taken.load(Ordering::Relaxed) >= self.places.limit;
        let full = |held: u64| held + more > limit || no_place();
        while full(held) {
            let idle = loaded.iter().enumerate().filter(|(_, slot)| slot.may_be_evicted());
            let Some((at, _)) = idle.min_by(|(_, a), (_, b)| a.value().total_cmp(&b.value())) else { break };
            let slot = loaded.swap_remove(at);
            held = held.saturating_sub(slot.bytes());
            self.drop_loaded(&slot);
            self.evictions.fetch_add(1, Ordering::Relaxed);
        }
        held
    }

    fn drop_loaded(&self, slot: &Slot) {
        slot.forget();
        self.places.taken.fetch_sub(1, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Slot>>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it holds and does now; `versions` are placed in it.
    pub(crate) fn status(&self, versions: u32) -> DeploymentStatus {
        let (running, waiting) = self.admission.counts();
        let loaded = self.lock();
        DeploymentStatus {
            name: self.name.clone(),
            bounds: Bounds::clone(&self.bounds.load()),
            threads: self.threads.load().count(),
            versions,
            loaded: u32::try_from(loaded.len()).unwrap_or(u32::MAX),
            loaded_bytes: total(&loaded),
            running,
            waiting,
            idle_instances: loaded.iter().map(|slot| slot.footprint().idle_instances).sum(),
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

fn total(loaded: &[Arc<Slot>]) -> u64 {
    loaded.iter().map(|slot| slot.bytes()).sum()
}

fn exhausted(text: String) -> Error {
    Error::new(ErrorCode::ResourceExhausted, text)
}
