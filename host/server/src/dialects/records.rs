//! The short form: JSON records.

use bytes::Bytes;
use modelhost_core::error::Error;
use modelhost_core::infer::InferRequest;
use modelhost_core::room::Room;
use modelhost_core::tensor::Tensor;
use modelhost_core::version::Version;
use modelhost_protocol::records;
use modelhost_serving::Resolved;

use super::JSON;
use crate::pipeline::{Choice, Dialect, Encoded};

#[derive(Clone)]
pub(crate) struct Records;

impl Dialect for Records {
    type Form = ();

    const HAS_SHORT_ROWS: bool = true;

    fn decode(
        &self,
        content: &Bytes,
        choice: Choice,
        room: &Room,
    ) -> Result<(Resolved, InferRequest, ()), Error> {
        let (resolved, sticky) = choice.by_field(|field| records::first_field(content, field, room))?;
        let request = records::decode(content, resolved.version(), sticky.as_deref(), room)?;
        Ok((resolved, request, ()))
    }

    fn encode(&self, version: &Version, outputs: &[Tensor], (): (), room: &Room) -> Result<Encoded, Error> {
        Ok(Encoded::new(JSON, records::encode(version, outputs, room)?))
    }
}
