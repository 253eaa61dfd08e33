//! Who is evaluated next, together with whom, and on which thread.
//!
//! Every graph has a lane. Threads take turns over the lanes in which somebody waits, one batch a turn, so that no version's
//! callers wait for another's queue. A lane's batch is what waits at that moment and fits, up to its bound; it may wait a
//! little for more. An evaluation that nobody waits for any more is told to stop; one that cannot be stopped keeps its thread, which
//! another replaces. How many wait is bounded outside: an instance waits for one evaluation at a time.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use modelhost_core::batch;
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::graph::{Batching, Counts};
use modelhost_core::tensor::Tensor;
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::oneshot;

use crate::backend::{Backend, Stop};

#[cfg(test)]
mod tests;

/// Evaluations that go on although nobody waits for them: of one graph, and of all. Each keeps a thread.
const MOST_LOST_OF_LANE: usize = 4;
const MOST_LOST: usize = 64;

/// A graph that usually takes no longer is evaluated on the thread that asks: going to another costs as much. Not one whose work may
/// be endless for the next values.
const SHORT: Duration = Duration::from_micros(100);

/// How many evaluations must have been seen before that is believed, and of how many bytes of tensors: another request may bring more.
const SEEN: u64 = 8;
const SMALL: usize = 64 << 10;

/// The processor time of every so many short evaluations is measured.
const METER_EVERY: u32 = 8;

/// One graph's queue.
pub(crate) struct Lane {
    pub(crate) backend: Box<dyn Backend>,
    batching: Batching,
    can_join: bool,
    /// Its work follows from the shapes of its inputs.
    is_bounded: bool,
    /// Guarded by the scheduler's lock.
    queue: Mutex<VecDeque<Job>>,
    /// Evaluations that run.
    running: AtomicUsize,
    lost: AtomicUsize,
    seen: AtomicU64,
    /// What an evaluation takes lately, in nanoseconds.
    usual: AtomicU64,
    busy: AtomicU64,
    pub(crate) batch_rows: Counts,
    pub(crate) queued_micros: Counts,
}

impl Lane {
    pub(crate) fn new(backend: Box<dyn Backend>, batching: Batching, is_bounded: bool) -> Self {
        let can_join = batching.joins() && batch::can_join(backend.signature());
        Self {
            backend,
            batching,
            can_join,
            is_bounded,
            queue: Mutex::default(),
            running: AtomicUsize::new(0),
            lost: AtomicUsize::new(0),
            seen: AtomicU64::new(0),
            usual: AtomicU64::new(0),
            busy: AtomicU64::new(0),
            batch_rows: Counts::default(),
            queued_micros: Counts::default(),
        }
    }

