//! Runs the tests, and CI's checks around them.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::build;
use crate::sh::{cargo, command, is_there, run, target_dir};

/// The PyPI packages that the tests use as clients.
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

/// Excludes the components that build only for the guest target.
const NATIVE: [&str; 4] = ["--exclude", "guest-faults", "--exclude", "example-custom-model"];

/// Builds the guests, installs the Python clients and runs every test.
pub(crate) fn run_tests() -> Result<()> {
    let components = build::guests()?;
    let python = python_clients();
    ensure_browser();
    // One command for both: cargo selects features over the whole command, so it builds shared dependencies once.
    run(cargo().args(["build", "--workspace", "--tests", "--bin", "modelhost"]).args(NATIVE))?;
    let mut test = cargo();
    test.env("MODELHOST_BINARY", target_dir().join("debug/modelhost"));
    test.args(["test", "--workspace"]).args(NATIVE);
    test.env("MODELHOST_COMPONENTS", components);
    match python {
        Ok(python) => {
            test.env("MODELHOST_TEST_PYTHON", python);
        }
        // Tests that need the clients print that they are skipped. In CI they fail.
        Err(error) => println!("no Python clients: {error:#}"),
    }
    run(&mut test)
}

/// In CI, installs Chromium and its driver from Debian's packages. Elsewhere, the test that needs them prints that it
/// is skipped.
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

/// Creates a virtual environment with the clients, once. Returns its Python.
fn python_clients() -> Result<PathBuf> {
    let venv = target_dir().join("python-clients");
    let python = venv.join("bin/python");
    let installed = venv.join("installed");
    let wanted = PYTHON_CLIENTS.join("\n");
    if std::fs::read_to_string(&installed).is_ok_and(|text| text == wanted) {
        return Ok(python);
    }
    run(command("python3").args(["-m", "venv", "--clear"]).arg(&venv))
        .context("creating a virtual environment")?;
    run(command(&python)
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
        .args(PYTHON_CLIENTS))
    .context("installing clients from PyPI")?;
    std::fs::write(installed, wanted)?;
    Ok(python)
}

/// Runs all of CI's checks, cheapest first.
pub(crate) fn ci() -> Result<()> {
    run(cargo().args(["fmt", "--all", "--check"]))?;
    crate::tidy::run()?;
    crate::codegen::run(true)?;
    if is_there("cargo-deny", "--version") {
        // cargo-deny reads the dependencies of every platform, and runs offline.
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
