//! Checks rules that the compiler does not check: imports between crates, a map that names every crate, and file sizes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::sh::{cargo, output, root};

/// The workspace crates that each crate may depend on.
const ALLOWED: [(&str, &[&str]); 11] = [
    ("modelhost-core", &[]),
    ("modelhost-onnx", &["modelhost-core"]),
    ("modelhost-nn", &["modelhost-core", "modelhost-onnx"]),
    ("modelhost-engine", &["modelhost-core", "modelhost-nn"]),
    ("modelhost-registry", &["modelhost-core"]),
    ("modelhost-serving", &["modelhost-core"]),
    ("modelhost-protocol", &["modelhost-core"]),
    ("modelhost-telemetry", &["modelhost-core"]),
    ("modelhost-admin", &["modelhost-core", "modelhost-registry"]),
    ("modelhost-cli", &["modelhost-admin", "modelhost-server"]),
    ("modelhost-sdk", &[]),
];

/// The external crates that core may use. Core stays pure.
const CORE_USES: [&str; 4] = ["bytes", "half", "thiserror", "xxhash-rust"];

/// The parts of std that core must not use.
const CORE_NEVER: [&str; 5] = ["std::fs", "std::net", "std::env", "std::process", "SystemTime::now"];

/// The most lines of a source file.
const MAX_LINES: usize = 600;

pub(crate) fn run() -> Result<()> {
    let mut wrong = Vec::new();
    let metadata: Value =
        serde_json::from_str(&output(cargo().args(["metadata", "--format-version", "1", "--no-deps"]))?)?;
    let packages = metadata.get("packages").and_then(Value::as_array).context("cargo metadata")?;
    let map = fs::read_to_string(root().join("ARCHITECTURE.md")).context("ARCHITECTURE.md")?;
    for package in packages {
        let name = package.get("name").and_then(Value::as_str).unwrap_or_default();
        if !map.contains(&format!("`{name}`")) {
            wrong.push(format!("ARCHITECTURE.md does not name the crate `{name}`"));
        }
        check_imports(name, package, &mut wrong);
    }
    for file in sources(&root().join("host/core/src"))? {
        let text = fs::read_to_string(&file)?;
        for never in CORE_NEVER.iter().filter(|never| text.contains(*never)) {
            wrong.push(format!("{}: core must not use {never}", file.display()));
        }
    }
    for folder in ["host", "sdk", "plugins", "examples", "tests"] {
        for file in sources(&root().join(folder))? {
            let lines = fs::read_to_string(&file)?.lines().count();
            if lines > MAX_LINES {
                wrong.push(format!("{}: {lines} lines; at most {MAX_LINES} are allowed", file.display()));
            }
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    bail!("tidy:\n  {}", wrong.join("\n  "))
}

fn check_imports(name: &str, package: &Value, wrong: &mut Vec<String>) {
    let dependencies = package.get("dependencies").and_then(Value::as_array).into_iter().flatten();
    let used = dependencies
        .filter(|dependency| dependency.get("kind").is_none_or(Value::is_null))
        .filter_map(|dependency| dependency.get("name").and_then(Value::as_str));
    for dependency in used {
        let ours = dependency.starts_with("modelhost-");
        let allowed = ALLOWED.iter().find(|(crate_name, _)| *crate_name == name);
        if let Some((_, allowed)) = allowed.filter(|(_, allowed)| ours && !allowed.contains(&dependency)) {
            wrong.push(format!("{name} must not depend on {dependency}; allowed are {allowed:?}"));
        }
        if name == "modelhost-core" && !CORE_USES.contains(&dependency) {
            wrong.push(format!("core must not depend on {dependency}"));
        }
        if dependency.starts_with("wasmtime") && name != "modelhost-engine" {
            wrong.push(format!("{name} must not depend on {dependency}: only the engine does"));
        }
    }
}

fn sources(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in fs::read_dir(folder)?.flatten().map(|entry| entry.path()) {
        if path.is_dir() && path.ends_with("generated") {
            continue;
        } else if path.is_dir() {
            found.extend(sources(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(found)
}
