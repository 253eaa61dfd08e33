//! Bounds the memory of an instance.

use std::sync::Arc;

use bytes::Bytes;
use modelhost_core::deployment::MemoryBudget;
use modelhost_core::error::Error;
use wasmtime::ResourceLimiter;

/// Why an instance got no more memory.
#[derive(Debug)]
pub(crate) enum Refused {
    /// It reached its own limit.
    Limit,
    /// Its deployment's instances have used up their memory.
    Deployment(Error),
}

/// Bytes of a table element.
const TABLE_ELEMENT_BYTES: usize = 8;

/// Bounds the memories and tables of an instance. Remembers a refusal for the error's text.
pub(crate) struct MemoryLimit {
    pub(crate) bytes: u64,
    budget: Arc<MemoryBudget>,
    /// Bytes of all its memories and tables.
    pub(crate) taken: u64,
    /// Bytes of the host that are being copied into it.
    lent: u64,
    pub(crate) refused: Option<Refused>,
}

impl MemoryLimit {
    pub(crate) fn new(bytes: u64, budget: &Arc<MemoryBudget>) -> Self {
        Self { bytes, budget: Arc::clone(budget), taken: 0, lent: 0, refused: None }
    }

    /// The memory that the deployment's instances share.
    pub(crate) fn budget(&self) -> &Arc<MemoryBudget> {
        &self.budget
    }

    /// Counts what a host call hands to the guest, until the next such call or the guest's answer. The guest's
    /// allocator runs during the copy, for as long as it likes. Errors: resource exhausted, if the deployment's
    /// memory is used up.
    pub(crate) fn lend(&mut self, bytes: usize) -> Result<(), Error> {
        self.settle();
        if bytes >= COUNTED_BYTES {
            self.budget.take(bytes as u64)?;
            self.lent = bytes as u64;
        }
        Ok(())
    }

    /// The copy is done.
    pub(crate) fn settle(&mut self) {
        self.budget.give_back(std::mem::take(&mut self.lent));
    }

    fn take(&mut self, more: u64) -> bool {
        if self.taken.saturating_add(more) > self.bytes {
            self.refused = Some(Refused::Limit);
            return false;
        }
        if let Err(error) = self.budget.take(more) {
            self.refused = Some(Refused::Deployment(error));
            return false;
        }
        self.taken += more;
        true
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        self.budget.give_back(self.taken + self.lent);
    }
}

impl ResourceLimiter for MemoryLimit {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(self.take(desired.saturating_sub(current) as u64))
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(self.take(desired.saturating_sub(current).saturating_mul(TABLE_ELEMENT_BYTES) as u64))
    }
}

/// From so many bytes on, data between a guest and the host counts in the deployment's memory until it is dropped.
pub(crate) const COUNTED_BYTES: usize = 64 << 10;

/// Bytes from a guest, counted like its memory.
struct Counted {
    content: Vec<u8>,
    budget: Arc<MemoryBudget>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.content
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.budget.give_back(self.content.len() as u64);
    }
}

/// Counts bytes from a guest. Errors: resource exhausted, if the deployment's memory is used up.
pub(crate) fn counted(content: Vec<u8>, budget: &Arc<MemoryBudget>) -> Result<Bytes, Error> {
    budget.take(content.len() as u64)?;
    Ok(Bytes::from_owner(Counted { content, budget: Arc::clone(budget) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_handed_over_counts_until_it_is_let_go() {
        let budget = Arc::new(MemoryBudget::new(1 << 20));
        let large = counted(vec![2; 1 << 20], &budget).unwrap();
        assert_eq!((budget.used(), large[0]), (1 << 20, 2));
        let part = large.slice(..1);
        drop(large);
        assert!(counted(vec![3; 1 << 20], &budget).is_err(), "a part keeps the whole");
        drop(part);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn what_is_lent_counts_until_it_is_copied() {
        let budget = Arc::new(MemoryBudget::new(1 << 20));
        let mut limit = MemoryLimit::new(1 << 30, &budget);
        assert!(limit.lend(COUNTED_BYTES - 1).is_ok());
        assert_eq!(budget.used(), 0, "small");
        for _ in 0..2 {
            assert!(limit.lend(1 << 20).is_ok(), "the next one ends the one before");
            assert_eq!(budget.used(), 1 << 20);
        }
        let mut other = MemoryLimit::new(1 << 30, &budget);
        assert!(other.lend(1 << 20).is_err(), "both are of one deployment");
        limit.settle();
        assert!(other.lend(1 << 20).is_ok());
        drop((limit, other));
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn tables_count_as_memory() {
        let budget = Arc::new(MemoryBudget::new(100));
        let mut limit = MemoryLimit::new(1000, &budget);
        assert!(limit.table_growing(0, 10, None).unwrap());
        assert!(!limit.memory_growing(0, 21, None).unwrap());
        assert!(matches!(limit.refused, Some(Refused::Deployment(_))));
        drop(limit);
        assert_eq!(budget.used(), 0);
    }
}
