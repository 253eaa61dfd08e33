//! A prediction's request and response, free of any wire format.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorCode};
use crate::model::{MAX_TENSORS, Signature};
use crate::tensor::{Tensor, TensorSpec};

/// A request parameter's value.
#[derive(Debug, Clone, PartialEq)]
pub enum Parameter {
    /// Text.
    Text(String),
    /// A whole number.
    Int(i64),
    /// A number with a fraction.
    Float(f64),
    /// True or false.
    Bool(bool),
}

impl std::fmt::Display for Parameter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Int(number) => write!(f, "{number}"),
            Self::Float(number) => write!(f, "{number}"),
            Self::Bool(flag) => write!(f, "{flag}"),
        }
    }
}

/// A caller's request to a model.
#[derive(Debug, Clone, Default)]
pub struct InferRequest {
    /// Comes back unchanged.
    pub id: Option<String>,
    /// In the order they came. Names are unique.
    pub parameters: Vec<(String, Parameter)>,
    /// In the order they came.
    pub inputs: Vec<Tensor>,
    /// Names of the outputs that the caller wants, in that order. Empty: all.
    pub outputs: Vec<String>,
}

impl InferRequest {
    /// Brings the inputs into the signature's order and checks them. Errors: invalid argument, naming the input that
    /// is missing, unknown, given twice, or of another datatype or shape; or the unknown output.
    pub fn conform(&mut self, signature: &Signature) -> Result<(), Error> {
        conform_inputs(signature, &mut self.inputs)?;
        if self.outputs.is_empty() {
            return Ok(());
        }
        let known: HashSet<_> = signature.outputs.iter().map(|spec| spec.name.as_str()).collect();
        match self.outputs.iter().find(|name| !known.contains(name.as_str())) {
            Some(name) => Err(Error::invalid(format!("output {name:?} is not in the signature"))),
            None => Ok(()),
        }
    }

    /// The text of a parameter.
    pub fn parameter(&self, name: &str) -> Option<Vec<u8>> {
        let found = self.parameters.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.to_string().into_bytes())
    }

    /// Rows in the request: the first dimension of the first input; 1 for a scalar.
    pub fn rows(&self) -> u64 {
        self.inputs.first().and_then(|input| input.shape().first().copied()).unwrap_or(1)
    }
}

/// Brings inputs into the signature's order and checks them. Errors: invalid argument, naming the input that is
/// missing, unknown, given twice, or of another datatype or shape.
pub fn conform_inputs(signature: &Signature, inputs: &mut [Tensor]) -> Result<(), Error> {
    let specs = &signature.inputs;
    if !is_in_order(specs, inputs) {
        let named = by_name(inputs);
        let input = |spec: &TensorSpec| {
            let input = find(&named, &spec.name).cloned();
            input.ok_or_else(|| Error::invalid(format!("input {:?} is missing", spec.name)))
        };
        let ordered = specs.iter().map(input).collect::<Result<Vec<_>, _>>()?;
        check_known("input", specs, &named)?;
        inputs.clone_from_slice(&ordered);
    }
    specs.iter().zip(inputs.iter()).try_for_each(|(spec, input)| spec.check("input", input))
}

/// Checks a model's answer against its signature. Leaves the outputs that were asked for, in that order.
/// Errors: plugin fault, naming the output that is missing, unknown, or of another datatype or shape.
pub fn conform_outputs(
    signature: &Signature,
    asked: &[String],
    outputs: Vec<Tensor>,
) -> Result<Vec<Tensor>, Error> {
    let plugins = |error: Error| error.with_code(ErrorCode::PluginFault);
    let specs = &signature.outputs;
    if asked.is_empty() && is_in_order(specs, &outputs) {
        let mut pairs = specs.iter().zip(&outputs);
        pairs.try_for_each(|(spec, output)| spec.check("output", output)).map_err(plugins)?;
        return Ok(outputs);
    }
    if outputs.len() > MAX_TENSORS {
        return Err(Error::fault(format!("{} outputs came, more than {MAX_TENSORS}", outputs.len())));
    }
    let named = by_name(&outputs);
    check_known("output", specs, &named).map_err(plugins)?;
    for spec in specs {
        if let Some(output) = find(&named, &spec.name) {
            spec.check("output", output).map_err(plugins)?;
        }
    }
    let wanted: Vec<&str> = match asked {
        [] => specs.iter().map(|spec| spec.name.as_str()).collect(),
        asked => asked.iter().map(String::as_str).collect(),
    };
    let missing = |name: &str| Error::fault(format!("output {name:?} is missing"));
    let output = |name: &str| find(&named, name).cloned().ok_or_else(|| missing(name));
    wanted.into_iter().map(output).collect()
}

/// Whether these are the tensors of the signature in its own order. Most requests and answers are.
fn is_in_order(specs: &[TensorSpec], tensors: &[Tensor]) -> bool {
    specs.len() == tensors.len() && specs.iter().zip(tensors).all(|(spec, tensor)| spec.name == tensor.name())
}

