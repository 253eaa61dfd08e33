//! Observability of a request: ids, trace context, access log, spans.

use std::io::Read;
use std::process::{Command, Stdio};

use modelhost_tests::{Host, Package, Process, x};
use serde_json::Value;

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
    host.signal("-TERM");
    let mut log = String::new();
    host.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    let lines: Vec<Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let lines: Vec<_> = lines.iter().filter(|line| line["target"] == "access").collect();
    assert_eq!(lines.len(), 2, "{log}");
    let line = lines[0];
    assert_eq!(
        (&line["request_id"], &line["model"], &line["version"]),
        (&"r-7".into(), &"demo/m".into(), &1.into())
    );
    assert_eq!((&line["status"], &line["route"]), (&200.into(), &"infer".into()));
    assert!(line["received_bytes"].as_u64() > Some(0) && line["sent_bytes"].as_u64() > Some(0), "{line}");
    for part in ["took_us", "decode_us", "queue_us", "infer_us", "encode_us"] {
        assert!(line[part].is_u64(), "{part} is missing: {line}");
    }
    assert_eq!((&lines[1]["status"], &lines[1]["route"]), (&404.into(), &"unknown".into()));
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
    let span: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
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
