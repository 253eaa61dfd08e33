//! What is known of one connection, and when its client has had its time.
//!
//! Whose turn it is decides: while the host works for a client, the connection stays; while the client is to send or to read, a clock runs.
//! Every answer says when it must have been read, and holds its bytes until it was.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use modelhost_core::budget::Charge;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{Notify, Semaphore};

/// How an HTTP/2 connection begins.
const HTTP2: &[u8] = b"PRI * HTTP/2.0";

/// Who sends nothing for so long in the middle of a request makes room when bytes are short.
const STOPPED: Duration = Duration::from_secs(1);

/// How often connections are looked through for bytes.
const LOOK_EVERY: Duration = Duration::from_millis(100);

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

/// What a connection is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Order {
    /// Finish what runs, begin nothing.
    Finish,
    /// End now.
    Cut,
}

/// One connection.
pub(crate) struct Watch {
    state: Mutex<State>,
    told: Notify,
    connections: Weak<Connections>,
    /// Places of calls for health and reflection.
    pub(crate) small_calls: Arc<Semaphore>,
}

#[derive(Debug)]
struct State {
    /// When the client's latest byte came or was taken, or the connection began.
    heard: Instant,
    /// A request has come.
    asked: bool,
    is_http2: bool,
    /// Requests whose answer is not handed over.
    open: u32,
    /// Those of them that wait for their client.
    waiting: u32,
    /// Those of these that hold bytes meanwhile.
    holding: u32,
    /// Since when a request's head arrives.
    head: Option<Instant>,
    /// Since when the client reads nothing although there is something.
    stalled: Option<Instant>,
    /// Answers that are being sent, and when they must be gone.
    sending: BTreeMap<u64, Instant>,
    next: u64,
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
            holding: 0,
            head: None,
            stalled: None,
            sending: BTreeMap::new(),
            next: 0,
            order: None,
        }
    }

    /// What the clock says.
    fn verdict(&self, now: Instant, patience: &Patience) -> Option<Order> {
        let past = |since: Instant, limit: Duration| now.saturating_duration_since(since) > limit;
        if self.stalled.is_some_and(|since| past(since, patience.read))
            || self.sending.values().any(|until| now > *until)
        {
            return Some(Order::Cut);
        }
        if self.open > 0 || !self.sending.is_empty() {
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

    /// Whether the next step is the client's.
    fn is_clients_turn(&self) -> bool {
        self.open <= self.waiting
    }

    fn hear(&mut self, now: Instant) {
        if self.asked {
            self.heard = now; // the first head's clock runs from the connection's begin
        }
        if self.open == 0 {
            self.head.get_or_insert(now);
        }
    }
}

impl Watch {
    fn new(connections: Weak<Connections>) -> Arc<Self> {
        let (state, small_calls) =
            (Mutex::new(State::new(Instant::now())), Arc::new(Semaphore::new(SMALL_CALLS)));
        Arc::new(Self { state, told: Notify::new(), connections, small_calls })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request came.
    pub(crate) fn open(self: &Arc<Self>) -> Open {
        let mut state = self.state();
        state.asked = true;
        state.open += 1;
        state.head = None;
        Open(Arc::clone(self))
    }

    /// The host waits for an open request's client, until the guard is dropped. `holds`: bytes of the request meanwhile.
    pub(crate) fn clients_turn(self: &Arc<Self>, holds: bool) -> ClientsTurn {
        let mut state = self.state();
        state.waiting += 1;
        state.holding += u32::from(holds);
        drop(state);
        ClientsTurn { watch: Arc::clone(self), holds }
    }

    /// Bytes for the client to read until then. They hold their charge until they were sent.
    pub(crate) fn send(self: &Arc<Self>, bytes: Bytes, charge: Option<Charge>, until: Instant) -> Bytes {
        let mut state = self.state();
        let id = state.next;
        state.next += 1;
        state.sending.insert(id, until);
        drop(state);
        Bytes::from_owner(Sending { bytes, _charge: charge, watch: Arc::clone(self), id })
    }

    /// Bytes are short: clients who stopped in the middle of a request give back what they hold.
    pub(crate) fn make_room(&self) {
        if let Some(connections) = self.connections.upgrade() {
            connections.free_bytes();
        }
    }

    /// The client takes what is sent.
    fn took(&self) {
        let mut state = self.state();
        if state.asked {
            state.heard = Instant::now();
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

/// A request whose answer is not handed over yet.
pub(crate) struct Open(Arc<Watch>);

impl Drop for Open {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.open -= 1;
        state.heard = Instant::now();
    }
}

/// While it lives, the host waits for a client.
pub(crate) struct ClientsTurn {
    watch: Arc<Watch>,
    holds: bool,
}

impl Drop for ClientsTurn {
    fn drop(&mut self) {
        let mut state = self.watch.state();
        state.waiting -= 1;
        state.holding -= u32::from(self.holds);
    }
}

/// Bytes on their way to the client.
struct Sending {
    bytes: Bytes,
    _charge: Option<Charge>,
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
        let mut state = self.watch.state();
        state.sending.remove(&self.id);
        state.heard = Instant::now();
    }
}

/// A listener's connections.
pub(crate) struct Connections {
    patience: Patience,
    /// When bytes were looked for the last time: a look at all connections is not free.
    looked: Mutex<Option<Instant>>,
    watches: Mutex<HashMap<u64, Arc<Watch>>>,
    next: AtomicU64,
}

impl Connections {
    pub(crate) fn new(patience: Patience) -> Arc<Self> {
        let (looked, watches, next) = (Mutex::default(), Mutex::default(), AtomicU64::new(0));
        Arc::new(Self { patience, looked, watches, next })
    }

    fn watches(&self) -> MutexGuard<'_, HashMap<u64, Arc<Watch>>> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more, while what comes back lives.
    pub(crate) fn enter(self: &Arc<Self>) -> Entered {
        let (id, watch) = (self.next.fetch_add(1, Ordering::Relaxed), Watch::new(Arc::downgrade(self)));
        self.watches().insert(id, Arc::clone(&watch));
        Entered { watch, id, connections: Arc::clone(self) }
    }

    /// Ends those whose clients had their time.
    pub(crate) fn sweep(&self) {
        let now = Instant::now();
        for watch in self.watches().values() {
            let verdict = watch.state().verdict(now, &self.patience);
            if let Some(order) = verdict {
                watch.tell(order);
            }
        }
    }

    /// Makes room for so many: ends those that wait for their client, the longest silent first. Who was told to end already counts, so that
    /// those who ask again before room is there cost nobody else a place.
    pub(crate) fn make_room(&self, count: usize) {
        self.evict(count, Duration::ZERO, |_| true);
    }

    /// Ends those who hold bytes of a request and have stopped sending.
    fn free_bytes(&self) {
        let now = Instant::now();
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        if looked.is_none_or(|last| now - last > LOOK_EVERY) {
            *looked = Some(now);
            drop(looked);
            self.evict(usize::MAX, STOPPED, |state| state.holding > 0);
        }
    }

    /// Ends those of the fitting ones whose clients are to send or to read and were silent for so long, until `count` are ending.
    fn evict(&self, count: usize, silent: Duration, fits: impl Fn(&State) -> bool) {
        let (now, watches) = (Instant::now(), self.watches());
        let (mut ending, mut found) = (0, Vec::new());
        for watch in watches.values() {
            let state = watch.state();
            if state.order == Some(Order::Cut) {
                ending += 1;
            } else if state.is_clients_turn() && fits(&state) && now - state.heard >= silent {
                found.push((state.heard, watch));
            }
        }
        found.sort_unstable_by_key(|(heard, _)| *heard);
        for (_, watch) in found.into_iter().take(count.saturating_sub(ending)) {
            watch.tell(Order::Cut);
        }
    }

    pub(crate) fn tell_all(&self, order: Order) {
        self.watches().values().for_each(|watch| watch.tell(order));
    }

    pub(crate) fn count(&self) -> usize {
        self.watches().len()
    }
}

/// A connection that counts.
pub(crate) struct Entered {
    pub(crate) watch: Arc<Watch>,
    id: u64,
    connections: Arc<Connections>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.connections.watches().remove(&self.id);
    }
}

/// A socket that tells its watch what its client does.
pub(crate) struct Watched {
    stream: TcpStream,
    watch: Arc<Watch>,
    began: bool,
    stalled: bool,
}

impl Watched {
    pub(crate) fn new(stream: TcpStream, watch: Arc<Watch>) -> Self {
        Self { stream, watch, began: false, stalled: false }
    }

    fn wrote<T>(&mut self, written: Poll<T>) -> Poll<T> {
        if written.is_pending() != self.stalled {
            self.stalled = written.is_pending();
            self.watch.state().stalled = self.stalled.then(Instant::now);
        } else if written.is_ready() {
            self.watch.took();
        }
        written
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        let came = buffer.filled().get(before..).unwrap_or_default();
        if !came.is_empty() {
            let mut state = self.watch.state();
            state.hear(Instant::now());
            if !self.began {
                state.is_http2 = came.starts_with(HTTP2);
                drop(state);
                self.began = true;
            }
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.wrote(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests;
