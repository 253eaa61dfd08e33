//! Ten thousand versions on one host: start, cold versions, memory of loaded ones, a skewed load over all of them,
//! swaps without end, and a flooded neighbour. `cargo xtask bench density` runs it against the release binary, all
//! parts or those named.
//!
//! Versions are kept in `target/density` between runs: registering them takes minutes.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a benchmark"
)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use modelhost_tests::{Package, Process, root};
use serde_json::{Value, json};

/// Versions of one model.
const PER_MODEL: usize = 20;

/// What differs from one version to the next, in log-odds.
const STEP: f64 = 1e-4;

fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    if !arguments.iter().any(|argument| argument == "--bench") {
        return; // built by `cargo test --all-targets`
    }
    let wanted: Vec<_> = arguments.iter().filter(|argument| !argument.starts_with("--")).collect();
    let number = |name: &str, default: usize| {
        std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
    };
    let versions = number("DENSITY_VERSIONS", 10_000);
    let cycles = number("DENSITY_CYCLES", 10_000);
    let cores = std::thread::available_parallelism().unwrap();
    println!("{cores} cores, {} of memory", line_of("/proc/meminfo", "MemTotal").trim());
    let parts: [(&str, &dyn Fn()); 5] = [
        ("start", &|| start(versions)),
        ("loaded", &|| loaded(versions)),
        ("zipf", &|| zipf(versions)),
        ("swaps", &|| swaps(cycles)),
        ("neighbours", &neighbours),
    ];
    for (name, part) in parts {
        if wanted.is_empty() || wanted.iter().any(|wanted| *wanted == name) {
            println!("\n== {name}");
            part();
        }
    }
}

/// The two example runtimes in turn; every version has an artifact, and answers, of its own.
struct Versions {
    manifests: [String; 2],
    artifacts: [String; 2],
    /// Log-odds of the first held-out row, from the libraries.
    odds: [f64; 2],
    row: Value,
}

impl Versions {
    fn new() -> Self {
        let read = |path: &str| fs::read_to_string(root().join("examples/credit-risk").join(path)).unwrap();
        let json = |path: &str| -> Value { serde_json::from_str(&read(path)).unwrap() };
        let expected = json("expected.json");
        let names = ["xgboost", "logistic"];
        // The examples hold for the original model only.
        let manifest = |name: &str| {
            let text = read(&format!("{name}/model.toml"));
            let (before, rest) = text.split_once("[[examples]]").unwrap();
            format!("{before}{}", &rest[rest.find("[[features]]").unwrap()..])
        };
        Self {
            manifests: names.map(manifest),
            artifacts: names.map(|name| read(&format!("{name}/model.json"))),
            odds: names.map(|name| logit(expected[name][0].as_f64().unwrap())),
            row: json!([json("held-out.json")[0]]),
        }
    }

    fn model(&self, at: usize) -> String {
        format!("density/m{}", at / PER_MODEL)
    }

    fn path(&self, at: usize) -> String {
        format!("/models/{}/v{}/", self.model(at), at % PER_MODEL + 1)
    }

    /// All versions of one model have the same runtime.
    fn kind(&self, at: usize) -> usize {
        at / PER_MODEL % 2
    }

    fn package(&self, at: usize) -> Package {
        let kind = self.kind(at);
        let shift = at as f64 * STEP;
        let artifact = &self.artifacts[kind];
        let artifact = if kind == 0 {
            // XGBoost keeps the base score as a probability.
            let score = logistic(logit(0.3003003) + shift);
            let changed = artifact
                .replace("\"base_score\":\"[3.003003E-1]\"", &format!("\"base_score\":\"[{score:e}]\""));
            assert_ne!(changed, *artifact);
            changed
        } else {
            let mut model: Value = serde_json::from_str(artifact).unwrap();
            let intercept = model["intercepts"][0].as_f64().unwrap();
            model["intercepts"][0] = json!(intercept + shift);
            model.to_string()
        };
        Package {
            manifest: self.manifests[kind].clone(),
            files: vec![("model.json".into(), artifact.into_bytes())],
        }
    }

