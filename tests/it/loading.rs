//! Cold versions: many callers at once, unloads, eviction across deployments, and who is at fault.

use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use modelhost_tests::{Host, Package, root, x};
use serde_json::{Value, json};

/// Longer than any load here takes. An answer that is not there by then never comes.
const NEVER: Duration = Duration::from_secs(90);

/// Sends a request to each of `models` at once, from a thread each. All must answer.
fn all_answer(host: &Host, body: &Value, models: &[String]) {
    let (send, answers) = mpsc::channel();
    for model in models {
        let (client, send) = (host.client.clone(), send.clone());
        let (path, body) = (format!("/v2/models/{model}/infer"), body.clone());
        std::thread::spawn(move || drop(send.send(client.post(&path, &body))));
    }
    for at in 0..models.len() {
        let answer =
            answers.recv_timeout(NEVER).unwrap_or_else(|_| panic!("answer {at} of {}", models.len()));
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

fn forget_compiled(data: &Path) {
    std::fs::remove_dir_all(data.join("compiled")).unwrap();
}

/// A load reads blobs, compiles and starts instances. No step may wait for a thread that waits for the load.
fn cold_versions_answer_all_callers(manifest: &str, between: fn(&Path)) {
    let host = Host::start();
    let models: Vec<_> = (0..6).map(|number| format!("demo/m{number}")).collect();
    for model in &models {
        host.client.register(model, &Package::fault("count", manifest), true);
    }
    let host = host.restart(between);
    all_answer(&host, &x(&[1.0]), &vec![models[0].clone(); 64]);
    all_answer(&host, &x(&[1.0]), &models.iter().cycle().take(24).cloned().collect::<Vec<_>>());
    host.stop();
}

#[test]
fn callers_of_cold_warm_versions_are_answered_after_a_restart() {
    cold_versions_answer_all_callers("isolation = 'instance'", |_| {});
}

#[test]
fn callers_of_versions_that_must_be_compiled_again_are_answered() {
    cold_versions_answer_all_callers("", forget_compiled);
}

#[test]
fn callers_of_cold_warm_versions_that_must_be_compiled_again_are_answered() {
    cold_versions_answer_all_callers("isolation = 'instance'", forget_compiled);
}

#[test]
fn callers_of_cold_graphs_are_answered_after_a_restart() {
    let host = crate::graphs::host();
    let graph = || std::fs::read(root().join("tests/fixtures/onnx/mlp.onnx")).unwrap();
    let models: Vec<_> = (0..6).map(|number| format!("demo/m{number}")).collect();
    for model in &models {
        host.client.register(model, &Package::graph(graph(), "[graphs]\nbackend = 'tract'"), true);
    }
    let host = host.restart(|_| {});
    let row = json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 8], "data": [0, 0, 0, 0, 0, 0, 0, 0]}]});
    all_answer(&host, &row, &vec![models[0].clone(); 32]);
    all_answer(&host, &row, &models.iter().cycle().take(24).cloned().collect::<Vec<_>>());
    host.stop();
}

/// If a registered version cannot be loaded, the host is at fault, not the caller.
#[test]
fn a_blob_that_is_gone_is_not_the_callers_fault() {
    let host = Host::start();
    host.client.register("demo/m", &Package::fault("count", "isolation = 'instance'"), true);
    let host = host.restart(|data| {
        let folders = std::fs::read_dir(data.join("blobs")).unwrap().flatten();
        let files = folders.filter(|folder| folder.file_name() != "partial");
        for file in files.flat_map(|folder| std::fs::read_dir(folder.path()).unwrap().flatten()) {
            std::fs::remove_file(file.path()).unwrap();
        }
    });
    let answer = host.client.post("/v2/models/demo/m/infer", &x(&[1.0]));
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.error().contains("it cannot be loaded: blob"), "{}", answer.error());
}

#[test]
fn a_withdrawal_outlives_a_move_and_a_new_start_of_its_deployment() {
    let host = Host::start_with(|config| config.repository_control = true);
    host.client.register("demo/m", &Package::fault("echo", ""), true);
    let infer = || host.client.post("/v2/models/demo/m/infer", &x(&[1.0])).status;
    assert_eq!(infer(), 200);
    assert_eq!(host.client.post("/v2/repository/models/demo/m/unload", &json!({})).status, 200);
    assert_eq!(infer(), 503);
    let admin = |method: &str, path: &str, body| {
        let answer = host.client.admin(method, path, &body).unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
    };
    admin("POST", "/deployments/default/recreate", json!({}));
    assert_eq!(infer(), 503, "recreated");
    admin("PUT", "/deployments/other", json!({}));
    admin("PUT", "/models/demo/m/deployment", json!({"deployment": "other"}));
    assert_eq!(infer(), 503, "moved");
    assert_eq!(host.client.post("/v2/repository/models/demo/m/load", &json!({})).status, 200);
    assert_eq!(infer(), 200);
}

/// All deployments share the host's places in memory, so a version of another deployment may be evicted.
#[test]
fn a_full_neighbour_makes_room() {
    let host = Host::start_with(|config| config.loaded_versions = Some(2));
    for deployment in ["first", "second"] {
        let answer = host.client.admin("PUT", &format!("/deployments/{deployment}"), &json!({})).unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    for (model, deployment) in [("demo/a", "first"), ("demo/b", "first"), ("demo/c", "second")] {
        host.client.register(model, &Package::fault("echo", ""), true);
        let body = json!({"deployment": deployment});
        let answer = host.client.admin("PUT", &format!("/models/{model}/deployment"), &body).unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        let answer = host.client.post(&format!("/v2/models/{model}/infer"), &x(&[1.0]));
        assert_eq!(answer.status, 200, "{model}: {answer:?}");
    }
    let row =
        |name: &str| host.client.admin("GET", &format!("/deployments/{name}"), &json!(null)).unwrap().body;
    assert_eq!([&row("first")["loaded"], &row("first")["evictions"], &row("second")["loaded"]], [1, 1, 1]);
}
