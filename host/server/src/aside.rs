//! Lists, pages and other documents, which grow with what the host holds: made on threads that are less urgent than all
//! that serve, few at once, with few waiting. Who asks for one that waits to be made shares it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use modelhost_core::budget::{ByteBudget, Charge};
use modelhost_core::error::{Error, ErrorCode};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use crate::coding::Coding;

/// Documents that are made at once.
const AT_ONCE: usize = 2;

/// Documents that wait or are made.
const PLACES: usize = 64;

/// How much less urgent than the server's threads these are (`nice`); a deployment's are by 5.
const NICE: i32 = 10;

/// A document's bytes, charged while somebody holds them, and what compressed them.
#[derive(Debug, Clone)]
pub(crate) struct Document {
    pub(crate) bytes: Bytes,
    pub(crate) coding: Option<Coding>,
}

/// Which document: equal ones that are asked for at the same time are made once.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// Tells documents apart that are made of different things.
    pub(crate) name: String,
    /// What it may be compressed with.
    pub(crate) accepts: Option<Coding>,
}

type Job = BoxFuture<'static, Result<Document, Error>>;

type Making = Shared<Job>;

/// Documents that nobody began to make. One that is begun is not shared any more: it may be older than what its next
/// caller did.
#[derive(Default)]
struct Waiting {
    by_key: HashMap<Key, (u64, WeakShared<Job>)>,
    next: u64,
}

/// Where documents are made.
pub(crate) struct Aside {
    bytes: Arc<ByteBudget>,
    places: Arc<Semaphore>,
    waiting: Arc<Mutex<Waiting>>,
    /// Started when they are first needed.
    threads: OnceLock<Option<Runtime>>,
}

impl Aside {
    /// `bytes`: what documents are charged to.
    pub(crate) fn new(bytes: Arc<ByteBudget>) -> Self {
        let places = Arc::new(Semaphore::new(PLACES));
        Self { bytes, places, waiting: Arc::default(), threads: OnceLock::new() }
    }

    /// Makes a document, unless nobody waits for it any more. Errors: resource exhausted, at once when too many wait,
    /// or when its bytes find no room; deadline exceeded; as the work's; internal.
    pub(crate) async fn make(
        &self,
        key: Key,
        until: Instant,
        work: impl FnOnce() -> Result<Bytes, Error> + Send + 'static,
    ) -> Result<Document, Error> {
        let making = self.join(key, work)?;
        let late = |_| Error::new(ErrorCode::DeadlineExceeded, "the host was too busy with others' lists");
        tokio::time::timeout_at(until.into(), making).await.map_err(late)?
    }

    fn join(
        &self,
        key: Key,
        work: impl FnOnce() -> Result<Bytes, Error> + Send + 'static,
    ) -> Result<Making, Error> {
        let mut waiting = lock(&self.waiting);
        if let Some(making) = waiting.by_key.get(&key).and_then(|(_, making)| making.upgrade()) {
            return Ok(making);
        }
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|error| {
            let text = format!("{PLACES} lists and pages wait to be made: ask again");
            Error::new(ErrorCode::ResourceExhausted, text).because(error)
        })?;
        waiting.next += 1;
        let id = waiting.next;
        let entry = Entry { waiting: Arc::clone(&self.waiting), key: key.clone(), id };
        let (accepts, plain, coded) = (key.accepts, self.bytes.charge(), self.bytes.charge());
        let job = async move {
            let _place = place;
            drop(entry);
            document(work()?, accepts, plain, coded).await
        };
        let job = AbortOnDropHandle::new(match self.threads.get_or_init(start) {
            Some(threads) => threads.spawn(job),
            None => tokio::spawn(job),
        });
        let ended = |error| Error::internal("what was made aside did not end").because(error);
        let making = async move { job.await.map_err(ended)? }.boxed().shared();
        if let Some(weak) = making.downgrade() {
            waiting.by_key.insert(key, (id, weak));
        }
        Ok(making)
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if let Some(threads) = self.threads.take().flatten() {
            threads.shutdown_background();
        }
    }
}

/// A document's place among those that wait; it leaves when it is begun, or when nobody waits for it.
struct Entry {
    waiting: Arc<Mutex<Waiting>>,
    key: Key,
    id: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut waiting = lock(&self.waiting);
        if waiting.by_key.get(&self.key).is_some_and(|(id, _)| *id == self.id) {
            waiting.by_key.remove(&self.key);
        }
    }
}

fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Without threads of their own, documents are made on the server's.
fn start() -> Option<Runtime> {
    let mut threads = Builder::new_multi_thread();
    threads
        .worker_threads(AT_ONCE)
        .thread_name("aside")
        .on_thread_start(|| modelhost_serving::less_urgent(NICE));
    let started = threads.build();
    started.inspect_err(|error| tracing::warn!(%error, "lists and pages have no threads of their own")).ok()
}

