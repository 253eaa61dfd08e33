//! Bytes of requests and answers that are held at once, by a deployment and by the host.
//!
//! A quarter of a budget is kept for small requests: a few callers that send a lot cannot keep out all others.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::error::{Error, ErrorCode};

/// A charge that holds more bytes than this gets nothing of the part that is kept for small ones.
const SMALL: u64 = 256 << 10;

/// How many bytes may be held at once. One budget may lie within another.
#[derive(Debug)]
pub struct ByteBudget {
    owner: String,
    limit: u64,
    used: AtomicU64,
    within: Option<Arc<ByteBudget>>,
    /// Which of the budgets within this one, itself included, refused somebody lately.
    short: Mutex<Vec<Weak<ByteBudget>>>,
}

impl ByteBudget {
    /// At most `limit` bytes. The message names `owner` when they do not suffice, e.g. `this host`.
    pub fn new(owner: impl Into<String>, limit: u64) -> Arc<Self> {
        Self::make(owner.into(), limit, None)
    }

    /// A part of this budget: the bytes that it takes are taken here too.
    pub fn part(self: &Arc<Self>, owner: impl Into<String>, limit: u64) -> Arc<Self> {
        Self::make(owner.into(), limit, Some(Arc::clone(self)))
    }

    fn make(owner: String, limit: u64, within: Option<Arc<Self>>) -> Arc<Self> {
        Arc::new(Self { owner, limit, used: AtomicU64::new(0), within, short: Mutex::default() })
    }

    /// Takes nothing yet.
    pub fn charge(self: &Arc<Self>) -> Charge {
        Charge { budget: Arc::clone(self), bytes: 0 }
    }

    /// Bytes that are held now.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Bytes that may be held at most.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Whether what this budget takes is taken from the other one too.
    pub fn is_within(&self, other: &Self) -> bool {
        std::ptr::eq(self, other) || self.within.as_ref().is_some_and(|outer| outer.is_within(other))
    }

    /// Those of this budget and its parts that refused somebody since the last call who alone would have found room:
    /// there the bytes are missing that others hold.
    pub fn take_short(&self) -> Vec<Arc<Self>> {
        let short = std::mem::take(&mut *self.short.lock().unwrap_or_else(PoisonError::into_inner));
        short.iter().filter_map(Weak::upgrade).collect()
    }

    fn is_short(self: &Arc<Self>) {
        let mut whole = self;
        while let Some(outer) = &whole.within {
            whole = outer;
        }
        let mut short = whole.short.lock().unwrap_or_else(PoisonError::into_inner);
        if !short.iter().any(|noted| std::ptr::eq(noted.as_ptr(), Arc::as_ptr(self))) {
            short.push(Arc::downgrade(self));
        }
    }

    /// Takes more for somebody who then holds `all`.
    fn take(self: &Arc<Self>, more: u64, all: u64) -> Result<(), Error> {
        let limit = if all <= SMALL { self.limit } else { self.limit - self.limit / 4 };
        if all > limit {
            return Err(self.full(self.used()));
        }
        let before = self.used.fetch_add(more, Ordering::Relaxed);
        let taken = match &self.within {
            _ if before + more > limit => {
                self.is_short();
                Err(self.full(before))
            }
            Some(outer) => outer.take(more, all),
            None => Ok(()),
        };
        if taken.is_err() {
            self.used.fetch_sub(more, Ordering::Relaxed);
        }
        taken
    }

    fn full(&self, used: u64) -> Error {
        let (used, limit) = (used >> 20, self.limit >> 20);
        let text =
            format!("{} holds {used} of the {limit} MiB that requests and answers may take", self.owner);
        Error::new(ErrorCode::ResourceExhausted, text)
    }

    fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        if let Some(outer) = &self.within {
            outer.give_back(bytes);
        }
    }
}

/// Bytes that are held. They are given back when it is dropped.
#[derive(Debug)]
pub struct Charge {
    budget: Arc<ByteBudget>,
    bytes: u64,
}

impl Charge {
    /// Takes more. Errors: resource exhausted, naming the owner of the budget that is used up; nothing more is taken
    /// then.
    pub fn grow(&mut self, bytes: usize) -> Result<(), Error> {
        let bytes = bytes as u64;
        if bytes == 0 {
            return Ok(());
        }
        self.budget.take(bytes, self.bytes.saturating_add(bytes))?;
        self.bytes += bytes;
        Ok(())
    }

    /// Gives back what is above this.
    pub fn shrink_to(&mut self, bytes: usize) {
        let more = self.bytes.saturating_sub(bytes as u64);
        if more > 0 {
            self.budget.give_back(more);
            self.bytes -= more;
        }
    }

    /// Bytes that it holds.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whose bytes they are.
    pub fn budget(&self) -> &Arc<ByteBudget> {
        &self.budget
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_takes_from_the_whole() {
        let host = ByteBudget::new("this host", 10);
        let (one, two) = (host.part("deployment a", 8), host.part("deployment b", 8));
        let (mut a, mut b) = (one.charge(), two.charge());
        assert_eq!(a.grow(6), Ok(()));
        assert!(b.grow(5).unwrap_err().message.starts_with("this host holds"));
        assert_eq!((host.used(), two.used()), (6, 0), "what is refused is not taken");
        assert!(a.grow(3).unwrap_err().message.starts_with("deployment a holds"));
        assert_eq!(b.grow(4), Ok(()));
        drop(a);
        assert_eq!((host.used(), one.used(), two.used()), (4, 0, 4));
        b.shrink_to(1);
        assert_eq!((host.used(), two.used()), (1, 1));
        assert!(b.grow(usize::MAX).is_err());
        drop(b);
        assert_eq!(host.used(), 0);
    }

    #[test]
    fn who_is_short_is_known_once() {
        let host = ByteBudget::new("this host", 10);
        let (one, two) = (host.part("deployment a", 8), host.part("deployment b", 8));
        let (mut a, mut b) = (one.charge(), two.charge());
        let owners = || host.take_short().iter().map(|short| short.owner.clone()).collect::<Vec<_>>();
        assert_eq!(a.grow(6), Ok(()));
        assert!(a.grow(9).is_err() && two.charge().grow(9).is_err());
        assert!(owners().is_empty(), "who wants more than there ever is cannot be helped");
        let mut more = one.charge();
        assert!(more.grow(3).is_err() && more.grow(3).is_err() && b.grow(5).is_err());
        assert_eq!(owners(), ["deployment a", "this host"]);
        assert!(owners().is_empty());
        assert!(one.is_within(&one) && one.is_within(&host) && !host.is_within(&one) && !one.is_within(&two));
    }

    #[test]
    fn what_is_large_leaves_room_for_what_is_small() {
        let budget = ByteBudget::new("this host", 4 << 20);
        let (mut large, mut small) = (budget.charge(), budget.charge());
        assert!(large.grow((3 << 20) + 1).is_err());
        assert_eq!(large.grow(3 << 20), Ok(()));
        assert!(budget.charge().grow((256 << 10) + 1).is_err());
        assert_eq!(small.grow(256 << 10), Ok(()));
    }
}
