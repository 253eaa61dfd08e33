//! Where predictions run: short ones on the server's threads, long ones on threads of their deployment.
//!
//! Moving a request to another thread costs more than a short prediction. So a prediction starts where it arrived,
//! unless it is known to be long. It moves after a long time slice (the engine's slices are a millisecond). A
//! prediction that waits for a graph does not move. The deployment's threads have a lower priority than the server's,
//! so that a busy deployment does not keep the server from reading and refusing requests.

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

/// A prediction with more processor time than this does not start on the server's threads.
pub(crate) const LONG: Duration = Duration::from_micros(500);

/// How much lower the priority of these threads is than the server's (`nice`).
const NICE: i32 = 5;

/// Versions that one deployment loads at once. Further loads wait.
const LOADING_AT_ONCE: usize = 4;

/// A boxed future.
pub(crate) type Job<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The threads of one deployment. They are started when they are first needed.
pub(crate) struct Threads {
    name: String,
    count: u32,
    /// Permits for loads.
    loading: Semaphore,
    started: OnceLock<Option<Started>>,
}

impl Threads {
    /// `count` threads, or one per core.
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

    /// Runs a job. Starts it on this thread unless it is long, and moves it to the deployment's threads if need be.
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

    /// Runs a job on the deployment's threads.
    pub(crate) fn spawn(&self, job: Job<()>) {
        match self.handle() {
            Some(threads) => drop(threads.spawn(job)),
            None => drop(tokio::spawn(job)),
        }
    }

    /// Runs a load, up to [`LOADING_AT_ONCE`] at a time. Reading and mapping files blocks, so loads have their own
    /// threads. What a load waits for runs on other threads, so no load waits for a thread that another load holds.
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

    /// Without threads of its own, a deployment uses the server's.
    fn start(&self) -> Option<Started> {
        let mut running = Builder::new_multi_thread();
        running.worker_threads(self.count as usize).thread_name(format!("run-{}", self.name)).enable_all();
        // This runtime is never driven. It only provides blocking threads, which start on demand and end when they
        // idle.
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
    /// For predictions, and for tasks of loads.
    running: Runtime,
    /// For loads only.
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
    Error::internal("what ran did not end").because(error)
}
