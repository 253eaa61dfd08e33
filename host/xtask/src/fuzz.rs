//! libFuzzer over the decoders, on a stable compiler: coverage instrumentation is an LLVM pass that rustc lets anyone
//! ask for.

use std::fs;

use anyhow::{Context, Result, bail};

use crate::sh::{cargo, command, output, root, run as run_command};

const TARGETS: [&str; 9] =
    ["oip_rest", "oip_raw", "oip_control", "oip_grpc", "tf_serving", "mlflow", "records", "csv", "guest"];

const INSTRUMENT: [&str; 6] = [
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// Fuzzes each target, or the one named, for so many seconds; ends at the first crash.
pub(crate) fn run(target: Option<&str>, seconds: u32) -> Result<()> {
    let folder = root().join("tests/fuzz");
    let mut build = cargo();
    build.args(["build", "--quiet", "--release", "--target-dir", "target"]).current_dir(&folder);
    // With an explicit target, cargo does not instrument build scripts, which could not link the instrumentation.
    build.args(["--target", &host_target()?]);
    run_command(build.env("RUSTFLAGS", INSTRUMENT.join(" ")))?;
    match target {
        None => TARGETS.iter().try_for_each(|target| fuzz(target, seconds)),
        Some(target) if TARGETS.contains(&target) => fuzz(target, seconds),
        Some(target) => bail!("{target:?} is not one of {}", TARGETS.join(", ")),
    }
}

/// This machine's target triple.
fn host_target() -> Result<String> {
    let about = output(command("rustc").arg("-vV"))?;
    let line =
        about.lines().find_map(|line| line.strip_prefix("host: ")).context("`rustc -vV` prints no host")?;
    Ok(line.to_owned())
}

fn fuzz(target: &str, seconds: u32) -> Result<()> {
    let folder = root().join("tests/fuzz");
    let (corpus, found) = (folder.join("corpus").join(target), folder.join("found").join(target));
    let crashes = folder.join("crashes").join(target);
    for folder in [&corpus, &found, &crashes] {
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    let triple = host_target()?;
    println!("{target}: {seconds} s");
    let fuzzer = || {
        let mut fuzzer = command(folder.join("target").join(&triple).join("release/modelhost-fuzz"));
        fuzzer.env("MODELHOST_FUZZ_TARGET", target);
        fuzzer
    };
    run_command(
        fuzzer()
            .args([&found, &corpus])
            .arg(format!("-artifact_prefix={}/", crashes.display()))
            .arg(format!("-max_total_time={seconds}"))
            // The decoders' bounds on size are tested elsewhere.
            .args([
                "-max_len=4096",
                "-rss_limit_mb=2048",
                "-timeout=10",
                "-verbosity=0",
                "-print_final_stats=1",
            ]),
    )?;
    // Inputs that reach new code join the corpus.
    run_command(
        fuzzer()
            .args(["-set_cover_merge=1", "-use_counters=0", "-max_len=4096", "-verbosity=0"])
            .args([&corpus, &found]),
    )
}
