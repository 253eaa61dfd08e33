//! What is known of one connection, and when its client has had its time.
//!
//! Whose turn it is decides: while the host works for a client, the connection stays; while the client is to send or to
//! read, a clock runs. Every answer says when it must have been read, and holds its bytes until it was. What a client
//! moves, of a body or of an answer, counts for its request; other frames of HTTP/2 (a PING, say) count for nothing.
//! Who gives way when bytes are short is in `pace`.

mod pace;
mod socket;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use modelhost_core::budget::{ByteBudget, Charge};
use modelhost_core::error::{Error, ErrorCode};
use tokio::sync::{Notify, Semaphore};
use tokio::task::AbortHandle;

use self::pace::Held;
pub(crate) use self::pace::Room;
pub(crate) use self::socket::Watched;

/// What a request that waits for its client is charged for: its head, its task, its place on its connection.
const WAITING: usize = 48 << 10;

/// How long the reset of a stream may take to free what was to be read of it. Then the connection is cut.
const RESET: Duration = Duration::from_secs(2);

/// Calls for health and reflection that one connection may have open: a watch of the host's health never ends.
const SMALL_CALLS: usize = 8;

/// How long clients may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// To send a request's head, from its first byte, or from the connection's begin.
    pub(crate) head: Duration,
    /// To ask again.
    pub(crate) idle: Duration,
    /// To read anything of what is sent.
    pub(crate) read: Duration,
}

/// What the requests of some ports share.
pub(crate) struct Shared {
    /// What those that wait for their client are charged to.
    waits: Arc<ByteBudget>,
    /// How many there are, and may be.
    requests: AtomicUsize,
    most: usize,
}

impl Shared {
    pub(crate) fn new(waits: Arc<ByteBudget>, most: usize) -> Arc<Self> {
        Arc::new(Self { waits, requests: AtomicUsize::new(0), most })
    }
}

/// What a connection is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Order {
    /// Finish what runs, begin nothing.
    Finish,
    /// End now.
    Cut,
}

/// One connection.
pub(crate) struct Connection {
    state: Mutex<State>,
    told: Notify,
    /// A client has moved bytes of a request since the last look.
    has_moved: AtomicBool,
    shared: Arc<Shared>,
    /// Places of calls for health and reflection.
    small_calls: Arc<Semaphore>,
}

struct State {
    /// When the client last did what was its turn, or the connection began.
    heard: Instant,
    /// A request has come.
    asked: bool,
    is_http2: bool,
    /// Requests whose answer is not handed over.
    open: u32,
    /// Those of them that wait for their client.
    waiting: u32,
    /// Since when a request's head arrives.
    head: Option<Instant>,
    /// Since when the client reads nothing although there is something.
    stalled: Option<Instant>,
    /// Requests that wait for their client, and answers that are being sent.
    held: BTreeMap<u64, Held>,
    next: u64,
    /// The request that has just come over HTTP/2, until something runs it.
    latest: Option<Arc<Watch>>,
    order: Option<Order>,
}

impl State {
    fn new(now: Instant) -> Self {
        Self {
            heard: now,
            asked: false,
            is_http2: false,
            open: 0,
            waiting: 0,
            head: None,
            stalled: None,
            held: BTreeMap::new(),
            next: 0,
            latest: None,
            order: None,
        }
    }

    /// What the clock says.
    fn verdict(&self, now: Instant, patience: &Patience) -> Option<Order> {
        let past = |since: Instant, limit: Duration| now.saturating_duration_since(since) > limit;
        let late = if self.is_http2 { RESET } else { Duration::ZERO };
        if self.stalled.is_some_and(|since| past(since, patience.read))
            || self.answers().any(|until| past(until, late))
        {
            return Some(Order::Cut);
        }
        if self.open > 0 || self.answers().next().is_some() {
            return None;
        }
        if let Some(since) = self.head.filter(|_| !self.is_http2) {
            return past(since, patience.head).then_some(Order::Cut);
        }
        let limit = if self.asked { patience.idle } else { patience.head };
        match self.order {
            None => past(self.heard, limit).then_some(Order::Finish),
            Some(_) => past(self.heard, 2 * limit).then_some(Order::Cut),
        }
    }

