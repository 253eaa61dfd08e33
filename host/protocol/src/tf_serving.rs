//! TensorFlow Serving's REST API v1, and KServe V1, which shares its paths and bodies.
//!
//! Sources: tensorflow/serving, g3doc/api_rest.md; kserve/kserve, protocol/rest/v1_endpoints.py. Both clients look for
//! keys of their own, so a model's status carries both. Beside rows by input names, a model whose input is a table
//! takes rows by column names.

use bytes::Bytes;
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::infer::InferRequest;
use modelhost_core::room::Room;
use modelhost_core::tensor::{DType, Tensor, TensorSpec};
use modelhost_core::version::{Model, Version};
use serde_json::{Map, Value, json};

use crate::json::{Reader, write_string};
use crate::json_named::{read_columns, read_instances, sticky_value};
use crate::json_tensor::Writing;
use crate::out::Out;
use crate::table::widths;

/// The one signature that every model has here.
const SIGNATURE: &str = "serving_default";

/// How the request was laid out, and so the response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `instances` in, `predictions` out.
    Rows,
    /// `inputs` in, `outputs` out.
    Columns,
}

/// Reads a predict request. Errors: invalid argument naming row, input and field, and when not exactly one of
/// `instances` and `inputs` is there; not found, for another signature than the default; resource exhausted.
pub fn decode(
    body: &Bytes,
    version: &Version,
    sticky_field: Option<&str>,
    room: &Room,
) -> Result<(InferRequest, Layout), Error> {
    let mut reader = Reader::new(body, room);
    let mut found: Option<(Vec<Tensor>, Layout)> = None;
    let once = |found: &Option<_>| {
        if found.is_none() {
            Ok(())
        } else {
            Err(Error::invalid("body: \"instances\" and \"inputs\" exclude each other"))
        }
    };
    reader.object(|reader, key| match &*key {
        "signature_name" => {
            let name = reader.name()?;
            if name.is_empty() || name == SIGNATURE {
                return Ok(());
            }
            Err(Error::not_found(format!("signature {name:?} is not {SIGNATURE:?}, the only one")))
        }
        "instances" => {
            once(&found)?;
            found = Some((read_instances(reader, version, sticky_field)?, Layout::Rows));
            Ok(())
        }
        "inputs" => {
            once(&found)?;
            found = Some((read_columns(reader, version)?, Layout::Columns));
            Ok(())
        }
        _ => reader.skip(),
    })?;
    reader.finish()?;
    let (inputs, layout) =
        found.ok_or_else(|| Error::invalid("body: neither \"instances\" nor \"inputs\" is there"))?;
    Ok((InferRequest { inputs, ..InferRequest::default() }, layout))
}

/// Writes a predict response. A single output goes without its name; outputs named `…_bytes` are base64. Non-finite
/// numbers are the bare tokens. Errors: plugin fault, when rows are wanted and the outputs have different numbers of
/// them; resource exhausted.
pub fn encode(outputs: &[Tensor], layout: Layout, room: &Room) -> Result<Bytes, Error> {
    let bytes: usize = outputs.iter().map(|output| output.data().len()).sum();
    let mut out = Out::new(room, bytes.saturating_mul(3).saturating_add(64));
    let mut values: Vec<_> = outputs.iter().map(|output| (output.name(), Writing::widened(output))).collect();
    match layout {
        Layout::Columns => {
            out.extend_from_slice(b"{\"outputs\":");
            write_value(&mut out, &mut values, Writing::nested)?;
        }
        Layout::Rows => {
            let (rows, _) = widths(outputs)?;
            out.extend_from_slice(b"{\"predictions\":[");
            for row in 0..rows {
                if row > 0 {
                    out.push(b',');
                }
                write_value(&mut out, &mut values, Writing::row)?;
            }
            out.push(b']');
        }
    }
    out.push(b'}');
    out.finish()
}

