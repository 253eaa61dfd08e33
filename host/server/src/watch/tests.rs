use super::*;

const PATIENCE: Patience =
    Patience { head: Duration::from_secs(10), idle: Duration::from_secs(60), read: Duration::from_secs(20) };

/// What happens to a connection, so many seconds after it began.
enum Event {
    Bytes,
    Asks,
    Answered,
    Sends(u64),
    Sent,
    Stalls,
}

/// Plays the events and checks when the connection is ended, and how.
fn check(is_http2: bool, events: &[(u64, Event)], expected: Option<(u64, Order)>) {
    let begin = Instant::now();
    let at = |seconds: u64| begin + Duration::from_secs(seconds);
    let mut state = State::new(begin);
    state.is_http2 = is_http2;
    for (seconds, event) in events {
        match event {
            Event::Bytes => state.hear(at(*seconds)),
            Event::Asks => (state.asked, state.open, state.head) = (true, state.open + 1, None),
            Event::Answered => (state.open, state.heard) = (state.open - 1, at(*seconds)),
            Event::Sends(until) => drop(state.sending.insert(0, at(*until))),
            Event::Sent => {
                state.sending.clear();
                state.heard = at(*seconds);
            }
            Event::Stalls => state.stalled = Some(at(*seconds)),
        }
    }
    let from = events.last().map_or(0, |(seconds, _)| *seconds);
    let ended = (from..1000).find_map(|seconds| Some((seconds, state.verdict(at(seconds), &PATIENCE)?)));
    assert_eq!(ended, expected);
}

#[test]
fn a_client_that_never_asks_is_let_go() {
    check(false, &[], Some((11, Order::Finish)));
    check(true, &[(1, Event::Bytes)], Some((11, Order::Finish)));
    check(false, &[(1, Event::Bytes), (9, Event::Bytes)], Some((12, Order::Cut)));
}

#[test]
fn a_later_head_has_its_time_too() {
    use Event::{Answered, Asks, Bytes};
    let first = || [(0, Asks), (1, Answered)];
    check(false, &first(), Some((62, Order::Finish)));
    let slow = first().into_iter().chain([(30, Bytes), (39, Bytes)]);
    check(false, &slow.collect::<Vec<_>>(), Some((41, Order::Cut)));
    let pings = first().into_iter().chain([(30, Bytes), (50, Bytes)]);
    check(true, &pings.collect::<Vec<_>>(), Some((111, Order::Finish)));
}

#[test]
fn while_the_host_works_nobody_is_ended() {
    check(false, &[(0, Event::Asks)], None);
}

#[test]
fn an_answer_must_be_read_in_its_time() {
    use Event::{Answered, Asks, Sends, Sent, Stalls};
    check(true, &[(0, Asks), (1, Sends(30)), (2, Answered)], Some((31, Order::Cut)));
    check(true, &[(0, Asks), (1, Sends(30)), (2, Answered), (5, Sent)], Some((66, Order::Finish)));
    check(false, &[(0, Asks), (1, Stalls)], Some((22, Order::Cut)));
}

#[test]
fn bytes_hold_their_charge_until_they_are_sent() {
    let budget = modelhost_core::budget::ByteBudget::new("this host", 100);
    let mut charge = budget.charge();
    charge.grow(10).unwrap();
    let watch = Watch::new(Weak::new());
    let bytes = watch.send(Bytes::from_static(b"0123456789"), Some(charge), Instant::now());
    let half = bytes.slice(5..);
    drop(bytes);
    assert_eq!((budget.used(), watch.state().sending.len()), (10, 1));
    drop(half);
    assert_eq!((budget.used(), watch.state().sending.len()), (0, 0));
}

#[test]
fn the_longest_silent_make_room_and_those_at_work_stay() {
    let connections = Connections::new(PATIENCE);
    let entered: Vec<_> = (0..4).map(|_| connections.enter()).collect();
    let _works = entered[0].watch.open();
    let _reads = (entered[1].watch.open(), entered[1].watch.clients_turn(true));
    let begin = Instant::now();
    for (at, entered) in entered.iter().enumerate() {
        entered.watch.state().heard = begin - Duration::from_secs(10 - at as u64);
    }
    connections.make_room(2);
    let cut = || entered.iter().map(|entered| entered.watch.state().order).collect::<Vec<_>>();
    assert_eq!(cut(), [None, Some(Order::Cut), Some(Order::Cut), None]);
    connections.make_room(2); // these two are ending: nobody else has to
    assert_eq!(cut(), [None, Some(Order::Cut), Some(Order::Cut), None]);
}
