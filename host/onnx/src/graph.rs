//! An ONNX graph: its signature, and its evaluation by tract.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use modelhost_core::error::Error;
use modelhost_core::model::Signature;
use modelhost_core::tensor::{DType, Tensor, TensorSpec};
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::tensor_shape_proto::dimension;
use tract_onnx::pb::{ModelProto, ValueInfoProto, type_proto};
use tract_onnx::prelude::*;
use tract_onnx::tract_hir::infer::{InferenceFact, ShapeFactoid};

use crate::check::{check_graph, fed};
use crate::element;
use crate::external::bring_in;
use crate::needs::{Leave, Needs, Unbounded, constants};

/// A graph that can be evaluated.
pub struct Graph {
    inputs: Vec<Value>,
    outputs: Vec<Value>,
    symbols: SymbolScope,
    plans: Plans,
}

/// One input or output of the graph.
struct Value {
    name: String,
    dtype: DType,
    dims: Vec<Dim>,
}

enum Dim {
    Fixed(usize),
    /// All dimensions of one name have the same size.
    Named(String),
}

/// The plans of a graph. tract cannot plan every graph with open dimensions. For some graphs it makes such a plan,
/// but the evaluation fails. These graphs are planned for the shapes of each request.
struct Plans {
    /// The plan for all shapes. It is not used after an evaluation showed that it fails.
    any: Option<Arc<Plan>>,
    any_failed: AtomicBool,
    model: InferenceModel,
    /// The latest plans, newest last.
    per_shape: Mutex<Vec<(Shapes, Arc<Plan>)>>,
}

struct Plan {
    runnable: Arc<TypedRunnableModel>,
    needs: Needs,
    /// Bytes of its constants.
    constants: u64,
}

type Shapes = Vec<Vec<usize>>;

/// How many plans for shapes are kept, and how many bytes of constants they may have. The latest plan is always kept.
const KEPT_PLANS: usize = 16;
const KEPT_BYTES: u64 = 64 << 20;

/// Why an evaluation gave no answer.
enum Failed {
    /// It was not allowed to go on.
    Ended(Error),
    /// The graph failed.
    Graph(String),
}

impl From<Failed> for Error {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Ended(error) => error,
            Failed::Graph(why) => Self::fault(why),
        }
    }
}

impl Graph {
    /// Reads an ONNX file, usually of operator sets 9 to 18. `beside` returns the content of a file beside it that
    /// holds weights, or says why there is none. Errors: what is wrong with the file, naming the operator or the
    /// tensor.
    pub fn parse(file: &[u8], beside: &dyn Fn(&str) -> Result<Bytes, String>) -> Result<Self, String> {
        // The shapes of inner values in a file hold for open dimensions only. tract infers them itself.
        let onnx = tract_onnx::onnx().with_ignore_value_info(true).with_ignore_output_shapes(true);
        let mut proto = decode(file)?;
        bring_in(&mut proto, beside)?;
        let graph = proto.graph.as_ref().ok_or("it holds no graph")?;
        check_graph(graph)?;
        let inputs: Vec<_> = fed(graph).map(|value| Value::read("input", value)).collect::<Result<_, _>>()?;
        let outputs: Vec<_> =
            graph.output.iter().map(|value| Value::read("output", value)).collect::<Result<_, _>>()?;
        let mut model = onnx.model_for_proto_model(&proto).map_err(|error| format!("{error:#}"))?;
        if model.inputs.len() != inputs.len() || model.outputs.len() != outputs.len() {
            return Err("an input or output of the graph is declared twice, or nothing makes it".to_owned());
        }
        for (at, value) in inputs.iter().enumerate() {
            let shape = value.shape(&model.symbols);
            set_input(&mut model, at, value, shape)?;
        }
        let symbols = model.symbols.clone();
        // tract panics if the batch of a recurrent operator is open.
        let recurs = graph.node.iter().any(|node| matches!(&*node.op_type, "LSTM" | "GRU" | "RNN"));
        let any = if recurs { None } else { plan(model.clone()).ok() };
        let plans = Plans { any, any_failed: AtomicBool::new(false), model, per_shape: Mutex::default() };
        if plans.any.is_none() {
            // If it cannot be planned for one row either, open dimensions are not the reason.
            plans.for_shapes(&inputs, inputs.iter().map(Value::smallest).collect())?;
        }
        Ok(Self { inputs, outputs, symbols, plans })
    }

