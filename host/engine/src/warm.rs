//! Instances that answer one request after another.
//!
//! An instance is added when a request has waited for as long as starting one takes. So waiting takes at most twice
//! the least possible time. `shrink` ends idle instances. A caller drives the start that it waits for, but no longer
//! than its deadline. The next caller goes on with an unfinished start. After a failed start there is a pause.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::infer::Deadline;
use modelhost_core::ports::{BlobStore, BoxFuture};
use modelhost_core::version::Package;
use tokio::sync::Notify;
use tokio::time::timeout_at;

use crate::instance::{Instance, Loaded, read_files};
use crate::state::State;
use crate::stop::Stop;

/// Pause after a failed start. It doubles with each failure, up to the second value.
const RETRY_AFTER: Duration = Duration::from_secs(1);
const RETRY_AFTER_MOST: Duration = Duration::from_secs(60);

pub(crate) struct Warm {
    /// Idle instances. The most recently used one is last, and is taken first.
    idle: Mutex<Vec<(Instance, Instant)>>,
    freed: Notify,
    live: Arc<AtomicU32>,
    /// How long a start took, in microseconds.
    start_cost: AtomicU64,
    /// Starts whose callers left, and since when.
    left: Mutex<Vec<(Start, Instant)>>,
    failed: Mutex<Option<Failure>>,
    /// Where new instances read their files.
    blobs: Arc<dyn BlobStore>,
    package: Arc<Package>,
    load_limit: Duration,
}

/// A starting instance.
type Start = BoxFuture<'static, Result<(Instance, Live), Error>>;

/// Why the latest start failed.
struct Failure {
    error: Error,
    until: Instant,
    pause: Duration,
}

/// Counts a live instance. Emptied when the instance is put back. Otherwise dropping it counts the instance out.
struct Live(Option<Arc<AtomicU32>>);

impl Live {
    fn new(count: &Arc<AtomicU32>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Some(Arc::clone(count)))
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if let Some(count) = &self.0 {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// An instance that answers one request. It ends afterwards, unless it is put back.
pub(crate) struct Taken<'a> {
    warm: &'a Warm,
    instance: Instance,
    live: Live,
}

impl Taken<'_> {
    pub(crate) fn instance(&mut self) -> &mut Instance {
        &mut self.instance
    }

    pub(crate) fn put_back(mut self) {
        self.live.0 = None;
        self.warm.put_back(self.instance);
    }
}

/// A start that its caller drives. If the caller leaves, the next one goes on with it.
struct Driven<'a> {
    warm: &'a Warm,
    start: Option<Start>,
}

