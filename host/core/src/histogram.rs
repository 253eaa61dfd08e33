//! Counts of values in classes. A class is the wider, the larger its values are. All histograms use this.

use std::sync::atomic::{AtomicU64, Ordering};

/// The counts. Each doubling of a value has `PARTS` classes, so a class's bound is at most 1/`PARTS` above its
/// values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram<const PARTS: usize, const CLASSES: usize> {
    /// One for each class. The last counts all larger values.
    pub counts: [u64; CLASSES],
    /// The sum of all values.
    pub sum: u64,
}

impl<const PARTS: usize, const CLASSES: usize> Default for Histogram<PARTS, CLASSES> {
    fn default() -> Self {
        Self { counts: [0; CLASSES], sum: 0 }
    }
}

impl<const PARTS: usize, const CLASSES: usize> Histogram<PARTS, CLASSES> {
    /// The class of a value. 0 and 1 are in the first.
    pub fn class(value: u64) -> usize {
        let above = value.saturating_sub(1);
        let Some(octave) = above.checked_ilog2() else { return 0 };
        let part = ((u128::from(above) * PARTS as u128) >> octave) as usize % PARTS;
        (1 + octave as usize * PARTS + part).min(CLASSES - 1)
    }

    /// The largest value of a class; `None` for the last, which has none.
    pub fn bound(class: usize) -> Option<u64> {
        if class + 1 >= CLASSES {
            return None;
        }
        let Some(above) = class.checked_sub(1) else { return Some(1) };
        let bound = (((PARTS + above % PARTS + 1) as u128) << (above / PARTS)).div_ceil(PARTS as u128);
        u64::try_from(bound).ok()
    }

    /// (bound, count) of every class.
    pub fn classes(&self) -> impl Iterator<Item = (Option<u64>, u64)> {
        self.counts.iter().enumerate().map(|(class, count)| (Self::bound(class), *count))
    }
}

/// A histogram that any number of threads count into.
#[derive(Debug)]
pub struct Counts<const PARTS: usize, const CLASSES: usize> {
    counts: [AtomicU64; CLASSES],
    sum: AtomicU64,
}

impl<const PARTS: usize, const CLASSES: usize> Default for Counts<PARTS, CLASSES> {
    fn default() -> Self {
        Self { counts: [const { AtomicU64::new(0) }; CLASSES], sum: AtomicU64::new(0) }
    }
}

impl<const PARTS: usize, const CLASSES: usize> Counts<PARTS, CLASSES> {
    /// Counts one value.
    pub fn add(&self, value: u64) {
        if let Some(count) = self.counts.get(Histogram::<PARTS, CLASSES>::class(value)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.sum.fetch_add(value, Ordering::Relaxed);
    }

    /// The counts so far.
    pub fn read(&self) -> Histogram<PARTS, CLASSES> {
        let counts = self.counts.each_ref().map(|count| count.load(Ordering::Relaxed));
        Histogram { counts, sum: self.sum.load(Ordering::Relaxed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_holds_what_its_bound_says() {
        type Doublings = Histogram<1, 22>;
        for (value, class) in
            [(0, 0), (1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (1 << 20, 20), ((1 << 20) + 1, 21)]
        {
            assert_eq!(Doublings::class(value), class, "{value}");
        }
        assert_eq!((Doublings::class(u64::MAX), Doublings::bound(21)), (21, None));
        assert_eq!((Doublings::bound(0), Doublings::bound(20)), (Some(1), Some(1 << 20)));
    }

    #[test]
    fn a_value_lies_below_its_bound_and_not_far() {
        type Quarters = Histogram<4, 132>;
        for value in (0..5000).chain([123_456, 10_000_000, 3_600_000_000]) {
            let class = Quarters::class(value);
            let bound = Quarters::bound(class).unwrap();
            assert!(value <= bound && bound * 4 <= value * 5 + 4, "{value} in a class up to {bound}");
            let below = class.checked_sub(1).and_then(Quarters::bound);
            assert!(below.is_none_or(|below| below < value), "{value} is above the class below, {below:?}");
        }
        assert_eq!(Quarters::class(u64::MAX), 131);
    }

    #[test]
    fn counts_by_class() {
        let counts = Counts::<4, 132>::default();
        [100, 101, 5000].iter().for_each(|value| counts.add(*value));
        let read = counts.read();
        let any: Vec<_> = read.classes().filter(|(_, count)| *count > 0).collect();
        assert_eq!((any, read.sum), (vec![(Some(112), 2), (Some(5120), 1)], 5201));
    }
}
