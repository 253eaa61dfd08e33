//! CSV files of any length: read, predicted and written piece by piece, a few pieces in memory at a time.
//!
//! A file has a place in its deployment only while a piece of it is answered: a caller who sends or reads slowly holds
//! a connection and a small charge. A file has no deadline as a whole. But within the time of one request some row of
//! it must come to its end and each answer must be read, and whoever is slow gives way when bytes are short.
//!
//! What fails before the first piece is answered has a status of its own. Later the status is out: the connection is
//! cut, so that nobody takes what came for all of it, and the log says why. A client must read while it sends: what is
//! not read stops what is sent.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use http_body_util::{BodyDataStream, LengthLimitError, Limited, StreamBody};
use hyper::Response;
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use modelhost_core::budget::Charge;
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::infer::Deadline;
use modelhost_core::room::Room;
use modelhost_core::tensor::Tensor;
use modelhost_core::version::Version;
use modelhost_protocol::{csv, status};
use modelhost_serving::{Desk, Resolved, Target};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;
use tokio_util::io::StreamReader;

use crate::body::{Broken, streamed, too_large};
use crate::coding::{Coding, WORKSPACE};
use crate::exchange::{Exchange, Stage};
use crate::pipeline::{self, Choice, Encoded};
use crate::public::{Answer, Call, Public};
use crate::watch::{Watch, clients};

/// Bytes of the file decoded and predicted at a time.
const PIECE: usize = 64 << 10;

/// Answered pieces that wait for the client to read them.
const AHEAD: usize = 2;

const CSV: &str = "text/csv; charset=utf-8";

impl Public {
    /// Answers a CSV file with a CSV file. A disconnected caller cancels it.
    pub(crate) async fn csv(self: &Arc<Self>, target: Target<'_>, call: &mut Call) -> Answer {
        let place = self.serving.admit(target)?;
        let coding = Coding::of_request(&call.head.headers)?;
        let mut charge = self.serving.streams().charge();
        charge.grow(2 * PIECE + coding.map_or(0, |_| WORKSPACE))?;
        let Some(body) = call.body.take() else { return Err(Error::invalid("body: it is missing")) };
        let mut file = File::new(body, coding, self.max_stream_bytes, call.exchange.watch.clone(), charge);
        call.exchange.stage = Stage::Body;
        let start = file.read(call.exchange.deadline.instant()).await?;
        let choice = Choice::new(place, &call.head.headers);
        let (resolved, sticky_field) = choice.by_field(|field| csv::first_field(&start, field))?;
        call.exchange.version = Some(Arc::clone(resolved.version()));
        let (sender, mut answers) = mpsc::channel(AHEAD);
        let (exchange, desk) = (call.exchange.hand_over(), resolved.desk());
        let run = Run { public: Arc::clone(self), exchange, resolved, sticky_field, desk: desk.clone() };
        desk.spawn(run.answer(file, start, sender));
        let first = answers.recv().await.unwrap_or_else(|| Err(cut()))?;
        let has_more = first.is_some();
        let rest = stream::unfold((answers, has_more), async |(mut answers, has_more)| {
            if !has_more {
                return None;
            }
            match answers.recv().await {
                Some(Ok(Some(piece))) => Some((Ok(piece), (answers, true))),
                Some(Ok(None)) => None,
                Some(Err(error)) => Some((Err(error), (answers, false))),
                None => Some((Err(cut()), (answers, false))),
            }
        });
        let mut response = Response::new(streamed(frames(first.unwrap_or_default(), rest)));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(CSV));
        Ok(response)
    }
}

/// A file on its way in.
struct File {
    plain: Pin<Box<dyn AsyncRead + Send>>,
    most: usize,
    watch: Option<Arc<Watch>>,
    charge: Charge,
}

impl File {
    fn new(
        body: Incoming,
        coding: Option<Coding>,
        most: usize,
        watch: Option<Arc<Watch>>,
        charge: Charge,
    ) -> Self {
        let limited = Limited::new(body, most);
        let moves = watch.clone();
        let moved = move |piece: &Bytes| moves.iter().for_each(|watch| watch.moved(piece.len()));
        let coded =
            StreamReader::new(BodyDataStream::new(limited).inspect_ok(moved).map_err(io::Error::other));
        let plain: Pin<Box<dyn AsyncRead + Send>> = match coding {
            Some(coding) => coding.decoder(coded),
            None => Box::pin(coded),
        };
        Self { plain, most, watch, charge }
    }

    /// The next piece, empty at the end: all of it, or what came of it `until` then. Errors: deadline exceeded, when
    /// nothing came; too large; invalid argument; resource exhausted, when it gives way to others.
    async fn read(&mut self, until: Instant) -> Result<Bytes, Error> {
        if let Some(watch) = &self.watch {
            watch.holds(Some(&self.charge));
        }
        let (plain, most, mut piece) = (&mut self.plain, self.most, BytesMut::with_capacity(PIECE));
        let fill = async {
            while piece.len() < PIECE {
                let read = plain.read_buf(&mut piece).await.map_err(|error| match error.get_ref() {
                    Some(inner) if inner.is::<LengthLimitError>() => too_large(most),
                    _ => Error::invalid(format!("body: {error}")),
                })?;
                if read == 0 {
                    break;
                }
            }
            Ok(())
        };
        let filled = clients(self.watch.as_ref(), until, "body: it stopped arriving", fill).await;
        match filled {
            Err(error) if error.code != ErrorCode::DeadlineExceeded || piece.is_empty() => Err(error),
            Ok(()) | Err(_) => Ok(piece.freeze()),
        }
    }
}

