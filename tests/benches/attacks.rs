//! What callers and authors who mean harm can do to everybody else: how long health takes to answer while they try, how
//! much slower another deployment gets, how much memory the host takes, and how soon all of it is free again.
//! `cargo xtask bench attacks` runs it against the release binary, all attacks or those named.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    reason = "a benchmark"
)]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use modelhost_tests::{Client, Package, Process, x};
use serde_json::json;

/// How long each attack goes on.
const ATTACK: Duration = Duration::from_secs(8);

/// What must be free again is looked for so long.
const AFTER: Duration = Duration::from_secs(30);

const INFER: &str = "/v2/models/noisy/m/infer";

/// Goes on until it is told to stop.
type Attack = fn(&Client, &AtomicBool);

const ATTACKS: [(&str, Attack); 11] = [
    ("silent-connections", silent_connections),
    ("silent-admin-connections", silent_admin_connections),
    ("unread-answers", unread_answers),
    ("slow-bodies", slow_bodies),
    ("large-bodies", large_bodies),
    ("zstd-streams", zstd_streams),
    ("form-bomb", form_bomb),
    ("slow-csv", slow_csv),
    ("grpc-inputs", grpc_inputs),
    ("grpc-unfinished", grpc_unfinished),
    ("sleeping-guests", sleeping_guests),
];

fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    if !arguments.iter().any(|argument| argument == "--bench") {
        return; // built by `cargo test --all-targets`
    }
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let wanted: Vec<_> = arguments.iter().filter(|argument| !argument.starts_with("--")).collect();
    println!(
        "{:<26} {:>12} {:>12} {:>12} {:>14} {:>12}",
        "attack", "health p99", "health worst", "p99 beside", "memory beyond", "free after"
    );
    for (name, attack) in ATTACKS {
        if wanted.is_empty() || wanted.iter().any(|wanted| *wanted == name) {
            measure(name, attack);
        }
    }
}

fn measure(name: &str, attack: Attack) {
    let dir = tempfile::tempdir().unwrap();
    let host = serve(dir.path());
    let alone = quantile(&mut quiet(&host.client, Duration::from_secs(4)), 0.99);
    let rest = resident(&host);
    let stop = AtomicBool::new(false);
    let (mut health, mut beside, most) = std::thread::scope(|scope| {
        scope.spawn(|| attack(&host.client, &stop));
        let memory = scope.spawn(|| {
            let mut most = 0;
            while !stop.load(Ordering::Relaxed) {
                most = most.max(resident(&host));
                std::thread::sleep(Duration::from_millis(50));
            }
            most
        });
        let health = scope.spawn(|| probe(&host.client, ATTACK));
        let beside = quiet(&host.client, ATTACK);
        let health = health.join().unwrap();
        stop.store(true, Ordering::Relaxed);
        (health, beside, memory.join().unwrap())
    });
    let freed = free_again(&host.client);
    println!(
        "{name:<26} {:>9.1} ms {:>9.1} ms {:>10.2} x {:>10} MiB {:>12}",
        millis(quantile(&mut health, 0.99)),
        millis(quantile(&mut health, 1.0)),
        quantile(&mut beside, 0.99).as_secs_f64() / alone.as_secs_f64(),
        most.saturating_sub(rest) >> 10,
        freed.map_or("never".to_owned(), |after| format!("{:.1} s", after.as_secs_f64())),
    );
}

fn serve(data: &std::path::Path) -> Process {
    let settings = "instances = 200\n[deployments.noisy]\ninstances = 100\nqueue = 8\nthreads = 1\n[deployments.quiet]\ninstances = 8\nqueue = 64\n";
    let file = data.join("settings.toml");
    fs::write(&file, settings).unwrap();
    let arguments = ["--log", "error", "--config", file.to_str().unwrap()];
    let host = Process::start_with(&data.join("data"), &arguments, Stdio::inherit());
    host.client.register("noisy/m", &Package::fault("echo", ""), true);
    host.client.register("noisy/table", &Package::folder("examples/credit-risk/xgboost"), true);
    host.client.register("quiet/m", &Package::fault("echo", ""), true);
    for (model, deployment) in [("noisy/m", "noisy"), ("noisy/table", "noisy"), ("quiet/m", "quiet")] {
        let answer = host.client.admin(
            "PUT",
            &format!("/models/{model}/deployment"),
            &json!({"deployment": deployment}),
        );
        assert_eq!(answer.unwrap().status, 200);
    }
    host
}

