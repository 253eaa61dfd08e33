//! tract: pure Rust, always there. Several threads evaluate one plan at once. An evaluation cannot be stopped before its end.

use std::panic::catch_unwind;
use std::sync::Arc;

use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::model::Signature;
use modelhost_core::tensor::Tensor;
use modelhost_onnx::Graph;

use crate::backend::{Backend, Stop};
use crate::memory::{Held, Memory};

pub(crate) struct Tract {
    graph: Graph,
    signature: Signature,
    _weights: Held,
}

impl Tract {
    /// Errors: plugin fault, naming what is wrong with the file; too large.
    pub(crate) fn open(file: &[u8], memory: &Arc<Memory>) -> Result<Self, Error> {
        // What the file holds beside the weights is small.
        let weights = memory.weights(file.len() as u64)?;
        let parsed =
            catch_unwind(|| Graph::parse(file)).unwrap_or_else(|_| Err("tract panicked over it".to_owned()));
        let graph = parsed.map_err(|why| Error::new(ErrorCode::PluginFault, why))?;
        let signature = graph.signature();
        Ok(Self { graph, signature, _weights: weights })
    }
}

impl Backend for Tract {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn run(&self, inputs: &[Tensor], _stop: Option<&Stop>) -> Result<Vec<Tensor>, Error> {
        self.graph.run(inputs)
    }

    fn width(&self) -> usize {
        usize::MAX
    }

    fn is_on_cpu(&self) -> bool {
        true
    }
}
