//! Serves any ONNX graph that tract can evaluate, inside the sandbox: no native code touches the model, and equal requests get
//! equal bytes on every machine.
//!
//! The signature is the graph's. The artifact is the manifest's only one, or the one that `[parameters] model` names.

mod element;
mod graph;

use modelhost_sdk::{Config, Error, Model, Request, Signature, Tensor, artifact, artifact_names};

pub use graph::Graph;

/// A graph and the names of its inputs, in its order.
pub struct Onnx {
    graph: Graph,
    inputs: Vec<String>,
}

impl Model for Onnx {
    fn load(config: &Config) -> Result<(Self, Signature), Error> {
        let names = artifact_names();
        let name = config.parameter("model").or(names.first().map(String::as_str));
        let name =
            name.ok_or_else(|| Error::Model("no artifact: this runtime reads one ONNX file".into()))?;
        let graph = Graph::parse(&artifact(name)?).map_err(|why| Error::Model(format!("{name}: {why}")))?;
        let signature = graph.signature();
        let inputs = signature.inputs.iter().map(|spec| spec.name.clone()).collect();
        Ok((Self { graph, inputs }, signature))
    }

    fn infer(&self, request: &Request) -> Result<Vec<Tensor>, Error> {
        let inputs: Vec<_> = self.inputs.iter().map(|name| request.input(name)).collect::<Result<_, _>>()?;
        self.graph.run(&inputs)
    }
}

#[cfg(target_family = "wasm")]
modelhost_sdk::export!(Onnx);

#[cfg(test)]
mod tests;
