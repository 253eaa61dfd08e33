//! Callers who mean harm: a clear refusal, bounded memory, and everybody else is served.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use modelhost_tests::{Host, Package, x};
use serde_json::json;

const INFER: &str = "/v2/models/demo/m/infer";

fn host(change: impl FnOnce(&mut modelhost_server::Config)) -> Host {
    let host = Host::start_with(change);
    host.client.register("demo/m", &Package::fault("echo", ""), true);
    host
}

fn connect(host: &Host) -> TcpStream {
    connect_to(&host.client.url)
}

fn connect_to(url: &str) -> TcpStream {
    let stream = TcpStream::connect(url.trim_start_matches("http://")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream
}

/// Sends these bytes and returns what comes until the host closes.
fn exchange(host: &Host, bytes: &[u8]) -> String {
    let mut stream = connect(host);
    drop(stream.write_all(bytes)); // the host may close before it has read all
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
    }
    String::from_utf8_lossy(&answer).into_owned()
}

fn is_served(host: &Host) {
    assert_eq!(host.client.post(INFER, &x(&[1.0])).status, 200);
}

#[test]
fn slow_senders_are_cut_off_and_hold_nobody_up() {
    let host = host(|config| {
        config.header_timeout_ms = 500;
        config.request_timeout_ms = 500;
    });
    let mut slow: Vec<_> = (0..200).map(|_| connect(&host)).collect();
    for stream in &mut slow {
        stream.write_all(b"POST /v2/models/demo/m/infer HTTP/1.1\r\nHost: h\r\n").unwrap();
    }
    let started = Instant::now();
    is_served(&host);
    for stream in &mut slow {
        let mut answer = String::new();
        drop(stream.read_to_string(&mut answer)); // closed, with or without a word
    }
    assert!(started.elapsed() < Duration::from_secs(20), "slow headers were waited for");
    let answer =
        exchange(&host, b"POST /v2/models/demo/m/infer HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n{");
    assert!(answer.starts_with("HTTP/1.1 504") && answer.contains("did not arrive in time"), "{answer}");
}

