//! The demo: a tour of Modelhost with the commands that a person would type.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::build;
use crate::sh::{output, root};

const MODEL: &str = "demo/credit";
/// The largest allowed difference from the library's own answer.
const TOLERANCE: f64 = 1e-6;
/// Seconds of load in each phase.
const PHASE: &str = "3";

/// The demo's own host, on free ports and in a fresh folder. Dropping it stops the host.
struct Host {
    binary: PathBuf,
    process: Child,
    url: String,
    admin: String,
    _data: tempfile::TempDir,
}

pub(crate) fn run(once: bool) -> Result<()> {
    println!("== building the host and its runtimes (takes minutes the first time)");
    let binary = build::release()?;
    let mut host = Host::start(&binary)?;
    let packages = root().join("examples/credit-risk");
    println!("\n== registering two real models of the Statlog German credit data");
    for (package, flag) in [("logistic", Some("--promote")), ("xgboost", None)] {
        let mut register = host.command();
        register.args(["register", MODEL]).arg(packages.join(package)).args(flag);
        println!("   modelhost register {MODEL} examples/credit-risk/{package} {}", flag.unwrap_or(""));
        println!("   version {}", output(&mut register)?.trim());
    }
    compare(&host, &packages)?;
    let phases = load_phases(&host, &packages.join("held-out.json"))?;
    print_phases(&phases);
    println!("\n== what happened");
    println!("{}", output(host.command().args(["history", MODEL]))?);
    println!("{}", output(host.command().args(["show", MODEL]))?);
    print_lines_to_try(&host, &packages)?;
    if once {
        return Ok(());
    }
    println!("\nstill serving; Ctrl-C quits");
    host.process.wait()?;
    Ok(())
}

impl Host {
    fn start(binary: &Path) -> Result<Self> {
        let data = tempfile::tempdir()?;
        let mut process = Command::new(binary)
            .args([
                "serve",
                "--listen",
                "127.0.0.1:0",
                "--admin-listen",
                "127.0.0.1:0",
                "--log",
                "warn",
                "--data-dir",
            ])
            .arg(data.path())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the host")?;
        let mut lines =
            BufReader::new(process.stdout.take().context("the host's output is not piped")?).lines();
        let mut address = || -> Result<String> {
            let line = lines.next().context("the host ended before it served")??;
            line.split_whitespace().nth(2).map(str::to_owned).context("the host printed no address")
        };
        let (url, admin) = (address()?, address()?);
        println!("\n== serving on {url}, admin on {admin}");
        Ok(Self { binary: binary.to_owned(), process, url, admin, _data: data })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command.env("MODELHOST_ADMIN", &self.admin).env("MODELHOST_URL", &self.url);
        command
    }

