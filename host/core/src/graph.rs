//! How the graphs of a version are evaluated, and the record of it. A graph is an artifact that the host evaluates
//! for the version's component, outside the sandbox.

use std::time::Duration;

use crate::error::Error;
use crate::histogram;

/// What evaluates a version's graphs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Backend {
    /// ONNX Runtime where the host has it, else tract.
    #[default]
    Auto,
    /// Pure Rust, part of the host.
    Tract,
    /// A library that the operator installs.
    OnnxRuntime,
}

/// Where a version's graphs are evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Target {
    /// A GPU where there is one, else the processor.
    Auto,
    /// The processor.
    #[default]
    Cpu,
    /// A GPU; without one the version is refused.
    Gpu,
}

/// The manifest's `[graphs]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GraphOptions {
    /// What evaluates them.
    pub backend: Backend,
    /// Where.
    pub target: Target,
    /// Which GPU, from 0.
    pub device: u32,
    /// Threads of one evaluation, from 1.
    pub threads: u32,
    /// Evaluations of one graph at once, from 1. Each beyond the first may hold the weights once more. `None`: one
    /// for each core, or one on a GPU.
    pub sessions: Option<u32>,
}

impl Default for GraphOptions {
    fn default() -> Self {
        Self { backend: Backend::Auto, target: Target::Cpu, device: 0, threads: 1, sessions: None }
    }
}

impl GraphOptions {
    /// Errors: invalid argument, on numbers that make no sense, and on a backend that has no such target.
    pub fn check(&self) -> Result<(), Error> {
        if self.threads == 0 || self.sessions == Some(0) {
            return Err(Error::invalid("graphs: threads and sessions are at least 1"));
        }
        if self.backend == Backend::Tract && self.target == Target::Gpu {
            return Err(Error::invalid(
                "graphs: backend = \"tract\" evaluates on the processor only; target = \"gpu\" needs \"onnxruntime\"",
            ));
        }
        Ok(())
    }
}

/// The manifest's `[batching]`: requests that wait at the same time are answered together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Batching {
    /// Rows of a batch, at most.
    pub max_batch: u32,
    /// Longest that a request waits for others.
    pub max_delay: Duration,
}

impl Batching {
    /// Every request runs alone.
    pub const NONE: Self = Self { max_batch: 1, max_delay: Duration::ZERO };

    /// Whether requests are joined at all.
    pub fn joins(&self) -> bool {
        self.max_batch > 1
    }

    /// Errors: invalid argument, on a batch of none or a delay beyond one second.
    pub fn check(&self) -> Result<(), Error> {
        if self.max_batch == 0 || self.max_delay > Duration::from_secs(1) {
            return Err(Error::invalid(format!(
                "batching: max_batch = {} and max_delay_us = {} are outside 1 to {} and 0 to 1000000",
                self.max_batch,
                self.max_delay.as_micros(),
                u32::MAX
            )));
        }
        Ok(())
    }
}

/// One graph of a loaded version: where it is evaluated, and its work since it was loaded.
#[derive(Debug, Clone, PartialEq)]
pub struct GraphStatus {
    /// The artifact's name.
    pub name: String,
    /// What evaluates it, e.g. `tract` or `onnxruntime 1.23.2`.
    pub backend: String,
    /// Where, e.g. `cpu`, `cuda:0` or `webgpu:0`.
    pub device: String,
    /// Bytes of weights, all sessions together.
    pub weight_bytes: u64,
    /// Bytes of tensors that are being evaluated now.
    pub tensor_bytes: u64,
    /// Processor time of its evaluations. On a GPU: the time that its threads waited for the GPU.
    pub busy: Duration,
    /// Rows of the batches that were evaluated.
    pub batch_rows: Histogram,
    /// Microseconds that evaluations waited, for others to join and for a thread.
    pub queued_micros: Histogram,
}

impl GraphStatus {
    /// Its backend and device, for people, e.g. `onnxruntime 1.23.2 on cuda:0`.
    pub fn place(&self) -> String {
        format!("{} on {}", self.backend, self.device)
    }
}

/// A GPU of this machine.
#[derive(Debug, Clone, PartialEq)]
pub struct GpuStatus {
    /// Its unique name, e.g. `GPU-1234…`.
    pub uuid: String,
    /// Share of the last moments in which it computed, 0 to 1.
    pub utilisation: f64,
    /// Bytes of its memory in use, by all processes.
    pub used_bytes: u64,
    /// Bytes of memory that it has.
    pub total_bytes: u64,
}

/// Counts by powers of two, up to 2^20. Class `i` counts values up to 2^i; the last class counts the larger ones.
pub type Histogram = histogram::Histogram<1, 22>;

/// The same while it counts.
pub type Counts = histogram::Counts<1, 22>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tract_has_no_gpu() {
        let options =
            GraphOptions { backend: Backend::Tract, target: Target::Gpu, ..GraphOptions::default() };
        assert!(options.check().unwrap_err().message.contains("needs \"onnxruntime\""));
        assert_eq!(GraphOptions::default().check(), Ok(()));
    }
}
