//! Generates the committed gRPC code from `host/protocol/proto`, without protoc.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::sh::root;

const PROTO: &str = "host/protocol/proto";
const GENERATED: &str = "host/protocol/src/oip_grpc/generated";

/// Writes the generated code, or with `check` only compares it. Errors: a malformed proto; with `check`, stale code.
pub(crate) fn run(check: bool) -> Result<()> {
    let made = tempfile::tempdir()?;
    generate(made.path())?;
    for file in ["inference.rs", "descriptors.bin"] {
        let (from, to) = (made.path().join(file), root().join(GENERATED).join(file));
        let content = fs::read(&from).with_context(|| format!("reading {}", from.display()))?;
        if fs::read(&to).is_ok_and(|existing| existing == content) {
            continue;
        }
        if check {
            bail!("{GENERATED}/{file} does not match {PROTO}: run `cargo xtask codegen`");
        }
        fs::create_dir_all(root().join(GENERATED))?;
        fs::write(&to, content).with_context(|| format!("writing {}", to.display()))?;
    }
    Ok(())
}

fn generate(to: &Path) -> Result<()> {
    let mut compiler = protox::Compiler::new([root().join(PROTO)])?;
    compiler.include_imports(true).open_file("inference.proto")?;
    fs::write(to.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;
    // `bytes::Bytes` instead of `Vec<u8>`, so that tensors stay slices of the request's buffer.
    tonic_prost_build::configure()
        .build_client(false)
        .build_server(false)
        .build_transport(false)
        .bytes(".")
        .out_dir(to)
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