    /// When answers that are being sent must be gone.
    fn answers(&self) -> impl Iterator<Item = Instant> {
        self.held.values().filter_map(|held| held.until)
    }

    /// Whether the next step is the client's.
    fn is_clients_turn(&self) -> bool {
        self.open <= self.waiting
    }

    /// Bytes came. Over HTTP/2 they may be about nothing.
    fn hear(&mut self, now: Instant) {
        if self.is_http2 {
            return;
        }
        if self.asked {
            self.heard = now; // the first head's clock runs from the connection's begin
        }
        if self.open == 0 {
            self.head.get_or_insert(now);
        }
    }

    /// Bytes were taken. Over HTTP/2 they may be about nothing.
    fn took(&mut self, now: Instant) {
        if self.asked && !self.is_http2 {
            self.heard = now;
        }
    }

    fn hold(&mut self, held: Held) -> u64 {
        let id = self.next;
        self.next += 1;
        self.held.insert(id, held);
        id
    }

    /// Takes in what moved, charges for answers that were not read at once, and ends the streams of late ones.
    fn settle(&mut self, now: Instant, has_moved: bool, waits: &Arc<ByteBudget>) {
        if has_moved {
            self.heard = now;
        }
        for held in self.held.values_mut() {
            held.settle(now, waits);
            if held.until.is_some_and(|until| now > until) {
                held.watch.reset();
            }
        }
    }
}

