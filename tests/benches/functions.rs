//! What one prediction costs, piece by piece. Run by `cargo xtask bench functions`; compare within one run.
//!
//! - `call/…`: a one-row echo through the engine, warm and in a fresh instance: the price of the boundary and of
//!   isolation.
//! - `written/…`: a fresh instance by the bytes that the request writes.
//! - `gbdt/…`: the credit example's 100 trees, the same code native and as a component with deadlines on.
//! - `graph …`: a graph that the host evaluates for a component, and the same session called directly. Where ONNX
//!   Runtime is.
//! - `decode …`: from received bytes to tensors, in every form of the Open Inference Protocol.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_wrap,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a benchmark"
)]

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use modelhost_core::artifact::{Artifact, Digest};
use modelhost_core::budget::ByteBudget;
use modelhost_core::deployment::MemoryBudget;
use modelhost_core::error::Error;
use modelhost_core::graph::{Batching, GraphOptions};
use modelhost_core::infer::{Deadline, InferRequest};
use modelhost_core::ports::{BlobStore, BoxFuture, LoadedModel, ModelRuntime};
use modelhost_core::room::Room;
use modelhost_core::tensor::{DType, Tensor};
use modelhost_core::version::{Isolation, Limits, Package};
use modelhost_engine::{Config, Runtime};
use modelhost_protocol::oip_grpc::pb;
use modelhost_protocol::{oip_grpc, oip_rest};
use modelhost_tests::{components, root};
use ort::environment::Environment;
use ort::session::{Session, SessionInputValue};
use ort::value::TensorRef;
use prost::Message;

/// Two blobs: the component is 0, the artifact 1.
struct Files([Bytes; 2]);

impl BlobStore for Files {
    fn read<'a>(&'a self, digest: &'a Digest, _: u64) -> BoxFuture<'a, Result<Bytes, Error>> {
        let at = usize::from(*digest != blob(0));
        Box::pin(async move { Ok(self.0[at].clone()) })
    }
}

fn blob(number: u8) -> Digest {
    Digest::from_bytes([number; 32])
}

struct Model {
    tokio: tokio::runtime::Runtime,
    loaded: Arc<dyn LoadedModel>,
    _dir: tempfile::TempDir,
}

impl Model {
    fn load(
        component: &str,
        artifact: Option<&str>,
        isolation: Isolation,
        parameters: &[(&str, &str)],
    ) -> Self {
        let content = artifact.map_or_else(Vec::new, |path| fs::read(root().join(path)).unwrap());
        let name = artifact.map(|path| if path.ends_with(".onnx") { "model.onnx" } else { "model" });
        let artifacts =
            name.map(|name| Artifact { name: name.into(), digest: blob(1), bytes: content.len() as u64 });
        let package = Package {
            component: blob(0),
            artifacts: artifacts.into_iter().collect(),
            parameters: parameters.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
            columns: [].into(),
            capabilities: vec!["wasi:nn".to_owned()],
            response_cache: false,
            graphs: GraphOptions { sessions: Some(1), ..GraphOptions::default() },
            batching: Batching::NONE,
            isolation: Some(isolation),
            limits: Limits { deadline: Duration::from_secs(10), ..Limits::DEFAULT },
            examples: Vec::new(),
        };
        let dir = tempfile::tempdir().unwrap();
        let tokio =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let component = fs::read(components().join(component)).unwrap();
        let blobs = Arc::new(Files([component.into(), content.into()]));
        let runtime = Runtime::new(Config::new(dir.path().to_owned()), blobs).unwrap();
        let loaded = tokio.block_on(async {
            let memory = Arc::new(MemoryBudget::new(u64::MAX));
            tokio::spawn(async move { runtime.load(&package, None, &memory).await }).await.unwrap().unwrap()
        });
        Self { tokio, loaded, _dir: dir }
    }

    fn infer(&self, request: &Arc<InferRequest>) -> Vec<Tensor> {
        let deadline = Deadline::after(Instant::now(), Duration::from_secs(10));
        self.tokio.block_on(Arc::clone(&self.loaded).infer(Arc::clone(request), deadline)).unwrap()
    }
}

fn floats(name: &str, shape: &[u64], values: &[f32]) -> Arc<InferRequest> {
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let input = Tensor::new(name.into(), DType::Fp32, shape.to_vec(), data.into()).unwrap();
    Arc::new(InferRequest { inputs: vec![input], ..InferRequest::default() })
}

