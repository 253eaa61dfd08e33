//! The host's settings: read once, from a TOML file, then overridden by the command line.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use modelhost_admin::wire::BoundsChange;
use modelhost_core::deployment::{Bounds, DeploymentName};
use modelhost_core::error::Error;
use modelhost_core::model::ModelName;
use modelhost_core::version::Limits;
use serde::Deserialize;

use crate::guard::Allowed;
use crate::watch::Patience;

/// The host's settings, with their defaults. Unknown keys are errors.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Catalogue, artifacts and compiled code.
    pub data_dir: PathBuf,
    /// Where predictions are asked for. Port 0: any free one.
    pub listen: SocketAddr,
    /// Where gRPC is served besides `listen`, which serves it too.
    pub grpc_listen: Option<SocketAddr>,
    /// Where operators work.
    pub admin_listen: SocketAddr,
    /// Lets `admin_listen` be another address than loopback, although nothing guards it.
    pub admin_allow_remote: bool,
    /// Names under which this host is reached, besides loopback and its own addresses, without port. Given: the public
    /// port refuses every other name, also from programs; without it only from browsers. The admin port always does.
    pub allowed_hosts: Vec<String>,
    /// Origins of other sites' pages that may change and predict, e.g. `https://console.example.org`.
    pub allowed_origins: Vec<String>,
    /// The shipped runtimes' components, `NAME.wasm`. Default: `runtimes` beside the executable.
    pub runtimes_dir: Option<PathBuf>,
    /// Lets callers load and unload versions and change log and trace settings over the Open Inference Protocol.
    pub repository_control: bool,
    /// Whether each request writes a line to the log.
    pub access_log: bool,
    /// An OpenTelemetry collector's OTLP/gRPC endpoint, e.g. `http://localhost:4317`; spans go there.
    pub otlp_endpoint: Option<String>,
    /// Largest request body, before and after decompression.
    pub max_body_bytes: usize,
    /// Requests and answers that are held in memory at once, all together. One deployment may hold half of it; a
    /// quarter is kept for small ones. When it runs out, requests whose clients are slow for what is held for them make
    /// room.
    pub bodies_mib: u64,
    /// Largest CSV file, which passes through in pieces.
    pub max_stream_bytes: usize,
    /// The model that answers MLflow's paths at the root, `prefix/name`.
    pub default_model: Option<String>,
    /// Largest artifact or component that can be uploaded.
    pub max_blob_bytes: u64,
    /// Longest that one request may wait and run together, its body's arrival included.
    pub request_timeout_ms: u64,
    /// Longest that a connection may take to send a request's headers, or to read anything of an answer.
    pub header_timeout_ms: u64,
    /// A connection, or a stream of requests, that asks nothing for so long is ended.
    pub idle_timeout_ms: u64,
    /// How long requests may finish after a shutdown began.
    pub drain_timeout_ms: u64,
    /// Connections on the public port; one more takes the place of one that has been silent for longest. All
    /// connections together may have twice as many requests under way, at least 1024.
    pub max_connections: usize,
    /// Bytes of answers kept for equal requests, over all versions whose manifest says `response_cache = true`.
    pub response_cache_bytes: u64,
    /// Live instances at once, over all deployments.
    pub instances: u32,
    /// Versions in memory at once, over all deployments. Default: what `vm.max_map_count` and the limit on open files
    /// allow.
    pub loaded_versions: Option<u32>,
    /// A warm instance that waited this long for a request is ended.
    pub idle_instance_ms: u64,
    /// Disk for compiled code; beyond it what was used longest ago is removed, and compiled again when it is needed.
    pub compiled_mib: u64,
    /// Deployments and their bounds. Those named here have these bounds whenever the host starts; others keep theirs.
    pub deployments: BTreeMap<String, BoundsChange>,
    /// Bytes of a released instance's memory that are zeroed rather than unmapped.
    pub keep_resident_bytes: usize,
    /// The executable that compiles components, by its subcommand `compile`. Default: this one.
    pub compiler: Option<PathBuf>,
    /// Whether to reset only the pages that a request wrote. Default: where the kernel can.
    pub pagemap_scan: Option<bool>,
    /// ONNX Runtime: its library, a folder that holds it, or a Python environment with the package `onnxruntime`.
    /// Default: `MODELHOST_ONNXRUNTIME`, `ORT_DYLIB_PATH`, the active Python environment, or the system's library
    /// folders.
    pub onnxruntime: Option<PathBuf>,
    /// Threads that evaluate graphs. Default: one a core.
    pub graph_threads: Option<usize>,
    /// What a manifest may ask for at most.
    pub limits: LimitCaps,
    /// Threads that serve. Default: one a core.
    pub threads: Option<usize>,
}

