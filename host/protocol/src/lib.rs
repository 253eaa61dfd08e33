//! Dialects: wire bytes to and from the one `InferRequest`. No sockets, no dialect knows another.

mod classification;
mod example;
mod json;
mod json_named;
mod json_tensor;
mod out;
mod reply;
mod table;
#[cfg(any(test, feature = "test-util"))]
mod testing;

pub mod control;

pub mod csv;

#[cfg(any(test, feature = "test-util"))]
pub mod fuzz;

pub mod mlflow;

pub mod oip_grpc;

pub mod oip_rest;

pub mod openapi;

pub mod page;

pub mod records;

pub mod status;

pub mod tf_serving;

/// The Open Inference Protocol's extensions that work here, over both transports, by Triton's names.
pub const EXTENSIONS: [&str; 8] = [
    "classification",
    "model_repository",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "trace",
    "logging",
];

pub use reply::{OutputForm, ReplyForm};
