//! Clients that others wrote, from PyPI; `cargo xtask test` installs them.

use std::process::Command;

use modelhost_tests::{Host, Package, root};

#[test]
fn tritonclient_accepts_the_answers() {
    let Some(python) = std::env::var_os("MODELHOST_TEST_PYTHON") else {
        assert!(std::env::var_os("CI").is_none(), "CI must have the Python clients");
        println!("skipped: the Python clients could not be installed");
        return;
    };
    let host = Host::start();
    host.client.register("demo/echo", &Package::fault("echo", ""), true);
    host.client.register("demo/text", &Package::fault("echo", "").with_parameter("datatype", "BYTES"), true);
    host.client.register("demo/credit", &Package::folder("examples/credit-risk/xgboost"), true);
    let script = root().join("tests/python/tritonclient_http.py");
    let address = host.client.url.trim_start_matches("http://").to_owned();
    let output = Command::new(python).arg(script).arg(address).output().unwrap();
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
