//! The compiler process's side: reads one job, answers, and ends.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::FutureExt;
use rustix::process::{Resource, Rlimit, setpriority_process, setrlimit};
use wasmtime::{CacheStore, Engine};
use wasmtime_wizer::{ComponentInstanceState, Wizer};

use super::Functions;
use super::wire::{Answer, Compile, Job, Kind, Task, Value};
use crate::compile::compiling_engine;
use crate::said;

/// How much lower its priority is than the host's (`nice`).
const NICE: i32 = 10;

/// Reads a job from standard input, does it, and writes the answer to standard output. The executable
/// [`crate::Config::compiler`] calls this. Errors: the input is not a job, or nothing reads the output.
pub fn run() -> io::Result<()> {
    setpriority_process(None, NICE)?;
    limit(Resource::Core, 0)?;
    let job = Job::read(&mut io::stdin().lock())?;
    limit(Resource::Data, job.bytes)?;
    if let Task::TryGraphs(_) = &job.task {
        // Without memory a backend panics. It would catch the panic and blame the graph.
        std::panic::set_hook(Box::new(|_| std::process::abort()));
    }
    std::thread::Builder::new().name("host".into()).spawn(end_with_host)?;
    perform(job).write(&mut io::stdout().lock())
}

fn limit(resource: Resource, most: u64) -> io::Result<()> {
    Ok(setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?)
}

/// The host keeps the input open while it waits for the answer.
fn end_with_host() {
    drop(io::stdin().lock().read(&mut [0]));
    std::process::exit(1);
}

/// Does a job, in whatever process.
pub(super) fn perform(job: Job) -> Answer {
    let step = job.task.step();
    let done = catch_unwind(AssertUnwindSafe(|| match job.task {
        Task::Compile(job) => compile(job),
        Task::TryGraphs(untried) => match untried.read() {
            Ok(()) => Answer::Tried,
            Err(error) => Answer::Failed(said::text(&error.within(step).message)),
        },
    }));
    done.unwrap_or_else(|_| Answer::Failed(format!("{step}: it panicked")))
}

fn compile(job: Compile) -> Answer {
    let failed = |step: &str, error: &wasmtime::Error| Answer::Failed(said::error(step, error));
    let cache = Arc::new(Cache::new(job.functions));
    let engine = match compiling_engine(Arc::clone(&cache) as Arc<dyn CacheStore>) {
        Ok(engine) => engine,
        Err(error) => return failed("compile", &error),
    };
    let wasm = match job.kind {
        Kind::Plain => Cow::Borrowed(&job.wasm[..]),
        kind => {
            let mut wizer = Wizer::new();
            wizer.keep_init_func(true);
            let (context, instrumented) = match wizer.instrument_component(&job.wasm) {
                Ok(instrumented) => instrumented,
                Err(error) => return Answer::Refused(said::text(&format!("{error:#}"))),
            };
            if kind == Kind::Instrumented {
                Cow::Owned(instrumented)
            } else {
                drop(instrumented);
                let mut told = Told { state: job.state.into_iter().collect(), missing: None };
                let snapshot = wizer.snapshot_component(&context, &mut told).now_or_never();
                match (snapshot, told.missing) {
                    (Some(Ok(snapshot)), None) => Cow::Owned(snapshot),
                    (Some(Err(error)), _) => return failed("snapshot", &error),
                    (_, missing) => {
                        return Answer::Failed(format!("snapshot: the instance did not tell {missing:?}"));
                    }
                }
            }
        }
    };
    match precompile(&engine, &wasm) {
        Ok(code) => Answer::Compiled { code, functions: cache.made() },
        Err(error) => failed("compile", &error),
    }
}

fn precompile(engine: &Engine, wasm: &[u8]) -> wasmtime::Result<Bytes> {
    engine.precompile_component(wasm).map(Bytes::from)
}

/// Functions that came with the job, and newly compiled ones.
#[derive(Debug)]
struct Cache {
    known: HashMap<Bytes, Bytes>,
    made: Mutex<Functions>,
}

impl Cache {
    fn new(functions: Functions) -> Self {
        Self { known: functions.into_iter().collect(), made: Mutex::default() }
    }

    fn made(&self) -> Functions {
        std::mem::take(&mut *self.made.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl CacheStore for Cache {
    fn get(&self, key: &[u8]) -> Option<Cow<'_, [u8]>> {
        self.known.get(key).map(|code| Cow::Borrowed(&code[..]))
    }

    fn insert(&self, key: &[u8], value: Vec<u8>) -> bool {
        let entry = (Bytes::copy_from_slice(key), value.into());
        self.made.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
        true
    }
}

/// The values of an instance's exports, in place of the instance.
struct Told {
    state: HashMap<String, Value>,
    /// The first requested value that is missing.
    missing: Option<String>,
}

impl Told {
    fn bits(&mut self, export: &str) -> u64 {
        match self.state.get(export) {
            Some(Value::Number(bits)) => *bits,
            _ => {
                self.missing.get_or_insert_with(|| export.to_owned());
                0
            }
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the bits of the narrower number")]
impl ComponentInstanceState for Told {
    async fn call_func_ret_list_u8(&mut self, _: &str, export: &str, contents: impl FnOnce(&[u8]) + Send) {
        match self.state.get(export) {
            Some(Value::Memory(memory)) => contents(memory),
            _ => {
                self.missing.get_or_insert_with(|| export.to_owned());
            }
        }
    }

    async fn call_func_ret_s32(&mut self, _: &str, export: &str) -> i32 {
        self.bits(export) as i32
    }

    async fn call_func_ret_s64(&mut self, _: &str, export: &str) -> i64 {
        self.bits(export).cast_signed()
    }

    async fn call_func_ret_f32(&mut self, _: &str, export: &str) -> u32 {
        self.bits(export) as u32
    }

    async fn call_func_ret_f64(&mut self, _: &str, export: &str) -> u64 {
        self.bits(export)
    }
}
