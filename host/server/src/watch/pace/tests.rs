use super::*;
use crate::watch::{ClientsTurn, Entered, Open, Patience, Shared};

const PATIENCE: Patience =
    Patience { head: Duration::from_secs(10), idle: Duration::from_secs(60), read: Duration::from_secs(20) };

/// Two ports and a deployment of a host, each with room for a megabyte.
struct Host {
    room: Room,
    all: Arc<ByteBudget>,
    deployment: Arc<ByteBudget>,
}

/// A request that waits for its client.
struct Waiting {
    watch: Arc<Watch>,
    _charge: Charge,
    _turn: ClientsTurn,
    _open: Open,
    _entered: Entered,
}

impl Waiting {
    fn is_over(&self) -> bool {
        self.watch.is_over.load(Ordering::Relaxed)
    }
}

impl Host {
    fn new() -> Self {
        let all = ByteBudget::new("this host", 4 << 20);
        let listener = || Connections::new(PATIENCE, Shared::new(all.part("waiting", 1 << 20), 10));
        let room = Room { budgets: vec![Arc::clone(&all)], listeners: vec![listener(), listener()] };
        Self { room, deployment: all.part("deployment a", 1 << 20), all }
    }

    /// A request on one of the ports that holds bytes of this budget.
    fn waits(&self, port: usize, budget: &Arc<ByteBudget>, bytes: usize) -> Waiting {
        let entered = self.room.listeners[port].enter();
        let (watch, open) = entered.connection.request(true).unwrap();
        let mut charge = budget.charge();
        charge.grow(bytes).unwrap();
        let turn = watch.clients_turn().unwrap();
        watch.holds(Some(&charge));
        Waiting { watch, _charge: charge, _turn: turn, _open: open, _entered: entered }
    }

    /// Lets so many seconds pass, in each of which these move so many bytes; then bytes of the budget are short.
    fn is_short(&self, budget: &ByteBudget, seconds: u64, moves: &[(&Waiting, usize)]) {
        let begin = Instant::now();
        for second in 1..=seconds {
            for (waiting, bytes) in moves {
                waiting.watch.moved(*bytes);
            }
            for listener in &self.room.listeners {
                for connection in listener.all().values() {
                    drop(listener.settled(connection, begin + Duration::from_secs(second)));
                }
            }
        }
        self.room.make(budget, begin + Duration::from_secs(seconds));
    }
}

#[test]
fn who_moves_too_little_for_what_it_holds_gives_way() {
    let host = Host::new();
    let waits = || host.waits(0, &host.deployment, 40_000);
    let (stopped, drips, keeps_up) = (waits(), waits(), waits());
    let rate = (40_000 + WAITING) / 10 + 1;
    let moves = [(&drips, 1000), (&keeps_up, rate)];
    host.is_short(&host.deployment, 2, &moves);
    assert!([&stopped, &drips, &keeps_up].iter().all(|waiting| !waiting.is_over()), "there is a grace");
    host.is_short(&host.deployment, 5, &moves);
    assert_eq!([&stopped, &drips, &keeps_up].map(Waiting::is_over), [true, true, false]);
}

#[test]
fn a_burst_pays_for_no_later_silence() {
    let host = Host::new();
    let burst = host.waits(0, &host.deployment, 40_000);
    host.is_short(&host.deployment, 1, &[(&burst, 10 << 20)]);
    host.is_short(&host.deployment, 5, &[]);
    assert!(burst.is_over());
}

#[test]
fn nobody_gives_way_where_it_helps_nobody() {
    let host = Host::new();
    let other = host.all.part("deployment b", 1 << 20);
    let (own, others) = (host.waits(0, &host.deployment, 40_000), host.waits(0, &other, 40_000));
    host.is_short(&host.deployment, 5, &[]);
    assert_eq!([own, others].map(|waiting| waiting.is_over()), [true, false]);
}

#[test]
fn all_ports_make_room_and_no_more_than_is_needed() {
    let host = Host::new();
    let share = usize::try_from(host.deployment.limit() / SHARE).unwrap();
    let small = host.waits(0, &host.deployment, 1000);
    let (large, larger) =
        (host.waits(0, &host.deployment, share), host.waits(1, &host.deployment, share + 1));
    host.is_short(&host.deployment, 5, &[]);
    assert_eq!([&small, &large, &larger].map(Waiting::is_over), [false, false, true]);
    host.is_short(&host.deployment, 5, &[]);
    assert!(!large.is_over(), "what comes back is waited for");
    drop(larger);
    host.is_short(&host.deployment, 5, &[]);
    assert_eq!([&small, &large].map(Waiting::is_over), [false, true]);
}

#[test]
fn unread_answers_give_way_too() {
    let host = Host::new();
    let entered = host.room.listeners[0].enter();
    let (watch, open) = entered.connection.request(false).unwrap();
    let mut charge = host.deployment.charge();
    charge.grow(500_000).unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    let _unread = watch.send(bytes::Bytes::from_static(b"answer"), Some(charge), until);
    drop(open);
    host.is_short(&host.deployment, 5, &[]);
    let verdict = entered.connection.state().verdict(Instant::now() + Duration::from_secs(6), &PATIENCE);
    assert_eq!(verdict, Some(crate::watch::Order::Cut));
}
