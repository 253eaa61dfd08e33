//! Graphs that the host evaluates, with tract and with the ONNX Runtime of the tests' Python environment.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use modelhost_tests::{Host, Package, Process, binary, components, root};
use serde_json::{Value, json};

use crate::python::python;

/// Fixtures that cannot be evaluated.
const REFUSED: [&str; 2] = ["unknown_operator", "huge_constant"];

fn fixture(name: &str) -> Vec<u8> {
    fs::read(root().join("tests/fixtures/onnx").join(name)).unwrap()
}

/// The Python environment with the package onnxruntime. The test is skipped if it is missing.
fn onnxruntime() -> Option<PathBuf> {
    let python = python()?;
    Some(Path::new(python.get_program()).parent()?.parent()?.to_path_buf())
}

/// A host whose default deployment allows graphs.
pub(crate) fn host() -> Host {
    Host::start_with(|config| {
        config.onnxruntime = onnxruntime();
        let bounds = json!({"default": {"capabilities": ["wasi:nn"]}});
        config.deployments = serde_json::from_value(bounds).unwrap();
    })
}

/// The example that recognises digits.
pub(crate) fn digits() -> Package {
    let folder = root().join("examples/digits");
    let read = |path: PathBuf| fs::read(path).unwrap();
    Package {
        manifest: fs::read_to_string(folder.join("package/model.toml")).unwrap(),
        files: vec![
            ("digits.wasm".into(), read(components().join("examples/digits.wasm"))),
            ("model.onnx".into(), read(folder.join("package/model.onnx"))),
        ],
    }
}

fn x(rows: usize) -> Value {
    let data: Vec<f64> = (0..rows * 8).map(|at| f64::from(u32::try_from(at % 7).unwrap()) - 3.0).collect();
    json!({"name": "x", "datatype": "FP32", "shape": [rows, 8], "data": data})
}

#[test]
fn answers_are_those_of_onnxruntime_in_python() {
    let Some(mut python) = python() else { return };
    let host = host();
    let mut pairs = Vec::new();
    for entry in fs::read_dir(root().join("tests/fixtures/onnx")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        if path.extension().is_none_or(|extension| extension != "onnx") || REFUSED.contains(&name) {
            continue;
        }
        for backend in ["tract", "onnxruntime"] {
            if backend == "tract" && (name.starts_with("ml_") || name == "loop") {
                continue; // tract lacks these operators
            }
            let model = format!("{backend}/{name}");
            let graphs = format!("[graphs]\nbackend = '{backend}'");
            host.client.register(&model, &Package::graph(fs::read(&path).unwrap(), &graphs), true);
            pairs.push(format!("{}={model}", path.display()));
        }
    }
    assert!(pairs.len() >= 40, "{pairs:?}");
    let output = python
        .arg(root().join("tests/python/onnx_compare.py"))
        .arg(host.client.url.trim_start_matches("http://"))
        .args(["25", "1e-5"])
        .args(&pairs)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let (backend, _) = line.split_once('/').unwrap();
        assert!(line.contains(&format!(" by {backend}")) && line.contains(" on cpu,"), "{line}");
    }
}

