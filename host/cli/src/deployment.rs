//! `modelhost deployment` and `modelhost usage`.

use anyhow::Result;
use modelhost_admin::wire;
use serde_json::{Value, json};

use crate::args::{BoundsArgs, DeploymentCommand, Output};
use crate::client::Client;
use crate::output::{bytes, micros, print, table};

pub(crate) fn run(client: &Client, command: DeploymentCommand, output: Output) -> Result<()> {
    match command {
        DeploymentCommand::Create { name, bounds } => {
            show(output, &client.put(&format!("/v1/deployments/{name}"), &change(bounds))?)
        }
        DeploymentCommand::List => {
            let rows: Vec<wire::DeploymentRow> = client.get("/v1/deployments")?;
            print(output, &rows, |rows| list(rows))
        }
        DeploymentCommand::Show { name } => show(output, &client.get(&format!("/v1/deployments/{name}"))?),
        DeploymentCommand::Update { name, bounds } => {
            show(output, &client.patch(&format!("/v1/deployments/{name}"), &change(bounds))?)
        }
        DeploymentCommand::Recreate { name, yes } => {
            let request = wire::Recreate { dry_run: !yes };
            let recreation = client.post(&format!("/v1/deployments/{name}/recreate"), &request)?;
            print(output, &recreation, recreated)
        }
        DeploymentCommand::Delete { name } => {
            let _: Value = client.delete(&format!("/v1/deployments/{name}"))?;
            print(output, &json!({"deleted": name}), |_| format!("deleted {name}"))
        }
    }
}

fn change(args: BoundsArgs) -> wire::BoundsChange {
    let BoundsArgs { instances, queue, memory_mib, loaded_mib, threads, isolation, capabilities } = args;
    let capabilities = capabilities.map(|all| all.into_iter().filter(|one| !one.is_empty()).collect());
    wire::BoundsChange { instances, queue, memory_mib, loaded_mib, threads, isolation, capabilities }
}

fn show(output: Output, row: &wire::DeploymentRow) -> Result<()> {
    print(output, row, |row| {
        let per = |seconds: f64, count: u64| micros(seconds * 1e6 / count.max(1) as f64);
        let capabilities =
            if row.capabilities.is_empty() { "none".into() } else { row.capabilities.join(", ") };
        let lines = [
            ("predictions at once", format!("{} of {}", row.running, row.instances)),
            ("waiting", format!("{} of {}", row.waiting, row.queue)),
            ("busy", format!("{:.0} % in the last 15 s", row.utilisation * 100.0)),
            ("instances' memory", format!("{} of {}", bytes(row.memory_bytes), bytes(row.memory_mib << 20))),
            ("versions", format!("{}, {} in memory", row.versions, row.loaded)),
            ("their memory", format!("{} of {}", bytes(row.loaded_bytes), bytes(row.loaded_mib << 20))),
            ("idle warm instances", row.idle_instances.to_string()),
            ("threads", row.threads.to_string()),
            ("isolation", row.isolation.clone()),
            ("capabilities allowed", capabilities),
            (
                "admitted",
                format!("{}, after {} on average", row.admitted, per(row.queue_seconds, row.admitted)),
            ),
            (
                "refused",
                format!(
                    "{} queue full, {} would miss their deadline, {} shed",
                    row.refused, row.hopeless, row.shed
                ),
            ),
            (
                "loads",
                format!(
                    "{}, {} each, {} failed",
                    row.loads,
                    per(row.load_seconds, row.loads),
                    row.load_failures
                ),
            ),
            ("evictions", row.evictions.to_string()),
        ];
        table(["DEPLOYMENT", row.name.as_str()], lines.map(|(name, value)| [name.to_owned(), value]))
    })
}

/// One line per deployment.
pub(crate) fn list(rows: &[wire::DeploymentRow]) -> String {
    let row = |row: &wire::DeploymentRow| {
        [
            row.name.clone(),
            format!("{}/{}", row.running, row.instances),
            format!("{}/{}", row.waiting, row.queue),
            format!("{:.0} %", row.utilisation * 100.0),
            format!("{}/{}", row.loaded, row.versions),
            format!("{} of {}", bytes(row.loaded_bytes), bytes(row.loaded_mib << 20)),
            bytes(row.memory_bytes),
            (row.refused + row.hopeless + row.shed).to_string(),
            row.evictions.to_string(),
        ]
    };
    let header = [
        "DEPLOYMENT",
        "RUNNING",
        "WAITING",
        "BUSY",
        "LOADED",
        "LOADED BYTES",
        "INSTANCES",
        "REFUSED",
        "EVICTIONS",
    ];
    table(header, rows.iter().map(row))
}

fn recreated(recreation: &wire::Recreation) -> String {
    let (will, name) = (if recreation.done { "" } else { "would be " }, &recreation.name);
    let mut text = format!(
        "{name}: {} waiting predictions {will}refused, {} running ones finish, {} versions {will}unloaded. Their \
         next callers wait until they are loaded again.\n",
        recreation.refused,
        recreation.finishing,
        recreation.unloaded.len()
    );
    let row = |version: &wire::UnloadedVersion| {
        [
            version.model.clone(),
            format!("v{}", version.version),
            format!("{}%", version.percent),
            micros(version.load_ms * 1e3),
        ]
    };
    text.push_str(&table(
        ["MODEL", "VERSION", "TRAFFIC", "LOADING TAKES"],
        recreation.unloaded.iter().map(row),
    ));
    if !recreation.done {
        text.push_str(&format!(
            "\n\nNothing was changed. To recreate it: modelhost deployment recreate {name} --yes"
        ));
    }
    text
}

/// One line per version.
pub(crate) fn usage(rows: &[wire::UsageRow]) -> String {
    let row = |row: &wire::UsageRow| {
        [
            row.model.clone(),
            format!("v{}", row.version),
            row.deployment.clone(),
            row.answered.to_string(),
            row.failed.to_string(),
            format!("{:.3} s", row.cpu_seconds),
            micros(row.cpu_us_per_prediction),
            bytes(row.peak_instance_bytes),
            row.loaded_bytes.map_or_else(|| "-".to_owned(), bytes),
            row.loads.to_string(),
            match row.graphs.as_slice() {
                [] => "-".to_owned(),
                places => format!("{:.3} s, {}", row.graph_seconds, places.join(", ")),
            },
        ]
    };
    let header = [
        "MODEL",
        "VERSION",
        "DEPLOYMENT",
        "ANSWERED",
        "FAILED",
        "CPU",
        "CPU EACH",
        "INSTANCE PEAK",
        "LOADED",
        "LOADS",
        "GRAPHS",
    ];
    table(header, rows.iter().map(row))
}
