//! `modelhost top`: shows the current activity of deployments and versions, refreshed regularly.

use std::collections::HashMap;
use std::io::{IsTerminal, Write, stdout};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;
use modelhost_admin::wire;
use serde::Serialize;

use crate::args::Output;
use crate::client::{Client, Failure};
use crate::deployment;
use crate::output::{bytes, micros, print, table};

/// Moves the cursor home and clears the screen.
const CLEAR: &str = "\x1b[H\x1b[J";

/// All counters at one moment.
struct Look {
    at: Instant,
    deployments: Vec<wire::DeploymentRow>,
    versions: Vec<wire::UsageRow>,
}

/// What one version did between two samples.
#[derive(Debug, Serialize, PartialEq)]
struct Activity {
    model: String,
    version: u32,
    deployment: String,
    /// Answers per second.
    requests_per_second: f64,
    /// Failures per second.
    failures_per_second: f64,
    /// The median latency. `None` without answers.
    p50_us: Option<u64>,
    p99_us: Option<u64>,
    running: u32,
    waiting: u32,
    idle_instances: u32,
    /// CPU seconds used per second.
    cpus: f64,
    loaded_bytes: Option<u64>,
}

#[derive(Serialize)]
struct Screen {
    deployments: Vec<wire::DeploymentRow>,
    versions: Vec<Activity>,
}

/// Prints every `interval` seconds until the host or the terminal goes away. Prints only once if `once` is set or the
/// output is not a terminal.
pub(crate) fn run(client: &Client, interval: f64, rows: usize, once: bool, output: Output) -> Result<()> {
    if !(interval.is_finite() && interval > 0.0) {
        return Err(
            Failure::Caller(format!("--interval {interval}: expected a number of seconds above 0")).into()
        );
    }
    let mut before = look(client)?;
    loop {
        sleep(Duration::from_secs_f64(interval));
        let now = look(client)?;
        let screen = Screen { versions: activity(&before, &now, rows), deployments: now.deployments.clone() };
        if once || !stdout().is_terminal() {
            return print(output, &screen, text);
        }
        writeln!(stdout(), "{CLEAR}{}", text(&screen))?;
        stdout().flush()?;
        before = now;
    }
}

fn look(client: &Client) -> Result<Look> {
    let deployments = client.get("/v1/deployments")?;
    let versions = client.get("/v1/usage")?;
    Ok(Look { at: Instant::now(), deployments, versions })
}

/// The `rows` busiest versions, busiest first.
fn activity(before: &Look, now: &Look, rows: usize) -> Vec<Activity> {
    let seconds = (now.at - before.at).as_secs_f64();
    let old: HashMap<_, _> = before.versions.iter().map(|row| ((&row.model, row.version), row)).collect();
    let mut all: Vec<_> = now
        .versions
        .iter()
        .map(|row| {
            let old = old.get(&(&row.model, row.version));
            let since = |read: fn(&wire::UsageRow) -> u64| {
                (read(row) - old.map_or(0, |old| read(old))) as f64 / seconds
            };
            let latency = difference(&row.latency, old.map_or(&[], |old| &old.latency));
            Activity {
                model: row.model.clone(),
                version: row.version,
                deployment: row.deployment.clone(),
                requests_per_second: since(|row| row.answered),
                failures_per_second: since(|row| row.failed),
                p50_us: quantile(&latency, 0.5),
                p99_us: quantile(&latency, 0.99),
                running: row.running,
                waiting: row.waiting,
                idle_instances: row.idle_instances,
                cpus: (row.cpu_seconds - old.map_or(0.0, |old| old.cpu_seconds)) / seconds,
                loaded_bytes: row.loaded_bytes,
            }
        })
        .collect();
    let busy = |row: &Activity| row.requests_per_second + row.failures_per_second;
    all.sort_by(|a, b| busy(b).total_cmp(&busy(a)));
    all.truncate(rows);
    all
}

fn difference(now: &[(u64, u64)], before: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let before: HashMap<_, _> = before.iter().copied().collect();
    now.iter().map(|(bound, count)| (*bound, count - before.get(bound).unwrap_or(&0))).collect()
}

/// The upper bound of the histogram bucket that holds the quantile `part`.
fn quantile(latency: &[(u64, u64)], part: f64) -> Option<u64> {
    let total: u64 = latency.iter().map(|(_, count)| count).sum();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 <= part <= 1")]
    let mut left = (total as f64 * part).ceil() as u64;
    let mut found = None;
    for (bound, count) in latency.iter().filter(|(_, count)| *count > 0) {
        found = Some(*bound);
        if *count >= left {
            break;
        }
        left -= count;
    }
    found
}

fn text(screen: &Screen) -> String {
    let time = |bound: Option<u64>| bound.map_or_else(|| "-".to_owned(), |bound| micros(bound as f64));
    let row = |row: &Activity| {
        [
            format!("{} v{}", row.model, row.version),
            row.deployment.clone(),
            format!("{:.0}", row.requests_per_second),
            format!("{:.0}", row.failures_per_second),
            time(row.p50_us),
            time(row.p99_us),
            row.running.to_string(),
            row.waiting.to_string(),
            row.idle_instances.to_string(),
            format!("{:.2}", row.cpus),
            row.loaded_bytes.map_or_else(|| "-".to_owned(), bytes),
        ]
    };
    let header = [
        "VERSION",
        "DEPLOYMENT",
        "REQ/S",
        "FAIL/S",
        "P50",
        "P99",
        "RUNNING",
        "WAITING",
        "IDLE",
        "CPUS",
        "LOADED",
    ];
    format!("{}\n\n{}", deployment::list(&screen.deployments), table(header, screen.versions.iter().map(row)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_what_came_since() {
        let latency = difference(&[(100, 60), (200, 55), (400, 1)], &[(100, 10), (200, 6)]);
        assert_eq!(latency, [(100, 50), (200, 49), (400, 1)]);
        assert_eq!((quantile(&latency, 0.5), quantile(&latency, 0.99)), (Some(100), Some(200)));
        assert_eq!(quantile(&latency, 1.0), Some(400));
        assert_eq!(quantile(&[], 0.5), None);
    }
}
