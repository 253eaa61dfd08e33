//! MLflow's scoring protocol.

use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use modelhost_core::error::Error;
use modelhost_core::infer::InferRequest;
use modelhost_core::room::Room;
use modelhost_core::tensor::Tensor;
use modelhost_core::version::Version;
use modelhost_protocol::csv;
use modelhost_protocol::mlflow::{self, Format};
use modelhost_serving::Resolved;

use super::JSON;
use crate::pipeline::{Choice, Dialect, Encoded};

#[derive(Clone)]
pub(crate) struct Mlflow(Format);

impl Mlflow {
    /// Errors: unsupported format.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, Error> {
        let kind = headers.get(CONTENT_TYPE).map(HeaderValue::to_str);
        Ok(Self(Format::of(kind.and_then(Result::ok))?))
    }
}

impl Dialect for Mlflow {
    type Form = ();

    const HAS_SHORT_ROWS: bool = true;

    fn decode(
        &self,
        content: &Bytes,
        choice: Choice,
        room: &Room,
    ) -> Result<(Resolved, InferRequest, ()), Error> {
        let find = |field: &str| match self.0 {
            Format::Json => mlflow::first_field(content, field, room),
            Format::Csv => csv::first_field(content, field),
        };
        let (resolved, sticky) = choice.by_field(find)?;
        let request = match self.0 {
            Format::Json => mlflow::decode(content, resolved.version(), sticky.as_deref(), room)?,
            Format::Csv => csv::decode(content, resolved.version(), sticky.as_deref(), room)?,
        };
        Ok((resolved, request, ()))
    }

    fn encode(&self, _: &Version, outputs: &[Tensor], (): (), room: &Room) -> Result<Encoded, Error> {
        Ok(Encoded::new(JSON, mlflow::encode(outputs, room)?))
    }
}
