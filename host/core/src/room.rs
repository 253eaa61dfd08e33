//! Memory that grows with what a caller or a guest sent: charged before it is made.

use std::cell::RefCell;

use bytes::Bytes;

use crate::budget::{ByteBudget, Charge};
use crate::error::Error;

/// Least room that is made at once.
const LEAST: usize = 64;

/// More than this left over in what is finished is given back.
const SLACK: usize = 64 << 10;

/// Where one request is read or one answer is written. What it takes stays taken until it is given back, or until the
/// charge behind it ends.
#[derive(Debug)]
pub struct Room(RefCell<Charge>);

impl Room {
    /// Takes from this charge's budget, besides what the charge has already.
    pub fn of(charge: Charge) -> Self {
        Self(RefCell::new(charge))
    }

    /// Has no end: for what is bounded otherwise.
    pub fn unbounded() -> Self {
        Self::of(ByteBudget::new("nobody", u64::MAX).charge())
    }

    /// Takes so many bytes more. Errors: resource exhausted.
    pub fn take(&self, bytes: usize) -> Result<(), Error> {
        self.0.borrow_mut().grow(bytes)
    }

    /// Gives back so many, whose memory is gone.
    pub fn give_back(&self, bytes: usize) {
        let mut charge = self.0.borrow_mut();
        let left = charge.bytes().saturating_sub(bytes as u64);
        charge.shrink_to(usize::try_from(left).unwrap_or(usize::MAX));
    }

    /// Makes room for so many bytes more in `buffer`, and always twice as much. Errors: resource exhausted.
    #[inline]
    pub fn reserve(&self, buffer: &mut Vec<u8>, more: usize) -> Result<(), Error> {
        if buffer.capacity() - buffer.len() < more { self.enlarge(buffer, more) } else { Ok(()) }
    }

    #[cold]
    fn enlarge(&self, buffer: &mut Vec<u8>, more: usize) -> Result<(), Error> {
        let capacity = buffer.capacity();
        let wanted = (2 * capacity).max(buffer.len().saturating_add(more)).max(LEAST);
        self.take(wanted - capacity)?;
        buffer.reserve_exact(wanted - buffer.len());
        Ok(())
    }

    /// A buffer of this room as it stays; what is left over in it is given back where it is much.
    pub fn finish(&self, mut buffer: Vec<u8>) -> Bytes {
        let capacity = buffer.capacity();
        if capacity - buffer.len() > SLACK {
            buffer.shrink_to_fit();
            self.give_back(capacity - buffer.capacity());
        }
        buffer.into()
    }

    /// What was taken in all.
    pub fn into_charge(self) -> Charge {
        self.0.into_inner()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorCode;

    #[test]
    fn room_is_taken_before_it_is_made_and_left_over_room_comes_back() {
        let budget = ByteBudget::new("this host", 4 << 20);
        let room = Room::of(budget.charge());
        let mut buffer = Vec::new();
        room.reserve(&mut buffer, 1).unwrap();
        assert_eq!((budget.used(), buffer.capacity()), (64, 64));
        buffer.resize(64, 1);
        room.reserve(&mut buffer, 1 << 20).unwrap();
        assert_eq!(budget.used(), (1 << 20) + 64);
        assert_eq!(room.reserve(&mut buffer, 4 << 20).unwrap_err().code, ErrorCode::ResourceExhausted);
        assert_eq!(buffer.capacity(), (1 << 20) + 64, "what was refused was not made");
        assert_eq!(room.finish(buffer), vec![1; 64]);
        assert!(budget.used() < 1024, "{budget:?}");
        drop(room.into_charge());
        assert_eq!(budget.used(), 0);
    }
}
