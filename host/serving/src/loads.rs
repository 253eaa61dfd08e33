//! The waiting and running loads of this host. Detects when loading stalls.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Loading is stalled if a load is this many load deadlines old and no load ended meanwhile. A load also reads,
/// compiles and waits for its turn.
const STILL: u32 = 4;

/// A single load is stalled after this many load deadlines, whatever other loads do.
const ENDLESS: u32 = 16;

#[derive(Default)]
pub(crate) struct Loads(Mutex<State>);

#[derive(Default)]
struct State {
    next: u64,
    /// When each load began, and what is loaded. Numbers increase with time.
    open: BTreeMap<u64, (Instant, String)>,
    last_end: Option<Instant>,
}

/// A load, from its request to its end.
pub(crate) struct Load {
    loads: Arc<Loads>,
    number: u64,
}

impl Drop for Load {
    fn drop(&mut self) {
        self.loads.end(self.number, Instant::now());
    }
}

impl Loads {
    /// Records a new load.
    pub(crate) fn begin(self: &Arc<Self>, what: String, now: Instant) -> Load {
        Load { loads: Arc::clone(self), number: self.open(what, now) }
    }

    fn open(&self, what: String, now: Instant) -> u64 {
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        state.open.insert(number, (now, what));
        number
    }

    fn end(&self, number: u64, now: Instant) {
        let mut state = self.lock();
        state.open.remove(&number);
        state.last_end = Some(now);
    }

    /// Why loading is stalled, if it is.
    pub(crate) fn stalled(&self, now: Instant, load_deadline: Duration) -> Option<String> {
        let state = self.lock();
        let (_, (since, what)) = state.open.first_key_value()?;
        let age = now.saturating_duration_since(*since);
        let quiet = state.last_end.map_or(age, |end| now.saturating_duration_since(end).min(age));
        let still = quiet > load_deadline * STILL || age > load_deadline * ENDLESS;
        still.then(|| {
            let (age, open, quiet) = (age.as_secs(), state.open.len(), quiet.as_secs());
            format!(
                "loading stands still: {what} was to be loaded {age} s ago, {open} loads wait or run, \
                 and none ended for {quiet} s"
            )
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);

    #[test]
    fn loads_that_end_are_no_stall_however_many_wait() {
        let (loads, start) = (Loads::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(loads.stalled(at(1000), DEADLINE), None, "nothing is to be loaded");
        let numbers: Vec<_> = (0..5).map(|at| loads.open(format!("m{at}"), start)).collect();
        for (number, seconds) in numbers.into_iter().zip([39, 78, 117, 156]) {
            assert_eq!(loads.stalled(at(seconds), DEADLINE), None, "{seconds}");
            loads.end(number, at(seconds));
        }
        assert_eq!(loads.stalled(at(156), DEADLINE), None);
        assert_eq!(loads.stalled(at(161), DEADLINE).map(|why| why.contains("m4")), Some(true), "endless");
    }

    #[test]
    fn none_that_ends_is_a_stall() {
        let (loads, start) = (Loads::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let first = loads.open("model a version 1".into(), start);
        loads.open("b".into(), at(30));
        assert_eq!(loads.stalled(at(40), DEADLINE), None);
        let why = "loading stands still: model a version 1 was to be loaded 41 s ago, 2 loads wait or run, \
             and none ended for 41 s";
        assert_eq!(loads.stalled(at(41), DEADLINE).as_deref(), Some(why));
        loads.end(first, at(42));
        assert_eq!(loads.stalled(at(43), DEADLINE), None, "it moves again");
        assert!(loads.stalled(at(83), DEADLINE).is_some());
    }
}
