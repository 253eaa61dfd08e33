//! One version's place in memory: loaded on first use, kept until it is unloaded.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use modelhost_core::batch::can_join;
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::event::{Prediction, Role, Tally, VersionUsage};
use modelhost_core::graph::GraphStatus;
use modelhost_core::infer::{Deadline, InferRequest};
use modelhost_core::ports::{Footprint, LoadedModel, ModelRuntime, Recorder};
use modelhost_core::tensor::Tensor;
use modelhost_core::version::Version;
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::Mutex;

use crate::admission::Line;
use crate::batch::Batcher;
use crate::demand::Demand;
use crate::pool::Pool;
use crate::threads::{Job, LONG};

/// A version that failed to load is not tried again for this long, doubling up to the second.
const RETRY_AFTER: Duration = Duration::from_secs(1);
const RETRY_AFTER_MOST: Duration = Duration::from_secs(60);

/// A version that nobody asked for so long gives back what it can get again from disk.
const REST_AFTER: Duration = Duration::from_secs(5);

/// The processor time of every so many short predictions is measured, besides the first one's: asking for it are two system calls.
const METER_EVERY: u64 = 16;

pub(crate) struct Slot {
    pub(crate) version: Arc<Version>,
    pub(crate) recorder: Arc<dyn Recorder>,
    pub(crate) pool: Arc<Pool>,
    runtime: Arc<dyn ModelRuntime>,
    line: Arc<Line>,
    /// Joins requests; `None`, where nobody asked for it, or its graphs join them.
    batcher: Option<Arc<Batcher>>,
    loaded: ArcSwapOption<Ready>,
    /// Held while loading, so that callers who come meanwhile wait for that one load.
    loading: Mutex<Option<LastFailure>>,
    /// Unloaded by a client: not loaded again until it is told to.
    withdrawn: AtomicBool,
    /// A policy keeps it in memory.
    pinned: AtomicBool,
    /// Another slot has its version now: requests that came before finish here, and nothing stays in memory.
    retired: AtomicBool,
    demand: Demand,
    /// It gave back what it can since it was last used.
    rests: AtomicBool,
    runs: AtomicU64,
    loads: AtomicU64,
    load_nanos: AtomicU64,
}

pub(crate) type Ready = Arc<dyn LoadedModel>;

struct LastFailure {
    error: Error,
    until: Instant,
    pause: Duration,
}

impl Slot {
    pub(crate) fn new(
        version: Arc<Version>,
        pool: Arc<Pool>,
        runtime: Arc<dyn ModelRuntime>,
        recorder: Arc<dyn Recorder>,
    ) -> Self {
        Self {
            line: Line::new(&version, Arc::clone(&recorder)),
            batcher: batcher(&version),
            version,
            recorder,
            pool,
            runtime,
            loaded: ArcSwapOption::empty(),
            loading: Mutex::new(None),
            withdrawn: AtomicBool::new(false),
            pinned: AtomicBool::new(false),
            retired: AtomicBool::new(false),
            demand: Demand::default(),
            rests: AtomicBool::new(false),
            runs: AtomicU64::new(0),
            loads: AtomicU64::new(0),
            load_nanos: AtomicU64::new(0),
        }
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.loaded.load().is_some()
    }

    /// Takes it out of memory; what runs finishes. Says whether it was there.
    pub(crate) fn unload(self: &Arc<Self>) -> bool {
        self.pool.unload(self)
    }

    /// Lets the loaded model go. Only for its pool, which counts it.
    pub(crate) fn forget(&self) -> Option<Arc<Ready>> {
        self.loaded.swap(None)
    }

    /// Gives its place to another slot of its version; what runs finishes.
    pub(crate) fn retire(self: &Arc<Self>) {
        self.retired.store(true, Ordering::Release);
        self.unload();
    }

    fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    /// Unloads it and answers nobody, until a load that somebody asks for.
    pub(crate) fn withdraw(self: &Arc<Self>) {
        self.withdrawn.store(true, Ordering::Relaxed);
        self.unload();
    }

    /// Takes a withdrawal back.
    pub(crate) fn bring_back(&self) {
        self.withdrawn.store(false, Ordering::Relaxed);
    }

    /// Keeps it in memory once it is there, or no longer does.
    pub(crate) fn pin(&self, pinned: bool) {
        self.pinned.store(pinned, Ordering::Relaxed);
    }

    pub(crate) fn is_pinned(&self) -> bool {
        self.pinned.load(Ordering::Relaxed)
    }

    /// Whether it may be unloaded to make room: nobody pinned it, and it serves nobody now.
    pub(crate) fn may_be_evicted(&self) -> bool {
        !self.is_pinned() && self.line.running() == 0
    }

    /// What keeping it in memory is worth: the time that loading it again would take from its callers, per byte.
    #[expect(clippy::cast_precision_loss, reason = "it ranks")]
    pub(crate) fn value(&self, bytes: u64, now: Instant) -> f32 {
        let loads = self.loads.load(Ordering::Relaxed).max(1);
        let cost = self.load_nanos.load(Ordering::Relaxed) / loads;
        self.demand.lately(now) * cost as f32 / bytes.max(1) as f32
    }

