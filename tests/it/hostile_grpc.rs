//! Callers who mean harm over gRPC: calls, messages and streams are bounded, and everybody else is served meanwhile.

use bytes::Bytes;
use modelhost_protocol::oip_grpc::pb;

use crate::hostile_callers::{
    begin_call, call, framed, grpc, host, is_served, message, request, wait_for, wait_until,
};

#[test]
fn grpc_messages_are_refused_before_they_are_decoded() {
    let host = host(|config| config.max_body_bytes = 1 << 20);
    let check = |message: &[u8], code: &str, text: &str| {
        let (status, said) = grpc(&host, &framed(message), true);
        assert!(status == code && said.contains(text), "{status} {said:?} is not {code} {text:?}");
    };
    check(&message(|_| {}), "0", "");
    check(&message(|message| message.inputs = vec![Default::default(); 40_000]), "3", "more than 1024");
    check(&message(|message| message.outputs = vec![Default::default(); 40_000]), "3", "more than 1024");
    let twice = |message: &mut pb::ModelInferRequest| {
        message.inputs.push(message.inputs[0].clone());
        message.raw_input_contents.push(message.raw_input_contents[0].clone());
    };
    check(&message(twice), "3", "is given twice");
    check(&[0xff; 1000], "5", "not registered");
    let contents =
        pb::InferTensorContents { bytes_contents: vec![Bytes::new(); 400_000], ..Default::default() };
    let typed = |message: &mut pb::ModelInferRequest| message.inputs[0].contents = Some(contents);
    check(&message(typed), "8", "typed contents");
    let long = message(|message| message.id = "x".repeat(10_000));
    let renamed = [long, message(|message| message.model_name = "demo/other".into())].concat();
    check(&renamed, "3", "must stand once");
    let (status, said) = grpc(&host, &[0, 0xff, 0xff, 0xff, 0xff], false);
    assert!(status == "8" && said.contains("larger"), "{status} {said}");
    is_served(&host);
}

#[test]
fn grpc_messages_must_arrive_in_time() {
    let host = host(|config| config.request_timeout_ms = 500);
    let whole = framed(&message(|message| message.raw_input_contents[0] = vec![0; 100_000].into()));
    for length in [0, 3, 5, 20, 50_000] {
        let (status, said) = grpc(&host, &whole[..length], false);
        assert!(status == "4" && said.contains("in time"), "{length}: {status} {said}");
    }
    wait_for(&host, "modelhost_held_bytes 0.0");
    is_served(&host);
}

#[test]
fn calls_that_are_begun_and_not_ended_hold_no_place() {
    let host = host(|config| config.max_connections = 20);
    let address = host.client.url.trim_start_matches("http://").to_owned();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    for method in [
        "grpc.health.v1.Health/Check",
        "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "inference.GRPCInferenceService/ServerLive",
        "inference.GRPCInferenceService/ModelInfer",
        "inference.GRPCInferenceService/ModelStreamInfer",
        "v2/models/demo/m/infer",
    ] {
        let begin = |_| runtime.block_on(begin_call(&address, method, &[], b"\0", false));
        let calls: Vec<_> = (0..40).map(begin).collect();
        is_served(&host);
        drop(calls);
    }
}

#[test]
fn streams_that_nobody_reads_are_let_go() {
    let host = host(|config| {
        config.header_timeout_ms = 300;
        config.idle_timeout_ms = 1000;
        config.request_timeout_ms = 1000;
    });
    let address = host.client.url.trim_start_matches("http://").to_owned();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let unknown = framed(&message(|message| message.model_name = "demo/nobody".into()));
    let known = framed(&message(|_| {}));
    for messages in [unknown.repeat(6), known.repeat(6)] {
        let method = "inference.GRPCInferenceService/ModelStreamInfer";
        let _call = runtime.block_on(begin_call(&address, method, &[], &messages, true)).unwrap();
        wait_for(&host, "modelhost_connections{port=\"public\"} 1.0");
        wait_for(&host, "modelhost_held_bytes 0.0");
    }
}

