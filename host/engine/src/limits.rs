//! Bounds on what one instance may take.

use wasmtime::ResourceLimiter;

/// Bounds linear memory, and remembers when a guest hit the bound, for the error's text.
pub(crate) struct MemoryLimit {
    bytes: u64,
    pub(crate) refused: bool,
}

impl MemoryLimit {
    pub(crate) fn new(bytes: u64) -> Self {
        Self { bytes, refused: false }
    }
}

impl ResourceLimiter for MemoryLimit {
    fn memory_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let fits = desired as u64 <= self.bytes;
        self.refused |= !fits;
        Ok(fits)
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
