//! Observability of a request: ids, trace context, access log, spans.

use std::io::Read;
use std::process::{Command, Stdio};

use modelhost_protocol::oip_grpc::pb;
use modelhost_tests::{Host, Package, Process, x};
use prost::Message;
use serde_json::{Value, json};

use crate::hostile_callers::{call, framed};

const INFER: &str = "/v2/models/demo/m/infer";

#[test]
fn a_request_keeps_its_id_and_its_trace() {
    let host = Host::start();
    host.client.register("demo/m", &Package::fault("echo", ""), true);
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let traceparent = format!("00-{trace}-b7ad6b7169203331-01");
    let answer =
        host.client.post_with(INFER, &x(&[1.0]), &[("traceparent", &traceparent), ("x-request-id", "r-7")]);
    assert_eq!(answer.headers["x-request-id"], "r-7");
    let response = &answer.headers["traceresponse"];
    assert!(response.starts_with(&format!("00-{trace}-")) && response.ends_with("-01"), "{response}");
    assert!(!response.contains("b7ad6b7169203331"), "the host's span is not the caller's");
    let answer = host.client.post(INFER, &x(&[1.0]));
    assert!(answer.headers["x-request-id"].len() == 32 && !answer.headers.contains_key("traceresponse"));
}

#[test]
fn each_request_writes_one_log_line() {
    let data = tempfile::tempdir().unwrap();
    let mut host =
        Process::start_with(data.path(), &["--log", "info", "--log-format", "json"], Stdio::piped());
    host.client.register("demo/m", &Package::fault("echo", ""), true);
    host.client.post_with(INFER, &x(&[1.0]), &[("x-request-id", "r-7")]);
    host.client.get("/nope");
    host.client
        .send("GET", &format!("{}/v1/usage", host.client.admin), b"", &[("x-request-id", "usage")])
        .unwrap();
    const SERVICE: &str = "inference.GRPCInferenceService";
    let model = pb::ModelMetadataRequest { name: "demo/m".into(), ..Default::default() }.encode_to_vec();
    let calls = [
        (format!("{SERVICE}/ServerLive"), vec![], "grpc_health", 200),
        (format!("{SERVICE}/ServerMetadata"), vec![], "grpc_server_metadata", 200),
        (format!("{SERVICE}/ModelReady"), vec![], "grpc_model_ready", 404),
        (format!("{SERVICE}/ModelMetadata"), model.clone(), "grpc_model_metadata", 200),
        (format!("{SERVICE}/ModelConfig"), model.clone(), "grpc_model_config", 200),
        (format!("{SERVICE}/ModelStatistics"), model, "grpc_statistics", 200),
        (format!("{SERVICE}/RepositoryIndex"), vec![], "grpc_repository", 200),
        (format!("{SERVICE}/RepositoryModelLoad"), vec![], "grpc_repository", 501),
        (format!("{SERVICE}/LogSettings"), vec![], "grpc_settings", 200),
        (format!("{SERVICE}/ModelInfer"), vec![], "grpc_infer", 404),
        (format!("{SERVICE}/Nothing"), vec![], "unknown", 501),
        ("grpc.health.v1.Health/Check".to_owned(), vec![], "grpc_health", 200),
        ("grpc.health.v1.Health/Nothing".to_owned(), vec![], "grpc_health", 501),
        (
            "grpc.reflection.v1.ServerReflection/ServerReflectionInfo".to_owned(),
            vec![],
            "grpc_reflection",
            400,
        ),
        ("no.such.Service/Method".to_owned(), vec![], "unknown", 501),
    ];
    for (at, (method, message, ..)) in calls.iter().enumerate() {
        let id = format!("g-{at}");
        let said = call(&host.client.url, method, &[("x-request-id", &id)], &framed(message), true);
        assert_eq!(said["x-request-id"], id, "{method}");
    }
    // A stream is told of, and each of its messages.
    let stream = format!("{SERVICE}/ModelStreamInfer");
    call(&host.client.url, &stream, &[("x-request-id", "stream")], &framed(b"").repeat(3), true);
    host.signal("-TERM");
    let mut log = String::new();
    host.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    let lines: Vec<Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let lines: Vec<_> = lines.iter().filter(|line| line["target"] == "access").collect();
    let of = |id: &str| -> Vec<(String, u64)> {
        let mine = lines.iter().filter(|line| line["request_id"] == id);
        mine.map(|line| (line["route"].as_str().unwrap().to_owned(), line["status"].as_u64().unwrap()))
            .collect()
    };
    for (at, (method, _, route, status)) in calls.iter().enumerate() {
        assert_eq!(of(&format!("g-{at}")), [((*route).to_owned(), *status)], "{method}");
    }
    assert_eq!(of("usage"), [("admin".to_owned(), 200)]);
    let message = ("grpc_infer".to_owned(), 404);
    assert_eq!(of("stream"), [message.clone(), message.clone(), message, ("grpc_stream".to_owned(), 200)]);
    let [line] = lines.iter().filter(|line| line["request_id"] == "r-7").collect::<Vec<_>>()[..] else {
        panic!("{log}")
    };
    assert_eq!((&line["model"], &line["version"]), (&"demo/m".into(), &1.into()));
    assert_eq!((&line["status"], &line["route"]), (&200.into(), &"infer".into()));
    assert!(line["received_bytes"].as_u64() > Some(0) && line["sent_bytes"].as_u64() > Some(0), "{line}");
    for part in ["took_us", "decode_us", "queue_us", "infer_us", "encode_us"] {
        assert!(line[part].is_u64(), "{part} is missing: {line}");
    }
    let unknown = lines.iter().filter(|line| line["route"] == "unknown" && line["status"] == 404);
    assert_eq!(unknown.count(), 1, "{log}");
    // Two of a registration, the list, and what is above.
    assert_eq!(lines.len(), 2 + 1 + 2 + calls.len() + 4, "{log}");
}

