//! A plugin that misbehaves is named and counted, and does not affect other models.

use modelhost_tests::{Host, Package, x};

#[test]
fn every_fault_of_a_prediction_is_the_plugins() {
    let host = Host::start();
    let client = &host.client;
    client.register("demo/good", &Package::fault("echo", ""), true);
    for (number, (fault, text)) in (1_u32..).zip([
        ("spin", "did not answer within its deadline of 30 ms"),
        ("panic", "it panicked or aborted (it said: panicked at"),
        ("overflow-stack", "call stack exhausted"),
        ("grow-memory", "ran out of the memory that its limit allows"),
        ("read-out-of-bounds", "index out of bounds"),
        ("wrong-shape", "output \"y\": shape [1, 1] does not match [-1]"),
        ("wrong-length", "shape [1] of FP32 needs 1 x 4 bytes, 5 came"),
        ("wrong-datatype", "output \"y\": datatype INT32 is not FP32"),
        ("wrong-name", "output \"z\" is not in the signature"),
        ("no-output", "output \"y\" is missing"),
        ("fail", "its weights are not numbers"),
    ]) {
        for isolation in ["request", "instance"] {
            let manifest =
                format!("isolation = '{isolation}'\nlimits = {{ deadline_ms = 30, memory_mib = 16 }}");
            let version = client.register("demo/bad", &Package::fault(fault, &manifest), true);
            assert_eq!(version, if isolation == "request" { number * 2 - 1 } else { number * 2 });
            for _ in 0..3 {
                let answer = client.post("/v2/models/demo/bad/infer", &x(&[1.0]));
                assert_eq!((answer.status, answer.version), (502, Some(version)), "{fault} {answer:?}");
                assert_eq!(answer.body["code"], "plugin_fault");
                assert!(answer.error().contains(text), "{fault} {isolation}: {}", answer.error());
                assert!(
                    answer.error().starts_with(&format!("model demo/bad version {version}: ")),
                    "{answer:?}"
                );
            }
            assert_eq!(client.post("/v2/models/demo/good/infer", &x(&[1.0])).status, 200, "after {fault}");
        }
    }
    let metrics = client.get("/metrics").body;
    let counted = "model=\"demo/bad\",version=\"1\",role=\"primary\",code=\"plugin_fault\"} 3";
    assert!(metrics.as_str().unwrap().contains(counted), "{metrics}");
}

#[test]
fn what_the_model_says_of_the_input_is_the_callers_fault() {
    let host = Host::start();
    host.client.register("demo/strict", &Package::fault("refuse-input", ""), true);
    let answer = host.client.post("/v2/models/demo/strict/infer", &x(&[1.0]));
    assert_eq!((answer.status, answer.error()), (400, "x must be positive"));
}

#[test]
fn a_model_may_keep_as_much_as_its_limit_allows() {
    let host = Host::start();
    host.client.register("demo/large", &Package::fault("large", "limits = { memory_mib = 200 }"), true);
    let answer = host.client.post("/v2/models/demo/large/infer", &x(&[1.0]));
    assert_eq!(answer.body["outputs"][0]["data"].to_string(), "[0.0]", "{answer:?}");
}

#[test]
fn what_does_not_load_is_not_registered() {
    let host = Host::start_with(|config| config.limits.load_deadline_ms = 300);
    let client = &host.client;
    let refused = |package: &Package, status: u16, text: &str| {
        let answer = client.try_register("demo/bad", package, true).unwrap();
        assert_eq!(answer.status, status, "{answer:?}");
        assert!(answer.error().contains(text), "{answer:?}");
    };
    for (fault, text) in [
        ("load-panics", "load: the plugin trapped: it panicked or aborted (it said: panicked at"),
        ("load-fails", "load: the artifact is not a model"),
        ("load-spins", "load: the plugin did not answer within its deadline of 300 ms"),
        ("load-missing-artifact", "artifact \"nowhere.bin\" is not in the manifest"),
        ("load-bad-signature", "the signature has no input"),
    ] {
        refused(&Package::fault(fault, ""), 422, text);
    }
    refused(&Package::fault("echo", "limits = { memory_mib = 9999 }"), 400, "limit memory_mib = 9999");
    refused(&Package::fault("echo", "limits = { memory_mib = 1 }"), 422, "ran out of the memory");
    let package = |component: &[u8]| Package {
        manifest: "component = 'c.wasm'".into(),
        files: vec![("c.wasm".into(), component.to_vec())],
    };
    refused(&package(b"not wasm"), 422, "compile: failed to parse WebAssembly module");
    refused(&package(b"\0asm\x01\0\0\0"), 422, "component");
    refused(&package(b"\0asm\x0d\0\x01\0"), 400, "does not export");
    let example = "[[examples]]\ninputs = [{name='x', datatype='FP32', shape=[1], data=[1.0]}]\n\
                   outputs = [{name='y', datatype='FP32', shape=[1], data=[2.0]}]";
    let mut wrong = Package::fault("echo", "");
    wrong.manifest.push_str(example);
    refused(&wrong, 422, "warm: example 1: output \"y\", element 0: 2 was expected, 1 came");
    let missing = Package { manifest: "runtime = 'nope'".into(), files: vec![] };
    refused(
        &missing,
        400,
        "runtime \"nope\" is not shipped with this host, which has \
         [\"gbdt\", \"linear\", \"onnx\", \"onnx-sandboxed\"]",
    );
    assert_eq!(client.admin("GET", "/models/demo/bad", &serde_json::Value::Null).unwrap().status, 404);
}

#[test]
fn a_fresh_instance_remembers_nothing_and_a_warm_one_does() {
    let host = Host::start();
    let count = |path: &str| host.client.post(path, &x(&[0.0])).body["outputs"][0]["data"][0].clone();
    host.client.register("demo/fresh", &Package::fault("count", ""), true);
    assert_eq!([count("/v2/models/demo/fresh/infer"), count("/v2/models/demo/fresh/infer")], [1.0, 1.0]);
    host.client.register("demo/warm", &Package::fault("count", "isolation = 'instance'"), true);
    assert_eq!([count("/v2/models/demo/warm/infer"), count("/v2/models/demo/warm/infer")], [1.0, 2.0]);
}

/// A caller's deadline may be shorter than the plugin's. The error then does not blame the plugin.
#[test]
fn a_callers_own_deadline_is_not_the_plugins_fault() {
    let host = Host::start();
    host.client.register("demo/m", &Package::fault("spin", "limits = { deadline_ms = 20000 }"), true);
    let mut request = x(&[1.0]);
    request["parameters"] = serde_json::json!({"timeout": 20_000}); // microseconds
    let answer = host.client.post("/v2/models/demo/m/infer", &request);
    assert_eq!((answer.status, &answer.body["code"]), (504, &"deadline_exceeded".into()), "{answer:?}");
    assert!(answer.error().ends_with("the request's deadline passed while the plugin ran"), "{answer:?}");
}
