//! Installs the target `wasm32-wasip2` with rustup. Where no rustup server answers, builds std once from Debian's
//! `rust-src` of exactly this rustc.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::sh::{command, output, run};

const TARGET: &str = "wasm32-wasip2";
const HELP: &str = "the target wasm32-wasip2 is missing. Run `rustup target add wasm32-wasip2`. Where no rustup \
                    server answers, let this task build it. That needs apt-get, dpkg, crates.io and a Debian mirror \
                    with this rustc's rust-src";

/// Installs the target unless it is there.
pub(crate) fn ensure() -> Result<()> {
    let sysroot = PathBuf::from(output(command("rustc").args(["--print", "sysroot"]))?.trim());
    if is_there(&sysroot)? {
        return Ok(());
    }
    println!("setting up {TARGET}…");
    let by_rustup = run(command("rustup").args(["target", "add", TARGET]));
    if by_rustup.is_ok() && is_there(&sysroot)? {
        return Ok(());
    }
    println!("rustup could not install it; building std from Debian's rust-src (about a minute)…");
    build_std(&sysroot).with_context(|| HELP)?;
    if !is_there(&sysroot)? {
        bail!(HELP);
    }
    Ok(())
}

fn is_there(sysroot: &Path) -> Result<bool> {
    let lib = library(sysroot);
    if !lib.is_dir() {
        return Ok(false);
    }
    let names = fs::read_dir(lib)?.flatten().map(|entry| entry.file_name());
    Ok(names.into_iter().any(|name| {
        let name = name.to_string_lossy();
        name.starts_with("libstd-") && name.ends_with(".rlib")
    }))
}

fn library(sysroot: &Path) -> PathBuf {
    sysroot.join("lib/rustlib").join(TARGET).join("lib")
}

/// A private apt configuration: the machine's own mirror, and suites that may carry this rustc's source. It installs
/// nothing.
struct Apt {
    dir: PathBuf,
}

impl Apt {
    fn new(dir: &Path) -> Result<Self> {
        let targets = output(command("apt-get").args([
            "indextargets",
            "--format",
            "$(REPO_URI)",
            "Created-By: Packages",
        ]))?;
        let mirror = targets.lines().find(|uri| uri.trim_end_matches('/').ends_with("/debian"));
        let mirror = mirror.context("no Debian mirror is configured")?;
        for folder in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(folder))?;
        }
        let key = "/usr/share/keyrings/debian-archive-keyring.gpg";
        let line = |suite| format!("deb [signed-by={key}] {mirror} {suite} main\n");
        fs::write(dir.join("sources.list"), ["trixie-backports", "forky", "sid"].map(line).concat())?;
        Ok(Self { dir: dir.to_owned() })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.dir).args([
            "-o",
            "Dir::Etc::SourceParts=-",
            "-o",
            "APT::Get::List-Cleanup=0",
        ]);
        for (option, path) in [
            ("Dir::Etc::SourceList", "sources.list"),
            ("Dir::State::Lists", "lists"),
            ("Dir::Cache", "cache"),
        ] {
            command.arg("-o").arg(format!("{option}={}", self.dir.join(path).display()));
        }
        command
    }

    /// The newest version of `package` that `fits` accepts.
    fn version(&self, package: &str, fits: impl Fn(&str) -> bool) -> Result<String> {
        let text = output(self.command("apt-cache").args(["madison", package]))?;
        let mut versions = text.lines().filter_map(|line| line.split('|').nth(1)).map(str::trim);
        let found = versions.find(|version| fits(version)).map(str::to_owned);
        found.with_context(|| format!("Debian has no matching version of {package}"))
    }
}

fn build_std(sysroot: &Path) -> Result<()> {
    let version = output(command("rustc").arg("--version"))?;
    let version = version.split(' ').nth(1).context("rustc --version")?.to_owned();
    let work = tempfile::tempdir()?;
    let apt = Apt::new(work.path())?;
    run(apt.command("apt-get").args(["-qq", "update"]))?;
    let of_this_rustc =
        |text: &str| text.strip_prefix(&version).is_some_and(|rest| rest.starts_with(['+', '-']));
    let source = apt.version("rust-src", of_this_rustc)?;
    let libc = apt.version("wasi-libc", |_| true)?;
    run(apt.command("apt-get").args([
        "-qq",
        "download",
        &format!("rust-src={source}"),
        &format!("wasi-libc={libc}"),
    ]))?;
    let unpacked = work.path().join("unpacked");
    for entry in fs::read_dir(work.path())?.flatten().map(|entry| entry.path()) {
        if entry.extension().is_some_and(|extension| extension == "deb") {
            run(command("dpkg").arg("-x").arg(&entry).arg(&unpacked))?;
        }
    }
    let library_source = sysroot.join("lib/rustlib/src/rust");
    fs::create_dir_all(&library_source)?;
    let unpacked_source = unpacked.join(format!("usr/src/rustc-{version}/library"));
    run(command("cp").args(["-rT"]).arg(unpacked_source).arg(library_source.join("library")))?;

    let lib = library(sysroot);
    let self_contained = lib.join("self-contained");
    fs::create_dir_all(&self_contained)?;
    let libc_files = unpacked.join("usr/lib").join(TARGET);
    run(command("cp").arg("-rT").arg(libc_files).arg(&self_contained))?;
    let built = build_probe(work.path())?;
    for entry in fs::read_dir(built)?.flatten().map(|entry| entry.path()) {
        if entry.extension().is_some_and(|extension| extension == "rlib") {
            fs::copy(&entry, lib.join(entry.file_name().unwrap_or_default()))?;
        }
    }
    Ok(())
}

/// Builds an empty crate and std with it. Embeds bitcode as the official std does, because plugins are built with LTO.
fn build_probe(work: &Path) -> Result<PathBuf> {
    let probe = work.join("probe");
    fs::create_dir_all(probe.join("src"))?;
    let manifest = "[package]\nname = \"probe\"\nversion = \"0.0.0\"\nedition = \"2021\"\n\
                    [lib]\ncrate-type = [\"cdylib\"]\n[profile.release]\npanic = \"abort\"\n[workspace]\n";
    fs::write(probe.join("Cargo.toml"), manifest)?;
    fs::write(probe.join("src/lib.rs"), "")?;
    let mut cargo = command("cargo");
    cargo.current_dir(&probe).env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", "-C embed-bitcode=yes");
    cargo.env("CARGO_TARGET_DIR", probe.join("target"));
    run(cargo.args(["build", "-q", "--release", "--target", TARGET, "-Zbuild-std=std,panic_abort"]))?;
    Ok(probe.join("target").join(TARGET).join("release/deps"))
}
