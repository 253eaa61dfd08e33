//! Compiles components and tries graphs, each in a process of its own. An author decides how much time and memory
//! that takes. So the processes are bounded, have a low priority, and end when their caller leaves.
//!
//! The main idea: a process has a turn of [`SLICE`], and [`TURNS`] processes have one at once. A longer job goes on
//! in the single slow lane, with an even lower priority. If the slow lane is taken, it waits and starts again. So a
//! job that ends within its turn waits for at most one slice per [`TURNS`] earlier jobs. All these times are
//! processor time, because an author is not at fault for a busy machine.

mod process;
mod wire;
mod worker;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use modelhost_core::artifact::Digest;
use modelhost_core::error::{Error, ErrorCode};
use modelhost_nn::Untried;
use sha2::{Digest as _, Sha256};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use crate::compile::Config;
use process::{Process, Running};
use wire::{Answer, Compile, Job, Task};

pub(crate) use wire::{Kind, Value};
pub use worker::run as run_compiler;

/// The subcommand of an executable that calls [`run_compiler`].
pub const COMPILE: &str = "compile";

/// Processes that have a turn at once.
const TURNS: usize = 2;

/// The length of a turn in processor time.
const SLICE: Duration = Duration::from_secs(5);

/// How often the processor time of a process is read.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A process that gets no processor time for so long is ended.
const PATIENCE: Duration = Duration::from_secs(60);

/// Running and waiting processes. Further ones are refused.
const PLACES: usize = 32;

/// Bytes of compiled functions in memory. A version's snapshot has the functions of its runtime, so only the first
/// version of a runtime compiles them. The largest shipped runtime, `onnx-sandboxed`, has 57 MB of functions, and its
/// snapshots have nearly as many again.
const FUNCTION_CACHE_BYTES: u64 = 128 << 20;

/// Copies of each byte of an instance while a snapshot is made: the byte, the segments, the component and its image.
/// Also the copies of each byte of a graph's files while it is read: the byte, the message, the tensors and the plan.
const COPIES: u64 = 6;

/// How many tried sets of graphs are remembered.
const MAX_TRIED: u64 = 10_000;

/// The code of functions, by a hash of their source.
type Functions = Vec<(Bytes, Bytes)>;

/// The result of a compilation.
pub(crate) enum Compiled {
    /// The code, for the cache.
    Code(Bytes),
    /// The component cannot be instrumented. Holds the reason.
    Refused(String),
}

/// Starts and bounds the processes.
pub(crate) struct Compiler {
    command: Option<PathBuf>,
    deadline: Duration,
    bytes: u64,
    places: Semaphore,
    turns: Semaphore,
    slow: Semaphore,
    /// Started ahead, so that no job waits for it.
    ready: Mutex<Option<Process>>,
    /// Compiled functions by component.
    functions: moka::sync::Cache<Digest, Arc<Functions>>,
    /// Tried graphs by their digest.
    tried: moka::sync::Cache<Digest, ()>,
}

impl Compiler {
    pub(crate) fn new(config: &Config) -> Self {
        let weigh = |_: &Digest, functions: &Arc<Functions>| {
            let bytes: usize = functions.iter().map(|(key, code)| key.len() + code.len()).sum();
            u32::try_from(bytes).unwrap_or(u32::MAX)
        };
        Self {
            command: config.compiler.clone(),
            deadline: config.compile_deadline,
            bytes: config.compile_bytes,
            places: Semaphore::new(PLACES),
            turns: Semaphore::new(TURNS),
            slow: Semaphore::new(1),
            ready: Mutex::default(),
            functions: moka::sync::Cache::builder().max_capacity(FUNCTION_CACHE_BYTES).weigher(weigh).build(),
            tried: moka::sync::Cache::new(MAX_TRIED),
        }
    }

