//! ModelInfer and ModelStreamInfer: messages on the way that every prediction takes.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::StreamBody;
use hyper::Response;
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use modelhost_core::budget::Charge;
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::infer::InferRequest;
use modelhost_core::room::Room;
use modelhost_core::tensor::Tensor;
use modelhost_core::version::Version;
use modelhost_protocol::{ReplyForm, oip_grpc, status};
use modelhost_serving::{Resolved, Target};
use prost::Message;
use tokio::sync::mpsc;

use super::frames::{Begun, Frames, framed};
use super::{GRPC, asked_time, limit, refusal, refused, respond, target, trailers};
use crate::answer::shown;
use crate::body::{ResponseBody, streamed};
use crate::coding::Coding;
use crate::exchange::{Exchange, Stage};
use crate::pipeline::{self, Choice, Dialect, Encoded};
use crate::public::Public;
use crate::watch::{Watch, clients};

/// Answers of a stream that wait for the client to read them.
const AHEAD: usize = 2;

/// The protocol's messages as a dialect.
#[derive(Clone)]
struct Grpc {
    /// As they stand in the message.
    model: String,
    version: String,
    /// Bytes that a decoded message may take.
    most: usize,
    /// The answer is wrapped for a stream.
    streams: bool,
}

impl Grpc {
    fn target(&self) -> Target<'_> {
        target(&self.model, &self.version)
    }
}

impl Dialect for Grpc {
    type Form = (Option<String>, ReplyForm);

    fn decode(
        &self,
        content: &Bytes,
        choice: Choice,
        room: &Room,
    ) -> Result<(Resolved, InferRequest, Self::Form), Error> {
        let (mut request, form) = oip_grpc::read(content, (&self.model, &self.version), self.most, room)?;
        let (resolved, _) = choice.by_field(|field| request.parameter(field))?;
        let id = request.id.take();
        Ok((resolved, request, (id, form)))
    }

    fn encode(
        &self,
        version: &Version,
        outputs: &[Tensor],
        (id, form): Self::Form,
        room: &Room,
    ) -> Result<Encoded, Error> {
        let response = oip_grpc::encode(version, id, outputs, &form, room)?;
        let message = if self.streams {
            let (error_message, infer_response) = (String::new(), Some(response));
            let wrapped = oip_grpc::pb::ModelStreamInferResponse { error_message, infer_response };
            oip_grpc::written(&wrapped, room)?
        } else {
            oip_grpc::written(&response, room)?
        };
        Ok(Encoded::new(GRPC, message))
    }
}

/// One call of one message. Dropped, and the guest stopped, when the caller goes away.
pub(super) async fn infer(
    mut exchange: Exchange,
    headers: &HeaderMap,
    body: Incoming,
) -> Response<ResponseBody> {
    match one(&mut exchange, headers, body).await {
        Ok(answer) => {
            exchange.answered(200, answer.encoded.body.len() as u64);
            let pieces = framed(answer.encoded.body, answer.coding.is_some());
            let pieces = guarded(exchange.watch.as_ref(), pieces, Some(answer.charge), exchange.read_by());
            respond(pieces, answer.coding, exchange.headers())
        }
        Err(error) => refused(&mut exchange, &error),
    }
}

async fn one(
    exchange: &mut Exchange,
    headers: &HeaderMap,
    body: Incoming,
) -> Result<pipeline::Answer, Error> {
    exchange.stage = Stage::Body;
    let public = exchange.public();
    let (most, charge) = (public.max_body_bytes, public.serving.bodies().charge());
    let mut frames = Frames::new(headers, body, most, exchange.watch.clone(), charge)?;
    let begun = frames.begin(exchange.deadline.instant()).await?;
    let begun = begun.ok_or_else(|| Error::invalid("body: it has no message"))?;
    let mut id = String::new();
    answer(exchange, headers, &mut frames, &begun, false, &mut id).await
}

/// Answers a message of which the start has come; notes its id.
async fn answer(
    exchange: &mut Exchange,
    headers: &HeaderMap,
    frames: &mut Frames,
    begun: &Begun,
    streams: bool,
    id: &mut String,
) -> Result<pipeline::Answer, Error> {
    let start = begun.start().await;
    let names = oip_grpc::names(&start);
    names.id.clone_into(id);
    let (model, version) = (names.model.to_owned(), names.version.to_owned());
    let public = Arc::clone(exchange.public());
    let dialect = Grpc { model, version, most: public.max_body_bytes, streams };
    let place = match public.serving.admit(dialect.target()) {
        Ok(place) => place,
        Err(error) if streams => {
            // The stream goes on, so what is left of the message must be read.
            let charge = public.serving.bodies().charge();
            frames.finish(begun, charge, exchange.deadline.instant()).await?;
            return Err(error);
        }
        Err(error) => return Err(error),
    };
    let content = frames.finish(begun, place.charge(), exchange.deadline.instant()).await?;
    let accepts = content.coding.filter(|coding| accepted(headers, *coding));
    pipeline::answer(exchange, headers, place, content, dialect, accepts).await
}

/// Whether an answer may be compressed so: callers who compress accept what they use, unless they say otherwise.
fn accepted(headers: &HeaderMap, coding: Coding) -> bool {
    let accepted = headers.get("grpc-accept-encoding").and_then(|value| value.to_str().ok());
    accepted.is_none_or(|names| names.split(',').any(|name| Coding::grpc(name.trim()) == Some(coding)))
}

