//! A guest that misbehaves as its manifest's `fault` parameter says; `echo`, `count`, `rows` and `large` behave.

use std::cell::Cell;
use std::time::{Duration, Instant};

use modelhost_sdk::{
    Column, Config, Datatype, Error, Level, Model, Request, Signature, Tensor, TensorSpec, artifact, log,
};

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
            "load-sleeps" => std::thread::sleep(DAY),
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
            inputs: inputs(config, datatype),
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
            "fail-in-two-lines" => return Err(Error::Model(format!("{FORGED}{}", "x".repeat(1 << 20)))),
            "panic-in-two-lines" => panic!("{FORGED}"),
            "log-two-lines" => log(Level::Info, FORGED),
            "empty-rows" => (y.shape, y.data) = (vec![1 << 42, 0], vec![]),
            "huge-rank" => y.shape = vec![1; 10_000],
            "many-outputs" => return Ok(vec![y; 80_000]),
            "long-name" => y.name = "y".repeat(1 << 20),
            // Whatever the request's bytes spell.
            "say" => return Ok(Said(&x.data).list(Said::tensor)),
            // How long it slept, by its own clock: not at all.
            "sleep" => y = Tensor::from_values("y", &[1], &[sleep().as_secs_f32()]),
            // Survives what the first call asks too much of, and fails the second for another reason.
            "grow-then-panic" if self.calls.replace(1) == 1 => panic!("it panics as told"),
            "grow-then-panic" => drop(Vec::<u8>::new().try_reserve_exact(1 << 30)),
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

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A line that looks like one of the host's own.
const FORGED: &str = "all is well\n2026-01-01T00:00:00Z ERROR forged";

/// As many as `inputs` says, of as many dimensions as `rank` says, each of `dim`; the first is named `name` and has
/// `columns` columns.
fn inputs(config: &Config, datatype: Datatype) -> Vec<TensorSpec> {
    let number = |name: &str, usual: i64| config.parameter(name).map_or(usual, |text| text.parse().unwrap());
    let name = config.parameter("name").unwrap_or("x").replace("\\n", "\n");
    let shape = vec![number("dim", -1); number("rank", 1) as usize];
    let columns: Vec<_> = (0..number("columns", 0)).map(|at| Column::numeric(&at.to_string())).collect();
    let first = TensorSpec { columns, ..TensorSpec::new(&name, datatype, &shape) };
    let others = (1..number("inputs", 1)).map(|at| TensorSpec::new(&format!("x{at}"), datatype, &shape));
    std::iter::once(first).chain(others).collect()
}

fn sleep() -> Duration {
    let start = Instant::now();
    std::thread::sleep(DAY);
    start.elapsed()
}

/// What is left of the bytes that spell an answer; zeros follow them.
struct Said<'a>(&'a [u8]);

impl Said<'_> {
    fn byte(&mut self) -> u8 {
        self.0.split_off_first().copied().unwrap_or_default()
    }

    fn list<T>(&mut self, mut one: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.byte()).map(|_| one(self)).collect()
    }

    fn tensor(&mut self) -> Tensor {
        let name = String::from_utf8_lossy(&self.list(Self::byte)).into_owned();
        let datatype =
            [Datatype::Uint8, Datatype::Fp32, Datatype::Bytes, Datatype::Bool][self.byte() as usize % 4];
        // Small dimensions, and powers of two.
        let dim = |said: &mut Self| match said.byte() {
            small @ 0..64 => small.into(),
            power => 1 << (power % 64),
        };
        Tensor { name, datatype, shape: self.list(dim), data: self.list(Self::byte) }
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
