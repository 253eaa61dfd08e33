//! Figures: ratios within one run, since absolute times differ from machine to machine.

use anyhow::Result;
use clap::ValueEnum;

use crate::build;
use crate::sh;

/// Which benchmarks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum What {
    /// Criterion: calls into components, native against wasm, JSON.
    Functions,
    /// wrk against the server and a bare hyper server.
    Server,
}

pub(crate) fn run(what: Option<What>) -> Result<()> {
    let components = build::guests()?;
    if what != Some(What::Server) {
        sh::run(
            sh::cargo()
                .args(["bench", "--package", "modelhost-tests", "--bench", "functions"])
                .env("MODELHOST_COMPONENTS", &components),
        )?;
    }
    if what != Some(What::Functions) {
        sh::run(
            sh::cargo()
                .args(["bench", "--package", "modelhost-tests", "--bench", "server"])
                .env("MODELHOST_COMPONENTS", &components),
        )?;
    }
    Ok(())
}
