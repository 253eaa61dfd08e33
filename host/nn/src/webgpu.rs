//! ONNX Runtime's WebGPU execution provider, a plugin beside it (PyPI: `onnxruntime-ep-webgpu`). It runs on GPUs of
//! all makers, through Vulkan.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ort::device::Device;
use ort::environment::Environment;
use parking_lot::{Mutex, MutexGuard};

use crate::backend::{STOP_EVERY, Stop};

const PROVIDER: &str = "WebGpuExecutionProvider";
const LIBRARY: &str = "libonnxruntime_providers_webgpu.so";

/// The process crashes if two evaluations run at once, even of different sessions
/// (github.com/microsoft/onnxruntime/issues/32561). So there is one at a time, and sessions are made and dropped only
/// in between.
static TURN: Mutex<()> = Mutex::new(());

/// The plugin is registered once per process.
static REGISTERED: OnceLock<Result<(), String>> = OnceLock::new();

/// The plugin's devices, as ONNX Runtime reports them. The first call registers the plugin, which is looked for
/// beside the library `onnxruntime`. Errors: it is not installed, or cannot be loaded.
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

/// Looks beside ONNX Runtime's library, and in the package beside its package
/// (`site-packages/onnxruntime/capi/libonnxruntime.so`).
fn find(onnxruntime: &Path) -> Option<PathBuf> {
    let folder = onnxruntime.parent()?;
    let package = folder.join("../../onnxruntime_ep_webgpu");
    [folder.join(LIBRARY), package.join(LIBRARY)].into_iter().find(|path| path.is_file())
}

/// The right to use the plugin. Dropping it passes it on.
pub(crate) type Turn = MutexGuard<'static, ()>;

/// Waits for a turn. `None`: the evaluation was stopped.
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
