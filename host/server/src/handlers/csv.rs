//! CSV files of any length: read, predicted and written piece by piece, a few pieces in memory at a time.
//!
//! What fails before the first piece is answered has a status of its own. Later the status is out: the connection is cut, so that nobody takes
//! what came for all of it, and the log says why. A client must read while it sends: what is not read stops what is sent.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use http_body_util::{BodyDataStream, LengthLimitError, Limited, StreamBody};
use hyper::Response;
use hyper::body::Frame;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::routing::StickyKey;
use modelhost_core::version::Version;
use modelhost_protocol::csv;
use modelhost_serving::{Resolved, Target};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;
use tokio_util::io::StreamReader;

use super::{Answer, Call, Public, header_key};
use crate::body::{Broken, Coding, streamed};
use crate::call::Record;

/// Bytes of the file decoded and predicted at a time.
const PIECE: usize = 64 << 10;

/// Answered pieces that wait for the client to read them.
const AHEAD: usize = 2;

type File = Pin<Box<dyn AsyncRead + Send>>;

impl Public {
    /// Answers a CSV file with a CSV file. A disconnected caller cancels it.
    pub(super) async fn csv(self: &Arc<Self>, target: Target<'_>, call: &mut Call) -> Answer {
        let Some(body) = call.body.take() else { return Err(Error::invalid("body: it is missing")) };
        let limited = Limited::new(body, self.max_stream_bytes);
        let coded = StreamReader::new(BodyDataStream::new(limited).map_err(io::Error::other));
        let mut file: File = match Coding::of_request(&call.head.headers)? {
            Some(coding) => coding.decoder(coded),
            None => Box::pin(coded),
        };
        let start = self.read(&mut file).await?;
        let mut sticky_field = None;
        let key = |key: &StickyKey| match key {
            StickyKey::Header(name) => header_key(&call.head.headers, name),
            StickyKey::Field(field) => {
                sticky_field = Some(field.clone());
                csv::first_field(&start, field)
            }
        };
        let resolved = self.resolve(target, &mut call.record, key)?;
        call.record.streams = true;
        let (sender, mut answers) = mpsc::channel(AHEAD);
        let run = Run { public: Arc::clone(self), resolved, sticky_field, record: call.record.clone() };
        tokio::spawn(run.answer(file, start, sender));
        let first = answers.recv().await.unwrap_or_else(|| Ok(Bytes::new()))?;
        let rest = stream::unfold(answers, async |mut answers| Some((answers.recv().await?, answers)));
        let mut response = Response::new(streamed(frames(first, rest)));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/csv; charset=utf-8"));
        Ok(response)
    }

    /// The next piece, empty at the end; the client has the request's timeout to send it.
    async fn read(&self, file: &mut File) -> Result<Bytes, Error> {
        let mut piece = BytesMut::with_capacity(PIECE);
        let most = self.max_stream_bytes;
        while piece.len() < PIECE {
            let read = tokio::time::timeout(self.request_timeout, file.read_buf(&mut piece)).await;
            let read =
                read.map_err(|_| Error::new(ErrorCode::DeadlineExceeded, "body: it stopped arriving"))?;
            let read = read.map_err(|error| match error.get_ref() {
                Some(inner) if inner.is::<LengthLimitError>() => {
                    Error::new(ErrorCode::TooLarge, format!("body: larger than the {most} bytes allowed"))
                }
                _ => Error::invalid(format!("body: {error}")),
            })?;
            if read == 0 {
                break;
            }
        }
        Ok(piece.freeze())
    }
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
    resolved: Resolved,
    sticky_field: Option<String>,
    record: Record,
}

impl Run {
    /// Sends the answer, piece by piece, and whatever ends it early.
    async fn answer(mut self, file: File, start: Bytes, answers: mpsc::Sender<Result<Bytes, Error>>) {
        let mut sent = 0;
        let mut status = 200;
        if let Err(error) = self.pieces(file, start, &answers, &mut sent).await {
            status = modelhost_protocol::status::http(error.code);
            let (request_id, (model, _)) = (&self.record.request_id, self.record.names());
            tracing::warn!(%error, request_id, model, "a CSV file was not answered to its end");
            drop(answers.send(Err(error)).await); // without a client nobody needs to know
        }
        self.public.answered("csv", status, sent, &self.record);
    }

    async fn pieces(
        &mut self,
        mut file: File,
        start: Bytes,
        answers: &mpsc::Sender<Result<Bytes, Error>>,
        sent: &mut u64,
    ) -> Result<(), Error> {
        let version = Arc::clone(self.resolved.version());
        let mut decoder = csv::Decoder::new(&version, self.sticky_field.as_deref())?;
        let (mut piece, mut header) = (start, true);
        loop {
            let ends = piece.is_empty();
            self.record.received_bytes += piece.len() as u64;
            let decoding = Instant::now();
            decoder.feed(&piece)?;
            let request = decoder.take()?;
            self.record.decode += decoding.elapsed();
            if let Some(request) = request {
                let encode = |version: &Version, outputs: &[_]| csv::encode(version, outputs, header);
                let timeout = self.public.request_timeout;
                let answer = self.record.predict(&self.resolved, request, timeout, encode).await?;
                header = false;
                *sent += answer.len() as u64;
                if answers.send(Ok(answer.into())).await.is_err() {
                    return Ok(()); // the client went away
                }
            }
            if ends {
                return Ok(());
            }
            piece = self.public.read(&mut file).await?;
        }
    }
}
