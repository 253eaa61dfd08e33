//! Test doubles of the engine and of telemetry: a runtime whose loads end on command, models that echo, and recorders
//! that count.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use modelhost_core::artifact::Digest;
use modelhost_core::deployment::{Bounds, DeploymentName, MemoryBudget};
use modelhost_core::error::Error;
use modelhost_core::event::{Agreement, Comparison, Prediction, Statistics};
use modelhost_core::graph::{Batching, GraphOptions};
use modelhost_core::infer::{Deadline, InferRequest};
use modelhost_core::model::{ModelName, ModelVersion, Signature};
use modelhost_core::ports::{BoxFuture, Footprint, LoadedModel, ModelRuntime, Recorder};
use modelhost_core::tensor::Tensor;
use modelhost_core::version::{Card, Isolation, Limits, LoadReport, Package, Version};
use tokio::sync::Semaphore;

use crate::pool::{Places, Pool};
use crate::residence::Ready;
use crate::slot::Slot;

/// Echoes its inputs once `leave` has a permit.
pub(crate) struct Echo {
    report: LoadReport,
    pub(crate) bytes: AtomicU64,
    pub(crate) leave: Semaphore,
}

impl LoadedModel for Echo {
    fn report(&self) -> &LoadReport {
        &self.report
    }

    fn infer(
        self: Arc<Self>,
        request: Arc<InferRequest>,
        _deadline: Deadline,
    ) -> BoxFuture<'static, Result<Vec<Tensor>, Error>> {
        Box::pin(async move {
            self.leave.acquire().await.map_err(|_| Error::internal("closed"))?.forget();
            Ok(request.inputs.clone())
        })
    }

    fn footprint(&self) -> Footprint {
        Footprint { bytes: self.bytes.load(Ordering::Relaxed), ..Footprint::default() }
    }

    fn shrink(&self, _idle: Duration) {}

    fn rest(&self) {}
}

pub(crate) fn echo(bytes: u64) -> Arc<Echo> {
    let (bytes, leave) = (AtomicU64::new(bytes), Semaphore::new(Semaphore::MAX_PERMITS));
    Arc::new(Echo { report: report(), bytes, leave })
}

pub(crate) fn ready() -> Ready {
    echo(1)
}

fn report() -> LoadReport {
    LoadReport { signature: Signature::default(), isolation: Isolation::Instance, isolation_note: None }
}

/// A load ends once `end` has a permit.
pub(crate) struct Runtime {
    pub(crate) begun: Semaphore,
    pub(crate) end: Semaphore,
    /// The results of the next loads, the last one first. After them, loads give a model of one byte.
    pub(crate) results: Mutex<Vec<Result<Arc<Echo>, Error>>>,
    /// Makes the next load panic.
    pub(crate) panics: AtomicBool,
}

impl Runtime {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            begun: Semaphore::new(0),
            end: Semaphore::new(0),
            results: Mutex::default(),
            panics: AtomicBool::new(false),
        })
    }

    /// A runtime whose loads end at once.
    pub(crate) fn quick() -> Arc<Self> {
        let runtime = Self::new();
        runtime.end.add_permits(1000);
        runtime
    }

    /// Waits until one more load has begun.
    pub(crate) async fn begins(&self) {
        self.begun.acquire().await.unwrap().forget();
    }
}

impl ModelRuntime for Runtime {
    fn load<'a>(
        &'a self,
        _package: &'a Package,
        _known: Option<&'a LoadReport>,
        _memory: &'a Arc<MemoryBudget>,
    ) -> BoxFuture<'a, Result<Arc<dyn LoadedModel>, Error>> {
        Box::pin(async move {
            assert!(!self.panics.swap(false, Ordering::Relaxed), "as the test told it");
            self.begun.add_permits(1);
            // Reading a blob does the same.
            tokio::task::spawn_blocking(|| {}).await.map_err(|_| Error::internal("no thread"))?;
            self.end.acquire().await.map_err(|_| Error::internal("closed"))?.forget();
            let result = self.results.lock().unwrap().pop().unwrap_or_else(|| Ok(echo(1)));
            result.map(|model| model as Arc<dyn LoadedModel>)
        })
    }
}

/// Counts waiting requests and the outcomes of comparisons.
pub(crate) struct Counts {
    waiting: AtomicU32,
    pub(crate) dropped: AtomicU32,
    pub(crate) compared: Semaphore,
}

impl Default for Counts {
    fn default() -> Self {
        Self { waiting: AtomicU32::new(0), dropped: AtomicU32::new(0), compared: Semaphore::new(0) }
    }
}

impl Recorder for Counts {
    fn prediction(&self, _: &Prediction) {}
    fn comparison(&self, comparison: &Comparison) {
        match comparison.agreement {
            Agreement::Dropped => drop(self.dropped.fetch_add(1, Ordering::Relaxed)),
            _ => self.compared.add_permits(1),
        }
    }
    fn codec(&self, _: Duration, _: Duration) {}
    fn waiting(&self) -> &AtomicU32 {
        &self.waiting
    }
    fn cache_hit(&self, _: Duration) {}
    fn cache_miss(&self, _: Duration) {}
    fn statistics(&self) -> Statistics {
        Statistics::default()
    }
    fn latency(&self) -> Vec<(u64, u64)> {
        Vec::new()
    }
}

pub(crate) fn version(model: &str, number: u32, queue: u32) -> Arc<Version> {
    let digest = Digest::from_bytes([0; 32]);
    let package = Package {
        component: digest,
        artifacts: Vec::new(),
        parameters: Vec::new(),
        columns: [].into(),
        capabilities: Vec::new(),
        response_cache: false,
        graphs: GraphOptions::default(),
        batching: Batching::NONE,
        isolation: None,
        limits: Limits { queue, concurrency: 4, ..Limits::DEFAULT },
        examples: Vec::new(),
    };
    Arc::new(Version {
        model: ModelName::parse(model).unwrap(),
        number: ModelVersion::parse(&number.to_string()).unwrap(),
        digest,
        package,
        report: report(),
        card: Card::default(),
        platform: String::new(),
    })
}

pub(crate) fn pool(name: &str, bounds: &Bounds, places: &Arc<Places>) -> Arc<Pool> {
    let bounds = Bounds { threads: Some(1), ..bounds.clone() };
    Pool::new(&DeploymentName::parse(name).unwrap(), &bounds, places)
}

pub(crate) fn slot(model: &str, pool: &Arc<Pool>, runtime: &Arc<Runtime>) -> Arc<Slot> {
    slot_with(model, pool, runtime, &Arc::default())
}

/// As [`slot`], with this recorder.
pub(crate) fn slot_with(
    model: &str,
    pool: &Arc<Pool>,
    runtime: &Arc<Runtime>,
    recorder: &Arc<Counts>,
) -> Arc<Slot> {
    let runtime = Arc::clone(runtime) as Arc<dyn ModelRuntime>;
    let recorder = Arc::clone(recorder) as Arc<dyn Recorder>;
    Arc::new(Slot::new(version(model, 1, 4), Arc::clone(pool), runtime, recorder, false))
}

/// Longer than any test takes.
pub(crate) fn later() -> Deadline {
    Deadline::after(Instant::now(), Duration::from_secs(60))
}
