//! The host's side of one instance: what a guest reaches through its imports. Lives as long as its store.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use modelhost_core::infer::Deadline;
use modelhost_nn::Graphs;
use wasmtime::component::{HasSelf, Linker, ResourceTable};
use wasmtime::{Engine, Store, UpdateDeadline};
use wasmtime_wasi::random::Deterministic;
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

use crate::bindings::Runtime;
use crate::bindings::modelhost::inference::{artifacts, logging, types};
use crate::compile::EPOCH;
use crate::fault::DeadlinePassed;
use crate::graphs::GraphState;
use crate::limits::MemoryLimit;

/// Log lines that one call may write, and bytes of each.
const MAX_LOG_LINES: u32 = 100;
const MAX_LOG_BYTES: usize = 4096;

/// What a guest draws when it asks for randomness: the golden ratio's digits, the same for every request.
const RANDOM: [u8; 16] = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c834_u128.to_be_bytes();

/// When a guest is stopped: when it ran for so long, or when its caller waits no longer. What counts for the first is its own
/// time slices, not the clock: that the machine is busy is not its fault.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stop {
    slices: u128,
    caller: Option<Instant>,
}

impl Stop {
    /// After the guest's own limit.
    pub(crate) fn after(limit: Duration) -> Self {
        Self { slices: limit.as_nanos().div_ceil(EPOCH.as_nanos()), caller: None }
    }

    /// No later than the caller's deadline.
    pub(crate) fn or_callers(self, deadline: Deadline) -> Self {
        Self { caller: Some(deadline.instant()), ..self }
    }

    /// One more slice is over. Errors: the guest may not have another.
    fn slice(&mut self) -> Result<(), DeadlinePassed> {
        if self.callers_passed() {
            return Err(DeadlinePassed);
        }
        self.slices = self.slices.saturating_sub(1);
        if self.slices == 0 { Err(DeadlinePassed) } else { Ok(()) }
    }

    /// When that is, should it wait for the host from `now` on: what it waits is its own time.
    pub(crate) fn at(&self, now: Instant) -> Instant {
        let left = u64::try_from(self.slices.saturating_mul(EPOCH.as_nanos())).unwrap_or(u64::MAX);
        let own = now.checked_add(Duration::from_nanos(left));
        [own, self.caller].into_iter().flatten().min().unwrap_or(now)
    }

    /// It waited so long for the host.
    pub(crate) fn spend(&mut self, time: Duration) {
        self.slices = self.slices.saturating_sub(time.as_nanos() / EPOCH.as_nanos()).max(1);
    }

    /// Whether the caller waits no longer.
    pub(crate) fn callers_passed(&self) -> bool {
        self.caller.is_some_and(|caller| Instant::now() >= caller)
    }
}

/// What `load` may read: names and contents, in the manifest's order.
pub(crate) type Files = Vec<(String, Bytes)>;

pub(crate) struct State {
    pub(crate) memory: MemoryLimit,
    pub(crate) stop: Stop,
    /// Only while `load` runs.
    pub(crate) files: Option<Files>,
    /// The last line logged as an error: a panic's message, for the fault's text.
    pub(crate) last_error: Option<String>,
    log_lines: u32,
    pub(crate) graphs: GraphState,
    /// Made when the guest first asks for it: most never do.
    wasi: Option<Box<(WasiCtx, ResourceTable)>>,
}

impl State {
    /// A store for one instance. Its guest is stopped at `stop`, and lets others run once an epoch.
    pub(crate) fn store(
        engine: &Engine,
        memory: MemoryLimit,
        stop: Stop,
        files: Option<Files>,
        graphs: Option<Arc<Graphs>>,
    ) -> Store<Self> {
        let graphs = GraphState::new(graphs);
        let hand_over = usize::try_from(memory.bytes).unwrap_or(usize::MAX);
        let state = Self { memory, stop, files, last_error: None, log_lines: 0, graphs, wasi: None };
        let mut store = Store::new(engine, state);
        store.limiter(|state| &mut state.memory);
        store.epoch_deadline_callback(|mut context| {
            context.data_mut().stop.slice()?;
            Ok(UpdateDeadline::Yield(1))
        });
        store.set_epoch_deadline(1);
        // A guest may hand over in one call what it may hold: its snapshot is read so too.
        store.set_hostcall_fuel(hand_over.max(store.hostcall_fuel()));
        store
    }

    /// Between two requests to a warm instance.
    pub(crate) fn renew(store: &mut Store<Self>, stop: Stop) {
        store.set_epoch_deadline(1);
        let state = store.data_mut();
        state.stop = stop;
        state.log_lines = 0;
        state.last_error = None;
    }
}

/// Everything a guest may import. WASI is an empty world: no file, no network, no environment, and clocks and
/// randomness that are the same for every request, so that equal requests get equal bytes.
pub(crate) fn linker(engine: &Engine) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    Runtime::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state)?;
    Ok(linker)
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        let (ctx, table) =
            &mut **self.wasi.get_or_insert_with(|| Box::new((empty_world(), ResourceTable::new())));
        WasiCtxView { ctx, table }
    }
}

fn empty_world() -> WasiCtx {
    let mut builder = WasiCtx::builder();
    builder
        .allow_tcp(false)
        .allow_udp(false)
        .secure_random(Deterministic::new(RANDOM.to_vec()))
        .insecure_random(Deterministic::new(RANDOM.to_vec()))
        .insecure_random_seed(0)
        .wall_clock(still::Epoch)
        .monotonic_clock(still::Epoch);
    builder.build()
}

mod still {
    //! Clocks that stand still.

    use std::time::Duration;

    use wasmtime_wasi::{HostMonotonicClock, HostWallClock};

    /// 1970-01-01, forever.
    pub(super) struct Epoch;

    impl HostWallClock for Epoch {
        fn resolution(&self) -> Duration {
            Duration::from_nanos(1)
        }

        fn now(&self) -> Duration {
            Duration::ZERO
        }
    }

    impl HostMonotonicClock for Epoch {
        fn resolution(&self) -> u64 {
            1
        }

        fn now(&self) -> u64 {
            0
        }
    }
}

impl types::Host for State {}

impl artifacts::Host for State {
    fn names(&mut self) -> Vec<String> {
        self.files.iter().flatten().map(|(name, _)| name.clone()).collect()
    }

    fn read(&mut self, name: String) -> Result<Vec<u8>, String> {
        let Some(files) = &self.files else {
            return Err(format!("artifact {name:?}: artifacts can be read only while the version loads"));
        };
        let file = files.iter().find(|(known, _)| *known == name);
        file.map(|(_, content)| content.to_vec()).ok_or_else(|| {
            let known: Vec<_> = files.iter().map(|(name, _)| name.as_str()).collect();
            format!("artifact {name:?} is not in the manifest, which names {known:?}")
        })
    }
}

impl logging::Host for State {
    fn log(&mut self, level: logging::Level, mut message: String) {
        self.log_lines += 1;
        if self.log_lines > MAX_LOG_LINES {
            return;
        }
        message.truncate(message.floor_char_boundary(MAX_LOG_BYTES));
        match level {
            logging::Level::Trace => tracing::trace!(target: "guest", message),
            logging::Level::Debug => tracing::debug!(target: "guest", message),
            logging::Level::Info => tracing::info!(target: "guest", message),
            logging::Level::Warn => tracing::warn!(target: "guest", message),
            logging::Level::Error => {
                tracing::error!(target: "guest", message);
                self.last_error = Some(message);
            }
        }
    }
}