#[test]
fn a_graph_is_refused_with_what_is_wrong() {
    let host = host();
    let backends: &[&str] = if onnxruntime().is_some() { &["tract", "onnxruntime"] } else { &["tract"] };
    let whole = fixture("mlp.onnx");
    for backend in backends {
        let refused = |file: Vec<u8>, why: &str| {
            let graphs = format!("[graphs]\nbackend = '{backend}'");
            let answer = host.client.try_register("demo/m", &Package::graph(file, &graphs), true).unwrap();
            assert_eq!(answer.status, 422, "{answer:?}");
            assert!(answer.error().contains("graph model.onnx"), "{answer:?}");
            assert!(answer.error().contains(why), "{answer:?}");
        };
        refused(fixture("unknown_operator.onnx"), "Frobnicate");
        refused(Vec::new(), "");
        for length in (7..whole.len() - 40).step_by(97) {
            refused(whole[..length].to_vec(), "");
        }
    }
    for (manifest, status, why) in [
        ("[graphs]\nbackend = 'tract'\ntarget = 'gpu'", 400, "needs \"onnxruntime\""),
        ("[graphs]\nbackend = 'openvino'", 400, "unknown variant `openvino`"),
        ("[graphs]\nthreads = 0", 400, "at least 1"),
        ("[batching]\nmax_batch = 0", 400, "max_batch = 0"),
        ("limits = { graph_mib = 99999999 }", 400, "limit graph_mib"),
    ] {
        let answer =
            host.client.try_register("demo/m", &Package::graph(whole.clone(), manifest), true).unwrap();
        assert_eq!(answer.status, status, "{answer:?}");
        assert!(answer.error().contains(why), "{answer:?}");
    }
    let mut ungranted = Package::graph(whole, "");
    ungranted.manifest = ungranted.manifest.replace("capabilities = ['wasi:nn']", "");
    let answer = host.client.try_register("demo/m", &ungranted, true).unwrap();
    assert!(answer.error().contains("imports \"wasi:nn/graph\", which nobody granted"), "{answer:?}");
}

#[test]
fn weights_beside_a_graph_are_the_versions_own_files_alone() {
    let host = host();
    let (model, weights) = (fixture("apart/model.onnx"), fixture("apart/weights.bin"));
    let ones = json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 1, 1, 1]}]});
    for (head, graphs) in [
        ("runtime = 'onnx'\ncapabilities = ['wasi:nn']", "[graphs]\nbackend = 'tract'"),
        ("runtime = 'onnx'\ncapabilities = ['wasi:nn']", "[graphs]\nbackend = 'auto'"),
        ("runtime = 'onnx-sandboxed'", ""),
    ] {
        let package = |artifacts: &str, files: &[(&str, &Vec<u8>)]| Package {
            manifest: format!("{head}\nartifacts = {artifacts}\n{graphs}\n"),
            files: files.iter().map(|(name, file)| ((*name).to_owned(), (*file).clone())).collect(),
        };
        let whole = [("model.onnx", &model), ("weights.bin", &weights)];
        host.client.register("demo/apart", &package("['model.onnx', 'weights.bin']", &whole), true);
        let answer = host.client.post("/v2/models/demo/apart/infer", &ones);
        assert_eq!(answer.body["outputs"][0]["data"], json!([12.0, 16.0]), "{answer:?}");
        // The graph names a file of the host's working directory instead.
        let mut thief = model.clone();
        let at = thief.windows(11).position(|window| window == b"weights.bin").unwrap();
        thief[at..at + 11].copy_from_slice(b"it/cache.rs");
        for stranger in [thief, model.clone()] {
            let alone = package("['model.onnx']", &[("model.onnx", &stranger)]);
            let answer = host.client.try_register("demo/apart", &alone, true).unwrap();
            assert_eq!(answer.status, 422, "{answer:?}");
            let named = ["weights.bin", "it/cache.rs"].iter().any(|name| answer.error().contains(name));
            assert!(named && answer.error().contains("model.onnx"), "{answer:?}");
        }
    }
}

