//! Third-party clients from PyPI. `cargo xtask test` installs them.

use std::process::Command;

use modelhost_core::tensor::DType;
use modelhost_tests::{Host, Package, components, root};

/// The Python with the clients. The test is skipped if it is missing.
pub(crate) fn python() -> Option<Command> {
    let Some(python) = std::env::var_os("MODELHOST_TEST_PYTHON") else {
        assert!(std::env::var_os("CI").is_none(), "CI must have the Python clients");
        println!("skipped: the Python clients could not be installed");
        return None;
    };
    Some(Command::new(python))
}

fn succeeds(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Runs a script of `tests/python` against the host's public port.
fn run(script: &str, host: &Host, arguments: &[&std::path::Path]) {
    run_at(script, host.client.url.trim_start_matches("http://"), arguments);
}

fn run_at(script: &str, address: &str, arguments: &[&std::path::Path]) {
    let Some(mut python) = python() else { return };
    succeeds(python.arg(root().join("tests/python").join(script)).arg(address).args(arguments));
}

/// A host with an echo model per datatype, models that fail, and a real model.
fn host() -> Host {
    let host = Host::start_with(|config| {
        config.grpc_listen = Some(([127, 0, 0, 1], 0).into());
        config.repository_control = true;
        config.default_model = Some("demo/credit".to_owned());
    });
    for dtype in DType::ALL {
        let package = Package::fault("echo", "").with_parameter("datatype", dtype.as_str());
        host.client.register(&format!("demo/echo-{dtype}"), &package, true);
    }
    host.client.register("demo/fails", &Package::fault("fail", ""), true);
    host.client.register(
        "demo/spins",
        &Package::fault("spin", "limits = { deadline_ms = 60000, concurrency = 1, queue = 0 }"),
        true,
    );
    host.client.register("demo/credit", &Package::folder("examples/credit-risk/xgboost"), true);
    host
}

#[test]
fn tritonclient_accepts_the_answers() {
    run("tritonclient_all.py", &host(), &[]);
}

#[test]
fn grpc_services_answer_on_both_ports() {
    let host = host();
    run("grpc_services.py", &host, &[]);
    run_at("grpc_services.py", &host.grpc_address().unwrap().to_string(), &[]);
}

#[test]
fn kserve_mlflow_and_tf_serving_accept_the_answers() {
    run("other_clients.py", &host(), &[]);
}

#[test]
fn pages_work_in_a_browser() {
    if !std::path::Path::new("/usr/bin/chromedriver").exists() {
        assert!(std::env::var_os("CI").is_none(), "CI must have Chromium");
        println!("skipped: Chromium and its driver are not installed");
        return;
    }
    let host = crate::graphs::host();
    host.client.register("demo/digits", &crate::graphs::digits(), true);
    host.client.register("demo/echo-FP32", &Package::fault("echo", ""), true);
    host.client.register("demo/credit", &Package::folder("examples/credit-risk/logistic"), false);
    host.client.register("demo/credit", &Package::folder("examples/credit-risk/xgboost"), true);
    let screenshots = components().join("../screenshots");
    std::fs::create_dir_all(&screenshots).unwrap();
    let admin = host.client.admin.trim_start_matches("http://").to_owned();
    run("browser.py", &host, &[&screenshots, std::path::Path::new(&admin)]);
}

#[test]
fn schemathesis_finds_no_fault_with_the_openapi_documents() {
    let host = host();
    let checks =
        "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance";
    for model in ["demo/credit", "demo/echo-FP32", "demo/echo-BYTES", "demo/echo-BOOL", "demo/echo-INT8"] {
        let Some(mut python) = python() else { return };
        let document = format!("{}/models/{model}/openapi.json", host.client.url);
        python.args(["-m", "schemathesis.cli", "run", &document, "--checks", checks, "--max-examples", "50"]);
        // schemathesis writes files to its working directory.
        succeeds(python.current_dir(host.data()));
    }
}
