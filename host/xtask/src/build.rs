//! Builds the host and its guests.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::guest_target;
use crate::sh::{cargo, run, target_dir};

/// Guest packages and the component file that each becomes.
const GUESTS: [(&str, &str); 9] = [
    ("modelhost-plugin-gbdt", "runtimes/gbdt.wasm"),
    ("modelhost-plugin-linear", "runtimes/linear.wasm"),
    ("modelhost-plugin-onnx", "runtimes/onnx.wasm"),
    ("modelhost-plugin-onnx-sandboxed", "runtimes/onnx-sandboxed.wasm"),
    ("example-custom-model", "examples/custom-model.wasm"),
    ("example-digits", "examples/digits.wasm"),
    ("example-text-embedding", "examples/text-embedding.wasm"),
    ("guest-faults", "tests/faults.wasm"),
    ("guest-wasi-nn", "tests/wasi-nn.wasm"),
];

/// Builds every guest with SIMD. Returns the folder of components, which contains `runtimes/`.
pub(crate) fn guests() -> Result<PathBuf> {
    guest_target::ensure()?;
    let build_dir = target_dir().join("guests");
    let mut build = cargo();
    build
        .args(["build", "--quiet", "--profile", "guest", "--target", "wasm32-wasip2", "--target-dir"])
        .arg(&build_dir);
    for (package, _) in GUESTS {
        build.args(["--package", package]);
    }
    run(build.env("CARGO_TARGET_WASM32_WASIP2_RUSTFLAGS", "-C target-feature=+simd128"))?;
    let components = target_dir().join("components");
    for (package, component) in GUESTS {
        let built = format!("{}.wasm", package.replace('-', "_"));
        place(&build_dir.join("wasm32-wasip2/guest").join(built), &components.join(component))?;
    }
    for (component, package) in [
        ("custom-model.wasm", "custom-model/package/model.wasm"),
        ("digits.wasm", "digits/package/digits.wasm"),
        ("text-embedding.wasm", "text-embedding/package/text-embedding.wasm"),
    ] {
        let package = crate::sh::root().join("examples").join(package);
        place(&components.join("examples").join(component), &package)?;
    }
    Ok(components)
}

/// Builds the release binary and puts the shipped runtimes beside it. Returns the binary's path.
pub(crate) fn release() -> Result<PathBuf> {
    let components = guests()?;
    run(cargo().args(["build", "--release", "--package", "modelhost-cli"]))?;
    let release = target_dir().join("release");
    for runtime in ["gbdt.wasm", "linear.wasm", "onnx.wasm", "onnx-sandboxed.wasm"] {
        place(&components.join("runtimes").join(runtime), &release.join("runtimes").join(runtime))?;
    }
    Ok(release.join("modelhost"))
}

/// Copies a file, unless the same content is there already. A newer file would make cargo rebuild its dependents.
fn place(from: &Path, to: &Path) -> Result<()> {
    let content = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
    if fs::read(to).is_ok_and(|existing| existing == content) {
        return Ok(());
    }
    fs::create_dir_all(to.parent().unwrap_or(to))?;
    fs::write(to, content).with_context(|| format!("writing {}", to.display()))
}
