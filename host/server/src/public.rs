//! The public port: from a head to the one thing it asks for, and its answer back. Decides nothing.

use std::borrow::Cow;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::{Body, Incoming};
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, EXPECT, HeaderMap, HeaderValue, VARY};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode};
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::model::ModelName;
use modelhost_protocol::page::Outcome;
use modelhost_protocol::{mlflow, oip_rest, status};
use modelhost_serving::{Serving, Target};
use modelhost_telemetry::{Metrics, Traces};

use crate::answer::{self, PAGE_POLICY, body, json, refuse, shown, wrong_method};
use crate::aside::{Aside, Document, Key};
use crate::body::{Bounds, ResponseBody, bytes_of, charged, collect, drain, send};
use crate::coding::Coding;
use crate::control::{is_form, wants_html};
use crate::dialects::{HTML, Mlflow, Oip, Records, TfServing};
use crate::exchange::{Exchange, Stage};
use crate::pipeline::{self, Dialect};
use crate::route::Route;
use crate::watch::{Patience, Watch};

/// Largest body of a request that is no prediction. It is read on the server's threads, into a tree.
pub(crate) const MAX_CONTROL_BYTES: usize = 64 << 10;

/// What is as long as this is compressed only where it grows no other's time.
const COMPRESS_UP_TO: usize = 64 << 10;

/// What the public port serves from.
pub(crate) struct Public {
    pub(crate) serving: Arc<Serving>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) default_model: Option<ModelName>,
    pub(crate) max_body_bytes: usize,
    pub(crate) max_stream_bytes: usize,
    pub(crate) request_timeout: Duration,
    pub(crate) patience: Patience,
    pub(crate) traces: Traces,
    pub(crate) access_log: bool,
    pub(crate) repository_control: bool,
    pub(crate) draining: AtomicBool,
    pub(crate) aside: Aside,
}

pub(crate) type Answer = Result<Response<ResponseBody>, Error>;

/// One request.
pub(crate) struct Call {
    pub(crate) head: Parts,
    pub(crate) body: Option<Incoming>,
    pub(crate) exchange: Exchange,
}

impl Public {
    /// Answers one request. `checked`: whether its sender may ask at all.
    pub(crate) async fn handle(
        self: Arc<Self>,
        request: Request<Incoming>,
        checked: Result<(), Error>,
    ) -> Result<Response<ResponseBody>, Infallible> {
        let (mut head, body) = request.into_parts();
        let watch = head.extensions.remove::<Arc<Watch>>();
        let uri = head.uri.clone();
        // Some clients escape the slash of a model's name.
        let path = match uri.path() {
            path if path.contains('%') => Cow::Owned(path.replace("%2F", "/").replace("%2f", "/")),
            path => Cow::Borrowed(path),
        };
        let route = Route::parse(&path);
        let name = route.as_ref().map_or("unknown", Route::name);
        let exchange = Exchange::begin(&self, name, &head.headers, watch, self.request_timeout);
        let mut call = Call { head, body: Some(body), exchange };
        let answer = match (checked, route) {
            (Err(refusal), _) => Err(refusal),
            (Ok(()), Some(route)) => self.dispatch(route, &mut call).await,
            (Ok(()), None) => Err(Error::not_found(format!("there is nothing at {}", excerpt(&path)))),
        };
        let mut response = answer.unwrap_or_else(|error| refuse(&error, &call.exchange.request_id));
        response.headers_mut().extend(call.exchange.headers());
        // Who asked whether to send, and was refused before anybody looked, sends nothing.
        let asked_first = call.exchange.stage == Stage::Head && call.head.headers.contains_key(EXPECT);
        if let Some(body) = call.body.take().filter(|body| !body.is_end_stream() && !asked_first) {
            drain(body, call.exchange.watch.as_ref()).await;
        }
        response = self.charged(response, &call.exchange);
        let sent = response.body().size_hint().exact().unwrap_or_default();
        call.exchange.answered(response.status().as_u16(), sent);
        let until = call.exchange.read_by();
        Ok(send(response, call.exchange.watch.as_ref(), until))
    }

