//! Loads CUDA for ONNX Runtime's CUDA provider.

use std::path::Path;
use std::sync::Once;

use ort::util::preload_dylib;

use crate::library::{entries, file_name};

/// The libraries that the provider needs, each after its own dependencies.
const LIBRARIES: [&str; 8] = [
    "libcudart.so",
    "libnvJitLink.so",
    "libnvrtc.so",
    "libcublasLt.so",
    "libcublas.so",
    "libcurand.so",
    "libcufft.so",
    "libcudnn.so",
];

static PRELOADED: Once = Once::new();

/// Loads them once per process from the PyPI packages beside ONNX Runtime's (`site-packages/nvidia/*/lib`; `pip
/// install onnxruntime-gpu[cuda,cudnn]`). If there are none, the loader finds the system's libraries, or the provider
/// says what is missing.
pub(crate) fn preload(onnxruntime: &Path) {
    PRELOADED.call_once(|| {
        let packages = onnxruntime.parent().map(|folder| folder.join("../../nvidia")).unwrap_or_default();
        let files: Vec<_> =
            entries(&packages).iter().flat_map(|package| entries(&package.join("lib"))).collect();
        for library in LIBRARIES {
            for file in files.iter().filter(|file| file_name(file).starts_with(library)) {
                if let Err(error) = preload_dylib(file) {
                    tracing::warn!(library = %file.display(), %error, "a library of CUDA cannot be loaded");
                }
            }
        }
    });
}
