//! From a package to a version that answers: compile, verify, load, snapshot, compile the snapshot, warm. Only
//! compiling takes turns. A `load` that never ends holds only its own instance.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use modelhost_core::artifact::Digest;
use modelhost_core::deployment::MemoryBudget;
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::model::Signature;
use modelhost_core::ports::{BlobStore, BoxFuture, LoadedModel, ModelRuntime};
use modelhost_core::version::{Isolation, LoadReport, Package};
use modelhost_nn::{Graphs, Opening, TryFirst};
use wasmtime::component::{Component, Linker};
use wasmtime::{Engine, error::Context as _};

use crate::bindings::RuntimePre;
use crate::cache::{Cache, Code, Key};
use crate::compile::{self, Config};
use crate::compiler::{Compiled, Compiler, Kind, Value};
use crate::instance::{Instance, Instances, Loaded, read_files};
use crate::limits::MemoryLimit;
use crate::state::{Files, State};
use crate::stop::Stop;
use crate::warm::Warm;
use crate::{examples, fault, said, snapshot, state, verify};

/// Heap bytes of a mapped component, for wasmtime's tables of its types and functions. Measured by `cargo xtask bench
/// density`.
const HEAP_BYTES: u64 = 100 << 10;

/// Largest component. It is in memory while it is compiled, and compiling takes many times as much.
const MAX_COMPONENT_BYTES: u64 = 256 << 20;

/// Turns packages into versions that answer. This is the engine's [`ModelRuntime`].
pub struct Runtime {
    engine: Engine,
    linker: Linker<State>,
    cache: Cache,
    blobs: Arc<dyn BlobStore>,
    graphs: Arc<modelhost_nn::Runtime>,
    compiler: Arc<Compiler>,
    config: Config,
}

impl Runtime {
    /// Reserves the pool and opens the cache. Errors: internal.
    pub fn new(config: Config, blobs: Arc<dyn BlobStore>) -> Result<Arc<Self>, Error> {
        let engine = compile::engine(&config)?;
        let linker = state::linker(&engine)
            .map_err(|error| Error::internal("the host's interfaces cannot be linked").because(error))?;
        let cache = Cache::open(&config.cache_dir, config.cache_bytes)?;
        let compiler = Arc::new(Compiler::new(&config));
        let tries = Arc::clone(&compiler);
        let try_first: TryFirst = Box::new(move |untried| {
            let tries = Arc::clone(&tries);
            Box::pin(async move { tries.try_graphs(untried).await })
        });
        let graphs = modelhost_nn::Runtime::new(config.graphs.clone(), try_first);
        Ok(Arc::new(Self { engine, linker, cache, blobs, graphs, compiler, config }))
    }

    async fn load_package(
        &self,
        package: &Package,
        known: Option<&LoadReport>,
        memory: &Arc<MemoryBudget>,
    ) -> Result<Loaded, Error> {
        let wasm = self.read_component(package).await?;
        let files = read_files(&*self.blobs, package).await?;
        let graphs = self.open_graphs(package, known, &files).await?;
        let isolation = known.map(|report| report.isolation).or(package.isolation);
        if isolation == Some(Isolation::Instance) {
            let note = known.and_then(|report| report.isolation_note.clone());
            return self.load_warm(package, &wasm, files, note, memory, graphs).await;
        }
        match self.load_snapshot(package, &wasm, files.clone(), memory, graphs.clone()).await {
            Err(NoSnapshot::Refused(why)) if isolation.is_none() => {
                let note = format!("its component cannot be snapshot: {why}");
                tracing::warn!(component = %package.component, note, "running in warm instances");
                self.load_warm(package, &wasm, files, Some(note), memory, graphs).await
            }
            Err(NoSnapshot::Refused(why)) => Err(Error::fault(format!(
                "snapshot: isolation = \"request\" was asked for, but the component cannot be snapshot: {why}"
            ))),
            Err(NoSnapshot::Failed(error)) => Err(error),
            Ok(loaded) => Ok(loaded),
        }
    }

    /// A version that was loaded before. Its code is mapped from the cache, and nothing runs.
    async fn find_compiled(
        &self,
        package: &Package,
        known: Option<&LoadReport>,
        memory: &Arc<MemoryBudget>,
    ) -> Result<Option<Loaded>, Error> {
        let Some(report) = known.filter(|report| report.isolation == Isolation::Request) else {
            return Ok(None);
        };
        let Some(code) = self.cache.get(&self.engine, self.snapshot_key(package)) else {
            return Ok(None);
        };
        let graphs = if package.may_have_graphs() {
            self.open_graphs(package, known, &read_files(&*self.blobs, package).await?).await?
        } else {
            None
        };
        self.loaded(package, &code, report.clone(), Instances::Fresh, memory, graphs).map(Some)
    }