/// The tensors, sorted by name.
fn by_name(tensors: &[Tensor]) -> Vec<&Tensor> {
    let mut named: Vec<_> = tensors.iter().collect();
    named.sort_unstable_by_key(|tensor| tensor.name());
    named
}

/// Errors: invalid argument, naming a tensor that is given twice or not in the signature.
fn check_known(role: &str, specs: &[TensorSpec], named: &[&Tensor]) -> Result<(), Error> {
    let known: HashSet<_> = specs.iter().map(|spec| spec.name.as_str()).collect();
    if let Some(tensor) = named.iter().find(|tensor| !known.contains(tensor.name())) {
        return Err(Error::invalid(format!("{role} {:?} is not in the signature", tensor.name())));
    }
    match named.array_windows().find(|[one, other]| one.name() == other.name()) {
        Some([tensor, _]) => Err(Error::invalid(format!("{role} {:?} is given twice", tensor.name()))),
        None => Ok(()),
    }
}

fn find<'a>(named: &[&'a Tensor], name: &str) -> Option<&'a Tensor> {
    let at = named.binary_search_by_key(&name, |tensor| tensor.name()).ok()?;
    named.get(at).copied()
}

/// The moment when the caller stops waiting for the answer.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(Instant);

impl Deadline {
    /// `limit` after `start`.
    pub fn after(start: Instant, limit: Duration) -> Self {
        Self(start.checked_add(limit).unwrap_or(start))
    }

    /// The instant itself.
    pub fn instant(self) -> Instant {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{DType, TensorSpec};

    fn spec(name: &str) -> TensorSpec {
        TensorSpec { name: name.into(), dtype: DType::Uint8, shape: vec![None], columns: [].into() }
    }

    fn tensor(name: &str) -> Tensor {
        Tensor::new(name.into(), DType::Uint8, vec![1], vec![0].into()).unwrap()
    }

    fn signature() -> Signature {
        Signature { inputs: vec![spec("a"), spec("b")], outputs: vec![spec("x"), spec("y")] }
    }

    fn check_inputs(inputs: &[&str], outputs: &[&str], expected: Result<(), &str>) {
        let mut request = InferRequest {
            inputs: inputs.iter().map(|name| tensor(name)).collect(),
            outputs: outputs.iter().map(|name| (*name).to_owned()).collect(),
            ..InferRequest::default()
        };
        let came = request.conform(&signature()).map_err(|error| error.message);
        assert_eq!(came, expected.map_err(str::to_owned));
        if came.is_ok() {
            let names: Vec<_> = request.inputs.iter().map(Tensor::name).collect();
            assert_eq!(names, ["a", "b"]);
        }
    }

    #[test]
    fn inputs_take_the_signatures_order() {
        check_inputs(&["a", "b"], &[], Ok(()));
        check_inputs(&["b", "a"], &["y"], Ok(()));
    }

    #[test]
    fn names_the_input_or_output_that_does_not_fit() {
        check_inputs(&["a"], &[], Err("input \"b\" is missing"));
        check_inputs(&["a", "b", "c"], &[], Err("input \"c\" is not in the signature"));
        check_inputs(&["a", "b", "a"], &[], Err("input \"a\" is given twice"));
        check_inputs(&["a", "b"], &["z"], Err("output \"z\" is not in the signature"));
    }

    fn check_outputs(came: &[&str], asked: &[&str], expected: Result<&[&str], &str>) {
        let asked: Vec<_> = asked.iter().map(|name| (*name).to_owned()).collect();
        let result = conform_outputs(&signature(), &asked, came.iter().map(|name| tensor(name)).collect());
        match result {
            Ok(outputs) => {
                assert_eq!(Ok(outputs.iter().map(Tensor::name).collect::<Vec<_>>().as_slice()), expected)
            }
            Err(error) => {
                assert_eq!(error.code, ErrorCode::PluginFault);
                assert_eq!(Err(error.message.as_str()), expected);
            }
        }
    }

    #[test]
    fn leaves_the_outputs_asked_for_in_the_order_asked() {
        check_outputs(&["x", "y"], &[], Ok(&["x", "y"]));
        check_outputs(&["y", "x"], &[], Ok(&["x", "y"]));
        check_outputs(&["x", "y"], &["y", "x"], Ok(&["y", "x"]));
        check_outputs(&["x", "y"], &["y"], Ok(&["y"]));
        check_outputs(&["y"], &["y"], Ok(&["y"]));
    }

    #[test]
    fn a_wrong_answer_is_the_plugins_fault() {
        check_outputs(&["x"], &[], Err("output \"y\" is missing"));
        check_outputs(&["x", "z"], &[], Err("output \"z\" is not in the signature"));
        check_outputs(&["x", "x"], &[], Err("output \"x\" is given twice"));
    }
}
