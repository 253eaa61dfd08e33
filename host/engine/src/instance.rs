//! A loaded version: hands every request a fresh instance of its snapshot, or a warm instance.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use modelhost_core::deployment::MemoryBudget;
use modelhost_core::error::Error;
use modelhost_core::graph::GraphStatus;
use modelhost_core::infer::{Deadline, InferRequest, conform_outputs};
use modelhost_core::model::Signature;
use modelhost_core::ports::{BlobStore, BoxFuture, Footprint, LoadedModel};
use modelhost_core::tensor::Tensor;
use modelhost_core::version::{LoadReport, Package};
use modelhost_nn::Graphs;
use tokio::sync::Notify;
use wasmtime::{Engine, Store};

use crate::bindings::{Runtime, RuntimePre};
use crate::cache::give_back_pages;
use crate::convert::{self, RequestParts};
use crate::fault;
use crate::limits::MemoryLimit;
use crate::state::{Files, State, Stop};

/// A guest ready to be called.
pub(crate) struct Instance {
    pub(crate) store: Store<State>,
    pub(crate) runtime: Runtime,
}

impl Instance {
    pub(crate) async fn start(
        pre: &RuntimePre<State>,
        mut store: Store<State>,
        limit: Duration,
    ) -> Result<Self, Error> {
        match pre.instantiate_async(&mut store).await {
            Ok(runtime) => Ok(Self { store, runtime }),
            Err(error) => Err(fault::of_call(&error, store.data(), limit.as_millis())),
        }
    }

    /// Calls `load`. Errors: plugin fault; what the guest itself says of its artifacts counts as that too.
    pub(crate) async fn load(&mut self, package: &Package, limit: Duration) -> Result<Signature, Error> {
        let config = convert::Config::new(package);
        let columns = config.columns();
        let model = self.runtime.modelhost_inference_model();
        let result = model.call_load(&mut self.store, config.as_load_config(&columns)).await;
        let answer = result.map_err(|error| fault::of_call(&error, self.store.data(), limit.as_millis()))?;
        self.store.data_mut().files = None;
        match answer {
            Ok(signature) => convert::signature(signature),
            Err(error) => Err(convert::error(error)),
        }
    }

    /// Calls `infer`. The instance can be called again only after an answer or the guest's own error (`Ok`).
    async fn infer(
        &mut self,
        request: &InferRequest,
        limit: Duration,
    ) -> Result<Result<Vec<Tensor>, Error>, Error> {
        let parts = RequestParts::new(request);
        let parameters = parts.parameters();
        let model = self.runtime.modelhost_inference_model();
        let result = model.call_infer(&mut self.store, parts.as_request(&parameters)).await;
        let answer = result.map_err(|error| fault::of_call(&error, self.store.data(), limit.as_millis()))?;
        Ok(match answer {
            Ok(response) => convert::outputs(response),
            Err(error) => Err(convert::error(error)),
        })
    }
}

/// Where instances come from.
pub(crate) enum Instances {
    /// Every request gets its own, started from the loaded model's snapshot.
    Fresh,
    /// Kept between requests.
    Warm(Box<Warm>),
}

/// Instances that answer one request after another. One more is started when a request has waited for a free one as long as
/// starting one takes, so that waiting never costs more than twice what it must; those that idle are ended by `shrink`.
pub(crate) struct Warm {
    /// The one that was used last is at the end, and taken first.
    idle: Mutex<Vec<(Instance, Instant)>>,
    freed: Notify,
    live: Arc<AtomicU32>,
    /// How long starting one took, in microseconds.
    start_cost: AtomicU64,
    /// What each new one loads from.
    blobs: Arc<dyn BlobStore>,
    package: Package,
    load_limit: Duration,
}

/// Its place in the count of those that live: emptied when the instance goes back, counted out when it ends otherwise.
struct Live(Option<Arc<AtomicU32>>);

