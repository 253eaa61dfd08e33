//! The graphs of a version. They are opened from its files, found by name, and evaluated.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::graph::{Backend as Choice, Batching, GraphOptions, GraphStatus, Target};
use modelhost_core::infer::conform_inputs;
use modelhost_core::model::Signature;
use modelhost_core::ports::BoxFuture;
use modelhost_core::tensor::Tensor;
use modelhost_core::version::GRAPH_SUFFIX;
use modelhost_onnx::{check_signature, is_bounded};
use tokio::sync::Semaphore;
use tokio::time::timeout_at;

use crate::backend::{Backend, GraphFile};
use crate::library::{Library, has_cuda};
use crate::memory::{Held, Memory};
use crate::onnxruntime::{Device, OnnxRuntime, Settings};
use crate::reading::Readers;
use crate::schedule::{Lane, Scheduler};
use crate::tract::Tract;
use crate::untried::Untried;

/// Settings of all graphs.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// ONNX Runtime: its library, a folder that holds it, or a Python environment with the package `onnxruntime`.
    /// `None`: where the environment variables point.
    pub onnxruntime: Option<PathBuf>,
    /// Threads that evaluate graphs. `None`: one per core.
    pub threads: Option<usize>,
}

/// Reads graphs in another process ([`Untried::read`]) before this one does. Errors: plugin fault, if that takes more
/// than it may.
pub type TryFirst = Box<dyn Fn(Untried) -> BoxFuture<'static, Result<(), Error>> + Send + Sync>;

/// Opens graphs and evaluates them.
pub struct Runtime {
    config: Config,
    try_first: TryFirst,
    scheduler: Arc<Scheduler>,
    readers: Readers,
    threads: usize,
}

/// The graphs of a version, to be opened.
pub struct Opening {
    /// How they are evaluated.
    pub options: GraphOptions,
    /// How waiting requests are joined.
    pub batching: Batching,
    /// Bound on weights and tensors together, in bytes.
    pub bytes: u64,
    /// The version's files. Those whose name ends in `.onnx` are graphs.
    pub files: Vec<(String, Bytes)>,
    /// Whether these files were read successfully before.
    pub is_tried: bool,
}

impl Runtime {
    /// Starts nothing yet. Threads and libraries are started and loaded when they are needed.
    pub fn new(config: Config, try_first: TryFirst) -> Arc<Self> {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let threads = config.threads.unwrap_or_else(cores);
        let (scheduler, readers) = (Scheduler::new(threads), Readers::new());
        Arc::new(Self { config, try_first, scheduler, readers, threads })
    }

    /// Opens the graphs among a version's files. Untried graphs are read in another process first. Then they are read
    /// here, on their own threads, for a few versions at once. That may take `limit`. Errors: unsupported, if this
    /// host lacks a backend or device; plugin fault and too large, naming the file; deadline exceeded; resource
    /// exhausted, if too many others are read.
    pub async fn open(self: &Arc<Self>, opening: Opening, limit: Duration) -> Result<Graphs, Error> {
        let Opening { options, batching, bytes, files, is_tried } = opening;
        if !is_tried && files.iter().any(|(name, _)| is_graph(name)) {
            (self.try_first)(self.untried(&options, files.clone())).await?;
        }
        let mut graphs = Graphs {
            runtime: Arc::clone(self),
            options,
            batching,
            memory: Memory::new(bytes),
            named: Vec::new(),
            turn: Arc::new(Semaphore::new(1)),
        };
        let read = move || {
            for (name, file) in files.iter().filter(|(name, _)| is_graph(name)) {
                let graph = graphs.open(name, file, &files)?;
                tracing::info!(
                    graph = name,
                    backend = graph.backend,
                    device = graph.device,
                    "opened a graph"
                );
                graphs.named.push(Arc::new(graph));
            }
            Ok(graphs)
        };
        self.readers.read(Instant::now() + limit, read).await.map_err(|error| match error.code {
            ErrorCode::DeadlineExceeded | ErrorCode::ResourceExhausted => error.within("graphs"),
            _ => error,
        })
    }

