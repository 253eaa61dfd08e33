//! Decides which request of a deployment runs next. Bounds running and waiting requests, and refuses others fast.
//!
//! Waiting requests stand in one line per version. A free instance goes to the model that was served least:
//! start-time fair queueing over the usual run time of its predictions (Goyal, Vin, Cheng 1997). Within the model it
//! goes to the oldest request. A request that would wait past its deadline is refused on arrival. A full queue
//! refuses the newest request of the model with the most waiting requests, or else the arriving one.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use modelhost_core::deployment::Bounds;
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::event::{DeploymentTotals, Tally};
use modelhost_core::infer::Deadline;
use modelhost_core::model::ModelName;
use modelhost_core::ports::Recorder;
use modelhost_core::version::{Limits, Version};
use tokio::sync::oneshot;

use super::sync::{Mutex, MutexGuard};

/// How many of the latest runs the usual run time is averaged over.
const MEMORY_OF_RUNS: u64 = 16;

/// The time over which utilisation is averaged.
const UTILISATION_WINDOW: Duration = Duration::from_secs(15);

/// One version in its deployment: its bounds, and its usual run time.
pub(crate) struct Line {
    model: ModelName,
    concurrency: u32,
    queue: u32,
    recorder: Arc<dyn Recorder>,
    /// Changed only under the deployment's lock.
    running: AtomicU32,
    /// Nanoseconds from start to end. 0 before the first run.
    usual_run: AtomicU64,
    /// Nanoseconds of processor time. 0 before the first measured run.
    usual_cpu: AtomicU64,
}

impl Line {
    /// The recorder holds the number of waiting requests.
    pub(crate) fn new(version: &Version, recorder: Arc<dyn Recorder>) -> Arc<Self> {
        let Limits { concurrency, queue, .. } = version.package.limits;
        Arc::new(Self {
            model: version.model.clone(),
            concurrency,
            queue,
            recorder,
            running: AtomicU32::new(0),
            usual_run: AtomicU64::new(0),
            usual_cpu: AtomicU64::new(0),
        })
    }

    /// Predictions that run or are about to run.
    pub(crate) fn running(&self) -> u32 {
        self.running.load(Ordering::Relaxed)
    }

    /// Waiting predictions.
    pub(crate) fn waiting(&self) -> u32 {
        self.recorder.waiting().load(Ordering::Relaxed)
    }

    /// The usual run time.
    pub(crate) fn usual_run(&self) -> Duration {
        Duration::from_nanos(self.usual_run.load(Ordering::Relaxed))
    }

    /// The usual processor time, which does not depend on how busy the machine is.
    pub(crate) fn usual_cpu(&self) -> Duration {
        Duration::from_nanos(self.usual_cpu.load(Ordering::Relaxed))
    }

    /// Records a run, and its processor time if that was measured.
    pub(crate) fn ran(&self, took: Duration, cpu: Option<Duration>) {
        learn(&self.usual_run, took);
        if let Some(cpu) = cpu {
            learn(&self.usual_cpu, cpu);
        }
    }
}

/// Updates an average. Of two concurrent updates one may be lost.
fn learn(usual: &AtomicU64, came: Duration) {
    let (before, came) = (usual.load(Ordering::Relaxed), nanos(came));
    let after = if before == 0 { came } else { before - before / MEMORY_OF_RUNS + came / MEMORY_OF_RUNS };
    usual.store(after, Ordering::Relaxed);
}

/// The queue of one deployment.
pub(crate) struct Admission {
    state: Mutex<State>,
}

struct State {
    instances: u32,
    queue: u32,
    closed: bool,
    running: u32,
    waiting: u32,
    /// Models with waiting requests.
    backlogs: HashMap<ModelName, Backlog>,
    /// What the latest served model had been given. New models start from here.
    served: u64,
    next_ticket: u64,
    busy: Busy,
    totals: DeploymentTotals,
}

/// One model's waiting requests.
struct Backlog {
    /// Usual nanoseconds of the runs that it was given. All models use the same scale.
    served: u64,
    waiting: u32,
    lines: Vec<(Arc<Line>, VecDeque<Waiter>)>,
}

struct Waiter {
    ticket: u64,
    since: Instant,
    grant: oneshot::Sender<Result<(), Error>>,
}

/// Permission to run. Dropping it gives the instance back.
pub(crate) struct Permit<'a> {
    admission: &'a Admission,
    line: &'a Line,
    /// When it was granted.
    pub(crate) since: Instant,
    ended: Option<Instant>,
}

