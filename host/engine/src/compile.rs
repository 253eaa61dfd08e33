//! The wasmtime engines and their settings: one runs instances, and one only compiles, in another process
//! (`compiler`).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use modelhost_core::error::Error;
use wasmtime::{CacheStore, Enabled, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig};

use crate::text::SharedText;

/// The length of an epoch. It is the granularity of deadlines, and the longest time that a guest holds a server
/// thread.
pub(crate) const EPOCH: Duration = Duration::from_millis(1);

/// What one instance may have. A component made from Rust has one memory, two tables and three core instances: its
/// module, and two small ones for its imports. The pool reserves as many for each instance, so that instances do not
/// compete. A component with more is refused when it is registered, and the error gives the number.
const MEMORIES: u32 = 1;
const TABLES: u32 = 4;
const CORE_INSTANCES: u32 = 16;

/// Free slots that keep the image of their last version mapped for its next request. They also keep its file open and
/// the pages that it wrote, even after it is unloaded.
const WARM_SLOTS: u32 = 1024;

/// The engine's settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// The folder of compiled code. It may be deleted at any time, because the code can be made again.
    pub cache_dir: PathBuf,
    /// Bytes of disk for it. Beyond them the least recently used files are removed.
    pub cache_bytes: u64,
    /// Live instances of all versions. About 15,000 fit into one process (`vm.max_map_count`).
    pub instances: u32,
    /// Most linear memory of an instance, which is the size of a pool slot.
    pub max_memory_bytes: u64,
    /// Longest run of a version's `load`.
    pub load_deadline: Duration,
    /// Bytes of a released instance's memory that are zeroed rather than unmapped.
    pub keep_resident_bytes: usize,
    /// Whether to reset only the pages that a request wrote (Linux 6.7 and later). `None`: if the kernel can.
    pub pagemap_scan: Option<bool>,
    /// The executable that compiles if it is called with [`crate::COMPILE`]. `None`: this process compiles, without
    /// bounds. That is for benchmarks and tests with trusted components.
    pub compiler: Option<PathBuf>,
    /// Most processor time to compile one component, or to read a version's graphs for the first time.
    pub compile_deadline: Duration,
    /// Most memory for that, besides the memory of a snapshot or of the files.
    pub compile_bytes: u64,
    /// How graphs are evaluated.
    pub graphs: modelhost_nn::Config,
}

impl Config {
    /// Default settings with this cache folder.
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

/// Makes the engine and starts its clock. Errors: internal, if the machine cannot hold the pool.
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

/// An engine that only compiles code for [`engine`]. It looks functions up in `cache` first.
pub(crate) fn compiling_engine(cache: Arc<dyn CacheStore>) -> wasmtime::Result<Engine> {
    let mut settings = settings();
    settings.enable_incremental_compilation(cache)?;
    Engine::new(&settings)
}

/// The settings that affect the code.
fn settings() -> wasmtime::Config {
    let mut settings = wasmtime::Config::new();
    settings
        .cranelift_opt_level(OptLevel::Speed)
        .epoch_interruption(true)
        .memory_init_cow(true)
        .concurrency_support(false)
        .wasm_backtrace_max_frames(None)
        // Only debuggers and backtraces read these, and every loaded version would hold its own copy.
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

/// Starts the thread that advances the epoch. It ends with the engine.
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