impl Drop for Driven<'_> {
    fn drop(&mut self) {
        if let Some(start) = self.start.take() {
            lock(&self.warm.left).push((start, Instant::now()));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Warm {
    pub(crate) fn new(blobs: Arc<dyn BlobStore>, package: Package, load_limit: Duration) -> Self {
        Self {
            idle: Mutex::default(),
            freed: Notify::new(),
            live: Arc::default(),
            start_cost: AtomicU64::new(0),
            left: Mutex::default(),
            failed: Mutex::default(),
            blobs,
            package: Arc::new(package),
            load_limit,
        }
    }

    /// Adds a started instance.
    pub(crate) fn add(&self, instance: Instance) {
        self.live.fetch_add(1, Ordering::Relaxed);
        self.put_back(instance);
    }

    fn put_back(&self, instance: Instance) {
        lock(&self.idle).push((instance, Instant::now()));
        self.freed.notify_one();
    }

    /// Takes an idle instance or starts one. Errors: deadline exceeded; those of the start.
    pub(crate) async fn take(&self, loaded: &Loaded, deadline: Deadline) -> Result<Taken<'_>, Error> {
        let mut until = None;
        loop {
            if let Some((instance, _)) = lock(&self.idle).pop() {
                return Ok(Taken { warm: self, instance, live: Live(Some(Arc::clone(&self.live))) });
            }
            let none_live = self.live.load(Ordering::Relaxed) == 0;
            let start_cost = || Duration::from_micros(self.start_cost.load(Ordering::Relaxed));
            let until = *until.get_or_insert_with(|| deadline.instant().min(Instant::now() + start_cost()));
            if none_live || timeout_at(until.into(), self.freed.notified()).await.is_err() {
                return self.start(loaded, deadline).await;
            }
        }
    }

    /// Starts an instance, which loads its model.
    async fn start(&self, loaded: &Loaded, deadline: Deadline) -> Result<Taken<'_>, Error> {
        if let Some(failure) = lock(&self.failed).as_ref().filter(|failure| Instant::now() < failure.until) {
            return Err(failure.error.clone());
        }
        let left = lock(&self.left).pop().map(|(start, _)| start);
        let (is_new, began) = (left.is_none(), Instant::now());
        let mut driven = Driven { warm: self, start: Some(left.unwrap_or_else(|| self.begin(loaded))) };
        let ended = std::future::poll_fn(|context| match &mut driven.start {
            Some(start) => start.as_mut().poll(context),
            None => std::task::Poll::Pending, // it is there until it ended
        });
        let ended = timeout_at(deadline.instant().into(), ended).await.map_err(|_| {
            Error::new(ErrorCode::DeadlineExceeded, "the request's deadline passed while an instance started")
        })?;
        driven.start = None;
        match ended {
            Ok((instance, live)) => {
                *lock(&self.failed) = None;
                if is_new {
                    let cost = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
                    self.start_cost.store(cost, Ordering::Relaxed);
                }
                Ok(Taken { warm: self, instance, live })
            }
            Err(error) => {
                self.note_failure(&error);
                Err(error)
            }
        }
    }

    fn begin(&self, loaded: &Loaded) -> Start {
        let (engine, pre) = (loaded.engine.clone(), loaded.pre.clone());
        let (memory, graphs) = (loaded.memory_limit(), loaded.graphs.clone());
        let (blobs, package, limit) = (Arc::clone(&self.blobs), Arc::clone(&self.package), self.load_limit);
        let live = Live::new(&self.live);
        Box::pin(async move {
            let files = read_files(&*blobs, &package).await?;
            let store = State::store(&engine, memory, Stop::after(limit), Some(files), graphs);
            let mut instance = Instance::start(&pre, store, limit).await?;
            instance.load(&package, limit).await.map_err(|error| error.within("load"))?;
            Ok((instance, live))
        })
    }

    fn note_failure(&self, error: &Error) {
        if error.code == ErrorCode::ResourceExhausted {
            return; // another moment, another answer
        }
        let mut failed = lock(&self.failed);
        let pause = failed.as_ref().map_or(RETRY_AFTER, |last| (last.pause * 2).min(RETRY_AFTER_MOST));
        *failed = Some(Failure { error: error.clone(), until: Instant::now() + pause, pause });
    }

    /// Ends instances and starts that idled for so long.
    pub(crate) fn shrink(&self, idle: Duration) {
        let mut instances = lock(&self.idle);
        let count = instances.iter().take_while(|(_, since)| since.elapsed() >= idle).count();
        let ended: Vec<_> = instances.drain(..count).collect();
        drop(instances);
        self.live.fetch_sub(u32::try_from(ended.len()).unwrap_or(u32::MAX), Ordering::Relaxed);
        let left: Vec<_> = lock(&self.left).extract_if(.., |(_, since)| since.elapsed() >= idle).collect();
        drop(left);
    }

    /// The number of idle instances, and their memory in bytes.
    pub(crate) fn idle(&self) -> (u32, u64) {
        let idle = lock(&self.idle);
        let bytes: u64 = idle.iter().map(|(instance, _)| instance.store.data().memory.taken).sum();
        (u32::try_from(idle.len()).unwrap_or(u32::MAX), bytes)
    }
}
