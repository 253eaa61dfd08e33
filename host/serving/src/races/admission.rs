//! Race tests of a deployment's queue: requests arrive, wait, run and leave, while the queue sheds, closes and gets
//! new bounds.

use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt;
use modelhost_core::deployment::Bounds;
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::ports::Recorder;
use modelhost_core::version::Limits;
use shuttle::future::block_on;
use shuttle::thread::{self, JoinHandle};

use super::{ORDERS, sync};
use crate::fakes::{Counts, later, version};
use admission::{Admission, Asked, Line, Permit};

/// The same source with shuttle's locks.
#[path = "../admission.rs"]
#[allow(clippy::duplicate_mod, clippy::module_inception, reason = "that is the point")]
#[expect(dead_code, reason = "some of it is for the other tests")]
mod admission;

fn queue(instances: u32, queue: u32) -> Arc<Admission> {
    Arc::new(Admission::new(&bounds(instances, queue)))
}

fn bounds(instances: u32, queue: u32) -> Bounds {
    Bounds { instances, queue, ..Bounds::default() }
}

/// A version of this model that may run so often at once.
fn line(model: &str, concurrency: u32) -> Arc<Line> {
    let mut version = Arc::into_inner(version(model, 1, 64)).unwrap();
    version.package.limits = Limits { concurrency, ..version.package.limits };
    Line::new(&version, Arc::new(Counts::default()) as Arc<dyn Recorder>)
}

/// What a caller does when it has to wait.
#[derive(Clone, Copy)]
enum Caller {
    Stays,
    Leaves,
}

/// The outcome of a call. `None` if the caller left.
type Outcome = Option<Result<(), ErrorCode>>;

fn call(admission: &Admission, line: &Arc<Line>, caller: Caller) -> Outcome {
    let run = |permit: Result<Permit<'_>, Error>| {
        let ran = permit.map(|permit| {
            thread::yield_now();
            permit.end(Instant::now());
        });
        Some(ran.map_err(|error| error.code))
    };
    match (admission.ask(line, Instant::now(), later()), caller) {
        (Err(refused), _) => run(Err(refused)),
        (Ok(Asked::Leave(permit)), _) => run(Ok(permit)),
        (Ok(Asked::Place(mut place)), Caller::Stays) => run(block_on(place.granted())),
        (Ok(Asked::Place(mut place)), Caller::Leaves) => {
            let granted = place.granted().now_or_never();
            thread::yield_now(); // it may be granted, refused or forgotten meanwhile
            granted.and_then(run)
        }
    }
}

fn start(admission: &Arc<Admission>, line: &Arc<Line>, caller: Caller) -> JoinHandle<Outcome> {
    let (admission, line) = (Arc::clone(admission), Arc::clone(line));
    thread::spawn(move || call(&admission, &line, caller))
}

/// For each line, two callers stay and one leaves, while `event` happens. Checks that all end and nothing is held.
/// Returns the outcomes of those that stayed.
fn check(
    admission: &Arc<Admission>,
    lines: &[Arc<Line>],
    event: fn(&Admission),
) -> Vec<Result<(), ErrorCode>> {
    let callers = [Caller::Stays, Caller::Leaves, Caller::Stays];
    let callers = callers.iter().flat_map(|caller| lines.iter().map(|line| start(admission, line, *caller)));
    let callers: Vec<_> = callers.collect();
    let other = Arc::clone(admission);
    let event = thread::spawn(move || event(&other));
    let ended = callers.into_iter().filter_map(|caller| caller.join().unwrap()).collect();
    event.join().unwrap();
    assert_eq!(admission.counts(), (0, 0));
    assert!(lines.iter().all(|line| (line.running(), line.waiting()) == (0, 0)));
    ended
}

#[test]
fn whoever_stays_runs_and_whoever_leaves_holds_nothing() {
    for (instances, concurrency) in [(1, 64), (2, 1)] {
        let all_run = move || {
            let lines = [line("m/a", concurrency), line("m/b", concurrency)];
            let ended = check(&queue(instances, 64), &lines, |_| {});
            assert!(ended.iter().all(Result::is_ok), "{ended:?}");
        };
        shuttle::check_random(all_run, ORDERS);
    }
}

#[test]
fn whoever_is_shed_or_refused_is_told_and_the_others_run() {
    let sheds = || {
        let lines = [line("m/a", 64), line("m/b", 64)];
        let ended = check(&queue(1, 2), &lines, |_| {});
        let told =
            |ended: &Result<(), ErrorCode>| matches!(ended, Ok(()) | Err(ErrorCode::ResourceExhausted));
        assert!(ended.iter().all(told) && ended.iter().any(Result::is_ok), "{ended:?}");
    };
    shuttle::check_random(sheds, ORDERS);
}

#[test]
fn whoever_waits_when_it_is_torn_down_is_told_and_whoever_runs_ends() {
    let closes = || {
        let ended = check(&queue(1, 64), &[line("m/a", 64), line("m/b", 64)], Admission::close);
        let told = |ended: &Result<(), ErrorCode>| matches!(ended, Ok(()) | Err(ErrorCode::Unavailable));
        assert!(ended.iter().all(told), "{ended:?}");
    };
    shuttle::check_random(closes, ORDERS);
}

#[test]
fn other_bounds_stop_nobody_who_waits() {
    let changes = || {
        let change = |admission: &Admission| {
            admission.set_bounds(&bounds(1, 64));
            admission.set_bounds(&bounds(3, 64));
        };
        let ended = check(&queue(2, 64), &[line("m/a", 1), line("m/b", 64)], change);
        assert!(ended.iter().all(Result::is_ok), "{ended:?}");
    };
    shuttle::check_random(changes, ORDERS);
}

/// No instance is given back. Only the new bounds let the second request run.
#[test]
fn raised_bounds_wake_whoever_waits() {
    let raises = || {
        let (admission, line) = (queue(1, 64), line("m/a", 64));
        let (first, second) = (Arc::clone(&admission), Arc::clone(&line));
        let Ok(Asked::Leave(held)) = first.ask(&second, Instant::now(), later()) else {
            panic!("it is free")
        };
        let waits = start(&admission, &line, Caller::Stays);
        admission.set_bounds(&bounds(2, 64));
        assert_eq!(waits.join().unwrap(), Some(Ok(())));
        drop(held);
        assert_eq!(admission.counts(), (0, 0));
    };
    shuttle::check_random(raises, ORDERS);
}
