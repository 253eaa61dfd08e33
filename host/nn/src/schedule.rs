//! Decides which evaluation is next, which are joined, and on which thread they run.
//!
//! Every graph has a lane. Threads take turns over the lanes with waiting requests, one batch per turn, so that no
//! version waits for the queue of another ([`crew`]). [`Gather`](modelhost_core::batch::Gather) decides what is
//! joined and how long it waits. An evaluation without callers is told to stop. If it goes on, it keeps its thread
//! and another one replaces that, up to a bound. The number of waiting requests is bounded too.

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

/// What `crew` is made of. The race tests replace it.
mod sync {
    pub(super) use std::sync::{Condvar, Mutex, MutexGuard};
    pub(super) use std::thread;
}

/// The threads that evaluate graphs.
pub(crate) struct Scheduler(Arc<Crew<Lane>>);

impl Scheduler {
    /// Starts threads when they are needed, at most `threads`.
    pub(crate) fn new(threads: usize) -> Arc<Self> {
        Arc::new(Self(Crew::new(threads)))
    }

    /// Evaluates the inputs. Gives up at `until`, and when the future is dropped. The inputs stay `held` as long as
    /// they exist.
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

/// Leaves the crew if it is dropped before the answer.
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
