//! One graph: its backend, what its evaluations take, and which of them are short.

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

/// A graph that usually takes no longer is evaluated on the thread that asks: going to another costs as much. Not one whose work may
/// be endless for the next values.
const SHORT: Duration = Duration::from_micros(100);

/// How many evaluations must have been seen before that is believed, and of how many bytes of tensors.
const SEEN: u64 = 8;
const SMALL: usize = 64 << 10;

/// Shapes that are remembered as short.
const KEPT_SHAPES: usize = 16;

/// The processor time of every so many short evaluations is measured.
const METER_EVERY: u32 = 8;

pub(crate) struct Lane {
    pub(crate) backend: Box<dyn Backend>,
    batching: Batching,
    /// Its work follows from the shapes of its inputs.
    is_bounded: bool,
    /// Its version's account.
    memory: Arc<Memory>,
    seen: AtomicU64,
    /// What an evaluation takes lately, in nanoseconds.
    usual: AtomicU64,
    /// The dimensions of all inputs, one after another, of evaluations that were short; the latest last.
    short: RwLock<Vec<Vec<u64>>>,
    busy: AtomicU64,
    pub(crate) batch_rows: Counts,
    pub(crate) queued_micros: Counts,
}

/// One evaluation that somebody waits for.
pub(crate) struct Job {
    pub(super) ticket: Ticket,
    pub(super) inputs: Vec<Tensor>,
    /// Its inputs, counted as long as they are kept, whoever still waits.
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

    /// Time of its evaluations.
    pub(crate) fn busy(&self) -> Duration {
        Duration::from_nanos(self.busy.load(Ordering::Relaxed))
    }

    /// Evaluates at once, on this thread, what is known to be short. `None`: it may not be, or something would have to be waited for.
    /// The time of one in a few is measured, since asking for it is two system calls.
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

    /// Evaluates, and remembers what processor time that takes: the larger of this one's and seven eighths of what was usual, so that
    /// one long evaluation counts at once.
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

    /// What is no larger in any dimension takes no longer.
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

/// Whether no dimension is larger. Texts are as long as they like, so that their shapes say nothing.
fn is_within(inputs: &[Tensor], seen: &[u64]) -> bool {
    let came = inputs.iter().flat_map(|input| input.shape());
    inputs.iter().all(|input| input.dtype().size().is_some())
        && came.clone().count() == seen.len()
        && came.zip(seen).all(|(came, seen)| came <= seen)
}

/// A backend that panics is the graph's fault.
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

/// Processor time of this thread so far.
fn thread_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}
