//! ONNX Runtime. A session evaluates one request at a time, as ort's documentation requires. So a graph has several
//! sessions. One more is made when all are busy, up to a bound and within the version's memory.

mod said;

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use half::slice::HalfFloatSliceExt as _;
use half::{bf16, f16};
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::model::Signature;
use modelhost_core::tensor::{DType, Tensor, TensorSpec};
use modelhost_onnx::check_names;
use ort::ep::{self, ArenaExtendStrategy};
use ort::session::builder::SessionBuilder;
use ort::session::{RunOptions, Session, SessionInputValue, SessionOutputs};
use ort::value::{
    DynSequenceValueType, DynValue, MapValueType, Outlet, PrimitiveTensorElementType, Shape, Tensor as Value,
    TensorElementType, TensorRef, ValueType,
};

use crate::backend::{Backend, GraphFile, STOP_EVERY, Stop, left};
use crate::cuda;
use crate::library::Library;
use crate::memory::{Held, Memory};
use crate::webgpu;

use said::Said;

/// The folder where ONNX Runtime looks for a graph's other files. Source: onnxruntime_session_options_config_keys.h.
const BESIDE: &str = "session.model_external_initializers_file_folder_path";
const NOWHERE: &str = "/nonexistent";

/// Where a graph is evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Device {
    Cpu,
    Cuda(u32),
    WebGpu(u32),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(at) => write!(f, "cuda:{at}"),
            Self::WebGpu(at) => write!(f, "webgpu:{at}"),
        }
    }
}

impl Device {
    /// The lock that is held while a session on this device is made, used or dropped. Errors: the evaluation was
    /// stopped.
    fn turn(self, stop: Option<&Stop>) -> Result<Option<webgpu::Turn>, Error> {
        match self {
            Self::Cpu | Self::Cuda(_) => Ok(None),
            Self::WebGpu(_) => webgpu::turn(stop).map(Some).ok_or_else(left),
        }
    }
}

/// How a graph's sessions are made.
pub(crate) struct Settings {
    pub(crate) device: Device,
    pub(crate) threads: usize,
    /// Most sessions.
    pub(crate) sessions: usize,
}

pub(crate) struct OnnxRuntime {
    library: Library,
    settings: Settings,
    memory: Arc<Memory>,
    signature: Signature,
    /// The names of each input's dimensions. An unnamed dimension has an empty name.
    names: Vec<Vec<String>>,
    sessions: Mutex<Sessions>,
    freed: Condvar,
}

struct Sessions {
    idle: Vec<Session>,
    /// The counted bytes of each session.
    held: Vec<Held>,
    /// The file, as long as more sessions may be made.
    file: Option<(GraphFile, Held)>,
}

impl OnnxRuntime {
    /// Makes the first session. Errors: plugin fault, naming what is wrong with the file; too large; unsupported, if
    /// the device cannot be used; resource exhausted, if it has no memory left.
    pub(crate) fn open(
        library: Library,
        settings: Settings,
        memory: &Arc<Memory>,
        file: &GraphFile,
    ) -> Result<Self, Error> {
        let weights = memory.weights(file.bytes)?;
        let _turn = settings.device.turn(None)?;
        let session = session(&library, &settings, memory, file)?;
        let signature = Signature {
            inputs: session.inputs().iter().map(|input| spec("input", input)).collect::<Result<_, _>>()?,
            outputs: session
                .outputs()
                .iter()
                .map(|output| spec("output", output))
                .collect::<Result<_, _>>()?,
        };
        let names = session.inputs().iter().map(|input| match input.dtype() {
            ValueType::Tensor { dimension_symbols, .. } => dimension_symbols.iter().cloned().collect(),
            _ => Vec::new(),
        });
        let names = names.collect();
        let file = if settings.sessions > 1 {
            memory.weights(file.bytes).ok().map(|weights| (file.clone(), weights))
        } else {
            None
        };
        Ok(Self {
            library,
            settings,
            memory: Arc::clone(memory),
            signature,
            names,
            sessions: Mutex::new(Sessions { idle: vec![session], held: vec![weights], file }),
            freed: Condvar::new(),
        })
    }

    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Errors: invalid argument, if dimensions of one name differ.
    fn check(&self, inputs: &[Tensor]) -> Result<(), Error> {
        check_names(inputs, |at| {
            let names = self.names.get(at).into_iter().flatten();
            names.map(|name| Some(name.as_str()).filter(|name| !name.is_empty()))
        })
    }

