//! Metrics of what the host holds for its clients, read at each scrape.

use std::fmt::Error;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::usage::{Watch, number};

/// What the host holds for its clients.
#[derive(Debug, Clone, Default)]
pub struct Clients {
    /// Open connections by port: `public`, `grpc`, `admin`.
    pub connections: Vec<(&'static str, usize)>,
    /// Bytes of requests and answers in memory.
    pub held_bytes: u64,
}

/// Reads what the host holds now.
pub type ReadClients = Box<dyn Fn() -> Clients + Send + Sync>;

pub(crate) type ClientsCollector = Watch<Clients>;

impl Collector for ClientsCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let Some(read) = self.0.get() else { return Ok(()) };
        let clients = read();
        let mut family =
            encoder.encode_descriptor("connections", "Open connections", None, MetricType::Gauge)?;
        for (port, count) in clients.connections {
            ConstGauge::new(number(count as u64)).encode(family.encode_family(&[("port", port)])?)?;
        }
        let help = "Bytes of requests and answers in memory";
        let encoder = encoder.encode_descriptor("held_bytes", help, None, MetricType::Gauge)?;
        ConstGauge::new(number(clients.held_bytes)).encode(encoder)
    }
}