    /// The signature. A dimension without a fixed size is open.
    pub fn signature(&self) -> Signature {
        let specs = |values: &[Value]| values.iter().map(Value::spec).collect();
        Signature { inputs: specs(&self.inputs), outputs: specs(&self.outputs) }
    }

    /// Bytes of the weights and all other constants, as they are evaluated.
    pub fn constant_bytes(&self) -> u64 {
        self.plans
            .any
            .as_ref()
            .or(self.plans.kept().last().map(|(_, plan)| plan))
            .map_or(0, |plan| plan.constants)
    }

    /// Checks that an evaluation would be allowed if every open dimension had size 1, as far as sizes follow from
    /// dimensions. Errors: why it would not.
    pub fn rehearse(&self, leave: &mut dyn Leave) -> Result<(), Error> {
        let kept = self.plans.kept();
        let Some(plan) = self.plans.any.as_ref().or(kept.last().map(|(_, plan)| plan)) else { return Ok(()) };
        let mut sizes = SymbolValues::default();
        for name in self.inputs.iter().flat_map(Value::names).flatten() {
            sizes.set(&self.symbols.sym(name), 1);
        }
        let order = plan.runnable.order_without_consts();
        let rehearsed = plan.needs.begin(leave).rehearse(plan.runnable.model(), order, &sizes);
        rehearsed.map_err(|error| failed(error).into())
    }

    /// Evaluates the graph. The inputs must agree with the signature. Errors: invalid argument, if dimensions of one
    /// name differ; plugin fault.
    pub fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, Error> {
        self.run_within(inputs, &mut Unbounded)
    }

    /// As [`Graph::run`], but `leave` may end it. Errors: also those of `leave`.
    pub fn run_within(&self, inputs: &[Tensor], leave: &mut dyn Leave) -> Result<Vec<Tensor>, Error> {
        let sizes = self.sizes(inputs)?;
        let answers = self.plans.run(&self.inputs, values(inputs)?, leave)?;
        self.answer(&answers, &sizes)
    }

    /// As [`Graph::run_within`], but only if a plan for these shapes exists, because making one may take long.
    /// `None`: there is none.
    pub fn run_planned(
        &self,
        inputs: &[Tensor],
        leave: &mut dyn Leave,
    ) -> Result<Option<Vec<Tensor>>, Error> {
        let sizes = self.sizes(inputs)?;
        let answers = self.plans.run_kept(values(inputs)?, leave)?;
        answers.map(|answers| self.answer(&answers, &sizes)).transpose()
    }

    fn answer(&self, answers: &[TValue], sizes: &SymbolValues) -> Result<Vec<Tensor>, Error> {
        let named = self.outputs.iter().zip(answers);
        named.map(|(value, answer)| element::write(&value.name, value.dtype, answer, sizes)).collect()
    }

    /// The sizes of the named dimensions in this request. Errors: invalid argument.
    fn sizes(&self, inputs: &[Tensor]) -> Result<SymbolValues, Error> {
        check_names(inputs, |at| self.inputs.get(at).into_iter().flat_map(Value::names))?;
        let mut sizes = SymbolValues::default();
        for (value, tensor) in self.inputs.iter().zip(inputs) {
            for (name, came) in value.names().zip(tensor.shape()) {
                if let Some(name) = name {
                    sizes.set(&self.symbols.sym(name), i64::try_from(*came).unwrap_or(i64::MAX));
                }
            }
        }
        Ok(sizes)
    }
}

fn values(inputs: &[Tensor]) -> Result<TVec<TValue>, Error> {
    inputs.iter().map(|tensor| element::read(tensor).map(IntoTValue::into_tvalue)).collect()
}

fn shapes(values: &[TValue]) -> Shapes {
    values.iter().map(|value| value.shape().to_vec()).collect()
}

impl Plans {
    fn run(
        &self,
        inputs: &[Value],
        values: TVec<TValue>,
        leave: &mut dyn Leave,
    ) -> Result<TVec<TValue>, Failed> {
        let shapes = shapes(&values);
        if let Some(any) = self.any() {
            let why = match any.run(values.clone(), leave) {
                Err(Failed::Graph(why)) => why,
                ended => return ended,
            };
            // The values may also be the reason. Then the plan for their shapes fails too, with the same error.
            let plan = self.for_shapes(inputs, shapes).map_err(Failed::Graph);
            let answers = plan.and_then(|plan| plan.run(values, leave));
            self.any_failed.store(answers.is_ok(), Ordering::Relaxed);
            return answers.map_err(|failed| match failed {
                Failed::Graph(also) => Failed::Graph(format!("{why}; for its shapes: {also}")),
                ended @ Failed::Ended(_) => ended,
            });
        }
        self.for_shapes(inputs, shapes).map_err(Failed::Graph)?.run(values, leave)
    }

