//! The threads that evaluate, and the lanes that they serve in turn.
//!
//! Everything is one state under one lock. Evaluations run outside it. No request waits in vain: a change that makes
//! a batch due earlier calls a thread, and a thread that takes a batch calls another one if something is left. So
//! while a batch could be taken, one of these holds: a thread is about to look, a thread sleeps until the first batch
//! is due, or all threads evaluate and will look afterwards.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use modelhost_core::batch::{Batch, Gather, Join, Member};
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::graph::Batching;

use super::sync::{Condvar, Mutex, MutexGuard, thread};
use crate::backend::Stop;

/// Most evaluations that go on without callers: of one version, and of all. Each keeps a thread.
pub(super) const MOST_LOST_OF_VERSION: usize = 4;
pub(super) const MOST_LOST: usize = 64;

/// Most waiting evaluations: of one graph, and of all.
pub(super) const MOST_WAITING_OF_LANE: usize = 4096;
pub(super) const MOST_WAITING: usize = 65_536;

/// One graph, as the threads see it.
pub(super) trait Line: Send + Sync + 'static {
    type Job: Ticketed + Send;

    /// How its jobs are joined.
    fn batching(&self) -> Batching;

    /// Most evaluations at once.
    fn width(&self) -> usize;

    /// Whether both are graphs of one version.
    fn is_beside(&self, other: &Self) -> bool;

    /// Evaluates a batch and answers its members. Blocks. Returned members wait again, each alone.
    fn evaluate(&self, batch: Batch<Self::Job>, stop: &Stop) -> Vec<Member<Self::Job>>;
}

/// Names a job, so that its caller can leave before its end.
pub(super) type Ticket = u64;

pub(super) trait Ticketed: Join {
    fn ticket(&self) -> Ticket;
}

pub(super) struct Crew<L: Line> {
    state: Mutex<State<L>>,
    wake: Condvar,
    /// Most threads, not counting lost ones.
    most: usize,
}

pub(super) struct State<L: Line> {
    /// Lanes with waiting or running jobs, in the order of their turns.
    lanes: VecDeque<Open<L>>,
    tickets: Ticket,
    waiting: usize,
    /// Threads that evaluate for a caller, look for a batch, or sleep.
    pub(super) threads: usize,
    /// The sleeping ones among them.
    pub(super) idle: usize,
    /// Threads that evaluate without callers.
    pub(super) lost: usize,
    closed: bool,
}

struct Open<L: Line> {
    lane: Arc<L>,
    waiting: Gather<L::Job>,
    runs: Vec<Run>,
}

/// An evaluation.
struct Run {
    /// The callers that wait for it.
    callers: Vec<Ticket>,
    stop: Arc<Stop>,
    /// It has no callers any more, so `threads` does not count its thread.
    is_lost: bool,
}

struct Work<L: Line> {
    lane: Arc<L>,
    batch: Batch<L::Job>,
    stop: Arc<Stop>,
}

impl<L: Line> Crew<L> {
    /// Starts threads when they are needed, at most `most`.
    pub(super) fn new(most: usize) -> Arc<Self> {
        let state = State {
            lanes: VecDeque::new(),
            tickets: 0,
            waiting: 0,
            threads: 0,
            idle: 0,
            lost: 0,
            closed: false,
        };
        Arc::new(Self { state: Mutex::new(state), wake: Condvar::new(), most: most.max(1) })
    }

    /// Ends the threads. Waiting callers get no answer.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.waiting = 0;
        let waiting = |open: &mut Open<L>| std::mem::replace(&mut open.waiting, Gather::new(Batching::NONE));
        let left: Vec<_> = state.lanes.iter_mut().map(waiting).collect();
        drop(state);
        self.wake.notify_all();
        drop(left);
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State<L>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a job. Errors: resource exhausted, if a bound is reached or no thread is left; unavailable, if the crew
    /// is closed.
    pub(super) fn submit(
        self: &Arc<Self>,
        lane: &Arc<L>,
        deadline: Instant,
        job: impl FnOnce(Ticket) -> L::Job,
    ) -> Result<Ticket, Error> {
        let mut state = self.state();
        state.check(lane)?;
        state.tickets += 1;
        let ticket = state.tickets;
        let member = Member { request: job(ticket), arrived: Instant::now(), deadline };
        if state.push(lane, member) {
            self.call(&mut state);
        }
        // Without a place, the job waits for an evaluation to end. Its thread then looks for the next batch.
        if state.threads > 0 || !state.has_place(lane) {
            return Ok(ticket);
        }
        let left = state.remove(lane, ticket);
        drop(state);
        drop(left);
        Err(exhausted("every thread that evaluates graphs goes on past its deadline".to_owned()))
    }