impl<'a> Permit<'a> {
    fn new(admission: &'a Admission, line: &'a Line, since: Instant) -> Self {
        Self { admission, line, since, ended: None }
    }

    /// Gives it back at this time, so that the clock is not read again.
    pub(crate) fn end(mut self, now: Instant) {
        self.ended = Some(now);
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.admission.leave(self.line, self.ended.unwrap_or_else(Instant::now));
    }
}

/// The result of asking.
pub(crate) enum Asked<'a> {
    /// An instance is free.
    Leave(Permit<'a>),
    /// The request has to wait for one.
    Place(Place<'a>),
}

/// A place in the queue. Dropping it leaves the queue.
pub(crate) struct Place<'a> {
    admission: &'a Admission,
    line: &'a Arc<Line>,
    ticket: u64,
    granted: oneshot::Receiver<Result<(), Error>>,
}

impl<'a> Place<'a> {
    /// Waits for permission to run. Errors: resource exhausted, if it is shed; unavailable, if the deployment is torn
    /// down.
    pub(crate) async fn granted(&mut self) -> Result<Permit<'a>, Error> {
        let granted = (&mut self.granted).await.unwrap_or_else(|_| Err(closed()));
        granted.map(|()| Permit::new(self.admission, self.line, Instant::now()))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.admission.lock();
        if !state.remove(self.line, self.ticket) && matches!(self.granted.try_recv(), Ok(Ok(()))) {
            drop(state);
            self.admission.leave(self.line, Instant::now()); // granted at the moment it gave up
        }
    }
}

impl Admission {
    pub(crate) fn new(bounds: &Bounds) -> Self {
        let state = State {
            instances: bounds.instances,
            queue: bounds.queue,
            closed: false,
            running: 0,
            waiting: 0,
            backlogs: HashMap::new(),
            served: 0,
            next_ticket: 0,
            busy: Busy::new(Instant::now()),
            totals: DeploymentTotals::default(),
        };
        Self { state: Mutex::new(state) }
    }

    /// Sets new bounds. Running and waiting requests stay.
    pub(crate) fn set_bounds(&self, bounds: &Bounds) {
        let mut state = self.lock();
        (state.instances, state.queue) = (bounds.instances, bounds.queue);
        state.dispatch(Instant::now());
    }

    /// Counts a request that was refused before it came here.
    pub(crate) fn refused(&self) {
        self.lock().totals.refused += 1;
    }

