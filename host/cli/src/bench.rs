//! `modelhost bench`: sends a load of JSON records over keep-alive connections and reports the results.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::admin::records_path;
use crate::args::{BenchArgs, Output};
use crate::client::Failure;
use crate::output::{print, table};

/// The results of a load.
#[derive(Serialize, Default)]
struct Report {
    requests: u64,
    failures: u64,
    seconds: f64,
    requests_per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
    /// Answers per version.
    versions: BTreeMap<String, u64>,
    /// Failures per error text.
    errors: BTreeMap<String, u64>,
}

/// The results of one connection.
#[derive(Default)]
struct Seen {
    latencies: Vec<u32>,
    versions: BTreeMap<String, u64>,
    errors: BTreeMap<String, u64>,
}

/// The load, shared by all connections.
struct Load {
    host: String,
    path: String,
    bodies: Vec<Bytes>,
    caller_header: Option<String>,
    until: Instant,
    /// Requests started so far. `most` is their limit.
    next: AtomicU64,
    most: u64,
}

pub(crate) fn run(args: &BenchArgs, output: Output) -> Result<()> {
    let load = Arc::new(Load::new(args)?);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let report = runtime.block_on(drive(Arc::clone(&load), args))?;
    print(output, &report, show)?;
    if report.requests == 0 {
        let first = report.errors.keys().next().cloned().unwrap_or_default();
        return Err(Failure::Unreachable(format!("no request was answered: {first}")).into());
    }
    Ok(())
}

impl Load {
    fn new(args: &BenchArgs) -> Result<Self> {
        let rows_path = args.request.rows.display();
        let wrong = |error: &dyn std::fmt::Display| Failure::Caller(format!("{rows_path}: {error}"));
        let text = fs::read(&args.request.rows).map_err(|error| wrong(&error))?;
        let rows: Vec<Value> = serde_json::from_slice(&text).map_err(|error| wrong(&error))?;
        if rows.is_empty() {
            return Err(wrong(&"no rows").into());
        }
        let bodies =
            rows.chunks(args.rows_per_request.max(1)).map(|rows| serde_json::to_vec(rows).map(Bytes::from));
        let url = args.request.url.trim_end_matches('/');
        Ok(Self {
            host: url.strip_prefix("http://").unwrap_or(url).to_owned(),
            path: records_path(&args.request)?,
            bodies: bodies.collect::<Result<_, _>>()?,
            caller_header: args.caller_header.clone(),
            until: Instant::now() + Duration::from_secs_f64(args.duration.clamp(0.01, 86_400.0)),
            next: AtomicU64::new(0),
            most: args.requests.unwrap_or(u64::MAX),
        })
    }

    fn request(&self, number: u64) -> Result<Request<Full<Bytes>>> {
        let at = usize::try_from(number).unwrap_or(0) % self.bodies.len();
        let body = self.bodies.get(at).cloned().unwrap_or_default();
        let mut request =
            Request::post(&self.path).header("host", &self.host).header("content-type", "application/json");
        if let Some(header) = &self.caller_header {
            request = request.header(header, format!("caller-{}", number.wrapping_mul(0x9e37_79b9) % 10_000));
        }
        Ok(request.body(Full::new(body))?)
    }

    /// The next request's number, or `None` when the load is over.
    fn take(&self) -> Option<u64> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        (number < self.most && (self.most != u64::MAX || Instant::now() < self.until)).then_some(number)
    }
}

async fn drive(load: Arc<Load>, args: &BenchArgs) -> Result<Report> {
    let start = Instant::now();
    let tasks: Vec<_> =
        (0..args.concurrency.max(1)).map(|_| tokio::spawn(connection(Arc::clone(&load)))).collect();
    let progress = tokio::spawn(progress(Arc::clone(&load), start, args.requests));
    let mut seen = Seen::default();
    for task in tasks {
        let one = task.await.context("a connection's task failed")?;
        seen.latencies.extend(one.latencies);
        for (version, count) in one.versions {
            *seen.versions.entry(version).or_default() += count;
        }
        for (error, count) in one.errors {
            *seen.errors.entry(error).or_default() += count;
        }
    }
    progress.abort();
    Ok(report(seen, start.elapsed().as_secs_f64()))
}