    /// Time of its evaluations.
    pub(crate) fn busy(&self) -> Duration {
        Duration::from_nanos(self.busy.load(Ordering::Relaxed))
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Job>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_short(&self, inputs: &[Tensor]) -> bool {
        !self.can_join
            && self.is_bounded
            && inputs.iter().map(|input| input.data().len()).sum::<usize>() <= SMALL
            && self.backend.is_on_cpu()
            && self.seen.load(Ordering::Relaxed) >= SEEN
            && Duration::from_nanos(self.usual.load(Ordering::Relaxed)) <= SHORT
    }

    /// Evaluates, and remembers what processor time that takes: the larger of this one's and seven eighths of what was usual, so that
    /// one long evaluation counts at once.
    fn run(&self, inputs: &[Tensor], stop: &Stop) -> Result<Vec<Tensor>, Error> {
        let (start, begun) = (thread_time(), Instant::now());
        let result = self.evaluate(inputs, Some(stop));
        let took = thread_time().saturating_sub(start);
        self.took(took);
        self.seen.fetch_add(1, Ordering::Relaxed);
        self.add_busy(if self.backend.is_on_cpu() { took } else { begun.elapsed() });
        result
    }

    /// The same for one that is known to be short: nobody need stop it, and the time of one in a few is measured, since asking for it is
    /// two system calls.
    fn run_short(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, Error> {
        if !self.seen.fetch_add(1, Ordering::Relaxed).is_multiple_of(METER_EVERY.into()) {
            return self.evaluate(inputs, None);
        }
        let start = thread_time();
        let result = self.evaluate(inputs, None);
        let took = thread_time().saturating_sub(start);
        self.took(took);
        self.add_busy(took.saturating_mul(METER_EVERY));
        result
    }

    fn evaluate(&self, inputs: &[Tensor], stop: Option<&Stop>) -> Result<Vec<Tensor>, Error> {
        let result = catch_unwind(AssertUnwindSafe(|| self.backend.run(inputs, stop)));
        result.unwrap_or_else(|panic| {
            let said = panic.downcast_ref::<String>().map(String::as_str);
            let said = said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked");
            Err(Error::new(ErrorCode::PluginFault, format!("the backend failed: {said}")))
        })
    }

    fn took(&self, time: Duration) {
        let usual = self.usual.load(Ordering::Relaxed);
        self.usual.store(nanos(time).max(usual - usual / 8), Ordering::Relaxed);
    }

    fn add_busy(&self, time: Duration) {
        self.busy.fetch_add(nanos(time), Ordering::Relaxed);
    }

    /// Takes one of the places in which it is evaluated at once, if one is free.
    fn enter(&self) -> bool {
        let width = self.backend.width();
        let more = |running| (running < width).then_some(running + 1);
        self.running.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
    }

    fn leave(&self) {
        self.running.fetch_sub(1, Ordering::AcqRel);
    }

    /// When its oldest job's batch is due; `None` when nobody waits, or as many are evaluated as can be.
    fn due(&self, now: Instant) -> Option<Instant> {
        if self.running.load(Ordering::Acquire) >= self.backend.width() {
            return None;
        }
        let queue = self.queue();
        let oldest = queue.front()?;
        let most = u64::from(self.batching.max_batch);
        if !self.can_join || oldest.rows == 0 || queue.iter().map(|job| job.rows).sum::<u64>() >= most {
            return Some(now);
        }
        Some(oldest.arrived + self.batching.max_delay)
    }

    /// The oldest job and those that fit it, in their order.
    fn take(&self) -> Vec<Job> {
        let mut queue = self.queue();
        let Some(first) = queue.pop_front() else { return Vec::new() };
        let most = u64::from(self.batching.max_batch);
        if !self.can_join || first.rows == 0 {
            return vec![first];
        }
        let (mut rows, mut taken) = (first.rows, vec![first]);
        let mut at = 0;
        while let Some(job) = queue.get(at) {
            let fits = job.rows > 0
                && rows + job.rows <= most
                && taken.first().is_some_and(|first| batch::fit(&first.inputs, &job.inputs));
            if fits && let Some(job) = queue.remove(at) {
                rows += job.rows;
                taken.push(job);
            } else {
                at += 1;
            }
        }
        taken
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Processor time of this thread so far.
fn thread_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

/// One evaluation that somebody waits for.
struct Job {
    inputs: Vec<Tensor>,
    /// 0: it cannot be joined.
    rows: u64,
    arrived: Instant,
    place: Arc<Place>,
    reply: oneshot::Sender<Result<Vec<Tensor>, Error>>,
}

/// Where a job is, for whoever leaves before its end.
#[derive(Default)]
struct Place(Mutex<Stage>);

#[derive(Default)]
enum Stage {
    #[default]
    Waits,
    Runs(Arc<Batch>),
    Left,
}

/// A batch that runs.
struct Batch {
    stop: Stop,
    /// Members whose callers still wait.
    awaited: AtomicUsize,
    /// Its thread was replaced.
    lost: Mutex<bool>,
}

impl Place {
    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Leaves when it is dropped before the answer.
struct Caller<'a> {
    scheduler: &'a Arc<Scheduler>,
    lane: &'a Arc<Lane>,
    place: Arc<Place>,
    answered: bool,
}

impl Drop for Caller<'_> {
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        let stage = std::mem::replace(&mut *self.place.stage(), Stage::Left);
        if let Stage::Runs(batch) = stage
            && batch.awaited.fetch_sub(1, Ordering::AcqRel) == 1
        {
            batch.stop.ask();
            self.scheduler.lose(self.lane, &batch);
        }
    }
}

/// The threads that evaluate.
pub(crate) struct Scheduler {
    state: Mutex<State>,
    wake: Condvar,
    threads: usize,
}

#[derive(Default)]
struct State {
    /// Lanes in which somebody waits, in the order of their turns.
    turns: VecDeque<Arc<Lane>>,
    /// Threads that evaluate or wait for something to evaluate.
    threads: usize,
    idle: usize,
    lost: usize,
    closed: bool,
}

impl Scheduler {
    pub(crate) fn new(threads: usize) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), wake: Condvar::new(), threads: threads.max(1) })
    }

    /// Threads start when they are needed, and end with this.
    pub(crate) fn close(&self) {
        self.state().closed = true;
        self.wake.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Evaluates; an evaluation that has not ended `until` then is given up. Dropping the future gives it up too.
    pub(crate) async fn run(
        self: &Arc<Self>,
        lane: &Arc<Lane>,
        inputs: Vec<Tensor>,
        until: Instant,
    ) -> Result<Vec<Tensor>, Error> {
        if lane.is_short(&inputs) && lane.enter() {
            lane.batch_rows.add(batch::rows(&inputs).unwrap_or(1));
            lane.queued_micros.add(0);
            let result = lane.run_short(&inputs);
            lane.leave();
            if !lane.queue().is_empty() {
                self.wake.notify_one();
            }
            return result;
        }
        if lane.lost.load(Ordering::Relaxed) >= MOST_LOST_OF_LANE {
            return Err(Error::new(
                ErrorCode::ResourceExhausted,
                format!("{MOST_LOST_OF_LANE} evaluations of the graph run on past their deadlines"),
            ));
        }
        let (reply, answer) = oneshot::channel();
        let place = Arc::new(Place::default());
        let rows = if lane.can_join { batch::rows(&inputs).unwrap_or(0) } else { 0 };
        let job = Job { inputs, rows, arrived: Instant::now(), place: Arc::clone(&place), reply };
        self.submit(lane, job);
        let mut caller = Caller { scheduler: self, lane, place, answered: false };
        match tokio::time::timeout_at(until.into(), answer).await {
            Ok(answer) => {
                caller.answered = true;
                answer
                    .unwrap_or_else(|_| Err(Error::new(ErrorCode::Unavailable, "the host is shutting down")))
            }
            Err(_) => Err(Error::new(
                ErrorCode::DeadlineExceeded,
                "the graph's evaluation did not end before the deadline",
            )),
        }
    }

    fn submit(self: &Arc<Self>, lane: &Arc<Lane>, job: Job) {
        let mut state = self.state();
        let mut queue = lane.queue();
        queue.push_back(job);
        let is_first = queue.len() == 1;
        drop(queue);
        if is_first {
            state.turns.push_back(Arc::clone(lane));
        } else if lane.due(Instant::now()).is_some_and(|due| due > Instant::now()) {
            return; // a thread waits for that moment already
        }
        if state.idle > 0 {
            drop(state);
            self.wake.notify_one();
        } else {
            self.start_thread(&mut state);
        }
    }

    /// One more thread, if there may be one. A machine that has none left lets the others go on.
    fn start_thread(self: &Arc<Self>, state: &mut State) {
        if state.threads >= self.threads {
            return;
        }
        let scheduler = Arc::clone(self);
        match std::thread::Builder::new().name("graph".into()).spawn(move || scheduler.work()) {
            Ok(_) => state.threads += 1,
            Err(error) => tracing::error!(%error, "no thread to evaluate graphs"),
        }
    }

    fn work(self: Arc<Self>) {
        while let Some((lane, jobs)) = self.next() {
            if !self.evaluate(&lane, jobs) {
                return;
            }
        }
    }

    /// The next batch; waits for one. `None`: this thread is not needed any more.
    fn next(&self) -> Option<(Arc<Lane>, Vec<Job>)> {
        let mut state = self.state();
        loop {
            if state.closed {
                state.threads -= 1;
                return None;
            }
            let now = Instant::now();
            let dues: Vec<_> = state.turns.iter().map(|lane| lane.due(now)).collect();
            if let Some(at) = dues.iter().position(|due| due.is_some_and(|due| due <= now))
                && state.turns.get(at).is_some_and(|lane| lane.enter())
                && let Some(lane) = state.turns.remove(at)
            {
                let jobs = lane.take();
                if !lane.queue().is_empty() {
                    state.turns.push_back(Arc::clone(&lane));
                    if state.idle > 0 {
                        self.wake.notify_one();
                    }
                }
                return Some((lane, jobs));
            }
            state.idle += 1;
            state = match dues.iter().flatten().min() {
                Some(due) => {
                    let wait = self.wake.wait_timeout(state, due.saturating_duration_since(now));
                    wait.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
            state.idle -= 1;
        }
    }

    /// Evaluates a batch and answers its members. Says whether the thread is still needed.
    fn evaluate(&self, lane: &Arc<Lane>, jobs: Vec<Job>) -> bool {
        let batch =
            Arc::new(Batch { stop: Stop::default(), awaited: AtomicUsize::new(0), lost: Mutex::new(false) });
        let begun = Instant::now();
        let members: Vec<Job> = jobs.into_iter().filter(|job| begin(job, &batch)).collect();
        for job in &members {
            let queued = begun.saturating_duration_since(job.arrived).as_micros();
            lane.queued_micros.add(u64::try_from(queued).unwrap_or(u64::MAX));
        }
        let again = answer(lane, members, &batch.stop);
        lane.leave();
        self.queue_again(lane, again.into_iter().filter(wait_again).collect());
        // Whoever leaves from now on finds it ended.
        let lost = std::mem::replace(&mut *batch.lost.lock().unwrap_or_else(PoisonError::into_inner), true);
        if !lost {
            return true;
        }
        lane.lost.fetch_sub(1, Ordering::Relaxed);
        let mut state = self.state();
        state.lost -= 1;
        let needed = state.threads < self.threads;
        if needed {
            state.threads += 1;
        } else if state.idle > 0 {
            self.wake.notify_one(); // its lane may have had no place for those who wait
        }
        needed
    }

    /// Members of a batch that failed wait for a turn each, alone, so that whoever is at fault fails alone and keeps nobody.
    fn queue_again(&self, lane: &Arc<Lane>, members: Vec<Job>) {
        if members.is_empty() {
            return;
        }
        let mut state = self.state();
        let mut queue = lane.queue();
        let had_turn = !queue.is_empty();
        queue.extend(members);
        drop(queue);
        if !had_turn {
            state.turns.push_back(Arc::clone(lane));
        }
        if state.idle > 0 {
            self.wake.notify_one();
        }
    }

    /// Nobody waits for this batch any more: while it lasts, another thread takes its thread's place.
    fn lose(self: &Arc<Self>, lane: &Lane, batch: &Batch) {
        let mut state = self.state();
        if state.lost >= MOST_LOST
            || std::mem::replace(&mut *batch.lost.lock().unwrap_or_else(PoisonError::into_inner), true)
        {
            return;
        }
        lane.lost.fetch_add(1, Ordering::Relaxed);
        state.lost += 1;
        state.threads -= 1;
        self.start_thread(&mut state);
    }
}

/// Whether its caller still waits; if so it runs now.
fn begin(job: &Job, batch: &Arc<Batch>) -> bool {
    let mut stage = job.place.stage();
    if matches!(*stage, Stage::Left) {
        return false;
    }
    batch.awaited.fetch_add(1, Ordering::AcqRel);
    *stage = Stage::Runs(Arc::clone(batch));
    true
}

/// Whether its caller still waits; if so it is evaluated alone.
fn wait_again(job: &Job) -> bool {
    let mut stage = job.place.stage();
    if matches!(*stage, Stage::Left) {
        return false;
    }
    *stage = Stage::Waits;
    true
}

/// Evaluates the members together and answers them. Those of several who failed together come back, to be evaluated alone.
fn answer(lane: &Lane, mut members: Vec<Job>, stop: &Stop) -> Vec<Job> {
    if members.len() < 2 {
        for job in members {
            lane.batch_rows.add(batch::rows(&job.inputs).unwrap_or(1));
            drop(job.reply.send(lane.run(&job.inputs, stop))); // a caller who left needs no answer
        }
        return Vec::new();
    }
    let rows: Vec<u64> = members.iter().map(|job| job.rows).collect();
    let inputs: Vec<&[Tensor]> = members.iter().map(|job| job.inputs.as_slice()).collect();
    let outputs = batch::join(&inputs).and_then(|inputs| lane.run(&inputs, stop));
    match outputs.and_then(|outputs| batch::split(&outputs, &rows)) {
        Ok(answers) => {
            lane.batch_rows.add(rows.iter().sum());
            for (job, outputs) in members.into_iter().zip(answers) {
                drop(job.reply.send(Ok(outputs)));
            }
            Vec::new()
        }
        Err(error) => {
            tracing::debug!(%error, members = members.len(), "a batch failed; each member is evaluated alone");
            members.iter_mut().for_each(|job| job.rows = 0);
            members
        }
    }
}
