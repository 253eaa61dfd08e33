//! The recent demand for a version. Each request counts 1, and half of that after a minute. So one number holds
//! frequency and recency.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The common origin of all versions' times.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Seconds after which a request counts half.
const HALF_LIFE: f32 = 60.0;

/// Ticks per second.
const TICKS: u32 = 16;

/// A count (`f32`) and its time (ticks) in one word. Of two concurrent updates one may be lost. That is good enough
/// for ranking.
#[derive(Default)]
pub(crate) struct Demand(AtomicU64);

impl Demand {
    /// Counts one request.
    pub(crate) fn add(&self, now: Instant) {
        let now = ticks(now);
        self.store(self.at(now) + 1.0, now);
    }

    /// Sets the count as of now.
    #[cfg(test)]
    #[expect(clippy::cast_precision_loss, reason = "it ranks")]
    pub(crate) fn set(&self, count: u32, now: Instant) {
        self.store(count as f32, ticks(now));
    }

    fn store(&self, count: f32, now: u32) {
        self.0.store(u64::from(count.to_bits()) << 32 | u64::from(now), Ordering::Relaxed);
    }

    /// The recent number of requests.
    pub(crate) fn lately(&self, now: Instant) -> f32 {
        self.at(ticks(now))
    }

    /// The time since the last request.
    #[expect(clippy::cast_possible_truncation, reason = "the lower half of a word")]
    pub(crate) fn idle(&self) -> Duration {
        let then = self.0.load(Ordering::Relaxed) as u32;
        Duration::from_secs_f64(f64::from(ticks(Instant::now()).saturating_sub(then)) / f64::from(TICKS))
    }

    #[expect(clippy::cast_possible_truncation, reason = "the halves of a word")]
    #[expect(clippy::cast_precision_loss, reason = "seconds, to a sixteenth")]
    fn at(&self, now: u32) -> f32 {
        let word = self.0.load(Ordering::Relaxed);
        let (count, then) = (f32::from_bits((word >> 32) as u32), word as u32);
        match now.saturating_sub(then) {
            0 => count,
            elapsed => count * (-(elapsed as f32) / (TICKS as f32 * HALF_LIFE)).exp2(),
        }
    }
}

fn ticks(now: Instant) -> u32 {
    let micros = now.saturating_duration_since(*START).as_micros();
    u32::try_from(micros * u128::from(TICKS) / 1_000_000).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_forgets() {
        let demand = Demand::default();
        (0..3).for_each(|_| demand.add(Instant::now()));
        assert!((demand.lately(Instant::now()) - 3.0).abs() < 0.01, "{}", demand.lately(Instant::now()));
        assert!(demand.idle() < Duration::from_secs(1), "{:?}", demand.idle());
        let minute_later = ticks(Instant::now()) + 60 * TICKS;
        assert!((demand.at(minute_later) - 1.5).abs() < 0.01);
        assert!(demand.at(u32::MAX) < 1e-6);
    }
}
