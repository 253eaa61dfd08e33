//! Figures: ratios within one run, since absolute times differ from machine to machine.

use anyhow::Result;
use clap::ValueEnum;

use crate::build;
use crate::sh;

/// Which benchmarks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum What {
    /// Criterion: calls into components, native against wasm, decoding.
    Functions,
    /// wrk against the server and a bare hyper server.
    Server,
}

pub(crate) fn run(what: Option<What>) -> Result<()> {
    let components = build::guests()?;
    for (name, bench) in [("functions", What::Functions), ("server", What::Server)] {
        if what.is_none_or(|what| what == bench) {
            let mut run = sh::cargo();
            run.args(["bench", "--package", "modelhost-tests", "--bench", name]);
            sh::run(run.env("MODELHOST_COMPONENTS", &components))?;
        }
    }
    Ok(())
}
