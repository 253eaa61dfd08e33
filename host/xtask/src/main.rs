//! Developer tasks. Each does its own set-up: `cargo xtask demo` and `cargo xtask test` work on a fresh checkout.

#![allow(clippy::print_stdout, reason = "its output is what a task is for")]

mod bench;
mod build;
mod codegen;
mod demo;
mod fuzz;
mod guest_target;
mod sh;
mod test;
mod tidy;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about)]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build everything, serve the example models, swap them under load, and keep serving.
    Demo {
        /// Exit after the tour instead of serving on.
        #[arg(long)]
        once: bool,
    },
    /// Set up what the tests need and run them all.
    Test,
    /// Build the shipped runtimes and example components.
    Guests,
    /// Check the rules that the compiler does not: imports, map of crates, file sizes.
    Tidy,
    /// Generate the gRPC code from `host/protocol/proto`.
    Codegen {
        /// Only say whether it is up to date.
        #[arg(long)]
        check: bool,
    },
    /// Measure functions (criterion) and the server (wrk), or how many versions one host can hold.
    Bench {
        /// Only one of them.
        #[arg(value_enum)]
        what: Option<bench::What>,
        /// Only these parts of it; `density` has start, loaded, zipf, swaps and neighbours.
        parts: Vec<String>,
    },
    /// Fuzz every decoder, or one, and keep what was found to reach new code.
    Fuzz {
        /// One of `modelhost_protocol::fuzz::TARGETS`.
        target: Option<String>,
        /// For each target.
        #[arg(long, default_value_t = 600)]
        seconds: u32,
    },
    /// What CI runs: fmt, tidy, clippy, doc, deny, test.
    Ci,
}

fn main() -> Result<()> {
    match Args::parse().task {
        Task::Demo { once } => demo::run(once),
        Task::Test => test::run_tests(),
        Task::Guests => build::guests().map(drop),
        Task::Tidy => tidy::run(),
        Task::Codegen { check } => codegen::run(check),
        Task::Bench { what, parts } => bench::run(what, &parts),
        Task::Fuzz { target, seconds } => fuzz::run(target.as_deref(), seconds),
        Task::Ci => test::ci(),
    }
}
