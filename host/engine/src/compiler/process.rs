//! The host's side of a compiler process.

use std::io::{BufReader, BufWriter};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use modelhost_core::error::Error;
use rustix::process::{Pid, setpriority_process};
use tokio::sync::oneshot;

use super::wire::{Answer, Job};

/// The priority of the slow lane (`nice`).
const SLOW_NICE: i32 = 19;

/// A started process that waits for its job.
pub(super) struct Process {
    child: Shared,
    input: ChildStdin,
    output: ChildStdout,
}

/// A process that works on its job.
pub(super) struct Running {
    child: Shared,
    answer: oneshot::Receiver<Result<Answer, Error>>,
}

/// Dropping this ends the process.
struct Shared(Arc<Mutex<Child>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Child> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let mut child = self.lock();
        drop(child.kill()); // it may have ended already
        drop(child.try_wait());
    }
}

impl Process {
    /// Errors: internal, if it does not start.
    pub(super) fn start(command: Option<&Path>) -> Result<Self, Error> {
        let no_compiler = |why: String| Error::internal("no compiler starts").because(why);
        let command = command.ok_or_else(|| no_compiler("none is configured".to_owned()))?;
        let mut child = Command::new(command)
            .arg(super::COMPILE)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| no_compiler(format!("{}: {error}", command.display())))?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let child = Shared(Arc::new(Mutex::new(child)));
        let (input, output) = pipes.ok_or_else(|| no_compiler("it has no pipes".to_owned()))?;
        Ok(Self { child, input, output })
    }

    /// Whether it waits for its job.
    pub(super) fn is_alive(&self) -> bool {
        matches!(self.child.lock().try_wait(), Ok(None))
    }

    /// Sends it the job. A thread does that, because pipes block. Errors: internal, if there is no thread.
    pub(super) fn run(self, job: Arc<Job>) -> Result<Running, Error> {
        let Self { child, input, output } = self;
        let (sender, answer) = oneshot::channel();
        let shared = Shared(Arc::clone(&child.0));
        let talk = move || drop(sender.send(exchange(&shared, input, output, &job)));
        let thread = std::thread::Builder::new().name("compiler".into()).spawn(talk);
        thread.map_err(|error| Error::internal("no thread talks to a compiler").because(error))?;
        Ok(Running { child, answer })
    }
}

fn exchange(child: &Shared, input: ChildStdin, output: ChildStdout, job: &Job) -> Result<Answer, Error> {
    let mut input = BufWriter::new(input);
    let written = job.write(&mut input);
    let answer = written.and_then(|()| Answer::read(&mut BufReader::new(output), job.bytes));
    drop(input); // it ends with its input
    let mut child = child.lock();
    drop(child.kill());
    let ended = child.wait();
    answer.map_err(|error| {
        let ended = ended.map_or_else(|error| error.to_string(), |status| status.to_string());
        let (step, mib) = (job.task.step(), job.bytes >> 20);
        let text =
            format!("{step}: its process ended ({ended}), as it does when it needs more than {mib} MiB");
        Error::fault(text).because(error)
    })
}

impl Running {
    /// Its processor time so far. 0 after it ended.
    pub(super) fn used(&self) -> Duration {
        let pid = self.child.lock().id();
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // After the name come the state and then numbers. The 12th and 13th field are the ticks of the user and of
        // the system.
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
        let ticks: u64 = fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
        Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second().max(1))
    }

    /// Gives it a lower priority than those that have a turn.
    pub(super) fn yield_to_turns(&self) {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.lock().id()));
        for task in tasks.into_iter().flatten().flatten() {
            let thread = task.file_name().to_str().and_then(|name| Pid::from_raw(name.parse().ok()?));
            if let Some(Err(error)) = thread.map(|thread| setpriority_process(Some(thread), SLOW_NICE)) {
                tracing::debug!(%error, "a thread of a compiler stays as urgent as it was"); // or it ended
            }
        }
    }

    /// Errors: plugin fault, if it ended without an answer.
    pub(super) async fn answer(&mut self) -> Result<Answer, Error> {
        (&mut self.answer)
            .await
            .unwrap_or_else(|_| Err(Error::internal("nobody talks to the compiler any more")))
    }
}
