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
    /// Ten thousand versions on one host. Takes an hour the first time, and only when asked for.
    Density,
    /// Callers and authors who mean harm, against the release binary. Only when asked for.
    Attacks,
}

impl What {
    /// Whether it runs when nothing is named.
    fn is_quick(self) -> bool {
        matches!(self, Self::Functions | Self::Server)
    }
}

/// Runs one kind of benchmark, or all that take minutes; `parts` of it, where it has any.
pub(crate) fn run(what: Option<What>, parts: &[String]) -> Result<()> {
    let components = build::guests()?;
    for (name, bench) in [
        ("functions", What::Functions),
        ("server", What::Server),
        ("density", What::Density),
        ("attacks", What::Attacks),
    ] {
        if what.map_or(bench.is_quick(), |what| what == bench) {
            let mut run = sh::cargo();
            run.args(["bench", "--package", "modelhost-tests", "--bench", name, "--"]).args(parts);
            if !bench.is_quick() {
                run.env("MODELHOST_BINARY", build::release()?);
            }
            sh::run(run.env("MODELHOST_COMPONENTS", &components))?;
        }
    }
    Ok(())
}