    fn untried(&self, options: &GraphOptions, files: Vec<(String, Bytes)>) -> Untried {
        let library = || Library::place(self.config.onnxruntime.as_deref());
        Untried { files, onnxruntime: if options.backend == Choice::Tract { None } else { library() } }
    }
}

fn is_graph(name: &str) -> bool {
    name.ends_with(GRAPH_SUFFIX)
}

/// One version's graphs.
pub struct Graphs {
    runtime: Arc<Runtime>,
    options: GraphOptions,
    batching: Batching,
    memory: Arc<Memory>,
    named: Vec<Arc<Graph>>,
    /// Held while a graph from a component's bytes is read. It is one at a time, including those whose caller left.
    turn: Arc<Semaphore>,
}

impl Graphs {
    /// The graph of this artifact. The suffix `.onnx` may be left out. Errors: not found, listing the graphs.
    pub fn by_name(&self, name: &str) -> Result<Arc<Graph>, Error> {
        let is_named =
            |graph: &&Arc<Graph>| graph.name == name || graph.name.strip_suffix(GRAPH_SUFFIX) == Some(name);
        self.named.iter().find(is_named).cloned().ok_or_else(|| {
            let known: Vec<_> = self.named.iter().map(|graph| graph.name.as_str()).collect();
            Error::not_found(format!("graph {name:?} is none of this version's: {known:?}"))
        })
    }

    /// Reads a graph from a component's bytes, until `until` at the latest. The bytes are counted during that, beside
    /// the graph itself. Errors: as [`Runtime::open`]; also unsupported, if it asks for another target than the
    /// manifest.
    pub async fn load(self: &Arc<Self>, file: Bytes, target: Target, until: Instant) -> Result<Graph, Error> {
        let allowed = self.options.target;
        if allowed != Target::Auto && allowed != target {
            let why = format!("a graph for {target:?}: the manifest's [graphs] target is {allowed:?}");
            return Err(Error::new(ErrorCode::Unsupported, why));
        }
        let held = self.memory.weights(file.len() as u64)?;
        let late =
            || Error::new(ErrorCode::DeadlineExceeded, "another graph of this version was not read in time");
        let turn = timeout_at(until.into(), Arc::clone(&self.turn).acquire_owned()).await;
        let turn = turn.map_err(|_| late())?.map_err(|_| late())?;
        let untried = self.runtime.untried(&self.options, vec![("loaded.onnx".to_owned(), file.clone())]);
        let tried = timeout_at(until.into(), (self.runtime.try_first)(untried)).await;
        tried.map_err(|_| Error::new(ErrorCode::DeadlineExceeded, "it was not tried in time"))??;
        let graphs = Arc::clone(self);
        let read = move || {
            let _until_it_is_read = (held, turn);
            graphs.open("loaded by the component", &file, &[])
        };
        self.runtime.readers.read(until, read).await
    }

    /// Counts a tensor that a component holds. Errors: resource exhausted; plugin fault, if it exceeds the limit
    /// alone.
    pub fn hold(&self, tensor: &Tensor) -> Result<Held, Error> {
        self.memory.tensors(std::slice::from_ref(tensor), ErrorCode::PluginFault)
    }

    /// What the graphs did.
    pub fn status(&self) -> Vec<GraphStatus> {
        let (weight_bytes, tensor_bytes) = self.memory.held();
        let status = |graph: &Arc<Graph>| GraphStatus {
            name: graph.name.clone(),
            backend: graph.backend.clone(),
            device: graph.device.clone(),
            weight_bytes,
            tensor_bytes,
            busy: graph.lane.busy(),
            batch_rows: graph.lane.batch_rows.read(),
            queued_micros: graph.lane.queued_micros.read(),
        };
        self.named.iter().map(status).collect()
    }

    /// Bytes of their weights.
    pub fn weight_bytes(&self) -> u64 {
        self.memory.held().0
    }

    fn open(&self, name: &str, content: &Bytes, files: &[(String, Bytes)]) -> Result<Graph, Error> {
        let opened = GraphFile::new(content, files).and_then(|file| self.choose(&file));
        let opened = opened.and_then(|opened| {
            check_signature(opened.backend.signature()).map_err(Error::fault)?;
            Ok(opened)
        });
        let Opened { backend, label, device } =
            opened.map_err(|error| error.within(format_args!("graph {name}")))?;
        let lane = Arc::new(Lane::new(backend, self.batching, is_bounded(content), &self.memory));
        Ok(Graph {
            name: name.to_owned(),
            backend: label,
            device,
            lane,
            memory: Arc::clone(&self.memory),
            scheduler: Arc::clone(&self.runtime.scheduler),
        })
    }