    /// Panics when the answer is another version's.
    fn check(&self, at: usize, answer: &str) {
        let answer: Value = serde_json::from_str(answer).unwrap_or_else(|_| panic!("{answer}"));
        let came = answer["predictions"][0]["probability"].as_f64().unwrap_or_else(|| panic!("{answer}"));
        let expected = logistic(self.odds[self.kind(at)] + at as f64 * STEP);
        assert!((came - expected).abs() < 2e-6, "version {at}: {came} is not {expected}");
    }

    fn artifact_bytes(&self) -> f64 {
        (self.artifacts[0].len() + self.artifacts[1].len()) as f64 / 2.0
    }
}

fn logit(p: f64) -> f64 {
    (p / (1.0 - p)).ln()
}

fn logistic(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// Where the versions are kept.
fn data() -> PathBuf {
    let dir = root().join("target/density");
    fs::create_dir_all(&dir).unwrap();
    dir
}

fn serve(data: &Path, settings: &str) -> Process {
    let file = data.join("settings.toml");
    fs::write(&file, format!("access_log = false\n{settings}")).unwrap();
    Process::start_with(data, &["--log", "error", "--config", file.to_str().unwrap()], Stdio::inherit())
}

/// A host that has these versions, registering those that are missing.
fn host(versions: usize, settings: &str) -> Process {
    let (data, kinds) = (data(), Versions::new());
    let host = serve(&data, settings);
    let models = host.client.admin("GET", "/models?prefix=density", &json!(null)).unwrap().body;
    let have: usize =
        models.as_array().unwrap().iter().map(|row| row["versions"].as_u64().unwrap() as usize).sum();
    let begun = Instant::now();
    for at in have..versions {
        host.client.register(&kinds.model(at), &kinds.package(at), false);
        if (at + 1) % 500 == 0 {
            let each = begun.elapsed().as_secs_f64() * 1e3 / (at + 1 - have) as f64;
            println!("{} of {versions} versions registered, {each:.0} ms each", at + 1);
        }
    }
    if have == versions {
        return host;
    }
    host.signal("-TERM");
    drop(host);
    serve(&data, settings)
}

fn start(versions: usize) {
    drop(host(versions, ""));
    let begun = Instant::now();
    let host = serve(&data(), "");
    while host.client.get("/v2/health/ready").status != 200 {}
    let ready = begun.elapsed();
    std::thread::sleep(Duration::from_secs(2));
    println!(
        "{versions} versions: start to ready {:.2} s; none loaded: {}",
        ready.as_secs_f64(),
        memory(&host)
    );
    let kinds = Versions::new();
    let mut connection = Connection::open(&host);
    let mut random = Random(1);
    let mut asked: Vec<usize> = Vec::new();
    let mut times = Vec::new();
    while asked.len() < 1000.min(versions) {
        let at = random.below(versions);
        if asked.contains(&at) {
            continue;
        }
        asked.push(at);
        let begun = Instant::now();
        let (status, body) = connection.post(&kinds.path(at), &kinds.row.to_string());
        times.push(begun.elapsed());
        assert_eq!(status, 200, "{body}");
        kinds.check(at, &body);
    }
    println!(
        "one request to each of {} random cold versions, all right: {}",
        asked.len(),
        quantiles(&mut times)
    );
}

fn loaded(versions: usize) {
    let count = 2000.min(versions);
    let host = host(versions, "");
    std::thread::sleep(Duration::from_secs(2));
    let none = resident(&host);
    println!("none loaded: {}", memory(&host));
    let kinds = Versions::new();
    let mut connection = Connection::open(&host);
    for at in 0..count {
        let (status, body) = connection.post(&kinds.path(at * (versions / count)), &kinds.row.to_string());
        assert_eq!(status, 200, "{body}");
    }
    println!("{count} loaded, just used: {}", memory(&host));
    std::thread::sleep(Duration::from_secs(10));
    let deployments = host.client.admin("GET", "/deployments", &json!(null)).unwrap().body;
    assert_eq!(deployments[0]["loaded"], count);
    let each = (resident(&host) - none) / count as f64 / 1024.0;
    let own = kinds.artifact_bytes() / 1024.0;
    println!(
        "{count} loaded, idle: {}; {each:.0} KiB each, of which its model file {own:.0} KiB: {:.0} KiB beyond it",
        memory(&host),
        each - own
    );
}

fn zipf(versions: usize) {
    const CONNECTIONS: usize = 32;
    let seconds = Duration::from_secs(15);
    let kinds = Versions::new();
    let host = host(versions, "loaded_versions = 500");
    // The most asked for are spread over both runtimes and all models.
    let order: Vec<usize> = (0..versions).map(|rank| rank * 7919 % versions).collect();
    let weights: Vec<f64> = (1..=versions)
        .scan(0.0, |sum, rank| {
            *sum += (rank as f64).powf(-1.1);
            Some(*sum)
        })
        .collect();
    let total = weights[versions - 1];
    let skewed = |random: &mut Random| {
        order[weights.partition_point(|sum| *sum < random.unit() * total).min(versions - 1)]
    };
    let single = |_: &mut Random| order[0];
    let load = |pick: &(dyn Fn(&mut Random) -> usize + Sync), seconds: Duration| {
        let (done, failed, stop) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            for connection in 0..CONNECTIONS {
                let (host, kinds, done, failed, stop) = (&host, &kinds, &done, &failed, &stop);
                scope.spawn(move || {
                    let mut random = Random(connection as u64 + 99);
                    let mut connection = Connection::open(host);
                    let row = kinds.row.to_string();
                    while !stop.load(Ordering::Relaxed) {
                        let at = pick(&mut random);
                        let (status, body) = connection.post(&kinds.path(at), &row);
                        if status == 200 {
                            if random.below(64) == 0 {
                                kinds.check(at, &body);
                            }
                            done.fetch_add(1, Ordering::Relaxed);
                        } else if failed.fetch_add(1, Ordering::Relaxed) == 0 {
                            println!("the first failure: {status} {body}");
                        }
                    }
                });
            }
            std::thread::sleep(seconds);
            stop.store(true, Ordering::Relaxed);
        });
        (done.into_inner() as f64 / seconds.as_secs_f64(), failed.into_inner())
    };
    // As after a while of this load: every version was asked for once, and what is asked for most is in memory.
    let next = AtomicUsize::new(0);
    let each = |_: &mut Random| next.fetch_add(1, Ordering::Relaxed) % versions;
    while next.load(Ordering::Relaxed) < versions {
        load(&each, Duration::from_secs(5));
    }
    load(&skewed, seconds);
    let mut rates: [Vec<f64>; 2] = [Vec::new(), Vec::new()];
    for round in 1..=3 {
        let before = host.client.admin("GET", "/deployments", &json!(null)).unwrap().body;
        let (one, failed_one) = load(&single, seconds / 2);
        let (many, failed) = load(&skewed, seconds);
        let after = host.client.admin("GET", "/deployments", &json!(null)).unwrap().body;
        let loads = after[0]["loads"].as_u64().unwrap() - before[0]["loads"].as_u64().unwrap();
        let missed = loads as f64 * 100.0 / (many * seconds.as_secs_f64());
        println!(
            "round {round}: one version {one:.0} requests/s, Zipf(1.1) over {versions} with room for 500 {many:.0} requests/s \
             = {:.0} %, {missed:.1} % loaded first, {} failures",
            many * 100.0 / one,
            failed + failed_one
        );
        rates[0].push(one);
        rates[1].push(many);
    }
    let median = |rates: &mut Vec<f64>| {
        rates.sort_by(f64::total_cmp);
        rates[1]
    };
    let [one, many] = rates.each_mut().map(median);
    println!("median: {:.0} % of the rate of one version; {}", many * 100.0 / one, memory(&host));
}

