//! A prediction's request and response, free of any wire format.

use std::time::{Duration, Instant};

use crate::error::{Error, ErrorCode};
use crate::model::Signature;
use crate::tensor::Tensor;

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

/// What a caller asks of a model.
#[derive(Debug, Clone, Default)]
pub struct InferRequest {
    /// Comes back unchanged.
    pub id: Option<String>,
    /// In the order they came; names are unique.
    pub parameters: Vec<(String, Parameter)>,
    /// In the order they came.
    pub inputs: Vec<Tensor>,
    /// Names of the outputs asked for, in the order wanted. Empty: all.
    pub outputs: Vec<String>,
}

impl InferRequest {
    /// Brings the inputs into the signature's order, checked. Errors: invalid argument, naming the input that is
    /// missing, unknown, given twice, or of another datatype or shape; or the unknown output.
    pub fn conform(&mut self, signature: &Signature) -> Result<(), Error> {
        conform_inputs(signature, &mut self.inputs)?;
        let known = |name: &String| signature.outputs.iter().any(|spec| spec.name == *name);
        match self.outputs.iter().find(|name| !known(name)) {
            Some(name) => Err(Error::invalid(format!("output {name:?} is not in the signature"))),
            None => Ok(()),
        }
    }

    /// The text of a parameter.
    pub fn parameter(&self, name: &str) -> Option<Vec<u8>> {
        let found = self.parameters.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.to_string().into_bytes())
    }

    /// Rows in the request: the first dimension of the first input, 1 for a scalar.
    pub fn rows(&self) -> u64 {
        self.inputs.first().and_then(|input| input.shape().first().copied()).unwrap_or(1)
    }
}

/// Brings inputs into the signature's order, checked. Errors: invalid argument, naming the input that is missing, unknown, given
/// twice, or of another datatype or shape.
pub fn conform_inputs(signature: &Signature, inputs: &mut [Tensor]) -> Result<(), Error> {
    for (at, spec) in signature.inputs.iter().enumerate() {
        let found = inputs.iter().skip(at).position(|input| input.name() == spec.name);
        let found = found.ok_or_else(|| Error::invalid(format!("input {:?} is missing", spec.name)))?;
        inputs.swap(at, at + found);
        if let Some(input) = inputs.get(at) {
            spec.check("input", input)?;
        }
    }
    if let Some(extra) = inputs.get(signature.inputs.len()) {
        let twice = signature.inputs.iter().any(|spec| spec.name == extra.name());
        let why = if twice { "is given twice" } else { "is not in the signature" };
        return Err(Error::invalid(format!("input {:?} {why}", extra.name())));
    }
    Ok(())
}

/// Checks a model's answer against its signature, and leaves the outputs asked for, in the order asked.
/// Errors: plugin fault, naming the output that is missing, unknown, or of another datatype or shape.
pub fn conform_outputs(
    signature: &Signature,
    asked: &[String],
    mut outputs: Vec<Tensor>,
) -> Result<Vec<Tensor>, Error> {
    let fault = |message: String| Error::new(ErrorCode::PluginFault, message);
    for (at, output) in outputs.iter().enumerate() {
        let name = output.name();
        let spec = signature.outputs.iter().find(|spec| spec.name == name);
        let spec = spec.ok_or_else(|| fault(format!("output {name:?} is not in the signature")))?;
        spec.check("output", output).map_err(|error| fault(error.message))?;
        if outputs.iter().take(at).any(|earlier| earlier.name() == name) {
            return Err(fault(format!("output {name:?} came twice")));
        }
    }
    let mut wanted: Vec<&str> = asked.iter().map(String::as_str).collect();
    if wanted.is_empty() {
        wanted = signature.outputs.iter().map(|spec| spec.name.as_str()).collect();
    }
    for (at, name) in wanted.iter().enumerate() {
        let found = outputs.iter().position(|output| output.name() == *name);
        let found =
            found.filter(|found| *found >= at).ok_or_else(|| fault(format!("output {name:?} is missing")))?;
        outputs.swap(at, found);
    }
    outputs.truncate(wanted.len());
    Ok(outputs)
}

/// The moment after which nobody waits for the answer any more.
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
        check_outputs(&["x", "x"], &[], Err("output \"x\" came twice"));
    }
}
