//! The response cache is opt-in, gives right answers, and lets concurrent equal requests share one run.

use modelhost_tests::{Host, Package, x};
use serde_json::{Value, json};

const INFER: &str = "/v2/models/demo/m/infer";

fn statistics(host: &Host) -> Value {
    host.client.get("/v2/models/demo/m/stats").body["model_stats"][0].clone()
}

#[test]
fn equal_requests_are_answered_from_the_cache_and_say_so() {
    let host = Host::start();
    host.client.register("demo/m", &Package::fault("echo", "response_cache = true"), true);
    let first = host.client.post(INFER, &x(&[1.5]));
    assert_eq!((first.headers["modelhost-cache"].as_str(), first.headers.get("age")), ("miss", None));
    // Another id or another dialect is still the same request.
    let mut again = x(&[1.5]);
    again["id"] = "another".into();
    let hit = host.client.post(INFER, &again);
    assert_eq!((hit.headers["modelhost-cache"].as_str(), hit.headers["age"].as_str()), ("hit", "0"));
    assert_eq!((&hit.body["outputs"], &hit.body["id"]), (&first.body["outputs"], &json!("another")));
    let other_dialect = host.client.post("/v1/models/demo/m:predict", &json!({"instances": [1.5]}));
    assert_eq!(other_dialect.headers["modelhost-cache"], "hit");
    for different in [x(&[2.5]), json!({"inputs": x(&[1.5])["inputs"], "parameters": {"a": 1}})] {
        assert_eq!(host.client.post(INFER, &different).headers["modelhost-cache"], "miss");
    }
    let seen = statistics(&host);
    assert_eq!(
        (&seen["execution_count"], &seen["inference_stats"]["cache_hit"]["count"]),
        (&json!(3), &json!(2))
    );
    assert_eq!(seen["inference_stats"]["cache_miss"]["count"], 3);
    let metrics = host.client.get("/metrics").body;
    let line = "nv_cache_num_hits_per_model{model=\"demo/m\",version=\"1\"} 2";
    assert!(metrics.as_str().unwrap().contains(line), "{metrics}");
    assert_eq!(host.client.get("/v2/models/demo/m/config").body["response_cache"], json!({"enable": true}));
    // The cache keeps versions apart.
    host.client.register(
        "demo/m",
        &Package::fault("echo", "response_cache = true\ndescription = 'next'"),
        true,
    );
    assert_eq!(host.client.post(INFER, &x(&[1.5])).headers["modelhost-cache"], "miss");
}

#[test]
fn concurrent_equal_requests_run_once() {
    let host = Host::start();
    let package = Package::fault("slow", "response_cache = true\nlimits = { deadline_ms = 30000 }");
    host.client.register("demo/m", &package, true);
    let answers: Vec<_> = std::thread::scope(|scope| {
        let ask = || scope.spawn(|| host.client.post(INFER, &x(&[100.0])));
        (0..8).map(|_| ask()).collect::<Vec<_>>().into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let misses = answers.iter().filter(|answer| answer.headers["modelhost-cache"] == "miss").count();
    assert_eq!((misses, &statistics(&host)["execution_count"]), (1, &json!(1)));
}

#[test]
fn failures_are_not_kept() {
    let host = Host::start();
    host.client.register("demo/m", &Package::fault("fail", "response_cache = true"), true);
    for _ in 0..2 {
        assert_eq!(host.client.post(INFER, &x(&[1.0])).status, 502);
    }
    assert_eq!(statistics(&host)["inference_stats"]["fail"]["count"], 2);
}

#[test]
fn only_fresh_instances_may_use_it() {
    let host = Host::start();
    let package = Package::fault("echo", "response_cache = true\nisolation = 'instance'");
    let answer = host.client.try_register("demo/m", &package, true).unwrap();
    assert_eq!(answer.status, 400, "{answer:?}");
    assert!(
        answer.error().contains("response_cache: only a version that runs in fresh instances"),
        "{answer:?}"
    );
    host.client.register("demo/m", &Package::fault("echo", ""), true);
    assert!(!host.client.post(INFER, &x(&[1.0])).headers.contains_key("modelhost-cache"));
}

#[test]
fn equal_models_do_not_answer_for_each_other() {
    let host = Host::start();
    for model in ["demo/m", "other/m"] {
        host.client.register(model, &Package::fault("echo", "response_cache = true"), true);
        let answer = host.client.post(&format!("/v2/models/{model}/infer"), &x(&[1.5]));
        assert_eq!(answer.headers["modelhost-cache"], "miss", "{model}");
    }
}
