//! Serves any ONNX graph, ONNX-ML included, evaluated by the host: on tract or ONNX Runtime, on the processor or a GPU, as the
//! manifest's `[graphs]` says. The manifest asks for the capability `wasi:nn`.
//!
//! The signature is the graph's. The artifact is the manifest's only one, or the one that `[parameters] model` names.

use modelhost_sdk::{Config, Error, Model, Request, Signature, Tensor, graphs};

/// The graph's name.
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
