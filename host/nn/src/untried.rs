//! Graphs that were not read yet. An author decides how much time and memory reading a graph takes, and nothing can
//! stop a backend that reads. So another process, which can be killed, reads a graph before the host does. Reading it
//! again takes the same time and memory.

use std::path::PathBuf;
use std::thread;

use bytes::Bytes;
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::version::GRAPH_SUFFIX;

use crate::backend::GraphFile;
use crate::library::Library;
use crate::memory::Memory;
use crate::onnxruntime::{Device, OnnxRuntime, Settings};
use crate::reading::STACK;
use crate::tract::Tract;

/// Graphs, the files beside them, and what reads them.
#[derive(Debug, Clone, PartialEq)]
pub struct Untried {
    /// Those whose name ends in `.onnx` are graphs.
    pub files: Vec<(String, Bytes)>,
    /// The library of ONNX Runtime. Without one, tract reads the graphs.
    pub onnxruntime: Option<PathBuf>,
}

impl Untried {
    /// Reads each graph and drops it, on a smaller stack than the host's. Other errors are ignored, because the host
    /// finds them when it reads the graph itself. Errors: resource exhausted, if there is not enough memory.
    pub fn read(&self) -> Result<(), Error> {
        let no_thread = |error| Error::internal("no thread reads the graphs").because(error);
        thread::scope(|scope| {
            let reader = thread::Builder::new().stack_size(STACK / 2);
            let reader = reader.spawn_scoped(scope, || self.read_here()).map_err(no_thread)?;
            reader.join().unwrap_or(Ok(())) // whoever reads them for good panics too
        })
    }

    fn read_here(&self) -> Result<(), Error> {
        let library = self.onnxruntime.as_deref().and_then(|path| Library::get(Some(path)).ok());
        for (_, content) in self.files.iter().filter(|(name, _)| name.ends_with(GRAPH_SUFFIX)) {
            match GraphFile::new(content, &self.files).and_then(|file| read(library.clone(), &file)) {
                Err(error) if error.code == ErrorCode::ResourceExhausted => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }
}

/// Uses the processor, whatever the target is. The host finds out later what a device cannot do.
fn read(library: Option<Library>, file: &GraphFile) -> Result<(), Error> {
    let memory = Memory::new(u64::MAX);
    let Some(library) = library else { return Tract::open(file, &memory).map(drop) };
    let settings = Settings { device: Device::Cpu, threads: 1, sessions: 1 };
    OnnxRuntime::open(library, settings, &memory, file).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_file_is_not_told_here() {
        let fixture = |name: &str| {
            let path = format!("{}/../../tests/fixtures/onnx/{name}.onnx", env!("CARGO_MANIFEST_DIR"));
            (format!("{name}.onnx"), std::fs::read(path).unwrap().into())
        };
        let broken = ("broken.onnx".to_owned(), Bytes::from_static(b"no graph"));
        let files = vec![fixture("mlp"), broken, fixture("unknown_operator"), fixture("huge_constant")];
        assert_eq!(Untried { files, onnxruntime: None }.read(), Ok(()));
    }
}