/// Caps on what a manifest's `[limits]` may ask for.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitCaps {
    /// Linear memory per instance.
    pub memory_mib: u64,
    /// Run time of one prediction.
    pub deadline_ms: u64,
    /// Predictions of one version at once.
    pub concurrency: u32,
    /// Predictions of one version waiting.
    pub queue: u32,
    /// Artifacts of one version together.
    pub artifact_mib: u64,
    /// Weights and tensors of one version's graphs together.
    pub graph_mib: u64,
    /// Run time of a version's `load`.
    pub load_deadline_ms: u64,
    /// Processor time to compile one component, or to read a version's graphs for the first time.
    pub compile_deadline_ms: u64,
    /// Memory for that, besides what a snapshot or the files take.
    pub compile_mib: u64,
}

impl Default for LimitCaps {
    fn default() -> Self {
        Self {
            memory_mib: 1024,
            deadline_ms: 60_000,
            concurrency: 1000,
            queue: 65_536,
            artifact_mib: 16 << 10,
            graph_mib: 16 << 10,
            load_deadline_ms: 60_000,
            compile_deadline_ms: 120_000,
            compile_mib: 2048,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: "./modelhost-data".into(),
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            grpc_listen: None,
            admin_listen: SocketAddr::from(([127, 0, 0, 1], 8081)),
            admin_allow_remote: false,
            allowed_hosts: Vec::new(),
            allowed_origins: Vec::new(),
            runtimes_dir: None,
            repository_control: false,
            access_log: true,
            otlp_endpoint: None,
            max_body_bytes: 64 << 20,
            bodies_mib: 1024,
            max_stream_bytes: 64 << 30,
            default_model: None,
            max_blob_bytes: 16 << 30,
            request_timeout_ms: 60_000,
            header_timeout_ms: 10_000,
            idle_timeout_ms: 75_000,
            drain_timeout_ms: 30_000,
            max_connections: 16_384,
            response_cache_bytes: 64 << 20,
            instances: 1000,
            loaded_versions: None,
            idle_instance_ms: 60_000,
            compiled_mib: 64 << 10,
            deployments: BTreeMap::new(),
            keep_resident_bytes: 1 << 20,
            compiler: None,
            pagemap_scan: None,
            onnxruntime: None,
            graph_threads: None,
            limits: LimitCaps::default(),
            threads: None,
        }
    }
}

