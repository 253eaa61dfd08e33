//! The way of a prediction, the same for every dialect and transport: a place, the body, decode, choose, infer, encode.
//!
//! A dialect decides nothing: it says how to read a request and how to write an answer. What takes time with a request's size runs on its
//! deployment's threads; every byte that is held is charged to its deployment and the host.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::header::HeaderMap;
use modelhost_core::budget::Charge;
use modelhost_core::error::Error;
use modelhost_core::infer::InferRequest;
use modelhost_core::routing::StickyKey;
use modelhost_core::tensor::Tensor;
use modelhost_core::version::Version;
use modelhost_serving::{Admitted, Resolved};

use crate::body::Content;
use crate::coding::Coding;
use crate::exchange::{Exchange, Stage};

/// How one protocol words a prediction.
pub(crate) trait Dialect: Clone + Send + Sync + 'static {
    /// What writing the answer needs to know of the request.
    type Form: Send + 'static;

    /// Reads a request, and asks `choice` for the version that it is read for. Errors: invalid argument; as [`Choice`]'s.
    fn decode(&self, content: &Bytes, choice: Choice) -> Result<(Resolved, InferRequest, Self::Form), Error>;

    /// Writes an answer. Errors: as the dialect's.
    fn encode(&self, version: &Version, outputs: &[Tensor], form: Self::Form) -> Result<Encoded, Error>;
}

/// An answer's content.
pub(crate) struct Encoded {
    pub(crate) media_type: &'static str,
    /// Of Open Inference Protocol answers: how much of it is JSON, where raw tensors follow.
    pub(crate) json_length: Option<usize>,
    pub(crate) body: Bytes,
}

impl Encoded {
    pub(crate) fn new(media_type: &'static str, body: impl Into<Bytes>) -> Self {
        Self { media_type, json_length: None, body: body.into() }
    }
}

/// The version that answers, still to be decided.
pub(crate) struct Choice {
    place: Admitted,
    /// The value of the sticky header.
    header: Option<Vec<u8>>,
}

impl Choice {
    pub(crate) fn new(place: Admitted, headers: &HeaderMap) -> Self {
        let header = match place.sticky() {
            Some(StickyKey::Header(name)) => headers.get(name).map(|value| value.as_bytes().to_vec()),
            Some(StickyKey::Field(_)) | None => None,
        };
        Self { place, header }
    }

    /// Decides, by the field that `find` finds in the request where the policy is sticky by one; returns that field, which may then stand
    /// beside the model's columns.
    pub(crate) fn by_field(
        self,
        find: impl FnOnce(&str) -> Option<Vec<u8>>,
    ) -> Result<(Resolved, Option<String>), Error> {
        let field = match self.place.sticky() {
            Some(StickyKey::Field(field)) => Some(field.clone()),
            Some(StickyKey::Header(_)) | None => None,
        };
        let key = self.header.or_else(|| field.as_deref().and_then(find));
        Ok((self.place.choose(key.as_deref(), fastrand::u64(..))?, field))
    }
}

/// An answer that is ready to be sent.
pub(crate) struct Answer {
    pub(crate) encoded: Encoded,
    /// What compressed its body.
    pub(crate) coding: Option<Coding>,
    pub(crate) charge: Charge,
}

/// Answers a request whose content is there. `accepts`: what the answer may be compressed with.
pub(crate) async fn answer<D: Dialect>(
    exchange: &mut Exchange,
    headers: &HeaderMap,
    mut place: Admitted,
    content: Content,
    dialect: D,
    accepts: Option<Coding>,
) -> Result<Answer, Error> {
    place.enter()?;
    exchange.stage = Stage::Decode;
    let begun = Instant::now();
    let (desk, choice, reader) = (place.desk(), Choice::new(place, headers), dialect.clone());
    let decoded = desk.work(content.work(), async move {
        let (content, mut charge) = content.plain().await?;
        let (resolved, request, form) = reader.decode(&content, choice)?;
        charge.grow(copied(&request, &content))?;
        Ok((resolved, request, form, content.len(), charge))
    });
    let (resolved, request, form, received, _held) = decoded.await?;
    exchange.received_bytes += received as u64;
    exchange.version = Some(Arc::clone(resolved.version()));
    let encode = move |version: &Version, outputs: &[Tensor]| dialect.encode(version, outputs, form);
    predict(exchange, &resolved, request, begun.elapsed(), encode, accepts).await
}

/// Answers a request; reading it took so long.
pub(crate) async fn predict(
    exchange: &mut Exchange,
    resolved: &Resolved,
    request: InferRequest,
    read: Duration,
    encode: impl FnOnce(&Version, &[Tensor]) -> Result<Encoded, Error> + Send + 'static,
    accepts: Option<Coding>,
) -> Result<Answer, Error> {
    exchange.stage = Stage::Infer;
    exchange.decode += read;
    let deadline = exchange.deadline_of(&request);
    let answer = resolved.infer(request, deadline, exchange.public().request_timeout).await?;
    exchange.queue += answer.queued;
    exchange.infer += answer.ran;
    exchange.cached = answer.cached;

    exchange.stage = Stage::Encode;
    let begun = Instant::now();
    let (version, outputs, mut charge) = (Arc::clone(resolved.version()), answer.outputs, resolved.charge());
    let bytes = outputs.iter().map(|output| output.data().len()).sum();
    let desk = resolved.desk();
    let encoded = desk.work(bytes, async move {
        charge.grow(bytes)?;
        let mut encoded = encode(&version, &outputs)?;
        charge.grow(encoded.body.len().saturating_sub(bytes))?;
        let coded = match accepts {
            Some(coding) => coding.compress(&encoded.body).await,
            None => None,
        };
        let coding = accepts.filter(|_| coded.is_some());
        encoded.body = coded.unwrap_or(encoded.body);
        charge.shrink_to(encoded.body.len());
        Ok(Answer { encoded, coding, charge })
    });
    let encoded = encoded.await?;
    let took = begun.elapsed();
    exchange.encode += took;
    resolved.codec(read, took);
    exchange.stage = Stage::Done;
    Ok(encoded)
}

/// Bytes of a request's tensors that are no part of its content.
fn copied(request: &InferRequest, content: &Bytes) -> usize {
    let lies_within = |tensor: &&Tensor| content.as_ptr_range().contains(&tensor.data().as_ptr());
    let copied = request.inputs.iter().filter(|input| !lies_within(input));
    copied.map(|input| input.data().len()).sum()
}
