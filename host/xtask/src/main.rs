//! Developer tasks. Each does its own set-up, so `cargo xtask demo` and `cargo xtask test` work on a fresh checkout.

#![allow(clippy::print_stdout, reason = "tasks print their results")]

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
        /// Exit after the tour.
        #[arg(long)]
        once: bool,
    },
    /// Set up what the tests need, and run all tests.
    Test,
    /// Build the shipped runtimes and example components.
    Guests,
    /// Check rules that the compiler does not check: imports, map of crates, file sizes.
    Tidy,
    /// Generate the gRPC code from `host/protocol/proto`.
    Codegen {
        /// Only check whether it is up to date.
        #[arg(long)]
        check: bool,
    },
    /// Run the benchmarks: by default functions (criterion) and the server (wrk).
    Bench {
        /// Run only this one.
        #[arg(value_enum)]
        what: Option<bench::What>,
        /// Run only these parts of it. `density` has start, loaded, zipf, swaps and neighbours.
        parts: Vec<String>,
    },
    /// Fuzz every decoder, or one, and keep what was found to reach new code.
    Fuzz {
        /// One of `modelhost_protocol::fuzz::TARGETS`.
        target: Option<String>,
        /// How long to fuzz each target.
        #[arg(long, default_value_t = 600)]
        seconds: u32,
    },
    /// Run what CI runs: fmt, tidy, codegen, deny, clippy, doc, test.
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
