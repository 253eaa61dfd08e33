//! A guest that misbehaves as its manifest's `fault` parameter says; `echo`, `count`, `rows` and `large` behave.

use std::cell::Cell;

use modelhost_sdk::{Config, Datatype, Error, Model, Request, Signature, Tensor, TensorSpec, artifact};

struct Faults {
    fault: String,
    calls: Cell<u64>,
    weights: Vec<u8>,
}

impl Model for Faults {
    fn load(config: &Config) -> Result<(Self, Signature), Error> {
        let fault = config.parameter("fault").unwrap_or("echo").to_owned();
        let datatype = datatype(config.parameter("datatype").unwrap_or("FP32"));
        match fault.as_str() {
            "load-panics" => panic!("load panics as told"),
            "load-fails" => return Err(Error::Model("the artifact is not a model".into())),
            "load-spins" => spin(),
            "load-missing-artifact" => drop(artifact("nowhere.bin")?),
            "load-bad-signature" => {
                return Ok((
                    Self { fault, calls: Cell::new(0), weights: vec![] },
                    Signature { inputs: vec![], outputs: vec![] },
                ));
            }
            _ => {}
        }
        let signature = Signature {
            inputs: vec![TensorSpec::new("x", datatype, &[-1])],
            outputs: vec![TensorSpec::new("y", datatype, &[-1])],
        };
        let weights = vec![0; if fault == "large" { 160 << 20 } else { 0 }];
        Ok((Self { fault, calls: Cell::new(0), weights }, signature))
    }

    fn infer(&self, request: &Request) -> Result<Vec<Tensor>, Error> {
        let x = request.input("x")?;
        let mut y = Tensor { name: "y".into(), ..x.clone() };
        match self.fault.as_str() {
            "spin" => spin(),
            "panic" => panic!("it panics as told"),
            "overflow-stack" => y.data.push(recurse(1) as u8),
            "grow-memory" => y.data = grow(),
            "read-out-of-bounds" => y.data.push(x.data[x.data.len()]),
            "wrong-shape" => y.shape = vec![y.shape[0], 1],
            "wrong-length" => y.data.push(0),
            "wrong-datatype" => y.datatype = Datatype::Int32,
            "wrong-name" => y.name = "z".into(),
            "no-output" => return Ok(vec![]),
            "refuse-input" => return Err(Error::InvalidInput("x must be positive".into())),
            "fail" => return Err(Error::Model("its weights are not numbers".into())),
            // Work that ends by itself, its length given in millions of steps.
            "slow" => y.data[0] ^= u8::from(busy(x.values::<f32>()?.first().copied().unwrap_or(1.0)) == 0),
            "count" => {
                self.calls.set(self.calls.get() + 1);
                let counts = vec![self.calls.get() as f32; x.shape[0] as usize];
                y = Tensor::from_values("y", &x.shape, &counts);
            }
            // How many rows came together.
            "large" => y.data.fill(self.weights[self.weights.len() / 2]),
            "rows" => y = Tensor::from_values("y", &x.shape, &vec![x.shape[0] as f32; x.shape[0] as usize]),
            _ => {}
        }
        Ok(vec![y])
    }
}

fn datatype(name: &str) -> Datatype {
    match name {
        "BOOL" => Datatype::Bool,
        "UINT8" => Datatype::Uint8,
        "UINT16" => Datatype::Uint16,
        "UINT32" => Datatype::Uint32,
        "UINT64" => Datatype::Uint64,
        "INT8" => Datatype::Int8,
        "INT16" => Datatype::Int16,
        "INT32" => Datatype::Int32,
        "INT64" => Datatype::Int64,
        "FP16" => Datatype::Fp16,
        "BF16" => Datatype::Bf16,
        "FP64" => Datatype::Fp64,
        "BYTES" => Datatype::Bytes,
        _ => Datatype::Fp32,
    }
}

fn spin() -> ! {
    loop {
        std::hint::black_box(0);
    }
}

/// Needs little of the stack in linear memory, so that the call stack ends first.
#[expect(unconditional_recursion, reason = "that is the fault")]
fn recurse(depth: u64) -> u64 {
    1 + recurse(std::hint::black_box(depth + 1))
}

fn grow() -> Vec<u8> {
    let mut blocks = Vec::new();
    loop {
        blocks.push(std::hint::black_box(vec![1_u8; 1 << 20]));
    }
}

/// A sequence that only computing it tells (Knuth's MMIX generator).
fn busy(millions: f32) -> u64 {
    let step = |state: u64, step: u64| state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(step);
    (0..(millions * 1e6) as u64).fold(1, step)
}

modelhost_sdk::export!(Faults);
