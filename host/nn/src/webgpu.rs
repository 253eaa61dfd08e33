//! ONNX Runtime's WebGPU execution provider, a plugin beside it (PyPI: `onnxruntime-ep-webgpu`): GPUs of every maker, by Vulkan.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ort::device::Device;
use ort::environment::Environment;
use parking_lot::{Mutex, MutexGuard};

use crate::backend::{STOP_EVERY, Stop};

const PROVIDER: &str = "WebGpuExecutionProvider";
const LIBRARY: &str = "libonnxruntime_providers_webgpu.so";

/// Evaluations that run beside one another, in whatever sessions, crash the process
/// (github.com/microsoft/onnxruntime/issues/32561): so one at a time, and a session is made and dropped only between them.
static TURN: Mutex<()> = Mutex::new(());

/// Registering it is done once a process.
static REGISTERED: OnceLock<Result<(), String>> = OnceLock::new();

/// Its devices, as ONNX Runtime found them; registers it at the first call. `onnxruntime`: the library beside which it is
/// looked for. Errors: that it is not installed, or what is wrong with it.
pub(crate) fn devices<'a>(
    environment: &'a Environment,
    onnxruntime: &Path,
) -> Result<Vec<Device<'a>>, String> {
    REGISTERED.get_or_init(|| register(environment, onnxruntime)).clone()?;
    Ok(environment.devices().filter(|device| device.ep().is_ok_and(|name| name == PROVIDER)).collect())
}

fn register(environment: &Environment, onnxruntime: &Path) -> Result<(), String> {
    let library = find(onnxruntime).ok_or("onnxruntime-ep-webgpu is not installed beside it")?;
    environment.register_ep_library("webgpu", &library).map_err(|error| {
        tracing::warn!(library = %library.display(), error = error.message(), "no WebGPU");
        "onnxruntime-ep-webgpu cannot be loaded, and the host's log says why"
    })?;
    tracing::info!(library = %library.display(), "loaded the WebGPU execution provider");
    Ok(())
}

/// Beside ONNX Runtime's library, or in the package beside its package (`site-packages/onnxruntime/capi/libonnxruntime.so`).
fn find(onnxruntime: &Path) -> Option<PathBuf> {
    let folder = onnxruntime.parent()?;
    let package = folder.join("../../onnxruntime_ep_webgpu");
    [folder.join(LIBRARY), package.join(LIBRARY)].into_iter().find(|path| path.is_file())
}

/// The right to use it, until this is dropped.
pub(crate) type Turn = MutexGuard<'static, ()>;

/// Waits for a turn. `None`: nobody waits for it any more.
pub(crate) fn turn(stop: Option<&Stop>) -> Option<Turn> {
    loop {
        if let Some(turn) = TURN.try_lock_for(STOP_EVERY) {
            return Some(turn);
        }
        if stop.is_some_and(Stop::is_asked) {
            return None;
        }
    }
}
