//! The Open Inference Protocol over REST.

use bytes::Bytes;
use hyper::header::{HeaderMap, HeaderValue};
use modelhost_core::error::Error;
use modelhost_core::infer::InferRequest;
use modelhost_core::room::Room;
use modelhost_core::tensor::Tensor;
use modelhost_core::version::Version;
use modelhost_protocol::ReplyForm;
use modelhost_protocol::oip_rest::{self, Framing};
use modelhost_serving::Resolved;

use super::JSON;
use crate::pipeline::{Choice, Dialect, Encoded};

#[derive(Clone)]
pub(crate) struct Oip {
    /// How much of the body is JSON, in the caller's words.
    header_length: Option<HeaderValue>,
}

impl Oip {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        Self { header_length: headers.get(oip_rest::HEADER_LENGTH).cloned() }
    }
}

impl Dialect for Oip {
    type Form = (Option<String>, ReplyForm);

    fn decode(
        &self,
        content: &Bytes,
        choice: Choice,
        room: &Room,
    ) -> Result<(Resolved, InferRequest, Self::Form), Error> {
        let header = self.header_length.as_ref().map(HeaderValue::as_bytes);
        let (resolved, (mut request, form)) = match Framing::of(header, content.len())? {
            Framing::Json(length) => {
                let decoded = oip_rest::decode(content, length, room)?;
                let (resolved, _) = choice.by_field(|field| decoded.0.parameter(field))?;
                (resolved, decoded)
            }
            Framing::Raw => {
                let (resolved, _) = choice.by_field(|_| None)?;
                let decoded = oip_rest::decode_raw(content, &resolved.version().report.signature, room)?;
                (resolved, decoded)
            }
        };
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
        let encoded = oip_rest::encode(version, id.as_deref(), outputs, &form, room)?;
        Ok(Encoded {
            media_type: if encoded.json_length.is_some() { "application/octet-stream" } else { JSON },
            json_length: encoded.json_length,
            body: encoded.body,
        })
    }
}
