//! Metrics of graphs, batches and GPUs, read at each scrape. The GPU metrics have Triton's names.

use std::fmt::Error;

use modelhost_core::event::VersionUsage;
use modelhost_core::graph::{GpuStatus, GraphStatus, Histogram};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::usage::{self, Read, Watch, number};

/// Reads the state of the GPUs.
pub type ReadGpus = Box<dyn Fn() -> Vec<GpuStatus> + Send + Sync>;

pub(crate) type GpuCollector = Watch<Vec<GpuStatus>>;

const GPU_GAUGES: [(&str, &str, Read<GpuStatus>); 3] = [
    ("nv_gpu_utilization", "GPU utilization rate, 0 to 1", |is| is.utilisation),
    ("nv_gpu_memory_used_bytes", "GPU used memory, in bytes", |is| number(is.used_bytes)),
    ("nv_gpu_memory_total_bytes", "GPU total memory, in bytes", |is| number(is.total_bytes)),
];

impl Collector for GpuCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let Some(read) = self.0.get() else { return Ok(()) };
        let gpus = read();
        for (name, help, read) in GPU_GAUGES {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for is in &gpus {
                ConstGauge::new(read(is)).encode(family.encode_family(&[("gpu_uuid", is.uuid.as_str())])?)?;
            }
        }
        Ok(())
    }
}

const GAUGES: [(&str, &str, Read<GraphStatus>); 2] = [
    ("graph_weight_bytes", "Weights that the version's graphs hold, all sessions together", |is| {
        number(is.weight_bytes)
    }),
    ("graph_tensor_bytes", "Tensors that the version's graphs are evaluating", |is| number(is.tensor_bytes)),
];

type ReadCounts = fn(&GraphStatus) -> &Histogram;

/// The number is the histogram's unit in units of the metric.
const HISTOGRAMS: [(&str, &str, f64, ReadCounts); 2] = [
    ("graph_batch_rows", "Rows that one evaluation answered", 1.0, |did| &did.batch_rows),
    ("graph_queue_seconds", "Time that a request waited for others to join and for a thread", 1e-6, |did| {
        &did.queued_micros
    }),
];

/// Writes the metrics of the versions' graphs.
pub(crate) fn encode(encoder: &mut DescriptorEncoder<'_>, versions: &[VersionUsage]) -> Result<(), Error> {
    let graphs = || versions.iter().flat_map(|took| took.graphs.iter().map(move |graph| (took, graph)));
    for (name, help, read) in GAUGES {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (took, graph) in graphs() {
            ConstGauge::new(read(graph)).encode(family.encode_family(&labels(took, graph))?)?;
        }
    }
    let help = "Processor time of evaluations; on a GPU, time waiting for it";
    let mut family = encoder.encode_descriptor("graph_busy_seconds", help, None, MetricType::Counter)?;
    for (took, graph) in graphs() {
        ConstCounter::new(graph.busy.as_secs_f64()).encode(family.encode_family(&labels(took, graph))?)?;
    }
    for (name, help, unit, read) in HISTOGRAMS {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (took, graph) in graphs() {
            histogram(family.encode_family(&labels(took, graph))?, read(graph), unit)?;
        }
    }
    let help = "Rows that one run answered, of versions whose requests are joined before their component";
    let mut family = encoder.encode_descriptor("batch_rows", help, None, MetricType::Histogram)?;
    for took in versions {
        if let Some(rows) = &took.batch_rows {
            histogram(family.encode_family(&usage::labels(took))?, rows, 1.0)?;
        }
    }
    Ok(())
}

fn histogram(mut metric: MetricEncoder<'_>, read: &Histogram, unit: f64) -> Result<(), Error> {
    let bound = |bound: Option<u64>| bound.map_or(f64::MAX, |bound| number(bound) * unit);
    let buckets: Vec<(f64, u64)> = read.classes().map(|(most, count)| (bound(most), count)).collect();
    metric.encode_histogram::<NoLabelSet>(number(read.sum) * unit, read.counts.iter().sum(), &buckets, None)
}

fn labels(took: &VersionUsage, graph: &GraphStatus) -> [(&'static str, String); 5] {
    [
        ("model", took.version.model.to_string()),
        ("version", took.version.number.to_string()),
        ("graph", graph.name.clone()),
        ("backend", graph.backend.clone()),
        ("device", graph.device.clone()),
    ]
}
