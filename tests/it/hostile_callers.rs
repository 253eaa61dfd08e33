//! Callers who mean harm, by connections, bodies and streams: what they hold is bounded, and everybody else is served
//! meanwhile.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use modelhost_protocol::oip_grpc::pb;
use modelhost_server::Config;
use modelhost_tests::{Client, Host, Package, Process, x};
use prost::Message;
use serde_json::json;

pub(crate) const INFER: &str = "/v2/models/demo/m/infer";

pub(crate) fn host(change: impl FnOnce(&mut Config)) -> Host {
    let host = Host::start_with(change);
    host.client.register("demo/m", &Package::fault("echo", ""), true);
    host
}

pub(crate) fn connect(url: &str) -> TcpStream {
    let stream = TcpStream::connect(url.trim_start_matches("http://")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream
}

/// Over a connection of its own: a pooled one may have made room for others.
pub(crate) fn is_served(host: &Host) {
    assert_eq!(host.client.post_with(INFER, &x(&[1.0]), &[("connection", "close")]).status, 200);
}

/// What a gauge of the host says, once it says so; panics when it does not within half a minute.
pub(crate) fn wait_for(host: &Host, gauge: &str) {
    for _ in 0..300 {
        let metrics = host.client.get("/metrics").body;
        if metrics.as_str().unwrap().lines().any(|line| line == gauge) {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("{gauge} never came: {}", host.client.get("/metrics").body);
}

#[test]
fn silent_connections_hold_no_place() {
    let host = host(|config| config.max_connections = 20);
    for first in [&b""[..], b"P", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"] {
        let silent: Vec<_> = (0..50)
            .map(|_| {
                let mut stream = connect(&host.client.url);
                drop(stream.write_all(first)); // it may be closed for another already
                stream
            })
            .collect();
        is_served(&host);
        drop(silent);
    }
    let silent: Vec<_> = (0..300).map(|_| connect(&host.client.admin)).collect();
    assert_eq!(host.client.admin("GET", "/models", &json!(null)).unwrap().status, 200);
    drop(silent);
}

#[test]
fn silent_connections_are_closed_in_time() {
    let host = host(|config| {
        config.header_timeout_ms = 300;
        config.idle_timeout_ms = 600;
    });
    for first in [&b""[..], b"GET /v2", b"GET /v2 HTTP/1.1\r\nHost: h\r\n\r\n"] {
        let mut stream = connect(&host.client.url);
        stream.write_all(first).unwrap();
        let mut rest = Vec::new();
        drop(stream.read_to_end(&mut rest)); // ends when the host closes; a host that waits fails by the read's timeout
        assert!(stream.read(&mut [0]).is_ok_and(|read| read == 0), "{first:?} is still open");
    }
    is_served(&host);
}

#[test]
fn a_full_host_still_stops() {
    let host = host(|config| {
        config.max_connections = 4;
        config.drain_timeout_ms = 60_000;
    });
    let silent: Vec<_> = (0..8).map(|_| connect(&host.client.url)).collect();
    host.stop();
    drop(silent);
}

#[test]
fn answers_that_nobody_reads_are_let_go() {
    let host = host(|config| {
        config.header_timeout_ms = 300;
        config.idle_timeout_ms = 1000;
        config.request_timeout_ms = 5000;
    });
    let body = x(&vec![1.0; 1 << 20]).to_string();
    let mut greedy = Vec::new();
    for _ in 0..4 {
        let mut stream = connect(&host.client.url);
        let head = format!("POST {INFER} HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body.as_bytes()).unwrap();
        greedy.push(stream);
    }
    // The scrape's own connection is the one that stays.
    wait_for(&host, "modelhost_connections{port=\"public\"} 1.0");
    wait_for(&host, "modelhost_held_bytes 0.0");
    drop(greedy);
}

#[test]
fn bodies_are_bounded_together_and_small_ones_find_room() {
    let host = host(|config| config.bodies_mib = 4);
    let large = x(&vec![1.0; 500_000]).to_string();
    let url = format!("{}{INFER}", host.client.url);
    let answer = host.client.send("POST", &url, large.as_bytes(), &[]).unwrap();
    assert_eq!((answer.status, answer.headers["retry-after"].as_str()), (503, "1"), "{answer:?}");
    assert!(answer.error().contains("MiB that requests and answers may take"), "{answer:?}");
    // Somebody sends all but the last byte of what one deployment may hold.
    let mut slow = connect(&host.client.url);
    let head = format!("POST {INFER} HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", 3 << 19);
    slow.write_all(head.as_bytes()).unwrap();
    slow.write_all(&vec![b' '; (3 << 19) - 1]).unwrap();
    is_served(&host);
    drop(slow);
    wait_for(&host, "modelhost_held_bytes 0.0");
}

#[test]
fn what_names_no_model_is_not_read() {
    let host = host(|_| {});
    for (path, kind) in [
        ("/models/no/model/", "application/x-www-form-urlencoded\r\nAccept: text/html"),
        ("/models/no/model/", "text/csv"),
        ("/v2/models/no/model/infer", "application/json"),
        ("/v1/models/no/model:predict", "application/json"),
        ("/models/no/model/invocations", "application/json"),
    ] {
        let mut stream = connect(&host.client.url);
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: h\r\nContent-Type: {kind}\r\nContent-Length: 1000000\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 404"), "{path} {kind}: {answer}");
    }
}

#[test]
fn a_form_of_many_fields_is_refused() {
    let host = host(|_| {});
    let url = format!("{}/models/demo/m/", host.client.url);
    let form = "&x=1".repeat(100_000);
    let headers = [("content-type", "application/x-www-form-urlencoded"), ("accept", "text/html")];
    let answer = host.client.send("POST", &url, form.as_bytes(), &headers).unwrap();
    assert_eq!(answer.status, 400, "{answer:?}");
    assert!(answer.body.as_str().unwrap().contains("more than 4096 fields"), "{answer:?}");
}

#[test]
fn slow_csv_files_hold_no_place_in_their_deployment() {
    let host = Host::start_with(|config| config.instances = 2);
    host.client.register("demo/credit", &Package::folder("examples/credit-risk/xgboost"), true);
    host.client.admin("PATCH", "/deployments/default", &json!({"instances": 1, "queue": 1})).unwrap();
    let mut slow: Vec<_> = (0..8).map(|_| connect(&host.client.url)).collect();
    for stream in &mut slow {
        let head = "POST /models/demo/credit/ HTTP/1.1\r\nHost: h\r\nContent-Type: text/csv\r\nTransfer-Encoding: chunked\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(b"1\r\n\n\r\n").unwrap();
    }
    let (rows, _) = modelhost_tests::held_out("xgboost");
    for _ in 0..10 {
        assert_eq!(host.client.post("/models/demo/credit/", &rows).status, 200);
    }
}

/// Calls ModelInfer with these bytes as the call's body, `ends` or not; returns the status and its text.
pub(crate) fn grpc(host: &Host, body: &[u8], ends: bool) -> (String, String) {
    grpc_within(host, body, ends, "60S")
}

pub(crate) fn grpc_within(host: &Host, body: &[u8], ends: bool, timeout: &str) -> (String, String) {
    let method = "inference.GRPCInferenceService/ModelInfer";
    let said = call(&host.client.url, method, &[("grpc-timeout", timeout)], body, ends);
    let field = |name: &str| said.get(name).cloned().unwrap_or_default();
    (field("grpc-status"), field("grpc-message").replace("%20", " "))
}

/// Calls a gRPC method with these bytes as the call's body, `ends` or not; returns the answer's headers and trailers.
pub(crate) fn call(
    url: &str,
    method: &str,
    headers: &[(&str, &str)],
    body: &[u8],
    ends: bool,
) -> HashMap<String, String> {
    let address = url.trim_start_matches("http://");
    let mut rest = Bytes::copy_from_slice(body);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async move {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let (client, connection) = h2::client::handshake(stream).await.unwrap();
        let connection = tokio::spawn(connection);
        let mut client = client.ready().await.unwrap();
        let request = request(address, method, headers);
        let (answer, mut sender) = client.send_request(request, false).unwrap();
        sender.reserve_capacity(rest.len());
        while !rest.is_empty() {
            match std::future::poll_fn(|context| sender.poll_capacity(context)).await {
                Some(Ok(room)) => sender.send_data(rest.split_to(room.min(rest.len())), false).unwrap(),
                _ => break, // the host refused before it has read all
            }
        }
        if ends {
            drop(sender.send_data(Bytes::new(), true));
        }
        let (head, mut body) = answer.await.unwrap().into_parts();
        while let Some(Ok(_)) = body.data().await {}
        let last = body.trailers().await.ok().flatten().unwrap_or_default();
        connection.abort();
        let text = |(name, value): (&ureq::http::HeaderName, &ureq::http::HeaderValue)| {
            (name.to_string(), value.to_str().unwrap().to_owned())
        };
        head.headers.iter().chain(&last).map(text).collect()
    })
}

pub(crate) fn request(address: &str, method: &str, headers: &[(&str, &str)]) -> ureq::http::Request<()> {
    let mut request = ureq::http::Request::builder()
        .method("POST")
        .uri(format!("http://{address}/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap()
}

/// A message in its frame.
pub(crate) fn framed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0][..], &length, message].concat()
}

pub(crate) fn message(change: impl FnOnce(&mut pb::ModelInferRequest)) -> Vec<u8> {
    let mut message = pb::ModelInferRequest {
        model_name: "demo/m".into(),
        inputs: vec![pb::model_infer_request::InferInputTensor {
            name: "x".into(),
            datatype: "FP32".into(),
            shape: vec![1],
            ..Default::default()
        }],
        raw_input_contents: vec![Bytes::from_static(&[0; 4])],
        ..Default::default()
    };
    change(&mut message);
    message.encode_to_vec()
}

#[test]
fn a_short_deadline_fails_nobody_else_through_the_response_cache() {
    let host = Host::start();
    let package = Package::fault("slow", "response_cache = true\nlimits = { deadline_ms = 30000 }");
    host.client.register("demo/m", &package, true);
    let long = 200.0_f32;
    let raw = Bytes::from(long.to_le_bytes().to_vec());
    let equal = framed(&message(|message| message.raw_input_contents = vec![raw]));
    std::thread::scope(|scope| {
        // Whoever comes first makes the answer; the hurried one may be late or find it made.
        let hurried = scope.spawn(|| grpc_within(&host, &equal, true, "50m"));
        let patient: Vec<_> = (0..3).map(|_| scope.spawn(|| host.client.post(INFER, &x(&[long])))).collect();
        let (status, said) = hurried.join().unwrap();
        assert!(["0", "4"].contains(&status.as_str()), "{status} {said}");
        for answer in patient {
            let answer = answer.join().unwrap();
            assert_eq!(answer.status, 200, "{answer:?}");
        }
    });
}

/// Opens a connection and begins a call of this method; sends these bytes, and reads nothing.
pub(crate) async fn begin_call(
    address: &str,
    method: &str,
    headers: &[(&str, &str)],
    bytes: &[u8],
    ends: bool,
) -> Option<impl Sized> {
    let stream = tokio::net::TcpStream::connect(address).await.ok()?;
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(0);
    let (client, connection) = builder.handshake::<_, Bytes>(stream).await.ok()?;
    let connection = tokio::spawn(connection);
    let mut client = client.ready().await.ok()?;
    let (answer, mut sender) = client.send_request(request(address, method, headers), false).ok()?;
    sender.send_data(Bytes::copy_from_slice(bytes), ends).ok()?;
    Some((client, connection, answer, sender))
}

/// An HTTP/2 connection of its own, with a window of so many bytes for each stream, until the sender is dropped.
async fn http2(address: &str, window: u32) -> h2::client::SendRequest<Bytes> {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(window).initial_connection_window_size(1 << 20);
    let (client, mut connection) = builder.handshake::<_, Bytes>(stream).await.unwrap();
    let mut pings = connection.ping_pong().unwrap();
    tokio::spawn(connection);
    tokio::spawn(async move {
        while pings.ping(h2::Ping::opaque()).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    client.ready().await.unwrap()
}

fn ask(method: &str, path: &str) -> ureq::http::Request<()> {
    ureq::http::Request::builder().method(method).uri(format!("http://localhost{path}")).body(()).unwrap()
}

/// Waits until it is so, for half of the time that a request has.
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..300 {
        if is_so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("{what} within half a minute");
}

#[test]
fn bodies_that_drip_make_room_on_every_port() {
    let host = host(|config| {
        config.bodies_mib = 16;
        config.grpc_listen = Some(([127, 0, 0, 1], 0).into());
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let address = host.grpc_address().unwrap().to_string();
    runtime.block_on(async {
        let mut client = http2(&address, 65_535).await;
        for _ in 0..24 {
            let (answer, mut body) = client.send_request(ask("POST", INFER), false).unwrap();
            tokio::spawn(async move {
                body.send_data(Bytes::from(vec![b' '; 200_000]), false).unwrap();
                while body.send_data(Bytes::from_static(b" "), false).is_ok() {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                drop(answer);
            });
        }
    });
    let body = x(&vec![1.0; 300_000]).to_string();
    let post = |client: &Client| {
        let url = format!("{}{INFER}", client.url);
        client.send("POST", &url, body.as_bytes(), &[]).map_or(0, |answer| answer.status)
    };
    wait_until("others hold what there is", || post(&host.client) == 503);
    wait_until("they make room", || post(&host.client) == 200);
}

/// Begins a CSV file on a connection of its own, and goes on with this piece again and again until `ends`, or for a
/// minute; returns what was answered by then, or by when the host ended it.
fn drip(url: &str, begin: &str, piece: &str, ends: &AtomicBool) -> String {
    let mut stream = connect(url);
    let head = "POST /models/demo/credit/ HTTP/1.1\r\nHost: h\r\nContent-Type: text/csv\r\n\
                Transfer-Encoding: chunked\r\n\r\n";
    let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
    let mut sent = stream.write_all(format!("{head}{}", chunk(begin)).as_bytes());
    stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let (mut answer, mut buffer) = (Vec::new(), [0; 1 << 10]);
    for _ in 0..600 {
        if ends.load(Ordering::Relaxed) {
            break;
        }
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => answer.extend_from_slice(&buffer[..read]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
            Err(_) if sent.is_ok() => sent = stream.write_all(chunk(piece).as_bytes()),
            Err(_) => break,
        }
    }
    String::from_utf8_lossy(&answer).into_owned()
}

/// Ends what drips, also when a test fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn csv_files_that_drip_make_room_for_others() {
    let host = Host::start_with(|config| config.bodies_mib = 4);
    host.client.register("demo/credit", &Package::folder("examples/credit-risk/xgboost"), true);
    let (header, rows) = crate::csv::file();
    let post = || {
        let url = format!("{}/models/demo/credit/", host.client.url);
        let kind = [("content-type", "text/csv")];
        let answer = host.client.send("POST", &url, format!("{header}{rows}").as_bytes(), &kind);
        answer.map_or(0, |answer| answer.status)
    };
    assert_eq!(post(), 200);
    let (row, ends) = (rows.split_inclusive('\n').next().unwrap(), AtomicBool::new(false));
    let refused = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _ends = Ends(&ends);
        for _ in 0..12 {
            scope.spawn(|| {
                let answer = drip(&host.client.url, &header, row, &ends);
                refused.fetch_or(answer.starts_with("HTTP/1.1 503"), Ordering::Relaxed);
            });
        }
        wait_until("the first of them hold what there is", || refused.load(Ordering::Relaxed));
        wait_until("they make room", || post() == 200);
    });
}

#[test]
fn a_row_that_never_ends_ends_its_file() {
    let host = Host::start_with(|config| config.request_timeout_ms = 1000);
    host.client.register("demo/credit", &Package::folder("examples/credit-risk/xgboost"), true);
    let (header, rows) = crate::csv::file();
    let ends = AtomicBool::new(false);
    for piece in ["\n", "1"] {
        let answer = drip(&host.client.url, &header, piece, &ends);
        assert!(answer.starts_with("HTTP/1.1 504"), "{piece:?}: {answer}");
        assert!(answer.contains("no row came to its end in time"), "{piece:?}: {answer}");
    }
    let answer = drip(&host.client.url, &format!("{header}{rows}"), "\n", &ends);
    assert!(answer.starts_with("HTTP/1.1 200") && !answer.ends_with("0\r\n\r\n"), "{answer}");
}

#[test]
fn an_unread_answer_ends_its_stream_alone() {
    let host = host(|config| {
        config.header_timeout_ms = 1000;
        config.request_timeout_ms = 1000;
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let address = host.client.url.trim_start_matches("http://").to_owned();
    let body = Bytes::from(x(&vec![1.0; 100_000]).to_string());
    // Nothing of it goes out, or some of it.
    for window in [0, 65_535] {
        runtime.block_on(async {
            let mut client = http2(&address, window).await;
            let (answer, mut sender) = client.send_request(ask("POST", INFER), false).unwrap();
            sender.send_data(body.clone(), true).unwrap();
            let mut unread = answer.await.unwrap().into_body();
            let end = loop {
                match unread.data().await {
                    Some(Ok(_)) => {} // and gives no room for more
                    other => break other,
                }
            };
            let error = end.expect("it does not end well").unwrap_err();
            assert!(error.is_reset() && error.is_remote(), "{window}: {error}");
            let mut client = client.ready().await.unwrap();
            let (answer, _) = client.send_request(ask("GET", "/v2/health/live"), true).unwrap();
            assert_eq!(answer.await.unwrap().status(), 200, "{window}");
        });
        wait_for(&host, "modelhost_held_bytes 0.0");
    }
}

#[test]
fn many_connections_may_send_little_ahead() {
    let host = host(|_| {});
    // The first frame of a host is its settings, of six bytes each: the fourth kind is a stream's window.
    let window = |stream: &mut TcpStream| {
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
        let mut head = [0; 9];
        stream.read_exact(&mut head).unwrap();
        let mut settings = vec![0; usize::from(head[2])];
        stream.read_exact(&mut settings).unwrap();
        let window = settings.chunks(6).find(|setting| setting[..2] == [0, 4]).unwrap();
        u32::from_be_bytes(window[2..].try_into().unwrap())
    };
    // HTTP/1 takes none of it.
    let mut open: Vec<_> = (0..300)
        .map(|_| {
            let mut stream = connect(&host.client.url);
            stream.write_all(b"GET /v2/health/live HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
            assert!(stream.read(&mut [0; 100]).unwrap() > 0);
            stream
        })
        .collect();
    let first: Vec<_> = (0..300)
        .map(|_| {
            let mut stream = connect(&host.client.url);
            let window = window(&mut stream);
            open.push(stream);
            window
        })
        .collect();
    let wide = first.iter().filter(|window| **window == 256 << 10).count();
    assert!((250..=256).contains(&wide), "{wide} of {first:?}");
    assert_eq!(first.last(), Some(&(64 << 10)));
    drop(open);
    wait_until("a place among the first is free again", || {
        window(&mut connect(&host.client.url)) == 256 << 10
    });
}

/// A table of so many columns, each of which a row may leave out.
fn wide(columns: usize) -> Package {
    let column = |at| json!({"name": format!("c{at}"), "kind": "numeric", "impute": 0.0});
    let model = json!({
        "format": "modelhost-linear/1",
        "task": "regression",
        "columns": (0..columns).map(column).collect::<Vec<_>>(),
        "coefficients": [vec![1.0; columns]],
        "intercepts": [0.0],
    });
    let feature = |at| format!("[[features]]\nname = 'c{at}'\nmissing = true\n");
    let features: String = (0..columns).map(feature).collect();
    let manifest = format!("runtime = 'linear'\nartifacts = ['model.json']\n{features}");
    Package { manifest, files: vec![("model.json".into(), model.to_string().into())] }
}

/// The most memory that the process had at once, in MiB.
fn peak_mib(process: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
}

/// A row of three bytes is 8 KB in memory, and an answer's name stands in every row of it.
#[test]
fn what_a_request_becomes_is_bounded_before_it_is_made() {
    let data = tempfile::tempdir().unwrap();
    let config = data.path().join("config.toml");
    std::fs::write(&config, "bodies_mib = 64").unwrap();
    let arguments = ["--config", config.to_str().unwrap(), "--log", "error"];
    let host = Process::start_with(data.path(), &arguments, Stdio::inherit());
    host.client.register("demo/wide", &wide(2000), true);
    let before = peak_mib(&host);
    let rows = |row: &str| vec![row; 50_000].join(",");
    let (objects, lists) = (rows("{}"), rows("[]"));
    let long = format!("c7\n{}", "1\n".repeat(50_000));
    for (path, kind, body) in [
        ("/models/demo/wide/", "application/json", format!("[{objects}]")),
        ("/models/demo/wide/", "text/csv", long.clone()),
        ("/models/demo/wide/invocations", "text/csv", long),
        (
            "/models/demo/wide/invocations",
            "application/json",
            format!("{{\"dataframe_records\":[{objects}]}}"),
        ),
        (
            "/models/demo/wide/invocations",
            "application/json",
            format!("{{\"dataframe_split\":{{\"columns\":[],\"data\":[{lists}]}}}}"),
        ),
        (
            "/v1/models/demo/wide:predict",
            "application/json",
            format!("{{\"instances\":[{{\"c1\":1}},{objects}]}}"),
        ),
    ] {
        let url = format!("{}{path}", host.client.url);
        let answer = host.client.send("POST", &url, body.as_bytes(), &[("content-type", kind)]).unwrap();
        assert_eq!(answer.status, 503, "{path} {kind}: {answer:?}");
    }
    let grown = peak_mib(&host) - before;
    assert!(grown < 64 + 64, "{grown} MiB more than before");
    let one = host.client.post("/models/demo/wide/", &json!([{"c1": 1.5}]));
    assert_eq!(one.status, 200, "{one:?}");
}