    async fn dispatch(self: &Arc<Self>, route: Route<'_>, call: &mut Call) -> Answer {
        // A HEAD is answered as a GET; the connection leaves the body out.
        let reads = matches!(call.head.method, Method::GET | Method::HEAD);
        let method = if reads { &Method::GET } else { &call.head.method };
        if !route.methods().contains(method) {
            return Ok(wrong_method(route.methods()));
        }
        match route {
            Route::Infer(target) => self.predict(target, Oip::of(&call.head.headers), call).await,
            Route::V1Predict(target) => self.predict(target, TfServing, call).await,
            Route::Invocations(target) => self.invocations(self.or_default(target)?, call).await,
            Route::Model(target) if !reads => self.short(target, call).await,
            route => {
                let until = call.exchange.deadline.instant();
                let late = |_| Error::new(ErrorCode::DeadlineExceeded, "it was not done in time");
                let answer = tokio::time::timeout_at(until.into(), self.control(route, call));
                let answer = answer.await.map_err(late)??;
                Ok(self.compressed(answer, &call.head.headers).await)
            }
        }
    }

    /// The short URL: records, a CSV file or a form, by content type.
    async fn short(self: &Arc<Self>, target: Target<'_>, call: &mut Call) -> Answer {
        let kind = call.head.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
        if kind.starts_with(b"text/csv") {
            self.csv(target, call).await
        } else if is_form(kind) && wants_html(&call.head.headers) {
            self.form(target, call).await
        } else {
            self.predict(target, Records, call).await
        }
    }

    /// One prediction: a place in the deployment, then the body, then its way.
    async fn predict<D: Dialect>(
        self: &Arc<Self>,
        target: Target<'_>,
        dialect: D,
        call: &mut Call,
    ) -> Answer {
        let place = self.serving.admit(target)?;
        let Call { head, body, exchange } = call;
        let coding = Coding::of_request(&head.headers)?;
        let Some(body) = body else { return Err(Error::invalid("body: it is missing")) };
        exchange.stage = Stage::Body;
        let bounds = Bounds { most: self.max_body_bytes, until: exchange.deadline.instant() };
        let content = collect(coding, body, place.charge(), bounds, exchange.watch.as_ref()).await?;
        let accepts = Coding::for_response(&head.headers);
        let answer = pipeline::answer(exchange, &head.headers, place, content, dialect, accepts).await?;
        Ok(respond(answer, accepts.is_some()))
    }

    /// Failures go out by MLflow's keys.
    async fn invocations(self: &Arc<Self>, target: Target<'_>, call: &mut Call) -> Answer {
        let answer = match Mlflow::of(&call.head.headers) {
            Ok(dialect) => self.predict(target, dialect, call).await,
            Err(error) => Err(error),
        };
        Ok(answer.unwrap_or_else(|error| {
            let error = shown(&error, &call.exchange.request_id);
            let mut response = match error.code {
                ErrorCode::UnsupportedFormat => body(answer::TEXT, error.message.clone()),
                _ => json(&mlflow::error(&error)),
            };
            *response.status_mut() = StatusCode::from_u16(status::http(error.code)).unwrap_or_default();
            response
        }))
    }

    /// Answers a filled-in form with the page and the answer, or with why there is none.
    async fn form(self: &Arc<Self>, target: Target<'_>, call: &mut Call) -> Answer {
        let (form, version) = self.form_of(target, call)?;
        let error = match self.predict(target, form.clone(), call).await {
            Ok(response) => return Ok(answer::page(response, PAGE_POLICY)),
            Err(error) => shown(&error, &call.exchange.request_id),
        };
        let status = StatusCode::from_u16(status::http(error.code)).unwrap_or_default();
        // Nobody else's: it shows what was filled in.
        let name = format!("failure {:032x}", fastrand::u128(..));
        let page = move || Ok(form.page(&version, &Outcome::Failed(&error))?.into());
        let mut response = answer::page(self.document(call, HTML, name, page).await?, PAGE_POLICY);
        *response.status_mut() = status;
        Ok(response)
    }

