//! Tests, and what CI runs around them.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::build;
use crate::sh::{cargo, command, is_there, run, target_dir};

/// Clients from PyPI that the tests drive.
const PYTHON_CLIENTS: [&str; 13] = [
    "tritonclient[http,grpc]==2.73.0",
    "ml_dtypes",
    "kserve==0.21.0",
    "mlflow-skinny==3.17.2",
    "pandas",
    "scipy",
    "selenium",
    "schemathesis",
    "opentelemetry-proto",
    "grpcio-health-checking",
    "grpcio-reflection",
    "onnxruntime==1.31.1",
    "onnxruntime-ep-webgpu==0.4.0",
];

/// Leaves out the components that build for the guest target alone.
const NATIVE: [&str; 4] = ["--exclude", "guest-faults", "--exclude", "example-custom-model"];

/// Builds guests, installs Python clients, runs every test.
pub(crate) fn run_tests() -> Result<()> {
    let components = build::guests()?;
    let python = python_clients();
    ensure_browser();
    // Together, so that cargo builds what both depend on once: its features follow from all that is asked for.
    run(cargo().args(["build", "--workspace", "--tests", "--bin", "modelhost"]).args(NATIVE))?;
    let mut test = cargo();
    test.env("MODELHOST_BINARY", target_dir().join("debug/modelhost"));
    test.args(["test", "--workspace"]).args(NATIVE);
    test.env("MODELHOST_COMPONENTS", components);
    match python {
        Ok(python) => {
            test.env("MODELHOST_TEST_PYTHON", python);
        }
        // On a laptop without a network the tests that need it say that they were skipped; in CI they fail.
        Err(error) => println!("no Python clients: {error:#}"),
    }
    run(&mut test)
}

/// Chromium and its driver, from Debian's packages. CI must have them; elsewhere the test that needs them says that it was skipped.
fn ensure_browser() {
    if std::path::Path::new("/usr/bin/chromedriver").exists() || std::env::var_os("CI").is_none() {
        return;
    }
    let install =
        |arguments: &[&str]| run(command("apt-get").args(arguments).env("DEBIAN_FRONTEND", "noninteractive"));
    let installed = install(&["update", "-qq"]).and_then(|()| {
        install(&["install", "-y", "-qq", "--no-install-recommends", "chromium", "chromium-driver"])
    });
    if let Err(error) = installed {
        println!("no Chromium: {error:#}");
    }
}

/// A virtual environment with the clients, made once.
fn python_clients() -> Result<PathBuf> {
    let venv = target_dir().join("python-clients");
    let python = venv.join("bin/python");
    let installed = venv.join("installed");
    let wanted = PYTHON_CLIENTS.join("\n");
    if std::fs::read_to_string(&installed).is_ok_and(|text| text == wanted) {
        return Ok(python);
    }
    run(command("python3").args(["-m", "venv", "--clear"]).arg(&venv))
        .context("making a virtual environment")?;
    run(command(&python)
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
        .args(PYTHON_CLIENTS))
    .context("installing clients from PyPI")?;
    std::fs::write(installed, wanted)?;
    Ok(python)
}

/// Cheapest first.
pub(crate) fn ci() -> Result<()> {
    run(cargo().args(["fmt", "--all", "--check"]))?;
    crate::tidy::run()?;
    crate::codegen::run(true)?;
    if is_there("cargo-deny", "--version") {
        // It looks at every platform's dependencies, offline.
        run(cargo().args(["fetch", "--quiet", "--locked"]))?;
        run(cargo().args(["deny", "--offline", "check", "bans", "licenses", "sources"]))?;
    } else {
        println!("cargo-deny is not installed: skipped (cargo install cargo-deny)");
    }
    run(cargo()
        .args(["clippy", "--quiet", "--workspace", "--all-targets"])
        .args(NATIVE)
        .args(["--", "-D", "warnings"]))?;
    run(cargo()
        .args(["doc", "--quiet", "--no-deps", "--workspace"])
        .args(NATIVE)
        .env("RUSTDOCFLAGS", "-D warnings"))?;
    run_tests()?;
    Ok(())
}