    /// Takes a free session, makes one, or waits for one. `None`: the evaluation was stopped.
    fn take(&self, stop: &Stop) -> Option<Session> {
        let mut sessions = self.sessions();
        loop {
            if let Some(session) = sessions.idle.pop() {
                return Some(session);
            }
            if stop.is_asked() {
                return None;
            }
            if let Some((file, weights)) = sessions.file.take() {
                let more = self.memory.weights(file.bytes);
                if let Ok(held) = more {
                    sessions.held.push(held);
                    if sessions.held.len() < self.settings.sessions {
                        sessions.file = Some((file.clone(), weights));
                    }
                    drop(sessions);
                    let _turn = self.settings.device.turn(None);
                    match session(&self.library, &self.settings, &self.memory, &file) {
                        Ok(session) => return Some(session),
                        Err(error) => {
                            tracing::warn!(error = %error.chain(), "one session more could not be made")
                        }
                    }
                    sessions = self.sessions();
                    sessions.held.pop();
                    sessions.file = None;
                }
                continue;
            }
            // An evaluation waits here only if memory allows fewer sessions than were asked for, or if a short
            // evaluation uses one.
            let wait = self.freed.wait_timeout(sessions, STOP_EVERY);
            sessions = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// A session in use. Dropping this frees it.
struct Taken<'a> {
    of: &'a OnnxRuntime,
    session: Option<Session>,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.of.sessions().idle.extend(self.session.take());
        self.of.freed.notify_one();
    }
}

impl Taken<'_> {
    fn evaluate(&mut self, inputs: &[Tensor], stop: Option<&Stop>) -> Result<Vec<Tensor>, Error> {
        let Some(session) = &mut self.session else {
            return Err(Error::internal("a session was given back"));
        };
        let values: Vec<SessionInputValue<'_>> = inputs.iter().map(input).collect::<Result<_, _>>()?;
        let OnnxRuntime { signature, memory, .. } = self.of;
        let read = |outputs: SessionOutputs<'_>| {
            let specs = signature.outputs.iter();
            specs.zip(outputs.values()).map(|(spec, value)| output(spec, &value)).collect()
        };
        let failed = |error: ort::Error| match said::of(error.message()) {
            Said::NoMemory => no_memory(&error, memory),
            Said::NoDevice | Said::Other => of_run(error),
        };
        let Some(stop) = stop else { return read(session.run(values.as_slice()).map_err(failed)?) };
        let options = Arc::new(RunOptions::new().map_err(of_run)?);
        let end = Arc::clone(&options);
        stop.set(Arc::new(move || drop(end.terminate())));
        read(session.run_with_options(values.as_slice(), &*options).map_err(failed)?)
    }
}

impl Backend for OnnxRuntime {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn run(&self, inputs: &[Tensor], stop: &Stop) -> Result<Vec<Tensor>, Error> {
        self.check(inputs)?;
        let mut taken = Taken { of: self, session: Some(self.take(stop).ok_or_else(left)?) };
        let _turn = self.settings.device.turn(Some(stop))?;
        taken.evaluate(inputs, Some(stop))
    }

    fn run_now(&self, inputs: &[Tensor]) -> Result<Option<Vec<Tensor>>, Error> {
        self.check(inputs)?;
        let idle = self.sessions().idle.pop();
        let Some(session) = idle else { return Ok(None) };
        Taken { of: self, session: Some(session) }.evaluate(inputs, None).map(Some)
    }

    fn width(&self) -> usize {
        self.settings.sessions
    }

    fn is_on_cpu(&self) -> bool {
        self.settings.device == Device::Cpu && self.settings.threads == 1
    }
}

impl Drop for OnnxRuntime {
    fn drop(&mut self) {
        let device = self.settings.device;
        if let Device::WebGpu(_) = device {
            let sessions = std::mem::take(&mut self.sessions().idle);
            // Dropping a version does not wait for the evaluations of others.
            drop(thread::Builder::new().name("webgpu".to_owned()).spawn(move || {
                let _turn = device.turn(None);
                drop(sessions);
            }));
        }
    }
}