    /// Answers with what is made aside. `name` tells documents apart that are made of different things.
    pub(crate) async fn document(
        &self,
        call: &Call,
        media_type: &'static str,
        name: String,
        work: impl FnOnce() -> Result<Bytes, Error> + Send + 'static,
    ) -> Answer {
        let accepts = Coding::for_response(&call.head.headers);
        let made = self.aside.make(Key { name, accepts }, call.exchange.deadline.instant(), work).await?;
        let Document { bytes, coding } = made;
        // The document's bytes have their charge.
        let mut response = Response::new(charged(bytes, self.serving.bodies().charge()));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
        if accepts.is_some() {
            response.headers_mut().insert(VARY, HeaderValue::from_static("accept-encoding"));
        }
        if let Some(coding) = coding {
            response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static(coding.as_str()));
        }
        Ok(response)
    }

    /// Charges an answer that is no prediction's to the host; refuses it when too much is held already.
    fn charged(&self, response: Response<ResponseBody>, exchange: &Exchange) -> Response<ResponseBody> {
        let (head, body) = response.into_parts();
        let ResponseBody::Whole(body, None) = body else { return Response::from_parts(head, body) };
        let (bytes, mut charge) = (bytes_of(body), self.serving.bodies().charge());
        match charge.grow(bytes.len()) {
            Ok(()) => Response::from_parts(head, charged(bytes, charge)),
            Err(error) => refuse(&error, &exchange.request_id),
        }
    }

    /// Compresses a short answer that is no prediction, if the caller wants that. Long ones are made aside, and
    /// compressed there.
    async fn compressed(
        &self,
        response: Response<ResponseBody>,
        headers: &HeaderMap,
    ) -> Response<ResponseBody> {
        let Some(coding) = Coding::for_response(headers) else { return response };
        let done = [CONTENT_ENCODING, VARY].iter().any(|name| response.headers().contains_key(name));
        let (mut head, body) = response.into_parts();
        let body = match body {
            ResponseBody::Whole(body, charge)
                if !done && body.size_hint().upper() < Some(COMPRESS_UP_TO as u64) =>
            {
                let plain = bytes_of(body);
                head.headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
                match coding.compress(&plain, self.serving.bodies().charge()).await {
                    Some((coded, charge)) => {
                        head.headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding.as_str()));
                        charged(coded, charge)
                    }
                    None => ResponseBody::Whole(plain.into(), charge),
                }
            }
            body => body,
        };
        Response::from_parts(head, body)
    }

    /// The body of a request that is no prediction.
    pub(crate) async fn collect_control(&self, call: &mut Call) -> Result<Bytes, Error> {
        let Some(body) = &mut call.body else { return Ok(Bytes::new()) };
        let coding = Coding::of_request(&call.head.headers)?;
        let bounds = Bounds { most: MAX_CONTROL_BYTES, until: call.exchange.deadline.instant() };
        let charge = self.serving.bodies().charge();
        let content = collect(coding, body, charge, bounds, call.exchange.watch.as_ref()).await?;
        let (content, _) = content.plain().await?;
        call.exchange.received_bytes = content.len() as u64;
        Ok(content)
    }

    /// Whether new requests are welcome. Errors: unavailable, while shutting down, or when loading stands still.
    pub(crate) fn check_ready(&self) -> Result<(), Error> {
        if self.draining.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorCode::Unavailable, "the host is shutting down"));
        }
        match self.serving.stalled(Instant::now()) {
            Some(why) => Err(Error::new(ErrorCode::Unavailable, why)),
            None => Ok(()),
        }
    }

    /// The target, or the configured default. Errors: not found, when there is none.
    pub(crate) fn or_default<'a>(&'a self, target: Option<Target<'a>>) -> Result<Target<'a>, Error> {
        if let Some(target) = target {
            return Ok(target);
        }
        let model = self.default_model.as_ref().ok_or_else(|| {
            Error::not_found(
                "no model answers here: name one, as in /models/PREFIX/NAME/invocations, or configure default_model",
            )
        })?;
        Ok(Target { model: model.as_str(), version: None })
    }
}

/// A prediction's response.
fn respond(answer: pipeline::Answer, negotiated: bool) -> Response<ResponseBody> {
    let pipeline::Answer { encoded, coding, charge } = answer;
    let mut response = Response::new(charged(encoded.body, charge));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(encoded.media_type));
    if let Some(length) = encoded.json_length {
        headers.insert(oip_rest::HEADER_LENGTH, HeaderValue::from(length));
    }
    if negotiated {
        headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
    }
    if let Some(coding) = coding {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding.as_str()));
    }
    response
}

/// The start of what a caller said, for a message.
fn excerpt(text: &str) -> &str {
    text.get(..text.floor_char_boundary(200)).unwrap_or_default()
}
