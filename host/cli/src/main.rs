//! The `modelhost` binary. `serve` runs a host. The other commands talk to one.
//!
//! Exit codes: 0 success, 2 wrong usage (clap's too), 3 refused by the host, 4 host unreachable, 1 anything else.

#![allow(clippy::print_stdout, reason = "commands print their results")]

mod admin;
mod args;
mod bench;
mod client;
mod deployment;
mod output;
mod package;
mod serve;
mod top;

use std::process::ExitCode;

use clap::Parser;

use crate::client::Failure;

fn main() -> ExitCode {
    let args = args::Args::parse();
    let result = match args.command {
        args::Command::Serve(options) => serve::run(&options),
        args::Command::Compile => modelhost_server::run_compiler().map_err(Into::into),
        args::Command::Bench(options) => bench::run(&options, args.output),
        command => admin::run(command, args.admin, args.output),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("modelhost: {error:#}");
            error.downcast_ref::<Failure>().map_or(ExitCode::FAILURE, Failure::exit_code)
        }
    }
}
