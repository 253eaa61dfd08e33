//! What a backend is: something that evaluates one graph.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use modelhost_core::error::Error;
use modelhost_core::model::Signature;
use modelhost_core::tensor::Tensor;

/// A graph that is ready to be evaluated, by several threads at once.
pub(crate) trait Backend: Send + Sync {
    /// What it takes and gives.
    fn signature(&self) -> &Signature;

    /// Evaluates it; blocks. `stop`: who may want to stop it. The inputs agree with the signature and come in its order; so do the outputs.
    /// Errors: invalid argument (what only the caller's values can cause), plugin fault (the graph's), internal.
    fn run(&self, inputs: &[Tensor], stop: Option<&Stop>) -> Result<Vec<Tensor>, Error>;

    /// Evaluations at once, at most.
    fn width(&self) -> usize;

    /// Whether an evaluation may run on the thread that asks, when it is short: one that waits for a device may not.
    fn is_on_cpu(&self) -> bool;
}

/// Tells an evaluation that nobody waits for it any more.
#[derive(Default)]
pub(crate) struct Stop {
    asked: AtomicBool,
    how: Mutex<Option<Arc<dyn Fn() + Send + Sync>>>,
}

impl Stop {
    /// What `ask` shall call: a backend that can end an evaluation sets it first.
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

impl fmt::Debug for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stop").field("asked", &self.is_asked()).finish()
    }
}
