//! The host functions for graphs: `wasi:nn`, and our interface for what that lacks.
//!
//! A tensor is copied once out of the guest's memory, and the graph reads that copy. The guest cannot help deadlines,
//! exhausted bounds and failures of the host. These end the call and never reach the guest, so that the plugin is not
//! blamed.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::graph::Target;
use modelhost_core::tensor::{self, DType, check_name};
use modelhost_nn::Graphs;
use wasmtime::component::{Resource, ResourceTable};

use crate::bindings::modelhost::inference::{graphs, types};
use crate::bindings::wasi::nn;
use crate::bindings::wasi::nn::errors::ErrorCode as NnCode;
use crate::bindings::wasi::nn::graph::{ExecutionTarget, GraphEncoding};
use crate::bindings::wasi::nn::tensor::TensorType;
use crate::convert;
use crate::fault::DeadlinePassed;
use crate::limits::{COUNTED_BYTES, counted};
use crate::state::State;

use held::{Context, Graph, NnError, Tensor};

/// Most handles of an instance at once.
pub(crate) const MAX_HANDLES: usize = 4096;

/// The version's graphs, and the handles of one instance.
pub(crate) struct GraphState {
    graphs: Option<Arc<Graphs>>,
    /// Made with the guest's first handle.
    table: Option<Box<ResourceTable>>,
}

pub(crate) mod held {
    //! What handles stand for. It is public for the generated bindings.

    #![allow(unreachable_pub, reason = "nothing outside the engine sees them")]

    use std::sync::Arc;

    use modelhost_core::{error, tensor};

    /// An unnamed tensor. It is counted as long as the guest has it.
    pub struct Tensor(pub(super) tensor::Tensor, pub(super) modelhost_nn::Held);

    /// A graph.
    #[derive(Clone)]
    pub struct Graph(pub(super) Arc<modelhost_nn::Graph>);

    /// A graph's evaluation.
    pub struct Context(pub(super) Graph);

    /// An error.
    pub struct NnError(pub(super) error::Error);
}

impl GraphState {
    pub(crate) fn new(graphs: Option<Arc<Graphs>>) -> Self {
        Self { graphs, table: None }
    }

    fn graphs(&self) -> Result<&Arc<Graphs>, Error> {
        self.graphs.as_ref().ok_or_else(|| {
            Error::not_found("this version has no graphs: its manifest names no artifact that ends in .onnx")
        })
    }

    /// Gives the guest a tensor, within the version's limit.
    fn push(&mut self, tensor: tensor::Tensor) -> wasmtime::Result<Resource<Tensor>> {
        let held = self.graphs()?.hold(&tensor)?;
        Ok(self.table().push(Tensor(tensor, held))?)
    }

    fn table(&mut self) -> &mut ResourceTable {
        self.table.get_or_insert_with(|| {
            let mut table = ResourceTable::new();
            table.set_max_capacity(MAX_HANDLES);
            Box::new(table)
        })
    }
}

/// Passes an error on to the guest, unless it ends the call.
fn told(error: Error) -> wasmtime::Result<Error> {
    match error.code {
        ErrorCode::DeadlineExceeded => Err(DeadlinePassed.into()),
        ErrorCode::ResourceExhausted | ErrorCode::Unavailable | ErrorCode::Internal => {
            Err(wasmtime::Error::new(error))
        }
        _ => Ok(error),
    }
}

impl State {
    fn nn_error<T>(&mut self, error: Error) -> wasmtime::Result<Result<T, Resource<NnError>>> {
        let error = told(error)?;
        Ok(Err(self.graphs.table().push(NnError(error))?))
    }

    fn graph(&self, name: &str) -> Result<Arc<modelhost_nn::Graph>, Error> {
        check_name(name)?;
        self.graphs.graphs()?.by_name(name)
    }

    /// Evaluates a graph within the guest's deadline. The time counts as the guest's.
    async fn compute(
        &mut self,
        graph: &modelhost_nn::Graph,
        inputs: Vec<tensor::Tensor>,
    ) -> Result<Vec<tensor::Tensor>, Error> {
        let start = Instant::now();
        let result = graph.compute(inputs, self.stop.at(start)).await;
        self.stop.spend(start.elapsed());
        result
    }
}

impl nn::tensor::Host for State {}

