//! Decides which requests are answered together, and when. The same rule holds for requests to a component and for
//! evaluations of a graph.
//!
//! A new request joins the oldest batch that it fits and that has room for its rows; otherwise it opens one. A batch
//! is due when it is full, or when one of its members has waited long enough for others. A request that cannot be
//! joined is a batch by itself and is due at once. There is no clock and no thread here: times are arguments, and the
//! caller asks for the batches that are due.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::batch::{fit, join, rows, split};
use crate::error::Error;
use crate::graph::Batching;
use crate::tensor::Tensor;

#[cfg(test)]
mod tests;

/// A request that can be joined with others of its kind.
pub trait Join {
    /// Its inputs, in the signature's order.
    fn inputs(&self) -> &[Tensor];

    /// Whether both can be answered together: they differ in their rows alone.
    fn fits(&self, other: &Self) -> bool {
        fit(self.inputs(), other.inputs())
    }
}

/// A request that waits.
#[derive(Debug)]
pub struct Member<T> {
    /// The request.
    pub request: T,
    /// When it came.
    pub arrived: Instant,
    /// When its caller stops waiting.
    pub deadline: Instant,
}

impl<T> Member<T> {
    /// Until when it waits for others: at most `delay`, and at most half of the time that it has.
    fn patience(&self, delay: Duration) -> Instant {
        let time = self.deadline.saturating_duration_since(self.arrived);
        self.arrived + delay.min(time / 2)
    }
}

/// Requests that are answered together, oldest first.
#[derive(Debug)]
pub struct Batch<T> {
    members: Vec<Member<T>>,
    /// `None`: no request may join.
    room: Option<u64>,
    due: Instant,
}

/// The result of a batch.
#[derive(Debug)]
pub enum Settled<T> {
    /// Each member with its answer.
    Answered(Vec<(T, Result<Vec<Tensor>, Error>)>),
    /// Several failed together, with this error. The error says nothing of a single member, so each is asked alone
    /// ([`Gather::again`]).
    Failed(Vec<Member<T>>, Error),
}

impl<T: Join> Batch<T> {
    /// Its members.
    pub fn members(&self) -> &[Member<T>] {
        &self.members
    }

    /// Takes out the members that need no answer any more, and leaves the rest.
    pub fn part(&mut self, leaves: impl FnMut(&mut Member<T>) -> bool) -> Vec<Member<T>> {
        self.members.extract_if(.., leaves).collect()
    }

    /// Rows of all members together. A request that cannot be joined may have inputs of different rows; it counts as
    /// one row.
    pub fn rows(&self) -> u64 {
        self.members.iter().map(|member| rows(member.request.inputs()).unwrap_or(1)).sum()
    }

    /// The latest deadline of its members: after it no caller waits for the batch. A member's own wait ends at its
    /// own deadline.
    pub fn deadline(&self) -> Option<Instant> {
        self.members.iter().map(|member| member.deadline).max()
    }

    /// The members' inputs as one request's. Errors: internal.
    pub fn inputs(&self) -> Result<Cow<'_, [Tensor]>, Error> {
        match self.members.as_slice() {
            [only] => Ok(Cow::Borrowed(only.request.inputs())),
            members => {
                let inputs: Vec<_> = members.iter().map(|member| member.request.inputs()).collect();
                join(&inputs).map(Cow::Owned)
            }
        }
    }

    /// Answers each member, when this is the outcome of [`Batch::inputs`].
    pub fn settle(mut self, outcome: Result<Vec<Tensor>, Error>) -> Settled<T> {
        if self.members.len() <= 1 {
            let only = self.members.pop().map(|member| (member.request, outcome));
            return Settled::Answered(only.into_iter().collect());
        }
        let rows: Vec<u64> =
            self.members.iter().map(|member| rows(member.request.inputs()).unwrap_or(0)).collect();
        match outcome.and_then(|outputs| split(&outputs, &rows)) {
            Ok(answers) => {
                let requests = self.members.into_iter().map(|member| member.request);
                Settled::Answered(requests.zip(answers.into_iter().map(Ok)).collect())
            }
            Err(error) => Settled::Failed(self.members, error),
        }
    }
}