fn swaps(cycles: usize) {
    let dir = tempfile::tempdir_in(root().join("target")).unwrap();
    // Room for a few hundred compiled versions on disk and for 50 in memory.
    let host = serve(dir.path(), "loaded_versions = 50\ncompiled_mib = 200");
    let kinds = Versions::new();
    let mut connection = Connection::open(&host);
    let row = kinds.row.to_string();
    println!("cycle  resident MB  files  mappings  compiled MB  compiled files  all on disk MB");
    let begun = Instant::now();
    for cycle in 0..cycles {
        // Always the linear runtime; the artifact and its answer are the cycle's own.
        let at = PER_MODEL + cycle * 2 * PER_MODEL;
        host.client.register("swaps/m", &kinds.package(at), true);
        let (status, body) = connection.post("/models/swaps/m/", &row);
        assert_eq!(status, 200, "{body}");
        kinds.check(at, &body);
        if cycle % (cycles / 20).max(1) == 0 || cycle + 1 == cycles {
            let compiled = dir.path().join("compiled");
            println!(
                "{cycle:>5}  {:>11.1}  {:>5}  {:>8}  {:>11.1}  {:>14}  {:>14.1}",
                resident(&host) / 1e6,
                fs::read_dir(format!("/proc/{}/fd", host.child.id())).unwrap().count(),
                mappings(&host),
                on_disk(&compiled) / 1e6,
                fs::read_dir(&compiled).unwrap().count(),
                on_disk(dir.path()) / 1e6,
            );
        }
    }
    println!(
        "{cycles} register, promote, ask, evict: {:.0} ms each",
        begun.elapsed().as_secs_f64() * 1e3 / cycles as f64
    );
}

