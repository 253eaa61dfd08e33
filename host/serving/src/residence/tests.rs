use std::time::{Duration, Instant};

use futures_util::FutureExt;
use modelhost_core::error::{Error, ErrorCode};

use crate::fakes::ready;
use crate::residence::{Asked, RETRY_AFTER_MOST, Residence, Wait, Who};

/// An event of a version.
#[derive(Debug, Clone, Copy)]
enum Event {
    Ask,
    AskAnyway,
    Loaded,
    NoRoom,
    Failed,
    Exhausted,
    Later,
    Unload,
    Withdraw,
    Retire,
}
use Event::*;

/// The outcomes of all requests in order, as letters: `r` the model, `w` withdrawn, `f` the load failed, `e`
/// exhausted, `.` none yet.
fn answers(events: &[Event]) -> (String, bool) {
    let (residence, mut now) = (Residence::new(false), Instant::now());
    let mut waits: Vec<Result<Wait, char>> = Vec::new();
    for event in events {
        match event {
            Ask | AskAnyway => {
                let who = if matches!(event, Ask) { Who::Caller } else { Who::Operator };
                waits.push(match residence.ask(who, now, 3) {
                    Ok(Asked::There(_)) => Err('r'),
                    Ok(Asked::Wait(wait) | Asked::Load(wait)) => Ok(wait),
                    Err(error) => Err(letter(&error)),
                });
            }
            Loaded => drop(residence.loaded(ready(), true)),
            NoRoom => drop(residence.loaded(ready(), false)),
            Failed => residence.failed(Error::fault("it fails"), now),
            Exhausted => residence.failed(Error::new(ErrorCode::ResourceExhausted, "full"), now),
            Later => now += RETRY_AFTER_MOST,
            Unload => drop(residence.unload()),
            Withdraw => drop(residence.withdraw()),
            Retire => drop(residence.retire()),
        }
    }
    let got = |wait: Result<Wait, char>| match wait.map(|wait| wait.end().now_or_never()) {
        Err(letter) => letter,
        Ok(None) => '.',
        Ok(Some(Ok(_))) => 'r',
        Ok(Some(Err(error))) => letter(&error),
    };
    (waits.into_iter().map(got).collect(), residence.is_ready())
}

fn letter(error: &Error) -> char {
    match error.code {
        ErrorCode::Unavailable => 'w',
        ErrorCode::ResourceExhausted => 'e',
        _ => 'f',
    }
}

#[test]
fn every_event_in_every_stage() {
    for (events, got, stays) in [
        // One load answers all callers. Beyond the bound a caller is refused, but a request for the load itself
        // waits.
        (&[Ask, Ask, Ask, Loaded, Ask][..], "rrrr", true),
        (&[Ask, Ask, Ask, Ask, AskAnyway], "...e.", false),
        // A failure is told to all waiting callers and remembered for a while. A request for the load itself tries at
        // once.
        (&[Ask, Ask, Failed, Ask, Later, Ask], "fff.", false),
        (&[Ask, Failed, AskAnyway, Loaded, Ask], "frr", true),
        // If only room was missing, the next caller tries again.
        (&[Ask, Exhausted, Ask, Loaded], "er", true),
        (&[Ask, NoRoom, Ask], "r.", false),
        // An unload takes precedence over a running load, and waiting callers still get it. A later caller keeps the
        // version.
        (&[Ask, Loaded, Unload, Ask], "r.", false),
        (&[Ask, Unload, Loaded, Ask], "r.", false),
        (&[Ask, Unload, Ask, Loaded], "rr", true),
        // A withdrawal refuses waiting and later callers until a load is asked for. Then a running load serves again.
        (&[Withdraw, Ask, AskAnyway, Loaded, Ask], "wrr", true),
        (&[Ask, Withdraw, Ask, Loaded, Ask], "www", false),
        (&[Ask, Withdraw, AskAnyway, Ask, Loaded], "wrr", true),
        (&[Ask, Loaded, Withdraw, Ask], "rw", false),
        (&[Ask, Withdraw, Failed, AskAnyway], "w.", false),
        // A retired version answers earlier callers and never stays.
        (&[Ask, Retire, Loaded, Ask, Loaded], "rr", false),
        (&[Ask, Loaded, Retire, Ask], "r.", false),
        (&[Retire, Ask, Ask, Loaded], "rr", false),
    ] {
        assert_eq!(answers(events), (got.to_owned(), stays), "{events:?}");
    }
}

#[test]
fn pauses_double_up_to_a_minute() {
    let (residence, mut now) = (Residence::new(false), Instant::now());
    let mut pauses = Vec::new();
    drop(residence.ask(Who::Caller, now, 1).unwrap());
    for _ in 0..8 {
        residence.failed(Error::fault("it fails"), now);
        let asked = |pause: u64| residence.ask(Who::Caller, now + Duration::from_secs(pause), 1);
        let pause = (1..).find(|pause| asked(*pause).is_ok()).unwrap();
        pauses.push(pause);
        now += Duration::from_secs(pause);
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
}

#[test]
fn a_withdrawn_one_says_so_and_a_broken_one_says_why() {
    let residence = Residence::new(true);
    assert_eq!(residence.unavailable().as_deref(), Some("unloaded"));
    assert_eq!(residence.check_available().unwrap_err().message, "it is unloaded");
    residence.bring_back();
    assert!(residence.unavailable().is_none() && residence.check_available().is_ok());
    drop(residence.ask(Who::Caller, Instant::now(), 1).unwrap());
    residence.failed(Error::fault("it fails"), Instant::now());
    assert_eq!(residence.unavailable().as_deref(), Some("it fails"));
}