#[test]
fn one_connection_watches_the_hosts_health_a_few_times() {
    let host = host(|_| {});
    let address = host.client.url.trim_start_matches("http://").to_owned();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let statuses = runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(&address).await.unwrap();
        let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
        let connection = tokio::spawn(connection);
        let mut answers = Vec::new();
        for _ in 0..20 {
            client = client.ready().await.unwrap();
            let watch = request(&address, "grpc.health.v1.Health/Watch", &[]);
            let (answer, mut sender) = client.send_request(watch, false).unwrap();
            sender.send_data(Bytes::from(framed(b"")), true).unwrap();
            answers.push(answer.await.unwrap()); // what goes on stays open
        }
        connection.abort();
        let status = |answer: &ureq::http::Response<_>| {
            answer.headers().get("grpc-status").map(|status| status.to_str().unwrap().to_owned())
        };
        answers.iter().map(status).collect::<Vec<_>>()
    });
    assert_eq!(statuses.iter().filter(|status| status.is_none()).count(), 8, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|status| status.as_deref() == Some("8")).count(), 12, "{statuses:?}");
    let check = call(&host.client.url, "grpc.health.v1.Health/Check", &[], &framed(b""), true);
    assert_eq!(check["grpc-status"], "0", "{check:?}");
    wait_for(&host, "modelhost_http_requests_total{route=\"grpc_health\",status=\"503\"} 12");
}

#[test]
fn the_start_of_a_message_is_charged() {
    let host = host(|_| {});
    let address = host.client.url.trim_start_matches("http://").to_owned();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    // A compressed message says nothing before a block of it is there.
    for method in ["ModelInfer", "ModelStreamInfer", "ServerLive"] {
        let method = format!("inference.GRPCInferenceService/{method}");
        let headers = [("grpc-encoding", "zstd")];
        let length = if method.ends_with("Live") { [1, 0, 0, 250, 0] } else { [1, 0, 16, 0, 0] };
        let start = [&length[..], &[7; 50_000]].concat();
        let begun = runtime.block_on(begin_call(&address, &method, &headers, &start, false));
        // What a waiting request counts besides comes on top.
        wait_until("its bytes are charged", || {
            let metrics = host.client.get("/metrics").body;
            let held =
                metrics.as_str().unwrap().lines().find_map(|line| line.strip_prefix("modelhost_held_bytes "));
            held.unwrap().parse::<f64>().unwrap() >= 50_005.0
        });
        drop(begun);
        wait_for(&host, "modelhost_held_bytes 0.0");
    }
}

#[test]
fn unknown_codings_methods_and_long_names_are_refused_in_few_words() {
    let host = host(|_| {});
    let infer = "inference.GRPCInferenceService/ModelInfer";
    for method in [
        infer,
        "inference.GRPCInferenceService/ModelStreamInfer",
        "inference.GRPCInferenceService/ServerLive",
    ] {
        let said = call(&host.client.url, method, &[("grpc-encoding", "br")], &framed(b""), true);
        assert_eq!(
            (&*said["grpc-status"], &*said["grpc-accept-encoding"]),
            ("12", "identity,gzip,deflate,zstd")
        );
    }
    for method in ["inference.GRPCInferenceService/Nothing", "no.such.Service/Method"] {
        let said = call(&host.client.url, method, &[("x-request-id", "r-1")], &framed(b""), true);
        assert_eq!((&*said["grpc-status"], &*said["x-request-id"]), ("12", "r-1"));
    }
    let long = message(|message| message.model_name = "é".repeat(1500));
    let said = call(&host.client.url, infer, &[], &framed(&long), true);
    assert!(said["grpc-status"] == "5" && said["grpc-message"].len() < 7000, "{said:?}");
    let body = format!("{{\"parameters\":{{\"a\":\"{}\"}}}}", "x".repeat(100_000));
    let url = format!("{}/v2/repository/models/demo/m/load", host.client.url);
    assert_eq!(host.client.send("POST", &url, body.as_bytes(), &[]).unwrap().status, 413);
}
