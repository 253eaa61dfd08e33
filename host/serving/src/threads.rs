//! Where predictions run: short ones on the server's threads, long ones on threads of their deployment.
//!
//! Moving a request to another thread costs more than a short prediction. So one that is not known to run long starts where it
//! arrived, and moves when a time slice (the engine's, a millisecond) of it was long; one that waits for a graph stays. The deployment's threads have a lower priority than
//! the server's, so that reading requests and refusing them goes on however busy a deployment is.

use std::pin::Pin;
use std::sync::OnceLock;
use std::task::Poll;
use std::time::{Duration, Instant};

use modelhost_core::deployment::DeploymentName;
use modelhost_core::error::Error;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

#[cfg(test)]
mod tests;

/// What takes more processor time than this does not start on the server's threads.
pub(crate) const LONG: Duration = Duration::from_micros(500);

/// How much less urgent than the server's these threads are (`nice`).
const NICE: i32 = 5;

/// Versions that one deployment loads at once; more wait.
const LOADING_AT_ONCE: usize = 4;

/// A future on its way.
pub(crate) type Job<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The threads of one deployment, started when they are first needed.
pub(crate) struct Threads {
    name: String,
    count: u32,
    /// Places of loads.
    loading: Semaphore,
    started: OnceLock<Option<Started>>,
}

impl Threads {
    /// `count` threads, or one a core.
    pub(crate) fn new(name: &DeploymentName, count: Option<u32>) -> Self {
        let cores = || {
            std::thread::available_parallelism().map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(1))
        };
        Self {
            name: name.to_string(),
            count: count.unwrap_or_else(cores).max(1),
            loading: Semaphore::new(LOADING_AT_ONCE),
            started: OnceLock::new(),
        }
    }

    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    /// Runs a job: starts it here unless it is long, and goes on with it on this deployment's threads.
    pub(crate) async fn run<T: Send + 'static>(&self, mut job: Job<T>, is_long: bool) -> Result<T, Error> {
        if !is_long {
            let here = std::future::poll_fn(|context| {
                let start = Instant::now();
                match job.as_mut().poll(context) {
                    Poll::Ready(done) => Poll::Ready(Some(done)),
                    Poll::Pending if start.elapsed() < LONG => Poll::Pending,
                    Poll::Pending => Poll::Ready(None),
                }
            });
            if let Some(done) = here.await {
                return Ok(done);
            }
        }
        let Some(threads) = self.handle() else { return Ok(job.await) };
        AbortOnDropHandle::new(threads.spawn(job)).await.map_err(ended)
    }

    /// Goes on with a job there.
    pub(crate) fn spawn(&self, job: Job<()>) {
        match self.handle() {
            Some(threads) => drop(threads.spawn(job)),
            None => drop(tokio::spawn(job)),
        }
    }

    /// Loads a version: up to [`LOADING_AT_ONCE`] at a time, on threads that do nothing else, because reading and mapping files blocks. What
    /// a load waits for runs elsewhere, so that no load waits for a thread that another load holds.
    pub(crate) async fn load<T: Send + 'static>(&self, job: Job<T>) -> Result<T, Error> {
        let place = self.loading.acquire().await;
        let _place = place.map_err(|_| Error::internal("loading has ended"))?;
        let Some(Started { running, loading }) = self.started() else { return Ok(job.await) };
        let running = running.handle().clone();
        loading.spawn_blocking(move || running.block_on(job)).await.map_err(ended)
    }

    fn handle(&self) -> Option<&Handle> {
        self.started().map(|started| started.running.handle())
    }

    fn started(&self) -> Option<&Started> {
        self.started.get_or_init(|| self.start()).as_ref()
    }

    /// Without threads of its own, the deployment's jobs run on the server's.
    fn start(&self) -> Option<Started> {
        let mut running = Builder::new_multi_thread();
        running.worker_threads(self.count as usize).thread_name(format!("run-{}", self.name)).enable_all();
        // Nothing drives this one: it is a set of threads that come when they are needed and go when they idle.
        let mut loading = Builder::new_current_thread();
        loading.max_blocking_threads(LOADING_AT_ONCE).thread_name(format!("load-{}", self.name));
        let build = |builder: &mut Builder| builder.on_thread_start(|| less_urgent(NICE)).build();
        let started = build(&mut running)
            .and_then(|running| match build(&mut loading) {
                Ok(loading) => Ok(Started { running, loading }),
                Err(error) => {
                    running.shutdown_background();
                    Err(error)
                }
            })
            .inspect_err(
                |error| tracing::warn!(deployment = self.name, %error, "it has no threads of its own"),
            );
        started.ok()
    }
}

/// The threads of one deployment.
struct Started {
    /// For predictions, and for what loads hand over.
    running: Runtime,
    /// For loads alone.
    loading: Runtime,
}

/// Makes the thread that calls it less urgent than the server's, by so much (`nice`).
pub fn less_urgent(by: i32) {
    if let Err(error) = rustix::process::setpriority_process(None, by) {
        tracing::warn!(%error, "a thread is as urgent as the server's");
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(Started { running, loading }) = self.started.take().flatten() {
            running.shutdown_background();
            loading.shutdown_background();
        }
    }
}

fn ended(error: tokio::task::JoinError) -> Error {
    Error::internal(format!("what ran did not end: {error}"))
}
