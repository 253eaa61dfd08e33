//! Bodies: what comes in is charged as it comes, within bounds of bytes and time; what goes out holds its charge until
//! it is sent.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::Response;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use modelhost_core::budget::Charge;
use modelhost_core::error::{Error, ErrorCode};
use tokio::io::AsyncReadExt;
use tokio::sync::oneshot;

use crate::coding::{Coding, WORKSPACE};
use crate::watch::{ClientsTurn, Watch, clients};

/// Bytes made room for at once, where nobody knows how many come.
const READ: usize = 64 << 10;

/// A piece of an answer that is no larger is handed to HTTP/2 with what comes after it.
const SMALL: usize = 16 << 10;

pub(crate) const LATE: &str = "body: it did not arrive in time";

/// What goes out.
pub(crate) enum ResponseBody {
    /// All of it is there, with what it is charged for.
    Whole(Full<Bytes>, Option<Charge>),
    /// It is made while it is sent.
    Streamed(UnsyncBoxBody<Bytes, Broken>),
}

impl Default for ResponseBody {
    fn default() -> Self {
        whole(Bytes::new())
    }
}

/// A response that ends early: the connection is cut, so that nobody takes it for whole.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Broken(pub(crate) String);

/// A response that is there.
pub(crate) fn whole(body: impl Into<Bytes>) -> ResponseBody {
    ResponseBody::Whole(Full::new(body.into()), None)
}

/// A response that is there, and charged.
pub(crate) fn charged(body: Bytes, charge: Charge) -> ResponseBody {
    ResponseBody::Whole(Full::new(body), Some(charge))
}

/// A response that is made while it is sent.
pub(crate) fn streamed<B>(body: B) -> ResponseBody
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: std::fmt::Display,
{
    ResponseBody::Streamed(body.map_err(|error| Broken(error.to_string())).boxed_unsync())
}

/// Sends a response: what is there of it must have been read `until` then.
pub(crate) fn send(
    response: Response<ResponseBody>,
    watch: Option<&Arc<Watch>>,
    until: Instant,
) -> Response<ResponseBody> {
    response.map(|body| match (body, watch) {
        (ResponseBody::Whole(body, charge), Some(watch)) => {
            ResponseBody::Whole(Full::new(watch.send(bytes_of(body), charge, until)), None)
        }
        (body, _) => body,
    })
}

/// The bytes of a body that is there.
pub(crate) fn bytes_of(body: Full<Bytes>) -> Bytes {
    let mut body = std::pin::pin!(body);
    let frame = body.as_mut().poll_frame(&mut Context::from_waker(std::task::Waker::noop()));
    match frame {
        Poll::Ready(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
        _ => Bytes::new(),
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match self.get_mut() {
            Self::Whole(body, _) => Pin::new(body)
                .poll_frame(context)
                .map(|frame| frame.map(|frame| frame.map_err(|never| match never {}))),
            Self::Streamed(body) => Pin::new(body).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(body, _) => body.is_end_stream(),
            Self::Streamed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body, _) => body.size_hint(),
            Self::Streamed(body) => body.size_hint(),
        }
    }
}

/// An answer in the transport's hands.
///
/// Over HTTP/2 it can be ended alone, by dropping the task that sends it, as long as that task lives: h2 then drops
/// what it has of it and resets the stream. An error from here would not do: hyper does not ask for the next piece
/// while one waits for the client's window. hyper's task ends when it has handed over the last piece, read or not. So
/// after a large piece nothing is handed over, not even the end, before h2 has let go of it. What is small waits for
/// nothing: once handed over with its end, it can only go with its connection.
pub(crate) struct Outgoing<B> {
    body: B,
    watch: Arc<Watch>,
}