    fn run_kept(&self, values: TVec<TValue>, leave: &mut dyn Leave) -> Result<Option<TVec<TValue>>, Failed> {
        if let Some(any) = self.any() {
            return match any.run(values, leave) {
                Err(Failed::Graph(_)) => Ok(None), // it may be the plan's fault
                ended => ended.map(Some),
            };
        }
        let plan = self.kept_for(&shapes(&values));
        plan.map(|plan| plan.run(values, leave)).transpose()
    }

    fn any(&self) -> Option<&Arc<Plan>> {
        self.any.as_ref().filter(|_| !self.any_failed.load(Ordering::Relaxed))
    }

    fn kept(&self) -> MutexGuard<'_, Vec<(Shapes, Arc<Plan>)>> {
        self.per_shape.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kept_for(&self, shapes: &Shapes) -> Option<Arc<Plan>> {
        self.kept().iter().find(|(known, _)| known == shapes).map(|(_, plan)| Arc::clone(plan))
    }

    fn for_shapes(&self, inputs: &[Value], shapes: Shapes) -> Result<Arc<Plan>, String> {
        if let Some(plan) = self.kept_for(&shapes) {
            return Ok(plan);
        }
        let mut model = self.model.clone();
        for (at, (value, shape)) in inputs.iter().zip(&shapes).enumerate() {
            set_input(&mut model, at, value, shape.as_slice())?;
        }
        let plan = plan(model)?;
        let mut kept = self.kept();
        kept.push((shapes, Arc::clone(&plan)));
        let bytes = |kept: &[(Shapes, Arc<Plan>)]| kept.iter().map(|(_, plan)| plan.constants).sum::<u64>();
        while kept.len() > KEPT_PLANS || (kept.len() > 1 && bytes(&kept) > KEPT_BYTES) {
            kept.remove(0);
        }
        Ok(plan)
    }
}

impl Plan {
    fn run(&self, values: TVec<TValue>, leave: &mut dyn Leave) -> Result<TVec<TValue>, Failed> {
        let mut holding = self.needs.begin(leave);
        let evaluated = self.runnable.spawn().and_then(|mut state| {
            state.run_plan_with_eval(values, |context, state, node, inputs| {
                holding.evaluate(context, state, node, inputs)
            })
        });
        evaluated.map_err(failed)
    }
}

fn failed(error: TractError) -> Failed {
    match error.downcast::<Error>() {
        Ok(error) => Failed::Ended(error),
        Err(error) => Failed::Graph(format!("{error:#}")),
    }
}

/// Checks that all dimensions of one name have one size in a request. `names` lists the dimensions of an input, with
/// `None` for a dimension without a name. Errors: invalid argument, because a backend would use the first size.
pub fn check_names<'a, Names: Iterator<Item = Option<&'a str>>>(
    inputs: &[Tensor],
    names: impl Fn(usize) -> Names,
) -> Result<(), Error> {
    let mut sizes: BTreeMap<&str, u64> = BTreeMap::new();
    for (at, tensor) in inputs.iter().enumerate() {
        for (name, came) in names(at).zip(tensor.shape()) {
            let Some(name) = name else { continue };
            let size = *sizes.entry(name).or_insert(*came);
            if size != *came {
                return Err(Error::invalid(format!(
                    "input {:?}: its dimension {name:?} is {came}, and {size} in another input",
                    tensor.name()
                )));
            }
        }
    }
    Ok(())
}

impl Value {
    fn read(kind: &str, value: &ValueInfoProto) -> Result<Self, String> {
        let name = value.name.clone();
        let Some(type_proto::Value::TensorType(tensor)) =
            value.r#type.as_ref().and_then(|kind| kind.value.as_ref())
        else {
            return Err(format!("{kind} {name:?} is no tensor"));
        };
        let dtype = dtype(tensor.elem_type)
            .ok_or_else(|| format!("{kind} {name:?}: ONNX datatype {} is not served", tensor.elem_type))?;
        let shape = tensor.shape.as_ref().ok_or_else(|| format!("{kind} {name:?} has no shape"))?;
        let dims = shape.dim.iter().enumerate().map(|(at, dim)| match &dim.value {
            Some(dimension::Value::DimValue(size)) => usize::try_from(*size)
                .map(Dim::Fixed)
                .map_err(|_| format!("{kind} {name:?}: dimension {at} is {size}")),
            Some(dimension::Value::DimParam(param)) if !param.is_empty() => Ok(Dim::Named(param.clone())),
            _ => Ok(Dim::Named(format!("{name}.{at}"))),
        });
        let dims = dims.collect::<Result<_, _>>()?;
        Ok(Self { name, dtype, dims })
    }

