//! Race tests of a version's residence: requests ask for it while other events happen.

use std::time::Instant;

use futures_util::FutureExt;
use modelhost_core::error::{Error, ErrorCode};
use shuttle::sync::Arc;
use shuttle::thread;

use super::{ORDERS, sync};
use crate::fakes::ready;
use residence::{Asked, Residence, Wait, Who};

/// The same source with shuttle's locks.
#[path = "../residence.rs"]
#[allow(clippy::duplicate_mod, clippy::module_inception, reason = "that is the point")]
#[expect(dead_code, reason = "some of it is for the other tests")]
mod residence;

/// Asks for the version, and loads it if told to.
fn ask(residence: &Residence, who: Who, loads: bool) -> Result<Option<Wait>, Error> {
    match residence.ask(who, Instant::now(), 100)? {
        Asked::There(_) => Ok(None),
        Asked::Wait(wait) => Ok(Some(wait)),
        Asked::Load(wait) => {
            thread::yield_now(); // reading, compiling, running
            if loads {
                residence.loaded(ready(), true);
            } else {
                residence.failed(Error::new(ErrorCode::ResourceExhausted, "full"), Instant::now());
            }
            Ok(Some(wait))
        }
    }
}

/// Three threads ask while `event` happens. Checks that all waiting ones have an answer once no load runs. Returns
/// whether the version stays in memory.
fn check(loads: bool, event: fn(&Residence)) -> bool {
    let residence = Arc::new(Residence::new(false));
    let asks: Vec<_> = (0..3)
        .map(|_| {
            let residence = Arc::clone(&residence);
            thread::spawn(move || ask(&residence, Who::Caller, loads))
        })
        .collect();
    let other = Arc::clone(&residence);
    let event = thread::spawn(move || event(&other));
    let waits: Vec<_> = asks.into_iter().map(|ask| ask.join().unwrap()).collect();
    event.join().unwrap();
    for wait in waits.into_iter().filter_map(|asked| asked.ok().flatten()) {
        assert!(wait.end().now_or_never().is_some(), "somebody waits for a load that ended");
    }
    assert_eq!(residence.waiting(), 0);
    residence.is_ready()
}

#[test]
fn what_is_withdrawn_during_loads_does_not_come_back() {
    let withdraw = |residence: &Residence| drop(residence.withdraw());
    shuttle::check_random(move || assert!(!check(true, withdraw)), ORDERS);
}

#[test]
fn what_is_retired_during_loads_does_not_stay() {
    shuttle::check_random(|| assert!(!check(true, |residence| drop(residence.retire()))), ORDERS);
}

#[test]
fn whoever_waits_is_answered_whatever_comes_between() {
    shuttle::check_random(|| _ = check(true, |residence| drop(residence.unload())), ORDERS);
    shuttle::check_random(|| assert!(!check(false, |residence| drop(residence.unload()))), ORDERS);
    let back = |residence: &Residence| {
        drop(residence.withdraw());
        drop(ask(residence, Who::Operator, true));
    };
    shuttle::check_random(move || _ = check(true, back), ORDERS);
}