    /// Waits for a turn. Errors: resource exhausted, if too many wait.
    pub(crate) async fn turn(&self) -> Result<Turn<'_>, Error> {
        let full = |_| {
            let text = format!("{PLACES} components are being compiled, graphs tried, or wait for it");
            Error::new(ErrorCode::ResourceExhausted, text)
        };
        let place = self.places.try_acquire().map_err(full)?;
        let turn = self.turns.acquire().await.map_err(|_| Error::internal("shutting down"))?;
        Ok(Turn { compiler: self, _place: place, turn })
    }

    /// Reads graphs in another process. Other errors in them are not reported, because this process finds them when
    /// it reads the graphs itself. Errors: plugin fault, if reading takes too much time or memory, or crashes;
    /// resource exhausted; internal.
    pub(crate) async fn try_graphs(&self, untried: Untried) -> Result<(), Error> {
        if self.command.is_none() {
            return Ok(());
        }
        let hashed = tokio::task::spawn_blocking(move || (key_of(&untried), untried)).await;
        let (key, untried) =
            hashed.map_err(|error| Error::internal("graphs were not hashed").because(error))?;
        if self.tried.contains_key(&key) {
            return Ok(());
        }
        let Turn { _place, turn, .. } = self.turn().await?;
        let held: u64 = untried.files.iter().map(|(_, content)| content.len() as u64).sum();
        let job = Job { bytes: self.bytes_for(held), task: Task::TryGraphs(untried) };
        match self.run(Arc::new(job), turn).await? {
            Answer::Tried => {
                self.tried.insert(key, ());
                Ok(())
            }
            Answer::Failed(why) => Err(Error::fault(why)),
            Answer::Compiled { .. } | Answer::Refused(_) => {
                Err(Error::internal("graphs: another answer came"))
            }
        }
    }

    /// The memory bound of a process that is sent so many bytes.
    fn bytes_for(&self, held: u64) -> u64 {
        self.bytes.saturating_add(held.saturating_mul(COPIES))
    }

    /// Runs a job within its turn, or in the slow lane.
    async fn run(&self, job: Arc<Job>, turn: SemaphorePermit<'_>) -> Result<Answer, Error> {
        let mut running = self.start(&job)?;
        if let Some(answer) = self.within(SLICE.min(self.deadline), &mut running).await? {
            return Ok(answer);
        }
        if self.deadline <= SLICE {
            return Err(self.too_long(&job));
        }
        let Ok(_slow) = self.slow.try_acquire() else {
            // Frees its memory while it waits.
            drop((running, turn));
            let _slow = self.slow.acquire().await.map_err(|_| Error::internal("shutting down"))?;
            let mut running = self.start(&job)?;
            running.yield_to_turns();
            return self.to_the_end(&job, &mut running).await;
        };
        drop(turn);
        running.yield_to_turns();
        self.to_the_end(&job, &mut running).await
    }

    async fn to_the_end(&self, job: &Job, running: &mut Running) -> Result<Answer, Error> {
        self.within(self.deadline, running).await?.ok_or_else(|| self.too_long(job))
    }

    /// Waits for the answer. `None` if the process used `most` processor time before. Errors: those of the process;
    /// resource exhausted, if it gets no processor time.
    async fn within(&self, most: Duration, running: &mut Running) -> Result<Option<Answer>, Error> {
        let mut last = (running.used(), Instant::now());
        loop {
            if let Ok(answer) = timeout(LOOK_EVERY, running.answer()).await {
                return answer.map(Some);
            }
            let used = running.used();
            if used >= most {
                return Ok(None);
            } else if used > last.0 {
                last = (used, Instant::now());
            } else if last.1.elapsed() > PATIENCE {
                let text = "this machine has no processor time for what was asked";
                return Err(Error::new(ErrorCode::ResourceExhausted, text));
            }
        }
    }

    fn too_long(&self, job: &Job) -> Error {
        let (step, seconds) = (job.task.step(), self.deadline.as_secs());
        Error::fault(format!("{step}: it took more than the {seconds} s of processor time allowed"))
    }

    /// Starting a process blocks for milliseconds.
    fn start(&self, job: &Arc<Job>) -> Result<Running, Error> {
        tokio::task::block_in_place(|| self.start_here(job))
    }

    fn start_here(&self, job: &Arc<Job>) -> Result<Running, Error> {
        let start = || Process::start(self.command.as_deref());
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        let process = ready.take().filter(Process::is_alive).map_or_else(start, Ok);
        let running = process.and_then(|process| process.run(Arc::clone(job)))?;
        *ready = start().ok();
        Ok(running)
    }
}

/// Permission to compile.
pub(crate) struct Turn<'a> {
    compiler: &'a Compiler,
    _place: SemaphorePermit<'a>,
    turn: SemaphorePermit<'a>,
}

impl Turn<'_> {
    /// Compiles a component. Dropping the future ends the process. `state`: the content of an instance, for its
    /// snapshot. Errors: plugin fault, if the component is invalid or takes more than it may; internal, if no process
    /// starts.
    pub(crate) async fn compile(
        self,
        component: Digest,
        wasm: Bytes,
        kind: Kind,
        state: Vec<(String, Value)>,
    ) -> Result<Compiled, Error> {
        let Self { compiler, _place, turn } = self;
        let functions = compiler.functions.get(&component).unwrap_or_default();
        let held = state.iter().map(|(_, value)| value.bytes()).sum();
        let task = Task::Compile(Compile { kind, wasm, functions: Functions::clone(&functions), state });
        let job = Job { bytes: compiler.bytes_for(held), task };
        let answer = match compiler.command {
            Some(_) => compiler.run(Arc::new(job), turn).await?,
            None => tokio::task::block_in_place(|| worker::perform(job)),
        };
        match answer {
            Answer::Compiled { code, functions: new } => {
                if !new.is_empty() {
                    let all = functions.iter().cloned().chain(new).collect();
                    compiler.functions.insert(component, Arc::new(all));
                }
                Ok(Compiled::Code(code))
            }
            Answer::Refused(why) => Ok(Compiled::Refused(why)),
            Answer::Failed(why) => Err(Error::fault(why)),
            Answer::Tried => Err(Error::internal("compile: another answer came")),
        }
    }
}

/// A digest of the graphs and of what reads them.
fn key_of(untried: &Untried) -> Digest {
    let mut hash = Sha256::new();
    let mut part = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    part(untried.onnxruntime.as_ref().map(|path| path.as_os_str().as_encoded_bytes()).unwrap_or_default());
    for (name, content) in &untried.files {
        part(name.as_bytes());
        part(content);
    }
    Digest::from_bytes(hash.finalize().into())
}

#[cfg(test)]
mod tests;
