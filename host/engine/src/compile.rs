//! The wasmtime engine and its settings: one that runs instances, and one that only compiles, in a process of its own (`compiler`).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use modelhost_core::error::Error;
use wasmtime::{CacheStore, Enabled, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig};

use crate::text::SharedText;

/// How long one epoch lasts: the granularity of deadlines, and the longest a guest holds a server thread.
pub(crate) const EPOCH: Duration = Duration::from_millis(1);

/// What one instance may have, by what real components need: a component made from Rust has one memory, two tables, and three core
/// instances (its module, and the two small ones that tie its imports). The pool has so many for each of its instances, so that none
/// takes what another needs. A component that has more is refused when it is registered, with the count.
const MEMORIES: u32 = 1;
const TABLES: u32 = 4;
const CORE_INSTANCES: u32 = 16;

/// Free slots that keep the image of the version they last ran, so that its next request finds them mapped. They hold their version's
/// file open and the pages it wrote, also after it is unloaded.
const WARM_SLOTS: u32 = 1024;

/// The engine's settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// Compiled code. May be deleted at any time: it is made again.
    pub cache_dir: PathBuf,
    /// Bytes of disk for it; beyond them the files that were used longest ago are removed.
    pub cache_bytes: u64,
    /// Live instances at once, over all versions. About 15,000 fit one process (`vm.max_map_count`).
    pub instances: u32,
    /// Most linear memory that any instance can have: the size of a pool slot.
    pub max_memory_bytes: u64,
    /// Longest run of `load`, per version.
    pub load_deadline: Duration,
    /// Bytes of a released instance's memory that are zeroed rather than unmapped.
    pub keep_resident_bytes: usize,
    /// Reset only the pages that a request wrote (Linux 6.7 and later). `None`: where the kernel has it.
    pub pagemap_scan: Option<bool>,
    /// The executable that compiles when it is called with [`crate::COMPILE`]. `None`: this process compiles, without bounds; for
    /// benchmarks and tests of trusted components.
    pub compiler: Option<PathBuf>,
    /// Most processor time that compiling one component may take, or reading a version's graphs for the first time.
    pub compile_deadline: Duration,
    /// Most memory that it may take, besides what a snapshot or the files have of it.
    pub compile_bytes: u64,
    /// How graphs are evaluated.
    pub graphs: modelhost_nn::Config,
}

impl Config {
    /// Sensible settings over this cache folder.
    pub fn new(cache_dir: PathBuf) -> Self {
        Self {
            cache_dir,
            cache_bytes: 64 << 30,
            instances: 1000,
            max_memory_bytes: 1 << 30,
            load_deadline: Duration::from_secs(60),
            keep_resident_bytes: 1 << 20,
            pagemap_scan: None,
            compiler: None,
            compile_deadline: Duration::from_secs(120),
            compile_bytes: 2 << 30,
            graphs: modelhost_nn::Config::default(),
        }
    }
}

/// Builds the engine and starts its clock. Errors: internal, when the machine cannot hold the pool.
pub(crate) fn engine(config: &Config) -> Result<Engine, Error> {
    let mut settings = settings();
    settings
        .with_custom_code_memory(Some(Arc::new(SharedText)))
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool(config)));
    let engine = Engine::new(&settings)
        .map_err(|error| Error::internal("the instance pool cannot be made").because(error))?;
    start_clock(&engine)
        .map_err(|error| Error::internal("no thread keeps the guests' deadlines").because(error))?;
    Ok(engine)
}

/// An engine that only compiles, for [`engine`] to run. It looks functions up in `cache` before it compiles them.
pub(crate) fn compiling_engine(cache: Arc<dyn CacheStore>) -> wasmtime::Result<Engine> {
    let mut settings = settings();
    settings.enable_incremental_compilation(cache)?;
    Engine::new(&settings)
}

/// What decides the code.
fn settings() -> wasmtime::Config {
    let mut settings = wasmtime::Config::new();
    settings
        .cranelift_opt_level(OptLevel::Speed)
        .epoch_interruption(true)
        .memory_init_cow(true)
        .concurrency_support(false)
        .wasm_backtrace_max_frames(None)
        // Only debuggers and backtraces read these, and every loaded version would hold its own.
        .generate_address_map(false)
        .native_unwind_info(false)
        .debug_symbols(false);
    settings
}

fn pool(config: &Config) -> PoolingAllocationConfig {
    let count = config.instances;
    let mut pool = PoolingAllocationConfig::default();
    pool.total_component_instances(count)
        .total_core_instances(count.saturating_mul(CORE_INSTANCES))
        .max_core_instances_per_component(CORE_INSTANCES)
        .total_memories(count.saturating_mul(MEMORIES))
        .max_memories_per_component(MEMORIES)
        .total_tables(count.saturating_mul(TABLES))
        .max_tables_per_component(TABLES)
        .total_stacks(count)
        .max_unused_warm_slots(count.min(WARM_SLOTS))
        .max_memory_size(usize::try_from(config.max_memory_bytes).unwrap_or(usize::MAX))
        .table_elements(100_000)
        .linear_memory_keep_resident(config.keep_resident_bytes)
        .table_keep_resident(64 << 10)
        .pagemap_scan(match config.pagemap_scan {
            Some(true) => Enabled::Yes,
            Some(false) => Enabled::No,
            None => Enabled::Auto,
        });
    pool
}

/// Ends with the engine.
fn start_clock(engine: &Engine) -> std::io::Result<()> {
    let weak = engine.weak();
    std::thread::Builder::new().name("epoch".into()).spawn(move || {
        while let Some(engine) = weak.upgrade() {
            engine.increment_epoch();
            drop(engine);
            std::thread::sleep(EPOCH);
        }
    })?;
    Ok(())
}