#[test]
fn a_gpu_that_is_not_there_is_refused_and_auto_takes_the_processor() {
    if onnxruntime().is_none() || Path::new("/dev/nvidia0").exists() {
        println!("skipped: no ONNX Runtime, or a GPU is there");
        return;
    }
    let host = host();
    let gpu = Package::graph(fixture("mlp.onnx"), "[graphs]\ntarget = 'gpu'\ndevice = 1");
    let answer = host.client.try_register("demo/m", &gpu, true).unwrap();
    assert_eq!(answer.status, 422, "{answer:?}");
    for part in ["asks for GPU 1", "without CUDA", "0 NVIDIA devices", "0 WebGPU devices"] {
        assert!(answer.error().contains(part), "{answer:?}");
    }
    host.client.register("demo/m", &Package::graph(fixture("mlp.onnx"), "[graphs]\ntarget = 'auto'"), true);
    let answer = host.client.post("/v2/models/demo/m/infer", &json!({"inputs": [x(2)]}));
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// Vulkan in software, a part of Chromium, stands in for a GPU.
#[test]
fn webgpu_evaluates_beside_versions_that_come_and_go() {
    let chromium = Path::new("/usr/lib/chromium");
    let (Some(onnxruntime), true) = (onnxruntime(), chromium.join("vk_swiftshader_icd.json").exists()) else {
        println!("skipped: no ONNX Runtime, or no Chromium with Vulkan");
        return;
    };
    let data = tempfile::tempdir().unwrap();
    let config = data.path().join("host.toml");
    let settings = format!(
        "onnxruntime = '{}'\n[deployments.default]\ncapabilities = ['wasi:nn']\n",
        onnxruntime.display()
    );
    fs::write(&config, settings).unwrap();
    let mut process = Process::start_as(
        data.path(),
        Command::new(binary())
            .args(["serve", "--log", "error", "--config"])
            .arg(&config)
            .env("LD_LIBRARY_PATH", chromium)
            .env("VK_ICD_FILENAMES", chromium.join("vk_swiftshader_icd.json"))
            .env("ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER", "1"),
    );
    let client = &process.client;
    let on = |target: &str| {
        let graphs =
            format!("[graphs]\n{target}\n[limits]\ndeadline_ms = 60000\nconcurrency = 8\nqueue = 64");
        Package::graph(fixture("cnn.onnx"), &graphs)
    };
    let answer = client.try_register("demo/gpu", &on("target = 'gpu'\ndevice = 7"), true).unwrap();
    assert_eq!(answer.status, 422, "{answer:?}");
    assert!(answer.error().contains("webgpu:7 cannot be used: there is no such device"), "{answer:?}");
    client.register("demo/cpu", &on("target = 'cpu'"), true);
    client.register("demo/gpu", &on("target = 'gpu'"), true);
    client.register("demo/auto", &on("target = 'auto'"), true);
    let wide =
        Package::graph(fixture("wide.onnx"), "[graphs]\ntarget = 'gpu'\n[limits]\ndeadline_ms = 60000");
    client.register("demo/wide", &wide, true);
    for model in ["demo/gpu", "demo/auto"] {
        let config = client.get(&format!("/v2/models/{model}/config"));
        assert!(config.body.to_string().contains("webgpu:0"), "{config:?}");
    }

    let input = client.get("/v2/models/demo/cpu").body["inputs"][0].clone();
    let sizes: Vec<u64> =
        input["shape"].as_array().unwrap().iter().map(|size| size.as_u64().unwrap_or(2)).collect();
    let ask = |model: &str, seed: u64| {
        let values = (0..sizes.iter().product()).map(|at: u64| ((at * 7 + seed) % 11) as f64 / 11.0);
        let data: Vec<f64> = values.collect();
        let input =
            json!({"name": input["name"], "datatype": input["datatype"], "shape": sizes, "data": data});
        let answer = client.post(&format!("/v2/models/{model}/infer"), &json!({"inputs": [input]}));
        assert_eq!(answer.status, 200, "{answer:?}");
        let data = answer.body["outputs"][0]["data"].as_array().unwrap().clone();
        data.iter().map(|value| value.as_f64().unwrap()).collect::<Vec<_>>()
    };
    // This needs 2.4 GB between input and output.
    let rows = json!({"name": "x", "datatype": "FP32", "shape": [600_000, 1], "data": vec![1; 600_000]});
    let answer = client.post("/v2/models/demo/wide/infer", &json!({"inputs": [rows]}));
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.error().contains("needs more memory than there is"), "{answer:?}");
    std::thread::scope(|scope| {
        for (caller, model) in (0..6).zip(["demo/gpu", "demo/auto"].into_iter().cycle()) {
            let ask = &ask;
            scope.spawn(move || {
                for seed in (caller * 100)..(caller * 100 + 20) {
                    let (came, wanted) = (ask(model, seed), ask("demo/cpu", seed));
                    let near = came.iter().zip(&wanted).all(|(came, wanted)| (came - wanted).abs() < 1e-4);
                    assert!(near && came.len() == wanted.len(), "{came:?} {wanted:?}");
                }
            });
        }
        for _ in 0..4 {
            client.register("demo/gpu", &on("target = 'gpu'"), true);
        }
    });
    process.signal("-TERM");
    assert!(process.child.wait().unwrap().success());
}

