//! The state of the machine's NVIDIA GPUs, from their driver's library.

use std::sync::OnceLock;

use modelhost_core::graph::GpuStatus;
use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

/// The library, if there is one. It is looked for once.
static LIBRARY: OnceLock<Option<Nvml>> = OnceLock::new();

/// The GPUs in the driver's order. Empty without a driver. A GPU that does not answer is left out.
pub fn gpus() -> Vec<GpuStatus> {
    let Some(library) = LIBRARY.get_or_init(|| Nvml::init().ok()) else { return Vec::new() };
    (0..library.device_count().unwrap_or(0)).filter_map(|at| status(library, at).ok()).collect()
}

fn status(library: &Nvml, at: u32) -> Result<GpuStatus, NvmlError> {
    let device = library.device_by_index(at)?;
    let memory = device.memory_info()?;
    Ok(GpuStatus {
        uuid: device.uuid()?,
        utilisation: f64::from(device.utilization_rates()?.gpu) / 100.0,
        used_bytes: memory.used,
        total_bytes: memory.total,
    })
}
