//! Serves any ONNX graph that tract can evaluate, inside the sandbox. No native code touches the model. Equal requests
//! get equal bytes on every machine.
//!
//! The signature is the graph's. `[parameters] model` names the graph's artifact. By default it is the first one.

use modelhost_core::error::ErrorCode;
use modelhost_core::tensor::{DType, Tensor as Value, TensorSpec as Spec};
use modelhost_onnx::Graph;
use modelhost_sdk::{Config, Datatype, Error, Model, Request, Signature, Tensor, TensorSpec, artifact};

/// A graph, and the names of its inputs in the graph's order.
pub struct Onnx {
    graph: Graph,
    inputs: Vec<String>,
}

impl Model for Onnx {
    fn load(config: &Config) -> Result<(Self, Signature), Error> {
        let name = config.model_file()?;
        let beside = |name: &str| artifact(name).map(Into::into).map_err(|error| error.to_string());
        let graph =
            Graph::parse(&artifact(&name)?, &beside).map_err(|why| Error::Model(format!("{name}: {why}")))?;
        let signature = graph.signature();
        let specs = |specs: &[Spec]| specs.iter().map(spec).collect();
        let inputs = signature.inputs.iter().map(|spec| spec.name.clone()).collect();
        let signature = Signature { inputs: specs(&signature.inputs), outputs: specs(&signature.outputs) };
        Ok((Self { graph, inputs }, signature))
    }

    fn infer(&self, request: &Request) -> Result<Vec<Tensor>, Error> {
        let inputs = self.inputs.iter().map(|name| value(request.input(name)?));
        let outputs = self.graph.run(&inputs.collect::<Result<Vec<_>, _>>()?).map_err(error)?;
        Ok(outputs.iter().map(tensor).collect())
    }
}

fn spec(spec: &Spec) -> TensorSpec {
    TensorSpec::new(&spec.name, datatype(spec.dtype), &spec.wire_shape())
}

fn value(tensor: &Tensor) -> Result<Value, Error> {
    let Tensor { name, datatype, shape, data } = tensor.clone();
    Value::new(name, dtype(datatype), shape, data.into()).map_err(error)
}

fn tensor(value: &Value) -> Tensor {
    Tensor {
        name: value.name().to_owned(),
        datatype: datatype(value.dtype()),
        shape: value.shape().to_vec(),
        data: value.data().to_vec(),
    }
}

fn error(error: modelhost_core::error::Error) -> Error {
    match error.code {
        ErrorCode::InvalidArgument => Error::InvalidInput(error.message),
        _ => Error::Model(error.message),
    }
}

/// Converts a datatype of the host's types to the contract's.
fn datatype(dtype: DType) -> Datatype {
    DATATYPES.iter().find(|(known, _)| *known == dtype).map_or(Datatype::Bytes, |(_, datatype)| *datatype)
}

fn dtype(datatype: Datatype) -> DType {
    DATATYPES.iter().find(|(_, known)| *known == datatype).map_or(DType::Bytes, |(dtype, _)| *dtype)
}

const DATATYPES: [(DType, Datatype); 13] = [
    (DType::Bool, Datatype::Bool),
    (DType::Uint8, Datatype::Uint8),
    (DType::Uint16, Datatype::Uint16),
    (DType::Uint32, Datatype::Uint32),
    (DType::Uint64, Datatype::Uint64),
    (DType::Int8, Datatype::Int8),
    (DType::Int16, Datatype::Int16),
    (DType::Int32, Datatype::Int32),
    (DType::Int64, Datatype::Int64),
    (DType::Fp16, Datatype::Fp16),
    (DType::Bf16, Datatype::Bf16),
    (DType::Fp32, Datatype::Fp32),
    (DType::Fp64, Datatype::Fp64),
];

#[cfg(target_family = "wasm")]
modelhost_sdk::export!(Onnx);
