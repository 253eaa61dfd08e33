//! The commands that operate a running host.

use std::fs;

use anyhow::{Result, bail};
use modelhost_admin::wire;
use serde_json::{Value, json};

use crate::args::{Command, ListWhat, Output, PredictArgs, Request};
use crate::client::{Client, Failure};
use crate::output::{self, print, table};
use crate::{deployment, package, top};

pub(crate) fn run(command: Command, admin: String, output: Output) -> Result<()> {
    let client = Client::new(&admin);
    match command {
        Command::Register { model, package, promote, deployment } => {
            let (path, blobs) = (path(&model, "/versions")?, path(&model, "/blobs")?);
            let uploaded = package::upload(&client, &blobs, &package)?;
            let request = wire::Register { promote, deployment, ..uploaded };
            let registered: wire::Registered = client.post(&path, &request)?;
            if let Some(note) = &registered.note {
                eprintln!("note: the version runs in warm instances, because {note}");
            }
            print(output, &registered, |registered| registered.version.to_string())
        }
        Command::Promote { model, version } => {
            print_policy(output, client.post(&path(&model, "/promote")?, &wire::VersionRef { version })?)
        }
        Command::Rollback { model } => {
            print_policy(output, client.post(&path(&model, "/rollback")?, &json!({}))?)
        }
        Command::Split { model, weights, sticky } => {
            let weights =
                weights.into_iter().map(|(version, weight)| wire::Weight { version, weight }).collect();
            print_policy(output, client.post(&path(&model, "/split")?, &wire::Split { weights, sticky })?)
        }
        Command::Challenge { model, versions, none: _ } => {
            let request = wire::Challenge { challengers: versions };
            print_policy(output, client.post(&path(&model, "/challenge")?, &request)?)
        }
        Command::Alias { model, alias, version, remove: _ } => {
            let path = path(&model, &format!("/aliases/{alias}"))?;
            let aliases: Value = match version {
                Some(version) => client.put(&path, &wire::VersionRef { version })?,
                None => client.delete(&path)?,
            };
            print(output, &aliases, |aliases| {
                let rows = aliases.as_object().into_iter().flatten();
                table(["ALIAS", "VERSION"], rows.map(|(alias, version)| [alias.clone(), version.to_string()]))
            })
        }
        Command::History { model } => {
            let rows: Vec<wire::HistoryRow> = client.get(&path(&model, "/history")?)?;
            print(output, &rows, |rows| history(rows))
        }
        Command::List { what, of } => list(&client, what, of.as_deref(), output),
        Command::Show { model } => {
            let detail: wire::ModelDetail = client.get(&path(&model, "")?)?;
            print(output, &detail, show)
        }
        Command::Unload { model, version } => {
            let path = path(&model, &format!("/versions/{version}/unload"))?;
            let unloaded: wire::Unloaded = client.post(&path, &json!({}))?;
            print(output, &unloaded, |unloaded| {
                if unloaded.unloaded { "unloaded".to_owned() } else { "was not loaded".to_owned() }
            })
        }
        Command::Preload { model, version } => {
            let path = path(&model, &format!("/versions/{version}/preload"))?;
            let preloaded: wire::Preloaded = client.post(&path, &json!({}))?;
            print(output, &preloaded, |_| "loaded".to_owned())
        }
        Command::Pin { model, off } => {
            print_policy(output, client.post(&path(&model, "/pin")?, &wire::Pin { pinned: !off })?)
        }
        Command::Place { model, deployment, version } => {
            let placement = wire::Placement { deployment, version };
            let detail: wire::ModelDetail = client.put(&path(&model, "/deployment")?, &placement)?;
            print(output, &detail, show)
        }
        Command::Deployment(command) => deployment::run(&client, command, output),
        Command::Usage => {
            let rows: Vec<wire::UsageRow> = client.get("/v1/usage")?;
            print(output, &rows, |rows| deployment::usage(rows))
        }
        Command::Top { interval, rows, once } => top::run(&client, interval, rows, once, output),
        Command::Predict(PredictArgs { request }) => predict(&request, output),
        Command::Serve(_) | Command::Bench(_) | Command::Compile => {
            bail!("this command does not use the admin API")
        }
    }
}

/// The path of a model in the admin API. Errors: the name is not of the form prefix/name.
fn path(model: &str, rest: &str) -> Result<String> {
    match model.split_once('/') {
        Some((prefix, name)) if !prefix.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(format!("/v1/models/{model}{rest}"))
        }
        _ => Err(Failure::Caller(format!("model {model:?} is not of the form prefix/name")).into()),
    }
}