impl Connection {
    fn new(shared: Arc<Shared>) -> Arc<Self> {
        let (state, told) = (Mutex::new(State::new(Instant::now())), Notify::new());
        let small_calls = Arc::new(Semaphore::new(SMALL_CALLS));
        Arc::new(Self { state, told, has_moved: AtomicBool::new(false), shared, small_calls })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request came. `shares`: over HTTP/2, where others share its connection. `None`: there are too many, on all
    /// connections together.
    pub(crate) fn request(self: &Arc<Self>, shares: bool) -> Option<(Arc<Watch>, Open)> {
        let watch = Arc::new(Watch {
            connection: Arc::clone(self),
            shares,
            moved: AtomicU64::new(0),
            body: Mutex::default(),
            is_over: AtomicBool::new(false),
            waiter: AtomicWaker::new(),
            task: OnceLock::new(),
            handed: AtomicUsize::new(0),
            sender: AtomicWaker::new(),
        });
        if self.shared.requests.fetch_add(1, Ordering::Relaxed) >= self.shared.most {
            return None;
        }
        if shares {
            self.has_moved.store(true, Ordering::Relaxed);
            let mut state = self.state();
            state.is_http2 = true;
            state.latest = Some(Arc::clone(&watch));
        }
        let open = watch.open();
        Some((watch, open))
    }

    /// This task runs the request that has just come.
    pub(crate) fn runs(&self, task: AbortHandle) {
        if let Some(watch) = self.state().latest.take() {
            drop(watch.task.set(task)); // nobody else sets it
        }
    }

    fn tell(&self, order: Order) {
        let mut state = self.state();
        if state.order < Some(order) {
            state.order = Some(order);
            drop(state);
            self.told.notify_one();
        }
    }

    /// Waits for an order.
    pub(crate) async fn told(&self) -> Order {
        loop {
            self.told.notified().await;
            if let Some(order) = self.state().order {
                return order;
            }
        }
    }
}

/// One request on its connection.
pub(crate) struct Watch {
    connection: Arc<Connection>,
    shares: bool,
    /// Bytes of its body that came and of its answer that were taken.
    moved: AtomicU64,
    /// What is held of its body until the rest is there.
    body: Mutex<Option<(Arc<ByteBudget>, u64)>>,
    /// It gives way: others need its bytes, and its client is slow.
    is_over: AtomicBool,
    waiter: AtomicWaker,
    /// What runs it, where it shares its connection.
    task: OnceLock<AbortHandle>,
    /// Large pieces of its answer that the transport has.
    handed: AtomicUsize,
    sender: AtomicWaker,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.connection.shared.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Watch {
    /// It, or a part of it, is worked on.
    pub(crate) fn open(self: &Arc<Self>) -> Open {
        let mut state = self.connection.state();
        state.asked = true;
        state.open += 1;
        state.head = None;
        Open(Arc::clone(self))
    }

    /// Its connection's places for calls for health and reflection.
    pub(crate) fn small_calls(&self) -> &Arc<Semaphore> {
        &self.connection.small_calls
    }

    /// For what it holds before anybody knows which deployment's it is.
    pub(crate) fn waits(&self) -> Charge {
        self.connection.shared.waits.charge()
    }

    /// The host waits for its client, until the guard is dropped. Errors: resource exhausted, when too many wait.
    pub(crate) fn clients_turn(self: &Arc<Self>) -> Result<ClientsTurn, Error> {
        let mut waits = self.waits();
        waits.grow(WAITING)?;
        self.is_over.store(false, Ordering::Relaxed);
        let mut state = self.connection.state();
        state.waiting += 1;
        let id = state.hold(Held::waiting(self, waits));
        Ok(ClientsTurn { watch: Arc::clone(self), id })
    }

    /// Bytes for its client to read until then. They hold their charge until they were sent.
    pub(crate) fn send(self: &Arc<Self>, bytes: Bytes, charge: Option<Charge>, until: Instant) -> Bytes {
        let id = self.connection.state().hold(Held::sending(self, charge, until));
        Bytes::from_owner(Sending { bytes, watch: Arc::clone(self), id })
    }

    /// Its client moved so many bytes.
    pub(crate) fn moved(&self, bytes: usize) {
        self.moved.fetch_add(bytes as u64, Ordering::Relaxed);
        self.connection.has_moved.store(true, Ordering::Relaxed);
    }

    /// What is held of its body by now.
    pub(crate) fn holds(&self, charge: Option<&Charge>) {
        let held = charge.map(|charge| (Arc::clone(charge.budget()), charge.bytes()));
        *self.body.lock().unwrap_or_else(PoisonError::into_inner) = held;
    }

    /// Ready when it has to give way. Errors are for its client to read.
    pub(crate) fn poll_over(&self, context: &mut Context<'_>) -> Poll<Error> {
        self.waiter.register(context.waker());
        if !self.is_over.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        let text = "others need the bytes that are held for this request, and it moves them too slowly";
        Poll::Ready(Error::new(ErrorCode::ResourceExhausted, text))
    }

    /// Ends its stream, where it has one: what hyper and h2 hold of its answer is dropped, and the client hears of it.
    fn reset(&self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }

    /// The transport has a large piece of its answer.
    pub(crate) fn hand_over(&self) {
        self.handed.fetch_add(1, Ordering::Relaxed);
    }

    /// The transport has let go of it.
    pub(crate) fn handed_over(&self) {
        if self.handed.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.sender.wake();
        }
    }

    /// Whether the transport has no large piece of its answer.
    pub(crate) fn is_gone(&self) -> bool {
        self.handed.load(Ordering::Acquire) == 0
    }

