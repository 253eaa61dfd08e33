//! TF Serving's REST API and KServe V1.

use bytes::Bytes;
use modelhost_core::error::Error;
use modelhost_core::infer::InferRequest;
use modelhost_core::room::Room;
use modelhost_core::tensor::Tensor;
use modelhost_core::version::Version;
use modelhost_protocol::tf_serving::{self, Layout};
use modelhost_serving::Resolved;

use super::JSON;
use crate::pipeline::{Choice, Dialect, Encoded};

#[derive(Clone)]
pub(crate) struct TfServing;

impl Dialect for TfServing {
    type Form = Layout;

    const HAS_SHORT_ROWS: bool = true;

    fn decode(
        &self,
        content: &Bytes,
        choice: Choice,
        room: &Room,
    ) -> Result<(Resolved, InferRequest, Layout), Error> {
        let (resolved, sticky) = choice.by_field(|field| tf_serving::first_field(content, field, room))?;
        let (request, layout) = tf_serving::decode(content, resolved.version(), sticky.as_deref(), room)?;
        Ok((resolved, request, layout))
    }

    fn encode(&self, _: &Version, outputs: &[Tensor], layout: Layout, room: &Room) -> Result<Encoded, Error> {
        Ok(Encoded::new(JSON, tf_serving::encode(outputs, layout, room)?))
    }
}
