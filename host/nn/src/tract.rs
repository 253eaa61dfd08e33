//! tract: pure Rust, always there. Several threads evaluate one plan at once. An evaluation cannot be stopped before its end.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use modelhost_core::error::Error;
use modelhost_core::model::Signature;
use modelhost_core::tensor::Tensor;
use modelhost_onnx::Graph;

use crate::backend::{Backend, GraphFile, Stop};
use crate::memory::{Held, Memory};

pub(crate) struct Tract {
    graph: Graph,
    signature: Signature,
    _weights: Held,
}

impl Tract {
    /// Errors: plugin fault, naming what is wrong with the file; too large.
    pub(crate) fn open(file: &GraphFile, memory: &Arc<Memory>) -> Result<Self, Error> {
        // What the files hold beside the weights is small.
        let weights = memory.weights(file.bytes)?;
        let beside = |name: &str| {
            let known = file.beside.iter().find(|(known, _)| known == name);
            known.map(|(_, content)| content.clone()).ok_or_else(|| format!("no file {name:?}"))
        };
        let parsed = catch_unwind(AssertUnwindSafe(|| Graph::parse(&file.content, &beside)))
            .unwrap_or_else(|_| Err("tract panicked over it".to_owned()));
        let graph = parsed.map_err(Error::fault)?;
        let signature = graph.signature();
        Ok(Self { graph, signature, _weights: weights })
    }
}

impl Backend for Tract {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn run(&self, inputs: &[Tensor], _stop: &Stop) -> Result<Vec<Tensor>, Error> {
        self.graph.run(inputs)
    }

    fn run_now(&self, inputs: &[Tensor]) -> Result<Option<Vec<Tensor>>, Error> {
        self.graph.run_planned(inputs)
    }

    fn width(&self) -> usize {
        usize::MAX
    }

    fn is_on_cpu(&self) -> bool {
        true
    }
}