    fn names(&self) -> impl Iterator<Item = Option<&str>> {
        self.dims.iter().map(|dim| match dim {
            Dim::Fixed(_) => None,
            Dim::Named(name) => Some(name.as_str()),
        })
    }

    fn spec(&self) -> TensorSpec {
        let size = |dim: &Dim| match dim {
            Dim::Fixed(size) => Some(*size as u64),
            Dim::Named(_) => None,
        };
        TensorSpec {
            name: self.name.clone(),
            dtype: self.dtype,
            shape: self.dims.iter().map(size).collect(),
            columns: [].into(),
        }
    }

    fn shape(&self, symbols: &SymbolScope) -> TVec<TDim> {
        let dims = self.dims.iter().map(|dim| match dim {
            Dim::Fixed(size) => size.to_dim(),
            Dim::Named(name) => symbols.sym(name).to_dim(),
        });
        dims.collect()
    }

    fn smallest(&self) -> Vec<usize> {
        let size = |dim: &Dim| match dim {
            Dim::Fixed(size) => *size,
            Dim::Named(_) => 1,
        };
        self.dims.iter().map(size).collect()
    }
}

pub(crate) fn decode(file: &[u8]) -> Result<ModelProto, String> {
    tract_onnx::onnx()
        .proto_model_for_read(&mut std::io::Cursor::new(file))
        .map_err(|error| format!("it is no ONNX file, or a truncated one: {error:#}"))
}

/// Operators whose work depends on values, for example the turns of a loop or the size of a filled tensor.
const UNBOUNDED: [&str; 11] = [
    "ConstantOfShape",
    "Expand",
    "If",
    "Loop",
    "OneHot",
    "Pad",
    "Range",
    "Resize",
    "Scan",
    "Tile",
    "Upsample",
];

/// Largest file that [`is_bounded`] reads.
const SMALL_FILE: usize = 1 << 20;

/// Whether a graph's work depends only on the shapes of its inputs, so that equal shapes take equal time. False for
/// large files, because these are not decoded.
pub fn is_bounded(file: &[u8]) -> bool {
    if file.len() > SMALL_FILE {
        return false;
    }
    let Ok(model) = decode(file) else { return false };
    let is_standard = |domain: &str| matches!(domain, "" | "ai.onnx" | "ai.onnx.ml");
    let nodes = model.graph.iter().flat_map(|graph| &graph.node);
    model.functions.is_empty()
        && nodes.into_iter().all(|node| is_standard(&node.domain) && !UNBOUNDED.contains(&&*node.op_type))
}

fn set_input(
    model: &mut InferenceModel,
    at: usize,
    value: &Value,
    shape: impl Into<ShapeFactoid>,
) -> Result<(), String> {
    let fact = InferenceFact::dt_shape(element::datum(value.dtype), shape);
    model.set_input_fact(at, fact).map_err(|error| format!("input {:?}: {error:#}", value.name))
}

fn plan(model: InferenceModel) -> Result<Arc<Plan>, String> {
    let runnable = model.into_optimized().and_then(IntoRunnable::into_runnable);
    let runnable = runnable.map_err(|error| format!("{error:#}"))?;
    let (needs, constants) = (Needs::of(runnable.model())?, constants(runnable.model()));
    Ok(Arc::new(Plan { runnable, needs, constants }))
}

/// Source: onnx.proto3, `TensorProto.DataType`.
fn dtype(onnx: i32) -> Option<DType> {
    Some(match DataType::try_from(onnx).ok()? {
        DataType::Bool => DType::Bool,
        DataType::Uint8 => DType::Uint8,
        DataType::Uint16 => DType::Uint16,
        DataType::Uint32 => DType::Uint32,
        DataType::Uint64 => DType::Uint64,
        DataType::Int8 => DType::Int8,
        DataType::Int16 => DType::Int16,
        DataType::Int32 => DType::Int32,
        DataType::Int64 => DType::Int64,
        DataType::Float16 => DType::Fp16,
        DataType::Float => DType::Fp32,
        DataType::Double => DType::Fp64,
        DataType::String => DType::Bytes,
        _ => return None,
    })
}