fn calls(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("call");
    let request = floats("x", &[4], &[1.0, 2.0, 3.0, 4.0]);
    for isolation in [Isolation::Instance, Isolation::Request] {
        let model = Model::load("tests/faults.wasm", None, isolation, &[]);
        group.bench_function(isolation.as_str(), |bencher| bencher.iter(|| model.infer(&request)));
    }
    group.finish();
    let mut group = criterion.benchmark_group("written");
    for isolation in [Isolation::Instance, Isolation::Request] {
        let model = Model::load("tests/faults.wasm", None, isolation, &[]);
        for kib in [4, 64, 1024] {
            // The echo writes the request into the guest, and a copy of it.
            let values = vec![1.0; kib * 1024 / 4 / 2];
            let request = floats("x", &[values.len() as u64], &values);
            let name = format!("{kib} KiB, {}", isolation.as_str());
            group.bench_function(name, |bencher| bencher.iter(|| model.infer(&request)));
        }
    }
    group.finish();
}

fn gbdt(criterion: &mut Criterion) {
    const MODEL: &str = "examples/credit-risk/xgboost/model.json";
    let native = modelhost_plugin_gbdt::parse(&fs::read(root().join(MODEL)).unwrap()).unwrap();
    let component = Model::load("runtimes/gbdt.wasm", Some(MODEL), Isolation::Instance, &[]);
    let mut group = criterion.benchmark_group("gbdt");
    for rows in [1_usize, 1000] {
        let features = native.features().len();
        let values: Vec<f32> = (0..rows * features).map(|at| (at * 7 % 11) as f32).collect();
        let request = floats("input", &[rows as u64, features as u64], &values);
        let ask = modelhost_plugin_gbdt::Ask::default();
        group.bench_function(format!("native, {rows} rows"), |bencher| {
            bencher.iter(|| native.predict(&values, &ask))
        });
        group.bench_function(format!("component, {rows} rows"), |bencher| {
            bencher.iter(|| component.infer(&request))
        });
    }
    group.finish();
}

fn session(environment: &Environment, path: &str) -> Session {
    let builder = Session::builder(environment).unwrap().with_intra_threads(1).unwrap();
    let builder = builder.with_inter_threads(1).unwrap().with_intra_op_spinning(false);
    builder.unwrap().commit_from_file(root().join(path)).unwrap()
}

/// What anyone would write who has `ort`: inputs where they lie, outputs copied to where they are wanted.
fn direct(session: &mut Session, request: &InferRequest) -> Vec<Vec<u8>> {
    let shape = |tensor: &Tensor| tensor.shape().iter().map(|size| *size as i64).collect::<Vec<_>>();
    let inputs = request.inputs.iter().map(|tensor| -> SessionInputValue<'_> {
        match tensor.dtype() {
            DType::Int64 => {
                let data: &[i64] = bytemuck::cast_slice(tensor.data());
                TensorRef::from_array_view((shape(tensor), data)).unwrap().into()
            }
            _ => {
                let data: &[f32] = bytemuck::cast_slice(tensor.data());
                TensorRef::from_array_view((shape(tensor), data)).unwrap().into()
            }
        }
    });
    let inputs: Vec<_> = inputs.collect();
    let outputs = session.run(inputs.as_slice()).unwrap();
    outputs
        .values()
        .map(|value| bytemuck::cast_slice(value.try_extract_tensor::<f32>().unwrap().1).to_vec())
        .collect()
}

/// Random tokens, all of them words.
fn sentences(count: u64, tokens: u64) -> Arc<InferRequest> {
    let tensor = |name: &str, value: &dyn Fn(u64) -> i64| {
        let data: Vec<u8> = (0..count * tokens).flat_map(|at| value(at).to_le_bytes()).collect();
        Tensor::new(name.into(), DType::Int64, vec![count, tokens], data.into()).unwrap()
    };
    let inputs =
        vec![tensor("input_ids", &|at| 1000 + at as i64 * 7919 % 20_000), tensor("attention_mask", &|_| 1)];
    Arc::new(InferRequest { inputs, ..InferRequest::default() })
}