async fn document(
    bytes: Bytes,
    accepts: Option<Coding>,
    mut plain: Charge,
    coded: Charge,
) -> Result<Document, Error> {
    plain.grow(bytes.len())?;
    if let Some(coding) = accepts
        && let Some((bytes, charge)) = coding.compress(&bytes, coded).await
    {
        return Ok(Document { bytes: Bytes::from_owner(Held(bytes, charge)), coding: Some(coding) });
    }
    Ok(Document { bytes: Bytes::from_owner(Held(bytes, plain)), coding: None })
}

/// Bytes and what they are charged to.
struct Held(Bytes, #[expect(dead_code, reason = "held")] Charge);

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    fn key(name: &str) -> Key {
        Key { name: name.to_owned(), accepts: None }
    }

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(600)
    }

    /// Keeps both threads busy until what comes back is dropped.
    async fn busy(aside: &Arc<Aside>) -> (Vec<mpsc::Sender<()>>, Vec<tokio::task::JoinHandle<()>>) {
        let (mut ends, mut busy) = (Vec::new(), Vec::new());
        for at in 0..AT_ONCE {
            let (end, ended) = mpsc::channel::<()>();
            let (begin, begun) = tokio::sync::oneshot::channel();
            let aside = Arc::clone(aside);
            let work = move || {
                begin.send(()).unwrap();
                ended.recv().unwrap_err(); // its sender is dropped
                Ok(Bytes::new())
            };
            busy.push(tokio::spawn(async move {
                aside.make(key(&format!("busy {at}")), later(), work).await.unwrap();
            }));
            begun.await.unwrap();
            ends.push(end);
        }
        (ends, busy)
    }

    #[tokio::test]
    async fn few_wait_and_the_rest_is_refused_at_once() {
        let aside = Arc::new(Aside::new(ByteBudget::new("this host", 1 << 20)));
        let (ends, busy) = busy(&aside).await;
        let waiting: Vec<_> = (AT_ONCE..PLACES)
            .map(|at| aside.join(key(&at.to_string()), || Ok(Bytes::new())).unwrap())
            .collect();
        let refused = aside.make(key("one more"), later(), || Ok(Bytes::new())).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::ResourceExhausted);
        let late = aside.make(key("5"), Instant::now(), || Ok(Bytes::new())).await.unwrap_err();
        assert_eq!(late.code, ErrorCode::DeadlineExceeded);
        drop(ends);
        for made in waiting {
            made.await.unwrap();
        }
        futures_util::future::join_all(busy).await;
        assert_eq!(aside.places.available_permits(), PLACES);
        aside.make(key("one more"), later(), || Ok(Bytes::new())).await.unwrap();
    }

    #[tokio::test]
    async fn equal_documents_are_made_once_and_charged_once() {
        let budget = ByteBudget::new("this host", 1 << 20);
        let aside = Arc::new(Aside::new(Arc::clone(&budget)));
        let (ends, _busy) = busy(&aside).await;
        let first = aside.join(key("list"), || Ok(Bytes::from_static(b"first"))).unwrap();
        let second = aside.join(key("list"), || Ok(Bytes::from_static(b"second"))).unwrap();
        let other = Key { accepts: Some(Coding::Gzip), ..key("list") };
        let other = aside.join(other, || Ok(Bytes::from_static(b"other"))).unwrap();
        drop(ends);
        let (first, second, other) = (first.await.unwrap(), second.await.unwrap(), other.await.unwrap());
        assert_eq!(
            (&first.bytes[..], &second.bytes[..], &other.bytes[..]),
            (&b"first"[..], &b"first"[..], &b"other"[..])
        );
        assert_eq!(budget.used(), 10);
        let third = aside.make(key("list"), later(), || Ok(Bytes::from_static(b"third"))).await.unwrap();
        assert_eq!(&third.bytes[..], b"third", "what was made before is not shown again");
        drop((first, other, third));
        assert_eq!(budget.used(), 5, "the second caller still has it");
        drop(second);
        assert_eq!(budget.used(), 0);
        let refused = aside.make(key("large"), later(), || Ok(vec![0; 2 << 20].into())).await.unwrap_err();
        assert_eq!((refused.code, budget.used()), (ErrorCode::ResourceExhausted, 0));
    }

    #[tokio::test]
    async fn what_nobody_waits_for_is_not_made() {
        let aside = Arc::new(Aside::new(ByteBudget::new("this host", 1 << 20)));
        let (ends, _busy) = busy(&aside).await;
        let left = aside.join(key("list"), || panic!("made for nobody")).unwrap();
        drop(left);
        let made = aside.join(key("list"), || Ok(Bytes::from_static(b"anew"))).unwrap();
        drop(ends);
        assert_eq!(&made.await.unwrap().bytes[..], b"anew");
        assert!(lock(&aside.waiting).by_key.is_empty());
    }
}
