//! The memory that an evaluation needs between its inputs and its outputs, operator by operator.
//!
//! The size of an operator's output is known before the operator runs. It follows from the sizes of dimensions, and
//! for a range from its ends. Some other outputs depend on values, for example the indices of non-zero elements.
//! These are no larger than the operator's input, and are counted afterwards.

use modelhost_core::error::Error;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::{EvalContext, OpState};
use tract_onnx::tract_core::ops::array::Range;
use tract_onnx::tract_core::ops::konst::Const;
use tract_onnx::tract_core::ops::logic::IfThenElse;
use tract_onnx::tract_core::ops::scan::{OptScan, Scan};
use tract_onnx::tract_core::{plan, tract_data::TooEarly};

/// Permission for an evaluation. It is asked between operators.
pub trait Leave {
    /// Takes memory. Errors: why there is not enough.
    fn take(&mut self, bytes: u64) -> Result<(), Error>;

    /// Gives memory back.
    fn give_back(&mut self, bytes: u64);

    /// Whether the evaluation may go on. Errors: why it must end.
    fn go_on(&self) -> Result<(), Error>;
}

/// No bounds. A component's memory is bounded as a whole.
pub(crate) struct Unbounded;

impl Leave for Unbounded {
    fn take(&mut self, _: u64) -> Result<(), Error> {
        Ok(())
    }

    fn give_back(&mut self, _: u64) {}

    fn go_on(&self) -> Result<(), Error> {
        Ok(())
    }
}

/// The needs of each node of a plan.
pub(crate) struct Needs(Vec<Need>);

struct Need {
    /// Bytes of its outputs.
    outputs: TDim,
    /// Bytes of each value of the graphs inside it, i.e. the body of a loop or the branches of a condition. These
    /// graphs are usually small, so all values are counted at once.
    inside: Vec<TDim>,
    /// How often its outputs are read. An output of the whole graph counts once more.
    reads: usize,
}

impl Needs {
    /// Errors: a range inside a loop, because its size is not known beforehand.
    pub(crate) fn of(model: &TypedModel) -> Result<Self, String> {
        let need = |node: &TypedNode| {
            let mut inside = Vec::new();
            bodies(node).try_for_each(|body| look_inside(body, &mut inside))?;
            let reads = node.outputs.iter().map(|output| output.successors.len()).sum();
            Ok(Need { outputs: bytes(node), inside, reads })
        };
        let mut needs = model.nodes().iter().map(need).collect::<Result<Vec<_>, String>>()?;
        for output in model.output_outlets().into_iter().flatten() {
            if let Some(need) = needs.get_mut(output.node) {
                need.reads += 1;
            }
        }
        Ok(Self(needs))
    }

    /// Begins an evaluation.
    pub(crate) fn begin<'a>(&'a self, leave: &'a mut dyn Leave) -> Holding<'a> {
        let left = self.0.iter().map(|need| need.reads).collect();
        Holding { needs: self, left, held: vec![0; self.0.len()], leave }
    }
}

/// Bytes of a plan's constants.
pub(crate) fn constants(model: &TypedModel) -> u64 {
    let constants = model.nodes().iter().filter(|node| node.op_is::<Const>());
    constants.map(|node| u64::try_from(bytes(node).to_i64().unwrap_or(0)).unwrap_or(0)).sum()
}

fn bytes(node: &TypedNode) -> TDim {
    node.outputs.iter().map(|output| output.fact.mem_size()).sum()
}

fn bodies(node: &TypedNode) -> impl Iterator<Item = &TypedModel> {
    let turn = node.op_as::<OptScan>().map(|scan| scan.plan.model());
    let turn = turn.or_else(|| node.op_as::<Scan>().map(|scan| &scan.body));
    let branches = node.op_as::<IfThenElse>().map(|branch| [&branch.then_body, &branch.else_body]);
    turn.into_iter().chain(branches.into_iter().flatten())
}

fn look_inside(body: &TypedModel, inside: &mut Vec<TDim>) -> Result<(), String> {
    for node in body.nodes().iter().filter(|node| !node.op_is::<Const>()) {
        let bytes = bytes(node);
        if node.op_is::<Range>() && bytes.to_i64().is_err() {
            return Err(format!(
                "node {:?} ({}): how long it is in a loop follows from values",
                node.name, node.op
            ));
        }
        inside.push(bytes);
        bodies(node).try_for_each(|body| look_inside(body, inside))?;
    }
    Ok(())
}

/// The memory that an evaluation holds.
pub(crate) struct Holding<'a> {
    needs: &'a Needs,
    /// How often the outputs of each node will still be read.
    left: Vec<usize>,
    /// Bytes of the outputs of each node.
    held: Vec<u64>,
    leave: &'a mut dyn Leave,
}

