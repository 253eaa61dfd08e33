//! A version in this process: its [`Residence`] in memory, its line, its rank, and the run of a request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use modelhost_core::batch::can_join;
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::event::{Prediction, Role, Tally, VersionUsage};
use modelhost_core::graph::GraphStatus;
use modelhost_core::infer::{Deadline, InferRequest};
use modelhost_core::ports::{Footprint, ModelRuntime, Recorder};
use modelhost_core::tensor::Tensor;
use modelhost_core::version::Version;

use crate::admission::{Line, Permit};
use crate::batch::Batcher;
use crate::meter::{Meter, Metered, tally};
use crate::pool::Pool;
use crate::rank::Rank;
use crate::residence::{Asked, Ready, Residence, Who};
use crate::threads::{Job, LONG};

#[cfg(test)]
mod tests;

/// After so much time without a request, a version gives back what it can read from disk again.
const REST_AFTER: Duration = Duration::from_secs(5);

pub(crate) struct Slot {
    pub(crate) version: Arc<Version>,
    pub(crate) recorder: Arc<dyn Recorder>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) residence: Residence,
    runtime: Arc<dyn ModelRuntime>,
    line: Arc<Line>,
    /// Joins requests. `None` if the manifest does not ask for it, or if its graphs join them.
    batcher: Option<Arc<Batcher>>,
    pub(crate) rank: Rank,
    meter: Meter,
    /// Whether it gave that back since its last request.
    rests: AtomicBool,
}

impl Slot {
    /// `withdrawn`: the version answers no caller until a load is asked for.
    pub(crate) fn new(
        version: Arc<Version>,
        pool: Arc<Pool>,
        runtime: Arc<dyn ModelRuntime>,
        recorder: Arc<dyn Recorder>,
        withdrawn: bool,
    ) -> Self {
        Self {
            line: Line::new(&version, Arc::clone(&recorder)),
            batcher: batcher(&version),
            version,
            recorder,
            pool,
            residence: Residence::new(withdrawn),
            runtime,
            rank: Rank::default(),
            meter: Meter::default(),
            rests: AtomicBool::new(false),
        }
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.residence.is_ready()
    }

    /// Unloads the version. Running requests finish. Returns whether it was in memory.
    pub(crate) fn unload(self: &Arc<Self>) -> bool {
        self.pool.unload(self, Residence::unload)
    }

    /// Unloads the version, because another slot takes its place. Running requests finish.
    pub(crate) fn retire(self: &Arc<Self>) {
        self.pool.unload(self, Residence::retire);
    }

    /// Unloads the version. It answers no caller until a load is asked for.
    pub(crate) fn withdraw(self: &Arc<Self>) {
        self.pool.unload(self, Residence::withdraw);
    }

    /// Whether it may be unloaded to make room. It may not if it is pinned or serves a request.
    pub(crate) fn may_be_evicted(&self) -> bool {
        self.line.running() == 0 && !self.residence.is_pinned()
    }

    /// The value of keeping it in memory.
    pub(crate) fn value(&self, bytes: u64, now: Instant) -> f32 {
        self.rank.value(bytes, now)
    }

    /// What it holds in memory. Empty if it is not loaded.
    pub(crate) fn footprint(&self) -> Footprint {
        self.residence.ready().map(|model| model.footprint()).unwrap_or_default()
    }

    /// Ends instances that idle for so long. Gives back pages after some time without a request.
    pub(crate) fn tidy(&self, idle: Duration) {
        let Some(model) = self.residence.ready() else { return };
        model.shrink(idle);
        if self.rank.demand.idle() < REST_AFTER || self.line.running() > 0 {
            self.rests.store(false, Ordering::Relaxed);
        } else if !self.rests.swap(true, Ordering::Relaxed) {
            model.rest();
        }
    }

    /// Returns the loaded version. If it is not loaded, this loads it to the end, even if the caller leaves. Errors:
    /// those of the load.
    pub(crate) async fn load(self: &Arc<Self>, who: Who) -> Result<Ready, Error> {
        let limits = &self.version.package.limits;
        let most_waiting = limits.queue.saturating_add(limits.concurrency);
        let wait = match self.residence.ask(who, Instant::now(), most_waiting)? {
            Asked::There(model) => return Ok(model),
            Asked::Wait(wait) => wait,
            Asked::Load(wait) => {
                self.start_load();
                wait
            }
        };
        wait.end().await
    }

    /// As [`Self::load`] for a prediction. Its deadline ends the waiting, and errors do not blame the caller.
    async fn load_for_caller(self: &Arc<Self>, deadline: Deadline) -> Result<Ready, Error> {
        let load = tokio::time::timeout_at(deadline.instant().into(), self.load(Who::Caller));
        let late = |_| {
            let text = "the request's deadline passed while the version was loaded";
            Error::new(ErrorCode::DeadlineExceeded, text)
        };
        load.await.map_err(late)?.map_err(not_the_callers_fault)
    }

    fn start_load(self: &Arc<Self>) {
        let (slot, threads) = (Arc::clone(self), self.pool.threads.load_full());
        let what = format!("model {} version {}", self.version.model, self.version.number);
        let counted = self.pool.places.loads.begin(what, Instant::now());
        let job = Arc::clone(&threads);
        job.spawn(Box::pin(async move {
            let _counted = counted;
            let load = Box::pin(Arc::clone(&slot).load_now());
            if let Err(error) = threads.load(load).await.flatten() {
                slot.note_failure(&error);
                slot.residence.failed(error, Instant::now());
            }
        }));
    }