type Piece = Result<Frame<Bytes>, Infallible>;

/// A call of many messages: answers in the order asked, one after another. A failure is a message of the stream, which
/// goes on, unless the caller asked for gRPC errors (`triton_grpc_error: true`): then it ends the stream. It ends, too,
/// when no message comes for a while. Each message is told of apart from the call.
pub(super) fn stream(exchange: Exchange, headers: HeaderMap, body: Incoming) -> Response<ResponseBody> {
    let (sender, pieces) = mpsc::channel(AHEAD);
    let pieces = stream::unfold(pieces, async |mut pieces| Some((pieces.recv().await?, pieces)));
    let mut response = Response::new(streamed(StreamBody::new(pieces)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(GRPC));
    response.headers_mut().extend(exchange.headers());
    let (public, watch) = (Arc::clone(exchange.public()), exchange.watch.clone());
    let call = Stream { public, headers, watch, answers: sender };
    tokio::spawn(call.run(exchange, body));
    response
}

struct Stream {
    public: Arc<Public>,
    headers: HeaderMap,
    watch: Option<Arc<Watch>>,
    answers: mpsc::Sender<Piece>,
}

impl Stream {
    async fn run(self, mut exchange: Exchange, body: Incoming) {
        let _open = self.watch.as_ref().map(Watch::open);
        exchange.stage = Stage::Body;
        let ended = tokio::select! {
            ended = self.messages(&mut exchange, body) => ended,
            () = self.answers.closed() => return,
        };
        let status = ended.as_ref().map_or_else(|error| status::http(error.code), |()| 200);
        exchange.answered(status, exchange.sent_bytes);
        let last = trailers(ended.err().map(|error| refusal(&error, &exchange.request_id)));
        let until = Instant::now() + self.public.request_timeout;
        drop(self.put(Frame::trailers(last), until).await); // a caller who left needs no end
    }

    async fn messages(&self, call: &mut Exchange, body: Incoming) -> Result<(), Error> {
        let (headers, most) = (&self.headers, self.public.max_body_bytes);
        let charge = self.public.serving.streams().charge();
        let mut frames = Frames::new(headers, body, most, self.watch.clone(), charge)?;
        let as_status = headers.get("triton_grpc_error").is_some_and(|value| value == "true");
        let limit = limit(&self.public, headers);
        let end = asked_time(headers).and_then(|asked| Instant::now().checked_add(asked));
        loop {
            let idle = Instant::now() + self.public.patience.idle;
            let begun = frames.begin(end.map_or(idle, |end| end.min(idle))).await;
            let begun = begun.map_err(|error| if Instant::now() < idle { error } else { is_idle() })?;
            let Some(begun) = begun else { return Ok(()) };
            let left = end.map_or(limit, |end| end.saturating_duration_since(Instant::now()).min(limit));
            let mut exchange = Exchange::begin(&self.public, "grpc_infer", headers, self.watch.clone(), left);
            let mut id = String::new();
            exchange.stage = Stage::Body;
            let answered = answer(&mut exchange, headers, &mut frames, &begun, true, &mut id).await;
            call.received_bytes += exchange.received_bytes;
            match answered {
                Ok(mut answer) => {
                    exchange.answered(200, answer.encoded.body.len() as u64);
                    call.sent_bytes += exchange.sent_bytes;
                    let body = std::mem::take(&mut answer.encoded.body);
                    let pieces = framed(body, answer.coding.is_some());
                    self.send(pieces, Some(answer.charge), exchange.read_by()).await?;
                }
                Err(error) => {
                    exchange.answered(status::http(error.code), 0);
                    if as_status || frames.is_broken() {
                        return Err(shown(&error, &exchange.request_id));
                    }
                    let failure = oip_grpc::stream_failure(id, &shown(&error, &exchange.request_id));
                    let pieces = framed(failure.encode_to_vec().into(), false);
                    self.send(pieces, None, exchange.read_by()).await?;
                }
            }
        }
    }

    /// Errors: deadline exceeded, when the caller does not read on.
    async fn send(&self, pieces: Vec<Bytes>, charge: Option<Charge>, until: Instant) -> Result<(), Error> {
        for piece in guarded(self.watch.as_ref(), pieces, charge, until) {
            self.put(Frame::data(piece), until).await?;
        }
        Ok(())
    }

    async fn put(&self, frame: Frame<Bytes>, until: Instant) -> Result<(), Error> {
        let sent = async {
            drop(self.answers.send(Ok(frame)).await); // `run` sees when nobody reads on
            Ok(())
        };
        clients(self.watch.as_ref(), until, "the stream's answers were not read in time", sent).await
    }
}

fn is_idle() -> Error {
    Error::new(ErrorCode::Unavailable, "the stream was idle for too long; open another")
}

/// A message's pieces, which must have been read `until` then; its charge lasts until the last one was.
pub(super) fn guarded(
    watch: Option<&Arc<Watch>>,
    mut pieces: Vec<Bytes>,
    charge: Option<Charge>,
    until: Instant,
) -> Vec<Bytes> {
    if let Some(watch) = watch
        && let Some(last) = pieces.pop()
    {
        pieces.push(watch.send(last, charge, until));
    }
    pieces
}
