//! The ports: interfaces of the domain to the outside. There is one only where a fake is useful in tests.

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
    /// Verifies, compiles, loads, snapshots and warms. Work that was done before for the same package is found in the
    /// cache. With the report of an earlier load (`known`), such a package is ready without running anything but its
    /// examples. The memory of its instances is taken from `memory`.
    /// Errors name the step, and the fault is the caller's (manifest), the plugin's (component, artifacts) or the
    /// host's.
    fn load<'a>(
        &'a self,
        package: &'a Package,
        known: Option<&'a LoadReport>,
        memory: &'a Arc<MemoryBudget>,
    ) -> BoxFuture<'a, Result<Arc<dyn LoadedModel>, Error>>;
}

/// A version that answers.
pub trait LoadedModel: Send + Sync {
    /// The report of its load.
    fn report(&self) -> &LoadReport;

    /// Answers a request that conforms to the signature; its outputs conform too. Dropping the future stops the
    /// guest. Errors: invalid argument (the model says so), plugin fault, deadline exceeded, internal.
    fn infer(
        self: Arc<Self>,
        request: Arc<InferRequest>,
        deadline: Deadline,
    ) -> BoxFuture<'static, Result<Vec<Tensor>, Error>>;

    /// The memory that it holds now: code, the snapshot's image, idle instances. The instances that answer are
    /// counted by the budget it was loaded with.
    fn footprint(&self) -> Footprint;

    /// Its graphs, and their work since it was loaded.
    fn graphs(&self) -> Vec<GraphStatus> {
        Vec::new()
    }

    /// Ends instances that were not used for this long.
    fn shrink(&self, idle: Duration);

    /// Gives back memory that it can get again from disk when it needs it. Called when it was not used for a while.
    fn rest(&self);
}

/// The memory of a loaded version.
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
    /// The whole content, checked against its digest. Errors: not found; too large, when it has more than `most`
    /// bytes: nothing is read then; internal (it cannot be read, or is not what its digest says).
    fn read<'a>(&'a self, digest: &'a Digest, most: u64) -> BoxFuture<'a, Result<Bytes, Error>>;
}

/// Sees events. Each version has a recorder, so that the request path looks nothing up.
pub trait Observer: Send + Sync {
    /// The recorder of one version.
    fn recorder(&self, model: &ModelName, version: ModelVersion) -> Arc<dyn Recorder>;
}

/// Sees the events of one version. It is called on the request path and must not block.
pub trait Recorder: Send + Sync {
    /// A prediction ended.
    fn prediction(&self, prediction: &Prediction);
    /// This version, as a challenger, saw a copy or should have seen one.
    fn comparison(&self, comparison: &Comparison);
    /// A front-end read a request for it and wrote the response, in these times.
    fn codec(&self, decode: Duration, encode: Duration);
    /// How many requests wait for an instance of it. The admission counts here.
    fn waiting(&self) -> &AtomicU32;
    /// Its answer came from the response cache; it neither waited nor ran.
    fn cache_hit(&self, took: Duration);
    /// Its answer was not in the response cache: looking it up, running and storing it took this long.
    fn cache_miss(&self, took: Duration);
    /// Its work as a primary so far.
    fn statistics(&self) -> Statistics;
    /// How long its answers to callers took. Every class that has answers is (upper bound in microseconds, answers).
    fn latency(&self) -> Vec<(u64, u64)>;
}

/// Brings versions into memory and out of it.
pub trait Lifecycle: Send + Sync {
    /// Loads the version unless it is loaded. Errors: as [`ModelRuntime::load`].
    fn ready<'a>(&'a self, version: &'a Version) -> BoxFuture<'a, Result<(), Error>>;
    /// Forgets the loaded version: requests that run finish, and the next one loads it again. Returns whether it was
    /// loaded.
    fn unload(&self, version: &Version) -> bool;
    /// Whether it is loaded.
    fn is_ready(&self, version: &Version) -> bool;
    /// From now on this snapshot is served: whole, at once.
    fn publish(&self, snapshot: Arc<Snapshot>);
    /// Tears a deployment down and starts it anew: requests that wait in it are refused, requests that run finish,
    /// and its versions are unloaded. Errors: not found.
    fn recreate(&self, name: &DeploymentName) -> Result<(), Error>;
    /// What every deployment holds and does now, by name.
    fn deployments(&self) -> Vec<DeploymentStatus>;
    /// The usage of every version that is in memory or was used since the host started.
    fn usage(&self) -> Vec<VersionUsage>;
}