/// A piece of the answer; `None` after the last one, so that an answer that was cut is never taken for whole.
type Piece = Result<Option<Bytes>, Error>;

fn cut() -> Error {
    Error::new(ErrorCode::Unavailable, "the file's threads were taken away; ask again")
}

fn frames(
    first: Bytes,
    rest: impl Stream<Item = Result<Bytes, Error>> + Send + 'static,
) -> StreamBody<impl Stream<Item = Result<Frame<Bytes>, Broken>>> {
    let all = stream::once(async { Ok(first) }).chain(rest);
    StreamBody::new(all.map_ok(Frame::data).map_err(|error| Broken(error.to_string())))
}

/// One file on its way through the version that answers it.
struct Run {
    public: Arc<Public>,
    exchange: Exchange,
    resolved: Resolved,
    sticky_field: Option<String>,
    /// Its threads stay while it runs, whatever becomes of its deployment.
    desk: Desk,
}

impl Run {
    /// Sends the answer, piece by piece, and whatever ends it early. Ends when nobody reads on.
    async fn answer(mut self, file: File, start: Bytes, answers: mpsc::Sender<Piece>) {
        let _open = self.exchange.watch.as_ref().map(|watch| watch.open());
        let _threads = self.desk.clone();
        let ended = tokio::select! {
            ended = self.pieces(file, start, &answers) => ended,
            () = answers.closed() => return,
        };
        let sent = self.exchange.sent_bytes;
        match ended {
            Ok(()) => {
                self.exchange.answered(200, sent);
                drop(answers.send(Ok(None)).await); // without a client nobody needs to know
            }
            Err(error) => {
                self.exchange.answered(status::http(error.code), sent);
                let request_id = &self.exchange.request_id;
                tracing::warn!(%error, request_id, "a CSV file was not answered to its end");
                drop(answers.send(Err(error)).await); // without a client nobody needs to know
            }
        }
    }

    async fn pieces(
        &mut self,
        mut file: File,
        start: Bytes,
        answers: &mpsc::Sender<Piece>,
    ) -> Result<(), Error> {
        let version = Arc::clone(self.resolved.version());
        let sticky_field = self.sticky_field.clone();
        let mut decoder = csv::Decoder::new(&version, sticky_field.as_deref())?;
        let (mut piece, mut header) = (start, true);
        let mut until = self.exchange.deadline.instant();
        loop {
            let ends = piece.is_empty();
            self.exchange.received_bytes += piece.len() as u64;
            self.exchange.stage = Stage::Decode;
            self.exchange.deadline = Deadline::after(Instant::now(), self.public.request_timeout);
            self.resolved.enter(self.exchange.deadline).await?;
            let decoding = Instant::now();
            let room = Room::of(self.resolved.charge());
            decoder.feed(&piece, &room)?;
            let request = decoder.take(&room)?;
            let _held = room.into_charge();
            if let Some(request) = request {
                let encode = move |version: &Version, outputs: &[Tensor], room: &Room| {
                    Ok(Encoded::new(CSV, csv::encode(version, outputs, header, room)?))
                };
                let (exchange, read) = (&mut self.exchange, decoding.elapsed());
                let answer = pipeline::predict(exchange, &self.resolved, request, read, encode, None).await?;
                header = false;
                self.resolved.leave();
                self.send(answer, &file.charge, answers).await?;
                until = Instant::now() + self.public.request_timeout;
            } else if !ends && Instant::now() >= until {
                return Err(Error::new(ErrorCode::DeadlineExceeded, "body: no row came to its end in time"));
            }
            if ends {
                return Ok(());
            }
            self.resolved.leave();
            self.exchange.stage = Stage::Body;
            piece = file.read(until).await?;
        }
    }

    /// Errors: deadline exceeded, when the client does not read on; resource exhausted, when it gives way to others.
    async fn send(
        &mut self,
        answer: pipeline::Answer,
        charge: &Charge,
        answers: &mpsc::Sender<Piece>,
    ) -> Result<(), Error> {
        let body = answer.encoded.body;
        self.exchange.sent_bytes += body.len() as u64;
        let until = Instant::now() + self.public.request_timeout;
        let watch = self.exchange.watch.as_ref();
        let body = match watch {
            Some(watch) => {
                watch.holds(Some(charge));
                watch.send(body, Some(answer.charge), until)
            }
            None => body,
        };
        let sent = async {
            drop(answers.send(Ok(Some(body))).await); // `answer` sees when nobody reads on
            Ok(())
        };
        clients(watch, until, "the answers were not read in time", sent).await
    }
}