#[test]
fn a_library_that_is_missing_or_another_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let old = dir.path().join("libonnxruntime.so.1.9.0");
    let source = dir.path().join("old.c");
    fs::write(
        &source,
        "struct base { const void *(*api)(unsigned); const char *(*version)(void); };\n\
         static const void *api(unsigned v) { return 0; }\n\
         static const char *version(void) { return \"1.9.0\"; }\n\
         static struct base base = { api, version };\n\
         struct base *OrtGetApiBase(void) { return &base; }\n",
    )
    .unwrap();
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&old).arg(&source).status();
    assert!(built.unwrap().success());
    let text = dir.path().join("libonnxruntime.so");
    fs::write(&text, "no library").unwrap();
    for (library, why) in [
        ("/nowhere".to_owned(), "ONNX Runtime is not at /nowhere, which the setting onnxruntime names"),
        (old.display().to_string(), "'1.9.0'"),
        (text.display().to_string(), "failed to load"),
    ] {
        let data = tempfile::tempdir().unwrap();
        let config = data.path().join("host.toml");
        fs::write(
            &config,
            format!("onnxruntime = '{library}'\n[deployments.default]\ncapabilities = ['wasi:nn']\n"),
        )
        .unwrap();
        let arguments = ["--log", "error", "--config", config.to_str().unwrap()];
        let process = Process::start_with(data.path(), &arguments, Stdio::inherit());
        let told = Package::graph(fixture("mlp.onnx"), "[graphs]\nbackend = 'onnxruntime'");
        let answer = process.client.try_register("demo/m", &told, true).unwrap();
        assert_eq!(answer.status, 422, "{answer:?}");
        assert!(answer.error().contains(why), "{answer:?}");
        // A manifest that leaves the choice to the host gets tract.
        process.client.register("demo/m", &Package::graph(fixture("mlp.onnx"), ""), true);
        let answer = process.client.post("/v2/models/demo/m/infer", &json!({"inputs": [x(1)]}));
        assert_eq!(answer.status, 200, "{answer:?}");
        process.kill();
    }
}