/// The settings are the same on both sides: one thread, no spinning.
fn graphs(criterion: &mut Criterion) {
    let environment = &match modelhost_nn::environment(None) {
        Ok(environment) => environment,
        Err(why) => return println!("graph: skipped: {why}"),
    };
    let minilm = "examples/text-embedding/package/model.onnx";
    for (path, batch) in [("tests/fixtures/onnx/four.onnx", 1), (minilm, 8)] {
        if !root().join(path).exists() {
            println!("graph: skipped {path}, which its example's script makes");
            continue;
        }
        let request =
            if path == minilm { sentences(batch, 32) } else { floats("x", &[1, 4], &[0.1, 0.2, 0.3, 0.4]) };
        let name = if path == minilm { "MiniLM, 8 x 32 tokens" } else { "four numbers" };
        let mut group = criterion.benchmark_group(format!("graph: {name}"));
        let mut session = session(environment, path);
        group.bench_function("direct", |bencher| bencher.iter(|| direct(&mut session, &request)));
        for isolation in [Isolation::Instance, Isolation::Request] {
            let model = Model::load("runtimes/onnx.wasm", Some(path), isolation, &[]);
            group.bench_function(format!("component, {}", isolation.as_str()), |bencher| {
                bencher.iter(|| model.infer(&request))
            });
        }
        if path != minilm {
            let model = Model::load("runtimes/onnx-sandboxed.wasm", Some(path), Isolation::Request, &[]);
            group.bench_function("sandboxed, request", |bencher| bencher.iter(|| model.infer(&request)));
        }
        group.finish();
    }
}

/// A 1,000 x 30 FP32 request in every form, from the received bytes to tensors. `copy` is what memory can do.
fn decode(criterion: &mut Criterion) {
    let values: Vec<f32> = (0..30_000_u16).map(|at| f32::from(at) * 0.731 - 9000.0).collect();
    let raw = Bytes::from_iter(values.iter().flat_map(|value| value.to_le_bytes()));
    let texts: Vec<String> = values.iter().map(|value| format!("{value:.6}")).collect();
    let input = r#""name":"x","shape":[1000,30],"datatype":"FP32""#;
    let json = Bytes::from(format!(r#"{{"inputs":[{{{input},"data":[{}]}}]}}"#, texts.join(",")));
    let head = format!(r#"{{"inputs":[{{{input},"parameters":{{"binary_data_size":{}}}}}]}}"#, raw.len());
    let binary = Bytes::from([head.as_bytes(), &raw].concat());
    let message = |contents, raw_input_contents| pb::ModelInferRequest {
        inputs: vec![pb::model_infer_request::InferInputTensor {
            name: "x".into(),
            datatype: "FP32".into(),
            shape: vec![1000, 30],
            contents,
            ..Default::default()
        }],
        raw_input_contents,
        ..Default::default()
    };
    let typed = pb::InferTensorContents { fp32_contents: values, ..Default::default() };
    let typed = Bytes::from(message(Some(typed), Vec::new()).encode_to_vec());
    let untyped = Bytes::from(message(None, vec![raw.clone()]).encode_to_vec());

    let budget = ByteBudget::new("a deployment", 1 << 30);
    let mut group = criterion.benchmark_group("decode 1000 x 30");
    group.throughput(Throughput::Bytes(raw.len() as u64));
    let room = || Room::of(budget.charge());
    group.bench_function("copy", |bencher| bencher.iter(|| raw.to_vec()));
    group.bench_function("binary REST", |bencher| {
        bencher.iter(|| oip_rest::decode(&binary, head.len(), &room()).unwrap());
    });
    let grpc = |body: &Bytes| {
        oip_grpc::decode(pb::ModelInferRequest::decode(body.clone()).unwrap(), &room()).unwrap()
    };
    group.bench_function("gRPC, raw", |bencher| bencher.iter(|| grpc(&untyped)));
    group.bench_function("gRPC, typed", |bencher| bencher.iter(|| grpc(&typed)));
    // Of the text, not of the tensor.
    group.throughput(Throughput::Bytes(json.len() as u64));
    group.bench_function("JSON", |bencher| {
        bencher.iter(|| oip_rest::decode(&json, json.len(), &room()).unwrap())
    });
    group.finish();
}

criterion_group!(benches, calls, gbdt, graphs, decode);
criterion_main!(benches);
