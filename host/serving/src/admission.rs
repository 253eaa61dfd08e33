//! Bounds on what runs and waits. Beyond them the answer is a fast refusal.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::infer::Deadline;
use modelhost_core::ports::Recorder;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Lets `concurrency` requests run and `queue` wait.
pub(crate) struct Admission {
    running: Semaphore,
    recorder: Arc<dyn Recorder>,
    queue: u32,
}

impl Admission {
    /// The recorder holds the count of those that wait.
    pub(crate) fn new(concurrency: u32, queue: u32, recorder: Arc<dyn Recorder>) -> Self {
        Self { running: Semaphore::new(concurrency as usize), recorder, queue }
    }

    /// Waits for a place; the permit gives it back when dropped.
    /// Errors: resource exhausted at once when the queue is full; deadline exceeded while waiting.
    pub(crate) async fn enter(&self, deadline: Deadline) -> Result<SemaphorePermit<'_>, Error> {
        if let Ok(permit) = self.running.try_acquire() {
            return Ok(permit);
        }
        let _place = self.queue_up()?;
        match tokio::time::timeout_at(deadline.instant().into(), self.running.acquire()).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) => Err(Error::new(ErrorCode::Unavailable, "the host is shutting down")),
            Err(_) => Err(Error::new(
                ErrorCode::DeadlineExceeded,
                "the request's deadline passed while it waited for a free instance",
            )),
        }
    }

    fn queue_up(&self) -> Result<Place<'_>, Error> {
        let waiting = self.recorder.waiting();
        let before = waiting.fetch_add(1, Ordering::Relaxed);
        let place = Place(waiting);
        if before < self.queue {
            return Ok(place);
        }
        let queue = self.queue;
        Err(Error::new(
            ErrorCode::ResourceExhausted,
            format!("every instance is busy and {queue} requests wait already"),
        ))
    }
}

struct Place<'a>(&'a AtomicU32);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use modelhost_core::event::{Comparison, Prediction, Statistics};

    use super::*;

    #[derive(Default)]
    struct Counts(AtomicU32);

    impl Recorder for Counts {
        fn prediction(&self, _: &Prediction) {}
        fn comparison(&self, _: &Comparison) {}
        fn codec(&self, _: Duration, _: Duration) {}
        fn waiting(&self) -> &AtomicU32 {
            &self.0
        }
        fn cache_hit(&self, _: Duration) {}
        fn cache_miss(&self, _: Duration) {}
        fn statistics(&self) -> Statistics {
            Statistics::default()
        }
    }

    fn soon() -> Deadline {
        Deadline::after(Instant::now(), Duration::from_millis(20))
    }

    #[tokio::test]
    async fn refuses_at_once_beyond_the_queue() {
        let admission = Admission::new(1, 1, Arc::new(Counts::default()));
        let running = admission.enter(soon()).await.unwrap();
        let waiting = admission.enter(Deadline::after(Instant::now(), Duration::from_secs(60)));
        tokio::pin!(waiting);
        assert!(futures_poll(waiting.as_mut()).await.is_none());
        let refused = admission.enter(soon()).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::ResourceExhausted);
        drop(running);
        assert!(waiting.await.is_ok());
        assert_eq!(admission.recorder.waiting().load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn gives_up_at_the_deadline() {
        let admission = Admission::new(1, 1, Arc::new(Counts::default()));
        let _running = admission.enter(soon()).await.unwrap();
        assert_eq!(admission.enter(soon()).await.unwrap_err().code, ErrorCode::DeadlineExceeded);
    }

    /// Polls once.
    async fn futures_poll<F: Future>(future: std::pin::Pin<&mut F>) -> Option<F::Output> {
        let mut future = Some(future);
        std::future::poll_fn(move |context| {
            let poll = future.take().map(|future| future.poll(context));
            std::task::Poll::Ready(match poll {
                Some(std::task::Poll::Ready(output)) => Some(output),
                _ => None,
            })
        })
        .await
    }
}
