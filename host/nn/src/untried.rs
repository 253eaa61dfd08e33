//! Graphs that nobody has read yet. What reading one takes of time and memory is its author's choice, and nothing can stop a backend that reads:
//! so it is read once where it can be ended, in a process of its own, before it is read in the host's. What is read again the same way takes
//! the same time and memory.

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

/// Graphs, the files beside them, and what is to read them.
#[derive(Debug, Clone, PartialEq)]
pub struct Untried {
    /// Those whose name ends in `.onnx` are graphs.
    pub files: Vec<(String, Bytes)>,
    /// The library of ONNX Runtime; without one, tract reads them.
    pub onnxruntime: Option<PathBuf>,
}

impl Untried {
    /// Reads each graph and forgets it, on a stack smaller than the host's. Who is wrong with a file finds out when it is read for good: here only what it
    /// takes counts. Errors: resource exhausted, when there is no memory for one.
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

/// On the processor, whatever device is meant: what a device cannot do is found out when it is read for good.
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
