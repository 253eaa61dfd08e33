//! Sockets: accept, serve, drain. Bounds what a slow or greedy client can hold.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use modelhost_core::error::{Error, ErrorCode};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

/// HTTP/2 streams that one connection may have open.
const MAX_STREAMS: u32 = 256;

/// Bytes that a client may send ahead on one stream and on one connection: a tensor of 1 MiB without a pause.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;

/// Largest HTTP/2 frame: large tensors in few pieces.
const MAX_FRAME: u32 = 1 << 20;

/// One listening socket's settings.
pub(crate) struct Listener {
    pub(crate) socket: TcpListener,
    pub(crate) max_connections: usize,
    pub(crate) header_timeout: Duration,
    pub(crate) drain_timeout: Duration,
}

/// Binds. Port 0: any free one. Errors: conflict, naming the address.
pub(crate) async fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address)
        .await
        .map_err(|error| Error::new(ErrorCode::Conflict, format!("cannot listen on {address}: {error}")))
}

impl Listener {
    /// Serves until `stop` turns true, then lets requests finish for the drain timeout.
    pub(crate) async fn serve<S, B>(self, service: S, mut stop: watch::Receiver<bool>)
    where
        S: hyper::service::Service<Request<Incoming>, Response = Response<B>, Error = Infallible>
            + Clone
            + Send
            + 'static,
        S::Future: Send + 'static,
        B: hyper::body::Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let connections = Arc::new(Semaphore::new(self.max_connections));
        let graceful = GracefulShutdown::new();
        loop {
            let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { break };
            let accepted = tokio::select! {
                accepted = self.socket.accept() => accepted,
                () = async { drop(stop.wait_for(|stop| *stop).await) } => break,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors, say: others must close first.
                    tracing::warn!(%error, "a connection was not accepted");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
            };
            drop(stream.set_nodelay(true)); // an optimisation; the connection works without
            let mut builder = auto::Builder::new(TokioExecutor::new());
            builder.http1().timer(TokioTimer::new()).header_read_timeout(self.header_timeout);
            builder
                .http2()
                .timer(TokioTimer::new())
                .max_concurrent_streams(MAX_STREAMS)
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_frame_size(MAX_FRAME);
            let connection = builder.serve_connection(TokioIo::new(stream), service.clone()).into_owned();
            let connection = graceful.watch(connection);
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "a connection ended early");
                }
                drop(permit);
            });
        }
        drop(self.socket);
        if tokio::time::timeout(self.drain_timeout, graceful.shutdown()).await.is_err() {
            tracing::warn!("requests were still running when the drain timeout ended");
        }
    }
}