    /// Ready when the transport has no large piece of its answer.
    pub(crate) fn poll_gone(&self, context: &mut Context<'_>) -> Poll<()> {
        if self.is_gone() {
            return Poll::Ready(());
        }
        self.sender.register(context.waker());
        if self.is_gone() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Whether others share its connection.
    pub(crate) fn shares(&self) -> bool {
        self.shares
    }
}

/// A request whose answer is not handed over yet.
pub(crate) struct Open(Arc<Watch>);

impl Drop for Open {
    fn drop(&mut self) {
        let mut state = self.0.connection.state();
        state.open -= 1;
        state.heard = Instant::now();
    }
}

/// While it lives, the host waits for a client.
pub(crate) struct ClientsTurn {
    watch: Arc<Watch>,
    id: u64,
}

impl Drop for ClientsTurn {
    fn drop(&mut self) {
        self.watch.holds(None);
        let mut state = self.watch.connection.state();
        state.waiting -= 1;
        state.held.remove(&self.id);
    }
}

/// Bytes on their way to the client.
struct Sending {
    bytes: Bytes,
    watch: Arc<Watch>,
    id: u64,
}

impl AsRef<[u8]> for Sending {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        let mut state = self.watch.connection.state();
        state.held.remove(&self.id);
        state.heard = Instant::now();
    }
}

/// Waits for what a client is to send or to read, at most `until` then. It is the client's turn unless it is done at
/// once. Errors: as the work's; deadline exceeded, `late`; resource exhausted, when too many wait or it gives way to
/// others.
pub(crate) async fn clients<T>(
    watch: Option<&Arc<Watch>>,
    until: Instant,
    late: &'static str,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let mut work = std::pin::pin!(work);
    if let Poll::Ready(done) = futures_util::poll!(work.as_mut()) {
        return done;
    }
    let _turn = watch.map(Watch::clients_turn).transpose()?;
    let over = std::future::poll_fn(|context| watch.map_or(Poll::Pending, |watch| watch.poll_over(context)));
    tokio::select! {
        done = work => done,
        error = over => Err(error),
        () = tokio::time::sleep_until(until.into()) => Err(Error::new(ErrorCode::DeadlineExceeded, late)),
    }
}

/// A listener's connections.
pub(crate) struct Connections {
    patience: Patience,
    shared: Arc<Shared>,
    all: Mutex<HashMap<u64, Arc<Connection>>>,
    next: AtomicU64,
}

impl Connections {
    pub(crate) fn new(patience: Patience, shared: Arc<Shared>) -> Arc<Self> {
        Arc::new(Self { patience, shared, all: Mutex::default(), next: AtomicU64::new(0) })
    }

    fn all(&self) -> MutexGuard<'_, HashMap<u64, Arc<Connection>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more, while what comes back lives.
    pub(crate) fn enter(self: &Arc<Self>) -> Entered {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let connection = Connection::new(Arc::clone(&self.shared));
        self.all().insert(id, Arc::clone(&connection));
        Entered { connection, id, connections: Arc::clone(self) }
    }

    /// The state of one, with what moved taken in.
    fn settled<'a>(&self, connection: &'a Connection, now: Instant) -> MutexGuard<'a, State> {
        let mut state = connection.state();
        state.settle(now, connection.has_moved.swap(false, Ordering::Relaxed), &self.shared.waits);
        state
    }

    /// Ends those whose clients had their time.
    pub(crate) fn sweep(&self) {
        let now = Instant::now();
        for connection in self.all().values() {
            let verdict = self.settled(connection, now).verdict(now, &self.patience);
            if let Some(order) = verdict {
                connection.tell(order);
            }
        }
    }

    /// Makes room for so many: ends those that wait for their client, the longest silent first. Who was told to end
    /// already counts, so that those who ask again before room is there cost nobody else a place.
    pub(crate) fn make_room(&self, count: usize) {
        let (now, all) = (Instant::now(), self.all());
        let (mut ending, mut found) = (0, Vec::new());
        for connection in all.values() {
            let state = self.settled(connection, now);
            if state.order == Some(Order::Cut) {
                ending += 1;
            } else if state.is_clients_turn() {
                found.push((state.heard, connection));
            }
        }
        found.sort_unstable_by_key(|(heard, _)| *heard);
        for (_, connection) in found.into_iter().take(count.saturating_sub(ending)) {
            connection.tell(Order::Cut);
        }
    }

    pub(crate) fn tell_all(&self, order: Order) {
        self.all().values().for_each(|connection| connection.tell(order));
    }

    pub(crate) fn count(&self) -> usize {
        self.all().len()
    }
}

/// A connection that counts.
pub(crate) struct Entered {
    pub(crate) connection: Arc<Connection>,
    id: u64,
    connections: Arc<Connections>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.connections.all().remove(&self.id);
    }
}

#[cfg(test)]
mod tests;
