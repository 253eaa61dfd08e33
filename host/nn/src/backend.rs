//! Backends evaluate graphs.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::model::Signature;
use modelhost_core::tensor::Tensor;
use modelhost_onnx::external_tensors;

/// An ONNX file, and the files beside it that hold some of its weights. They have the names that the file uses.
#[derive(Clone)]
pub(crate) struct GraphFile {
    pub(crate) content: Bytes,
    pub(crate) beside: Vec<(String, Bytes)>,
    /// Bytes of all weights. Several tensors may use the same part of a file.
    pub(crate) bytes: u64,
}

impl GraphFile {
    /// `files` may lie beside it. Errors: plugin fault, if it is not an ONNX file or names a file that is not among
    /// them.
    pub(crate) fn new(content: &Bytes, files: &[(String, Bytes)]) -> Result<Self, Error> {
        let (mut beside, mut bytes) = (Vec::<(String, Bytes)>::new(), content.len() as u64);
        let known: HashMap<&str, &Bytes> = files.iter().map(|(name, file)| (name.as_str(), file)).collect();
        for (name, length) in external_tensors(content).map_err(Error::fault)? {
            let artifact = name.strip_prefix("./").unwrap_or(&name);
            let file = *known.get(artifact).ok_or_else(|| {
                let names: Vec<_> = files.iter().map(|(name, _)| name).collect();
                Error::fault(format!(
                    "some of its weights are in the file {name:?}, which is not among {names:?}"
                ))
            })?;
            bytes = bytes.saturating_add(length.unwrap_or(file.len()) as u64);
            if beside.iter().all(|(known, _)| *known != name) {
                beside.push((name, file.clone()));
            }
        }
        Ok(Self { content: content.clone(), beside, bytes })
    }
}

/// A graph that several threads can evaluate at once.
pub(crate) trait Backend: Send + Sync {
    /// Its signature.
    fn signature(&self) -> &Signature;

    /// Evaluates the graph. Blocks until it ends or `stop` is asked. The inputs agree with the signature and have its
    /// order. So do the outputs. Errors: invalid argument, if only the caller's values can be the cause; plugin
    /// fault; internal.
    fn run(&self, inputs: &[Tensor], stop: &Stop) -> Result<Vec<Tensor>, Error>;

    /// As [`Backend::run`], on a thread that must not wait. `None`: something would have to be made or waited for
    /// first.
    fn run_now(&self, inputs: &[Tensor]) -> Result<Option<Vec<Tensor>>, Error>;

    /// Most evaluations at once.
    fn width(&self) -> usize;

    /// Whether a short evaluation may run on the calling thread. It may not if it waits for a device.
    fn is_on_cpu(&self) -> bool;
}

/// How often a waiting evaluation checks whether it was told to stop.
pub(crate) const STOP_EVERY: Duration = Duration::from_millis(10);

/// Tells an evaluation that no caller waits for it any more.
#[derive(Default)]
pub(crate) struct Stop {
    asked: AtomicBool,
    how: Mutex<Option<Arc<dyn Fn() + Send + Sync>>>,
}

impl Stop {
    /// Sets what `ask` calls. A backend that can end an evaluation sets this first.
    pub(crate) fn set(&self, how: Arc<dyn Fn() + Send + Sync>) {
        *self.how.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&how));
        if self.is_asked() {
            how();
        }
    }

    pub(crate) fn ask(&self) {
        self.asked.store(true, Ordering::Release);
        if let Some(how) = &*self.how.lock().unwrap_or_else(PoisonError::into_inner) {
            how();
        }
    }

    pub(crate) fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Acquire)
    }
}

/// The error of an evaluation that was stopped.
pub(crate) fn left() -> Error {
    Error::new(ErrorCode::DeadlineExceeded, "nobody waits for the evaluation any more")
}

impl fmt::Debug for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stop").field("asked", &self.is_asked()).finish()
    }
}