    fn json(&self, args: &[&str]) -> Result<Value> {
        Ok(serde_json::from_str(&output(self.command().args(["--output", "json"]).args(args))?)?)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// Predicts every held-out row with both versions and compares with the library's own probabilities.
fn compare(host: &Host, packages: &Path) -> Result<()> {
    let expected: Value = serde_json::from_str(&fs::read_to_string(packages.join("expected.json"))?)?;
    let rows = packages.join("held-out.json");
    let rows = rows.to_str().context("the path is not UTF-8")?;
    println!("\n== held-out rows: P(bad credit) from modelhost and from the library");
    println!("   {:<10} {:>4}  {:>12} {:>12}", "model", "row", "modelhost", "library");
    for (version, name) in [("1", "logistic"), ("2", "xgboost")] {
        let answer = host.json(&["predict", MODEL, rows, "--version", version])?;
        let predictions =
            answer.get("predictions").and_then(Value::as_array).context("the answer has no predictions")?;
        let expected = expected
            .get(name)
            .and_then(Value::as_array)
            .with_context(|| format!("expected.json has no {name}"))?;
        ensure!(
            predictions.len() == expected.len(),
            "{} predictions for {} rows",
            predictions.len(),
            expected.len()
        );
        let mut largest = 0.0_f64;
        for (row, (prediction, expected)) in predictions.iter().zip(expected).enumerate() {
            let came = prediction
                .get("probability")
                .and_then(Value::as_f64)
                .context("a prediction has no probability")?;
            let expected = expected.as_f64().context("expected.json: not a number")?;
            largest = largest.max((came - expected).abs());
            if row < 3 {
                println!("   {name:<10} {row:>4}  {came:>12.7} {expected:>12.7}");
            }
        }
        println!("   {name:<10} all {} rows: largest difference {largest:.1e}", expected.len());
        if largest > TOLERANCE {
            bail!("{name} differs from its library by {largest}");
        }
    }
    Ok(())
}

struct Phase {
    name: &'static str,
    report: Value,
}

/// Sends the same load in every phase. In one phase, the traffic swaps between versions while the load runs.
fn load_phases(host: &Host, rows: &Path) -> Result<Vec<Phase>> {
    println!("\n== load: 16 connections, one row per request");
    let load = |seconds: &str| {
        let mut bench = host.command();
        bench.args(["bench", MODEL]).arg(rows).args(["-c", "16", "-d", seconds, "--output", "json"]);
        bench
    };
    let phase = |name, bench: &mut Command| -> Result<Phase> {
        println!("   {name}…");
        Ok(Phase { name, report: serde_json::from_str(&output(bench)?)? })
    };
    let quiet = |args: &[&str]| host.json(args).map(drop);
    let mut phases = vec![phase("all to v1", &mut load(PHASE))?];
    quiet(&["split", MODEL, "1=90", "2=10"])?;
    phases.push(phase("split 90/10", &mut load(PHASE))?);
    quiet(&["promote", MODEL, "1"])?;
    quiet(&["challenge", MODEL, "2"])?;
    phases.push(phase("v2 as challenger", &mut load(PHASE))?);
    quiet(&["challenge", MODEL, "--none"])?;
    println!("   20 swaps under load…");
    let running = load("6").stdout(Stdio::piped()).spawn().context("starting the load")?;
    for swap in 0..20 {
        thread::sleep(Duration::from_millis(200));
        if swap % 2 == 0 { quiet(&["promote", MODEL, "2"])? } else { quiet(&["rollback", MODEL])? }
    }
    let done = running.wait_with_output()?;
    phases.push(Phase { name: "20 swaps under load", report: serde_json::from_slice(&done.stdout)? });
    phases.push(phase("after", &mut load(PHASE))?);
    Ok(phases)
}

fn print_phases(phases: &[Phase]) {
    println!(
        "\n   {:<20} {:>9} {:>9} {:>9} {:>9}  answered by",
        "phase", "requests", "failures", "p50 ms", "p99 ms"
    );
    for Phase { name, report } in phases {
        let number = |key: &str| report.get(key).and_then(Value::as_f64).unwrap_or(f64::NAN);
        let total = number("requests");
        let versions = report.get("versions").and_then(Value::as_object).into_iter().flatten();
        let shares: Vec<_> = versions
            .map(|(version, count)| {
                format!("{version} {:.1}%", count.as_f64().unwrap_or(0.0) * 100.0 / total)
            })
            .collect();
        println!(
            "   {name:<20} {:>9} {:>9} {:>9.2} {:>9.2}  {}",
            total,
            number("failures"),
            number("p50_ms"),
            number("p99_ms"),
            shares.join(", ")
        );
    }
}

fn print_lines_to_try(host: &Host, packages: &Path) -> Result<()> {
    let rows: Value = serde_json::from_str(&fs::read_to_string(packages.join("held-out.json"))?)?;
    let first = rows.get(0).context("held-out.json has no row")?;
    println!("== commands to try");
    println!("curl {}/v2/models/{MODEL}", host.url);
    println!("curl {}/models/{MODEL}/ -d '[{first}]'", host.url);
    println!("curl {}/metrics", host.url);
    println!("MODELHOST_ADMIN={} {} promote {MODEL} 2", host.admin, host.binary.display());
    Ok(())
}