/// Writes of every output what `write` does.
fn write_value<'a>(
    out: &mut Out<'_>,
    outputs: &mut [(&str, Writing<'a>)],
    write: impl Fn(&mut Writing<'a>, &mut Out<'_>, bool) -> Result<(), Error>,
) -> Result<(), Error> {
    let is_b64 = |name: &str| name.ends_with("_bytes");
    out.check()?;
    if let [(name, only)] = outputs {
        return write(only, out, is_b64(name));
    }
    for (at, (name, output)) in outputs.iter_mut().enumerate() {
        out.push(if at == 0 { b'{' } else { b',' });
        write_string(out, name);
        out.push(b':');
        write(output, out, is_b64(name))?;
    }
    out.push(b'}');
    Ok(())
}

/// A model's status, for both clients: `model_version_status` for TF Serving, `name` and `ready` for KServe.
/// `versions`: each with the reason why it cannot answer, if any.
pub fn status(model: &str, ready: bool, versions: &[(u32, Option<String>)]) -> Value {
    let one = |(number, unavailable): &(u32, Option<String>)| {
        let (state, code) = if unavailable.is_none() { ("AVAILABLE", "OK") } else { ("END", "UNAVAILABLE") };
        json!({
            "version": number.to_string(),
            "state": state,
            "status": {"error_code": code, "error_message": unavailable.clone().unwrap_or_default()},
        })
    };
    json!({
        "name": model,
        "ready": ready,
        "model_version_status": versions.iter().map(one).collect::<Vec<_>>(),
    })
}

/// A model's metadata (`GET /v1/models/{model}/metadata`).
pub fn metadata(model: &Model, version: &Version) -> Value {
    let tensors = |specs: &[TensorSpec]| specs.iter().map(tensor_info).collect::<Map<_, _>>();
    let signature = &version.report.signature;
    json!({
        "model_spec": {"name": model.name.as_str(), "signature_name": "", "version": version.number.to_string()},
        "metadata": {"signature_def": {"signature_def": {SIGNATURE: {
            "inputs": tensors(&signature.inputs),
            "outputs": tensors(&signature.outputs),
            "method_name": "tensorflow/serving/predict",
        }}}},
    })
}

fn tensor_info(spec: &TensorSpec) -> (String, Value) {
    let dim = |dim: &i64| json!({"size": dim.to_string(), "name": ""});
    let info = json!({
        "dtype": dtype_name(spec.dtype),
        "tensor_shape": {"dim": spec.wire_shape().iter().map(dim).collect::<Vec<_>>(), "unknown_rank": false},
        "name": format!("{}:0", spec.name),
    });
    (spec.name.clone(), info)
}

/// TensorFlow's name of a datatype. Source: tensorflow/tensorflow, core/framework/types.proto.
fn dtype_name(dtype: DType) -> &'static str {
    match dtype {
        DType::Bool => "DT_BOOL",
        DType::Uint8 => "DT_UINT8",
        DType::Uint16 => "DT_UINT16",
        DType::Uint32 => "DT_UINT32",
        DType::Uint64 => "DT_UINT64",
        DType::Int8 => "DT_INT8",
        DType::Int16 => "DT_INT16",
        DType::Int32 => "DT_INT32",
        DType::Int64 => "DT_INT64",
        DType::Fp16 => "DT_HALF",
        DType::Bf16 => "DT_BFLOAT16",
        DType::Fp32 => "DT_FLOAT",
        DType::Fp64 => "DT_DOUBLE",
        DType::Bytes => "DT_STRING",
    }
}

/// What the protocol has and no model here can do. Errors: unsupported, always.
pub fn refuse_verb(verb: &str) -> Error {
    let why = match verb {
        "explain" => "no runtime here explains its predictions",
        _ => "it takes TensorFlow Examples; call :predict",
    };
    Error::new(ErrorCode::Unsupported, format!("{verb}: {why}"))
}

/// The value that a policy which is sticky by `field` goes by: of the first row, or of a parameter.
pub fn first_field(body: &[u8], field: &str, room: &Room) -> Option<Vec<u8>> {
    sticky_value(body, field, room)
}

#[cfg(test)]
mod tests;
