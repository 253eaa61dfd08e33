//! Reads graphs on threads of their own, a few at once, each within its time.
//!
//! Nothing can stop a backend that reads a file. So a graph comes here only after another process read it to its end
//! ([`Untried`](crate::Untried)). If it does not end here all the same, it keeps its thread and another graph gets
//! its place. There is a bound on that. Beyond it, a graph keeps its place too.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use modelhost_core::error::{Error, ErrorCode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::timeout_at;

/// Versions whose graphs are read at once.
const AT_ONCE: usize = 4;

/// Most threads that read for a caller who left, beside those.
const MOST_LOST: usize = 16;

/// The stack of a reader. An author decides how deep its calls go.
pub(crate) const STACK: usize = 8 << 20;

pub(crate) struct Readers {
    places: Arc<Semaphore>,
    lost: Arc<AtomicUsize>,
}

/// What a reading thread holds until its end.
enum Seat {
    Place { _permit: OwnedSemaphorePermit },
    Lost(Arc<AtomicUsize>),
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Self::Lost(lost) = self {
            lost.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Readers {
    pub(crate) fn new() -> Self {
        Self { places: Arc::new(Semaphore::new(AT_ONCE)), lost: Arc::default() }
    }

    /// Runs `read`, which blocks, once there is a place for it. Waits until `until` at the latest. Dropping the
    /// future gives up. Whatever `read` captured lives until it ends. Errors: resource exhausted, if no place became
    /// free; deadline exceeded; those of `read`.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        until: Instant,
        read: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let place = timeout_at(until.into(), Arc::clone(&self.places).acquire_owned()).await;
        let Ok(Ok(permit)) = place else {
            let why = format!("{AT_ONCE} versions' graphs are being read, and none of them was done in time");
            return Err(Error::new(ErrorCode::ResourceExhausted, why));
        };
        let seat = Arc::new(Mutex::new(Some(Seat::Place { _permit: permit })));
        let (reply, answer) = oneshot::channel();
        let held = Arc::clone(&seat);
        let work = move || {
            let result = catch_unwind(AssertUnwindSafe(read));
            drop(reply.send(result.unwrap_or_else(|_| Err(Error::fault("the backend panicked over it")))));
            drop(lock(&held).take());
        };
        let thread = std::thread::Builder::new().name("graph-reader".into()).stack_size(STACK).spawn(work);
        thread.map_err(|error| {
            Error::new(ErrorCode::ResourceExhausted, "this machine has no thread left").because(error)
        })?;
        let mut waiting = Waiting { seat, lost: &self.lost, is_done: false };
        let answer = timeout_at(until.into(), answer).await;
        waiting.is_done = answer.is_ok();
        match answer {
            Ok(answer) => answer.map_err(|_| Error::internal("a thread that read graphs was lost")).flatten(),
            Err(_) => Err(Error::new(ErrorCode::DeadlineExceeded, "it was not read in time")),
        }
    }
}

/// A caller that waits for a reader.
struct Waiting<'a> {
    seat: Arc<Mutex<Option<Seat>>>,
    lost: &'a Arc<AtomicUsize>,
    is_done: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        let mut seat = lock(&self.seat);
        let more = |lost| (lost < MOST_LOST).then_some(lost + 1);
        if seat.is_some() && self.lost.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok() {
            *seat = Some(Seat::Lost(Arc::clone(self.lost)));
        }
    }
}

fn lock(seat: &Mutex<Option<Seat>>) -> MutexGuard<'_, Option<Seat>> {
    seat.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    const SOON: Duration = Duration::from_secs(60);

    fn is_free(readers: &Readers) -> bool {
        readers.places.available_permits() == AT_ONCE && readers.lost.load(Ordering::Relaxed) == 0
    }

    async fn free(readers: &Readers) {
        while !is_free(readers) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn what_is_read_is_answered_and_a_panic_is_the_graphs_fault() {
        let readers = Readers::new();
        let until = Instant::now() + SOON;
        assert_eq!(readers.read(until, || Ok(7)).await, Ok(7));
        let panics = readers.read(until, || -> Result<(), Error> { panic!("over it") }).await;
        assert_eq!(panics.unwrap_err().code, ErrorCode::PluginFault);
        free(&readers).await;
    }

    #[tokio::test]
    async fn readers_that_never_end_are_counted_and_others_go_on() {
        let readers = Readers::new();
        let (end, ended) = mpsc::channel::<()>();
        let ended = Arc::new(Mutex::new(ended));
        let hang = || {
            let ended = Arc::clone(&ended);
            move || {
                ended.lock().unwrap().recv().ok();
                Ok(())
            }
        };
        for at in 0..MOST_LOST {
            assert_eq!(readers.lost.load(Ordering::Relaxed), at);
            let late = readers.read(Instant::now() + Duration::from_millis(1), hang()).await.unwrap_err();
            // On a slow machine no place may be free in time. Then no thread is lost, and the test asks again.
            assert!(
                matches!(late.code, ErrorCode::DeadlineExceeded | ErrorCode::ResourceExhausted),
                "{late}"
            );
        }
        assert_eq!(readers.read(Instant::now() + SOON, || Ok(7)).await, Ok(7), "another goes on");
        for _ in 0..AT_ONCE {
            readers.read(Instant::now() + Duration::from_millis(1), hang()).await.unwrap_err();
        }
        let refused = readers.read(Instant::now() + Duration::from_millis(1), || Ok(())).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::ResourceExhausted);
        assert_eq!(readers.lost.load(Ordering::Relaxed), MOST_LOST);
        drop(end);
        free(&readers).await;
    }

    #[tokio::test]
    async fn whoever_leaves_gives_its_place_to_others_at_once() {
        let readers = Readers::new();
        let (end, ended) = mpsc::channel::<()>();
        let (begin, begun) = mpsc::channel();
        let hang = move || {
            begin.send(()).unwrap();
            ended.recv().ok();
            Ok(())
        };
        tokio::select! {
            biased;
            _ = readers.read(Instant::now() + SOON, hang) => panic!("it hangs"),
            _ = tokio::task::spawn_blocking(move || begun.recv()) => {}
        }
        assert_eq!((readers.places.available_permits(), readers.lost.load(Ordering::Relaxed)), (AT_ONCE, 1));
        drop(end);
        free(&readers).await;
    }
}
