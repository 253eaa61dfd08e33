//! A socket that tells its connection what its client does.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;

use super::Connection;

/// How an HTTP/2 connection begins.
const HTTP2: &[u8] = b"PRI * HTTP/2.0";

/// A watched socket.
pub(crate) struct Watched {
    stream: TcpStream,
    connection: Arc<Connection>,
    /// What it has because its client may speak HTTP/2.
    wide: Option<OwnedSemaphorePermit>,
    began: bool,
    stalled: bool,
}

impl Watched {
    pub(crate) fn new(
        stream: TcpStream,
        connection: Arc<Connection>,
        wide: Option<OwnedSemaphorePermit>,
    ) -> Self {
        Self { stream, connection, wide, began: false, stalled: false }
    }

    fn wrote<T>(&mut self, written: Poll<T>) -> Poll<T> {
        if written.is_pending() != self.stalled {
            self.stalled = written.is_pending();
            self.connection.state().stalled = self.stalled.then(Instant::now);
        } else if written.is_ready() {
            self.connection.state().took(Instant::now());
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
            let mut state = self.connection.state();
            if !self.began {
                state.is_http2 = came.starts_with(HTTP2);
            }
            state.hear(Instant::now());
            drop(state);
            if !self.began && came.iter().zip(HTTP2).any(|(byte, expected)| byte != expected) {
                self.wide = None;
            }
            self.began = true;
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
