//! Who is evaluated next, together with whom, and on which thread.
//!
//! Every graph has a lane. Threads take turns over the lanes in which somebody waits, one batch a turn, so that no version's
//! callers wait for another's queue ([`crew`]). What is joined, and how long it waits for more, decides [`Gather`](modelhost_core::batch::Gather).
//! An evaluation that nobody waits for any more is told to stop; one that cannot be stopped keeps its thread, which
//! another replaces, up to a bound. How many wait is bounded too.

use std::sync::Arc;
use std::time::Instant;

use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::tensor::Tensor;
use tokio::sync::oneshot;

use crate::memory::Held;

mod crew;
mod lane;

use crew::{Crew, Ticket};
pub(crate) use lane::{Job, Lane};

#[cfg(test)]
mod races;
#[cfg(test)]
mod tests;

/// What `crew` is made of. Its tests for races put their own in place.
mod sync {
    pub(super) use std::sync::{Condvar, Mutex, MutexGuard};
    pub(super) use std::thread;
}

/// The threads that evaluate.
pub(crate) struct Scheduler(Arc<Crew<Lane>>);

impl Scheduler {
    /// Threads start when they are needed, at most so many.
    pub(crate) fn new(threads: usize) -> Arc<Self> {
        Arc::new(Self(Crew::new(threads)))
    }

    /// Evaluates; an evaluation that has not ended `until` then is given up. Dropping the future gives it up too. The inputs are
    /// `held` as long as they are kept.
    pub(crate) async fn run(
        &self,
        lane: &Arc<Lane>,
        inputs: Vec<Tensor>,
        held: Held,
        until: Instant,
    ) -> Result<Vec<Tensor>, Error> {
        if let Some(result) = lane.run_short(&inputs) {
            return result;
        }
        let (reply, answer) = oneshot::channel();
        let ticket = self.0.submit(lane, until, |ticket| Job { ticket, inputs, _held: held, reply })?;
        let mut caller = Caller { crew: &self.0, lane, ticket, answered: false };
        match tokio::time::timeout_at(until.into(), answer).await {
            Ok(answer) => {
                caller.answered = true;
                let closed = |_| Error::new(ErrorCode::Unavailable, "the host is shutting down");
                answer.map_err(closed).flatten()
            }
            Err(_) => Err(Error::new(
                ErrorCode::DeadlineExceeded,
                "the graph's evaluation did not end before the deadline",
            )),
        }
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Leaves when it is dropped before the answer.
struct Caller<'a> {
    crew: &'a Arc<Crew<Lane>>,
    lane: &'a Arc<Lane>,
    ticket: Ticket,
    answered: bool,
}

impl Drop for Caller<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.crew.leave(self.lane, self.ticket);
        }
    }
}