impl<B> Outgoing<B> {
    pub(crate) fn new(body: B, watch: Arc<Watch>) -> Self {
        Self { body, watch }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Outgoing<B> {
    type Data = Handed;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Handed>, B::Error>>> {
        ready!(self.watch.poll_gone(context));
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        let handed = |bytes| Handed::new(bytes, &self.watch);
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(handed))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream() && self.watch.is_gone()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A piece of an answer that the transport has. What it writes of it, the client has moved.
pub(crate) struct Handed {
    bytes: Bytes,
    watch: Arc<Watch>,
    is_awaited: bool,
}

impl Handed {
    fn new(bytes: Bytes, watch: &Arc<Watch>) -> Self {
        let is_awaited = watch.shares() && bytes.len() > SMALL;
        if is_awaited {
            watch.hand_over();
        }
        Self { bytes, watch: Arc::clone(watch), is_awaited }
    }
}

impl Buf for Handed {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        self.watch.moved(count);
    }
}

impl Drop for Handed {
    fn drop(&mut self) {
        if self.is_awaited {
            self.watch.handed_over();
        }
    }
}

/// Bytes that come in pieces, charged with the room that is made for them.
pub(crate) struct Gathered {
    bytes: Vec<u8>,
    pub(crate) charge: Charge,
    /// Knows meanwhile what is held.
    watch: Option<Arc<Watch>>,
}

impl Gathered {
    pub(crate) fn new(charge: Charge, watch: Option<&Arc<Watch>>) -> Self {
        Self { bytes: Vec::new(), charge, watch: watch.cloned() }
    }

    /// Appends. Room is made twice as large each time, up to `most`. Errors: resource exhausted.
    pub(crate) fn push(&mut self, piece: &[u8], most: usize) -> Result<(), Error> {
        self.make_room(piece.len(), most)?;
        self.bytes.extend_from_slice(piece);
        Ok(())
    }

    fn make_room(&mut self, more: usize, most: usize) -> Result<(), Error> {
        let needed = self.bytes.len().saturating_add(more);
        if needed > self.bytes.capacity() {
            let room = (2 * self.bytes.capacity()).min(most).max(needed);
            self.charge.grow(room - self.bytes.capacity())?;
            self.bytes.reserve_exact(room - self.bytes.len());
            if let Some(watch) = &self.watch {
                watch.holds(Some(&self.charge));
            }
        }
        Ok(())
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn finish(self) -> (Bytes, Charge) {
        if let Some(watch) = &self.watch {
            watch.holds(None);
        }
        (self.bytes.into(), self.charge)
    }
}

/// A request's content as it came.
pub(crate) struct Content {
    pub(crate) bytes: Bytes,
    pub(crate) charge: Charge,
    pub(crate) coding: Option<Coding>,
    /// Bytes that it may have when it is decompressed.
    pub(crate) most: usize,
}

impl Content {
    /// How much work it is to read: what is compressed may become anything.
    pub(crate) fn work(&self) -> usize {
        if self.coding.is_some() { usize::MAX } else { self.bytes.len() }
    }

    /// The plain bytes. Errors: too large; resource exhausted; invalid argument, when it is not what its coding says.
    pub(crate) async fn plain(self) -> Result<(Bytes, Charge), Error> {
        let Some(coding) = self.coding else { return Ok((self.bytes, self.charge)) };
        let mut charge = self.charge;
        charge.grow(WORKSPACE)?;
        let mut decoder = coding.decoder(io::Cursor::new(self.bytes));
        let mut plain = Gathered::new(charge, None);
        loop {
            plain.make_room(READ.min(self.most + 1 - plain.len()), self.most + 1)?;
            let read = decoder.read_buf(&mut plain.bytes).await;
            let read = read.map_err(|error| Error::invalid(format!("body: {}: {error}", coding.as_str())))?;
            if read == 0 {
                break;
            }
            if plain.len() > self.most {
                let text = format!("body: decompresses to more than the {} bytes allowed", self.most);
                return Err(Error::new(ErrorCode::TooLarge, text));
            }
        }
        drop(decoder);
        let room = plain.bytes.capacity();
        let (bytes, mut charge) = plain.finish();
        charge.shrink_to(room);
        Ok((bytes, charge))
    }
}

/// Bounds on one request's body.
pub(crate) struct Bounds {
    /// Bytes, before and after decompression.
    pub(crate) most: usize,
    /// When it must be there.
    pub(crate) until: Instant,
}

/// The whole body. While it comes, it is its client's turn. Errors: too large; resource exhausted; deadline exceeded
/// while it arrives; invalid argument, when it ends early.
pub(crate) async fn collect(
    coding: Option<Coding>,
    body: &mut Incoming,
    charge: Charge,
    bounds: Bounds,
    watch: Option<&Arc<Watch>>,
) -> Result<Content, Error> {
    let Bounds { most, until } = bounds;
    if body.size_hint().lower() > most as u64 {
        return Err(too_large(most));
    }
    let (bytes, charge) = clients(watch, until, LATE, gather(body, charge, most, watch)).await?;
    Ok(Content { bytes, charge, coding, most })
}

async fn gather(
    body: &mut Incoming,
    charge: Charge,
    most: usize,
    watch: Option<&Arc<Watch>>,
) -> Result<(Bytes, Charge), Error> {
    let announced = body.size_hint().exact().and_then(|length| usize::try_from(length).ok());
    let mut gathered = Gathered::new(charge, watch);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Error::invalid(format!("body: {error}")))?;
        let Ok(piece) = frame.into_data() else { continue };
        if gathered.len() + piece.len() > most {
            return Err(too_large(most));
        }
        if gathered.len() == 0 && body.is_end_stream() {
            gathered.charge.grow(piece.len())?;
            return Ok((piece, gathered.charge)); // nothing to copy
        }
        gathered.push(&piece, announced.unwrap_or(most))?;
        if let Some(watch) = watch {
            watch.moved(piece.len());
        }
    }
    Ok(gathered.finish())
}

/// Bytes and time that a refused request may still send: a connection closed on a sender takes the refusal with it.
const LINGER_BYTES: usize = 1 << 20;
const LINGER: Duration = Duration::from_secs(1);

/// Reads and forgets the rest of a refused request's body, within bounds.
pub(crate) async fn drain(body: Incoming, watch: Option<&Arc<Watch>>) {
    let mut rest = Limited::new(body, LINGER_BYTES);
    let read = async {
        while let Some(Ok(_)) = rest.frame().await {}
        Ok(())
    };
    drop(clients(watch, Instant::now() + LINGER, LATE, read).await); // whoever sends on is cut off
}

/// A body in others' hands: while it is waited for, it is its client's turn.
struct Arriving {
    body: Incoming,
    watch: Option<Arc<Watch>>,
    turn: Option<ClientsTurn>,
}

impl Arriving {
    fn new(body: Incoming, watch: Option<Arc<Watch>>) -> Self {
        Self { body, watch, turn: None }
    }

    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        let Some(watch) = &self.watch else { return frame.map(broken) };
        if let Poll::Ready(frame) = frame {
            self.turn = None;
            watch.moved(length_of(&frame));
            return Poll::Ready(broken(frame));
        }
        let refused = |error: Error| Some(Err(Broken(error.message)));
        if self.turn.is_none() {
            match watch.clients_turn() {
                Ok(turn) => self.turn = Some(turn),
                Err(error) => return Poll::Ready(refused(error)),
            }
        }
        watch.poll_over(context).map(refused)
    }
}

