//! A loaded version: hands every request a fresh instance of its snapshot, or a warm instance.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use modelhost_core::deployment::{LoadReport, Package};
use modelhost_core::error::Error;
use modelhost_core::infer::{Deadline, InferRequest, conform_outputs};
use modelhost_core::model::Signature;
use modelhost_core::ports::{BlobStore, BoxFuture, LoadedModel};
use modelhost_core::tensor::Tensor;
use wasmtime::{Engine, Store};

use crate::bindings::{Runtime, RuntimePre};
use crate::convert::{self, RequestParts};
use crate::fault;
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
    /// Kept between requests. `files` are what each new one loads from.
    Warm {
        idle: Mutex<Vec<Instance>>,
        blobs: Arc<dyn BlobStore>,
        package: Box<Package>,
        load_limit: Duration,
    },
}

pub(crate) struct Loaded {
    pub(crate) engine: Engine,
    pub(crate) pre: RuntimePre<State>,
    pub(crate) report: LoadReport,
    pub(crate) memory_bytes: u64,
    pub(crate) limit: Duration,
    pub(crate) instances: Instances,
}

impl Loaded {
    async fn answer(&self, request: &InferRequest, deadline: Deadline) -> Result<Vec<Tensor>, Error> {
        // The guest's own bound, or the caller's if that is nearer.
        let stop = Stop::after(self.limit).or_callers(deadline);
        let outputs = match &self.instances {
            Instances::Fresh => {
                let store = State::store(&self.engine, self.memory_bytes, stop, None);
                let mut instance = Instance::start(&self.pre, store, self.limit).await?;
                instance.infer(request, self.limit).await??
            }
            Instances::Warm { idle, .. } => {
                let taken = idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
                let mut instance = match taken {
                    Some(mut instance) => {
                        State::renew(&mut instance.store, stop);
                        instance
                    }
                    None => self.start_warm(stop).await?,
                };
                let answer = instance.infer(request, self.limit).await?;
                idle.lock().unwrap_or_else(PoisonError::into_inner).push(instance);
                answer?
            }
        };
        conform_outputs(&self.report.signature, &request.outputs, outputs)
    }

    /// One more warm instance, which loads its model first. The number is bounded by the version's concurrency.
    async fn start_warm(&self, stop: Stop) -> Result<Instance, Error> {
        let Instances::Warm { blobs, package, load_limit, .. } = &self.instances else {
            return Err(Error::internal("a version without warm instances was asked for one"));
        };
        let files = read_files(&**blobs, package).await?;
        let store = State::store(&self.engine, self.memory_bytes, Stop::after(*load_limit), Some(files));
        let mut instance = Instance::start(&self.pre, store, *load_limit).await?;
        instance.load(package, *load_limit).await?;
        State::renew(&mut instance.store, stop);
        Ok(instance)
    }
}

impl LoadedModel for Loaded {
    fn report(&self) -> &LoadReport {
        &self.report
    }

    fn infer<'a>(
        &'a self,
        request: &'a InferRequest,
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<Vec<Tensor>, Error>> {
        Box::pin(self.answer(request, deadline))
    }
}

/// The version's artifacts, each checked against its digest.
pub(crate) async fn read_files(blobs: &dyn BlobStore, package: &Package) -> Result<Files, Error> {
    let mut files = Vec::with_capacity(package.artifacts.len());
    for artifact in &package.artifacts {
        let content = blobs.read(&artifact.digest).await.map_err(|error| {
            Error::new(error.code, format!("artifact {:?}: {}", artifact.name, error.message))
        })?;
        files.push((artifact.name.clone(), content));
    }
    Ok(files)
}

#[cfg(test)]
mod tests;