    /// Opens the graph with the manifest's backend, or with the best one on this host.
    fn choose(&self, file: &GraphFile) -> Result<Opened, Error> {
        let GraphOptions { backend, target, device, .. } = self.options;
        if backend == Choice::Tract {
            return self.tract(file);
        }
        let library = match Library::get(self.runtime.config.onnxruntime.as_deref()) {
            Ok(library) => library,
            Err(_) if backend == Choice::Auto && target != Target::Gpu => return self.tract(file),
            Err(why) => {
                let text = "graphs: this host has no ONNX Runtime that can be used, and its log says why";
                return Err(Error::new(ErrorCode::Unsupported, text).because(why));
            }
        };
        let gpu = if target == Target::Cpu { None } else { gpu(&library, device) };
        match (gpu, target) {
            (Some(gpu), Target::Gpu) => self.onnxruntime(library, gpu, file),
            (None, Target::Gpu) => {
                let there = library.devices();
                let why = format!("graphs: target = \"gpu\" asks for GPU {device}; this host has {there}");
                Err(Error::new(ErrorCode::Unsupported, why))
            }
            (Some(gpu), _) => self.onnxruntime(library.clone(), gpu, file).or_else(|error| {
                let error = error.chain();
                tracing::warn!(%error, "the GPU cannot be used; the graph is evaluated on the processor");
                self.onnxruntime(library, Device::Cpu, file)
            }),
            (None, _) => self.onnxruntime(library, Device::Cpu, file),
        }
    }

    fn tract(&self, file: &GraphFile) -> Result<Opened, Error> {
        let backend = Box::new(Tract::open(file, &self.memory)?);
        Ok(Opened { backend, label: "tract".to_owned(), device: "cpu".to_owned() })
    }

    fn onnxruntime(&self, library: Library, device: Device, file: &GraphFile) -> Result<Opened, Error> {
        let label = format!("onnxruntime {}", library.version);
        let usual = if device == Device::Cpu { self.runtime.threads } else { 1 };
        let settings = Settings {
            device,
            threads: self.options.threads as usize,
            sessions: self.options.sessions.map_or(usual, |sessions| sessions as usize),
        };
        let backend = Box::new(OnnxRuntime::open(library, settings, &self.memory, file)?);
        Ok(Opened { backend, label, device: device.to_string() })
    }
}

struct Opened {
    backend: Box<dyn Backend>,
    label: String,
    device: String,
}

/// Uses CUDA if ONNX Runtime has it, else WebGPU.
fn gpu(library: &Library, at: u32) -> Option<Device> {
    if has_cuda() {
        return Some(Device::Cuda(at));
    }
    let found = library.webgpu().is_ok_and(|devices| !devices.is_empty());
    found.then_some(Device::WebGpu(at))
}

/// An open graph.
pub struct Graph {
    name: String,
    backend: String,
    device: String,
    lane: Arc<Lane>,
    memory: Arc<Memory>,
    scheduler: Arc<Scheduler>,
}

impl Graph {
    /// Its signature.
    pub fn signature(&self) -> &Signature {
        self.lane.backend.signature()
    }

    /// Evaluates the graph. Each input must come once, in any order. Returns all outputs. Gives up at `until`, and
    /// when the future is dropped. Errors: invalid argument, naming the input, what was expected and what came;
    /// deadline exceeded; resource exhausted; plugin fault.
    pub async fn compute(&self, mut inputs: Vec<Tensor>, until: Instant) -> Result<Vec<Tensor>, Error> {
        conform_inputs(self.signature(), &mut inputs)?;
        let held = self.memory.tensors(&inputs, ErrorCode::InvalidArgument)?;
        let outputs = self.scheduler.run(&self.lane, inputs, held, until).await?;
        let _outputs_held = self.memory.tensors(&outputs, ErrorCode::PluginFault)?;
        Ok(outputs)
    }
}
