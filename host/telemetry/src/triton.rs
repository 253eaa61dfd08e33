//! Triton's metric names, `nv_inference_*`, one series per version. Dashboards made for Triton keep working.
//!
//! Source: triton-inference-server/server, docs/user_guide/metrics.md. The metrics have the type `unknown`, because
//! OpenMetrics would append `_total` to the name of a counter.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, Weak};

use modelhost_core::event::{Statistics, Tally};
use modelhost_core::ports::Recorder;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::metrics::VersionRecorder;

/// The recorders of all versions.
#[derive(Clone, Default)]
pub(crate) struct Recorders(Arc<Mutex<Vec<Weak<VersionRecorder>>>>);

impl Recorders {
    pub(crate) fn add(&self, recorder: &Arc<VersionRecorder>) {
        let mut all = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if all.len() == all.capacity() {
            all.retain(|recorder| recorder.strong_count() > 0);
        }
        all.push(Arc::downgrade(recorder));
    }

    fn used(&self) -> Vec<Arc<VersionRecorder>> {
        let all = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        all.iter().filter_map(Weak::upgrade).filter(|recorder| recorder.is_used()).collect()
    }
}

impl std::fmt::Debug for Recorders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Recorders")
    }
}

type Read = fn(&Statistics) -> u64;

fn micros(tally: Tally) -> u64 {
    tally.nanos / 1000
}

const FAMILIES: [(&str, &str, Read); 11] = [
    ("nv_inference_request_success", "Answered requests", |seen| seen.success.count),
    ("nv_inference_request_failure", "Failed requests", |seen| seen.fail.count),
    ("nv_inference_count", "Rows predicted", |seen| seen.rows),
    ("nv_inference_exec_count", "Runs", |seen| seen.runs),
    ("nv_inference_request_duration_us", "Waiting and running, together", |seen| micros(seen.success)),
    ("nv_inference_queue_duration_us", "Waiting for an instance", |seen| micros(seen.queue)),
    ("nv_inference_compute_input_duration_us", "Reading requests", |seen| micros(seen.decode)),
    ("nv_inference_compute_infer_duration_us", "Running", |seen| micros(seen.infer)),
    ("nv_inference_compute_output_duration_us", "Writing responses", |seen| micros(seen.encode)),
    ("nv_cache_num_hits_per_model", "Answers from the response cache", |seen| seen.cache_hit.count),
    ("nv_cache_num_misses_per_model", "Answers not in the response cache", |seen| seen.cache_miss.count),
];

impl Collector for Recorders {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let recorders = self.used();
        if recorders.is_empty() {
            return Ok(());
        }
        for (name, help, read) in FAMILIES {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Unknown)?;
            for recorder in &recorders {
                let labels =
                    [("model", recorder.model().to_owned()), ("version", recorder.version().to_string())];
                let value = ConstGauge::new(read(&recorder.totals().read()));
                value.encode(family.encode_family(&labels)?)?;
            }
        }
        let mut family = encoder.encode_descriptor(
            "nv_inference_pending_request_count",
            "Requests that wait for an instance",
            None,
            MetricType::Gauge,
        )?;
        for recorder in &recorders {
            let labels =
                [("model", recorder.model().to_owned()), ("version", recorder.version().to_string())];
            ConstGauge::new(recorder.waiting().load(Ordering::Relaxed))
                .encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