/// One deployment is asked for ten times what it can do, by guests that never stop by themselves; callers of another
/// must not notice.
fn neighbours() {
    const INSTANCES: u32 = 4;
    const RUN: Duration = Duration::from_millis(20);
    const SENDERS: u32 = 120;
    let dir = tempfile::tempdir_in(root().join("target")).unwrap();
    let settings = format!(
        "[deployments.noisy]\ninstances = {INSTANCES}\nqueue = 8\nthreads = 1\n[deployments.quiet]\ninstances = 8\nqueue = 64\n"
    );
    let host = serve(dir.path(), &settings);
    let kinds = Versions::new();
    let spin = Package::fault("spin", &format!("[limits]\ndeadline_ms = {}", RUN.as_millis()));
    host.client.register("m/noisy", &spin, true);
    host.client.register("m/quiet", &kinds.package(0), true);
    for deployment in ["noisy", "quiet"] {
        let (path, body) = (format!("/models/m/{deployment}/deployment"), json!({"deployment": deployment}));
        assert_eq!(host.client.admin("PUT", &path, &body).unwrap().status, 200);
    }
    let row = kinds.row.to_string();
    let endless = modelhost_tests::x(&[1.0]).to_string();
    let rate = 10.0 * f64::from(INSTANCES) / RUN.as_secs_f64();
    println!(
        "the noisy deployment can do {:.0} requests/s of {RUN:?} each and is sent {rate:.0}",
        rate / 10.0
    );
    let quiet = |seconds: u64| {
        let mut times = Vec::new();
        let mut connection = Connection::open(&host);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(seconds) {
            let asked = Instant::now();
            let (status, body) = connection.post("/models/m/quiet/", &row);
            times.push(asked.elapsed());
            assert_eq!(status, 200, "{body}");
            std::thread::sleep(Duration::from_millis(2));
        }
        times
    };
    for round in 1..=5 {
        let mut alone = quiet(8);
        let stop = AtomicBool::new(false);
        let outcomes = std::sync::Mutex::new(BTreeMap::<u16, u64>::new());
        let mut beside = std::thread::scope(|scope| {
            let pause = Duration::from_secs_f64(f64::from(SENDERS) / rate);
            for sender in 0..SENDERS {
                let (host, endless, stop, outcomes) = (&host, &endless, &stop, &outcomes);
                scope.spawn(move || {
                    let mut connection = Connection::open(host);
                    // Spread evenly, not all at once.
                    let mut next = Instant::now() + pause * sender / SENDERS;
                    while !stop.load(Ordering::Relaxed) {
                        next += pause;
                        std::thread::sleep(next.saturating_duration_since(Instant::now()));
                        let (status, _) = connection.post("/v2/models/m/noisy/infer", endless);
                        *outcomes.lock().unwrap().entry(status).or_default() += 1;
                    }
                });
            }
            std::thread::sleep(Duration::from_secs(1));
            let times = quiet(8);
            stop.store(true, Ordering::Relaxed);
            times
        });
        let outcomes = outcomes.into_inner().unwrap();
        let sent: u64 = outcomes.values().sum();
        println!(
            "round {round}: alone {}; beside {:.0} requests/s to the other ({outcomes:?} by status) {}: p99 x{:.2}",
            quantiles(&mut alone),
            sent as f64 / 9.0,
            quantiles(&mut beside),
            at(&beside, 0.99).as_secs_f64() / at(&alone, 0.99).as_secs_f64()
        );
    }
}

