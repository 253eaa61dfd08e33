//! A loaded version. Each request gets a fresh instance of its snapshot, or a warm instance.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use modelhost_core::deployment::MemoryBudget;
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::graph::GraphStatus;
use modelhost_core::infer::{Deadline, InferRequest, conform_outputs};
use modelhost_core::model::Signature;
use modelhost_core::ports::{BlobStore, BoxFuture, Footprint, LoadedModel};
use modelhost_core::tensor::Tensor;
use modelhost_core::version::{LoadReport, Package};
use modelhost_nn::Graphs;
use wasmtime::{Engine, Store};

use crate::bindings::{Runtime, RuntimePre};
use crate::cache::give_back_pages;
use crate::convert::{self, RequestParts};
use crate::fault;
use crate::limits::MemoryLimit;
use crate::state::{Files, State};
use crate::stop::Stop;
use crate::warm::Warm;

/// A guest that can be called.
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
        let stop = store.data().stop.clone();
        match stop.within(pre.instantiate_async(&mut store)).await {
            Ok(runtime) => Ok(Self { store, runtime }),
            Err(error) => Err(fault::of_call(&error, store.data(), limit.as_millis())),
        }
    }

    /// Calls `load`. Errors: plugin fault, also if the guest itself rejects its artifacts.
    pub(crate) async fn load(&mut self, package: &Package, limit: Duration) -> Result<Signature, Error> {
        let config = convert::Config::new(package);
        let columns = config.columns();
        let model = self.runtime.modelhost_inference_model();
        let stop = self.store.data().stop.clone();
        let result = stop.within(model.call_load(&mut self.store, config.as_load_config(&columns))).await;
        let answer = result.map_err(|error| fault::of_call(&error, self.store.data(), limit.as_millis()))?;
        let state = self.store.data_mut();
        state.files = None;
        state.memory.settle();
        match answer {
            Ok(signature) => convert::signature(signature),
            Err(error) => Err(convert::error(error).with_code(ErrorCode::PluginFault)),
        }
    }

    /// Calls `infer`. The instance can be called again only if the result is `Ok`, i.e. after an answer or the
    /// guest's own error.
    pub(crate) async fn infer(
        &mut self,
        request: &InferRequest,
        limit: Duration,
    ) -> Result<Result<Vec<Tensor>, Error>, Error> {
        let parts = RequestParts::new(request);
        let parameters = parts.parameters();
        let model = self.runtime.modelhost_inference_model();
        let stop = self.store.data().stop.clone();
        let result = stop.within(model.call_infer(&mut self.store, parts.as_request(&parameters))).await;
        let answer = result.map_err(|error| fault::of_call(&error, self.store.data(), limit.as_millis()))?;
        self.store.data_mut().memory.settle();
        Ok(match answer {
            Ok(response) => convert::outputs(response, self.store.data().memory.budget()),
            Err(error) => Err(convert::error(error)),
        })
    }
}

/// Where instances come from.
pub(crate) enum Instances {
    /// Each request gets a new instance of the snapshot.
    Fresh,
    /// Instances are kept between requests.
    Warm(Box<Warm>),
}

pub(crate) struct Loaded {
    pub(crate) engine: Engine,
    pub(crate) pre: RuntimePre<State>,
    pub(crate) report: LoadReport,
    /// The memory that the deployment's instances share.
    pub(crate) memory: Arc<MemoryBudget>,
    pub(crate) memory_bytes: u64,
    pub(crate) peak_bytes: AtomicU64,
    /// Bytes of the code, the image and wasmtime's tables.
    pub(crate) code_bytes: u64,
    /// Whether the pages of the code can be read from its file again.
    pub(crate) is_file: bool,
    pub(crate) limit: Duration,
    pub(crate) instances: Instances,
    /// `None` if the version may not have graphs.
    pub(crate) graphs: Option<Arc<Graphs>>,
}

impl Loaded {
    /// Answers within the guest's limit, or the caller's deadline if that is earlier.
    pub(crate) async fn answer(
        &self,
        request: &InferRequest,
        limit: Duration,
        deadline: Deadline,
    ) -> Result<Vec<Tensor>, Error> {
        let stop = Stop::new(limit, Some(deadline));
        let outputs = match &self.instances {
            Instances::Fresh => {
                let store = State::store(&self.engine, self.memory_limit(), stop, None, self.graphs.clone());
                let mut instance = Instance::start(&self.pre, store, limit).await?;
                let outputs = instance.infer(request, limit).await;
                self.note_memory(&instance);
                outputs??
            }
            Instances::Warm(warm) => {
                let mut taken = warm.take(self, deadline).await?;
                let instance = taken.instance();
                State::renew(&mut instance.store, stop);
                let answer = instance.infer(request, limit).await?;
                self.note_memory(instance);
                taken.put_back();
                answer?
            }
        };
        conform_outputs(&self.report.signature, &request.outputs, outputs)
    }

    pub(crate) fn memory_limit(&self) -> MemoryLimit {
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
            Instances::Warm(warm) => warm.idle(),
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

/// Reads the version's artifacts and checks their digests. Errors: unavailable, if one is missing or has another
/// size, because no caller can help that; internal.
pub(crate) async fn read_files(blobs: &dyn BlobStore, package: &Package) -> Result<Files, Error> {
    let mut files = Vec::with_capacity(package.artifacts.len());
    for artifact in &package.artifacts {
        let content = blobs.read(&artifact.digest, artifact.bytes).await.map_err(|error| {
            let code = match error.code {
                ErrorCode::NotFound | ErrorCode::TooLarge => ErrorCode::Unavailable,
                code => code,
            };
            error.with_code(code).within(format_args!("artifact {:?}", artifact.name))
        })?;
        files.push((artifact.name.clone(), content));
    }
    Ok(files)
}

#[cfg(test)]
mod tests;