/// The path for JSON records on the public port.
pub(crate) fn records_path(request: &Request) -> Result<String> {
    path(&request.model, "")?;
    let version = request.version.as_ref().map(|version| format!("{version}/")).unwrap_or_default();
    Ok(format!("/models/{}/{version}", request.model))
}

fn print_policy(output: Output, policy: wire::Policy) -> Result<()> {
    print(output, &policy, |policy| output::policy(Some(policy)))
}

fn list(client: &Client, what: ListWhat, of: Option<&str>, output: Output) -> Result<()> {
    match what {
        ListWhat::Prefixes => {
            let rows: Vec<wire::PrefixRow> = client.get("/v1/prefixes")?;
            print(output, &rows, |rows| {
                table(
                    ["PREFIX", "MODELS"],
                    rows.iter().map(|row| [row.prefix.clone(), row.models.to_string()]),
                )
            })
        }
        ListWhat::Models => {
            let query = of.map(|prefix| format!("?prefix={prefix}")).unwrap_or_default();
            let rows: Vec<wire::ModelRow> = client.get(&format!("/v1/models{query}"))?;
            print(output, &rows, |rows| {
                let row = |row: &wire::ModelRow| {
                    [row.model.clone(), row.versions.to_string(), output::policy(row.policy.as_ref())]
                };
                table(["MODEL", "VERSIONS", "TRAFFIC"], rows.iter().map(row))
            })
        }
        ListWhat::Versions => {
            let Some(model) = of else {
                return Err(Failure::Caller("list versions needs a model: prefix/name".into()).into());
            };
            let detail: wire::ModelDetail = client.get(&path(model, "")?)?;
            print(output, &detail.versions, |versions| version_table(versions))
        }
    }
}

fn version_table(versions: &[wire::VersionRow]) -> String {
    let row = |row: &wire::VersionRow| {
        let role = if row.challenger { "challenger".to_owned() } else { format!("{}%", row.percent) };
        let digest: String = row.digest.chars().take(12).collect();
        let loaded = if row.loaded { "yes" } else { "no" };
        let aliases = row.aliases.join(", ");
        [
            format!("v{}", row.version),
            role,
            loaded.into(),
            row.isolation.clone(),
            digest,
            aliases,
            row.deployment.clone(),
            row.description.clone(),
        ]
    };
    let header =
        ["VERSION", "TRAFFIC", "LOADED", "ISOLATION", "DIGEST", "ALIASES", "DEPLOYMENT", "DESCRIPTION"];
    table(header, versions.iter().map(row))
}

fn show(detail: &wire::ModelDetail) -> String {
    let mut text = format!("{}: {}\n\n", detail.model, output::policy(detail.policy.as_ref()));
    text.push_str(&version_table(&detail.versions));
    if !detail.challengers.is_empty() {
        let row = |row: &wire::Comparisons| {
            let count = |outcome: &str| row.outcomes.get(outcome).copied().unwrap_or(0).to_string();
            let [equal, close, differs, failed, dropped] =
                ["equal", "close", "differs", "failed", "dropped"].map(count);
            [
                format!("v{}", row.challenger),
                format!("v{}", row.served),
                equal,
                close,
                differs,
                failed,
                dropped,
            ]
        };
        let header = ["CHALLENGER", "AGAINST", "EQUAL", "WITHIN 1E-6", "DIFFERS", "FAILED", "DROPPED"];
        text.push_str("\n\n");
        text.push_str(&table(header, detail.challengers.iter().map(row)));
    }
    text
}

fn history(rows: &[wire::HistoryRow]) -> String {
    let row = |row: &wire::HistoryRow| {
        let now = if row.current { "now" } else { "" };
        [output::time(row.at_ms), row.action.clone(), output::policy(Some(&row.policy)), now.to_owned()]
    };
    table(["AT (UTC)", "ACTION", "TRAFFIC", ""], rows.iter().map(row))
}

fn predict(request: &Request, output: Output) -> Result<()> {
    let body = fs::read(&request.rows)
        .map_err(|error| Failure::Caller(format!("{}: {error}", request.rows.display())))?;
    let (text, _) = Client::new(&request.url).post_raw(&records_path(request)?, &body)?;
    let answer: Value = serde_json::from_str(&text)?;
    print(output, &answer, |answer| {
        let predictions = answer.get("predictions").and_then(Value::as_array).cloned().unwrap_or_default();
        let rows = predictions.iter().enumerate().map(|(row, prediction)| {
            let fields = prediction.as_object().into_iter().flatten();
            let text: Vec<_> = fields.map(|(name, value)| format!("{name} {value}")).collect();
            [row.to_string(), text.join(", ")]
        });
        format!(
            "version {}\n{}",
            answer.get("version").unwrap_or(&Value::Null),
            table(["ROW", "PREDICTION"], rows)
        )
    })
}