/// The requests that wait for one version or graph, in batches.
#[derive(Debug)]
pub struct Gather<T> {
    batching: Batching,
    /// Oldest first.
    batches: VecDeque<Batch<T>>,
    waiting: usize,
}

impl<T: Join> Gather<T> {
    /// An empty queue. [`Batching::NONE`] joins nothing.
    pub fn new(batching: Batching) -> Self {
        Self { batching, batches: VecDeque::new(), waiting: 0 }
    }

    /// Adds a request that waits.
    pub fn push(&mut self, member: Member<T>) {
        let most = u64::from(self.batching.max_batch);
        let rows = rows(member.request.inputs()).filter(|rows| *rows > 0 && *rows < most);
        let Some(rows) = rows else { return self.push_alone(member) };
        self.waiting += 1;
        let due = member.patience(self.batching.max_delay);
        let fits = |batch: &&mut Batch<T>| {
            batch.room.is_some_and(|room| rows <= room)
                && batch.members.first().is_some_and(|first| first.request.fits(&member.request))
        };
        match self.batches.iter_mut().find(fits) {
            Some(batch) => {
                let room = batch.room.map(|room| room - rows).filter(|room| *room > 0);
                batch.due = if room.is_none() { member.arrived.min(batch.due) } else { due.min(batch.due) };
                batch.room = room;
                batch.members.push(member);
            }
            None => self.batches.push_back(Batch { members: vec![member], room: Some(most - rows), due }),
        }
    }

    /// The members of a batch that failed wait once more, each alone. So the one at fault fails alone.
    pub fn again(&mut self, members: Vec<Member<T>>) {
        members.into_iter().for_each(|member| self.push_alone(member));
    }

    fn push_alone(&mut self, member: Member<T>) {
        self.waiting += 1;
        self.batches.push_back(Batch { due: member.arrived, members: vec![member], room: None });
    }

    /// The oldest batch that is due.
    pub fn take(&mut self, now: Instant) -> Option<Batch<T>> {
        let at = self.batches.iter().position(|batch| batch.due <= now)?;
        let batch = self.batches.remove(at)?;
        self.waiting -= batch.members.len();
        Some(batch)
    }

    /// When the next batch is due. The moment has passed when a batch is due already. `None` while no request waits.
    pub fn due(&self) -> Option<Instant> {
        // A batch that no request may join is due. Few batches have room, so a long queue is not searched.
        let first = self.batches.iter().find(|batch| batch.room.is_none());
        first.map(|batch| batch.due).or_else(|| self.batches.iter().map(|batch| batch.due).min())
    }

    /// Takes out a request, because its caller left.
    pub fn remove(&mut self, is_it: impl Fn(&T) -> bool) -> Option<Member<T>> {
        let place = |batch: &Batch<T>| batch.members.iter().position(|member| is_it(&member.request));
        let (at, member) =
            self.batches.iter().enumerate().find_map(|(at, batch)| Some((at, place(batch)?)))?;
        let batch = self.batches.get_mut(at)?;
        let left = batch.members.remove(member);
        // Its rows are free again, also in a batch that was full.
        if batch.members.is_empty() {
            self.batches.remove(at);
        } else {
            let taken = rows(left.request.inputs()).unwrap_or(0);
            batch.room = Some(batch.room.unwrap_or(0) + taken);
        }
        self.waiting -= 1;
        Some(left)
    }

    /// Requests that wait.
    pub fn len(&self) -> usize {
        self.waiting
    }

    /// Whether no request waits.
    pub fn is_empty(&self) -> bool {
        self.waiting == 0
    }
}
