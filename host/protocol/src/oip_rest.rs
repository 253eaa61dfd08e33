//! Open Inference Protocol V2 over REST, with the Triton extensions that [`crate::EXTENSIONS`] names.
//!
//! Sources: kserve/open-inference-protocol, specification/protocol/inference_rest.md; triton-inference-server/server,
//! docs/protocol. Unknown keys are passed over, as Triton does. A readiness answer always carries JSON: KServe's client
//! parses it, and Triton's looks at the status alone.

mod request;
mod resources;
mod response;

pub use request::{Framing, decode, decode_raw};
pub use resources::{
    error, index, log_settings, model_config, model_metadata, read_index, read_load, read_log_settings,
    read_trace_settings, server_metadata, statistics, trace_settings,
};
pub use response::{Encoded, encode};

/// The header that says how many bytes of a body are JSON, where tensors follow it.
pub const HEADER_LENGTH: &str = "inference-header-content-length";
