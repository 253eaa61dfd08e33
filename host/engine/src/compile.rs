//! The wasmtime engine, its settings, and compilation.

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use modelhost_core::error::Error;
use moka::sync::Cache;
use wasmtime::{CacheStore, Enabled, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig};

use crate::text::SharedText;

/// How long one epoch lasts: the granularity of deadlines, and the longest a guest holds a server thread.
pub(crate) const EPOCH: Duration = Duration::from_millis(1);

/// Bytes of compiled functions that are kept in memory: a version's snapshot has its runtime's functions, so that only its
/// first version compiles them. The largest shipped runtime, `onnx-sandboxed`, has 57 MB of them, and nearly as many again in its
/// snapshots.
const FUNCTION_CACHE_BYTES: u64 = 128 << 20;

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
            graphs: modelhost_nn::Config::default(),
        }
    }
}

/// Builds the engine and starts its clock. Errors: internal, when the machine cannot hold the pool.
pub(crate) fn engine(config: &Config) -> Result<Engine, Error> {
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
        .debug_symbols(false)
        .with_custom_code_memory(Some(Arc::new(SharedText)))
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool(config)));
    let engine = settings
        .enable_incremental_compilation(Arc::new(Functions::new()))
        .and_then(|settings| Engine::new(settings))
        .map_err(|error| Error::internal(format!("the instance pool cannot be made: {error:#}")))?;
    start_clock(&engine).map_err(|error| Error::internal(format!("no thread for deadlines: {error}")))?;
    Ok(engine)
}

fn pool(config: &Config) -> PoolingAllocationConfig {
    let count = config.instances;
    let mut pool = PoolingAllocationConfig::default();
    // A component made from Rust holds its module and the two small ones that tie its imports.
    pool.total_component_instances(count)
        .total_core_instances(count.saturating_mul(4))
        .total_memories(count)
        .total_tables(count.saturating_mul(2))
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

/// Compiled functions by a hash of what they are compiled from.
#[derive(Debug)]
struct Functions(Cache<Vec<u8>, Arc<[u8]>>);

impl Functions {
    fn new() -> Self {
        let weigh =
            |key: &Vec<u8>, code: &Arc<[u8]>| u32::try_from(key.len() + code.len()).unwrap_or(u32::MAX);
        Self(Cache::builder().max_capacity(FUNCTION_CACHE_BYTES).weigher(weigh).build())
    }
}

impl CacheStore for Functions {
    fn get(&self, key: &[u8]) -> Option<Cow<'_, [u8]>> {
        self.0.get(key).map(|code| Cow::Owned(code.to_vec()))
    }

    fn insert(&self, key: &[u8], value: Vec<u8>) -> bool {
        self.0.insert(key.to_vec(), value.into());
        true
    }
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

/// Compiles a component to the bytes that the cache keeps. Blocks for as long as it takes.
/// Errors: plugin fault, when it is no valid component.
pub(crate) fn precompile(engine: &Engine, wasm: &[u8]) -> Result<Vec<u8>, Error> {
    engine.precompile_component(wasm).map_err(|error| crate::fault::in_step("compile", &error))
}
