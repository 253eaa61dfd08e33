//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

/// Serve models as sandboxed WebAssembly components, and operate a running host.
#[derive(Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 done, 2 wrong use, 3 refused by the host, 4 host out of reach."
)]
pub(crate) struct Args {
    /// The host's admin address.
    #[arg(long, env = "MODELHOST_ADMIN", default_value = "http://127.0.0.1:8081", global = true)]
    pub(crate) admin: String,
    /// How to print what comes back.
    #[arg(long, value_enum, default_value_t, global = true)]
    pub(crate) output: Output,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How to print.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Run a host until SIGTERM or Ctrl-C.
    Serve(ServeArgs),
    /// Upload a package and register it as the model's next version.
    Register {
        /// prefix/name
        model: String,
        /// The folder with model.toml.
        package: PathBuf,
        /// Give it all traffic at once.
        #[arg(long)]
        promote: bool,
        /// Where it runs [default: the deployment named default]
        #[arg(long)]
        deployment: Option<String>,
    },
    /// Give a version all traffic.
    Promote {
        /// prefix/name
        model: String,
        /// Its number, as in 7 or v7.
        #[arg(value_parser = version)]
        version: u32,
    },
    /// Return to the policy before this one; repeated, further back.
    Rollback {
        /// prefix/name
        model: String,
    },
    /// Divide the traffic by weight.
    Split {
        /// prefix/name
        model: String,
        /// VERSION=WEIGHT, e.g. 6=90 7=10.
        #[arg(required = true, value_parser = weight)]
        weights: Vec<(u32, u32)>,
        /// Keep a caller on its version: header:NAME or field:NAME.
        #[arg(long)]
        sticky: Option<String>,
    },
    /// Show versions a copy of every request, without touching the answers.
    Challenge {
        /// prefix/name
        model: String,
        /// The challengers' numbers.
        #[arg(value_parser = version, required_unless_present = "none")]
        versions: Vec<u32>,
        /// End all challenges.
        #[arg(long, conflicts_with = "versions")]
        none: bool,
    },
    /// Point a movable name at a version.
    Alias {
        /// prefix/name
        model: String,
        /// E.g. stable.
        alias: String,
        /// The version's number.
        #[arg(value_parser = version, required_unless_present = "remove")]
        version: Option<u32>,
        /// Remove the name.
        #[arg(long, conflicts_with = "version")]
        remove: bool,
    },
    /// Every policy the model had.
    History {
        /// prefix/name
        model: String,
    },
    /// List what is registered.
    List {
        /// What to list.
        #[arg(value_enum, default_value_t)]
        what: ListWhat,
        /// For models: a prefix; for versions: prefix/name.
        of: Option<String>,
    },
    /// One model: its policy, aliases, versions and challengers.
    Show {
        /// prefix/name
        model: String,
    },
    /// Take a version out of memory; its next request loads it again.
    Unload {
        /// prefix/name
        model: String,
        /// Its number.
        #[arg(value_parser = version)]
        version: u32,
    },
    /// Bring a version into memory, so that its first caller does not wait.
    Preload {
        /// prefix/name
        model: String,
        /// Its number.
        #[arg(value_parser = version)]
        version: u32,
    },
    /// Keep the versions that a model's policy names in memory, also after a restart.
    Pin {
        /// prefix/name
        model: String,
        /// No longer keep them.
        #[arg(long)]
        off: bool,
    },
    /// Move a model's versions to another deployment: one, or all.
    Place {
        /// prefix/name
        model: String,
        /// Where they run from now on.
        deployment: String,
        /// One version's number.
        #[arg(value_parser = version)]
        version: Option<u32>,
    },
    /// Named pools that versions run in, with bounds of their own.
    #[command(subcommand)]
    Deployment(DeploymentCommand),
    /// What each version took since the host started: processor time, memory, cost per prediction.
    Usage,
    /// Watch deployments and versions live; Ctrl-C ends it.
    Top {
        /// Seconds between two looks.
        #[arg(long, default_value_t = 1.0)]
        interval: f64,
        /// Versions to show, the busiest first.
        #[arg(long, default_value_t = 20)]
        rows: usize,
        /// Look once over one interval, print, and end.
        #[arg(long)]
        once: bool,
    },
    /// Send JSON records to a model, through the public port.
    Predict(PredictArgs),
    /// Load a model with JSON records, through the public port, and report what came back.
    Bench(BenchArgs),
    /// Compile one component for the host that started this: from standard input, to standard output.
    #[command(hide = true)]
    Compile,
}

#[derive(Subcommand)]
pub(crate) enum DeploymentCommand {
    /// Make a deployment.
    Create {
        /// Its name.
        name: String,
        #[command(flatten)]
        bounds: BoundsArgs,
    },
    /// All deployments: bounds, versions, what runs and waits.
    List,
    /// One deployment: its bounds, what it holds and did.
    Show {
        /// Its name.
        name: String,
    },
    /// Change bounds; what runs, waits and is loaded stays, as far as it fits.
    Update {
        /// Its name.
        name: String,
        #[command(flatten)]
        bounds: BoundsArgs,
    },
    /// Tear it down and start it anew from its configuration. Says what becomes unavailable; does it only with --yes.
    Recreate {
        /// Its name.
        name: String,
        /// Do it.
        #[arg(long)]
        yes: bool,
    },
    /// Remove an empty deployment.
    Delete {
        /// Its name.
        name: String,
    },
}