/// Makes a session. The caller holds the device's lock. It reads no file of this machine, because it gets the content
/// of the graph's other files.
fn session(
    library: &Library,
    settings: &Settings,
    memory: &Memory,
    file: &GraphFile,
) -> Result<Session, Error> {
    let builder = Session::builder(&library.environment)
        .and_then(|builder| {
            let builder = builder.with_intra_threads(settings.threads)?.with_inter_threads(1)?;
            // Spinning threads would take the processor from other versions.
            let builder = builder.with_intra_op_spinning(false)?.with_config_entry(BESIDE, NOWHERE)?;
            file.beside.iter().try_fold(builder, |builder, (name, content)| {
                Ok(builder.with_external_initializer_file_in_memory(name, content.as_ref().into())?)
            })
        })
        .map_err(|error| Error::internal("ONNX Runtime takes no settings for a session").because(error))?;
    let unusable = |why: &str| {
        let (device, there) = (settings.device, library.devices());
        let text = format!("graphs: {device} cannot be used: {why}; this host has {there}");
        Error::new(ErrorCode::Unsupported, text)
    };
    let mut builder = on_device(builder, library, settings.device, memory).map_err(|why| unusable(&why))?;
    builder.commit_from_memory(&file.content).map_err(|error| match said::of(error.message()) {
        Said::NoMemory => no_memory(&error, memory),
        Said::NoDevice if settings.device != Device::Cpu => unusable(&logged(error.message())),
        Said::NoDevice | Said::Other => Error::fault(error.message()),
    })
}

/// Errors: why the device cannot be used.
fn on_device(
    builder: SessionBuilder,
    library: &Library,
    device: Device,
    memory: &Memory,
) -> Result<SessionBuilder, String> {
    match device {
        Device::Cpu => Ok(builder),
        Device::Cuda(at) => {
            cuda::preload(&library.path);
            let cuda = ep::CUDA::default()
                .with_device_id(i32::try_from(at).unwrap_or(i32::MAX))
                .with_memory_limit(usize::try_from(memory.limit).unwrap_or(usize::MAX))
                .with_arena_extend_strategy(ArenaExtendStrategy::SameAsRequested)
                .build()
                .error_on_failure();
            builder.with_execution_providers([cuda]).map_err(|error| logged(error.message()))
        }
        Device::WebGpu(at) => {
            let device = library.webgpu()?.into_iter().nth(at as usize).ok_or("there is no such device")?;
            builder.with_devices([device], None).map_err(|error| logged(error.message()))
        }
    }
}

/// ONNX Runtime's messages about devices name files of this host, so they go to the log.
fn logged(said: &str) -> String {
    tracing::warn!(error = said, "a graph's device cannot be used");
    "the host's log says why".to_owned()
}

fn no_memory(error: &ort::Error, memory: &Memory) -> Error {
    let (limit, said) = (memory.limit >> 20, error.message());
    Error::new(
        ErrorCode::ResourceExhausted,
        format!("the graph needs more memory than there is, or than its limit of {limit} MiB: {said}"),
    )
}

#[derive(Clone, Copy)]
enum Kind {
    Plain(DType),
    /// The default output of scikit-learn's classifiers: a row is a map from class to probability. Served as [rows,
    /// classes].
    ProbabilitiesByNumber,
    ProbabilitiesByName,
}

fn kind(value: &ValueType) -> Option<(Kind, Vec<Option<u64>>)> {
    match value {
        ValueType::Tensor { ty, shape, .. } => {
            let shape = shape.iter().map(|size| u64::try_from(*size).ok()).collect();
            Some((Kind::Plain(dtype(*ty)?), shape))
        }
        ValueType::Sequence(row) => match **row {
            ValueType::Map { key: TensorElementType::Int64, value: TensorElementType::Float32 } => {
                Some((Kind::ProbabilitiesByNumber, vec![None, None]))
            }
            ValueType::Map { key: TensorElementType::String, value: TensorElementType::Float32 } => {
                Some((Kind::ProbabilitiesByName, vec![None, None]))
            }
            _ => None,
        },
        ValueType::Map { .. } | ValueType::Optional(_) => None,
    }
}

