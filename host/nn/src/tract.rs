//! tract: pure Rust, always available. Several threads evaluate one plan at once. An evaluation can be stopped
//! between two operators.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::model::Signature;
use modelhost_core::tensor::Tensor;
use modelhost_onnx::Graph;

use crate::backend::{Backend, GraphFile, Stop};
use crate::memory::{Held, Memory};

pub(crate) struct Tract {
    graph: Graph,
    signature: Signature,
    memory: Arc<Memory>,
    _weights: Held,
}

impl Tract {
    /// Errors: plugin fault, naming what is wrong with the file; too large, also if one row alone needs more memory
    /// than the limit.
    pub(crate) fn open(file: &GraphFile, memory: &Arc<Memory>) -> Result<Self, Error> {
        // A file holds little beside its weights.
        let mut weights = memory.weights(file.bytes)?;
        let beside = |name: &str| {
            let known = file.beside.iter().find(|(known, _)| known == name);
            known.map(|(_, content)| content.clone()).ok_or_else(|| format!("no file {name:?}"))
        };
        let parsed = catch_unwind(AssertUnwindSafe(|| Graph::parse(&file.content, &beside)))
            .unwrap_or_else(|_| Err("tract panicked over it".to_owned()));
        let graph = parsed.map_err(Error::fault)?;
        // Computed constants may be larger than the file.
        weights.grow_to(graph.constant_bytes())?;
        graph.rehearse(&mut memory.taking(None)).map_err(|error| match error.code {
            ErrorCode::PluginFault => error.with_code(ErrorCode::TooLarge).within("one row"),
            _ => error,
        })?;
        let signature = graph.signature();
        Ok(Self { graph, signature, memory: Arc::clone(memory), _weights: weights })
    }
}

impl Backend for Tract {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn run(&self, inputs: &[Tensor], stop: &Stop) -> Result<Vec<Tensor>, Error> {
        self.graph.run_within(inputs, &mut self.memory.taking(Some(stop)))
    }

    fn run_now(&self, inputs: &[Tensor]) -> Result<Option<Vec<Tensor>>, Error> {
        self.graph.run_planned(inputs, &mut self.memory.taking(None))
    }

    fn width(&self) -> usize {
        usize::MAX
    }

    fn is_on_cpu(&self) -> bool {
        true
    }
}
