//! One deployment at work: its queue, its threads, the memory of its instances and its versions in memory.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use modelhost_core::budget::ByteBudget;
use modelhost_core::deployment::{Bounds, DeploymentName, MemoryBudget};
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::event::{DeploymentStatus, DeploymentTotals, Tally};

use crate::admission::Admission;
use crate::slot::{Ready, Slot};
use crate::threads::Threads;

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
    places: Arc<Places>,
    loads: AtomicU64,
    load_nanos: AtomicU64,
    load_failures: AtomicU64,
    evictions: AtomicU64,
}

/// The versions in memory.
#[derive(Default)]
struct Loaded {
    kept: Vec<Kept>,
    /// Of all of them.
    bytes: u64,
}

struct Kept {
    slot: Arc<Slot>,
    /// As of the last look: warm instances come and go.
    bytes: u64,
}

impl Loaded {
    fn keep(&mut self, slot: &Arc<Slot>, bytes: u64) {
        self.kept.push(Kept { slot: Arc::clone(slot), bytes });
        self.bytes += bytes;
    }

    /// Takes one out; whoever drops what comes back waits for the system to unmap it, unless it still runs.
    fn take(&mut self, at: usize) -> Option<Arc<Ready>> {
        let Kept { slot, bytes } = self.kept.swap_remove(at);
        self.bytes -= bytes;
        slot.forget()
    }

    /// The least valuable one that does not serve and is not pinned.
    fn least(&self) -> Option<usize> {
        let now = Instant::now();
        let idle = self.kept.iter().enumerate().filter(|(_, kept)| kept.slot.may_be_evicted());
        let valued = idle.map(|(at, kept)| (at, kept.slot.value(kept.bytes, now)));
        valued.min_by(|(_, a), (_, b)| a.total_cmp(b)).map(|(at, _)| at)
    }

    fn look(&mut self) {
        for kept in &mut self.kept {
            kept.bytes = kept.slot.footprint().bytes;
        }
        self.bytes = self.kept.iter().map(|kept| kept.bytes).sum();
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
    pub(crate) limit: u32,
    taken: AtomicU32,
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
        Arc::new(Self { limit, taken: AtomicU32::new(0), bodies, streams, body_bytes })
    }
}

impl Pool {
    pub(crate) fn new(name: &DeploymentName, bounds: &Bounds, places: &Arc<Places>) -> Arc<Self> {
        Arc::new(Self {
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
        let arrival = Arrival(Arc::clone(self));
        let before = self.present.fetch_add(1, Ordering::Relaxed);
        if before < self.places_for_requests() { Ok(arrival) } else { Err(self.full()) }
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

    /// Takes in a version that was just loaded: room is made by unloading the least valuable ones that do not serve and are not pinned.
    /// Errors: resource exhausted, when that is not enough; the version is not kept then.
    pub(crate) fn admit(&self, slot: &Arc<Slot>, took: Duration) -> Result<(), Error> {
        let bytes = slot.footprint().bytes;
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
        if self.places.taken.fetch_add(1, Ordering::Relaxed) >= self.places.limit {
            self.places.taken.fetch_sub(1, Ordering::Relaxed);
            let limit = self.places.limit;
            return Err(exhausted(format!(
                "{limit} versions are in memory, and this host can hold no more: see loaded_versions in its configuration, and vm.max_map_count"
            )));
        }
        loaded.keep(slot, bytes);
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
        let Some(at) = loaded.kept.iter().position(|kept| Arc::ptr_eq(&kept.slot, slot)) else {
            return false;
        };
        let _unloaded = loaded.take(at);
        drop(loaded);
        self.places.taken.fetch_sub(1, Ordering::Relaxed);
        true
    }

    /// Ends warm instances that idle for so long, and unloads what no longer fits.
    pub(crate) fn tidy(&self, idle: Duration) {
        let slots: Vec<_> = self.lock().kept.iter().map(|kept| Arc::clone(&kept.slot)).collect();
        for slot in slots {
            slot.tidy(idle);
        }
        let mut loaded = self.lock();
        loaded.look();
        let evicted = self.evict(&mut loaded, 0);
        drop(loaded);
        drop(evicted); // after the lock
        self.admission.utilisation();
    }

    /// Unloads until `more` bytes and one more version fit, the least valuable first. What comes back is to be dropped without the lock.
    fn evict(&self, loaded: &mut Loaded, more: u64) -> Vec<Arc<Ready>> {
        let limit = self.bounds.load().loaded_bytes;
        let no_place = || more > 0 && self.places.taken.load(Ordering::Relaxed) >= self.places.limit;
        let mut evicted = Vec::new();
        while loaded.bytes + more > limit || no_place() {
            let Some(at) = loaded.least() else { break };
            evicted.extend(loaded.take(at));
            self.places.taken.fetch_sub(1, Ordering::Relaxed);
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
        let mut loaded = self.lock();
        loaded.look();
        DeploymentStatus {
            name: self.name.clone(),
            bounds: Bounds::clone(&self.bounds.load()),
            threads: self.threads.load().count(),
            versions,
            loaded: u32::try_from(loaded.kept.len()).unwrap_or(u32::MAX),
            loaded_bytes: loaded.bytes,
            running,
            waiting,
            idle_instances: loaded.kept.iter().map(|kept| kept.slot.footprint().idle_instances).sum(),
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