    /// Removes the caller of a job. A waiting job is dropped. An evaluation without callers is told to stop. While it
    /// goes on, another thread replaces its own.
    pub(super) fn leave(self: &Arc<Self>, lane: &Arc<L>, ticket: Ticket) {
        let mut state = self.state();
        let left = state.remove(lane, ticket);
        let lost = if left.is_none() { state.lose(lane, ticket) } else { None };
        if lost.is_some() && state.due().is_some() {
            self.call(&mut state);
        }
        drop(state);
        drop(left); // its tensors may be large
        if let Some(stop) = lost {
            stop.ask();
        }
    }

    /// Has a thread look for a batch: a sleeping one, or a new one. If the machine has no thread left, the existing
    /// ones go on.
    fn call(self: &Arc<Self>, state: &mut State<L>) {
        if state.idle > 0 {
            return self.wake.notify_one();
        }
        if state.threads >= self.most || state.threads + state.lost >= self.most + MOST_LOST {
            return;
        }
        let crew = Arc::clone(self);
        match thread::Builder::new().name("graph".into()).spawn(move || crew.work()) {
            Ok(_) => state.threads += 1,
            Err(error) => tracing::error!(%error, "no thread to evaluate graphs"),
        }
    }

    fn work(self: Arc<Self>) {
        let mut state = self.state();
        while let Some(work) = self.next(state) {
            let again = work.lane.evaluate(work.batch, &work.stop);
            state = self.state();
            if !state.end(&work.lane, &work.stop, again, self.most) {
                // Waiting jobs may have waited for this place.
                if state.due().is_some() {
                    self.call(&mut state);
                }
                return;
            }
        }
    }

