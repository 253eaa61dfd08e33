//! What a caller asked about the form of its outputs: shared by the Open Inference Protocol's two transports.

use std::borrow::Cow;

use modelhost_core::error::Error;
use modelhost_core::infer::{InferRequest, Parameter};
use modelhost_core::model::Signature;
use modelhost_core::room::Room;
use modelhost_core::tensor::Tensor;

use crate::classification::classify;

/// Longest name, in bytes: messages quote it.
pub(crate) const MAX_NAME: usize = 4096;

/// Longest id of a request, in bytes: it comes back with the answer.
const MAX_ID: usize = 64 << 10;

/// Errors: invalid argument, when it is too long.
pub(crate) fn check_id(id: &str) -> Result<(), Error> {
    check_length("id", id, MAX_ID)
}

/// Errors: invalid argument, when it is too long.
pub(crate) fn check_name(name: &str) -> Result<(), Error> {
    check_length("name", name, MAX_NAME)
}

fn check_length(what: &str, text: &str, most: usize) -> Result<(), Error> {
    if text.len() <= most {
        return Ok(());
    }
    Err(Error::invalid(format!("body: a {what} of {} bytes is longer than {most}", text.len())))
}

/// How the outputs travel.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ReplyForm {
    /// Whether an output that says nothing itself comes back as raw bytes.
    pub binary: bool,
    /// One for each of the request's `outputs`.
    pub outputs: Vec<OutputForm>,
}

/// How one output travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OutputForm {
    /// Raw bytes, or not.
    pub binary: Option<bool>,
    /// This many of the highest values, as `value:index`, instead of the tensor.
    pub classes: Option<u32>,
}

impl OutputForm {
    /// Takes one parameter of a requested output. Errors: invalid argument, naming the parameter.
    pub(crate) fn set(&mut self, name: &str, value: &Parameter) -> Result<(), Error> {
        match (name, value) {
            ("binary_data", Parameter::Bool(binary)) => self.binary = Some(*binary),
            ("classification", Parameter::Int(count)) => {
                let count = u32::try_from(*count).ok().filter(|count| *count > 0);
                self.classes = Some(count.ok_or_else(|| {
                    Error::invalid("parameter \"classification\" is not a number of classes from 1")
                })?);
            }
            ("binary_data", _) => return Err(Error::invalid("parameter \"binary_data\" is not a bool")),
            ("classification", _) => {
                return Err(Error::invalid("parameter \"classification\" is not a whole number"));
            }
            _ => refuse_shared_memory(name)?,
        }
        Ok(())
    }
}

impl ReplyForm {
    /// Whether the output at this place of the response is raw bytes.
    pub(crate) fn is_binary(&self, at: usize) -> bool {
        self.outputs.get(at).and_then(|output| output.binary).unwrap_or(self.binary)
    }

    /// Replaces the outputs that were asked for as classes. Errors: invalid argument, for an output without an order;
    /// resource exhausted.
    pub(crate) fn classify<'a>(
        &self,
        outputs: &'a [Tensor],
        signature: &Signature,
        room: &Room,
    ) -> Result<Cow<'a, [Tensor]>, Error> {
        if self.outputs.iter().all(|output| output.classes.is_none()) {
            return Ok(Cow::Borrowed(outputs));
        }
        let mut outputs = outputs.to_vec();
        for (output, form) in outputs.iter_mut().zip(&self.outputs) {
            if let Some(count) = form.classes {
                let spec = signature.outputs.iter().find(|spec| spec.name == output.name());
                *output = classify(output, count, spec.map_or(&[], |spec| &*spec.columns), room)?;
            }
        }
        Ok(Cow::Owned(outputs))
    }
}

/// Takes out of the request what concerns the reply's form, so that the model sees its own parameters alone.
/// Errors: invalid argument, naming the parameter.
pub(crate) fn take_request_parameters(request: &mut InferRequest, form: &mut ReplyForm) -> Result<(), Error> {
    if let Some(at) = request.parameters.iter().position(|(name, _)| name == "binary_data_output") {
        let (_, value) = request.parameters.remove(at);
        let Parameter::Bool(binary) = value else {
            return Err(Error::invalid("parameter \"binary_data_output\" is not a bool"));
        };
        form.binary = binary;
    }
    Ok(())
}

/// Errors: unsupported, when the parameter asks for shared memory.
pub(crate) fn refuse_shared_memory(parameter: &str) -> Result<(), Error> {
    if parameter.starts_with("shared_memory_") {
        let text = "shared memory is not served here: send the tensor's data";
        return Err(Error::new(modelhost_core::error::ErrorCode::Unsupported, text));
    }
    Ok(())
}