    /// If only room was missing, nothing has failed.
    fn note_failure(&self, error: &Error) {
        if error.code != ErrorCode::ResourceExhausted {
            let (model, version) = (&self.version.model, self.version.number);
            tracing::warn!(%model, %version, error = %error.chain(), "not loaded");
            self.pool.load_failed();
        }
    }

    async fn load_now(self: Arc<Self>) -> Result<(), Error> {
        let start = Instant::now();
        let (package, report) = (&self.version.package, &self.version.report);
        let model = self.runtime.load(package, Some(report), &self.pool.memory).await?;
        let took = start.elapsed();
        self.rank.demand.add(start);
        self.rank.loaded(took);
        self.pool.take_in(&self, model, took)?;
        tracing::debug!(model = %self.version.model, version = %self.version.number, ?took, "loaded");
        Ok(())
    }

    /// Runs a request that arrived at `start`, within the bounds of the version and its deployment. Records it.
    pub(crate) async fn infer(
        self: &Arc<Self>,
        request: Arc<InferRequest>,
        start: Instant,
        deadline: Deadline,
        role: Role,
    ) -> Result<(Vec<Tensor>, Timing), Error> {
        self.rank.demand.add(start);
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

    /// Waits for the load and for an instance, then runs the request. Fills in `run`.
    async fn admitted(
        self: &Arc<Self>,
        request: Arc<InferRequest>,
        start: Instant,
        deadline: Deadline,
        role: Role,
        run: &mut Run,
    ) -> Result<Vec<Tensor>, Error> {
        let (model, permit) = self.enter(start, deadline).await?;
        run.began = permit.since;
        // No caller waits for a challenger, so it does not run on the server's threads.
        let is_long = role == Role::Challenger || self.line.usual_cpu() > LONG;
        let stands_for = self.meter.stands_for(is_long);
        let job: Job<_> = match &self.batcher {
            Some(batcher) => {
                let threads = self.pool.threads.load_full();
                Box::pin(Arc::clone(batcher).infer(model, threads, request, deadline))
            }
            None => Box::pin(Metered::new(model.infer(request, deadline), stands_for > 0)),
        };
        let threads = self.pool.threads.load();
        let (outputs, used) = threads.run(job, is_long).await?;
        let ended = Instant::now();
        permit.end(ended);
        run.ended = Some(ended);
        self.line.ran(ended - run.began, used);
        // The share of a joined request is always known.
        let stands_for = if self.batcher.is_some() { u64::from(used.is_some()) } else { stands_for };
        run.cpu = tally(used, stands_for);
        outputs
    }

    /// Returns the loaded version and permission to run. A request that waits for a load holds no instance. It runs
    /// the version that it waited for, even if that was evicted meanwhile.
    async fn enter(
        self: &Arc<Self>,
        start: Instant,
        deadline: Deadline,
    ) -> Result<(Ready, Permit<'_>), Error> {
        let mut loaded = None;
        loop {
            if loaded.is_none() && !self.is_ready() {
                loaded = Some(self.load_for_caller(deadline).await?);
            }
            let now = if loaded.is_some() { Instant::now() } else { start };
            let permit = self.pool.admission.enter(&self.line, now, deadline).await?;
            if let Some(model) = self.residence.ready().or_else(|| loaded.take()) {
                return Ok((model, permit));
            }
        }
    }

    /// What its graphs did. Empty if it is not in memory.
    pub(crate) fn graphs(&self) -> Vec<GraphStatus> {
        self.residence.ready().map(|model| model.graphs()).unwrap_or_default()
    }

    /// What it used and holds. `None` if it was never used and is not in memory.
    pub(crate) fn usage(&self) -> Option<VersionUsage> {
        let statistics = self.recorder.statistics();
        let loads = self.rank.loads();
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

    /// Adds the version to an error, unless the caller's input is the reason.
    fn name_version(&self, error: Error) -> Error {
        match error.code {
            ErrorCode::InvalidArgument => error,
            _ => {
                let (model, number) = (&self.version.model, self.version.number);
                error.within(format_args!("model {model} version {number}"))
            }
        }
    }
}

/// If a registered version cannot be loaded, the host is at fault and not the caller. The package was accepted, so
/// something is missing that was there.
fn not_the_callers_fault(error: Error) -> Error {
    match error.code {
        ErrorCode::InvalidArgument
        | ErrorCode::NotFound
        | ErrorCode::Conflict
        | ErrorCode::PermissionDenied
        | ErrorCode::TooLarge
        | ErrorCode::UnsupportedFormat
        | ErrorCode::Unsupported => error.with_code(ErrorCode::Unavailable).within("it cannot be loaded"),
        ErrorCode::ResourceExhausted
        | ErrorCode::DeadlineExceeded
        | ErrorCode::Unavailable
        | ErrorCode::PluginFault
        | ErrorCode::Internal => error,
    }
}

fn batcher(version: &Version) -> Option<Arc<Batcher>> {
    let Version { package, report, .. } = version;
    let joins = package.batching.joins() && !package.has_graphs() && can_join(&report.signature);
    joins.then(|| Batcher::new(package.batching))
}

/// Where the time of a request went.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timing {
    pub(crate) queued: Duration,
    pub(crate) ran: Duration,
}

/// The course of a prediction.
struct Run {
    began: Instant,
    ended: Option<Instant>,
    cpu: Tally,
}
