//! The value of keeping a version in memory. All measurements are arguments, so the order is plain arithmetic.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use modelhost_core::event::Tally;

use crate::demand::Demand;

/// The demand for a version, and the time of its loads.
#[derive(Default)]
pub(crate) struct Rank {
    pub(crate) demand: Demand,
    loads: AtomicU64,
    load_nanos: AtomicU64,
}

impl Rank {
    /// Records a load.
    pub(crate) fn loaded(&self, took: Duration) {
        self.loads.fetch_add(1, Ordering::Relaxed);
        self.load_nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Sets the demand, and one load of this time.
    #[cfg(test)]
    pub(crate) fn set(&self, asked: u32, load: Duration) {
        self.demand.set(asked, Instant::now());
        self.loads.store(1, Ordering::Relaxed);
        self.load_nanos.store(u64::try_from(load.as_nanos()).unwrap(), Ordering::Relaxed);
    }

    /// The loads so far.
    pub(crate) fn loads(&self) -> Tally {
        Tally { count: self.loads.load(Ordering::Relaxed), nanos: self.load_nanos.load(Ordering::Relaxed) }
    }

    /// The recent demand times the time of a load, per byte.
    #[expect(clippy::cast_precision_loss, reason = "it ranks")]
    pub(crate) fn value(&self, bytes: u64, now: Instant) -> f32 {
        let Tally { count, nanos } = self.loads();
        self.demand.lately(now) * (nanos / count.max(1)) as f32 / bytes.max(1) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value after `asked` requests at `now` and one load of `load_ms`.
    fn value(asked: u32, load_ms: u64, bytes: u64) -> f32 {
        let (rank, now) = (Rank::default(), Instant::now());
        (0..asked).for_each(|_| rank.demand.add(now));
        rank.loaded(Duration::from_millis(load_ms));
        rank.value(bytes, now)
    }

    #[test]
    fn what_is_asked_for_most_and_loads_longest_per_byte_is_worth_most() {
        for (less, more) in [
            ((1, 10, 100), (50, 10, 100)),
            ((5, 10, 100), (5, 11, 100)),
            ((5, 10, 100), (5, 10, 99)),
            ((50, 1, 100), (1, 51, 100)),
            ((0, 1000, 1), (1, 1, 1000)),
        ] {
            assert!(value(less.0, less.1, less.2) < value(more.0, more.1, more.2), "{less:?} {more:?}");
        }
    }

    #[test]
    fn loads_are_averaged() {
        let (rank, now) = (Rank::default(), Instant::now());
        rank.demand.add(now);
        let once = |millis| rank.loaded(Duration::from_millis(millis));
        once(10);
        let first = rank.value(1, now);
        once(30);
        assert!((rank.value(1, now) / first - 2.0).abs() < 1e-3);
        assert_eq!(rank.loads(), Tally { count: 2, nanos: 40_000_000 });
    }
}