#[test]
fn the_standard_interface_serves_named_and_loaded_graphs_and_says_what_is_wrong() {
    let host = host();
    let manifest = "component = 'guest.wasm'\nartifacts = ['mlp.onnx', 'graph.bin']\n\
                    capabilities = ['wasi:nn']\nlimits = { graph_mib = 100 }\n";
    let package = Package {
        manifest: manifest.to_owned(),
        files: vec![
            ("guest.wasm".into(), fs::read(components().join("tests/wasi-nn.wasm")).unwrap()),
            ("mlp.onnx".into(), fixture("mlp.onnx")),
            ("graph.bin".into(), fixture("mlp.onnx")),
        ],
    };
    host.client.register("demo/m", &package, true);
    let ask = |how: &str| {
        let body = json!({"inputs": [x(2)], "parameters": {"how": how}});
        host.client.post("/v2/models/demo/m/infer", &body)
    };
    let named = ask("named");
    assert_eq!(named.status, 200, "{named:?}");
    assert_eq!(ask("bytes").body["outputs"], named.body["outputs"]);
    let kept = ask("keeps tensors");
    assert_eq!(kept.status, 503, "{kept:?}");
    assert!(kept.error().contains("do not fit beside"), "{kept:?}");
    for (how, why) in [
        ("wrong name", "ErrorCode::InvalidArgument: input \"x\" is missing"),
        ("wrong type", "ErrorCode::InvalidArgument: input \"x\": datatype INT32 is not FP32"),
        ("wrong size", "shape [3, 8] of FP32 needs 24 x 4 bytes, 64 came"),
        ("truncated", "ErrorCode::RuntimeError: load: graph loaded by the component"),
        ("gpu", "ErrorCode::UnsupportedOperation"),
        ("tensorflow", "ErrorCode::InvalidEncoding"),
        ("absent", "ErrorCode::NotFound: graph \"absent\" is none of this version's: [\"mlp.onnx\"]"),
    ] {
        let answer = ask(how);
        assert_eq!(answer.status, 502, "{how}: {answer:?}");
        assert!(answer.error().contains(why), "{how}: {answer:?}");
    }
}