/// Asks the quiet deployment all the time, over one connection.
fn quiet(client: &Client, time: Duration) -> Vec<Duration> {
    let mut times = Vec::new();
    let begun = Instant::now();
    while begun.elapsed() < time {
        let asked = Instant::now();
        if let Ok(answer) = try_post(client, "/v2/models/quiet/m/infer") {
            assert_eq!(answer, 200);
        }
        times.push(asked.elapsed());
        std::thread::sleep(Duration::from_millis(2));
    }
    times
}

/// Its connection may have made room for others, as every pooled one may: then it asks again.
fn try_post(client: &Client, path: &str) -> Result<u16, ()> {
    let body = x(&[1.0]).to_string();
    let ask = || client.send("POST", &format!("{}{path}", client.url), body.as_bytes(), &[]);
    ask().or_else(|_| ask()).map(|answer| answer.status).map_err(drop)
}

/// Asks for health over a connection of its own each time.
fn probe(client: &Client, time: Duration) -> Vec<Duration> {
    let mut times = Vec::new();
    let begun = Instant::now();
    while begun.elapsed() < time {
        let asked = Instant::now();
        let mut stream = connect(&client.url);
        stream
            .write_all(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        let came = stream.read_to_string(&mut answer);
        assert!(came.is_ok() && answer.starts_with("HTTP/1.1 200"), "health: {came:?} {answer}");
        times.push(asked.elapsed());
        std::thread::sleep(Duration::from_millis(20));
    }
    times
}

/// How long it takes until no byte of a request is held, and both deployments answer.
fn free_again(client: &Client) -> Option<Duration> {
    let begun = Instant::now();
    while begun.elapsed() < AFTER {
        let metrics = client.get("/metrics").body.to_string();
        let is_free = metrics.contains("modelhost_held_bytes 0.0") && try_post(client, INFER) == Ok(200);
        if is_free && try_post(client, "/v2/models/quiet/m/infer") == Ok(200) {
            return Some(begun.elapsed());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    None
}

/// KiB.
fn resident(host: &Process) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", host.child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn quantile(times: &mut [Duration], share: f64) -> Duration {
    times.sort();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
    let at = ((times.len() as f64 * share) as usize).min(times.len() - 1);
    times[at]
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn connect(url: &str) -> TcpStream {
    let stream = TcpStream::connect(url.trim_start_matches("http://")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

fn wait(stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Opens connections, sends each these bytes, and keeps them; goes on when the host has closed some.
fn hold(url: &str, count: usize, stop: &AtomicBool, first: impl Fn(usize) -> Vec<u8>) {
    let mut held = Vec::new();
    for at in 0..count {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let Ok(mut stream) = TcpStream::connect(url.trim_start_matches("http://")) else { continue };
        stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
        drop(stream.write_all(&first(at))); // the host may have closed it already
        held.push(stream);
    }
    wait(stop);
}

fn silent_connections(client: &Client, stop: &AtomicBool) {
    hold(&client.url, 16_400, stop, |at| match at % 3 {
        0 => Vec::new(),
        1 => b"P".to_vec(),
        _ => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec(),
    });
}

fn silent_admin_connections(client: &Client, stop: &AtomicBool) {
    hold(&client.admin, 300, stop, |_| Vec::new());
}

fn post(path: &str, kind: &str, length: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n{length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

fn unread_answers(client: &Client, stop: &AtomicBool) {
    let body = x(&vec![1.0; 500_000]).to_string();
    let request =
        post(INFER, "application/json", &format!("Content-Length: {}", body.len()), body.as_bytes());
    hold(&client.url, 50, stop, |_| request.clone());
}

fn slow_bodies(client: &Client, stop: &AtomicBool) {
    let request = post(INFER, "application/json", "Content-Length: 1000", b"{");
    hold(&client.url, 2000, stop, |_| request.clone());
}

fn large_bodies(client: &Client, stop: &AtomicBool) {
    let request =
        post(INFER, "application/json", &format!("Content-Length: {}", 60 << 20), &vec![b' '; 40 << 20]);
    hold(&client.url, 60, stop, |_| request.clone());
}

/// Frames that announce a window of 64 MiB and do not end.
fn zstd_streams(client: &Client, stop: &AtomicBool) {
    let start = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x80, 0x04, 0x00, 0x00];
    let headers = "Content-Encoding: zstd\r\nContent-Length: 2000";
    let (records, csv) = (post(INFER, "application/json", headers, &start), "text/csv");
    let file = post("/models/noisy/table/", csv, headers, &start);
    hold(&client.url, 60, stop, |at| if at % 2 == 0 { records.clone() } else { file.clone() });
}

fn form_bomb(client: &Client, stop: &AtomicBool) {
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    bomb.write_all("&a".repeat(31 << 20).as_bytes()).unwrap();
    let bomb = bomb.finish().unwrap();
    let headers = [
        ("content-encoding", "gzip"),
        ("content-type", "application/x-www-form-urlencoded"),
        ("accept", "text/html"),
    ];
    while !stop.load(Ordering::Relaxed) {
        for model in ["noisy/m", "no/model"] {
            drop(client.send("POST", &format!("{}/models/{model}/", client.url), &bomb, &headers));
        }
    }
}

fn slow_csv(client: &Client, stop: &AtomicBool) {
    let request = post("/models/noisy/table/", "text/csv", "Transfer-Encoding: chunked", b"1\r\n\n\r\n");
    hold(&client.url, 500, stop, |_| request.clone());
}

/// Calls ModelInfer with this message over and over, or begins it and never ends.
fn grpc(client: &Client, stop: &AtomicBool, message: &[u8], announced: usize, streams: usize) {
    let address = client.url.trim_start_matches("http://").to_owned();
    let length = u32::try_from(announced).unwrap().to_be_bytes();
    let body = bytes::Bytes::from([&[0][..], &length, message].concat());
    let ends = announced == message.len();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let one = |body: bytes::Bytes| {
            let address = address.clone();
            async move {
                let stream = tokio::net::TcpStream::connect(&address).await.ok()?;
                let (client, connection) = h2::client::handshake(stream).await.ok()?;
                let connection = tokio::spawn(connection);
                let request = ureq::http::Request::builder()
                    .method("POST")
                    .uri(format!("http://{address}/inference.GRPCInferenceService/ModelInfer"))
                    .header("content-type", "application/grpc");
                let mut client = client.ready().await.ok()?;
                let (answer, mut sender) = client.send_request(request.body(()).unwrap(), false).ok()?;
                sender.reserve_capacity(body.len());
                let mut rest = body;
                while !rest.is_empty() {
                    let room = std::future::poll_fn(|context| sender.poll_capacity(context)).await?.ok()?;
                    sender.send_data(rest.split_to(room.min(rest.len())), false).ok()?;
                }
                if ends {
                    sender.send_data(bytes::Bytes::new(), true).ok()?;
                }
                drop(answer.await);
                connection.abort();
                Some(())
            }
        };
        while !stop.load(Ordering::Relaxed) {
            let calls: Vec<_> = (0..streams).map(|_| tokio::spawn(one(body.clone()))).collect();
            for call in calls {
                let left = Duration::from_millis(200);
                while !call.is_finished() && !stop.load(Ordering::Relaxed) {
                    tokio::time::sleep(left).await;
                }
                call.abort();
            }
        }
    });
}

/// The model's name and 40,000 empty inputs.
fn grpc_inputs(client: &Client, stop: &AtomicBool) {
    let message = [&b"\x0a\x07noisy/m"[..], &[0x2a, 0x00].repeat(40_000)].concat();
    grpc(client, stop, &message, message.len(), 1);
}

fn grpc_unfinished(client: &Client, stop: &AtomicBool) {
    let message = [&b"\x0a\x07noisy/m"[..], &vec![0x22; 20 << 20]].concat();
    grpc(client, stop, &message, 60 << 20, 20);
}

/// Guests that wait in the host instead of running.
fn sleeping_guests(client: &Client, stop: &AtomicBool) {
    let limits = "[limits]\nconcurrency = 100\ndeadline_ms = 1000";
    client.register("noisy/sleeper", &Package::fault("sleep", limits), true);
    let placed = client.admin("PUT", "/models/noisy/sleeper/deployment", &json!({"deployment": "noisy"}));
    assert_eq!(placed.unwrap().status, 200);
    std::thread::scope(|scope| {
        for _ in 0..100 {
            scope.spawn(|| {
                let ask = || try_post(client, "/v2/models/noisy/sleeper/infer");
                while !stop.load(Ordering::Relaxed) && ask().is_ok() {}
            });
        }
    });
}
