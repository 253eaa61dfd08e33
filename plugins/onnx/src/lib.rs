//! Serves any ONNX graph, including ONNX-ML. The host evaluates the graph. The manifest's `[graphs]` chooses tract or
//! ONNX Runtime, and CPU or GPU. The manifest must ask for the capability `wasi:nn`.
//!
//! The signature is the graph's. `[parameters] model` names the graph's artifact. By default it is the first one.

use modelhost_sdk::{Config, Error, Model, Request, Signature, Tensor, graphs};

/// A graph of the host, by name.
pub struct Onnx {
    graph: String,
}

impl Model for Onnx {
    fn load(config: &Config) -> Result<(Self, Signature), Error> {
        let graph = config.model_file()?;
        let signature = graphs::describe(&graph)?;
        Ok((Self { graph }, signature))
    }

    fn infer(&self, request: &Request) -> Result<Vec<Tensor>, Error> {
        graphs::compute(&self.graph, &request.inputs, &request.outputs)
    }
}

#[cfg(target_family = "wasm")]
modelhost_sdk::export!(Onnx);