    /// Refuses all waiting and later requests.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        for (_, backlog) in std::mem::take(&mut state.backlogs) {
            for (line, waiters) in backlog.lines {
                for waiter in waiters {
                    line.recorder.waiting().fetch_sub(1, Ordering::Relaxed);
                    drop(waiter.grant.send(Err(closed())));
                }
            }
        }
        state.waiting = 0;
    }

    /// Waits for permission to run, from `now` on. Errors: resource exhausted, if the queue is full or the wait would
    /// outlast the deadline; deadline exceeded, if the wait did outlast it; unavailable, if the deployment is torn
    /// down.
    pub(crate) async fn enter<'a>(
        &'a self,
        line: &'a Arc<Line>,
        now: Instant,
        deadline: Deadline,
    ) -> Result<Permit<'a>, Error> {
        let mut place = match self.ask(line, now, deadline)? {
            Asked::Leave(permit) => return Ok(permit),
            Asked::Place(place) => place,
        };
        tokio::time::timeout_at(deadline.instant().into(), place.granted()).await.unwrap_or_else(|_| {
            let text = "the request's deadline passed while it waited for a free instance";
            Err(Error::new(ErrorCode::DeadlineExceeded, text))
        })
    }

    /// Asks for permission to run. Errors: as [`Self::enter`].
    pub(crate) fn ask<'a>(
        &'a self,
        line: &'a Arc<Line>,
        now: Instant,
        deadline: Deadline,
    ) -> Result<Asked<'a>, Error> {
        let mut state = self.lock();
        if state.closed {
            return Err(closed());
        }
        if state.waiting == 0 && state.fits(line) {
            state.start(line, now, now);
            return Ok(Asked::Leave(Permit::new(self, line, now)));
        }
        let (ticket, granted) = state.queue_up(line, now, deadline)?;
        state.dispatch(now);
        Ok(Asked::Place(Place { admission: self, line, ticket, granted }))
    }

    fn leave(&self, line: &Line, now: Instant) {
        let mut state = self.lock();
        state.end(line, now);
        state.dispatch(now);
    }

    /// Numbers of running and of waiting predictions.
    pub(crate) fn counts(&self) -> (u32, u32) {
        let state = self.lock();
        (state.running, state.waiting)
    }

    /// The share of instances that were busy recently, from 0 to 1.
    pub(crate) fn utilisation(&self) -> f64 {
        let mut state = self.lock();
        let (running, instances) = (state.running, state.instances);
        state.busy.count(running, Instant::now());
        state.busy.sample(instances);
        state.busy.average
    }

    /// Totals of admitted and refused requests. Loads are counted elsewhere.
    pub(crate) fn totals(&self) -> DeploymentTotals {
        self.lock().totals
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn fits(&self, line: &Line) -> bool {
        self.running < self.instances && line.running() < line.concurrency
    }

    fn end(&mut self, line: &Line, now: Instant) {
        self.busy.count(self.running, now);
        self.running -= 1;
        line.running.fetch_sub(1, Ordering::Relaxed);
    }

    fn start(&mut self, line: &Line, since: Instant, now: Instant) {
        self.busy.count(self.running, now);
        self.running += 1;
        line.running.fetch_add(1, Ordering::Relaxed);
        let Tally { count, nanos: total } = &mut self.totals.admitted;
        *count += 1;
        *total += nanos(now.saturating_duration_since(since));
    }

    fn queue_up(
        &mut self,
        line: &Arc<Line>,
        now: Instant,
        deadline: Deadline,
    ) -> Result<(u64, oneshot::Receiver<Result<(), Error>>), Error> {
        if line.waiting() >= line.queue {
            self.totals.refused += 1;
            let text = format!("every instance is busy and {} requests wait already", line.queue);
            return Err(Error::new(ErrorCode::ResourceExhausted, text));
        }
        let (wait, left) = (self.wait(line), deadline.instant().saturating_duration_since(now));
        if wait > left {
            self.totals.hopeless += 1;
            let (wait, left) = (wait.as_millis(), left.as_millis());
            let text =
                format!("it would wait about {wait} ms for an instance, and its deadline is in {left} ms");
            return Err(Error::new(ErrorCode::ResourceExhausted, text));
        }
        if self.waiting >= self.queue && !self.shed(&line.model) {
            self.totals.refused += 1;
            let text =
                format!("every instance of its deployment is busy and {} requests wait already", self.queue);
            return Err(Error::new(ErrorCode::ResourceExhausted, text));
        }
        let (grant, granted) = oneshot::channel();
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.waiting += 1;
        line.recorder.waiting().fetch_add(1, Ordering::Relaxed);
        let served = self.served;
        let backlog = self.backlogs.entry(line.model.clone());
        let backlog = backlog.or_insert_with(|| Backlog { served, waiting: 0, lines: Vec::new() });
        backlog.waiting += 1;
        let waiter = Waiter { ticket, since: now, grant };
        match backlog.lines.iter_mut().find(|(known, _)| Arc::ptr_eq(known, line)) {
            Some((_, waiters)) => waiters.push_back(waiter),
            None => backlog.lines.push((Arc::clone(line), VecDeque::from([waiter]))),
        }
        Ok((ticket, granted))
    }

    /// Estimates how long one more request would wait. Until then, each other model is served as much as this one, or
    /// until it has no requests left.
    fn wait(&self, line: &Line) -> Duration {
        let instances = u64::from(self.instances.max(1));
        let usual = nanos(line.usual_run());
        let own = self.backlogs.get(&line.model).map_or(0, Backlog::work);
        let models = self.backlogs.iter().filter(|(model, _)| **model != line.model);
        let others: u64 = models.map(|(_, backlog)| backlog.work().min(own + usual)).sum();
        let in_line = u64::from(line.waiting()) * usual / u64::from(line.concurrency.max(1));
        Duration::from_nanos(((own + others) / instances).max(in_line))
    }

    /// Makes room for a request of `model`. Refuses the newest request of the model with the most waiting requests,
    /// if these are more than its own.
    fn shed(&mut self, model: &ModelName) -> bool {
        let own = self.backlogs.get(model).map_or(0, |backlog| backlog.waiting);
        let longest = self.backlogs.iter().max_by_key(|(_, backlog)| backlog.waiting);
        let Some((longest, _)) = longest.filter(|(_, backlog)| backlog.waiting > own + 1) else {
            return false;
        };
        let longest = longest.clone();
        let Some(backlog) = self.backlogs.get_mut(&longest) else { return false };
        let newest =
            backlog.lines.iter_mut().max_by_key(|(_, waiters)| waiters.back().map(|waiter| waiter.ticket));
        let Some((line, waiter)) =
            newest.and_then(|(line, waiters)| Some((Arc::clone(line), waiters.pop_back()?)))
        else {
            return false;
        };
        self.waited(&line);
        self.totals.shed += 1;
        let text = format!("model {longest} has most requests waiting, and others need the room");
        drop(waiter.grant.send(Err(Error::new(ErrorCode::ResourceExhausted, text))));
        true
    }

    /// Takes a request out of its line. Returns false if it is not there any more.
    fn remove(&mut self, line: &Arc<Line>, ticket: u64) -> bool {
        let Some(backlog) = self.backlogs.get_mut(&line.model) else { return false };
        let Some((_, waiters)) = backlog.lines.iter_mut().find(|(known, _)| Arc::ptr_eq(known, line)) else {
            return false;
        };
        // Tickets increase along the line.
        let Ok(at) = waiters.binary_search_by_key(&ticket, |waiter| waiter.ticket) else { return false };
        waiters.remove(at);
        self.waited(line);
        true
    }

    /// Counts a request that left its line.
    fn waited(&mut self, line: &Line) {
        self.waiting -= 1;
        line.recorder.waiting().fetch_sub(1, Ordering::Relaxed);
        if let Some(backlog) = self.backlogs.get_mut(&line.model) {
            backlog.waiting -= 1;
            backlog.lines.retain(|(_, waiters)| !waiters.is_empty());
            if backlog.waiting == 0 {
                self.backlogs.remove(&line.model);
            }
        }
    }

    /// Grants free instances to waiting requests.
    fn dispatch(&mut self, now: Instant) {
        while self.waiting > 0 && self.running < self.instances {
            let ready = self.backlogs.iter().filter(|(_, backlog)| backlog.next().is_some());
            let Some((model, _)) = ready.min_by_key(|(_, backlog)| backlog.served) else { return };
            let model = model.clone();
            let Some(backlog) = self.backlogs.get_mut(&model) else { return };
            let Some(at) = backlog.next() else { return };
            let Some((line, waiters)) = backlog.lines.get_mut(at) else { return };
            let Some(waiter) = waiters.pop_front() else { return };
            let line = Arc::clone(line);
            self.served = backlog.served;
            backlog.served += nanos(line.usual_run()).max(1);
            self.waited(&line);
            self.start(&line, waiter.since, now);
            if waiter.grant.send(Ok(())).is_err() {
                self.end(&line, now); // cannot be: who gives up takes itself out of the line first
            }
        }
    }
}

