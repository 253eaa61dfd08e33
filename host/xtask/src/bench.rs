//! Runs the benchmarks. Compare their results only within one run, because absolute times differ between machines.

use anyhow::Result;
use clap::ValueEnum;

use crate::build;
use crate::sh;

/// A set of benchmarks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum What {
    /// Criterion benchmarks: calls into components, native versus wasm, decoding.
    Functions,
    /// The server and a bare hyper server, under wrk.
    Server,
    /// Ten thousand versions on one host. Takes an hour the first time. Runs only when named.
    Density,
    /// Attacks by callers and authors on the release binary. Runs only when named.
    Attacks,
}

impl What {
    /// Whether it runs when no benchmark is named.
    fn is_quick(self) -> bool {
        matches!(self, Self::Functions | Self::Server)
    }
}

/// Runs one set of benchmarks, or all quick ones. `parts` selects parts of a set that has them.
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
