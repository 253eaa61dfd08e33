//! Sockets: accept, serve, drain. Bounds what a slow or greedy client can hold.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Incoming};
use hyper::rt::Executor;
use hyper::service::{Service, service_fn};
use hyper::{Request, Response, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use modelhost_core::error::{Error, ErrorCode};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::MissedTickBehavior;

use crate::body::Outgoing;
use crate::watch::{Connection, Connections, Entered, Order, Watched};

/// HTTP/2 streams that one connection may have open.
const MAX_STREAMS: u32 = 256;

/// What a client may send ahead of its reader over HTTP/2. Nobody is charged for it, so it is little, and more for some
/// alone.
struct Ahead {
    /// Bytes of one stream's body.
    stream: u32,
    /// Bytes of all bodies together.
    connection: u32,
    /// The largest frame, which is read whole: large tensors in few pieces.
    frame: u32,
}

const WIDE: Ahead = Ahead { stream: 256 << 10, connection: 1 << 20, frame: 256 << 10 };
const NARROW: Ahead = Ahead { stream: 64 << 10, connection: 64 << 10, frame: 16 << 10 };

/// Connections of the host that may send far ahead at once.
pub(crate) const WIDE_AT_ONCE: usize = 256;

/// Names and values of an HTTP/2 head.
const MAX_HEAD: u32 = 16 << 10;

/// Bytes that hyper reads ahead on an HTTP/1 connection, and the longest head.
const READ_AHEAD: usize = 32 << 10;

/// How often connections are looked at.
const SWEEP: Duration = Duration::from_millis(500);

/// How long a newcomer to a full host waits for room, and how many wait at once.
const ROOM: Duration = Duration::from_secs(1);
const NEWCOMERS: usize = 256;

/// How often room is made while newcomers wait. A look at all connections is not free.
const MAKE_ROOM: Duration = Duration::from_millis(10);

/// The share of all connections that one look makes room for at least, so that a flood of newcomers needs few looks.
const EVICTED: usize = 64;

/// One listening socket's settings.
pub(crate) struct Listener {
    pub(crate) socket: TcpListener,
    pub(crate) max_connections: usize,
    pub(crate) connections: Arc<Connections>,
    /// Places of those that may send far ahead, [`WIDE_AT_ONCE`] in the host.
    pub(crate) wide: Arc<Semaphore>,
    pub(crate) drain_timeout: Duration,
}

/// Binds. Port 0: any free one. Errors: conflict, naming the address.
pub(crate) async fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address)
        .await
        .map_err(|error| Error::new(ErrorCode::Conflict, format!("cannot listen on {address}: {error}")))
}

impl Listener {
    /// Serves until `stop` turns true, then lets requests finish for the drain timeout. Requests carry their
    /// connection's watch.
    pub(crate) async fn serve<S, B>(self, service: S, mut stop: watch::Receiver<bool>)
    where
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
        S::Future: Send + 'static,
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let places = Arc::new(Semaphore::new(self.max_connections));
        let newcomers = Arc::new(Semaphore::new(NEWCOMERS));
        let connections = Arc::clone(&self.connections);
        let (mut sweep, mut look) = (tokio::time::interval(SWEEP), tokio::time::interval(MAKE_ROOM));
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let waiting = NEWCOMERS - newcomers.available_permits();
            let accepted = tokio::select! {
                accepted = self.socket.accept() => accepted,
                _ = sweep.tick() => {
                    connections.sweep();
                    continue;
                }
                _ = look.tick(), if waiting > 0 => {
                    connections.make_room(waiting.max(self.evicted()));
                    continue;
                }
                () = async { drop(stop.wait_for(|stop| *stop).await) } => break,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors, say: others must close first.
                    tracing::warn!(%error, "a connection was not accepted");
                    connections.make_room(self.evicted());
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
            };
            let wide = Arc::clone(&self.wide);
            if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
                tokio::spawn(serve_one(stream, connections.enter(), place, wide, service.clone()));
                continue;
            }
            let Ok(waits) = Arc::clone(&newcomers).try_acquire_owned() else { continue };
            let (connections, service) = (Arc::clone(&connections), service.clone());
            let place = Arc::clone(&places).acquire_owned();
            tokio::spawn(async move {
                let place = tokio::time::timeout(ROOM, place).await;
                drop(waits);
                match place {
                    Ok(Ok(place)) => serve_one(stream, connections.enter(), place, wide, service).await,
                    _ => tracing::warn!("every connection is at work: one more was closed"),
                }
            });
        }
        drop(self.socket);
        connections.tell_all(Order::Finish);
        let all = u32::try_from(self.max_connections).unwrap_or(u32::MAX);
        if tokio::time::timeout(self.drain_timeout, places.acquire_many(all)).await.is_err() {
            tracing::warn!(
                connections = connections.count(),
                "clients were still there when the drain timeout ended"
            );
            connections.tell_all(Order::Cut);
        }
    }

    /// How many connections one look makes room for.
    fn evicted(&self) -> usize {
        (self.max_connections / EVICTED).max(1)
    }
}

/// Runs the streams of an HTTP/2 connection, each known by its request's watch, so that one can be ended alone.
#[derive(Clone)]
struct Streams(Arc<Connection>);

impl<F> Executor<F> for Streams
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, stream: F) {
        self.0.runs(tokio::spawn(stream).abort_handle());
    }
}

/// Serves one connection to its end, or to the one that is ordered.
async fn serve_one<S, B>(
    stream: TcpStream,
    entered: Entered,
    place: OwnedSemaphorePermit,
    wide: Arc<Semaphore>,
    service: S,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    drop(stream.set_nodelay(true)); // an optimisation; the connection works without
    let connection = Arc::clone(&entered.connection);
    let wide = wide.try_acquire_owned().ok();
    let ahead = if wide.is_some() { WIDE } else { NARROW };
    let mut builder = auto::Builder::new(Streams(Arc::clone(&connection)));
    let io = TokioIo::new(Watched::new(stream, Arc::clone(&connection), wide));
    let service = service_fn(move |mut request: Request<Incoming>| {
        let begun = connection.request(request.version() == Version::HTTP_2).map(|(watch, open)| {
            request.extensions_mut().insert(Arc::clone(&watch));
            (service.call(request), watch, open)
        });
        async move {
            let (answer, watch, open) = begun.ok_or(h2::Reason::REFUSED_STREAM)?;
            let Ok(answer) = answer.await;
            drop(open);
            Ok::<_, h2::Error>(answer.map(|body| Outgoing::new(body, watch)))
        }
    });
    // The watch has the clocks.
    builder.http1().header_read_timeout(None).max_buf_size(READ_AHEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD)
        .initial_stream_window_size(ahead.stream)
        .initial_connection_window_size(ahead.connection)
        .max_frame_size(ahead.frame);
    let mut serving = std::pin::pin!(builder.serve_connection(io, service));
    loop {
        tokio::select! {
            ended = serving.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection ended early");
                }
                break;
            }
            order = entered.connection.told() => match order {
                Order::Finish => serving.as_mut().graceful_shutdown(),
                Order::Cut => break,
            },
        }
    }
    drop(place);
}
