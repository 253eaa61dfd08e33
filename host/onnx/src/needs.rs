//! What an evaluation takes of memory between its inputs and its outputs, operator by operator.
//!
//! It is known before an operator runs: from the sizes of dimensions, and for a range from its ends. What other operators bring whose output follows
//! from values (indices of what is not zero, say) is no larger than what they read, and is counted when it is there.

use modelhost_core::error::Error;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::{EvalContext, OpState};
use tract_onnx::tract_core::ops::array::Range;
use tract_onnx::tract_core::ops::konst::Const;
use tract_onnx::tract_core::ops::logic::IfThenElse;
use tract_onnx::tract_core::ops::scan::{OptScan, Scan};
use tract_onnx::tract_core::{plan, tract_data::TooEarly};

/// What an evaluation is allowed. Asked between operators.
pub trait Leave {
    /// So many bytes more. Errors: why there are not so many.
    fn take(&mut self, bytes: u64) -> Result<(), Error>;

    /// So many bytes less.
    fn give_back(&mut self, bytes: u64);

    /// Errors: why it shall not go on.
    fn go_on(&self) -> Result<(), Error>;
}

/// All that it likes: what runs in a component is bounded as a whole.
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

/// What each node of a plan takes.
pub(crate) struct Needs(Vec<Need>);

struct Need {
    /// Its outputs.
    outputs: TDim,
    /// The values of graphs in it (a loop's turn, the branches of a condition): all of them, because they are small as a rule.
    inside: Vec<TDim>,
    /// How often its outputs are read. What the graph gives is read once more.
    reads: usize,
}

impl Needs {
    /// Errors: a range in a loop, whose ends nobody knows beforehand.
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

    /// An evaluation begins.
    pub(crate) fn begin<'a>(&'a self, leave: &'a mut dyn Leave) -> Holding<'a> {
        let left = self.0.iter().map(|need| need.reads).collect();
        Holding { needs: self, left, held: vec![0; self.0.len()], leave }
    }
}

/// The constants of a plan.
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

/// What an evaluation holds.
pub(crate) struct Holding<'a> {
    needs: &'a Needs,
    /// How often each node's outputs will still be read.
    left: Vec<usize>,
    /// Bytes of each node's outputs.
    held: Vec<u64>,
    leave: &'a mut dyn Leave,
}

impl Holding<'_> {
    /// Evaluates a node, if that is allowed. Errors: why not ([`Error`]), and the node's.
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

    /// The same without evaluating anything, in this order, as far as it follows from these sizes. Errors: why it is not allowed.
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

    /// Takes what is known of its outputs, and what is inside. Says how much the latter is.
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

    /// It has run: what was inside it is gone, and what nobody else reads.
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

/// `None`: it follows from values. Errors: no number of bytes.
fn evaluated(bytes: &TDim, symbols: &SymbolValues) -> TractResult<Option<u64>> {
    match bytes.eval_to_i64(symbols) {
        Ok(bytes) => Ok(Some(u64::try_from(bytes).unwrap_or(0))),
        Err(error) if error.root_cause().is::<TooEarly>() => Ok(None),
        Err(error) => Err(error),
    }
}

/// What a range will bring: as many numbers as lie between two values. `None`: it is no range.
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