impl nn::tensor::HostTensor for State {
    fn new(
        &mut self,
        dimensions: Vec<u32>,
        ty: TensorType,
        data: Vec<u8>,
    ) -> wasmtime::Result<Resource<Tensor>> {
        let shape = dimensions.into_iter().map(u64::from).collect();
        let data =
            if data.len() < COUNTED_BYTES { data.into() } else { counted(data, self.memory.budget())? };
        self.graphs.push(tensor::Tensor::new(String::new(), dtype(ty), shape, data)?)
    }

    fn dimensions(&mut self, tensor: Resource<Tensor>) -> wasmtime::Result<Vec<u32>> {
        let shape = self.graphs.table().get(&tensor)?.0.shape();
        Ok(shape.iter().map(|size| u32::try_from(*size).unwrap_or(u32::MAX)).collect())
    }

    fn ty(&mut self, tensor: Resource<Tensor>) -> wasmtime::Result<TensorType> {
        let dtype = self.graphs.table().get(&tensor)?.0.dtype();
        tensor_type(dtype).ok_or_else(|| wasmtime::format_err!("wasi:nn has no name for {dtype}"))
    }

    fn data(&mut self, tensor: Resource<Tensor>) -> wasmtime::Result<Vec<u8>> {
        let tensor = &self.graphs.table().get(&tensor)?.0;
        self.memory.lend(tensor.data().len())?;
        Ok(tensor.data().to_vec())
    }

    fn drop(&mut self, tensor: Resource<Tensor>) -> wasmtime::Result<()> {
        self.graphs.table().delete(tensor)?;
        Ok(())
    }
}

impl nn::graph::Host for State {
    async fn load(
        &mut self,
        mut builders: Vec<Vec<u8>>,
        encoding: GraphEncoding,
        target: ExecutionTarget,
    ) -> wasmtime::Result<Result<Resource<Graph>, Resource<NnError>>> {
        let loaded = match (encoding, builders.len()) {
            (GraphEncoding::Onnx | GraphEncoding::Autodetect, 1) => {
                let file = Bytes::from(builders.swap_remove(0));
                let until = self.stop.at(Instant::now());
                match self.graphs.graphs().cloned() {
                    Ok(graphs) => load(graphs, file, target, until).await,
                    Err(error) => Err(error),
                }
            }
            (GraphEncoding::Onnx | GraphEncoding::Autodetect, count) => {
                Err(Error::invalid(format!("load: an ONNX graph is one builder, {count} came")))
            }
            (other, _) => {
                Err(Error::new(ErrorCode::UnsupportedFormat, format!("load: encoding {other:?} is not onnx")))
            }
        };
        match loaded {
            Ok(graph) => Ok(Ok(self.graphs.table().push(graph)?)),
            Err(error) => self.nn_error(error),
        }
    }

    fn load_by_name(&mut self, name: String) -> wasmtime::Result<Result<Resource<Graph>, Resource<NnError>>> {
        match self.graph(&name) {
            Ok(graph) => Ok(Ok(self.graphs.table().push(Graph(graph))?)),
            Err(error) => self.nn_error(error),
        }
    }
}

async fn load(
    graphs: Arc<Graphs>,
    file: Bytes,
    target: ExecutionTarget,
    until: Instant,
) -> Result<Graph, Error> {
    let target = match target {
        ExecutionTarget::Cpu => Target::Cpu,
        ExecutionTarget::Gpu => Target::Gpu,
        ExecutionTarget::Tpu => {
            return Err(Error::new(ErrorCode::Unsupported, "load: this host has no TPU"));
        }
    };
    let loaded = graphs.load(file, target, until).await.map_err(|error| error.within("load"))?;
    Ok(Graph(Arc::new(loaded)))
}

impl nn::graph::HostGraph for State {
    fn init_execution_context(
        &mut self,
        graph: Resource<Graph>,
    ) -> wasmtime::Result<Result<Resource<Context>, Resource<NnError>>> {
        let graph = self.graphs.table().get(&graph)?.clone();
        Ok(Ok(self.graphs.table().push(Context(graph))?))
    }

    fn drop(&mut self, graph: Resource<Graph>) -> wasmtime::Result<()> {
        self.graphs.table().delete(graph)?;
        Ok(())
    }
}

impl nn::inference::Host for State {}

