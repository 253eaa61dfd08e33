//! Metrics of deployments and versions, read at each scrape. An autoscaler watches `modelhost_deployment_utilisation`
//! and `modelhost_deployment_waiting`.

use std::fmt::{Debug, Error, Formatter};
use std::sync::{Arc, OnceLock};

use modelhost_core::event::{DeploymentStatus, DeploymentTotals, VersionUsage};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::graphs;

type Usage = (Vec<DeploymentStatus>, Vec<VersionUsage>);

/// Reads every deployment, and every version that was used.
pub type ReadUsage = Box<dyn Fn() -> Usage + Send + Sync>;

/// A value that is read at each scrape, once its reader is set.
#[derive(Clone, Default)]
pub(crate) struct Watch<T>(pub(crate) Arc<OnceLock<Box<dyn Fn() -> T + Send + Sync>>>);

impl<T> Debug for Watch<T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watch")
    }
}

pub(crate) type UsageCollector = Watch<Usage>;

pub(crate) type Read<T> = fn(&T) -> f64;

fn seconds(nanos: u64) -> f64 {
    std::time::Duration::from_nanos(nanos).as_secs_f64()
}

#[expect(clippy::cast_precision_loss, reason = "metrics are floating-point")]
pub(crate) fn number(count: u64) -> f64 {
    count as f64
}

const DEPLOYMENT_GAUGES: [(&str, &str, Read<DeploymentStatus>); 11] = [
    ("deployment_instances_limit", "Predictions that may run at once", |is| is.bounds.instances.into()),
    ("deployment_running", "Predictions that run", |is| is.running.into()),
    ("deployment_waiting", "Predictions that wait for an instance", |is| is.waiting.into()),
    (
        "deployment_utilisation",
        "Share of the instances that were busy in the last 15 seconds, 0 to 1",
        |is| is.utilisation,
    ),
    ("deployment_idle_instances", "Warm instances that wait for a prediction", |is| is.idle_instances.into()),
    ("deployment_threads", "Threads for predictions that run long", |is| is.threads.into()),
    ("deployment_versions", "Versions placed in it", |is| is.versions.into()),
    ("deployment_loaded_versions", "Versions in memory", |is| is.loaded.into()),
    ("deployment_loaded_bytes", "Bytes of the versions in memory", |is| number(is.loaded_bytes)),
    ("deployment_loaded_limit_bytes", "Bytes that versions in memory may take", |is| {
        number(is.bounds.loaded_bytes)
    }),
    ("deployment_memory_bytes", "Linear memory of live instances", |is| number(is.memory_bytes)),
];

const DEPLOYMENT_COUNTERS: [(&str, &str, Read<DeploymentTotals>); 9] = [
    ("deployment_admitted", "Predictions that were let in", |did| number(did.admitted.count)),
    ("deployment_queue_seconds", "Time that they waited", |did| seconds(did.admitted.nanos)),
    ("deployment_refused", "Refused on arrival: the queue was full", |did| number(did.refused)),
    ("deployment_hopeless", "Refused on arrival: they would have waited past their deadline", |did| {
        number(did.hopeless)
    }),
    ("deployment_shed", "Refused while waiting, for models with fewer waiting", |did| number(did.shed)),
    ("deployment_loads", "Versions brought into memory", |did| number(did.loads.count)),
    ("deployment_load_seconds", "Time that took", |did| seconds(did.loads.nanos)),
    ("deployment_load_failures", "Versions that could not be loaded", |did| number(did.load_failures)),
    ("deployment_evictions", "Versions unloaded to make room", |did| number(did.evictions)),
];

const VERSION_COUNTERS: [(&str, &str, Read<VersionUsage>); 2] = [
    ("version_cpu_seconds", "Processor time of its instances", |took| seconds(took.statistics.cpu.nanos)),
    ("version_loads", "How often it was brought into memory", |took| number(took.loads.count)),
];

const VERSION_GAUGES: [(&str, &str, Read<VersionUsage>); 2] = [
    ("version_loaded_bytes", "Bytes it holds in memory", |took| number(took.loaded_bytes.unwrap_or(0))),
    ("version_peak_instance_bytes", "Most linear memory of one of its instances", |took| {
        number(took.peak_instance_bytes)
    }),
];

impl Collector for UsageCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let Some(read) = self.0.get() else { return Ok(()) };
        let (deployments, versions) = read();
        for (name, help, read) in DEPLOYMENT_GAUGES {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for is in &deployments {
                ConstGauge::new(read(is))
                    .encode(family.encode_family(&[("deployment", is.name.as_str())])?)?;
            }
        }
        for (name, help, read) in DEPLOYMENT_COUNTERS {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for is in &deployments {
                let labels = [("deployment", is.name.as_str())];
                ConstCounter::new(read(&is.totals)).encode(family.encode_family(&labels)?)?;
            }
        }
        for (name, help, read) in VERSION_COUNTERS {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for took in &versions {
                ConstCounter::new(read(took)).encode(family.encode_family(&labels(took))?)?;
            }
        }
        for (name, help, read) in VERSION_GAUGES {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for took in &versions {
                ConstGauge::new(read(took)).encode(family.encode_family(&labels(took))?)?;
            }
        }
        graphs::encode(&mut encoder, &versions)
    }
}

pub(crate) fn labels(took: &VersionUsage) -> [(&'static str, String); 3] {
    [
        ("model", took.version.model.to_string()),
        ("version", took.version.number.to_string()),
        ("deployment", took.deployment.to_string()),
    ]
}
