//! Counters and histograms, one set per version. Labels are registered names, so their number is bounded.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use modelhost_core::error::ErrorCode;
use modelhost_core::event::{Agreement, Comparison, Prediction, Role, Statistics};
use modelhost_core::model::{ModelName, ModelVersion};
use modelhost_core::ports::{Observer, Recorder};
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::graphs::{GpuCollector, ReadGpus};
use crate::host::{ClientsCollector, ReadClients};
use crate::statistics::Totals;
use crate::triton::Recorders;
use crate::usage::{ReadUsage, UsageCollector};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Versioned {
    model: String,
    version: u32,
    role: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    model: String,
    version: u32,
    role: &'static str,
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Compared {
    model: String,
    served: u32,
    challenger: u32,
    agreement: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Status {
    route: &'static str,
    status: u16,
}

/// The host's metrics.
pub struct Metrics {
    registry: Registry,
    /// Metrics without our prefix.
    triton: Registry,
    families: Families,
    http: Family<Status, Counter>,
    recorders: Recorders,
    usage: UsageCollector,
    gpus: GpuCollector,
    clients: ClientsCollector,
}

#[derive(Clone)]
struct Families {
    predictions: Family<Outcome, Counter>,
    rows: Family<Versioned, Counter>,
    queued: Family<Versioned, Histogram, fn() -> Histogram>,
    ran: Family<Versioned, Histogram, fn() -> Histogram>,
    comparisons: Family<Compared, Counter>,
}

/// Buckets from 10 microseconds to 5 seconds.
fn durations() -> Histogram {
    Histogram::new(exponential_buckets(1e-5, 2.0, 20))
}

impl Default for Metrics {
    fn default() -> Self {
        let families = Families {
            predictions: Family::default(),
            rows: Family::default(),
            queued: Family::new_with_constructor(durations as fn() -> Histogram),
            ran: Family::new_with_constructor(durations as fn() -> Histogram),
            comparisons: Family::default(),
        };
        let http = Family::default();
        let mut registry = Registry::with_prefix("modelhost");
        registry.register(
            "predictions",
            "Predictions by version, role and outcome (ok or an error code)",
            families.predictions.clone(),
        );
        registry.register("prediction_rows", "Rows predicted", families.rows.clone());
        registry.register(
            "queue_duration_seconds",
            "Time waiting for an instance, loading included",
            families.queued.clone(),
        );
        registry.register("infer_duration_seconds", "Time running", families.ran.clone());
        registry.register(
            "challenger_comparisons",
            "Copies shown to challengers, by how their answer compares with the served one",
            families.comparisons.clone(),
        );
        let recorders = Recorders::default();
        registry.register("http_requests", "Requests on the public port by route and status", http.clone());
        let usage = UsageCollector::default();
        registry.register_collector(Box::new(usage.clone()));
        let clients = ClientsCollector::default();
        registry.register_collector(Box::new(clients.clone()));
        let mut registries = Registry::default();
        registries.register_collector(Box::new(recorders.clone()));
        let gpus = GpuCollector::default();
        registries.register_collector(Box::new(gpus.clone()));
        Self { registry, triton: registries, families, http, recorders, usage, gpus, clients }
    }
}

impl Metrics {
    /// Counts one answered HTTP request. `route` is one of a few fixed words, never the URL.
    pub fn http_request(&self, route: &'static str, status: u16) {
        self.http.get_or_create(&Status { route, status }).inc();
    }

    /// Counts how a challenger's answers compared, by [`agreement_label`].
    pub fn comparisons(
        &self,
        model: &ModelName,
        served: ModelVersion,
        challenger: ModelVersion,
    ) -> [(&'static str, u64); 5] {
        ["equal", "close", "differs", "failed", "dropped"].map(|agreement| {
            let labels = Compared {
                model: model.to_string(),
                served: served.get(),
                challenger: challenger.get(),
                agreement,
            };
            (agreement, self.families.comparisons.get(&labels).map_or(0, |counter| counter.get()))
        })
    }

    /// Reads deployments and versions with `read` at each scrape. Only the first call has an effect.
    pub fn watch(&self, read: ReadUsage) {
        drop(self.usage.0.set(read));
    }

    /// Reads what clients hold with `read` at each scrape. Only the first call has an effect.
    pub fn watch_clients(&self, read: ReadClients) {
        drop(self.clients.0.set(read));
    }

    /// Reads the GPUs with `read` at each scrape. Only the first call has an effect.
    pub fn watch_gpus(&self, read: ReadGpus) {
        drop(self.gpus.0.set(read));
    }

    /// Writes all metrics in the OpenMetrics text format.
    pub fn render(&self) -> String {
        let mut out = String::new();
        let encoded = text::encode_registry(&mut out, &self.registry)
            .and_then(|()| text::encode(&mut out, &self.triton));
        match encoded {
            Ok(()) => out,
            Err(error) => {
                tracing::error!(%error, "metrics could not be written");
                String::new()
            }
        }
    }
}

/// The label of a comparison: equal answers, numbers within 1e-6, anything else, failed, dropped.
pub fn agreement_label(agreement: Agreement) -> &'static str {
    match agreement {
        Agreement::Compared(0.0) => "equal",
        Agreement::Compared(difference) if difference <= 1e-6 => "close",
        Agreement::Compared(_) | Agreement::Differs => "differs",
        Agreement::Failed => "failed",
        Agreement::Dropped => "dropped",
    }
}

impl Observer for Metrics {
    fn recorder(&self, model: &ModelName, version: ModelVersion) -> Arc<dyn Recorder> {
        let by_role = |role: Role| {
            let labels = Versioned { model: model.to_string(), version: version.get(), role: role.as_str() };
            LazyRole { labels, metrics: std::sync::OnceLock::new() }
        };
        let recorder = Arc::new(VersionRecorder {
            families: self.families.clone(),
            primary: by_role(Role::Primary),
            challenger: by_role(Role::Challenger),
            totals: Totals::default(),
            waiting: AtomicU32::new(0),
        });
        self.recorders.add(&recorder);
        recorder
    }
}

/// One version's metrics. They are looked up once.
pub(crate) struct VersionRecorder {
    families: Families,
    primary: LazyRole,
    challenger: LazyRole,
    totals: Totals,
    waiting: AtomicU32,
}

/// The metrics of one role, made when the version first gets a request in it. Ten thousand idle versions have no
/// series.
struct LazyRole {
    labels: Versioned,
    metrics: std::sync::OnceLock<RoleMetrics>,
}

struct RoleMetrics {
    ok: Counter,
    rows: Counter,
    queued: Histogram,
    ran: Histogram,
}

impl VersionRecorder {
    pub(crate) fn model(&self) -> &str {
        &self.primary.labels.model
    }

    pub(crate) fn version(&self) -> u32 {
        self.primary.labels.version
    }

    pub(crate) fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Whether the version ever got a request.
    pub(crate) fn is_used(&self) -> bool {
        self.primary.metrics.get().is_some()
    }

    fn role(&self, role: Role) -> (&LazyRole, &RoleMetrics) {
        let lazy = match role {
            Role::Primary => &self.primary,
            Role::Challenger => &self.challenger,
        };
        let metrics = lazy.metrics.get_or_init(|| RoleMetrics {
            ok: self.families.predictions.get_or_create(&lazy.outcome("ok")).clone(),
            rows: self.families.rows.get_or_create(&lazy.labels).clone(),
            queued: self.families.queued.get_or_create(&lazy.labels).clone(),
            ran: self.families.ran.get_or_create(&lazy.labels).clone(),
        });
        (lazy, metrics)
    }
}

impl LazyRole {
    fn outcome(&self, code: &'static str) -> Outcome {
        let Versioned { model, version, role } = self.labels.clone();
        Outcome { model, version, role, code }
    }
}

impl Recorder for VersionRecorder {
    fn prediction(&self, prediction: &Prediction) {
        let (lazy, metrics) = self.role(prediction.role);
        match prediction.error {
            None => {
                metrics.ok.inc();
                metrics.rows.inc_by(prediction.rows);
            }
            Some(code) => self.count_error(lazy, code),
        }
        metrics.queued.observe(prediction.queued.as_secs_f64());
        metrics.ran.observe(prediction.ran.as_secs_f64());
        self.totals.prediction(prediction);
    }

    fn codec(&self, decode: Duration, encode: Duration) {
        self.totals.codec(decode, encode);
    }

    fn waiting(&self) -> &AtomicU32 {
        &self.waiting
    }

    fn cache_hit(&self, took: Duration) {
        self.role(Role::Primary).1.ok.inc();
        self.totals.cache_hit(took);
    }

    fn cache_miss(&self, took: Duration) {
        self.totals.cache_miss(took);
    }

    fn statistics(&self) -> Statistics {
        self.totals.read()
    }

    fn latency(&self) -> Vec<(u64, u64)> {
        self.totals.latency()
    }

    fn comparison(&self, comparison: &Comparison) {
        let labels = Compared {
            model: self.challenger.labels.model.clone(),
            served: comparison.served.get(),
            challenger: self.challenger.labels.version,
            agreement: agreement_label(comparison.agreement),
        };
        self.families.comparisons.get_or_create(&labels).inc();
    }
}

impl VersionRecorder {
    fn count_error(&self, lazy: &LazyRole, code: ErrorCode) {
        self.families.predictions.get_or_create(&lazy.outcome(code.as_str())).inc();
    }
}

#[cfg(test)]
mod tests {
    use modelhost_core::event::Tally;

    use super::*;

    #[test]
    fn counts_by_version_role_and_outcome() {
        let metrics = Metrics::default();
        let version = |number| ModelVersion::new(number).unwrap();
        let name = ModelName::parse("a/b").unwrap();
        let recorder = metrics.recorder(&name, version(2));
        let prediction = |role, error| Prediction {
            role,
            error,
            rows: 3,
            queued: Duration::ZERO,
            ran: Duration::from_micros(50),
            cpu: Tally { count: 1, nanos: 40_000 },
        };
        recorder.prediction(&prediction(Role::Primary, None));
        recorder.prediction(&prediction(Role::Primary, Some(ErrorCode::PluginFault)));
        recorder.comparison(&Comparison { served: version(1), agreement: Agreement::Compared(0.5) });
        metrics.http_request("infer", 200);
        let text = metrics.render();
        for line in [
            "modelhost_predictions_total{model=\"a/b\",version=\"2\",role=\"primary\",code=\"ok\"} 1",
            "modelhost_predictions_total{model=\"a/b\",version=\"2\",role=\"primary\",code=\"plugin_fault\"} 1",
            "modelhost_prediction_rows_total{model=\"a/b\",version=\"2\",role=\"primary\"} 3",
            "modelhost_challenger_comparisons_total\
             {model=\"a/b\",served=\"1\",challenger=\"2\",agreement=\"differs\"} 1",
            "modelhost_http_requests_total{route=\"infer\",status=\"200\"} 1",
            "nv_inference_request_success{model=\"a/b\",version=\"2\"} 1",
            "nv_inference_request_failure{model=\"a/b\",version=\"2\"} 1",
            "nv_inference_count{model=\"a/b\",version=\"2\"} 3",
            "nv_inference_compute_infer_duration_us{model=\"a/b\",version=\"2\"} 50",
            "nv_inference_pending_request_count{model=\"a/b\",version=\"2\"} 0",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("role=\"challenger\""), "no series before the first request in that role");
        assert_eq!(metrics.comparisons(&name, version(1), version(2))[2], ("differs", 1));
    }
}
