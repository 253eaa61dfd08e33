//! The things that a host serves: models, versions, and the immutable [`Snapshot`] that readers share.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use crate::artifact::{Artifact, Digest};
use crate::deployment::{Bounds, DeploymentName};
use crate::error::{Error, ErrorCode};
use crate::graph::{Batching, GraphOptions};
use crate::infer::InferRequest;
use crate::model::{ModelName, ModelVersion, Signature};
use crate::routing::Policy;
use crate::tensor::{Column, Tensor};

/// How much of one request can reach the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Isolation {
    /// Nothing: every request runs in a fresh instance, which starts from the loaded model's snapshot.
    Request,
    /// The instance's memory: a warm instance answers one request after another.
    Instance,
}

impl Isolation {
    /// Reads `request` or `instance`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        match text {
            "request" => Ok(Self::Request),
            "instance" => Ok(Self::Instance),
            _ => Err(Error::invalid(format!("isolation {text:?} is neither \"request\" nor \"instance\""))),
        }
    }

    /// The manifest's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Instance => "instance",
        }
    }
}

/// The bounds of one version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Linear memory per instance, in bytes.
    pub memory_bytes: u64,
    /// Longest run of one prediction.
    pub deadline: Duration,
    /// Predictions running at once.
    pub concurrency: u32,
    /// Predictions that wait for one of those. One more is refused.
    pub queue: u32,
    /// All artifacts together, in bytes.
    pub artifact_bytes: u64,
    /// Weights of its graphs and the tensors that they evaluate, all together, in bytes.
    pub graph_bytes: u64,
}

impl Limits {
    /// The limits of a manifest that asks for none.
    pub const DEFAULT: Self = Self {
        memory_bytes: 256 << 20,
        deadline: Duration::from_secs(1),
        concurrency: 64,
        queue: 1024,
        artifact_bytes: 1 << 30,
        graph_bytes: 4 << 30,
    };

    /// Each bound, or the cap where that is lower.
    pub fn capped(&self, cap: &Self) -> Self {
        Self {
            memory_bytes: self.memory_bytes.min(cap.memory_bytes),
            deadline: self.deadline.min(cap.deadline),
            concurrency: self.concurrency.min(cap.concurrency),
            queue: self.queue.min(cap.queue),
            artifact_bytes: self.artifact_bytes.min(cap.artifact_bytes),
            graph_bytes: self.graph_bytes.min(cap.graph_bytes),
        }
    }

    /// Whether each bound is at least 1 and at most the operator's `cap`.
    /// Errors: invalid argument, naming the limit, the value asked for and the value allowed.
    pub fn check(&self, cap: &Self) -> Result<(), Error> {
        let millis = |deadline: Duration| u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
        for (name, asked, most) in [
            ("memory_mib", self.memory_bytes >> 20, cap.memory_bytes >> 20),
            ("deadline_ms", millis(self.deadline), millis(cap.deadline)),
            ("concurrency", u64::from(self.concurrency), u64::from(cap.concurrency)),
            ("queue", u64::from(self.queue) + 1, u64::from(cap.queue) + 1),
            ("artifact_mib", self.artifact_bytes >> 20, cap.artifact_bytes >> 20),
            ("graph_mib", self.graph_bytes >> 20, cap.graph_bytes >> 20),
        ] {
            if asked == 0 || asked > most {
                return Err(Error::invalid(format!(
                    "limit {name} = {asked} is outside what the operator allows: 1 to {most}"
                )));
            }
        }
        Ok(())
    }
}

/// A warm-up request and the answer it must get.
#[derive(Debug, Clone)]
pub struct Example {
    /// Its request.
    pub request: InferRequest,
    /// Outputs that must match. Others are not compared.
    pub outputs: Vec<Tensor>,
    /// Largest |came - expected| that is allowed for floating-point outputs.
    pub tolerance: f64,
}

/// Everything that decides a version's answers, and the bounds that it runs within.
#[derive(Debug, Clone)]
pub struct Package {
    /// The component's content.
    pub component: Digest,
    /// The version's files.
    pub artifacts: Vec<Artifact>,
    /// For the runtime, in the manifest's order.
    pub parameters: Vec<(String, String)>,
    /// The manifest's description of the input table.
    pub columns: Arc<[Column]>,
    /// Imports granted beyond the harmless ones.
    pub capabilities: Vec<String>,
    /// Whether equal requests may be answered from the response cache.
    pub response_cache: bool,
    /// How its graphs are evaluated.
    pub graphs: GraphOptions,
    /// How requests that wait are joined: in its graphs where it has any, otherwise before the component.
    pub batching: Batching,
    /// The isolation that the manifest asks for. `None` leaves it to the component's abilities.
    pub isolation: Option<Isolation>,
    /// Checked against the operator's caps.
    pub limits: Limits,
    /// They run before a version serves.
    pub examples: Vec<Example>,
}