    /// What it holds of memory; nothing when it is not loaded.
    pub(crate) fn footprint(&self) -> Footprint {
        self.loaded.load().as_ref().map(|model| model.footprint()).unwrap_or_default()
    }

    /// Ends instances that idle for so long; gives back pages when nobody asked it for a while.
    pub(crate) fn tidy(&self, idle: Duration) {
        let Some(model) = &*self.loaded.load() else { return };
        model.shrink(idle);
        if self.demand.idle() < REST_AFTER || self.line.running() > 0 {
            self.rests.store(false, Ordering::Relaxed);
        } else if !self.rests.swap(true, Ordering::Relaxed) {
            model.rest();
        }
    }

    /// Errors: unavailable, when it is withdrawn.
    pub(crate) fn check_available(&self) -> Result<(), Error> {
        if self.withdrawn.load(Ordering::Relaxed) {
            return Err(self.name_version(Error::new(ErrorCode::Unavailable, "it is unloaded")));
        }
        Ok(())
    }

    /// Why it cannot answer: withdrawn, or it failed to load and is not tried again yet.
    pub(crate) fn unavailable(&self) -> Option<String> {
        if self.withdrawn.load(Ordering::Relaxed) {
            return Some("unloaded".to_owned());
        }
        let failure = self.loading.try_lock().ok()?;
        failure.as_ref().filter(|_| !self.is_ready()).map(|last| last.error.message.clone())
    }

    /// The loaded version; loads it if need be, on a thread of its deployment and to the end, whoever still waits.
    /// Errors: the load's; for a while the remembered one, so that a broken version cannot burn the machine.
    pub(crate) async fn load(self: &Arc<Self>, retry: bool) -> Result<Ready, Error> {
        if let Some(model) = self.loaded.load_full() {
            return Ok(Ready::clone(&model));
        }
        let slot = Arc::clone(self);
        let threads = self.pool.threads.load_full();
        threads.load(Box::pin(async move { slot.load_here(retry).await })).await?
    }