/// Sends requests until the load is over. Opens a new connection when one breaks.
async fn connection(load: Arc<Load>) -> Seen {
    let mut seen = Seen::default();
    let mut sender = None;
    while let Some(number) = load.take() {
        let start = Instant::now();
        let outcome = match ask(&load, &mut sender, number).await {
            Ok((200, version, _)) => Ok(version),
            Ok((status, _, body)) => Err(format!("HTTP {status}: {}", String::from_utf8_lossy(&body))),
            Err(error) => {
                sender = None;
                Err(format!("{error:#}"))
            }
        };
        let took = u32::try_from(start.elapsed().as_micros()).unwrap_or(u32::MAX);
        match outcome {
            Ok(version) => {
                seen.latencies.push(took);
                *seen.versions.entry(version).or_default() += 1;
            }
            Err(error) => {
                *seen.errors.entry(error).or_default() += 1;
                if sender.is_none() {
                    tokio::time::sleep(Duration::from_millis(10)).await; // do not hammer a host that is down
                }
            }
        }
    }
    seen
}

type Sender = http1::SendRequest<Full<Bytes>>;

async fn ask(load: &Load, sender: &mut Option<Sender>, number: u64) -> Result<(u16, String, Bytes)> {
    let sender = match sender {
        Some(open) if !open.is_closed() => open,
        slot => slot.insert(connect(&load.host).await?),
    };
    sender.ready().await?;
    let response = sender.send_request(load.request(number)?).await?;
    let status = response.status().as_u16();
    let version = response.headers().get("modelhost-version").and_then(|value| value.to_str().ok());
    let version = format!("v{}", version.unwrap_or("?"));
    Ok((status, version, response.into_body().collect().await?.to_bytes()))
}

async fn connect(host: &str) -> Result<Sender> {
    let stream = TcpStream::connect(host).await.with_context(|| format!("connecting to {host}"))?;
    stream.set_nodelay(true)?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

/// Shows a progress bar on standard error if that is a terminal.
async fn progress(load: Arc<Load>, start: Instant, requests: Option<u64>) {
    let millis = load.until.saturating_duration_since(start).as_millis();
    let bar = ProgressBar::new(requests.unwrap_or(u64::try_from(millis).unwrap_or(0)));
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {msg}") {
        bar.set_style(style);
    }
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let sent = load.next.load(Ordering::Relaxed);
        let elapsed = start.elapsed();
        bar.set_position(if requests.is_some() {
            sent
        } else {
            u64::try_from(elapsed.as_millis()).unwrap_or(0)
        });
        #[expect(clippy::cast_precision_loss, reason = "a rate to display")]
        let rate = sent as f64 / elapsed.as_secs_f64();
        bar.set_message(format!("{sent} requests, {rate:.0}/s"));
    }
}

#[expect(clippy::cast_precision_loss, reason = "figures to display")]
fn report(mut seen: Seen, seconds: f64) -> Report {
    seen.latencies.sort_unstable();
    let count = seen.latencies.len();
    let quantile = |q: f64| {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 <= q <= 1")]
        let at = ((count as f64 * q) as usize).min(count.saturating_sub(1));
        seen.latencies.get(at).map_or(0.0, |micros| f64::from(*micros) / 1000.0)
    };
    let failures = seen.errors.values().sum();
    Report {
        requests: count as u64 + failures,
        failures,
        seconds,
        requests_per_second: count as f64 / seconds,
        p50_ms: quantile(0.5),
        p99_ms: quantile(0.99),
        max_ms: quantile(1.0),
        versions: seen.versions,
        errors: seen.errors,
    }
}

fn show(report: &Report) -> String {
    #[expect(clippy::cast_precision_loss, reason = "a percentage to display")]
    let share = |count: u64| format!("{:.1}%", count as f64 * 100.0 / report.requests as f64);
    let versions: Vec<_> =
        report.versions.iter().map(|(version, count)| format!("{version} {}", share(*count))).collect();
    let row = [
        report.requests.to_string(),
        report.failures.to_string(),
        format!("{:.0}", report.requests_per_second),
        format!("{:.2}", report.p50_ms),
        format!("{:.2}", report.p99_ms),
        format!("{:.2}", report.max_ms),
        versions.join(", "),
    ];
    let mut text =
        table(["REQUESTS", "FAILURES", "PER SECOND", "P50 MS", "P99 MS", "MAX MS", "ANSWERED BY"], [row]);
    for (error, count) in &report.errors {
        text.push_str(&format!("\n{count} x {error}"));
    }
    text
}
