//! Predictions are right over the Open Inference Protocol and over JSON records, and errors are clear.

use modelhost_tests::{Host, Package, held_out, x};
use serde_json::{Value, json};

#[test]
fn both_credit_models_answer_what_their_libraries_did() {
    let host = Host::start();
    for (library, version) in [("logistic", 1), ("xgboost", 2)] {
        let package = Package::folder(&format!("examples/credit-risk/{library}"));
        assert_eq!(host.client.register("demo/credit", &package, false), version);
        let (rows, expected) = held_out(library);
        let answer = host.client.post(&format!("/models/demo/credit/v{version}/"), &rows);
        assert_eq!((answer.status, answer.version), (200, Some(version)));
        let predictions = answer.body["predictions"].as_array().unwrap();
        assert_eq!(predictions.len(), expected.len());
        for (prediction, expected) in predictions.iter().zip(expected) {
            let came = prediction["probability"].as_f64().unwrap();
            assert!((came - expected).abs() < 1e-6, "{came} {expected}");
        }
    }
}

#[test]
fn an_onnx_graph_is_served_from_its_file_and_a_broken_one_is_refused() {
    let host = Host::start();
    let client = &host.client;
    for (graph, bytes, why) in [
        ("unknown_operator", usize::MAX, "Frobnicate"),
        ("mlp", 100, "model.onnx: it is no ONNX file, or a truncated one"),
    ] {
        let refused = client.try_register("demo/onnx", &Package::onnx(graph, bytes), true).unwrap();
        assert_eq!(refused.status, 422, "{refused:?}");
        assert!(refused.error().contains(why), "{refused:?}");
    }
    client.register("demo/onnx", &Package::onnx("mlp", usize::MAX), true);
    let metadata = client.get("/v2/models/demo/onnx").body;
    assert_eq!(metadata["inputs"], json!([{"name": "x", "datatype": "FP32", "shape": [-1, 8]}]));
    let cases = std::fs::read(modelhost_tests::root().join("tests/fixtures/onnx/mlp.cases.json")).unwrap();
    for case in serde_json::from_slice::<Vec<Value>>(&cases).unwrap() {
        let answer = client.post("/v2/models/demo/onnx/infer", &json!({"inputs": case["inputs"]}));
        assert_eq!(answer.status, 200, "{answer:?}");
        for (came, expected) in
            answer.body["outputs"].as_array().unwrap().iter().zip(case["outputs"].as_array().unwrap())
        {
            assert_eq!([&came["name"], &came["shape"]], [&expected["name"], &expected["shape"]]);
            let numbers = |tensor: &Value| -> Vec<f64> {
                tensor["data"].as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
            };
            for (came, expected) in numbers(came).iter().zip(numbers(expected)) {
                assert!((came - expected).abs() / expected.abs().max(1.0) < 1e-5, "{came} {expected}");
            }
        }
    }
}

#[test]
fn open_inference_protocol_over_rest() {
    let host = Host::start();
    let client = &host.client;
    assert_eq!(client.get("/v2/health/live").status, 200);
    assert_eq!(client.get("/v2/health/ready").body, json!({"ready": true}));
    assert_eq!(client.get("/v2").body["name"], "modelhost");
    client.register("demo/echo", &Package::fault("echo", ""), true);

    let metadata = client.get("/v2/models/demo/echo/versions/1").body;
    let tensor = |name: &str| json!([{"name": name, "datatype": "FP32", "shape": [-1]}]);
    assert_eq!(metadata["inputs"], tensor("x"));
    assert_eq!(metadata["outputs"], tensor("y"));
    assert_eq!(metadata["versions"], json!(["1"]));
    assert_eq!(client.get("/v2/models/demo/echo/ready").body, json!({"name": "demo/echo", "ready": true}));

    let head = client.send("HEAD", &format!("{}/v2/health/ready", client.url), b"", &[]).unwrap();
    assert_eq!((head.status, head.body), (200, Value::String(String::new())));
    assert_eq!(client.get("/v2/models/demo%2Fecho/ready").status, 200);

    let mut request = x(&[1.5, -2.0]);
    request["id"] = "a-7".into();
    for path in ["/v2/models/demo/echo/infer", "/v2/models/demo/echo/versions/v1/infer"] {
        let answer = client.post(path, &request);
        assert_eq!((answer.status, answer.version), (200, Some(1)), "{answer:?}");
        let outputs = json!([{"name": "y", "datatype": "FP32", "shape": [2], "data": [1.5, -2.0]}]);
        assert_eq!(
            answer.body,
            json!({"model_name": "demo/echo", "model_version": "1", "id": "a-7", "outputs": outputs})
        );
    }
}