    async fn load_snapshot(
        &self,
        package: &Package,
        wasm: &Bytes,
        files: Files,
        memory: &Arc<MemoryBudget>,
        graphs: Option<Arc<Graphs>>,
    ) -> Result<Loaded, NoSnapshot> {
        let key = Key::new(&self.engine, "instrumented").with(package.component.to_string().as_bytes());
        let code = self.compiled(key.digest(), package, wasm, Kind::Instrumented, Vec::new()).await?;
        let Scratch { mut instance, raw, signature } =
            self.run_load(package, &code.component, files, memory, graphs.clone()).await?;
        // Reading the memory also calls into the component.
        State::renew(&mut instance.store, Stop::after(self.config.load_deadline));
        let state = snapshot::read(&mut instance.store, raw).await?;
        drop(instance);
        let code = self.compiled(self.snapshot_key(package), package, wasm, Kind::Snapshot, state).await?;
        let report = LoadReport { signature, isolation: Isolation::Request, isolation_note: None };
        Ok(self.loaded(package, &code, report, Instances::Fresh, memory, graphs)?)
    }

    async fn load_warm(
        &self,
        package: &Package,
        wasm: &Bytes,
        files: Files,
        note: Option<String>,
        memory: &Arc<MemoryBudget>,
        graphs: Option<Arc<Graphs>>,
    ) -> Result<Loaded, Error> {
        let key = Key::new(&self.engine, "plain").with(package.component.to_string().as_bytes());
        let code = match self.compiled(key.digest(), package, wasm, Kind::Plain, Vec::new()).await {
            Ok(code) => code,
            Err(NoSnapshot::Failed(error)) => return Err(error),
            Err(NoSnapshot::Refused(why)) => {
                // Only instrumenting gives this answer.
                return Err(Error::internal("the component was not compiled as it is").because(why));
            }
        };
        let Scratch { instance, signature, .. } =
            self.run_load(package, &code.component, files, memory, graphs.clone()).await?;
        let report = LoadReport { signature, isolation: Isolation::Instance, isolation_note: note };
        let warm = Warm::new(Arc::clone(&self.blobs), package.clone(), self.config.load_deadline);
        warm.add(instance);
        self.loaded(package, &code, report, Instances::Warm(Box::new(warm)), memory, graphs)
    }

    /// The code from the cache, or else from a compiler process.
    async fn compiled(
        &self,
        key: Digest,
        package: &Package,
        wasm: &Bytes,
        kind: Kind,
        state: Vec<(String, Value)>,
    ) -> Result<Code, NoSnapshot> {
        if let Some(code) = self.cache.get(&self.engine, key) {
            return Ok(code);
        }
        let turn = self.compiler.turn().await?;
        // Another load may have compiled it meanwhile.
        if let Some(code) = self.cache.get(&self.engine, key) {
            return Ok(code);
        }
        match turn.compile(package.component, wasm.clone(), kind, state).await? {
            Compiled::Refused(why) => Err(NoSnapshot::Refused(why)),
            Compiled::Code(made) => {
                Ok(tokio::task::block_in_place(|| self.cache.keep(&self.engine, key, &made))?)
            }
        }
    }

    /// Checks the imports, then runs `load` in a scratch instance.
    async fn run_load(
        &self,
        package: &Package,
        component: &Component,
        files: Files,
        memory: &Arc<MemoryBudget>,
        graphs: Option<Arc<Graphs>>,
    ) -> Result<Scratch, Error> {
        verify::verify(&self.engine, component, &package.capabilities).map_err(|mut error| {
            error.message = said::text(&error.message); // it quotes the component
            error
        })?;
        let limit = self.config.load_deadline;
        let pre = self.link(component)?;
        let memory = MemoryLimit::new(package.limits.memory_bytes, memory);
        let store = State::store(&self.engine, memory, Stop::after(limit), Some(files), graphs);
        let (mut instance, raw) = start_with_raw(&pre, store, limit).await?;
        let signature = instance.load(package, limit).await.map_err(|error| error.within("load"))?;
        Ok(Scratch { instance, raw, signature })
    }

    fn loaded(
        &self,
        package: &Package,
        code: &Code,
        report: LoadReport,
        instances: Instances,
        memory: &Arc<MemoryBudget>,
        graphs: Option<Arc<Graphs>>,
    ) -> Result<Loaded, Error> {
        Ok(Loaded {
            engine: self.engine.clone(),
            pre: self.link(&code.component)?,
            report,
            memory: Arc::clone(memory),
            memory_bytes: package.limits.memory_bytes,
            peak_bytes: AtomicU64::new(0),
            code_bytes: code.bytes + HEAP_BYTES,
            is_file: code.is_file,
            limit: package.limits.deadline,
            instances,
            graphs,
        })
    }

    /// Reads the component. Errors: unavailable, if it is missing; too large; internal.
    async fn read_component(&self, package: &Package) -> Result<Bytes, Error> {
        let read = self.blobs.read(&package.component, MAX_COMPONENT_BYTES).await;
        read.map_err(|error| match error.code {
            ErrorCode::NotFound => error.with_code(ErrorCode::Unavailable),
            _ => error,
        })
        .map_err(|error| error.within("component"))
    }

