//! A guest that knows the standard's `wasi:nn` alone: it answers with the graph `mlp.onnx`, loaded as the request's
//! parameter `how` says, or with what the interface says against it.

use modelhost_sdk::nn::errors::Error as NnError;
use modelhost_sdk::nn::graph::{ExecutionTarget, Graph, GraphEncoding, load, load_by_name};
use modelhost_sdk::nn::tensor::{Tensor as NnTensor, TensorType};
use modelhost_sdk::{Config, Datatype, Error, Model, Request, Signature, Tensor, TensorSpec, artifact};

/// The guest.
pub struct Standard {
    /// A file that the host did not open.
    file: Vec<u8>,
}

impl Model for Standard {
    fn load(_config: &Config) -> Result<(Self, Signature), Error> {
        let signature = Signature {
            inputs: vec![TensorSpec::new("x", Datatype::Fp32, &[-1, 8])],
            outputs: vec![TensorSpec::new("p", Datatype::Fp32, &[-1, 3])],
        };
        Ok((Self { file: artifact("graph.bin")? }, signature))
    }

    fn infer(&self, request: &Request) -> Result<Vec<Tensor>, Error> {
        let how = request.parameters.iter().find(|(name, _)| name == "how");
        let how = how.map_or("named", |(_, value)| value.as_str());
        let x = request.input("x")?;
        let rows = u32::try_from(*x.shape.first().unwrap_or(&0)).unwrap_or(u32::MAX);
        let (name, ty, rows) = match how {
            "wrong name" => ("y", TensorType::Fp32, rows),
            "wrong type" => ("x", TensorType::I32, rows),
            "wrong size" => ("x", TensorType::Fp32, rows + 1),
            _ => ("x", TensorType::Fp32, rows),
        };
        if how == "keeps tensors" {
            let kept: Vec<_> =
                (0..1000).map(|_| NnTensor::new(&[1 << 20], TensorType::U8, &[0; 1 << 20])).collect();
            return Err(Error::Model(format!("the host keeps {} MiB", kept.len())));
        }
        let input = NnTensor::new(&[rows, 8], ty, &x.data);
        let context = self.graph(how)?.init_execution_context().map_err(said)?;
        let outputs = context.compute(vec![(name.to_owned(), input)]).map_err(said)?;
        let (_, p) = outputs
            .into_iter()
            .find(|(name, _)| name == "p")
            .ok_or_else(|| Error::Model("no output p".into()))?;
        let shape = p.dimensions().into_iter().map(u64::from).collect();
        Ok(vec![Tensor { name: "p".into(), datatype: Datatype::Fp32, shape, data: p.data() }])
    }
}

impl Standard {
    fn graph(&self, how: &str) -> Result<Graph, Error> {
        let (cpu, onnx) = (ExecutionTarget::Cpu, GraphEncoding::Onnx);
        let bytes = |from: usize| vec![self.file.iter().skip(from).copied().collect()];
        match how {
            "bytes" => load(&bytes(0), onnx, cpu),
            "truncated" => load(&bytes(100), onnx, cpu),
            "gpu" => load(&bytes(0), onnx, ExecutionTarget::Gpu),
            "tensorflow" => load(&bytes(0), GraphEncoding::Tensorflow, cpu),
            "absent" => load_by_name("absent"),
            _ => load_by_name("mlp"),
        }
        .map_err(said)
    }
}

fn said(error: NnError) -> Error {
    Error::Model(format!("{:?}: {}", error.code(), error.data()))
}

#[cfg(target_family = "wasm")]
modelhost_sdk::export!(Standard);