impl nn::inference::HostGraphExecutionContext for State {
    async fn compute(
        &mut self,
        context: Resource<Context>,
        inputs: Vec<(String, Resource<Tensor>)>,
    ) -> wasmtime::Result<Result<Vec<(String, Resource<Tensor>)>, Resource<NnError>>> {
        let table = self.graphs.table();
        let Context(Graph(graph)) = table.get(&context)?;
        let graph = Arc::clone(graph);
        let mut tensors = Vec::with_capacity(inputs.len());
        for (name, tensor) in inputs {
            check_name(&name)?;
            let Tensor(tensor, _held) = table.delete(tensor)?;
            tensors.push(tensor.named(name));
        }
        match State::compute(self, &graph, tensors).await {
            Ok(outputs) => {
                let outputs = outputs.into_iter().map(|output| {
                    let name = output.name().to_owned();
                    Ok((name, self.graphs.push(output)?))
                });
                Ok(Ok(outputs.collect::<wasmtime::Result<_>>()?))
            }
            Err(error) => self.nn_error(error),
        }
    }

    fn drop(&mut self, context: Resource<Context>) -> wasmtime::Result<()> {
        self.graphs.table().delete(context)?;
        Ok(())
    }
}

impl nn::errors::Host for State {}

impl nn::errors::HostError for State {
    fn code(&mut self, error: Resource<NnError>) -> wasmtime::Result<NnCode> {
        Ok(match self.graphs.table().get(&error)?.0.code {
            ErrorCode::InvalidArgument => NnCode::InvalidArgument,
            ErrorCode::UnsupportedFormat => NnCode::InvalidEncoding,
            ErrorCode::DeadlineExceeded => NnCode::Timeout,
            ErrorCode::PluginFault => NnCode::RuntimeError,
            ErrorCode::Unsupported => NnCode::UnsupportedOperation,
            ErrorCode::TooLarge => NnCode::TooLarge,
            ErrorCode::NotFound => NnCode::NotFound,
            ErrorCode::Conflict
            | ErrorCode::PermissionDenied
            | ErrorCode::ResourceExhausted
            | ErrorCode::Unavailable
            | ErrorCode::Internal => NnCode::Unknown,
        })
    }

    fn data(&mut self, error: Resource<NnError>) -> wasmtime::Result<String> {
        Ok(self.graphs.table().get(&error)?.0.message.clone())
    }

    fn drop(&mut self, error: Resource<NnError>) -> wasmtime::Result<()> {
        self.graphs.table().delete(error)?;
        Ok(())
    }
}

impl graphs::Host for State {
    fn describe(&mut self, name: String) -> Result<graphs::Signature, types::Error> {
        let graph = self.graph(&name);
        graph.map(|graph| convert::guests_signature(graph.signature())).map_err(convert::guests_error)
    }

    async fn compute(
        &mut self,
        name: String,
        inputs: Vec<types::TensorResult>,
        outputs: Vec<String>,
    ) -> wasmtime::Result<Result<Vec<types::TensorResult>, types::Error>> {
        let graph = self.graph(&name);
        let inputs = convert::tensors(inputs, self.memory.budget());
        let computed = match graph.and_then(|graph| Ok((graph, inputs?))) {
            Ok((graph, inputs)) => State::compute(self, &graph, inputs).await,
            Err(error) => Err(error),
        };
        match computed {
            Ok(mut computed) => {
                let names: HashSet<_> = outputs.iter().map(String::as_str).collect();
                computed.retain(|output| names.is_empty() || names.contains(output.name()));
                self.memory.lend(computed.iter().map(|output| output.data().len()).sum())?;
                Ok(Ok(computed.into_iter().map(convert::guests_tensor).collect()))
            }
            Err(error) => Ok(Err(convert::guests_error(told(error)?))),
        }
    }
}

fn dtype(ty: TensorType) -> DType {
    match ty {
        TensorType::Fp16 => DType::Fp16,
        TensorType::Fp32 => DType::Fp32,
        TensorType::Fp64 => DType::Fp64,
        TensorType::Bf16 => DType::Bf16,
        TensorType::U8 => DType::Uint8,
        TensorType::I32 => DType::Int32,
        TensorType::I64 => DType::Int64,
    }
}

fn tensor_type(dtype: DType) -> Option<TensorType> {
    Some(match dtype {
        DType::Fp16 => TensorType::Fp16,
        DType::Fp32 => TensorType::Fp32,
        DType::Fp64 => TensorType::Fp64,
        DType::Bf16 => TensorType::Bf16,
        DType::Uint8 => TensorType::U8,
        DType::Int32 => TensorType::I32,
        DType::Int64 => TensorType::I64,
        DType::Bool
        | DType::Uint16
        | DType::Uint32
        | DType::Uint64
        | DType::Int8
        | DType::Int16
        | DType::Bytes => return None,
    })
}