#[derive(ClapArgs)]
pub(crate) struct BoundsArgs {
    /// Predictions that run at once.
    #[arg(long)]
    pub(crate) instances: Option<u32>,
    /// Predictions that wait for one of those.
    #[arg(long)]
    pub(crate) queue: Option<u32>,
    /// Linear memory of its live instances together, in MiB.
    #[arg(long)]
    pub(crate) memory_mib: Option<u64>,
    /// Code, images and idle instances of its versions in memory, in MiB.
    #[arg(long)]
    pub(crate) loaded_mib: Option<u64>,
    /// Threads for predictions that run long; 0: one a core.
    #[arg(long)]
    pub(crate) threads: Option<u32>,
    /// For versions whose manifest asks for none: request, instance, or auto for what the component allows.
    #[arg(long)]
    pub(crate) isolation: Option<String>,
    /// An import beyond the harmless ones that manifests may ask for, e.g. wasi:nn; repeated for several, empty for none.
    #[arg(long = "capability")]
    pub(crate) capabilities: Option<Vec<String>>,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub(crate) enum ListWhat {
    /// Namespaces.
    Prefixes,
    /// Models, of one prefix or all.
    #[default]
    Models,
    /// Versions of one model.
    Versions,
}

#[derive(ClapArgs)]
pub(crate) struct ServeArgs {
    /// Catalogue, artifacts and compiled code [default: ./modelhost-data]
    #[arg(long)]
    pub(crate) data_dir: Option<PathBuf>,
    /// Where predictions are asked for; port 0 takes a free one [default: 127.0.0.1:8080]
    #[arg(long)]
    pub(crate) listen: Option<SocketAddr>,
    /// Where gRPC is served besides --listen, which serves it too.
    #[arg(long)]
    pub(crate) grpc_listen: Option<SocketAddr>,
    /// Where operators work [default: 127.0.0.1:8081]
    #[arg(long)]
    pub(crate) admin_listen: Option<SocketAddr>,
    /// Let --admin-listen be another address than loopback, although nothing guards it.
    #[arg(long)]
    pub(crate) admin_allow_remote: bool,
    /// Let callers load and unload versions and change log and trace settings over the Open Inference Protocol.
    #[arg(long)]
    pub(crate) repository_control: bool,
    /// Send spans to this OpenTelemetry collector (OTLP over gRPC), e.g. http://localhost:4317
    #[arg(long)]
    pub(crate) otlp_endpoint: Option<String>,
    /// Write no log line per request.
    #[arg(long)]
    pub(crate) no_access_log: bool,
    /// A TOML file with these and all other settings.
    #[arg(long)]
    pub(crate) config: Option<PathBuf>,
    /// The shipped runtimes' components [default: runtimes/ beside this executable]
    #[arg(long)]
    pub(crate) runtimes_dir: Option<PathBuf>,
    /// How log lines look, on standard error.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) log_format: LogFormat,
    /// Which log lines, e.g. info,modelhost_engine=debug.
    #[arg(long, env = "MODELHOST_LOG", default_value = "info")]
    pub(crate) log: String,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub(crate) enum LogFormat {
    #[default]
    Text,
    Json,
}

#[derive(ClapArgs)]
pub(crate) struct Request {
    /// prefix/name
    pub(crate) model: String,
    /// A file of JSON records: [{"age": 40, …}, …].
    pub(crate) rows: PathBuf,
    /// A version or alias; without it the policy decides.
    #[arg(long)]
    pub(crate) version: Option<String>,
    /// The host's public address.
    #[arg(long, env = "MODELHOST_URL", default_value = "http://127.0.0.1:8080")]
    pub(crate) url: String,
}

#[derive(ClapArgs)]
pub(crate) struct PredictArgs {
    #[command(flatten)]
    pub(crate) request: Request,
}

#[derive(ClapArgs)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    pub(crate) request: Request,
    /// Connections.
    #[arg(short, long, default_value_t = 16)]
    pub(crate) concurrency: usize,
    /// Requests in all; without it, as many as fit the duration.
    #[arg(short = 'n', long)]
    pub(crate) requests: Option<u64>,
    /// Seconds to run.
    #[arg(short, long, default_value_t = 5.0)]
    pub(crate) duration: f64,
    /// Rows a request: the file's rows are sent in turn, this many at a time.
    #[arg(long, default_value_t = 1)]
    pub(crate) rows_per_request: usize,
    /// Send a random caller under this header, for sticky splits.
    #[arg(long)]
    pub(crate) caller_header: Option<String>,
}

fn version(text: &str) -> Result<u32, String> {
    let number = text.strip_prefix('v').unwrap_or(text).parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| "a version is a number from 1, as in 7 or v7".to_owned())
}

fn weight(text: &str) -> Result<(u32, u32), String> {
    let (number, weight) = text.split_once('=').ok_or("expected VERSION=WEIGHT, as in 7=10")?;
    Ok((version(number)?, weight.parse().map_err(|_| "a weight is a whole number from 0")?))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn is_consistent() {
        super::Args::command().debug_assert();
    }
}
