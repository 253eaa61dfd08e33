//! What the domain asks of the outside. Only where a fake earns its keep in tests.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use bytes::Bytes;

use crate::artifact::Digest;
use crate::deployment::{DeploymentName, MemoryBudget};
use crate::error::Error;
use crate::event::{Comparison, DeploymentStatus, Prediction, Statistics, VersionUsage};
use crate::graph::GraphStatus;
use crate::infer::{Deadline, InferRequest};
use crate::model::{ModelName, ModelVersion};
use crate::tensor::Tensor;
use crate::version::{LoadReport, Package, Snapshot, Version};

/// A future that a port returns.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Turns packages into models that answer.
pub trait ModelRuntime: Send + Sync {
    /// Verifies, compiles, loads, snapshots and warms. What was done before for the same package is found in the
    /// cache; with what loading it once brought to light (`known`), such a package is ready without running anything
    /// but its examples. Its instances' memory is taken from `memory`.
    /// Errors name the step: caller's fault (manifest), plugin's (component, artifacts) or host's.
    fn load<'a>(
        &'a self,
        package: &'a Package,
        known: Option<&'a LoadReport>,
        memory: &'a Arc<MemoryBudget>,
    ) -> BoxFuture<'a, Result<Arc<dyn LoadedModel>, Error>>;
}

/// A version that answers.
pub trait LoadedModel: Send + Sync {
    /// What loading brought to light.
    fn report(&self) -> &LoadReport;

    /// Answers a request that conforms to the signature; its outputs conform too. Dropping the future stops the
    /// guest. Errors: invalid argument (the model says so), plugin fault, deadline exceeded, internal.
    fn infer(
        self: Arc<Self>,
        request: Arc<InferRequest>,
        deadline: Deadline,
    ) -> BoxFuture<'static, Result<Vec<Tensor>, Error>>;

    /// What it holds and can hold of memory now: code, the snapshot's image, idle instances. The instances that answer are
    /// counted by the budget it was loaded with.
    fn footprint(&self) -> Footprint;

    /// Its graphs, and what they did since it was loaded.
    fn graphs(&self) -> Vec<GraphStatus> {
        Vec::new()
    }

    /// Ends instances that were not used for this long.
    fn shrink(&self, idle: Duration);

    /// Gives back memory that it can get again from disk as it is needed. Called when it was not used for a while.
    fn rest(&self);
}

/// What a loaded version takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Footprint {
    /// Bytes of code, image and idle instances.
    pub bytes: u64,
    /// Most linear memory that one of its instances had, in bytes.
    pub peak_instance_bytes: u64,
    /// Instances that wait for a request.
    pub idle_instances: u32,
}

/// Content by digest.
pub trait BlobStore: Send + Sync {
    /// The whole content, checked against its digest. Errors: not found; too large, when it has more than `most` bytes: nothing is read then;
    /// internal (it cannot be read, or is not what its digest says).
    fn read<'a>(&'a self, digest: &'a Digest, most: u64) -> BoxFuture<'a, Result<Bytes, Error>>;
}

/// Sees what happened. One recorder a version, so that the request path looks nothing up.
pub trait Observer: Send + Sync {
    /// The recorder of one version.
    fn recorder(&self, model: &ModelName, version: ModelVersion) -> Arc<dyn Recorder>;
}

/// Sees what happened to one version. Called on the request path: it must not block.
pub trait Recorder: Send + Sync {
    /// A prediction ended.
    fn prediction(&self, prediction: &Prediction);
    /// This version, as a challenger, saw or should have seen a copy.
    fn comparison(&self, comparison: &Comparison);
    /// A front-end read a request for it and wrote the response, in this much time.
    fn codec(&self, decode: Duration, encode: Duration);
    /// How many requests wait for an instance of it; the admission counts here.
    fn waiting(&self) -> &AtomicU32;
    /// Its answer came from the response cache; it waited and ran not at all.
    fn cache_hit(&self, took: Duration);
    /// Its answer was not in the response cache: looking it up, running and storing it took this long.
    fn cache_miss(&self, took: Duration);
    /// What it did as a primary so far.
    fn statistics(&self) -> Statistics;
    /// How long its answers to callers took: (upper bound in microseconds, answers) of every class that has any.
    fn latency(&self) -> Vec<(u64, u64)>;
}

/// Brings versions into memory and out of it.
pub trait Lifecycle: Send + Sync {
    /// Loads the version unless it is loaded. Errors: as [`ModelRuntime::load`].
    fn ready<'a>(&'a self, version: &'a Version) -> BoxFuture<'a, Result<(), Error>>;
    /// Forgets the loaded version: requests that run finish, the next one loads it again. Says whether it was loaded.
    fn unload(&self, version: &Version) -> bool;
    /// Whether it is loaded.
    fn is_ready(&self, version: &Version) -> bool;
    /// Makes this what is served: whole, at once.
    fn publish(&self, snapshot: Arc<Snapshot>);
    /// Tears a deployment down and starts it anew: what waits in it is refused, what runs finishes, its versions are
    /// unloaded. Errors: not found.
    fn recreate(&self, name: &DeploymentName) -> Result<(), Error>;
    /// What every deployment holds and does now, by name.
    fn deployments(&self) -> Vec<DeploymentStatus>;
    /// What every version took that was used since the host started, or is in memory.
    fn usage(&self) -> Vec<VersionUsage>;
}