impl Config {
    /// Reads a TOML file. Errors: invalid argument, naming file, key and what was expected.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| Error::invalid(format!("configuration {}: {error}", path.display())))?;
        toml::from_str(&text)
            .map_err(|error| Error::invalid(format!("configuration {}: {error}", path.display())))
    }

    /// Errors: invalid argument, on settings that contradict each other.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if !self.admin_listen.ip().is_loopback() && !self.admin_allow_remote {
            return Err(Error::invalid(format!(
                "admin_listen {}: nothing guards the admin API yet, so it listens on loopback only; allow another \
                 address with --admin-allow-remote",
                self.admin_listen
            )));
        }
        self.allowed(self.listen)?;
        if self.instances == 0
            || self.max_connections == 0
            || self.threads == Some(0)
            || self.graph_threads == Some(0)
        {
            return Err(Error::invalid(
                "instances, max_connections, threads and graph_threads must be at least 1",
            ));
        }
        Ok(())
    }

    pub(crate) fn patience(&self) -> Patience {
        Patience {
            head: Duration::from_millis(self.header_timeout_ms),
            idle: Duration::from_millis(self.idle_timeout_ms),
            read: Duration::from_millis(self.header_timeout_ms),
        }
    }

    /// Requests under way at once on the ports where predictions are asked for.
    pub(crate) fn max_requests(&self) -> usize {
        (2 * self.max_connections).max(1024)
    }

    /// Who may ask a listener on this address from a browser. Errors: invalid argument, naming the setting.
    pub(crate) fn allowed(&self, address: SocketAddr) -> Result<Allowed, Error> {
        Allowed::new(address.ip(), &self.allowed_hosts, &self.allowed_origins)
    }

    /// Errors: invalid argument, when it is no model's name.
    pub(crate) fn default_model(&self) -> Result<Option<ModelName>, Error> {
        self.default_model.as_deref().map(ModelName::parse).transpose()
    }

    /// The deployments that the file names. Errors: invalid argument, naming the deployment and what cannot be.
    pub(crate) fn deployments(&self) -> Result<BTreeMap<DeploymentName, Bounds>, Error> {
        let parsed = self.deployments.iter().map(|(name, keys)| {
            let bounds = keys.apply(Bounds::on_host(self.instances)).and_then(|bounds| {
                bounds.check(self.instances)?;
                Ok(bounds)
            });
            let in_deployment =
                |error: Error| Error::new(error.code, format!("deployments.{name}: {}", error.message));
            Ok((DeploymentName::parse(name)?, bounds.map_err(in_deployment)?))
        });
        parsed.collect()
    }

    pub(crate) fn limits_cap(&self) -> Limits {
        Limits {
            memory_bytes: self.limits.memory_mib << 20,
            deadline: Duration::from_millis(self.limits.deadline_ms),
            concurrency: self.limits.concurrency,
            queue: self.limits.queue,
            artifact_bytes: self.limits.artifact_mib << 20,
            graph_bytes: self.limits.graph_mib << 20,
        }
    }

    /// Errors: internal, when this executable cannot be found and no other compiles.
    pub(crate) fn engine(&self) -> Result<modelhost_engine::Config, Error> {
        let this = || {
            std::env::current_exe().map_err(|error| {
                Error::internal(format!("compiler: this executable cannot be found: {error}; set `compiler`"))
            })
        };
        Ok(modelhost_engine::Config {
            cache_dir: self.data_dir.join("compiled"),
            cache_bytes: self.compiled_mib << 20,
            instances: self.instances,
            max_memory_bytes: self.limits_cap().memory_bytes,
            load_deadline: Duration::from_millis(self.limits.load_deadline_ms),
            keep_resident_bytes: self.keep_resident_bytes,
            pagemap_scan: self.pagemap_scan,
            compiler: Some(self.compiler.clone().map_or_else(this, Ok)?),
            compile_deadline: Duration::from_millis(self.limits.compile_deadline_ms),
            compile_bytes: self.limits.compile_mib << 20,
            graphs: self.graphs(),
        })
    }

    /// How graphs are evaluated. Settings of the engine, because a graph is evaluated for a version's component.
    fn graphs(&self) -> modelhost_nn::Config {
        modelhost_nn::Config { onnxruntime: self.onnxruntime.clone(), threads: self.graph_threads }
    }

    pub(crate) fn runtimes_dir(&self) -> PathBuf {
        let beside = || Some(std::env::current_exe().ok()?.parent()?.join("runtimes"));
        self.runtimes_dir.clone().or_else(beside).unwrap_or_else(|| "runtimes".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_admin_api_stays_on_loopback_unless_told() {
        let mut config = Config { admin_listen: SocketAddr::from(([0, 0, 0, 0], 8081)), ..Config::default() };
        assert!(config.check().unwrap_err().message.contains("--admin-allow-remote"));
        config.admin_allow_remote = true;
        assert_eq!(config.check(), Ok(()));
    }

    #[test]
    fn unknown_keys_are_errors() {
        let dir = std::env::temp_dir().join(format!("modelhost-config-{}.toml", std::process::id()));
        std::fs::write(&dir, "max_body_bytes = 5\ncolour = 'red'").unwrap();
        let error = Config::read(&dir).unwrap_err();
        std::fs::remove_file(&dir).unwrap();
        assert!(error.message.contains("unknown field `colour`"), "{error}");
    }
}
