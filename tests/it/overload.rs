//! Overload: the host refuses requests beyond its bounds fast, with a typed error, and serves the others.

use std::sync::Barrier;
use std::time::Instant;

use modelhost_tests::{Host, Package, x};
use serde_json::json;

use crate::deployments::{show, until};

/// Waits until `count` predictions run in the deployment.
fn running(host: &Host, deployment: &str, count: u32) {
    until("they run", || show(&host.client, deployment)["running"] == count);
}

#[test]
fn beyond_concurrency_and_queue_the_answer_is_503_at_once() {
    let host = Host::start();
    let limits = "limits = { concurrency = 1, queue = 1, deadline_ms = 5000 }";
    host.client.register("demo/busy", &Package::fault("spin", limits), true);
    let barrier = Barrier::new(6);
    let answers: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..6)
            .map(|_| {
                scope.spawn(|| {
                    barrier.wait();
                    let start = Instant::now();
                    let answer = host.client.post("/v2/models/demo/busy/infer", &x(&[1.0]));
                    (answer, start.elapsed())
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let refused: Vec<_> = answers.iter().filter(|(answer, _)| answer.status == 503).collect();
    assert_eq!(refused.len(), 4, "{answers:?}");
    for (answer, _) in &refused {
        assert_eq!(answer.headers["retry-after"], "1");
        assert_eq!(answer.body["code"], "resource_exhausted");
    }
    let slowest_refusal = refused.iter().map(|(_, took)| *took).max().unwrap();
    let first_answer = answers.iter().filter(|(answer, _)| answer.status == 502).map(|(_, took)| *took).min();
    assert!(slowest_refusal < first_answer.unwrap(), "a refusal waited for an instance");
}

#[test]
fn more_instances_than_the_pool_holds_is_a_refusal_not_a_failure() {
    let host = Host::start_with(|config| config.instances = 2);
    host.client.register(
        "demo/busy",
        &Package::fault("spin", "limits = { concurrency = 2, queue = 0, deadline_ms = 5000 }"),
        true,
    );
    host.client.register("demo/other", &Package::fault("echo", "limits = { concurrency = 2 }"), true);
    // Two deployments together may have more instances than the host.
    host.client.admin("PUT", "/deployments/second", &json!({})).unwrap();
    host.client.admin("PUT", "/models/demo/busy/deployment", &json!({"deployment": "second"})).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| host.client.post("/v2/models/demo/busy/infer", &x(&[1.0])));
        }
        running(&host, "second", 2);
        let answer = host.client.post("/v2/models/demo/other/infer", &x(&[1.0]));
        assert_eq!(answer.status, 503, "{answer:?}");
    });
    assert_eq!(host.client.post("/v2/models/demo/other/infer", &x(&[1.0])).status, 200);
}

#[test]
fn a_request_waits_its_turn_when_every_instance_is_busy() {
    let host = Host::start_with(|config| config.instances = 2);
    let limits = "limits = { concurrency = 2, queue = 0, deadline_ms = 300 }";
    host.client.register("demo/busy", &Package::fault("spin", limits), true);
    host.client.register("demo/other", &Package::fault("echo", "limits = { deadline_ms = 20000 }"), true);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| host.client.post("/v2/models/demo/busy/infer", &x(&[1.0])));
        }
        running(&host, "default", 2);
        assert_eq!(host.client.post("/v2/models/demo/other/infer", &x(&[1.0])).status, 200);
    });
}

/// Guests that spin on every thread yield to others in each epoch.
#[test]
fn spinning_guests_do_not_stop_others() {
    let host = Host::start();
    let limits = "limits = { concurrency = 8, deadline_ms = 5000 }";
    host.client.register("demo/busy", &Package::fault("spin", limits), true);
    host.client.register("demo/good", &Package::fault("echo", ""), true);
    std::thread::scope(|scope| {
        let spinning: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| host.client.post("/v2/models/demo/busy/infer", &x(&[1.0]))))
            .collect();
        running(&host, "default", 8);
        for _ in 0..20 {
            assert_eq!(host.client.post("/v2/models/demo/good/infer", &x(&[1.0])).status, 200);
        }
        assert!(
            spinning.iter().all(|thread| !thread.is_finished()),
            "the guests must still spin after the others were answered"
        );
    });
}

#[test]
fn artifacts_beyond_their_limit_are_refused() {
    let host = Host::start_with(|config| config.limits.artifact_mib = 2);
    let with = |limit: &str, bytes: usize| {
        let mut package = Package::fault("echo", &format!("artifacts = ['a.bin']\n{limit}"));
        package.files.push(("a.bin".into(), vec![7; bytes]));
        host.client.try_register("demo/m", &package, false).unwrap()
    };
    for (limit, bytes, expected) in [
        ("", 3 << 20, "the artifacts have 3145728 bytes: limit artifact_mib = 2 allows fewer"),
        ("limits = { artifact_mib = 1 }", 2 << 20, "limit artifact_mib = 1 allows fewer"),
        (
            "limits = { artifact_mib = 3 }",
            1,
            "limit artifact_mib = 3 is outside what the operator allows: 1 to 2",
        ),
    ] {
        let answer = with(limit, bytes);
        assert_eq!(answer.status, 400, "{answer:?}");
        assert!(answer.error().contains(expected), "{answer:?}");
    }
    assert_eq!(with("limits = { artifact_mib = 1 }", 1 << 20).status, 200);
}