/// One HTTP/1.1 connection that is kept.
struct Connection {
    reader: BufReader<TcpStream>,
    host: String,
}

impl Connection {
    fn open(host: &Process) -> Self {
        let address = host.client.url.trim_start_matches("http://").to_owned();
        let stream = TcpStream::connect(&address).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { reader: BufReader::new(stream), host: address }
    }

    fn post(&mut self, path: &str, body: &str) -> (u16, String) {
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            self.host,
            body.len()
        );
        self.reader.get_mut().write_all(request.as_bytes()).unwrap();
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        let status =
            line.split(' ').nth(1).and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{line:?}"));
        let mut length = 0;
        loop {
            line.clear();
            self.reader.read_line(&mut line).unwrap();
            let header = line.trim_end().to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        self.reader.read_exact(&mut body).unwrap();
        (status, String::from_utf8(body).unwrap())
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): the same picks in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

fn at(sorted: &[Duration], part: f64) -> Duration {
    sorted[((sorted.len() as f64 * part) as usize).min(sorted.len() - 1)]
}

fn quantiles(times: &mut [Duration]) -> String {
    times.sort();
    let ms = |part: f64| at(times, part).as_secs_f64() * 1e3;
    format!("p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms of {}", ms(0.5), ms(0.99), ms(1.0), times.len())
}

fn line_of(path: &str, name: &str) -> String {
    let text = fs::read_to_string(path).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_default().to_owned()
}

/// In bytes.
fn status(host: &Process, name: &str) -> f64 {
    let line = line_of(&format!("/proc/{}/status", host.child.id()), name);
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() * 1024.0
}

fn resident(host: &Process) -> f64 {
    status(host, "VmRSS")
}

fn mappings(host: &Process) -> usize {
    fs::read_to_string(format!("/proc/{}/maps", host.child.id())).unwrap().lines().count()
}

fn memory(host: &Process) -> String {
    let [anonymous, file] = ["RssAnon", "RssFile"].map(|name| status(host, name) / 1e6);
    let resident = resident(host) / 1e6;
    format!(
        "{resident:.0} MB resident ({anonymous:.0} anonymous, {file:.0} of files), {} mappings",
        mappings(host)
    )
}

fn on_disk(path: &Path) -> f64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(meta) = fs::symlink_metadata(path) else { return 0.0 };
    let below = fs::read_dir(path).into_iter().flatten().flatten();
    meta.blocks() as f64 * 512.0 + below.map(|entry| on_disk(&entry.path())).sum::<f64>()
}