    /// Waits for the next batch and takes it. `None`: this thread ends.
    fn next(self: &Arc<Self>, mut state: MutexGuard<'_, State<L>>) -> Option<Work<L>> {
        loop {
            if state.closed {
                state.threads -= 1;
                return None;
            }
            let now = Instant::now();
            if let Some(work) = state.take(now) {
                if state.due().is_some() {
                    self.call(&mut state);
                }
                return Some(work);
            }
            state.idle += 1;
            state = match state.due() {
                Some(due) => {
                    let wait = self.wake.wait_timeout(state, due.saturating_duration_since(now));
                    wait.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
            state.idle -= 1;
        }
    }
}

impl<L: Line> State<L> {
    /// Whether one more job may wait. Errors: resource exhausted; unavailable.
    fn check(&self, lane: &L) -> Result<(), Error> {
        if self.closed {
            return Err(Error::new(ErrorCode::Unavailable, "the host is shutting down"));
        }
        if self.lost > 0 {
            let beside = self.lanes.iter().filter(|open| open.lane.is_beside(lane));
            let lost = beside.flat_map(|open| &open.runs).filter(|run| run.is_lost).count();
            if lost >= MOST_LOST_OF_VERSION {
                return Err(exhausted(format!(
                    "{lost} evaluations of its graphs go on past their deadlines"
                )));
            }
        }
        let of_lane = self.lanes.iter().find(|open| std::ptr::eq(&*open.lane, lane));
        let of_lane = of_lane.map_or(0, |open| open.waiting.len());
        if of_lane >= MOST_WAITING_OF_LANE || self.waiting >= MOST_WAITING {
            return Err(exhausted(format!(
                "{of_lane} evaluations of the graph and {} in all wait already",
                self.waiting
            )));
        }
        Ok(())
    }

    fn at(&self, lane: &Arc<L>) -> Option<usize> {
        self.lanes.iter().position(|open| Arc::ptr_eq(&open.lane, lane))
    }

    /// Adds a job to its lane. A new lane has its turn after all others. Returns whether a batch is due earlier than
    /// before.
    fn push(&mut self, lane: &Arc<L>, member: Member<L::Job>) -> bool {
        if self.at(lane).is_none() {
            let waiting = Gather::new(lane.batching());
            self.lanes.push_back(Open { lane: Arc::clone(lane), waiting, runs: Vec::new() });
        }
        self.waiting += 1;
        let mut lanes = self.lanes.iter_mut();
        lanes.find(|open| Arc::ptr_eq(&open.lane, lane)).is_some_and(|open| open.push(member))
    }

    fn has_place(&self, lane: &Arc<L>) -> bool {
        self.at(lane).and_then(|at| self.lanes.get(at)).is_none_or(Open::has_place)
    }

    /// Takes the next due batch, of the lane whose turn it is.
    fn take(&mut self, now: Instant) -> Option<Work<L>> {
        let take = |open: &mut Open<L>| if open.has_place() { open.waiting.take(now) } else { None };
        let (at, batch) = self.lanes.iter_mut().enumerate().find_map(|(at, open)| Some((at, take(open)?)))?;
        let mut open = self.lanes.remove(at)?;
        let callers: Vec<_> = batch.members().iter().map(|member| member.request.ticket()).collect();
        self.waiting -= callers.len();
        let (lane, stop) = (Arc::clone(&open.lane), Arc::new(Stop::default()));
        open.runs.push(Run { callers, stop: Arc::clone(&stop), is_lost: false });
        self.lanes.push_back(open);
        Some(Work { lane, batch, stop })
    }

    /// When the next batch is due that a thread could take.
    fn due(&self) -> Option<Instant> {
        self.lanes.iter().filter(|open| open.has_place()).filter_map(|open| open.waiting.due()).min()
    }

    /// Takes out a waiting job.
    fn remove(&mut self, lane: &Arc<L>, ticket: Ticket) -> Option<Member<L::Job>> {
        let at = self.at(lane)?;
        let left = self.lanes.get_mut(at)?.waiting.remove(|job| job.ticket() == ticket)?;
        self.waiting -= 1;
        self.forget(at);
        Some(left)
    }

    /// Removes a caller of an evaluation. If it was the last one, returns what stops the evaluation.
    fn lose(&mut self, lane: &Arc<L>, ticket: Ticket) -> Option<Arc<Stop>> {
        let at = self.at(lane)?;
        let runs = &mut self.lanes.get_mut(at)?.runs;
        let run = runs.iter_mut().find(|run| run.callers.contains(&ticket))?;
        run.callers.retain(|caller| *caller != ticket);
        if !run.callers.is_empty() {
            return None;
        }
        run.is_lost = true;
        let stop = Arc::clone(&run.stop);
        self.lost += 1;
        self.threads -= 1; // the one that evaluates it, which was counted until now
        Some(stop)
    }

    /// Ends an evaluation. The members in `again` wait again if their callers are still there. Returns whether the
    /// thread is still needed.
    fn end(&mut self, lane: &Arc<L>, stop: &Arc<Stop>, again: Vec<Member<L::Job>>, most: usize) -> bool {
        let Some(at) = self.at(lane) else { return true };
        let Some(open) = self.lanes.get_mut(at) else { return true };
        let Some(ended) = open.runs.iter().position(|run| Arc::ptr_eq(&run.stop, stop)) else { return true };
        let Run { callers, is_lost, .. } = open.runs.swap_remove(ended);
        if !self.closed {
            let still = |member: &Member<L::Job>| callers.contains(&member.request.ticket());
            let again: Vec<_> = again.into_iter().filter(still).collect();
            self.waiting += again.len();
            open.waiting.again(again);
        }
        self.forget(at);
        if !is_lost {
            return true;
        }
        self.lost -= 1;
        let is_needed = self.threads < most;
        self.threads += usize::from(is_needed);
        is_needed
    }

    /// Removes a lane without waiting and running jobs.
    fn forget(&mut self, at: usize) {
        if self.lanes.get(at).is_some_and(|open| open.waiting.is_empty() && open.runs.is_empty()) {
            self.lanes.remove(at);
        }
    }

    /// The number of waiting jobs in a lane.
    #[cfg(test)]
    pub(super) fn waiting_in(&self, lane: &Arc<L>) -> usize {
        self.at(lane).and_then(|at| self.lanes.get(at)).map_or(0, |open| open.waiting.len())
    }

    /// Whether no job waits or runs.
    #[cfg(test)]
    pub(super) fn is_at_rest(&self) -> bool {
        self.lanes.is_empty() && self.waiting == 0 && self.lost == 0
    }
}

impl<L: Line> Open<L> {
    fn has_place(&self) -> bool {
        self.runs.len() < self.lane.width()
    }

    fn push(&mut self, member: Member<L::Job>) -> bool {
        let was_due = self.waiting.due();
        self.waiting.push(member);
        self.has_place() && was_due.is_none_or(|was| self.waiting.due().is_some_and(|due| due < was))
    }
}

fn exhausted(why: String) -> Error {
    Error::new(ErrorCode::ResourceExhausted, why)
}
