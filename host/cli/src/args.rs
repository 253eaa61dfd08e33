//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

/// Serve models as sandboxed WebAssembly components, and operate a running host.
#[derive(Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 success, 2 wrong usage, 3 refused by the host, 4 host unreachable."
)]
pub(crate) struct Args {
    /// The host's admin address.
    #[arg(long, env = "MODELHOST_ADMIN", default_value = "http://127.0.0.1:8081", global = true)]
    pub(crate) admin: String,
    /// How to print the result.
    #[arg(long, value_enum, default_value_t, global = true)]
    pub(crate) output: Output,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The format of the output.
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
        /// Give the new version all traffic immediately.
        #[arg(long)]
        promote: bool,
        /// The deployment that it runs in [default: default]
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
    /// Return to the previous policy. Each repeat goes one further back.
    Rollback {
        /// prefix/name
        model: String,
    },
    /// Split the traffic by weight.
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
    /// Send versions a copy of every request. The answers do not change.
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
    /// Point an alias at a version.
    Alias {
        /// prefix/name
        model: String,
        /// The alias, e.g. stable.
        alias: String,
        /// The version's number.
        #[arg(value_parser = version, required_unless_present = "remove")]
        version: Option<u32>,
        /// Remove the alias.
        #[arg(long, conflicts_with = "version")]
        remove: bool,
    },
    /// Show every policy that the model has had.
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
    /// Show a model: its policy, aliases, versions and challengers.
    Show {
        /// prefix/name
        model: String,
    },
    /// Unload a version from memory. The next request loads it again.
    Unload {
        /// prefix/name
        model: String,
        /// Its number.
        #[arg(value_parser = version)]
        version: u32,
    },
    /// Load a version into memory, so that its first caller does not wait.
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
        /// Stop keeping them in memory.
        #[arg(long)]
        off: bool,
    },
    /// Move one or all of a model's versions to another deployment.
    Place {
        /// prefix/name
        model: String,
        /// The deployment that they run in from now on.
        deployment: String,
        /// Move only this version [default: all]
        #[arg(value_parser = version)]
        version: Option<u32>,
    },
    /// Manage deployments: named pools that versions run in, each with its own bounds.
    #[command(subcommand)]
    Deployment(DeploymentCommand),
    /// Show what each version has used since the host started: CPU time, memory, cost per prediction.
    Usage,
    /// Watch deployments and versions live. Ctrl-C quits.
    Top {
        /// Seconds between two updates.
        #[arg(long, default_value_t = 1.0)]
        interval: f64,
        /// How many versions to show, busiest first.
        #[arg(long, default_value_t = 20)]
        rows: usize,
        /// Print one interval and exit.
        #[arg(long)]
        once: bool,
    },
    /// Send JSON records to a model on the public port.
    Predict(PredictArgs),
    /// Send a load of JSON records to a model on the public port, and report latencies and errors.
    Bench(BenchArgs),
    /// Compile one component for the host that started this process: from standard input to standard output.
    #[command(hide = true)]
    Compile,
}

#[derive(Subcommand)]
pub(crate) enum DeploymentCommand {
    /// Create a deployment.
    Create {
        /// Its name.
        name: String,
        #[command(flatten)]
        bounds: BoundsArgs,
    },
    /// List all deployments: bounds, versions, running and waiting predictions.
    List,
    /// Show a deployment: its bounds, its versions and its counters.
    Show {
        /// Its name.
        name: String,
    },
    /// Change bounds. Running and waiting predictions and loaded versions stay as far as they fit.
    Update {
        /// Its name.
        name: String,
        #[command(flatten)]
        bounds: BoundsArgs,
    },
    /// Tear a deployment down and start it again. Without --yes, only list what becomes unavailable.
    Recreate {
        /// Its name.
        name: String,
        /// Recreate it.
        #[arg(long)]
        yes: bool,
    },
    /// Delete an empty deployment.
    Delete {
        /// Its name.
        name: String,
    },
}

#[derive(ClapArgs)]
pub(crate) struct BoundsArgs {
    /// How many predictions may run at once.
    #[arg(long)]
    pub(crate) instances: Option<u32>,
    /// How many predictions may wait for an instance.
    #[arg(long)]
    pub(crate) queue: Option<u32>,
    /// Total linear memory of its live instances, in MiB.
    #[arg(long)]
    pub(crate) memory_mib: Option<u64>,
    /// Total memory of its loaded versions (code, images, idle instances), in MiB.
    #[arg(long)]
    pub(crate) loaded_mib: Option<u64>,
    /// Threads for long predictions. 0 means one per core.
    #[arg(long)]
    pub(crate) threads: Option<u32>,
    /// Isolation of versions whose manifest sets none: request, instance, or auto (what the component allows).
    #[arg(long)]
    pub(crate) isolation: Option<String>,
    /// A restricted import that manifests may ask for, e.g. wasi:nn. Repeat it for several; leave it empty for none.
    #[arg(long = "capability")]
    pub(crate) capabilities: Option<Vec<String>>,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub(crate) enum ListWhat {
    /// Namespaces.
    Prefixes,
    /// Models of one prefix, or all.
    #[default]
    Models,
    /// Versions of one model.
    Versions,
}

#[derive(ClapArgs)]
pub(crate) struct ServeArgs {
    /// The folder for catalogue, artifacts and compiled code [default: ./modelhost-data]
    #[arg(long)]
    pub(crate) data_dir: Option<PathBuf>,
    /// The public address, for predictions. Port 0 picks a free port [default: 127.0.0.1:8080]
    #[arg(long)]
    pub(crate) listen: Option<SocketAddr>,
    /// An additional address for gRPC. --listen serves gRPC too.
    #[arg(long)]
    pub(crate) grpc_listen: Option<SocketAddr>,
    /// The admin address, for operators [default: 127.0.0.1:8081]
    #[arg(long)]
    pub(crate) admin_listen: Option<SocketAddr>,
    /// Allow an --admin-listen address other than loopback, although the admin API has no access control.
    #[arg(long)]
    pub(crate) admin_allow_remote: bool,
    /// Let callers load and unload versions, and change log and trace settings, over the Open Inference Protocol.
    #[arg(long)]
    pub(crate) repository_control: bool,
    /// Send trace spans to this OpenTelemetry collector (OTLP over gRPC), e.g. http://localhost:4317
    #[arg(long)]
    pub(crate) otlp_endpoint: Option<String>,
    /// Do not log each request.
    #[arg(long)]
    pub(crate) no_access_log: bool,
    /// A TOML file with these and all other settings. Flags override it.
    #[arg(long)]
    pub(crate) config: Option<PathBuf>,
    /// The folder of the shipped runtimes [default: runtimes/ beside this executable]
    #[arg(long)]
    pub(crate) runtimes_dir: Option<PathBuf>,
    /// The format of log lines on standard error.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) log_format: LogFormat,
    /// Which log lines to write, e.g. info,modelhost_engine=debug.
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
    /// A version or alias. Without it, the policy decides.
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
    /// How many connections to open.
    #[arg(short, long, default_value_t = 16)]
    pub(crate) concurrency: usize,
    /// How many requests to send [default: as many as fit the duration]
    #[arg(short = 'n', long)]
    pub(crate) requests: Option<u64>,
    /// Seconds to run.
    #[arg(short, long, default_value_t = 5.0)]
    pub(crate) duration: f64,
    /// How many of the file's rows each request carries.
    #[arg(long, default_value_t = 1)]
    pub(crate) rows_per_request: usize,
    /// Send a varying caller name in this header, for sticky splits.
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
