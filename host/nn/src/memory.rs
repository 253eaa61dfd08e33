//! What one version's graphs hold of memory: weights, and tensors that are being evaluated.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::tensor::Tensor;

/// One version's account. What a backend needs between input and output is counted on a GPU only, where it is capped by the
/// same limit.
pub(crate) struct Memory {
    /// Bytes that may be held.
    pub(crate) limit: u64,
    weights: AtomicU64,
    tensors: AtomicU64,
}

/// Bytes that are held until this is dropped.
pub struct Held {
    memory: Arc<Memory>,
    bytes: u64,
    of: fn(&Memory) -> &AtomicU64,
}

impl Memory {
    pub(crate) fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { limit, weights: AtomicU64::new(0), tensors: AtomicU64::new(0) })
    }

    /// Errors: too large.
    pub(crate) fn weights(self: &Arc<Self>, bytes: u64) -> Result<Held, Error> {
        self.hold(bytes, |memory| &memory.weights).map_err(|held| {
            Error::new(
                ErrorCode::TooLarge,
                format!(
                    "graphs of {bytes} bytes do not fit beside {held}: limit graph_mib = {} allows fewer",
                    self.limit >> 20
                ),
            )
        })
    }

    /// Errors: resource exhausted; `too_many`, when they would not fit alone either.
    pub(crate) fn tensors(self: &Arc<Self>, tensors: &[Tensor], too_many: ErrorCode) -> Result<Held, Error> {
        let bytes = tensors.iter().map(|tensor| tensor.data().len() as u64).sum();
        self.hold(bytes, |memory| &memory.tensors).map_err(|held| {
            let alone = bytes.saturating_add(self.held().0) <= self.limit;
            Error::new(
                if alone { ErrorCode::ResourceExhausted } else { too_many },
                format!(
                    "tensors of {bytes} bytes do not fit beside {held}: limit graph_mib = {} allows fewer",
                    self.limit >> 20
                ),
            )
        })
    }

    /// Bytes of weights, and of tensors.
    pub(crate) fn held(&self) -> (u64, u64) {
        (self.weights.load(Ordering::Relaxed), self.tensors.load(Ordering::Relaxed))
    }

    /// Errors: what is held already.
    fn hold(self: &Arc<Self>, bytes: u64, of: fn(&Self) -> &AtomicU64) -> Result<Held, u64> {
        of(self).fetch_add(bytes, Ordering::Relaxed);
        let held = Held { memory: Arc::clone(self), bytes, of };
        let (weights, tensors) = self.held();
        let all = weights.saturating_add(tensors);
        if all <= self.limit { Ok(held) } else { Err(all.saturating_sub(bytes)) }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        (self.of)(&self.memory).fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_and_tensors_share_a_limit_and_are_given_back() {
        let memory = Memory::new(10 << 20);
        let held = memory.weights(6 << 20).map_err(|error| error.message).unwrap();
        let Err(error) = memory.weights(5 << 20) else { panic!("it fits") };
        assert_eq!(
            error.message,
            "graphs of 5242880 bytes do not fit beside 6291456: limit graph_mib = 10 allows fewer"
        );
        assert_eq!(memory.held(), (6 << 20, 0));
        drop(held);
        assert_eq!(memory.held(), (0, 0));
    }
}