fn spec(role: &str, outlet: &Outlet) -> Result<TensorSpec, Error> {
    let (kind, shape) = kind(outlet.dtype()).ok_or_else(|| {
        Error::fault(format!("{role} {:?}: its type {} is not served", outlet.name(), outlet.dtype()))
    })?;
    let dtype = match kind {
        Kind::Plain(dtype) => dtype,
        Kind::ProbabilitiesByNumber | Kind::ProbabilitiesByName => DType::Fp32,
    };
    Ok(TensorSpec { name: outlet.name().to_owned(), dtype, shape, columns: [].into() })
}

fn dtype(element: TensorElementType) -> Option<DType> {
    Some(match element {
        TensorElementType::Bool => DType::Bool,
        TensorElementType::Uint8 => DType::Uint8,
        TensorElementType::Uint16 => DType::Uint16,
        TensorElementType::Uint32 => DType::Uint32,
        TensorElementType::Uint64 => DType::Uint64,
        TensorElementType::Int8 => DType::Int8,
        TensorElementType::Int16 => DType::Int16,
        TensorElementType::Int32 => DType::Int32,
        TensorElementType::Int64 => DType::Int64,
        TensorElementType::Float16 => DType::Fp16,
        TensorElementType::Bfloat16 => DType::Bf16,
        TensorElementType::Float32 => DType::Fp32,
        TensorElementType::Float64 => DType::Fp64,
        TensorElementType::String => DType::Bytes,
        _ => return None,
    })
}

/// Converts a tensor for the session. It is not copied if its alignment allows. Errors: invalid argument, if a BYTES
/// element is not UTF-8.
fn input(tensor: &Tensor) -> Result<SessionInputValue<'_>, Error> {
    match tensor.dtype() {
        DType::Bool => {
            let data = bytemuck::checked::try_cast_slice::<u8, bool>(tensor.data());
            let data = data.map_err(|error| {
                Error::internal("a BOOL tensor holds other bytes than 0 and 1").because(error.to_string())
            })?;
            view(tensor, data)
        }
        DType::Uint8 => numbers::<u8>(tensor),
        DType::Uint16 => numbers::<u16>(tensor),
        DType::Uint32 => numbers::<u32>(tensor),
        DType::Uint64 => numbers::<u64>(tensor),
        DType::Int8 => numbers::<i8>(tensor),
        DType::Int16 => numbers::<i16>(tensor),
        DType::Int32 => numbers::<i32>(tensor),
        DType::Int64 => numbers::<i64>(tensor),
        DType::Fp16 => numbers::<f16>(tensor),
        DType::Bf16 => numbers::<bf16>(tensor),
        DType::Fp32 => numbers::<f32>(tensor),
        DType::Fp64 => numbers::<f64>(tensor),
        DType::Bytes => strings(tensor),
    }
}

fn numbers<T: PrimitiveTensorElementType + bytemuck::Pod + Clone + std::fmt::Debug + 'static>(
    tensor: &Tensor,
) -> Result<SessionInputValue<'_>, Error> {
    match bytemuck::try_cast_slice::<u8, T>(tensor.data()) {
        Ok(data) => view(tensor, data),
        Err(_) => {
            let data: Vec<T> = bytemuck::pod_collect_to_vec(tensor.data());
            Ok(Value::from_array((shape(tensor)?, data)).map_err(of_run)?.into())
        }
    }
}

fn view<'a, T: PrimitiveTensorElementType + Clone + std::fmt::Debug + 'static>(
    tensor: &Tensor,
    data: &'a [T],
) -> Result<SessionInputValue<'a>, Error> {
    Ok(TensorRef::from_array_view((shape(tensor)?, data)).map_err(of_run)?.into())
}

fn strings(tensor: &Tensor) -> Result<SessionInputValue<'static>, Error> {
    let refused = |why: &str| Error::invalid(format!("input {:?}: an element {why}", tensor.name()));
    let texts = tensor.bytes_elements().map(|element| match str::from_utf8(element) {
        Ok(text) if text.contains('\0') => Err(refused("holds a NUL, which ONNX Runtime cannot take")),
        Ok(text) => Ok(text.to_owned()),
        Err(error) => Err(refused(&format!("is no UTF-8: {error}"))),
    });
    let texts: Vec<String> = texts.collect::<Result<_, _>>()?;
    Ok(Value::from_string_array((shape(tensor)?, texts.as_slice())).map_err(of_run)?.into())
}

