//! Health and reflection, which are tonic's: told of, bounded in bytes and time, and in how many one connection may
//! have open, because a watch of the host's health never ends.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::HeaderMap;
use hyper::http::request::Parts;
use hyper::{Request, Response};
use modelhost_core::error::{Error, ErrorCode};
use tokio::sync::OwnedSemaphorePermit;
use tonic::{Code, Status};
use tower::ServiceExt;

use super::{Handler, refused};
use crate::body::{ResponseBody, Small, streamed};
use crate::exchange::Exchange;

/// Largest body of a call.
const MAX_BYTES: usize = 64 << 10;

/// Answers one call.
pub(super) async fn answer(
    mut exchange: Exchange,
    head: Parts,
    body: Incoming,
    handler: Handler,
) -> Response<ResponseBody> {
    let watch = exchange.watch.clone();
    let place = match watch
        .as_ref()
        .map(|watch| Arc::clone(watch.small_calls()).try_acquire_owned())
        .transpose()
    {
        Ok(place) => place,
        Err(error) => {
            let text = "the connection has too many calls for health and reflection open";
            return refused(&mut exchange, &Error::new(ErrorCode::ResourceExhausted, text).because(error));
        }
    };
    let body = Small::new(body, MAX_BYTES, exchange.public().patience.idle, watch);
    let until = exchange.deadline.instant();
    let answer = handler.oneshot(Request::from_parts(head, body));
    let Ok(answer) = tokio::time::timeout_at(until.into(), answer).await else {
        let error = Error::new(ErrorCode::DeadlineExceeded, "it was not answered in time");
        return refused(&mut exchange, &error);
    };
    let (mut head, body) = match answer {
        Ok(answer) => answer.into_parts(),
        Err(never) => match never {},
    };
    head.headers.extend(exchange.headers());
    let mut told = Told { body, exchange, sent: 0, _place: place };
    told.look_for_the_end(&head.headers);
    Response::from_parts(head, streamed(told))
}

/// An answer on its way, told of when it ends.
struct Told {
    body: tonic::body::Body,
    exchange: Exchange,
    sent: u64,
    _place: Option<OwnedSemaphorePermit>,
}

impl Told {
    /// Headers say how a call ended where nothing follows them, trailers where something did.
    fn look_for_the_end(&mut self, headers: &HeaderMap) {
        if let Some(status) = Status::from_header_map(headers) {
            self.exchange.answered(http(status.code()), self.sent);
        }
    }
}

/// The HTTP status that tells the same.
fn http(code: Code) -> u16 {
    match code {
        Code::Ok => 200,
        Code::InvalidArgument => 400,
        Code::NotFound => 404,
        Code::Unimplemented => 501,
        Code::Unavailable | Code::ResourceExhausted => 503,
        Code::DeadlineExceeded => 504,
        _ => 500,
    }
}

impl Body for Told {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame {
            self.sent += frame.data_ref().map_or(0, |data| data.len() as u64);
            if let Some(trailers) = frame.trailers_ref() {
                self.look_for_the_end(trailers);
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
