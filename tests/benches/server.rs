//! The server beside a bare hyper echo of the same body, under the same `wrk` load, in the same run: what share of the
//! machine's request rate is left once JSON, routing, a component and isolation are paid for.

#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::expect_used, reason = "a benchmark")]

use std::convert::Infallible;
use std::fs;
use std::process::Command;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use modelhost_tests::{Host, Package};
use tokio::net::TcpListener;

/// Rounds; each measures every server once, so that the machine's moods hit all of them.
const ROUNDS: usize = 5;
const CONNECTIONS: &str = "64";
const SECONDS: &str = "4s";

const BODY: &str = r#"{"inputs":[{"name":"x","shape":[4],"datatype":"FP32","data":[1.0,2.0,3.0,4.0]}]}"#;

fn main() {
    if !std::env::args().any(|arg| arg == "--bench") {
        return; // built by `cargo test --all-targets`
    }
    if Command::new("wrk").arg("-v").output().is_err() {
        println!("this benchmark needs wrk: install it (apt-get install wrk) and run it again");
        std::process::exit(1);
    }
    let host = Host::start_with(|config| config.instances = 1000);
    let mut packages = Vec::new();
    for isolation in ["request", "instance"] {
        let model = format!("bench/{isolation}");
        host.client.register(&model, &Package::fault("echo", &format!("isolation = '{isolation}'")), true);
        packages.push(format!("{}/v2/models/{model}/infer", host.client.url));
    }
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("post.lua");
    let text = format!(
        "wrk.method = 'POST'\nwrk.body = '{BODY}'\nwrk.headers['Content-Type'] = 'application/json'\n"
    );
    fs::write(&script, text).unwrap();
    let urls = [
        ("bare hyper echo", echo()),
        ("fresh instance", packages.remove(0)),
        ("warm instance", packages.remove(0)),
    ];
    let mut rates = vec![Vec::new(); urls.len()];
    for round in 0..ROUNDS {
        for ((name, url), rates) in urls.iter().zip(&mut rates) {
            let rate = wrk(&script, url);
            println!("round {}: {name}: {rate:.0} requests/s", round + 1);
            rates.push(rate);
        }
    }
    let medians: Vec<f64> = rates.iter_mut().map(|rates| median(rates)).collect();
    println!("\nmedian of {ROUNDS} rounds of {SECONDS}, {CONNECTIONS} connections, one row of JSON:");
    for ((name, _), median) in urls.iter().zip(&medians) {
        println!(
            "{name:<16} {median:>8.0} requests/s  {:>5.1} % of bare hyper",
            median * 100.0 / medians.first().unwrap()
        );
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn wrk(script: &std::path::Path, url: &str) -> f64 {
    let output = Command::new("wrk")
        .args(["-t", "1", "-c", CONNECTIONS, "-d", SECONDS, "-s"])
        .arg(script)
        .arg(url)
        .output();
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    assert!(!text.contains("Non-2xx"), "{text}");
    let line = text.lines().find_map(|line| line.strip_prefix("Requests/sec:")).expect("wrk's figure");
    line.trim().parse().unwrap()
}

/// Answers with the request's body, in a runtime like the host's.
fn echo() -> String {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        runtime.block_on(async {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                let service = service_fn(async |request: Request<Incoming>| {
                    let body: Bytes = request.into_body().collect().await.unwrap().to_bytes();
                    Ok::<_, Infallible>(Response::new(Full::new(body)))
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
    });
    format!("http://{address}/")
}
