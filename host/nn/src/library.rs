//! Finds and loads ONNX Runtime's library, once per process.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ort::device::Device;
use ort::environment::Environment;
use ort::ep::{self, ExecutionProvider as _};
use ort::logging::LogLevel;

use crate::webgpu;

/// The result of loading it. A process can load one library.
static LOADED: Mutex<Option<Result<Library, String>>> = Mutex::new(None);

/// The loaded ONNX Runtime.
#[derive(Clone)]
pub(crate) struct Library {
    pub(crate) environment: Environment,
    /// For example `1.23.2`.
    pub(crate) version: String,
    pub(crate) path: PathBuf,
}

/// The process's ONNX Runtime, for code that makes its own sessions. A process has one environment. Errors: where it
/// was looked for, or what is wrong with the library.
pub fn environment(configured: Option<&Path>) -> Result<Environment, String> {
    Library::get(configured).map(|library| library.environment)
}

impl Library {
    /// Returns the library. The first call loads it. `configured` is a file, a folder that holds it, or a Python
    /// environment with the package `onnxruntime`. Errors: where it was looked for, or what is wrong with the
    /// library.
    pub(crate) fn get(configured: Option<&Path>) -> Result<Self, String> {
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        let load =
            || load(configured).inspect_err(|why| tracing::warn!(why, "no ONNX Runtime: graphs are tract's"));
        loaded.get_or_insert_with(load).clone()
    }

    /// The file that would be loaded.
    pub(crate) fn place(configured: Option<&Path>) -> Option<PathBuf> {
        find(configured, |name| env::var_os(name).map(PathBuf::from)).ok()
    }

    /// The devices of the WebGPU plugin. Errors: why there are none.
    pub(crate) fn webgpu(&self) -> Result<Vec<Device<'_>>, String> {
        webgpu::devices(&self.environment, &self.path)
    }

    /// Describes the usable devices, for people.
    pub(crate) fn devices(&self) -> String {
        let cuda = if has_cuda() { "with" } else { "without" };
        let nvidia = (0..64).filter(|at| Path::new(&format!("/dev/nvidia{at}")).exists()).count();
        let webgpu = match self.webgpu() {
            Ok(devices) => format!("{} WebGPU devices", devices.len()),
            Err(why) => format!("no WebGPU ({why})"),
        };
        format!("ONNX Runtime {} {cuda} CUDA, {nvidia} NVIDIA devices, and {webgpu}", self.version)
    }
}

/// Whether ONNX Runtime was built with CUDA.
pub(crate) fn has_cuda() -> bool {
    ep::CUDA::is_available().unwrap_or(false)
}

fn load(configured: Option<&Path>) -> Result<Library, String> {
    let found = find(configured, |name| env::var_os(name).map(PathBuf::from))?;
    // `ort` would look for a relative path beside the executable first.
    let found =
        fs::canonicalize(&found).map_err(|error| format!("ONNX Runtime {}: {error}", found.display()))?;
    let builder = ort::init_from(&found).map_err(|error| format!("ONNX Runtime: {error}"))?;
    let environment = builder
        .with_name("modelhost")
        .with_telemetry(false)
        .build()
        .map_err(|error| format!("ONNX Runtime {}: {error}", found.display()))?;
    environment.set_log_level(LogLevel::Warning);
    let version = version(&found);
    tracing::info!(library = %found.display(), version, "loaded ONNX Runtime");
    Ok(Library { environment, version, path: found })
}

/// The number in the file's name, as in `libonnxruntime.so.1.23.2`, or the library's own description of its build.
fn version(library: &Path) -> String {
    let name = library.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let number = name.split_once(".so.").map(|(_, number)| number.to_owned());
    number.filter(|number| number.contains('.')).unwrap_or_else(|| {
        let branch = ort::info().split(['=', ',', ' ']).find_map(|word| word.strip_prefix("rel-"));
        branch.unwrap_or("of unknown version").to_owned()
    })
}

/// Finds the library: by the setting, `MODELHOST_ONNXRUNTIME`, `ORT_DYLIB_PATH`, the active Python environment, or in
/// the usual folders. Errors: all the places where it is not.
fn find(configured: Option<&Path>, variable: impl Fn(&str) -> Option<PathBuf>) -> Result<PathBuf, String> {
    let told = configured
        .map(|path| ("the setting onnxruntime", path.to_path_buf()))
        .or_else(|| Some(("MODELHOST_ONNXRUNTIME", variable("MODELHOST_ONNXRUNTIME")?)))
        .or_else(|| Some(("ORT_DYLIB_PATH", variable("ORT_DYLIB_PATH")?)));
    if let Some((who, path)) = told {
        return in_place(&path).ok_or_else(|| {
            format!(
                "ONNX Runtime is not at {}, which {who} names: neither libonnxruntime.so nor a Python environment \
                 with the package onnxruntime",
                path.display()
            )
        });
    }
    let environments = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(&variable);
    let usual = ["/usr/local/lib", "/usr/lib", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"];
    let mut places = environments.chain(usual.into_iter().map(PathBuf::from));
    places.find_map(|place| in_place(&place)).ok_or_else(|| {
        "ONNX Runtime was not found: install the Python package onnxruntime and name its environment in the setting \
         onnxruntime or in MODELHOST_ONNXRUNTIME, or name libonnxruntime.so itself"
            .to_owned()
    })
}

/// Finds the library in one place, which is the file itself, a folder, or a Python environment.
fn in_place(place: &Path) -> Option<PathBuf> {
    if place.is_file() {
        return Some(place.to_path_buf());
    }
    let site_packages = entries(&place.join("lib"))
        .into_iter()
        .filter(|path| file_name(path).starts_with("python3"))
        .map(|path| path.join("site-packages/onnxruntime/capi"));
    [place.to_path_buf(), place.join("lib"), place.join("onnxruntime/capi")]
        .into_iter()
        .chain(site_packages)
        .find_map(|folder| library_in(&folder))
}

fn library_in(folder: &Path) -> Option<PathBuf> {
    entries(folder).into_iter().rfind(|path| {
        let name = file_name(path);
        name == "libonnxruntime.so" || name.starts_with("libonnxruntime.so.")
    })
}

/// The entries of a folder, ordered by name.
pub(crate) fn entries(folder: &Path) -> Vec<PathBuf> {
    let read = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<_> = read.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

pub(crate) fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_library_of_a_python_environment() {
        let dir = tempfile::tempdir().unwrap();
        let capi = dir.path().join("lib/python3.12/site-packages/onnxruntime/capi");
        fs::create_dir_all(&capi).unwrap();
        fs::write(capi.join("onnxruntime_pybind11_state.so"), "").unwrap();
        let error = find(Some(dir.path()), |_| None).unwrap_err();
        assert!(error.contains("which the setting onnxruntime names"), "{error}");
        let library = capi.join("libonnxruntime.so.1.23.2");
        fs::write(&library, "").unwrap();
        assert_eq!(find(Some(dir.path()), |_| None).as_ref(), Ok(&library));
        assert_eq!(find(Some(&library), |_| None).as_ref(), Ok(&library));
        let active = |name: &str| (name == "VIRTUAL_ENV").then(|| dir.path().to_path_buf());
        assert_eq!(find(None, active).as_ref(), Ok(&library));
        assert_eq!(version(&library), "1.23.2");
    }

    #[test]
    fn says_what_to_install() {
        let error = find(None, |_| Some("/nowhere".into())).unwrap_err();
        assert!(error.contains("/nowhere, which MODELHOST_ONNXRUNTIME names"), "{error}");
    }
}
