//! Measures the processor time of predictions on all threads. Some predictions are measured and stand for the others.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use modelhost_core::error::Error;
use modelhost_core::event::Tally;
use modelhost_core::tensor::Tensor;
use rustix::time::{ClockId, clock_gettime};

use crate::threads::Job;

/// One in so many short predictions is measured, and the first one. Measuring takes two system calls.
const METER_EVERY: u64 = 16;

/// The outputs, and the processor time if it was measured.
pub(crate) type Outcome = (Result<Vec<Tensor>, Error>, Option<Duration>);

/// Decides which predictions of a version are measured.
#[derive(Default)]
pub(crate) struct Meter {
    runs: AtomicU64,
}

impl Meter {
    /// How many predictions the next one stands for. It is not measured if that is 0.
    pub(crate) fn stands_for(&self, is_long: bool) -> u64 {
        match self.runs.fetch_add(1, Ordering::Relaxed) {
            run if is_long || run == 0 => 1,
            run if run.is_multiple_of(METER_EVERY) => METER_EVERY,
            _ => 0,
        }
    }
}

/// The processor time that a measured prediction adds to its version.
pub(crate) fn tally(used: Option<Duration>, stands_for: u64) -> Tally {
    let nanos = used.map_or(0, |used| u64::try_from(used.as_nanos()).unwrap_or(u64::MAX));
    Tally { count: stands_for, nanos: nanos.saturating_mul(stands_for) }
}

/// A prediction that may be measured.
pub(crate) struct Metered {
    run: Job<Result<Vec<Tensor>, Error>>,
    used: Option<Duration>,
}

impl Metered {
    pub(crate) fn new(run: Job<Result<Vec<Tensor>, Error>>, is_measured: bool) -> Self {
        Self { run, used: is_measured.then_some(Duration::ZERO) }
    }
}

impl Future for Metered {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(used) = self.used else {
            return self.run.as_mut().poll(context).map(|outputs| (outputs, None));
        };
        let before = thread_time();
        let polled = self.run.as_mut().poll(context);
        let used = used + thread_time().saturating_sub(before);
        self.used = Some(used);
        polled.map(|outputs| (outputs, Some(used)))
    }
}

/// The processor time of this thread.
pub(crate) fn thread_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_and_every_long_one_stand_for_themselves() {
        let meter = Meter::default();
        let stand: Vec<_> = (0..33).map(|_| meter.stands_for(false)).filter(|count| *count > 0).collect();
        assert_eq!(stand, [1, METER_EVERY, METER_EVERY]);
        assert_eq!(meter.stands_for(true), 1);
        assert_eq!(tally(Some(Duration::from_micros(2)), 16), Tally { count: 16, nanos: 32_000 });
        assert_eq!(tally(None, 0), Tally { count: 0, nanos: 0 });
    }
}
