//! The way of a prediction, the same for every dialect and transport: a place, the body, decode, choose, infer, encode.
//!
//! A dialect decides nothing: it says how to read a request and how to write an answer. What takes time with a
//! request's size runs on its deployment's threads; every byte that is held is charged to its deployment and the host.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::header::HeaderMap;
use modelhost_core::budget::Charge;
use modelhost_core::error::Error;
use modelhost_core::infer::{InferRequest, Parameter};
use modelhost_core::room::Room;
use modelhost_core::routing::StickyKey;
use modelhost_core::tensor::Tensor;
use modelhost_core::version::Version;
use modelhost_serving::{Admitted, Resolved};

use crate::body::Content;
use crate::coding::Coding;
use crate::exchange::{Exchange, Stage};

/// Columns of a row that are made in the time that a byte of text is read.
const COLUMNS_A_BYTE: usize = 32;

/// How one protocol words a prediction.
pub(crate) trait Dialect: Clone + Send + Sync + 'static {
    /// What writing the answer needs to know of the request.
    type Form: Send + 'static;

    /// Whether a row of a table may be shorter in a request than its columns are in memory.
    const HAS_SHORT_ROWS: bool = false;

    /// Reads a request, and asks `choice` for the version that it is read for. What it makes takes from `room`.
    /// Errors: invalid argument; resource exhausted; as [`Choice`]'s.
    fn decode(
        &self,
        content: &Bytes,
        choice: Choice,
        room: &Room,
    ) -> Result<(Resolved, InferRequest, Self::Form), Error>;

    /// Writes an answer, which takes from `room`. Errors: as the dialect's; resource exhausted.
    fn encode(
        &self,
        version: &Version,
        outputs: &[Tensor],
        form: Self::Form,
        room: &Room,
    ) -> Result<Encoded, Error>;
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

    /// Decides, by the field that `find` finds in the request where the policy is sticky by one; returns that field,
    /// which may then stand beside the model's columns.
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
    let row = if D::HAS_SHORT_ROWS { 1 + place.columns() / COLUMNS_A_BYTE } else { 1 };
    let work = content.work().saturating_mul(row);
    let (desk, choice, reader) = (place.desk(), Choice::new(place, headers), dialect.clone());
    let decoded = desk.work(work, async move {
        let (content, charge) = content.plain().await?;
        let room = Room::of(charge);
        let (resolved, request, form) = reader.decode(&content, choice, &room)?;
        let mut charge = room.into_charge();
        charge.shrink_to(held(&request, &content));
        Ok((resolved, request, form, content.len(), charge))
    });
    let (resolved, request, form, received, _held) = decoded.await?;
    exchange.received_bytes += received as u64;
    exchange.version = Some(Arc::clone(resolved.version()));
    let encode = move |version: &Version, outputs: &[Tensor], room: &Room| {
        dialect.encode(version, outputs, form, room)
    };
    predict(exchange, &resolved, request, begun.elapsed(), encode, accepts).await
}

/// Answers a request; reading it took so long.
pub(crate) async fn predict(
    exchange: &mut Exchange,
    resolved: &Resolved,
    request: InferRequest,
    read: Duration,
    encode: impl FnOnce(&Version, &[Tensor], &Room) -> Result<Encoded, Error> + Send + 'static,
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
    let (version, outputs) = (Arc::clone(resolved.version()), answer.outputs);
    let (room, coded) = (Room::of(resolved.charge()), resolved.charge());
    let desk = resolved.desk();
    let encoded = desk.work(work(&outputs), async move {
        room.take(outputs.iter().map(|output| output.data().len()).sum())?;
        let mut encoded = encode(&version, &outputs, &room)?;
        drop(outputs);
        let mut charge = room.into_charge();
        charge.shrink_to(encoded.body.len());
        let coded = match accepts {
            Some(coding) => coding.compress(&encoded.body, coded).await,
            None => None,
        };
        let coding = accepts.filter(|_| coded.is_some());
        if let Some((body, shorter)) = coded {
            (encoded.body, charge) = (body, shorter);
        }
        Ok(Answer { encoded, coding, charge })
    });
    let encoded = encoded.await?;
    let took = begun.elapsed();
    exchange.encode += took;
    resolved.codec(read, took);
    exchange.stage = Stage::Done;
    Ok(encoded)
}

/// Bytes that a request holds: those of its tensors, of its texts, and all of its content if a tensor is a part of it.
fn held(request: &InferRequest, content: &Bytes) -> usize {
    let lies_within = |tensor: &&Tensor| content.as_ptr_range().contains(&tensor.data().as_ptr());
    let (parts, copies): (Vec<_>, Vec<_>) = request.inputs.iter().partition(lies_within);
    let copied: usize = copies.iter().map(|input| input.data().len()).sum();
    let parameters = request.parameters.iter().map(|(name, value)| match value {
        Parameter::Text(text) => name.len() + text.len(),
        Parameter::Int(_) | Parameter::Float(_) | Parameter::Bool(_) => name.len(),
    });
    let texts = parameters.chain(request.outputs.iter().map(String::len)).sum::<usize>();
    copied + texts + if parts.is_empty() { 0 } else { content.len() }
}

/// How much work it is to write outputs: some dialects write the names once a row, and a list for what is empty.
fn work(outputs: &[Tensor]) -> usize {
    let of = |output: &Tensor| {
        let shape = output.shape();
        let announced = shape.iter().filter(|dim| **dim > 0).fold(1_u64, |all, dim| all.saturating_mul(*dim));
        let rows = if output.data().is_empty() { announced } else { shape.first().copied().unwrap_or(1) };
        let names = usize::try_from(rows).unwrap_or(usize::MAX).saturating_mul(output.name().len());
        output.data().len().saturating_add(names)
    };
    outputs.iter().map(of).fold(0, usize::saturating_add)
}

#[cfg(test)]
mod tests {
    use modelhost_core::tensor::DType;

    use super::*;

    #[test]
    fn a_request_holds_its_content_where_a_tensor_is_a_part_of_it() {
        let content = Bytes::from(vec![7; 100]);
        let tensor =
            |data: Bytes| Tensor::new("x".into(), DType::Uint8, vec![data.len() as u64], data).unwrap();
        let copy = || tensor(vec![7; 30].into());
        let parameters = vec![("a".to_owned(), Parameter::Text("text".to_owned()))];
        let request = |inputs| InferRequest { inputs, parameters: parameters.clone(), ..Default::default() };
        assert_eq!(held(&request(vec![copy()]), &content), 35);
        assert_eq!(held(&request(vec![copy(), tensor(content.slice(..2))]), &content), 135);
    }

    #[test]
    fn names_and_empty_lists_are_work_too() {
        let tensor = |shape: &[u64], bytes: usize| {
            Tensor::new("name".into(), DType::Uint8, shape.to_vec(), vec![0; bytes].into()).unwrap()
        };
        assert_eq!(work(&[tensor(&[10, 3], 30), tensor(&[], 1)]), 30 + 40 + 1 + 4);
        assert_eq!(work(&[tensor(&[0, 1 << 20], 0)]), 4 << 20);
    }
}