/// Callers see that the host failed, operators what it could not do. Why, and where, is in the log.
#[test]
fn why_the_host_failed_is_for_its_log() {
    let data = tempfile::tempdir().unwrap();
    let package = Package::fault("echo", "isolation = 'instance'");
    let host = Process::start(data.path());
    host.client.register("demo/m", &package, true);
    host.kill();
    let digest = modelhost_tests::digest(&package.files[0].1);
    let blob = data.path().join("blobs").join(&digest[..2]).join(&digest);
    std::fs::remove_file(&blob).unwrap();
    std::fs::create_dir(&blob).unwrap();
    let path = data.path().join("log");
    let log = std::fs::File::create(&path).unwrap();
    let host = Process::start_with(data.path(), &["--log", "info"], log.into());
    let answer = host.client.post_with(INFER, &x(&[1.0]), &[("x-request-id", "r-7")]);
    let promote = host.client.operate("demo/m", "promote", &json!({"version": 1}));
    for (answer, said) in [
        (&answer, "the host failed; its log has the reason under request r-7"),
        (&promote, "component: this host cannot read or write its files of versions"),
    ] {
        assert_eq!(answer.status, 500, "{answer:?}");
        assert!(answer.error().ends_with(said), "{}", answer.error());
        assert!(!answer.error().contains('/'), "{}", answer.error());
    }
    let log = std::fs::read_to_string(path).unwrap();
    let told = |what: &str| {
        let line = log.lines().find(|line| line.contains(what)).unwrap_or_else(|| panic!("{what}: {log}"));
        assert!(line.contains(&*blob.to_string_lossy()) && line.contains("Is a directory"), "{line}");
        line.to_owned()
    };
    assert!(told("a request failed").contains("r-7"));
    told("admin request failed");
    told("not loaded");
}

/// A collector in Python (`opentelemetry-proto`) prints the spans that it receives.
#[test]
fn spans_reach_a_collector() {
    let Some(python) = std::env::var_os("MODELHOST_TEST_PYTHON") else {
        assert!(std::env::var_os("CI").is_none(), "CI must have the Python clients");
        println!("skipped: the Python clients could not be installed");
        return;
    };
    let script = modelhost_tests::root().join("tests/python/otlp_collector.py");
    let mut collector = Command::new(python).arg(script).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(collector.stdout.take().unwrap()));
    let port = lines.next().unwrap().unwrap();
    let host = Host::start_with(|config| config.otlp_endpoint = Some(format!("http://127.0.0.1:{port}")));
    host.client.register("demo/m", &Package::fault("echo", ""), true);
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let answer = host.client.post_with(INFER, &x(&[1.0]), &[("traceparent", traceparent)]);
    host.stop(); // sends the last spans
    // The registration's spans come too.
    let spans = lines.map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
    let span = { spans }.find(|span| span["name"] == "infer").unwrap();
    collector.kill().unwrap();
    collector.wait().unwrap();
    assert_eq!(
        (&span["trace"], &span["parent"]),
        (&"0af7651916cd43dd8448eb211c80319c".into(), &"b7ad6b7169203331".into())
    );
    assert_eq!(
        (&span["name"], &span["service"], &span["model"]),
        (&"infer".into(), &"modelhost".into(), &"demo/m".into())
    );
    assert!(answer.headers["traceresponse"].contains(span["span"].as_str().unwrap()));
}
