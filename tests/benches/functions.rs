//! What one prediction costs, piece by piece. Run by `cargo xtask bench functions`; compare within one run.
//!
//! - `call/…`: a one-row echo through the engine, warm and in a fresh instance: the price of the boundary and of isolation.
//! - `written/…`: a fresh instance by the bytes that the request writes.
//! - `gbdt/…`: the credit example's 100 trees, the same code native and as a component with deadlines on.
//! - `json/…`: decoding 1,000 x 30 FP32, bytes per second.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a benchmark"
)]

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use modelhost_core::artifact::{Artifact, Digest};
use modelhost_core::deployment::{Isolation, Limits, Package};
use modelhost_core::error::Error;
use modelhost_core::infer::{Deadline, InferRequest};
use modelhost_core::ports::{BlobStore, BoxFuture, LoadedModel, ModelRuntime};
use modelhost_core::tensor::{DType, Tensor};
use modelhost_engine::{Config, Runtime};
use modelhost_tests::{components, root};

/// Two blobs: the component is 0, the artifact 1.
struct Files([bytes::Bytes; 2]);

impl BlobStore for Files {
    fn read<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<bytes::Bytes, Error>> {
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
        let component = fs::read(components().join(component)).unwrap();
        let content = artifact.map_or_else(Vec::new, |path| fs::read(root().join(path)).unwrap());
        let artifacts =
            artifact.map(|_| Artifact { name: "model".into(), digest: blob(1), bytes: content.len() as u64 });
        let package = Package {
            component: blob(0),
            artifacts: artifacts.into_iter().collect(),
            parameters: parameters.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
            columns: Vec::new(),
            capabilities: Vec::new(),
            isolation: Some(isolation),
            limits: Limits::DEFAULT,
            examples: Vec::new(),
        };
        let dir = tempfile::tempdir().unwrap();
        let tokio =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let blobs = Arc::new(Files([component.into(), content.into()]));
        let runtime = Runtime::new(Config::new(dir.path().to_owned()), blobs).unwrap();
        let loaded = tokio.block_on(async {
            tokio::spawn(async move { runtime.load(&package, None).await }).await.unwrap().unwrap()
        });
        Self { tokio, loaded, _dir: dir }
    }

    fn infer(&self, request: &InferRequest) -> Vec<Tensor> {
        let deadline = Deadline::after(Instant::now(), Duration::from_secs(10));
        self.tokio.block_on(self.loaded.infer(request, deadline)).unwrap()
    }
}

fn floats(name: &str, shape: &[u64], values: &[f32]) -> InferRequest {
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let input = Tensor::new(name.into(), DType::Fp32, shape.to_vec(), data.into()).unwrap();
    InferRequest { inputs: vec![input], ..InferRequest::default() }
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
        let values: Vec<f32> = (0..rows * native.features()).map(|at| (at * 7 % 11) as f32).collect();
        let request = floats("input", &[rows as u64, native.features() as u64], &values);
        group.bench_function(format!("native, {rows} rows"), |bencher| {
            bencher.iter(|| native.predict(&values))
        });
        group.bench_function(format!("component, {rows} rows"), |bencher| {
            bencher.iter(|| component.infer(&request))
        });
    }
    group.finish();
}

fn json(criterion: &mut Criterion) {
    let values: Vec<String> =
        (0..30_000).map(|at| format!("{:.6}", f64::from(at) * 0.731 - 9000.0)).collect();
    let body = format!(
        r#"{{"inputs":[{{"name":"x","shape":[1000,30],"datatype":"FP32","data":[{}]}}]}}"#,
        values.join(",")
    );
    let mut group = criterion.benchmark_group("json");
    group.throughput(Throughput::Bytes(body.len() as u64));
    group.bench_function("decode 1000 x 30", |bencher| {
        bencher.iter(|| modelhost_protocol::oip_rest::decode(body.as_bytes()).unwrap());
    });
    group.finish();
}

criterion_group!(benches, calls, gbdt, json);
criterion_main!(benches);