impl Holding<'_> {
    /// Evaluates a node if that is allowed. Errors: the refusal, as an [`Error`]; those of the node.
    pub(crate) fn evaluate(
        &mut self,
        context: &EvalContext<'_>,
        state: Option<&mut (dyn OpState + 'static)>,
        node: &TypedNode,
        inputs: TVec<TValue>,
    ) -> TractResult<TVec<TValue>> {
        self.leave.go_on()?;
        let outputs = match self.expected(context.symbols, node)? {
            Some(bytes) => Some(bytes),
            None => as_told(node, &inputs, context.symbols)?,
        };
        let inside = self.take(context.symbols, node, outputs)?;
        let values = plan::eval(context, state, node, inputs)?;
        if outputs.is_none() {
            let bytes =
                values.iter().map(|value| (value.volume() * value.datum_type().size_of()) as u64).sum();
            self.leave.take(bytes)?;
            self.hold(node, bytes);
        }
        self.let_go(node, inside);
        Ok(values)
    }

    /// Takes and gives back the memory of all nodes in this order, but evaluates none. Stops where a size depends on
    /// values. Errors: the refusal, as an [`Error`].
    pub(crate) fn rehearse(
        mut self,
        model: &TypedModel,
        order: &[usize],
        symbols: &SymbolValues,
    ) -> TractResult<()> {
        for node in order.iter().map(|at| model.node(*at)) {
            let Some(bytes) = self.expected(symbols, node)? else { return Ok(()) };
            let inside = self.take(symbols, node, Some(bytes))?;
            self.let_go(node, inside);
        }
        Ok(())
    }

    fn expected(&self, symbols: &SymbolValues, node: &TypedNode) -> TractResult<Option<u64>> {
        self.needs.0.get(node.id).map_or(Ok(None), |need| evaluated(&need.outputs, symbols))
    }

    /// Takes the known bytes of a node's outputs, and those inside it. Returns the latter.
    fn take(&mut self, symbols: &SymbolValues, node: &TypedNode, outputs: Option<u64>) -> TractResult<u64> {
        let inside = self.needs.0.get(node.id).into_iter().flat_map(|need| &need.inside);
        let inside = inside.map(|bytes| Ok(evaluated(bytes, symbols)?.unwrap_or(0)));
        let inside = inside.sum::<TractResult<u64>>()?;
        let bytes = outputs.unwrap_or(0);
        self.leave.take(bytes.saturating_add(inside))?;
        self.hold(node, bytes);
        Ok(inside)
    }

    fn hold(&mut self, node: &TypedNode, bytes: u64) {
        if let Some(held) = self.held.get_mut(node.id) {
            *held += bytes;
        }
    }

    /// Gives back what was inside a node, and the inputs that no other node reads.
    fn let_go(&mut self, node: &TypedNode, inside: u64) {
        let mut gone = inside;
        for input in &node.inputs {
            let (Some(left), Some(held)) = (self.left.get_mut(input.node), self.held.get_mut(input.node))
            else {
                continue;
            };
            *left = left.saturating_sub(1);
            if *left == 0 {
                gone += std::mem::take(held);
            }
        }
        self.leave.give_back(gone);
    }
}

impl Drop for Holding<'_> {
    fn drop(&mut self) {
        self.leave.give_back(self.held.iter().sum());
    }
}

/// `None` if the size depends on values. Errors: the size overflows.
fn evaluated(bytes: &TDim, symbols: &SymbolValues) -> TractResult<Option<u64>> {
    match bytes.eval_to_i64(symbols) {
        Ok(bytes) => Ok(Some(u64::try_from(bytes).unwrap_or(0))),
        Err(error) if error.root_cause().is::<TooEarly>() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Bytes of a range, from its ends. `None` for other operators.
fn as_told(node: &TypedNode, inputs: &[TValue], symbols: &SymbolValues) -> TractResult<Option<u64>> {
    let [start, end, step] = inputs else { return Ok(None) };
    if !node.op_is::<Range>() {
        return Ok(None);
    }
    let number = |value: &TValue| -> TractResult<f64> {
        if value.datum_type() == TDim::datum_type() {
            let size = value.try_as_plain_ram()?.to_scalar::<TDim>()?.eval_to_i64(symbols)?;
            #[expect(clippy::cast_precision_loss, reason = "a bound")]
            return Ok(size as f64);
        }
        value.cast_to_scalar::<f64>()
    };
    let numbers = ((number(end)? - number(start)?) / number(step)?).abs().ceil();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it ends at the ends, and is not negative"
    )]
    let numbers = numbers as u64;
    Ok(Some(numbers.saturating_mul(start.datum_type().size_of() as u64)))
}