    async fn load_here(self: Arc<Self>, retry: bool) -> Result<Ready, Error> {
        let mut failure = self.loading.lock().await;
        if retry {
            self.bring_back();
        } else if self.withdrawn.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorCode::Unavailable, "it is unloaded"));
        }
        if let Some(model) = self.loaded.load_full() {
            return Ok(Ready::clone(&model));
        }
        if let Some(last) = failure.as_ref().filter(|last| !retry && Instant::now() < last.until) {
            return Err(last.error.clone());
        }
        match self.load_now().await {
            Ok(model) => {
                *failure = None;
                Ok(model)
            }
            // Another moment, another answer: nothing is wrong with the version.
            Err(error) if error.code == ErrorCode::ResourceExhausted => Err(error),
            Err(error) => {
                let pause =
                    failure.as_ref().map_or(RETRY_AFTER, |last| (last.pause * 2).min(RETRY_AFTER_MOST));
                *failure = Some(LastFailure { error: error.clone(), until: Instant::now() + pause, pause });
                self.pool.load_failed();
                Err(error)
            }
        }
    }

    async fn load_now(self: &Arc<Self>) -> Result<Ready, Error> {
        let start = Instant::now();
        let (package, report) = (&self.version.package, &self.version.report);
        let model = self.runtime.load(package, Some(report), &self.pool.memory).await?;
        let took = start.elapsed();
        self.demand.add(start);
        self.loads.fetch_add(1, Ordering::Relaxed);
        self.load_nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        if self.is_retired() {
            return Ok(model); // for whoever asked before
        }
        self.loaded.store(Some(Arc::new(Arc::clone(&model))));
        if let Err(refusal) = self.pool.admit(self, took) {
            drop(self.forget());
            return Err(refusal);
        }
        if self.is_retired() {
            self.unload(); // retired between the two looks
        }
        tracing::debug!(model = %self.version.model, version = %self.version.number, ?took, "loaded");
        Ok(model)
    }

    /// Runs one request that came at `start` within the bounds of the version and its deployment, and records it.
    pub(crate) async fn infer(
        self: &Arc<Self>,
        request: Arc<InferRequest>,
        start: Instant,
        deadline: Deadline,
        role: Role,
    ) -> Result<(Vec<Tensor>, Timing), Error> {
        self.demand.add(start);
        let rows = request.rows();
        let mut run = Run { began: start, ended: None, cpu: Tally::default() };
        let result = self.admitted(request, start, deadline, role, &mut run).await;
        let ended = run.ended.unwrap_or_else(Instant::now);
        let timing = Timing { queued: run.began - start, ran: ended - run.began };
        self.recorder.prediction(&Prediction {
            role,
            error: result.as_ref().err().map(|error| error.code),
            rows,
            queued: timing.queued,
            ran: timing.ran,
            cpu: run.cpu,
        });
        match result {
            Ok(outputs) => Ok((outputs, timing)),
            Err(error) => Err(self.name_version(error)),
        }
    }

    /// Waits for leave, for the version to be loaded, and runs; notes in `run` how that went.
    async fn admitted(
        self: &Arc<Self>,
        request: Arc<InferRequest>,
        start: Instant,
        deadline: Deadline,
        role: Role,
        run: &mut Run,
    ) -> Result<Vec<Tensor>, Error> {
        let permit = self.pool.admission.enter(&self.line, start, deadline).await?;
        run.began = permit.since;
        let ready = self.loaded.load().as_deref().map(Ready::clone);
        let model = match ready {
            Some(model) => model,
            None => {
                let model = self.load(false).await?;
                run.began = Instant::now();
                model
            }
        };
        // Nobody waits for a challenger, so it does not keep the server's threads from those who are waited for.
        let is_long = role == Role::Challenger || self.line.usual_cpu() > LONG;
        let stands_for = self.stands_for(is_long);
        let used = (stands_for > 0).then_some(Duration::ZERO);
        let infer: Job<_> = match &self.batcher {
            Some(batcher) => {
                Box::pin(Arc::clone(batcher).infer(model, self.pool.threads.load_full(), request, deadline))
            }
            None => model.infer(request, deadline),
        };
        let job = Box::pin(Metered { run: infer, used });
        let threads = self.pool.threads.load();
        let (outputs, used) = threads.run(job, is_long).await?;
        let ended = Instant::now();
        permit.end(ended);
        run.ended = Some(ended);
        self.line.ran(ended - run.began, used);
        let nanos = used.map_or(0, |used| u64::try_from(used.as_nanos()).unwrap_or(u64::MAX));
        run.cpu = Tally { count: stands_for, nanos: nanos.saturating_mul(stands_for) };
        outputs
    }

    /// For how many predictions the processor time of the next one stands; for none, it is not measured.
    fn stands_for(&self, is_long: bool) -> u64 {
        match self.runs.fetch_add(1, Ordering::Relaxed) {
            run if is_long || run == 0 => 1,
            run if run.is_multiple_of(METER_EVERY) => METER_EVERY,
            _ => 0,
        }
    }

    /// What its graphs do; nothing, when it is not in memory.
    pub(crate) fn graphs(&self) -> Vec<GraphStatus> {
        self.loaded.load().as_ref().map(|model| model.graphs()).unwrap_or_default()
    }

    /// What it took and holds; nothing, when it was never used and is not in memory.
    pub(crate) fn usage(&self) -> Option<VersionUsage> {
        let statistics = self.recorder.statistics();
        let loads = Tally {
            count: self.loads.load(Ordering::Relaxed),
            nanos: self.load_nanos.load(Ordering::Relaxed),
        };
        if statistics.success.count + statistics.fail.count + statistics.cpu.count + loads.count == 0 {
            return None;
        }
        let footprint = self.footprint();
        Some(VersionUsage {
            version: Arc::clone(&self.version),
            deployment: self.pool.name.clone(),
            statistics,
            latency: self.recorder.latency(),
            running: self.line.running(),
            waiting: self.line.waiting(),
            idle_instances: footprint.idle_instances,
            loaded_bytes: self.is_ready().then_some(footprint.bytes),
            peak_instance_bytes: footprint.peak_instance_bytes,
            loads,
            graphs: self.graphs(),
            batch_rows: self.batcher.as_ref().map(|batcher| batcher.rows.read()),
        })
    }

    /// A fault of the plugin or its load says which version it was.
    fn name_version(&self, error: Error) -> Error {
        match error.code {
            ErrorCode::InvalidArgument => error,
            code => {
                let (model, number) = (&self.version.model, self.version.number);
                Error::new(code, format!("model {model} version {number}: {}", error.message))
            }
        }
    }
}

/// Joins requests where the manifest asks for it and the signature allows it, before a component without graphs.
fn batcher(version: &Version) -> Option<Arc<Batcher>> {
    let Version { package, report, .. } = version;
    let joins = package.batching.joins() && !package.has_graphs() && can_join(&report.signature);
    joins.then(|| Batcher::new(package.batching))
}

/// Where a request's time went.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timing {
    pub(crate) queued: Duration,
    pub(crate) ran: Duration,
}

/// How a prediction goes.
struct Run {
    began: Instant,
    ended: Option<Instant>,
    cpu: Tally,
}

/// A prediction, and, where it is measured, the processor time it takes on whatever threads it runs.
struct Metered {
    run: Job<Result<Vec<Tensor>, Error>>,
    used: Option<Duration>,
}

impl Future for Metered {
    type Output = (Result<Vec<Tensor>, Error>, Option<Duration>);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(used) = self.used else {
            return self.run.as_mut().poll(context).map(|outputs| (outputs, None));
        };
        let before = thread_time();
        let polled = self.run.as_mut().poll(context);
        let used = used + thread_time().saturating_sub(before);
        self.used = Some(used);
        polled.map(|outputs| (outputs, Some(used)))
    }
}

/// Processor time of this thread so far.
fn thread_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}