fn broken<E: std::fmt::Display>(
    frame: Option<Result<Frame<Bytes>, E>>,
) -> Option<Result<Frame<Bytes>, Broken>> {
    frame.map(|frame| frame.map_err(|error| Broken(error.to_string())))
}

fn length_of<E>(frame: &Option<Result<Frame<Bytes>, E>>) -> usize {
    let data = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref());
    data.map_or(0, Bytes::len)
}

/// A small body in others' hands: bounded in bytes and time.
pub(crate) struct Small {
    body: Arriving,
    left: usize,
    end: Pin<Box<tokio::time::Sleep>>,
}

impl Small {
    pub(crate) fn new(body: Incoming, most: usize, time: Duration, watch: Option<Arc<Watch>>) -> Self {
        Self { body: Arriving::new(body, watch), left: most, end: Box::pin(tokio::time::sleep(time)) }
    }
}

impl Body for Small {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        if self.end.as_mut().poll(context).is_ready() {
            return Poll::Ready(Some(Err(Broken(LATE.to_owned()))));
        }
        let frame = ready!(self.body.poll_frame(context));
        let Some(left) = self.left.checked_sub(length_of(&frame)) else {
            let text = "body: larger than a call of this kind may be";
            return Poll::Ready(Some(Err(Broken(text.to_owned()))));
        };
        self.left = left;
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.body.is_end_stream()
    }
}

