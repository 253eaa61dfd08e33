//! One graph: its backend, and which of its evaluations are short.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use modelhost_core::batch::{self, Batch, Join, Member, Settled};
use modelhost_core::error::Error;
use modelhost_core::graph::{Batching, Counts};
use modelhost_core::tensor::Tensor;
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::oneshot;

use super::crew::{Line, Ticket, Ticketed};
use crate::backend::{Backend, Stop};
use crate::memory::{Held, Memory};

/// A shorter evaluation runs on the calling thread, because moving it to another thread costs as much. This excludes
/// graphs whose work depends on values.
const SHORT: Duration = Duration::from_micros(100);

/// How many evaluations must have been short before that, and the most bytes of their inputs.
const SEEN: u64 = 8;
const SMALL: usize = 64 << 10;

/// How many shapes are remembered as short.
const KEPT_SHAPES: usize = 16;

/// The processor time of one in so many short evaluations is measured.
const METER_EVERY: u32 = 8;

pub(crate) struct Lane {
    pub(crate) backend: Box<dyn Backend>,
    batching: Batching,
    /// The work depends only on the shapes of the inputs.
    is_bounded: bool,
    /// The account of the version.
    memory: Arc<Memory>,
    seen: AtomicU64,
    /// The recent processor time of an evaluation, in nanoseconds.
    usual: AtomicU64,
    /// The dimensions of all inputs of short evaluations, one after another. The latest is last.
    short: RwLock<Vec<Vec<u64>>>,
    busy: AtomicU64,
    pub(crate) batch_rows: Counts,
    pub(crate) queued_micros: Counts,
}

/// One evaluation and its caller.
pub(crate) struct Job {
    pub(super) ticket: Ticket,
    pub(super) inputs: Vec<Tensor>,
    /// Counts the inputs as long as they exist.
    pub(super) _held: Held,
    pub(super) reply: oneshot::Sender<Result<Vec<Tensor>, Error>>,
}

impl Join for Job {
    fn inputs(&self) -> &[Tensor] {
        &self.inputs
    }
}

impl Ticketed for Job {
    fn ticket(&self) -> Ticket {
        self.ticket
    }
}

impl Line for Lane {
    type Job = Job;

    fn batching(&self) -> Batching {
        self.batching
    }

    fn width(&self) -> usize {
        self.backend.width()
    }

    fn is_beside(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.memory, &other.memory)
    }

    fn evaluate(&self, batch: Batch<Job>, stop: &Stop) -> Vec<Member<Job>> {
        let begun = Instant::now();
        for member in batch.members() {
            let queued = begun.saturating_duration_since(member.arrived).as_micros();
            self.queued_micros.add(u64::try_from(queued).unwrap_or(u64::MAX));
        }
        let rows = batch.rows();
        let outcome = batch.inputs().and_then(|inputs| self.run(&inputs, stop));
        match batch.settle(outcome) {
            Settled::Answered(answers) => {
                self.batch_rows.add(rows);
                for (job, answer) in answers {
                    drop(job.reply.send(answer)); // a caller who left needs no answer
                }
                Vec::new()
            }
            Settled::Failed(members, error) => {
                let error = error.chain();
                tracing::debug!(%error, members = members.len(), "a batch failed; each is evaluated alone");
                members
            }
        }
    }
}

impl Lane {
    pub(crate) fn new(
        backend: Box<dyn Backend>,
        batching: Batching,
        is_bounded: bool,
        memory: &Arc<Memory>,
    ) -> Self {
        let batching = if batch::can_join(backend.signature()) { batching } else { Batching::NONE };
        Self {
            backend,
            batching,
            is_bounded,
            memory: Arc::clone(memory),
            seen: AtomicU64::new(0),
            usual: AtomicU64::new(0),
            short: RwLock::default(),
            busy: AtomicU64::new(0),
            batch_rows: Counts::default(),
            queued_micros: Counts::default(),
        }
    }

    /// The total time of its evaluations.
    pub(crate) fn busy(&self) -> Duration {
        Duration::from_nanos(self.busy.load(Ordering::Relaxed))
    }

    /// Evaluates the inputs on this thread if that is known to be short. `None`: it may not be short, or it would
    /// have to wait. The time is measured only sometimes, because that takes two system calls.
    pub(super) fn run_short(&self, inputs: &[Tensor]) -> Option<Result<Vec<Tensor>, Error>> {
        if !self.is_short(inputs) {
            return None;
        }
        let is_measured = self.seen.fetch_add(1, Ordering::Relaxed).is_multiple_of(METER_EVERY.into());
        let start = is_measured.then(thread_time);
        let result = caught(|| self.backend.run_now(inputs)).transpose()?;
        if let Some(start) = start {
            let took = thread_time().saturating_sub(start);
            self.took(took);
            self.add_busy(took.saturating_mul(METER_EVERY));
        }
        self.batch_rows.add(batch::rows(inputs).unwrap_or(1));
        self.queued_micros.add(0);
        Some(result)
    }

    pub(super) fn is_short(&self, inputs: &[Tensor]) -> bool {
        !self.batching.joins()
            && self.is_bounded
            && self.backend.is_on_cpu()
            && self.seen.load(Ordering::Relaxed) >= SEEN
            && Duration::from_nanos(self.usual.load(Ordering::Relaxed)) <= SHORT
            && self
                .short
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .iter()
                .any(|seen| is_within(inputs, seen))
    }

    /// Evaluates the inputs and records the processor time. The record is the larger of this time and seven eighths
    /// of the recent one, so that one long evaluation counts at once.
    fn run(&self, inputs: &[Tensor], stop: &Stop) -> Result<Vec<Tensor>, Error> {
        let (start, begun) = (thread_time(), Instant::now());
        let result = caught(|| self.backend.run(inputs, stop));
        let took = thread_time().saturating_sub(start);
        self.took(took);
        self.add_busy(if self.backend.is_on_cpu() { took } else { begun.elapsed() });
        if self.is_bounded && took <= SHORT {
            self.remember(inputs);
        }
        self.seen.fetch_add(1, Ordering::Relaxed);
        result
    }

    /// Inputs that are no larger in any dimension take no longer.
    fn remember(&self, inputs: &[Tensor]) {
        let bytes: usize = inputs.iter().map(|input| input.data().len()).sum();
        let mut short = self.short.write().unwrap_or_else(PoisonError::into_inner);
        if bytes > SMALL || short.iter().any(|seen| is_within(inputs, seen)) {
            return;
        }
        if short.len() == KEPT_SHAPES {
            short.remove(0);
        }
        short.push(inputs.iter().flat_map(|input| input.shape()).copied().collect());
    }

    fn took(&self, time: Duration) {
        let usual = self.usual.load(Ordering::Relaxed);
        self.usual.store(nanos(time).max(usual - usual / 8), Ordering::Relaxed);
    }

    fn add_busy(&self, time: Duration) {
        self.busy.fetch_add(nanos(time), Ordering::Relaxed);
    }
}

/// Whether no dimension is larger. False for texts, because their shapes do not tell how long they are.
fn is_within(inputs: &[Tensor], seen: &[u64]) -> bool {
    let came = inputs.iter().flat_map(|input| input.shape());
    inputs.iter().all(|input| input.dtype().size().is_some())
        && came.clone().count() == seen.len()
        && came.zip(seen).all(|(came, seen)| came <= seen)
}

/// A panic of a backend is the graph's fault.
fn caught<T>(evaluate: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(evaluate)).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str);
        let said = said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked");
        Err(Error::fault(format!("the backend failed: {said}")))
    })
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The processor time of this thread.
fn thread_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}