#[test]
fn errors_name_what_is_wrong_and_whose_fault_it_is() {
    let host = Host::start();
    let client = &host.client;
    client.register("demo/echo", &Package::fault("echo", ""), false);
    let infer = "/v2/models/demo/echo/versions/1/infer";
    let int = json!({"inputs": [{"name": "x", "datatype": "INT32", "shape": [1], "data": [1]}]});
    let deep = json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1]}]});
    let z = json!({"inputs": [{"name": "z", "datatype": "FP32", "shape": [1], "data": [1]}]});
    for (path, body, status, text) in [
        (infer, int, 400, "input \"x\": datatype INT32 is not FP32"),
        (infer, deep, 400, "input \"x\": shape [1, 1] does not match [-1]"),
        (infer, z, 400, "input \"x\" is missing"),
        (infer, json!([]), 400, "body is not valid JSON: expected an object"),
        ("/v2/models/demo/echo/infer", x(&[1.0]), 503, "has no promoted version yet"),
        ("/v2/models/demo/echo/versions/9/infer", x(&[1.0]), 404, "has no version 9"),
        ("/v2/models/demo/echo/versions/best/infer", x(&[1.0]), 404, "no version or alias \"best\""),
        ("/v2/models/demo/nope/infer", x(&[1.0]), 404, "model \"demo/nope\" is not registered"),
        ("/models/demo/echo/v1/", json!([{}]), 400, "takes tensors, not rows of columns"),
        ("/nope", Value::Null, 404, "there is nothing at /nope"),
        ("/v2", Value::Null, 405, "only GET"),
    ] {
        let answer = client.post(path, &body);
        assert_eq!(answer.status, status, "{path} {answer:?}");
        assert!(answer.error().contains(text), "{path} {answer:?}");
    }
    let metrics = client.get("/metrics").body;
    assert!(metrics.as_str().unwrap().contains("route=\"infer\",status=\"404\"} 3"), "{metrics}");
}

#[test]
fn a_custom_component_answers_records() {
    let host = Host::start();
    let folder = modelhost_tests::root().join("examples/custom-model/package");
    let package = Package {
        manifest: std::fs::read_to_string(folder.join("model.toml")).unwrap(),
        files: vec![("model.wasm".into(), std::fs::read(folder.join("model.wasm")).unwrap())],
    };
    host.client.register("bank/savings", &package, true);
    let rows = json!([{"goal": 1200, "balance": 0, "monthly_saving": 100}]);
    assert_eq!(
        host.client.post("/models/bank/savings/", &rows).body["predictions"],
        json!([{"months": 12.0}])
    );
    let answer = host.client.post("/models/bank/savings/", &json!([{"goal": 1, "balance": 0}]));
    assert_eq!(answer.error(), "record 0, field \"monthly_saving\": is missing");
}

#[test]
fn a_body_beyond_the_bound_is_refused_and_the_next_is_served() {
    let host = Host::start_with(|config| config.max_body_bytes = 1000);
    host.client.register("demo/echo", &Package::fault("echo", ""), true);
    let answer = host.client.post("/v2/models/demo/echo/infer", &x(&[1.0; 1000]));
    assert_eq!(answer.status, 413, "{answer:?}");
    assert_eq!(host.client.post("/v2/models/demo/echo/infer", &x(&[1.0])).status, 200);
}