/// A request's body in the hands of a handler that may not read it; what is left comes back when the handler lets go of
/// it.
pub(crate) struct Lent {
    body: Option<Arriving>,
    back: Option<oneshot::Sender<Incoming>>,
}

impl Lent {
    pub(crate) fn new(body: Incoming, watch: Option<Arc<Watch>>) -> (Self, oneshot::Receiver<Incoming>) {
        let (back, left) = oneshot::channel();
        (Self { body: Some(Arriving::new(body, watch)), back: Some(back) }, left)
    }
}

impl Body for Lent {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        self.body.as_mut().map_or(Poll::Ready(None), |body| body.poll_frame(context))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(|body| body.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, |body| body.body.size_hint())
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let (Some(body), Some(back)) = (self.body.take(), self.back.take()) {
            drop(back.send(body.body)); // nobody waits for it any more
        }
    }
}

pub(crate) fn too_large(most: usize) -> Error {
    Error::new(ErrorCode::TooLarge, format!("body: larger than the {most} bytes allowed"))
}

#[cfg(test)]
mod tests {
    use modelhost_core::budget::ByteBudget;

    use super::*;

    #[test]
    fn room_is_charged_before_it_is_made() {
        let budget = ByteBudget::new("this host", 100);
        let mut gathered = Gathered::new(budget.charge(), None);
        gathered.push(&[1; 30], 1000).unwrap();
        assert_eq!(budget.used(), 30);
        gathered.push(&[2; 10], 1000).unwrap();
        assert_eq!(budget.used(), 60);
        assert_eq!(gathered.push(&[3; 50], 1000).unwrap_err().code, ErrorCode::ResourceExhausted);
        let (bytes, charge) = gathered.finish();
        assert_eq!((bytes.len(), charge.bytes()), (40, 60));
    }

    #[tokio::test]
    async fn a_bomb_is_refused_within_its_charge() {
        let plain = Bytes::from(vec![7; 1 << 20]);
        let unbounded = ByteBudget::new("nobody", u64::MAX).charge();
        let (coded, _) = Coding::Zstd.compress(&plain, unbounded).await.unwrap();
        let content = |limit: u64, most| {
            let mut charge = ByteBudget::new("this host", limit).charge();
            charge.grow(coded.len()).unwrap();
            Content { bytes: coded.clone(), charge, coding: Some(Coding::Zstd), most }
        };
        let (bytes, charge) = content(64 << 20, 1 << 20).plain().await.unwrap();
        assert_eq!(bytes, plain);
        assert!((1 << 20..=(1 << 20) + 1).contains(&charge.bytes()), "{charge:?}");
        let error = content(64 << 20, 1 << 19).plain().await.unwrap_err();
        assert_eq!(error.message, "body: decompresses to more than the 524288 bytes allowed");
        let error = content(WORKSPACE as u64 + (1 << 19), 1 << 20).plain().await.unwrap_err();
        assert_eq!(error.code, ErrorCode::ResourceExhausted);
    }
}
