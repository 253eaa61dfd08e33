//! One version's totals, as plain atomics. The statistics extension and the `nv_*` metrics read them.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use modelhost_core::event::{Prediction, Role, Statistics, Tally};
use modelhost_core::histogram::Counts;

#[derive(Default)]
pub(crate) struct Totals {
    last_inference_ms: AtomicU64,
    rows: AtomicU64,
    success: AtomicTally,
    fail: AtomicTally,
    queue: AtomicTally,
    decode: AtomicTally,
    infer: AtomicTally,
    encode: AtomicTally,
    cache_hit: AtomicTally,
    cache_miss: AtomicTally,
    cpu: AtomicTally,
    latency: Latency,
}

impl Totals {
    pub(crate) fn prediction(&self, prediction: &Prediction) {
        self.cpu.add_all(prediction.cpu);
        if prediction.role == Role::Challenger {
            return;
        }
        let whole = prediction.queued + prediction.ran;
        if prediction.error.is_some() {
            self.fail.add(whole);
            return;
        }
        self.success.add(whole);
        self.latency.add(whole);
        self.queue.add(prediction.queued);
        self.infer.add(prediction.ran);
        self.rows.fetch_add(prediction.rows, Ordering::Relaxed);
        self.touch();
    }

    pub(crate) fn codec(&self, decode: Duration, encode: Duration) {
        self.decode.add(decode);
        self.encode.add(encode);
    }

    /// A hit is a success too. Nothing waited and nothing ran.
    pub(crate) fn cache_hit(&self, took: Duration) {
        self.cache_hit.add(took);
        self.success.add(took);
        self.touch();
    }

    pub(crate) fn cache_miss(&self, took: Duration) {
        self.cache_miss.add(took);
    }

    pub(crate) fn read(&self) -> Statistics {
        let infer = self.infer.read();
        Statistics {
            last_inference_ms: self.last_inference_ms.load(Ordering::Relaxed),
            rows: self.rows.load(Ordering::Relaxed),
            runs: infer.count,
            success: self.success.read(),
            fail: self.fail.read(),
            queue: self.queue.read(),
            decode: self.decode.read(),
            infer,
            encode: self.encode.read(),
            cache_hit: self.cache_hit.read(),
            cache_miss: self.cache_miss.read(),
            cpu: self.cpu.read(),
        }
    }

    /// The non-empty classes: upper bound in microseconds, number of answers.
    pub(crate) fn latency(&self) -> Vec<(u64, u64)> {
        self.latency.read()
    }

    #[expect(clippy::disallowed_methods, reason = "a time for people; nothing is decided by it")]
    fn touch(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        self.last_inference_ms.store(u64::try_from(now).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// Counts durations from 1 microsecond to over an hour. The bound of a class is at most a quarter above its values.
/// Allocated with the first duration.
#[derive(Default)]
struct Latency(OnceLock<Box<Counts<4, 132>>>);

impl Latency {
    fn add(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.0.get_or_init(Box::default).add(micros);
    }

    fn read(&self) -> Vec<(u64, u64)> {
        let Some(read) = self.0.get().map(|counts| counts.read()) else { return Vec::new() };
        let counts = read.classes().map(|(bound, count)| (bound.unwrap_or(u64::MAX), count));
        counts.filter(|(_, count)| *count > 0).collect()
    }
}

#[derive(Default)]
struct AtomicTally {
    count: AtomicU64,
    nanos: AtomicU64,
}

impl AtomicTally {
    fn add(&self, took: Duration) {
        self.add_all(Tally { count: 1, nanos: u64::try_from(took.as_nanos()).unwrap_or(u64::MAX) });
    }

    fn add_all(&self, more: Tally) {
        if more.count > 0 {
            self.count.fetch_add(more.count, Ordering::Relaxed);
            self.nanos.fetch_add(more.nanos, Ordering::Relaxed);
        }
    }

    fn read(&self) -> Tally {
        Tally { count: self.count.load(Ordering::Relaxed), nanos: self.nanos.load(Ordering::Relaxed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_by_class() {
        let latency = Latency::default();
        assert_eq!(latency.read(), []);
        for micros in [100, 101, 5000] {
            latency.add(Duration::from_micros(micros));
        }
        assert_eq!(latency.read(), [(112, 2), (5120, 1)]);
    }
}
