//! Messages in gRPC's framing: a flag, a length, the message. Source: the gRPC over HTTP/2 specification,
//! "Length-Prefixed-Message".

use std::io;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::HeaderMap;
use modelhost_core::budget::Charge;
use modelhost_core::error::{Error, ErrorCode};
use tokio::io::AsyncReadExt;

use crate::body::{Content, Gathered, LATE};
use crate::coding::Coding;
use crate::watch::{Watch, clients};

/// Bytes of a message that are looked at for the model's name.
const START: usize = 4 << 10;

/// The same of a message in zstd, which gives nothing before a whole block of it is there.
const ZSTD_BLOCK: usize = 132 << 10;

/// Before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// A call's messages as they come.
pub(super) struct Frames {
    body: Incoming,
    /// What came and was not taken yet.
    rest: Bytes,
    /// What messages may be compressed with.
    coding: Option<Coding>,
    most: usize,
    watch: Option<Arc<Watch>>,
    /// For `rest`, and for what is gathered of a message's start.
    charge: Charge,
    /// Where the next message begins is not known any more.
    is_broken: bool,
}

/// A message of which the start has come.
pub(super) struct Begun {
    length: usize,
    coding: Option<Coding>,
    start: Bytes,
}

impl Begun {
    /// The message's plain start, as far as it came.
    pub(super) async fn start(&self) -> Bytes {
        let Some(coding) = self.coding else { return self.start.clone() };
        let mut plain = vec![0; START];
        let mut decoder = coding.decoder(io::Cursor::new(self.start.clone()));
        let mut length = 0;
        while let Some(room) = plain.get_mut(length..).filter(|room| !room.is_empty()) {
            match decoder.read(room).await {
                Ok(read) if read > 0 => length += read,
                Ok(_) | Err(_) => break, // it ends early, because only its start is here
            }
        }
        plain.truncate(length);
        plain.into()
    }
}

impl Frames {
    /// Messages of at most `most` bytes, before and after decompression. `charge`: for what comes before it is asked
    /// for. Errors: unsupported format, naming the coding.
    pub(super) fn new(
        headers: &HeaderMap,
        body: Incoming,
        most: usize,
        watch: Option<Arc<Watch>>,
        charge: Charge,
    ) -> Result<Self, Error> {
        let coding = headers.get("grpc-encoding").map(|name| name.to_str().unwrap_or("?"));
        let coding = match coding {
            None | Some("identity") => None,
            Some(name) => Some(Coding::grpc(name).ok_or_else(|| {
                let text = format!("grpc-encoding {name:?} is not one of identity, gzip, deflate and zstd");
                Error::new(ErrorCode::UnsupportedFormat, text)
            })?),
        };
        Ok(Self { body, rest: Bytes::new(), coding, most, watch, charge, is_broken: false })
    }

    /// Waits for the next message to begin; `None` where the caller ends the call. Errors: deadline exceeded, when it
    /// did not by `until`; too large; resource exhausted; invalid argument.
    pub(super) async fn begin(&mut self, until: Instant) -> Result<Option<Begun>, Error> {
        let watch = self.watch.clone();
        clients(watch.as_ref(), until, LATE, self.begin_now()).await
    }

    async fn begin_now(&mut self) -> Result<Option<Begun>, Error> {
        let mut prefix = Vec::with_capacity(PREFIX);
        while prefix.len() < PREFIX {
            if self.rest.is_empty() && !self.more().await? {
                return if prefix.is_empty() { Ok(None) } else { Err(early()) };
            }
            prefix.extend_from_slice(&self.rest.split_to(self.rest.len().min(PREFIX - prefix.len())));
        }
        let Some(([flag], length)) = prefix.split_first_chunk::<1>() else { return Err(early()) };
        let length = length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        let coding = match (flag, self.coding) {
            (0, _) => None,
            (1, Some(coding)) => Some(coding),
            (1, None) => return Err(Error::invalid("body: a compressed message without grpc-encoding")),
            _ => return Err(Error::invalid(format!("body: {flag} is no flag of a message"))),
        };
        if length > self.most {
            let text = format!("body: a message of {length} bytes is larger than the {} allowed", self.most);
            return Err(Error::new(ErrorCode::TooLarge, text));
        }
        let wanted = length.min(if coding == Some(Coding::Zstd) { ZSTD_BLOCK } else { START });
        if self.rest.len() < wanted {
            let mut joined = std::mem::take(&mut self.rest).to_vec();
            while joined.len() < wanted {
                if !self.more().await? {
                    return Err(early());
                }
                joined.extend_from_slice(&std::mem::take(&mut self.rest));
            }
            self.rest = joined.into();
        }
        let start = self.rest.slice(..wanted);
        Ok(Some(Begun { length, coding, start }))
    }

    /// The rest of a message. Errors: as [`Self::begin`]; resource exhausted.
    pub(super) async fn finish(
        &mut self,
        begun: &Begun,
        charge: Charge,
        until: Instant,
    ) -> Result<Content, Error> {
        let watch = self.watch.clone();
        self.is_broken = true;
        let (bytes, charge) =
            clients(watch.as_ref(), until, LATE, self.finish_now(begun.length, charge)).await?;
        self.is_broken = false;
        Ok(Content { bytes, charge, coding: begun.coding, most: self.most })
    }

    /// Whether what comes next cannot be read, because what came before was not read to its end.
    pub(super) fn is_broken(&self) -> bool {
        self.is_broken
    }

    async fn finish_now(&mut self, length: usize, mut charge: Charge) -> Result<(Bytes, Charge), Error> {
        if self.rest.len() >= length {
            charge.grow(length)?;
            let message = self.rest.split_to(length); // nothing to copy
            self.charge.shrink_to(self.rest.len());
            return Ok((message, charge));
        }
        let mut gathered = Gathered::new(charge, self.watch.as_ref());
        loop {
            let piece = self.rest.split_to(self.rest.len().min(length - gathered.len()));
            gathered.push(&piece, length)?;
            drop(piece);
            self.charge.shrink_to(self.rest.len());
            if gathered.len() == length {
                return Ok(gathered.finish());
            }
            if !self.more().await? {
                return Err(early());
            }
        }
    }

    /// Takes in the next piece of the body. False: there is none.
    async fn more(&mut self) -> Result<bool, Error> {
        while self.rest.is_empty() {
            let Some(frame) = self.body.frame().await else { return Ok(false) };
            let frame = frame.map_err(|error| Error::invalid(format!("body: {error}")))?;
            let piece = frame.into_data().unwrap_or_default();
            if let Some(watch) = &self.watch {
                watch.moved(piece.len());
            }
            self.charge.grow(piece.len())?;
            self.rest = piece;
        }
        Ok(true)
    }
}

fn early() -> Error {
    Error::invalid("body: it ends within a message")
}

/// A message with its prefix, as the pieces that are sent.
pub(super) fn framed(message: Bytes, is_compressed: bool) -> Vec<Bytes> {
    /// Copying so much costs less than another frame.
    const SMALL: usize = 16 << 10;
    let mut prefix = Vec::with_capacity(PREFIX + if message.len() <= SMALL { message.len() } else { 0 });
    prefix.push(u8::from(is_compressed));
    prefix.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    if message.len() > SMALL {
        return vec![prefix.into(), message];
    }
    prefix.extend_from_slice(&message);
    vec![prefix.into()]
}
