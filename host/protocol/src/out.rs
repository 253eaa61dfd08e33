//! What an encoder writes into: as long as there is room, which is taken before it is made.

use modelhost_core::error::Error;
use modelhost_core::room::Room;

/// An answer on its way out. Where room is refused nothing more is written: loops look with [`Self::check`], and
/// [`Self::finish`] tells it.
pub(crate) struct Out<'r> {
    bytes: Vec<u8>,
    room: &'r Room,
    refused: Option<Error>,
}

impl<'r> Out<'r> {
    /// `expected`: how long it will be, as far as one can tell.
    pub(crate) fn new(room: &'r Room, expected: usize) -> Self {
        // Without so much room at once it may still be short enough.
        let capacity = room.take(expected).map_or(0, |()| expected);
        Self { bytes: Vec::with_capacity(capacity), room, refused: None }
    }

    #[inline]
    pub(crate) fn push(&mut self, byte: u8) {
        if self.has_room(1) {
            self.bytes.push(byte);
        }
    }

    #[inline]
    pub(crate) fn extend_from_slice(&mut self, bytes: &[u8]) {
        if self.has_room(bytes.len()) {
            self.bytes.extend_from_slice(bytes);
        }
    }

    #[inline]
    fn has_room(&mut self, more: usize) -> bool {
        self.bytes.capacity() - self.bytes.len() >= more && self.refused.is_none() || self.enlarge(more)
    }

    #[cold]
    fn enlarge(&mut self, more: usize) -> bool {
        if self.refused.is_none() {
            self.refused = self.room.reserve(&mut self.bytes, more).err();
        }
        self.refused.is_none()
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Errors: resource exhausted, when room was refused.
    #[inline]
    pub(crate) fn check(&self) -> Result<(), Error> {
        match &self.refused {
            None => Ok(()),
            Some(refused) => Err(refused.clone()),
        }
    }

    /// What was written. Errors: resource exhausted, when room was refused.
    pub(crate) fn finish(self) -> Result<bytes::Bytes, Error> {
        self.check()?;
        Ok(self.room.finish(self.bytes))
    }
}

#[cfg(test)]
mod tests {
    use modelhost_core::budget::ByteBudget;
    use modelhost_core::error::ErrorCode;

    use super::*;

    #[test]
    fn nothing_is_written_beyond_the_room() {
        let budget = ByteBudget::new("this host", 1000);
        let room = Room::of(budget.charge());
        let mut out = Out::new(&room, 2000);
        for _ in 0..10_000 {
            out.extend_from_slice(b"a line\n");
            out.push(b'x');
        }
        assert!(out.len() <= 1000 && out.bytes.capacity() <= 1000);
        assert_eq!(out.check().unwrap_err().code, ErrorCode::ResourceExhausted);
        assert_eq!(out.finish().unwrap_err().code, ErrorCode::ResourceExhausted);
    }

    #[test]
    fn all_of_it_comes_out() {
        let room = Room::unbounded();
        let mut out = Out::new(&room, 3);
        out.extend_from_slice(b"abcd");
        out.push(b'e');
        assert_eq!(out.finish().unwrap(), "abcde");
    }
}
