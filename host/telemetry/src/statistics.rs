//! One version's totals, as plain atomics: the statistics extension and the `nv_*` metrics read them.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use modelhost_core::event::{Prediction, Role, Statistics, Tally};

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

    /// A hit is a success too: nothing waited, nothing ran.
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

    /// (upper bound in microseconds, answers) of every class that has any.
    pub(crate) fn latency(&self) -> Vec<(u64, u64)> {
        self.latency.read()
    }

    #[expect(clippy::disallowed_methods, reason = "a time for people; nothing is decided by it")]
    fn touch(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        self.last_inference_ms.store(u64::try_from(now).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// Classes of a duration for each doubling of it: a bound is at most a quarter above the shortest duration of its class.
const PARTS: usize = 4;

/// From 1 microsecond to over an hour.
const CLASSES: usize = 32 * PARTS;

/// Counts of durations, in classes whose width grows with the duration. Made when the first one comes.
#[derive(Default)]
struct Latency(OnceLock<Box<[AtomicU64; CLASSES]>>);

impl Latency {
    fn add(&self, took: Duration) {
        let classes = self.0.get_or_init(|| Box::new([const { AtomicU64::new(0) }; CLASSES]));
        if let Some(class) = classes.get(class(u64::try_from(took.as_micros()).unwrap_or(u64::MAX))) {
            class.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn read(&self) -> Vec<(u64, u64)> {
        let classes = self.0.get().into_iter().flat_map(|classes| classes.iter().enumerate());
        let counts = classes.map(|(class, count)| (bound(class), count.load(Ordering::Relaxed)));
        counts.filter(|(_, count)| *count > 0).collect()
    }
}

/// The class of a duration in microseconds: its highest bit and the two below it.
fn class(micros: u64) -> usize {
    let micros = micros.max(1);
    let octave = micros.ilog2();
    let part = usize::try_from((u128::from(micros) << 2 >> octave) % PARTS as u128).unwrap_or(0);
    (octave as usize * PARTS + part).min(CLASSES - 1)
}

/// The least duration, in microseconds, that is too long for a class.
fn bound(class: usize) -> u64 {
    let (octave, part) = (class / PARTS, class % PARTS);
    ((PARTS + part + 1) as u64) << octave >> 2
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
    fn a_duration_lies_below_its_class_bound_and_not_far() {
        for micros in (1..5000).chain([123_456, 10_000_000, 3_600_000_000]) {
            let bound = bound(class(micros));
            assert!(micros <= bound && bound * 4 <= micros * 5 + 4, "{micros} in a class up to {bound}");
        }
        assert_eq!(class(u64::MAX), CLASSES - 1);
    }

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
