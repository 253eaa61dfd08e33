//! Clients that others wrote, from PyPI; `cargo xtask test` installs them.

use std::process::Command;

use modelhost_core::tensor::DType;
use modelhost_tests::{Host, Package, root};

/// Runs a script of `tests/python` against the host.
fn run(script: &str, host: &Host) {
    let Some(python) = std::env::var_os("MODELHOST_TEST_PYTHON") else {
        assert!(std::env::var_os("CI").is_none(), "CI must have the Python clients");
        println!("skipped: the Python clients could not be installed");
        return;
    };
    let address = host.client.url.trim_start_matches("http://").to_owned();
    let output =
        Command::new(python).arg(root().join("tests/python").join(script)).arg(address).output().unwrap();
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// One echo a datatype, models that fail, and a real one.
fn host() -> Host {
    let host = Host::start_with(|config| {
        config.repository_control = true;
        config.default_model = Some("demo/credit".to_owned());
    });
    for dtype in DType::ALL {
        let package = Package::fault("echo", "").with_parameter("datatype", dtype.as_str());
        host.client.register(&format!("demo/echo-{dtype}"), &package, true);
    }
    host.client.register("demo/fails", &Package::fault("fail", ""), true);
    host.client.register("demo/spins", &Package::fault("spin", "[limits]\ndeadline_ms = 20000"), true);
    host.client.register("demo/credit", &Package::folder("examples/credit-risk/xgboost"), true);
    host
}

#[test]
fn tritonclient_accepts_the_answers() {
    run("tritonclient_all.py", &host());
}

#[test]
fn kserve_mlflow_and_tf_serving_accept_the_answers() {
    run("other_clients.py", &host());
}