    /// Opens the version's graphs, if it may have any. Errors: unsupported, plugin fault and too large, naming the
    /// file; resource exhausted.
    async fn open_graphs(
        &self,
        package: &Package,
        known: Option<&LoadReport>,
        files: &Files,
    ) -> Result<Option<Arc<Graphs>>, Error> {
        if !package.may_have_graphs() {
            return Ok(None);
        }
        let opening = Opening {
            options: package.graphs,
            batching: package.batching,
            bytes: package.limits.graph_bytes,
            files: files.clone(),
            is_tried: known.is_some(),
        };
        let limit = self.config.load_deadline;
        match self.graphs.open(opening, limit).await {
            Err(error) if error.code == ErrorCode::DeadlineExceeded => {
                Err(Error::fault(format!("graphs: not opened within {} ms", limit.as_millis())))
            }
            Err(mut error) => {
                error.message = said::text(&error.message); // it quotes the file
                Err(error)
            }
            Ok(graphs) => Ok(Some(Arc::new(graphs))),
        }
    }

    fn link(&self, component: &Component) -> Result<RuntimePre<State>, Error> {
        self.linker
            .instantiate_pre(component)
            .and_then(RuntimePre::new)
            .context("the component does not fit the host's interfaces")
            .map_err(|error| fault::in_step("link", &error))
    }

    /// The key of the snapshot. It covers all that decides the loaded memory: what `load` reads, what it may call,
    /// and how much memory it may take.
    pub(crate) fn snapshot_key(&self, package: &Package) -> Digest {
        let artifacts =
            package.artifacts.iter().map(|artifact| (artifact.name.clone(), artifact.digest.to_string()));
        let columns = package.columns.iter().map(|column| format!("{column:?}"));
        let graphs = format!("{:?}", package.graphs);
        Key::new(&self.engine, "snapshot")
            .with(package.component.to_string().as_bytes())
            .with_list("artifacts", &pairs(artifacts))
            .with_list("parameters", &pairs(package.parameters.iter().cloned()))
            .with_list("columns", &columns.collect::<Vec<_>>())
            .with_list("capabilities", &package.capabilities)
            .with(graphs.as_bytes())
            .with(&package.limits.memory_bytes.to_le_bytes())
            .digest()
    }
}

/// Names and values, alternating.
fn pairs(pairs: impl Iterator<Item = (String, String)>) -> Vec<String> {
    pairs.flat_map(|(name, value)| [name, value]).collect()
}

impl ModelRuntime for Runtime {
    fn load<'a>(
        &'a self,
        package: &'a Package,
        known: Option<&'a LoadReport>,
        memory: &'a Arc<MemoryBudget>,
    ) -> BoxFuture<'a, Result<Arc<dyn LoadedModel>, Error>> {
        Box::pin(async move {
            package.check_artifacts()?;
            if let Some(report) = known {
                // An older host may have registered a signature that this one refuses.
                let refused = |error: Error| error.with_code(ErrorCode::PluginFault).within("load");
                report.signature.check().map_err(refused)?;
            }
            let compiled = self.find_compiled(package, known, memory).await?;
            // The same bytes passed their examples before. But a GPU compiles its part again.
            let is_warm = compiled.as_ref().is_some_and(|loaded| loaded.graphs.is_none());
            let loaded = match compiled {
                Some(loaded) => loaded,
                None => self.load_package(package, known, memory).await?,
            };
            if !is_warm {
                let limit = if loaded.graphs.is_some() { self.config.load_deadline } else { loaded.limit };
                examples::run(&loaded, &package.examples, limit).await?;
            }
            Ok(Arc::new(loaded) as Arc<dyn LoadedModel>)
        })
    }
}

/// An instance after its `load`.
struct Scratch {
    instance: Instance,
    raw: wasmtime::component::Instance,
    signature: Signature,
}

/// Why there is no snapshot.
enum NoSnapshot {
    /// The tool does not support this kind of component.
    Refused(String),
    /// A step failed.
    Failed(Error),
}

impl From<Error> for NoSnapshot {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// As [`Instance::start`], but also returns the untyped handle for reading the memory.
async fn start_with_raw(
    pre: &RuntimePre<State>,
    mut store: wasmtime::Store<State>,
    limit: Duration,
) -> Result<(Instance, wasmtime::component::Instance), Error> {
    let stop = store.data().stop.clone();
    let raw = match stop.within(pre.instance_pre().instantiate_async(&mut store)).await {
        Ok(raw) => raw,
        Err(error) => return Err(fault::of_call(&error, store.data(), limit.as_millis())),
    };
    let runtime =
        crate::bindings::Runtime::new(&mut store, &raw).map_err(|error| fault::in_step("link", &error))?;
    Ok((Instance { store, runtime }, raw))
}
