//! The infer response: JSON, with the raw tensors behind it where the caller asked for them.

use bytes::Bytes;
use modelhost_core::error::Error;
use modelhost_core::room::Room;
use modelhost_core::tensor::Tensor;
use modelhost_core::version::Version;

use crate::json::{write_int, write_string};
use crate::json_tensor;
use crate::out::Out;
use crate::reply::ReplyForm;

/// A response's body.
pub struct Encoded {
    /// JSON, then the raw tensors.
    pub body: Bytes,
    /// How much of it is JSON, where raw tensors follow.
    pub json_length: Option<usize>,
}

/// Writes an inference response. Errors: unsupported, when an output has no JSON form; invalid argument, when it has no
/// classes; resource exhausted.
pub fn encode(
    version: &Version,
    id: Option<&str>,
    outputs: &[Tensor],
    form: &ReplyForm,
    room: &Room,
) -> Result<Encoded, Error> {
    let outputs = form.classify(outputs, &version.report.signature, room)?;
    let binary = |at: &usize| form.is_binary(*at);
    let bytes = outputs.iter().enumerate().map(|(at, output)| {
        if binary(&at) { output.data().len() } else { output.data().len().saturating_mul(3) }
    });
    let mut out = Out::new(room, bytes.fold(256, usize::saturating_add));
    out.extend_from_slice(b"{\"model_name\":");
    write_string(&mut out, version.model.as_str());
    out.extend_from_slice(b",\"model_version\":\"");
    write_int(&mut out, version.number.get());
    out.push(b'"');
    if let Some(id) = id {
        out.extend_from_slice(b",\"id\":");
        write_string(&mut out, id);
    }
    out.extend_from_slice(b",\"outputs\":[");
    for (at, output) in outputs.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        write_output(&mut out, output, binary(&at))?;
    }
    out.extend_from_slice(b"]}");
    let json_length = out.len();
    let mut any_binary = false;
    for (_, output) in outputs.iter().enumerate().filter(|(at, _)| binary(at)) {
        out.extend_from_slice(output.data());
        any_binary = true;
    }
    Ok(Encoded { body: out.finish()?, json_length: any_binary.then_some(json_length) })
}

fn write_output(out: &mut Out<'_>, output: &Tensor, binary: bool) -> Result<(), Error> {
    out.extend_from_slice(b"{\"name\":");
    write_string(out, output.name());
    out.extend_from_slice(b",\"datatype\":\"");
    out.extend_from_slice(output.dtype().as_str().as_bytes());
    out.extend_from_slice(b"\",\"shape\":[");
    for (at, dim) in output.shape().iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        write_int(out, *dim);
    }
    if binary {
        out.extend_from_slice(b"],\"parameters\":{\"binary_data_size\":");
        write_int(out, output.data().len());
        out.extend_from_slice(b"}}");
    } else {
        out.extend_from_slice(b"],\"data\":");
        json_tensor::write(out, output)?;
        out.push(b'}');
    }
    Ok(())
}
