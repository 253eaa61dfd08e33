//! The host's side of one instance: everything that a guest reaches through its imports. It lives as long as its
//! store.

use std::sync::Arc;

use bytes::Bytes;
use modelhost_nn::Graphs;
use wasmtime::component::{HasSelf, Linker, Resource, ResourceTable};
use wasmtime::{Engine, Store, UpdateDeadline};
use wasmtime_wasi::clocks::WasiClocksView;
use wasmtime_wasi::p2::DynPollable;
use wasmtime_wasi::p2::bindings::clocks::monotonic_clock;
use wasmtime_wasi::random::Deterministic;
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

use crate::bindings::Runtime;
use crate::bindings::modelhost::inference::{artifacts, logging, types};
use crate::graphs::{GraphState, MAX_HANDLES};
use crate::limits::MemoryLimit;
use crate::said;
use crate::stop::Stop;

/// Log lines of one call.
const MAX_LOG_LINES: u32 = 100;

/// Random bytes of one call.
const MAX_RANDOM_BYTES: u64 = 1 << 20;

/// What a guest gets as randomness: the golden ratio's digits, the same for every request.
const RANDOM: [u8; 16] = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c834_u128.to_be_bytes();

/// The files that `load` may read, in the manifest's order.
pub(crate) type Files = Vec<(String, Bytes)>;

pub(crate) struct State {
    pub(crate) memory: MemoryLimit,
    pub(crate) stop: Stop,
    /// Set only while `load` runs.
    pub(crate) files: Option<Files>,
    /// The last line that was logged as an error. A panic's message appears in the fault's text.
    pub(crate) last_error: Option<String>,
    log_lines: u32,
    pub(crate) graphs: GraphState,
    /// Made when the guest first needs it. Most guests never do.
    wasi: Option<Box<(WasiCtx, ResourceTable)>>,
}

impl State {
    /// A store for one instance. The guest is stopped by `stop`, and yields once per epoch.
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
        // In one call a guest may pass as much as its memory holds. Reading the snapshot needs that.
        store.set_hostcall_fuel(hand_over.max(store.hostcall_fuel()));
        store
    }

    /// Resets a warm instance between two requests.
    pub(crate) fn renew(store: &mut Store<Self>, stop: Stop) {
        store.set_epoch_deadline(1);
        let state = store.data_mut();
        state.stop = stop;
        state.log_lines = 0;
        state.last_error = None;
        state.memory.refused = None;
    }
}

/// Everything that a guest may import. WASI is an empty world without files, network and environment. Its clocks and
/// randomness are the same for every request, so equal requests get equal bytes. Nothing in it can be waited for.
pub(crate) fn linker(engine: &Engine) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    linker.allow_shadowing(true); // WASI's own timers wait
    monotonic_clock::add_to_linker::<_, HasSelf<_>>(&mut linker, |state: &mut State| state)?;
    linker.allow_shadowing(false);
    Runtime::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state)?;
    Ok(linker)
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        let (ctx, table) = &mut **self.wasi.get_or_insert_with(|| {
            let mut table = ResourceTable::new();
            table.set_max_capacity(MAX_HANDLES);
            Box::new((empty_world(), table))
        });
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
        .max_random_size(MAX_RANDOM_BYTES)
        .wall_clock(still::Epoch);
    builder.build()
}

mod still {
    //! A clock that stands still.

    use std::time::Duration;

    use wasmtime_wasi::HostWallClock;

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
}

/// The clock stands still, so every timer is due at once. A guest that sleeps goes on. A guest that polls the clock
/// uses up its own time.
impl monotonic_clock::Host for State {
    fn now(&mut self) -> wasmtime::Result<u64> {
        Ok(0)
    }

    fn resolution(&mut self) -> wasmtime::Result<u64> {
        Ok(1)
    }

    fn subscribe_instant(&mut self, _: u64) -> wasmtime::Result<Resource<DynPollable>> {
        self.subscribe_duration(0)
    }

    fn subscribe_duration(&mut self, _: u64) -> wasmtime::Result<Resource<DynPollable>> {
        monotonic_clock::Host::subscribe_duration(&mut self.clocks(), 0)
    }
}

impl types::Host for State {}

impl artifacts::Host for State {
    fn names(&mut self) -> Vec<String> {
        self.files.iter().flatten().map(|(name, _)| name.clone()).collect()
    }

    fn read(&mut self, name: String) -> wasmtime::Result<Result<Vec<u8>, String>> {
        match self.artifact(&name) {
            Ok(content) => {
                self.memory.lend(content.len())?;
                Ok(Ok(content.to_vec()))
            }
            Err(why) => Ok(Err(format!("artifact {:?} {why}", said::text(&name)))),
        }
    }
}

impl State {
    /// Errors: why it cannot be read.
    fn artifact(&self, name: &str) -> Result<Bytes, String> {
        let files = self.files.as_ref().ok_or("can be read only while the version loads")?;
        let Some((_, content)) = files.iter().find(|(known, _)| known == name) else {
            let known: Vec<_> = files.iter().map(|(name, _)| name.as_str()).collect();
            return Err(format!("is not in the manifest, which names {known:?}"));
        };
        let (bytes, most) = (content.len() as u64, self.memory.bytes);
        if bytes > most {
            return Err(format!("has {bytes} bytes, more than the {most} of memory allowed"));
        }
        Ok(content.clone())
    }
}

impl logging::Host for State {
    fn log(&mut self, level: logging::Level, message: String) {
        self.log_lines += 1;
        if self.log_lines > MAX_LOG_LINES {
            return;
        }
        let message = said::text(&message);
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