#[test]
fn bombs_are_refused_before_they_are_held() {
    let host = host(|config| config.max_body_bytes = 1 << 20);
    let huge = b"POST /v2/models/demo/m/infer HTTP/1.1\r\nHost: h\r\nContent-Length: 10000000000000\r\n\r\n";
    let answer = exchange(&host, &[huge.as_slice(), &[b'x'; 1000]].concat());
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    let headers = format!("GET /v2 HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "x".repeat(2 << 20));
    let answer = exchange(&host, headers.as_bytes());
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    let many = (0..1000).map(|at| format!("X{at}: y\r\n")).collect::<String>();
    let answer = exchange(&host, format!("GET /v2 HTTP/1.1\r\nHost: h\r\n{many}\r\n").as_bytes());
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");

    let mut bomb = GzEncoder::new(Vec::new(), Compression::best());
    for _ in 0..64 {
        bomb.write_all(&[b' '; 1 << 20]).unwrap();
    }
    let bomb = bomb.finish().unwrap();
    let url = format!("{}{INFER}", host.client.url);
    let answer = host.client.send("POST", &url, &bomb, &[("content-encoding", "gzip")]).unwrap();
    assert_eq!(
        (answer.status, answer.error()),
        (413, "body: decompresses to more than the 1048576 bytes allowed")
    );
    let answer = host.client.send("POST", &url, b"no gzip", &[("content-encoding", "gzip")]).unwrap();
    assert!(answer.status == 400 && answer.error().starts_with("body: gzip:"), "{answer:?}");
    let answer = host.client.send("POST", &url, b"x", &[("content-encoding", "br")]).unwrap();
    assert_eq!(answer.status, 415, "{answer:?}");
    is_served(&host);
}

#[test]
fn malformed_tensors_are_named() {
    let host = host(|_| {});
    let with = |change: serde_json::Value| {
        let mut input = json!({"name": "x", "datatype": "FP32", "shape": [1], "data": [1]});
        for (key, value) in change.as_object().unwrap() {
            input[key] = value.clone();
        }
        json!({"inputs": [input]}).to_string()
    };
    let twice = json!({"inputs": [x(&[1.0])["inputs"][0], x(&[1.0])["inputs"][0]]}).to_string();
    for (body, expected) in [
        (with(json!({"shape": [-1]})), "input \"x\": shape: -1 is not a dimension"),
        (with(json!({"shape": [u64::MAX, 2]})), "tensor \"x\""),
        (with(json!({"shape": [4_000_000_000_u64, 4_000_000_000_u64]})), "tensor \"x\""),
        (with(json!({"shape": [2]})), "tensor \"x\": shape [2] of FP32 needs 2 x 4 bytes, 4 came"),
        (with(json!({"shape": vec![1; 40]})), "input \"x\": shape: more than 32 dimensions"),
        (with(json!({"datatype": "FP31"})), "input \"x\": datatype \"FP31\""),
        (with(json!({"data": [[[[1]]]]})), "input \"x\": element 0: data is nested 4 deep"),
        (twice, "input \"x\" is given twice"),
        ("[".repeat(100_000), "expected an object"),
        (format!("{{\"a\":{}", "[".repeat(100_000)), "nested deeper than 64"),
        ("{\"id\":\"\u{1}\"}".to_owned(), "not valid JSON"),
    ] {
        let url = format!("{}{INFER}", host.client.url);
        let answer = host.client.send("POST", &url, body.as_bytes(), &[]).unwrap();
        assert_eq!(answer.status, 400, "{answer:?}");
        assert!(answer.error().contains(expected), "{answer:?}");
    }
    let url = format!("{}{INFER}", host.client.url);
    let answer = host.client.send("POST", &url, b"{\"id\":\"\xff\xfe\"}", &[]).unwrap();
    assert_eq!(answer.status, 400, "{answer:?}");
    is_served(&host);
}

#[test]
fn rapid_resets_do_not_stop_service() {
    let host = host(|_| {});
    let address = host.client.url.trim_start_matches("http://").to_owned();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let opened = runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(&address).await.unwrap();
        let (client, connection) = h2::client::handshake(stream).await.unwrap();
        let connection = tokio::spawn(connection);
        let mut opened = 0;
        let mut client = client;
        for _ in 0..20_000 {
            let Ok(ready) = client.ready().await else { break };
            client = ready;
            let request = ureq::http::Request::builder()
                .method("POST")
                .uri(format!("http://{address}{INFER}"))
                .body(());
            let Ok((_, mut body)) = client.send_request(request.unwrap(), false) else { break };
            body.send_reset(h2::Reason::CANCEL);
            opened += 1;
        }
        connection.abort();
        opened
    });
    println!("{opened} streams were opened and reset");
    is_served(&host);
}

#[test]
fn ten_thousand_idle_connections_do_not_stop_service() {
    let data = tempfile::tempdir().unwrap();
    let host = modelhost_tests::Process::start(data.path());
    host.client.register("demo/m", &Package::fault("echo", ""), true);
    let address = host.client.url.trim_start_matches("http://");
    let idle: Vec<_> = (0..10_000)
        .map(|at| TcpStream::connect(address).unwrap_or_else(|error| panic!("connection {at}: {error}")))
        .collect();
    for _ in 0..10 {
        assert_eq!(host.client.post(INFER, &x(&[1.0])).status, 200);
    }
    drop(idle);
}

#[test]
fn a_body_that_nobody_reads_does_not_cost_the_connection() {
    let host = host(|_| {});
    let mut stream = connect_to(&host.client.admin);
    for (path, unloaded) in [("versions/1/unload", true), ("versions/1/unload", false)] {
        let head = format!("POST /v1/models/demo/m/{path} HTTP/1.1\r\nHost: localhost\r\n");
        let head = format!("{head}Content-Type: application/json\r\nContent-Length: 2\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        stream.write_all(b"{}").unwrap();
        let (answer, expected) = (&mut [0; 1024], format!("{{\"unloaded\":{unloaded}}}"));
        let mut came = 0;
        while !String::from_utf8_lossy(&answer[..came]).ends_with(&expected) {
            let read = stream.read(&mut answer[came..]).unwrap();
            assert!(read > 0, "closed after {:?}", String::from_utf8_lossy(&answer[..came]));
            came += read;
        }
    }
}