#[test]
fn a_graph_that_wants_more_memory_than_there_is_fails_alone() {
    let host = host();
    let huge = |backend: &str| {
        Package::graph(fixture("huge_constant.onnx"), &format!("[graphs]\nbackend = '{backend}'"))
    };
    let refused = host.client.try_register("demo/huge", &huge("tract"), true).unwrap();
    assert_eq!(refused.status, 422, "{refused:?}");
    assert!(refused.error().contains("node \"fill\" (ConstantOfShape)"), "{refused:?}");
    if onnxruntime().is_none() {
        return;
    }
    host.client.register("demo/huge", &huge("onnxruntime"), true);
    let x = json!({"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]});
    for _ in 0..3 {
        let answer = host.client.post("/v2/models/demo/huge/infer", &json!({"inputs": [x]}));
        assert_eq!(answer.status, 503, "{answer:?}");
        assert!(answer.error().contains("the graph needs more memory than there is"), "{answer:?}");
    }
    host.client.register("demo/m", &Package::graph(fixture("mlp.onnx"), ""), true);
    assert_eq!(host.client.post("/v2/models/demo/m/infer", &json!({"inputs": [self::x(1)]})).status, 200);
}

#[test]
fn an_evaluation_past_its_deadline_is_stopped_and_keeps_nobody_waiting() {
    if onnxruntime().is_none() {
        return;
    }
    let host = host();
    let package =
        Package::graph(fixture("loop.onnx"), "limits = { deadline_ms = 1000 }\n[graphs]\nsessions = 1");
    host.client.register("demo/loop", &package, true);
    let ask = |turns: i64| {
        let turns = json!({"name": "turns", "datatype": "INT64", "shape": [1], "data": [turns]});
        let x = json!({"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]});
        host.client.post("/v2/models/demo/loop/infer", &json!({"inputs": [turns, x]}))
    };
    for _ in 0..3 {
        (0..20).for_each(|_| assert_eq!(ask(1).status, 200)); // a history of short runs
        let late = ask(1 << 40);
        assert_eq!(late.status, 502, "{late:?}");
        assert!(late.error().contains("did not answer within its deadline of 1000 ms"), "{late:?}");
        // The evaluation was stopped, so its only session is free again.
        let answer = ask(3);
        assert_eq!(answer.body["outputs"][0]["data"], json!([4.0]), "{answer:?}");
    }
}

#[test]
fn graphs_come_back_after_a_restart_and_stay_within_their_limit() {
    let host = host();
    host.client.register("demo/m", &Package::graph(fixture("mlp.onnx"), "limits = { graph_mib = 1 }"), true);
    let before = host.client.post("/v2/models/demo/m/infer", &json!({"inputs": [x(3)]}));
    assert_eq!(before.status, 200, "{before:?}");
    let much = host.client.post("/v2/models/demo/m/infer", &json!({"inputs": [x(40_000)]}));
    assert_eq!(much.status, 400, "{:?}", much.error());
    assert!(much.error().contains("limit graph_mib = 1 allows fewer"), "{:?}", much.error());
    let config = host.client.get("/v2/models/demo/m/config").body;
    let said = config["parameters"]["graph model.onnx"]["string_value"].as_str().unwrap();
    assert!(said.ends_with(" on cpu"), "{said}");
    let usage = host.client.admin("GET", "/usage", &Value::Null).unwrap().body;
    assert_eq!(usage[0]["graphs"], json!([said]), "{usage}");
    assert!(usage[0]["graph_seconds"].as_f64().unwrap() > 0.0, "{usage}");
    let metrics = host.client.get("/metrics").body;
    for name in
        ["graph_batch_rows_bucket", "graph_queue_seconds_count", "graph_weight_bytes", "graph_busy_seconds"]
    {
        let of_model = |line: &str| line.contains(name) && line.contains("model=\"demo/m\"");
        assert!(metrics.as_str().unwrap().lines().any(of_model), "{name}");
    }
    let outputs = &before.body["outputs"];
    let example = format!(
        "[[examples]]\ninputs = [{{ name = 'x', datatype = 'FP32', shape = [3, 8], data = {} }}]\n\
         outputs = [{{ name = {}, datatype = 'FP32', shape = {}, data = {} }}]",
        x(3)["data"],
        outputs[0]["name"],
        outputs[0]["shape"],
        outputs[0]["data"]
    );
    host.client.register("demo/warm", &Package::graph(fixture("mlp.onnx"), &example), true);
    let host = host.restart(|_| {});
    let evaluations = |model: &str| {
        let after = host.client.post(&format!("/v2/models/{model}/infer"), &json!({"inputs": [x(3)]}));
        assert_eq!(&after.body["outputs"], outputs, "{model}");
        let metrics = host.client.get("/metrics").body.as_str().unwrap().to_owned();
        let start = format!("modelhost_graph_batch_rows_count{{model=\"{model}\"");
        let line = metrics.lines().find(|line| line.starts_with(&start)).unwrap().to_owned();
        line.rsplit(' ').next().unwrap().to_owned()
    };
    assert_eq!(evaluations("demo/m"), "1");
    assert_eq!(evaluations("demo/warm"), "2", "its example runs on every load, to warm a GPU up");
}

#[test]
fn pictures_are_decoded_in_the_sandbox_and_told_apart_by_the_graph() {
    let host = host();
    for backend in ["auto", "tract"] {
        let mut package = digits();
        package.manifest.push_str(&format!("\n[graphs]\nbackend = '{backend}'\n"));
        host.client.register("demo/digits", &package, true);
        let expected: Vec<Value> =
            serde_json::from_slice(&fs::read(root().join("examples/digits/expected.json")).unwrap()).unwrap();
        for case in &expected {
            let file = root().join("examples/digits/pictures").join(case["picture"].as_str().unwrap());
            let answer = ask_picture(&host, &fs::read(file).unwrap());
            assert_eq!(answer.status, 200, "{answer:?}");
            let output = |at: usize| answer.body["outputs"][at]["data"].as_array().unwrap().clone();
            assert_eq!(output(0), [case["digit"].clone()]);
            for (came, expected) in output(1).iter().zip(case["probabilities"].as_array().unwrap()) {
                assert!((came.as_f64().unwrap() - expected.as_f64().unwrap()).abs() < 1e-5, "{answer:?}");
            }
        }
        let broken = ask_picture(&host, b"no picture");
        assert_eq!(broken.status, 400, "{broken:?}");
        assert!(broken.error().contains("input \"picture\", element 0"), "{broken:?}");
    }
}

/// Sends one picture as a binary tensor and asks for JSON.
fn ask_picture(host: &Host, picture: &[u8]) -> modelhost_tests::Answer {
    let length = u32::try_from(picture.len()).unwrap();
    let parameters = json!({"binary_data_size": length + 4});
    let input = json!({"name": "picture", "datatype": "BYTES", "shape": [1], "parameters": parameters});
    let head = json!({"inputs": [input]}).to_string();
    let body = [head.as_bytes(), &length.to_le_bytes(), picture].concat();
    let headers = [("inference-header-content-length", &*head.len().to_string())];
    host.client
        .send("POST", &format!("{}/v2/models/demo/digits/infer", host.client.url), &body, &headers)
        .unwrap()
}

#[test]
fn versions_of_one_graph_share_neither_answers_nor_failures() {
    let host = host();
    let batching = "[batching]\nmax_batch = 8\nmax_delay_us = 20000";
    for _ in 0..4 {
        host.client.register("demo/ids", &Package::graph(fixture("attention.onnx"), batching), true);
    }
    let ids = |first: u32| json!({"name": "ids", "datatype": "INT64", "shape": [1, 2], "data": [first, 1]});
    let mask = json!({"name": "mask", "datatype": "INT64", "shape": [1, 2], "data": [1, 1]});
    let ask = |version: u32, first: u32| {
        let path = format!("/v2/models/demo/ids/versions/{version}/infer");
        host.client.post(&path, &json!({"inputs": [ids(first), mask]}))
    };
    // The table has 20 rows. A request for another row fails, and only that request, also in a batch.
    let alone: Vec<_> = (0..16).map(|first| ask(1, first).body["outputs"].clone()).collect();
    let refused = std::thread::scope(|scope| {
        let ask = &ask;
        let callers: Vec<_> = (0..16_u32)
            .map(|caller| scope.spawn(move || ask(1 + caller % 4, if caller == 5 { 99 } else { caller })))
            .collect();
        let mut refused = Vec::new();
        for (caller, answer) in callers.into_iter().map(|caller| caller.join().unwrap()).enumerate() {
            match answer.status {
                200 => assert_eq!(answer.body["outputs"], alone[caller]),
                _ => refused.push((caller, answer)),
            }
        }
        refused
    });
    assert!(matches!(refused.as_slice(), [(5, _)]), "{refused:?}");
}

#[test]
fn a_component_without_graphs_is_asked_in_batches() {
    let host = host();
    let batching = "[batching]\nmax_batch = 4\nmax_delay_us = 1000000";
    for fault in ["echo", "rows"] {
        host.client.register(&format!("demo/{fault}"), &Package::fault(fault, batching), true);
    }
    let ask = |model: &str, caller: u32| {
        let x = json!({"name": "x", "datatype": "FP32", "shape": [1], "data": [caller]});
        let answer = host.client.post(&format!("/v2/models/demo/{model}/infer"), &json!({"inputs": [x]}));
        assert_eq!(answer.body["outputs"][0]["shape"], json!([1]), "{answer:?}");
        answer.body["outputs"][0]["data"][0].as_f64().unwrap()
    };
    let ask_at_once = |model| {
        std::thread::scope(|scope| {
            let ask = &ask;
            let callers: Vec<_> = (0..16).map(|caller| scope.spawn(move || ask(model, caller))).collect();
            callers.into_iter().map(|caller| caller.join().unwrap()).collect::<Vec<f64>>()
        })
    };
    let expected: Vec<f64> = (0..16).map(f64::from).collect();
    assert_eq!(ask_at_once("echo"), expected);
    let rows = ask_at_once("rows");
    assert!(rows.iter().all(|rows| *rows <= 4.0) && rows.iter().any(|rows| *rows > 1.0), "{rows:?}");
    let metrics = host.client.get("/metrics").body;
    let counted = "modelhost_batch_rows_sum{model=\"demo/rows\",version=\"1\",deployment=\"default\"} 16.0";
    assert!(metrics.as_str().unwrap().contains(counted), "{metrics}");
}