impl Backlog {
    /// Usual nanoseconds of all waiting requests.
    fn work(&self) -> u64 {
        let lines = self.lines.iter();
        lines.map(|(line, waiters)| nanos(line.usual_run()) * waiters.len() as u64).sum()
    }

    /// The line with the oldest first request, among those that may run one more.
    fn next(&self) -> Option<usize> {
        let lines = self.lines.iter().enumerate();
        let free = lines.filter(|(_, (line, _))| line.running() < line.concurrency);
        let first = |waiters: &VecDeque<Waiter>| waiters.front().map(|waiter| waiter.ticket);
        free.filter_map(|(at, (_, waiters))| Some((first(waiters)?, at))).min().map(|(_, at)| at)
    }
}

/// Measures how busy the instances are.
struct Busy {
    /// Nanoseconds of running, of all instances together.
    nanos: u64,
    /// The time up to which they are counted.
    counted: Instant,
    /// The end of the latest average, and the count at that time.
    sampled: (Instant, u64),
    average: f64,
}

impl Busy {
    fn new(now: Instant) -> Self {
        Self { nanos: 0, counted: now, sampled: (now, 0), average: 0.0 }
    }

    /// Counts the running time up to `now`.
    fn count(&mut self, running: u32, now: Instant) {
        self.nanos += nanos(now.saturating_duration_since(self.counted)) * u64::from(running);
        self.counted = self.counted.max(now); // clocks were read before the lock was held
    }

    /// Updates the average. The weight of older times decreases exponentially.
    #[expect(clippy::cast_precision_loss, reason = "a share for people and autoscalers")]
    fn sample(&mut self, instances: u32) {
        let (since, before) = self.sampled;
        let elapsed = self.counted.saturating_duration_since(since).as_secs_f64();
        if elapsed > 0.0 {
            let share = (self.nanos - before) as f64 / 1e9 / elapsed / f64::from(instances.max(1));
            let keep = (-elapsed / UTILISATION_WINDOW.as_secs_f64()).exp();
            self.average = self.average * keep + share * (1.0 - keep);
            self.sampled = (self.counted, self.nanos);
        }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn closed() -> Error {
    Error::new(ErrorCode::Unavailable, "its deployment is being torn down; a retry finds the new one")
}
