//! Stops guests. It bounds the time of every call into a guest.
//!
//! A computing guest is counted in time slices, so a busy machine does not shorten its time. A guest that waits for
//! the host is timed by the clock. Both end at the guest's own limit, or at the caller's deadline.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use modelhost_core::infer::Deadline;
use tokio::time::{Sleep, sleep_until};

use crate::compile::EPOCH;
use crate::fault::DeadlinePassed;

/// Shared by the store, which counts slices, by the host calls, and by the code that awaits the call.
#[derive(Debug, Clone)]
pub(crate) struct Stop(Arc<Clock>);

#[derive(Debug)]
struct Clock {
    slices: AtomicU64,
    caller: Option<Instant>,
    /// The guest yielded at the end of a slice and wants to go on.
    gave_way: AtomicBool,
}

impl Stop {
    /// Stops at the guest's own limit, or at the caller's deadline.
    pub(crate) fn new(limit: Duration, caller: Option<Deadline>) -> Self {
        let slices = u64::try_from(limit.as_nanos().div_ceil(EPOCH.as_nanos())).unwrap_or(u64::MAX);
        Self(Arc::new(Clock {
            slices: AtomicU64::new(slices),
            caller: caller.map(Deadline::instant),
            gave_way: AtomicBool::new(false),
        }))
    }

    /// Stops at the guest's own limit.
    pub(crate) fn after(limit: Duration) -> Self {
        Self::new(limit, None)
    }

    /// Counts a slice. Errors: the guest may not have another one.
    pub(crate) fn slice(&self) -> Result<(), DeadlinePassed> {
        self.0.gave_way.store(true, Ordering::Relaxed);
        let left = self.left().saturating_sub(1);
        self.0.slices.store(left, Ordering::Relaxed);
        if left == 0 || self.callers_passed() { Err(DeadlinePassed) } else { Ok(()) }
    }

    fn left(&self) -> u64 {
        self.0.slices.load(Ordering::Relaxed)
    }

    /// When a guest that waits for the host from `now` on is stopped. The waiting counts as its own time.
    pub(crate) fn at(&self, now: Instant) -> Instant {
        let epoch = u64::try_from(EPOCH.as_nanos()).unwrap_or(u64::MAX);
        let own = now.checked_add(Duration::from_nanos(self.left().saturating_mul(epoch)));
        [own, self.0.caller].into_iter().flatten().min().unwrap_or(now)
    }

    /// Counts time of waiting for the host.
    pub(crate) fn spend(&self, time: Duration) {
        let slices = u64::try_from(time.as_nanos() / EPOCH.as_nanos()).unwrap_or(u64::MAX);
        self.0.slices.store(self.left().saturating_sub(slices).max(1), Ordering::Relaxed);
    }

    /// Whether the caller's deadline passed.
    pub(crate) fn callers_passed(&self) -> bool {
        self.0.caller.is_some_and(|caller| Instant::now() >= caller)
    }

    /// Awaits a call into the guest. Sets a timer only if the guest waits for the host. Errors: those of the call, or
    /// that the deadline passed. The instance cannot be called again then.
    pub(crate) async fn within<T>(
        &self,
        call: impl Future<Output = wasmtime::Result<T>>,
    ) -> wasmtime::Result<T> {
        let mut call = pin!(call);
        let mut timer: Option<std::pin::Pin<Box<Sleep>>> = None;
        std::future::poll_fn(|context| {
            if let Poll::Ready(done) = call.as_mut().poll(context) {
                return Poll::Ready(done);
            }
            if self.0.gave_way.swap(false, Ordering::Relaxed) {
                timer = None;
                return Poll::Pending;
            }
            let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(self.at(Instant::now()).into())));
            timer.as_mut().poll(context).map(|()| Err(DeadlinePassed.into()))
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<T>(future: impl Future<Output = T>) -> T {
        let tokio = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        tokio.block_on(future)
    }

    #[test]
    fn who_waits_for_the_host_is_stopped_by_either_deadline() {
        let soon = Duration::from_millis(5);
        let callers = Deadline::after(Instant::now(), soon);
        for stop in [Stop::after(soon), Stop::new(Duration::MAX, Some(callers))] {
            let error = run(stop.within(std::future::pending::<wasmtime::Result<()>>())).unwrap_err();
            assert!(error.is::<DeadlinePassed>());
        }
        assert!(run(Stop::after(soon).within(async { Ok(7) })).is_ok_and(|seven| seven == 7));
    }

    /// It does not matter how long the machine takes to give it the next slice.
    #[test]
    fn who_computes_is_stopped_by_its_slices_alone() {
        let stop = Stop::after(Duration::from_millis(2));
        let mut polls = 0;
        let computes = std::future::poll_fn(|context| {
            std::thread::sleep(Duration::from_millis(3)); // longer than the limit
            polls += 1;
            if stop.slice().is_err() {
                return Poll::Ready(Err::<(), _>(DeadlinePassed.into()));
            }
            context.waker().wake_by_ref();
            Poll::Pending
        });
        assert!(run(stop.within(computes)).is_err());
        assert_eq!(polls, 2);
    }
}
