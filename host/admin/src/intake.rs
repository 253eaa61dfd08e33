//! Bodies on their way in: bounded in bytes, in time, and in what is done with them at once.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, BodyDataStream, HttpBody};
use bytes::BytesMut;
use futures_util::StreamExt;
use modelhost_core::artifact::Digest;
use modelhost_core::error::{Error, ErrorCode};
use modelhost_registry::Blobs;
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Largest JSON body: a manifest with its examples.
pub(crate) const MAX_JSON: usize = 4 << 20;

/// Largest JSON body of everything else. It is parsed where it arrived.
pub(crate) const SMALL_JSON: usize = 64 << 10;

/// Bytes of all JSON bodies that are read or worked on.
const MAX_JSON_AT_ONCE: usize = 32 << 20;

/// Files that are uploaded at once: others of the port's connections stay free.
const UPLOADS: usize = 32;

/// What is written of a file at a time, and the least that arrives of it within the time of one body.
const PIECE: usize = 256 << 10;

/// Threads that hash, write and parse.
const WORKERS: usize = 4;

/// What bounds bodies.
pub struct Intake {
    arrival: Duration,
    json: Arc<Semaphore>,
    uploads: Semaphore,
    workers: Semaphore,
}

/// A parsed body, charged to the host until it is dropped.
pub(crate) struct Charged<T> {
    value: T,
    _bytes: Option<OwnedSemaphorePermit>,
}

impl<T> Deref for Charged<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl Intake {
    /// `arrival`: the longest that a JSON body, or a piece of a file, takes to come.
    pub fn new(arrival: Duration) -> Self {
        Self {
            arrival,
            json: Arc::new(Semaphore::new(MAX_JSON_AT_ONCE)),
            uploads: Semaphore::new(UPLOADS),
            workers: Semaphore::new(WORKERS),
        }
    }

    /// Reads a JSON body of at most `most` bytes. Errors: too large; unavailable, while others' bodies fill the room;
    /// deadline exceeded; invalid argument.
    pub(crate) async fn json<T>(&self, body: Body, most: usize) -> Result<Charged<T>, Error>
    where
        T: for<'de> Deserialize<'de> + Send + 'static,
    {
        let mut chunks = body.into_data_stream();
        let (mut content, mut charge) = (BytesMut::new(), None::<OwnedSemaphorePermit>);
        let read = async {
            while let Some(chunk) = chunks.next().await {
                let chunk = chunk.map_err(broken)?;
                if content.len() + chunk.len() > most {
                    let text = format!("body: larger than the {most} bytes allowed");
                    return Err(Error::new(ErrorCode::TooLarge, text));
                }
                let bytes = u32::try_from(chunk.len()).unwrap_or(u32::MAX);
                let more = Arc::clone(&self.json).try_acquire_many_owned(bytes);
                let more =
                    more.map_err(|_| busy(format!("all bodies together may have {MAX_JSON_AT_ONCE} bytes")))?;
                match &mut charge {
                    Some(charge) => charge.merge(more),
                    None => charge = Some(more),
                }
                content.extend_from_slice(&chunk);
            }
            Ok(())
        };
        tokio::time::timeout(self.arrival, read).await.map_err(|_| late("body"))??;
        let is_small = content.len() <= SMALL_JSON;
        let parse = move || {
            let parsed = serde_json::from_slice(&content);
            parsed.map_err(|error| Error::invalid(format!("body: {error}")).because(error))
        };
        let value = if is_small { parse()? } else { self.work(parse).await? };
        Ok(Charged { value, _bytes: charge })
    }

    /// Streams a file to disk. A client that goes away leaves nothing. Errors: too large; unavailable, while many
    /// others upload; deadline exceeded, when it stands still; invalid argument, when it breaks off or has another
    /// digest; internal.
    pub(crate) async fn file(
        &self,
        blobs: &Blobs,
        digest: Digest,
        most: u64,
        body: Body,
    ) -> Result<(), Error> {
        let turn = self.uploads.try_acquire();
        let _turn = turn.map_err(|_| busy(format!("{UPLOADS} files are uploaded at once")))?;
        let too_large = || {
            Error::new(ErrorCode::TooLarge, format!("blob {digest} is larger than the {most} bytes allowed"))
        };
        if body.size_hint().lower() > most {
            return Err(too_large());
        }
        let mut upload = blobs.upload()?;
        let mut chunks = body.into_data_stream();
        loop {
            let next = tokio::time::timeout(self.arrival, piece(&mut chunks)).await;
            let piece = next.map_err(|_| late("upload"))??;
            if upload.bytes() + piece.len() as u64 > most {
                return Err(too_large());
            }
            if piece.is_empty() {
                break;
            }
            upload = self.work(move || upload.write(&piece).map(|()| upload)).await?;
        }
        self.work(move || upload.finish(Some(digest))).await.map(drop)
    }

    /// Does what blocks on a thread of its own, few at once. Errors: what `work` says; internal.
    pub(crate) async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let _worker = self.workers.acquire().await.map_err(|_| Error::internal("shutting down"))?;
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|error| Error::internal(format!("the work did not end: {error}")))?
    }
}

/// The next piece; empty at the end.
async fn piece(chunks: &mut BodyDataStream) -> Result<BytesMut, Error> {
    let mut piece = BytesMut::new();
    while piece.len() < PIECE
        && let Some(chunk) = chunks.next().await
    {
        piece.extend_from_slice(&chunk.map_err(broken)?);
    }
    Ok(piece)
}

fn broken(error: impl std::fmt::Display) -> Error {
    Error::invalid(format!("the body broke off: {error}"))
}

fn late(what: &str) -> Error {
    Error::new(ErrorCode::DeadlineExceeded, format!("{what}: it did not arrive in time"))
}

fn busy(text: String) -> Error {
    Error::new(ErrorCode::Unavailable, format!("{text}: try again later"))
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn all_bodies_together_are_bounded_until_they_are_done_with() {
        let intake = Intake::new(Duration::from_secs(600));
        let read = async |bytes: usize| {
            intake.json::<String>(Body::from(format!("\"{}\"", "x".repeat(bytes - 2))), MAX_JSON).await
        };
        let code = |refused: Result<Charged<String>, Error>| refused.err().map(|error| error.code);
        assert_eq!(code(read(MAX_JSON + 1).await), Some(ErrorCode::TooLarge));
        let mut held = Vec::new();
        for _ in 0..MAX_JSON_AT_ONCE / MAX_JSON {
            held.push(read(MAX_JSON).await.ok().unwrap());
        }
        assert_eq!(code(read(2).await), Some(ErrorCode::Unavailable));
        held.pop();
        assert_eq!(read(MAX_JSON).await.ok().unwrap().len(), MAX_JSON - 2);
    }

    #[tokio::test]
    async fn a_large_body_is_parsed_by_a_worker() {
        let intake = Intake::new(Duration::from_secs(600));
        let read = |bytes: usize| {
            intake.json::<String>(Body::from(format!("\"{}\"", "x".repeat(bytes - 2))), MAX_JSON)
        };
        let all_at_work = intake.workers.acquire_many(u32::try_from(WORKERS).unwrap()).await.unwrap();
        assert!(read(SMALL_JSON).now_or_never().is_some_and(|read| read.is_ok()));
        let mut large = std::pin::pin!(read(SMALL_JSON + 1));
        assert!(large.as_mut().now_or_never().is_none(), "it was parsed where it arrived");
        drop(all_at_work);
        assert_eq!(large.await.ok().unwrap().len(), SMALL_JSON - 1);
    }
}