impl Drop for Live {
    fn drop(&mut self) {
        if let Some(count) = &self.0 {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Warm {
    pub(crate) fn new(blobs: Arc<dyn BlobStore>, package: Package, load_limit: Duration) -> Self {
        Self {
            idle: Mutex::default(),
            freed: Notify::new(),
            live: Arc::default(),
            start_cost: AtomicU64::new(0),
            blobs,
            package,
            load_limit,
        }
    }

    /// Adds an instance that was started elsewhere.
    pub(crate) fn add(&self, instance: Instance) {
        self.live.fetch_add(1, Ordering::Relaxed);
        self.put_back(instance);
    }

    fn put_back(&self, instance: Instance) {
        self.lock().push((instance, Instant::now()));
        self.freed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Instance, Instant)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A free instance, or a new one.
    async fn take(&self, loaded: &Loaded) -> Result<(Instance, Live), Error> {
        let mut until = None;
        loop {
            let free = self.lock().pop();
            if let Some((instance, _)) = free {
                return Ok((instance, Live(Some(Arc::clone(&self.live)))));
            }
            let none_live = self.live.load(Ordering::Relaxed) == 0;
            let start_cost = || Duration::from_micros(self.start_cost.load(Ordering::Relaxed));
            let until = *until.get_or_insert_with(|| Instant::now() + start_cost());
            if none_live || tokio::time::timeout_at(until.into(), self.freed.notified()).await.is_err() {
                return self.start(loaded).await;
            }
        }
    }

    /// One more, which loads its model first.
    async fn start(&self, loaded: &Loaded) -> Result<(Instance, Live), Error> {
        let start = Instant::now();
        self.live.fetch_add(1, Ordering::Relaxed);
        let live = Live(Some(Arc::clone(&self.live)));
        let files = read_files(&*self.blobs, &self.package).await?;
        let stop = Stop::after(self.load_limit);
        let store =
            State::store(&loaded.engine, loaded.memory_limit(), stop, Some(files), loaded.graphs.clone());
        let mut instance = Instance::start(&loaded.pre, store, self.load_limit).await?;
        instance.load(&self.package, self.load_limit).await?;
        let cost = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.start_cost.store(cost, Ordering::Relaxed);
        Ok((instance, live))
    }

    fn shrink(&self, idle: Duration) {
        let mut instances = self.lock();
        let count = instances.iter().take_while(|(_, since)| since.elapsed() >= idle).count();
        let ended: Vec<_> = instances.drain(..count).collect();
        drop(instances);
        self.live.fetch_sub(u32::try_from(ended.len()).unwrap_or(u32::MAX), Ordering::Relaxed);
    }
}

pub(crate) struct Loaded {
    pub(crate) engine: Engine,
    pub(crate) pre: RuntimePre<State>,
    pub(crate) report: LoadReport,
    /// What its deployment's instances share.
    pub(crate) memory: Arc<MemoryBudget>,
    pub(crate) memory_bytes: u64,
    pub(crate) peak_bytes: AtomicU64,
    /// Of code, image and wasmtime's tables.
    pub(crate) code_bytes: u64,
    /// Whether the code's pages can be read again from its file.
    pub(crate) is_file: bool,
    pub(crate) limit: Duration,
    pub(crate) instances: Instances,
    /// `None`: it may not have any.
    pub(crate) graphs: Option<Arc<Graphs>>,
}

impl Loaded {
    /// Within the guest's own bound, or the caller's if that is nearer.
    pub(crate) async fn answer(
        &self,
        request: &InferRequest,
        limit: Duration,
        deadline: Deadline,
    ) -> Result<Vec<Tensor>, Error> {
        let stop = Stop::after(limit).or_callers(deadline);
        let outputs = match &self.instances {
            Instances::Fresh => {
                let store = State::store(&self.engine, self.memory_limit(), stop, None, self.graphs.clone());
                let mut instance = Instance::start(&self.pre, store, limit).await?;
                let outputs = instance.infer(request, limit).await;
                self.note_memory(&instance);
                outputs??
            }
            Instances::Warm(warm) => {
                let (mut instance, mut live) = warm.take(self).await?;
                State::renew(&mut instance.store, stop);
                let answer = instance.infer(request, limit).await?;
                self.note_memory(&instance);
                warm.put_back(instance);
                live.0 = None;
                answer?
            }
        };
        conform_outputs(&self.report.signature, &request.outputs, outputs)
    }

    fn memory_limit(&self) -> MemoryLimit {
        MemoryLimit::new(self.memory_bytes, &self.memory)
    }

    fn note_memory(&self, instance: &Instance) {
        let bytes = instance.store.data().memory.taken;
        if bytes > self.peak_bytes.load(Ordering::Relaxed) {
            self.peak_bytes.fetch_max(bytes, Ordering::Relaxed);
        }
    }
}

impl LoadedModel for Loaded {
    fn report(&self) -> &LoadReport {
        &self.report
    }

    fn infer(
        self: Arc<Self>,
        request: Arc<InferRequest>,
        deadline: Deadline,
    ) -> BoxFuture<'static, Result<Vec<Tensor>, Error>> {
        Box::pin(async move { self.answer(&request, self.limit, deadline).await })
    }

    fn footprint(&self) -> Footprint {
        let (idle_instances, idle_bytes) = match &self.instances {
            Instances::Fresh => (0, 0),
            Instances::Warm(warm) => {
                let idle = warm.lock();
                let bytes: u64 = idle.iter().map(|(instance, _)| instance.store.data().memory.taken).sum();
                (u32::try_from(idle.len()).unwrap_or(u32::MAX), bytes)
            }
        };
        Footprint {
            bytes: self.code_bytes
                + idle_bytes
                + self.graphs.as_ref().map_or(0, |graphs| graphs.weight_bytes()),
            peak_instance_bytes: self.peak_bytes.load(Ordering::Relaxed),
            idle_instances,
        }
    }

    fn graphs(&self) -> Vec<GraphStatus> {
        self.graphs.as_ref().map(|graphs| graphs.status()).unwrap_or_default()
    }

    fn shrink(&self, idle: Duration) {
        if let Instances::Warm(warm) = &self.instances {
            warm.shrink(idle);
        }
    }

    fn rest(&self) {
        if self.is_file
            && let Err(error) = give_back_pages(self.pre.instance_pre().component())
        {
            tracing::debug!(%error, "the pages of an idle version stay in memory");
        }
    }
}

/// The version's artifacts, each checked against its digest.
pub(crate) async fn read_files(blobs: &dyn BlobStore, package: &Package) -> Result<Files, Error> {
    let mut files = Vec::with_capacity(package.artifacts.len());
    for artifact in &package.artifacts {
        let content = blobs
            .read(&artifact.digest)
            .await
            .map_err(|error| error.within(format_args!("artifact {:?}", artifact.name)))?;
        files.push((artifact.name.clone(), content));
    }
    Ok(files)
}

#[cfg(test)]
mod tests;
