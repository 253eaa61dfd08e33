//! Instances that answer one request after another.
//!
//! One more is started when a request has waited for a free one as long as starting one takes, so that waiting never costs more than twice
//! what it must; those that idle are ended by `shrink`. A caller drives the start it waits for, and no longer than it waits for its answer:
//! what it leaves unfinished the next one goes on with. A version whose start failed is not started again for a while.

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

/// A version whose instance did not start is not started again for so long, doubling up to the second.
const RETRY_AFTER: Duration = Duration::from_secs(1);
const RETRY_AFTER_MOST: Duration = Duration::from_secs(60);

pub(crate) struct Warm {
    /// The one that was used last is at the end, and taken first.
    idle: Mutex<Vec<(Instance, Instant)>>,
    freed: Notify,
    live: Arc<AtomicU32>,
    /// How long starting one took, in microseconds.
    start_cost: AtomicU64,
    /// Starts that their callers left, and since when.
    left: Mutex<Vec<(Start, Instant)>>,
    failed: Mutex<Option<Failure>>,
    /// What each new one loads from.
    blobs: Arc<dyn BlobStore>,
    package: Arc<Package>,
    load_limit: Duration,
}

/// An instance on its way.
type Start = BoxFuture<'static, Result<(Instance, Live), Error>>;

/// Why the latest start failed.
struct Failure {
    error: Error,
    until: Instant,
    pause: Duration,
}

/// Its place in the count of those that live: emptied when the instance goes back, counted out when it ends otherwise.
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

/// An instance that answers one request. It ends with it, unless it is put back.
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

/// A start that its caller drives; left for the next one when the caller goes.
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

    /// Adds an instance that was started elsewhere.
    pub(crate) fn add(&self, instance: Instance) {
        self.live.fetch_add(1, Ordering::Relaxed);
        self.put_back(instance);
    }

    fn put_back(&self, instance: Instance) {
        lock(&self.idle).push((instance, Instant::now()));
        self.freed.notify_one();
    }

    /// A free instance, or a new one. Errors: deadline exceeded; what starting one says.
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

    /// One more, which loads its model first.
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

    /// Ends what nobody used for so long.
    pub(crate) fn shrink(&self, idle: Duration) {
        let mut instances = lock(&self.idle);
        let count = instances.iter().take_while(|(_, since)| since.elapsed() >= idle).count();
        let ended: Vec<_> = instances.drain(..count).collect();
        drop(instances);
        self.live.fetch_sub(u32::try_from(ended.len()).unwrap_or(u32::MAX), Ordering::Relaxed);
        let left: Vec<_> = lock(&self.left).extract_if(.., |(_, since)| since.elapsed() >= idle).collect();
        drop(left);
    }

    /// How many wait for a request, and their memory in bytes.
    pub(crate) fn idle(&self) -> (u32, u64) {
        let idle = lock(&self.idle);
        let bytes: u64 = idle.iter().map(|(instance, _)| instance.store.data().memory.taken).sum();
        (u32::try_from(idle.len()).unwrap_or(u32::MAX), bytes)
    }
}
