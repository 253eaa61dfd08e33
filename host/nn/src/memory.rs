//! Counts the memory of a version's graphs: weights, tensors of running evaluations, and what these need between
//! inputs and outputs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::tensor::Tensor;
use modelhost_onnx::Leave;

use crate::backend::{Stop, left};

/// The account of one version. An evaluation by tract is counted ([`Taking`]). CUDA has the same limit. The needs of
/// ONNX Runtime on the processor and of WebGPU are not known.
pub(crate) struct Memory {
    /// The bound in bytes.
    pub(crate) limit: u64,
    weights: AtomicU64,
    tensors: AtomicU64,
}

/// Counted bytes. Dropping this gives them back.
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
        self.hold(bytes, |memory| &memory.weights).map_err(|held| self.too_large(bytes, held))
    }

    fn too_large(&self, bytes: u64, held: u64) -> Error {
        let mib = self.limit >> 20;
        let text =
            format!("graphs of {bytes} bytes do not fit beside {held}: limit graph_mib = {mib} allows fewer");
        Error::new(ErrorCode::TooLarge, text)
    }

    /// Errors: resource exhausted; `too_many`, if they exceed the limit alone.
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

    /// Bytes of weights and of tensors.
    pub(crate) fn held(&self) -> (u64, u64) {
        (self.weights.load(Ordering::Relaxed), self.tensors.load(Ordering::Relaxed))
    }

    /// The account of one evaluation, empty at first.
    pub(crate) fn taking<'a>(self: &Arc<Self>, stop: Option<&'a Stop>) -> Taking<'a> {
        let held = Held { memory: Arc::clone(self), bytes: 0, of: |memory| &memory.tensors };
        Taking { held, stop }
    }

    /// Errors: the bytes that are held already.
    fn hold(self: &Arc<Self>, bytes: u64, of: fn(&Self) -> &AtomicU64) -> Result<Held, u64> {
        self.add(bytes, of)?;
        Ok(Held { memory: Arc::clone(self), bytes, of })
    }

    fn add(&self, bytes: u64, of: fn(&Self) -> &AtomicU64) -> Result<(), u64> {
        let all = || {
            let (weights, tensors) = self.held();
            weights.saturating_add(tensors)
        };
        if bytes > self.limit {
            return Err(all());
        }
        of(self).fetch_add(bytes, Ordering::Relaxed);
        let all = all();
        if all <= self.limit {
            return Ok(());
        }
        of(self).fetch_sub(bytes, Ordering::Relaxed);
        Err(all.saturating_sub(bytes))
    }
}

impl Held {
    /// Raises the number of bytes, if weights turn out to be larger. Errors: too large.
    pub(crate) fn grow_to(&mut self, bytes: u64) -> Result<(), Error> {
        let more = bytes.saturating_sub(self.bytes);
        self.grow(more).map_err(|held| self.memory.too_large(more, held))
    }

    /// Errors: the bytes that are held already.
    fn grow(&mut self, bytes: u64) -> Result<(), u64> {
        self.memory.add(bytes, self.of)?;
        self.bytes += bytes;
        Ok(())
    }

    fn shrink(&mut self, bytes: u64) {
        let bytes = bytes.min(self.bytes);
        (self.of)(&self.memory).fetch_sub(bytes, Ordering::Relaxed);
        self.bytes -= bytes;
    }
}

/// Counts what an evaluation needs between its inputs and outputs.
pub(crate) struct Taking<'a> {
    held: Held,
    stop: Option<&'a Stop>,
}

impl Leave for Taking<'_> {
    /// Errors: resource exhausted; plugin fault, if it exceeds the limit alone.
    fn take(&mut self, bytes: u64) -> Result<(), Error> {
        let own = self.held.bytes.saturating_add(bytes);
        self.held.grow(bytes).map_err(|held| {
            let memory = &self.held.memory;
            let alone = own.saturating_add(memory.held().0) <= memory.limit;
            let code = if alone { ErrorCode::ResourceExhausted } else { ErrorCode::PluginFault };
            let mib = memory.limit >> 20;
            Error::new(
                code,
                format!(
                    "an evaluation that takes {own} bytes between its inputs and outputs does not fit beside {held}: \
                     limit graph_mib = {mib} allows fewer"
                ),
            )
        })
    }

    fn give_back(&mut self, bytes: u64) {
        self.held.shrink(bytes);
    }

    fn go_on(&self) -> Result<(), Error> {
        if self.stop.is_some_and(Stop::is_asked) { Err(left()) } else { Ok(()) }
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

    #[test]
    fn evaluations_share_what_is_left_and_one_that_never_fits_is_the_graphs_fault() {
        let memory = Memory::new(10 << 20);
        let _weights = memory.weights(2 << 20).map_err(|error| error.message).unwrap();
        let (mut one, mut other) = (memory.taking(None), memory.taking(None));
        assert_eq!(one.take(5 << 20), Ok(()));
        assert_eq!(other.take(4 << 20).unwrap_err().code, ErrorCode::ResourceExhausted);
        assert_eq!(one.take(u64::MAX).unwrap_err().code, ErrorCode::PluginFault);
        one.give_back(3 << 20);
        assert_eq!(other.take(4 << 20), Ok(()));
        assert_eq!(memory.held(), (2 << 20, 6 << 20));
        drop((one, other));
        assert_eq!(memory.held().1, 0);
        let stop = Stop::default();
        let taking = memory.taking(Some(&stop));
        assert_eq!(taking.go_on(), Ok(()));
        stop.ask();
        assert_eq!(taking.go_on().unwrap_err().code, ErrorCode::DeadlineExceeded);
    }
}