fn shape(tensor: &Tensor) -> Result<Vec<i64>, Error> {
    let sizes = tensor.shape().iter().map(|size| i64::try_from(*size));
    sizes.collect::<Result<_, _>>().map_err(|_| {
        Error::invalid(format!("input {:?}: shape {:?} is too large", tensor.name(), tensor.shape()))
    })
}

fn output(spec: &TensorSpec, value: &DynValue) -> Result<Tensor, Error> {
    let (kind, _) = kind(value.dtype()).ok_or_else(|| {
        Error::fault(format!("output {:?}: type {} is not served", spec.name, value.dtype()))
    })?;
    let (shape, data) = match kind {
        Kind::Plain(DType::Bytes) => {
            let (shape, texts) = value.try_extract_strings().map_err(of_run)?;
            let elements = texts.iter().map(String::as_bytes);
            return Tensor::from_bytes_elements(spec.name.clone(), sizes(shape), elements);
        }
        Kind::Plain(dtype) => elements(value, dtype)?,
        Kind::ProbabilitiesByNumber => by_class::<i64>(value)?,
        Kind::ProbabilitiesByName => by_class::<String>(value)?,
    };
    Tensor::new(spec.name.clone(), spec.dtype, shape, data.into())
        .map_err(|error| Error::fault(format!("output {error}")))
}

fn elements(value: &DynValue, dtype: DType) -> Result<(Vec<u64>, Vec<u8>), Error> {
    macro_rules! of {
        ($rust:ty) => {{
            let (shape, data) = value.try_extract_tensor::<$rust>().map_err(of_run)?;
            (sizes(shape), bytemuck::cast_slice(data).to_vec())
        }};
        ($rust:ty, half) => {{
            let (shape, data) = value.try_extract_tensor::<$rust>().map_err(of_run)?;
            (sizes(shape), bytemuck::cast_slice(data.reinterpret_cast()).to_vec())
        }};
    }
    Ok(match dtype {
        DType::Bool => of!(bool),
        DType::Uint8 => of!(u8),
        DType::Uint16 => of!(u16),
        DType::Uint32 => of!(u32),
        DType::Uint64 => of!(u64),
        DType::Int8 => of!(i8),
        DType::Int16 => of!(i16),
        DType::Int32 => of!(i32),
        DType::Int64 => of!(i64),
        DType::Fp16 => of!(f16, half),
        DType::Bf16 => of!(bf16, half),
        DType::Fp32 => of!(f32),
        DType::Fp64 => of!(f64),
        DType::Bytes => return Err(Error::internal("BYTES have no plain elements")),
    })
}

/// Rows of probabilities, ordered by class.
fn by_class<K>(value: &DynValue) -> Result<(Vec<u64>, Vec<u8>), Error>
where
    K: ort::value::IntoTensorElementType + Clone + std::hash::Hash + Eq + Ord + std::fmt::Debug + 'static,
    MapValueType<K, f32>: ort::value::ValueTypeMarker + ort::value::DowncastableTarget,
{
    let sequence = value.view().downcast::<DynSequenceValueType>().map_err(of_run)?;
    let rows = sequence.try_extract_sequence::<MapValueType<K, f32>>().map_err(of_run)?;
    let (mut classes, mut data) = (0, Vec::new());
    for row in &rows {
        let mut row = row.try_extract_key_values::<K, f32>().map_err(of_run)?;
        row.sort_by(|(one, _), (other, _)| one.cmp(other));
        classes = row.len();
        data.extend(row.iter().flat_map(|(_, probability)| probability.to_le_bytes()));
    }
    Ok((vec![rows.len() as u64, classes as u64], data))
}

fn sizes(shape: &Shape) -> Vec<u64> {
    shape.iter().map(|size| u64::try_from(*size).unwrap_or(0)).collect()
}

/// Maps the error of an evaluation. ONNX Runtime reports invalid argument for values that the graph cannot take.
fn of_run(error: ort::Error) -> Error {
    let code = match error.code() {
        ort::ErrorCode::InvalidArgument => ErrorCode::InvalidArgument,
        _ => ErrorCode::PluginFault,
    };
    Error::new(code, error.message().to_owned())
}
