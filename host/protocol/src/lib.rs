//! Dialects: one module each, from wire bytes to the one `InferRequest` and back. No sockets, no dialect knows another.

mod json;
mod json_tensor;

pub mod oip_rest;

pub mod records;

pub mod status;