impl Package {
    /// Whether its artifacts are within its limit. Errors: unavailable, naming the limit. An operator may have
    /// lowered it since the version was registered.
    pub fn check_artifacts(&self) -> Result<(), Error> {
        let bytes = self.artifacts.iter().fold(0_u64, |sum, artifact| sum.saturating_add(artifact.bytes));
        let (limit, mib) = (self.limits.artifact_bytes, self.limits.artifact_bytes >> 20);
        if bytes <= limit {
            return Ok(());
        }
        let text = format!("the artifacts have {bytes} bytes: limit artifact_mib = {mib} allows fewer");
        Err(Error::new(ErrorCode::Unavailable, text))
    }

    /// Whether it was granted `wasi:nn`, whole or one of its interfaces. Then it may bring graphs of its own, too.
    pub fn may_have_graphs(&self) -> bool {
        let mut rest = self.capabilities.iter().filter_map(|capability| capability.strip_prefix("wasi:nn"));
        rest.any(|rest| rest.is_empty() || rest.starts_with(['/', '@']))
    }

    /// Whether the host evaluates graphs of its artifacts.
    pub fn has_graphs(&self) -> bool {
        self.may_have_graphs() && self.artifacts.iter().any(|artifact| artifact.name.ends_with(GRAPH_SUFFIX))
    }
}

/// An artifact is a graph when its name ends with this.
pub const GRAPH_SUFFIX: &str = ".onnx";

/// The findings of a load.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadReport {
    /// The version's inputs and outputs, as the runtime describes them.
    pub signature: Signature,
    /// How it runs.
    pub isolation: Isolation,
    /// Why it does not run in fresh instances, although the manifest did not ask for warm ones.
    pub isolation_note: Option<String>,
}

/// The author's description of a version, for people and for the record.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Card {
    /// One or two sentences.
    pub description: String,
    /// The person or team to ask.
    pub author: String,
    /// How the model was made: names and values, in the order they are shown.
    pub training: Vec<(String, String)>,
}

/// One registered version.
#[derive(Debug)]
pub struct Version {
    /// Its model.
    pub model: ModelName,
    /// Its number.
    pub number: ModelVersion,
    /// Covers the runtime, the artifacts and the manifest together.
    pub digest: Digest,
    /// The files and settings to load.
    pub package: Package,
    /// The findings of its load at registration.
    pub report: LoadReport,
    /// Its description from the manifest, for people.
    pub card: Card,
    /// `<project>_<format>`, as the Open Inference Protocol wants it.
    pub platform: String,
}

impl Version {
    /// The format's half of the platform, e.g. `gbdt` of `modelhost_gbdt`.
    pub fn backend(&self) -> &str {
        self.platform.split_once('_').map_or(self.platform.as_str(), |(_, format)| format)
    }
}

/// One model: its versions and the policy of its traffic.
#[derive(Debug, Clone)]
pub struct Model {
    /// `prefix/name`.
    pub name: ModelName,
    /// By number.
    pub versions: BTreeMap<ModelVersion, Arc<Version>>,
    /// `None` until a version was promoted.
    pub policy: Option<Policy>,
    /// The policy that a rollback returns to.
    pub previous: Option<Policy>,
    /// Movable names of versions.
    pub aliases: BTreeMap<String, ModelVersion>,
    /// The deployments of versions. A version that is not here runs in the default one.
    pub placed: BTreeMap<ModelVersion, DeploymentName>,
}

impl Model {
    /// Without versions.
    pub fn new(name: ModelName) -> Self {
        Self {
            name,
            versions: BTreeMap::new(),
            policy: None,
            previous: None,
            aliases: BTreeMap::new(),
            placed: BTreeMap::new(),
        }
    }

    /// The deployment that a version runs in.
    pub fn deployment(&self, number: ModelVersion) -> DeploymentName {
        self.placed.get(&number).cloned().unwrap_or_default()
    }
}

/// Everything that a host serves at one moment. It never changes: a change publishes a new one.
#[derive(Debug, Default, Clone)]
pub struct Snapshot {
    /// By `prefix/name`.
    pub models: HashMap<ModelName, Arc<Model>>,
    /// By name; the default one is always there.
    pub deployments: BTreeMap<DeploymentName, Bounds>,
}
