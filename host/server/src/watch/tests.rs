use super::*;

const PATIENCE: Patience =
    Patience { head: Duration::from_secs(10), idle: Duration::from_secs(60), read: Duration::from_secs(20) };

fn connections() -> Arc<Connections> {
    Connections::new(PATIENCE, Shared::new(ByteBudget::new("this host", 1 << 30), 10))
}

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
    let entered = connections().enter();
    let (watch, _open) = entered.connection.request(false).unwrap();
    let mut state = State::new(begin);
    state.is_http2 = is_http2;
    for (seconds, event) in events {
        match event {
            Event::Bytes => state.hear(at(*seconds)),
            Event::Asks => (state.asked, state.open, state.head) = (true, state.open + 1, None),
            Event::Answered => (state.open, state.heard) = (state.open - 1, at(*seconds)),
            Event::Sends(until) => drop(state.hold(Held::sending(&watch, None, at(*until)))),
            Event::Sent => {
                state.held.clear();
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
}

#[test]
fn over_http2_frames_about_no_request_are_silence() {
    use Event::{Answered, Asks, Bytes};
    check(true, &[(0, Asks), (1, Answered), (30, Bytes), (50, Bytes)], Some((62, Order::Finish)));
}

#[test]
fn while_the_host_works_nobody_is_ended() {
    check(false, &[(0, Event::Asks)], None);
}

#[test]
fn an_answer_must_be_read_in_its_time() {
    use Event::{Answered, Asks, Sends, Sent, Stalls};
    check(false, &[(0, Asks), (1, Sends(30)), (2, Answered)], Some((31, Order::Cut)));
    check(true, &[(0, Asks), (1, Sends(30)), (2, Answered), (5, Sent)], Some((66, Order::Finish)));
    check(false, &[(0, Asks), (1, Stalls)], Some((22, Order::Cut)));
    // The reset of its stream comes first.
    check(true, &[(0, Asks), (1, Sends(30)), (2, Answered)], Some((33, Order::Cut)));
}

#[test]
fn bytes_hold_their_charge_until_they_are_sent() {
    let budget = ByteBudget::new("this host", 100);
    let mut charge = budget.charge();
    charge.grow(10).unwrap();
    let entered = connections().enter();
    let (watch, _open) = entered.connection.request(false).unwrap();
    let bytes = watch.send(Bytes::from_static(b"0123456789"), Some(charge), Instant::now());
    let half = bytes.slice(5..);
    drop(bytes);
    let sending = || entered.connection.state().answers().count();
    assert_eq!((budget.used(), sending()), (10, 1));
    drop(half);
    assert_eq!((budget.used(), sending()), (0, 0));
}

#[test]
fn the_longest_silent_make_room_and_those_at_work_stay() {
    let connections = connections();
    let entered: Vec<_> = (0..4).map(|_| connections.enter()).collect();
    let _works = entered[0].connection.request(false).unwrap();
    let (watch, _open) = entered[1].connection.request(false).unwrap();
    let _reads = watch.clients_turn().unwrap();
    let begin = Instant::now();
    for (at, entered) in entered.iter().enumerate() {
        entered.connection.state().heard = begin - Duration::from_secs(10 - at as u64);
    }
    connections.make_room(2);
    let cut = || entered.iter().map(|entered| entered.connection.state().order).collect::<Vec<_>>();
    assert_eq!(cut(), [None, Some(Order::Cut), Some(Order::Cut), None]);
    connections.make_room(2); // these two are ending: nobody else has to
    assert_eq!(cut(), [None, Some(Order::Cut), Some(Order::Cut), None]);
}

#[test]
fn who_moves_bytes_over_http2_is_not_silent() {
    let connections = connections();
    let entered: Vec<_> = (0..2).map(|_| connections.enter()).collect();
    let begin = Instant::now();
    let turns: Vec<_> = (entered.iter())
        .map(|entered| {
            let (watch, open) = entered.connection.request(true).unwrap();
            let turn = watch.clients_turn().unwrap();
            connections.sweep();
            entered.connection.state().heard = begin - Duration::from_secs(10);
            (watch, open, turn)
        })
        .collect();
    turns[0].0.moved(1);
    entered[1].connection.state().hear(Instant::now());
    connections.make_room(1);
    let cut = entered.iter().map(|entered| entered.connection.state().order).collect::<Vec<_>>();
    assert_eq!(cut, [None, Some(Order::Cut)]);
}

#[test]
fn requests_that_wait_are_charged_and_bounded() {
    let budget = ByteBudget::new("this host", 2 * WAITING as u64);
    let entered = Connections::new(PATIENCE, Shared::new(Arc::clone(&budget), 10)).enter();
    let (watch, _open) = entered.connection.request(true).unwrap();
    let turns = [watch.clients_turn().unwrap(), watch.clients_turn().unwrap()];
    let refused = watch.clients_turn().err().map(|error| error.code);
    assert_eq!(refused, Some(ErrorCode::ResourceExhausted));
    drop(turns);
    assert_eq!(budget.used(), 0);
}

#[test]
fn requests_are_bounded_over_all_connections() {
    let shared = Shared::new(ByteBudget::new("this host", 1 << 30), 2);
    let entered = [0, 1].map(|_| Connections::new(PATIENCE, Arc::clone(&shared)).enter());
    let open: Vec<_> = entered.iter().map(|entered| entered.connection.request(true)).collect();
    assert!(open.iter().all(Option::is_some));
    for _ in 0..2 {
        assert!(entered[0].connection.request(true).is_none());
    }
    drop(open);
    entered[0].connection.state().latest = None;
    assert!(entered[0].connection.request(true).is_some());
}

#[tokio::test]
async fn what_is_there_at_once_is_nobodys_turn() {
    let entered = connections().enter();
    let (watch, _open) = entered.connection.request(false).unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    let waiting = || entered.connection.state().waiting;
    let done = clients(Some(&watch), until, "late", async { Ok(waiting()) }).await;
    assert_eq!(done, Ok(0));
    let later = async {
        tokio::task::yield_now().await;
        Ok(waiting())
    };
    assert_eq!(clients(Some(&watch), until, "late", later).await, Ok(1));
    let never = std::future::pending::<Result<(), Error>>();
    let late = clients(Some(&watch), Instant::now(), "late", never).await.unwrap_err();
    assert_eq!((late.code, late.message.as_str(), waiting()), (ErrorCode::DeadlineExceeded, "late", 0));
}

#[tokio::test]
async fn an_answer_that_is_late_ends_its_stream_before_its_connection() {
    let connections = connections();
    let entered = connections.enter();
    let (watch, open) = entered.connection.request(true).unwrap();
    let bytes = watch.send(Bytes::from_static(b"answer"), None, Instant::now());
    let stream = tokio::spawn(async move {
        let _answer = bytes;
        std::future::pending::<()>().await;
    });
    entered.connection.runs(stream.abort_handle());
    drop(open);
    connections.sweep();
    assert!(stream.await.unwrap_err().is_cancelled());
    let state = entered.connection.state();
    assert_eq!((state.answers().count(), state.order), (0, None));
}
