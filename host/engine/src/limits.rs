//! Bounds on what one instance may take.

use std::sync::Arc;

use modelhost_core::deployment::MemoryBudget;
use modelhost_core::error::Error;
use wasmtime::ResourceLimiter;

/// Why an instance got no more memory.
#[derive(Debug)]
pub(crate) enum Refused {
    /// Its own limit.
    Limit,
    /// Its deployment's instances have all that the deployment may have.
    Deployment(Error),
}

/// Bounds linear memory, and remembers why a guest got no more, for the error's text.
pub(crate) struct MemoryLimit {
    pub(crate) bytes: u64,
    budget: Arc<MemoryBudget>,
    /// Bytes that the instance has, all its memories together.
    pub(crate) taken: u64,
    pub(crate) refused: Option<Refused>,
}

impl MemoryLimit {
    pub(crate) fn new(bytes: u64, budget: &Arc<MemoryBudget>) -> Self {
        Self { bytes, budget: Arc::clone(budget), taken: 0, refused: None }
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        self.budget.give_back(self.taken);
    }
}

impl ResourceLimiter for MemoryLimit {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let more = desired.saturating_sub(current) as u64;
        if self.taken + more > self.bytes {
            self.refused = Some(Refused::Limit);
            return Ok(false);
        }
        if let Err(error) = self.budget.take(more) {
            self.refused = Some(Refused::Deployment(error));
            return Ok(false);
        }
        self.taken += more;
        Ok(true)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        _desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(true) // the pool's slot size is the bound
    }
}
