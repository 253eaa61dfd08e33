//! Open Inference Protocol V2 over REST, JSON tensors.
//!
//! Source: kserve/open-inference-protocol, specification/protocol/inference_rest.md. Unknown keys are passed over, as
//! Triton does. `tritonclient` asks for binary outputs by default (`binary_data_output`); answering in JSON is what the
//! protocol allows a server without that extension.

use modelhost_core::deployment::{Model, Version};
use modelhost_core::error::Error;
use modelhost_core::infer::{InferRequest, Parameter};
use modelhost_core::tensor::{DType, Tensor, TensorSpec};
use serde_json::{Value, json};

use crate::json::{Reader, write_string};
use crate::json_tensor;

/// Most inputs or outputs that one request may name.
const MAX_TENSORS: usize = 1024;

/// The extensions of the protocol that work here, for the server's metadata.
pub const EXTENSIONS: [&str; 1] = ["parameters"];

/// Reads an inference request. Errors: invalid argument naming what is malformed.
pub fn decode(body: &[u8]) -> Result<InferRequest, Error> {
    let mut request = InferRequest::default();
    let mut reader = Reader::new(body);
    reader.object(|reader, key| match &*key {
        "id" => {
            request.id = Some(reader.string()?.into_owned());
            Ok(())
        }
        "parameters" => {
            request.parameters = read_parameters(reader)?;
            Ok(())
        }
        "inputs" => reader.array(|reader| {
            let input = read_tensor(reader)?;
            check_count("inputs", request.inputs.len())?;
            if request.inputs.iter().any(|earlier| earlier.name() == input.name()) {
                return Err(Error::invalid(format!("input {:?} is given twice", input.name())));
            }
            request.inputs.push(input);
            Ok(())
        }),
        "outputs" => reader.array(|reader| {
            let name = read_output(reader)?;
            check_count("outputs", request.outputs.len())?;
            if request.outputs.contains(&name) {
                return Err(Error::invalid(format!("output {name:?} is asked for twice")));
            }
            request.outputs.push(name);
            Ok(())
        }),
        _ => reader.skip(),
    })?;
    reader.finish()?;
    Ok(request)
}

fn check_count(what: &str, count: usize) -> Result<(), Error> {
    if count < MAX_TENSORS { Ok(()) } else { Err(Error::invalid(format!("{what}: more than {MAX_TENSORS}"))) }
}

fn read_tensor(reader: &mut Reader<'_>) -> Result<Tensor, Error> {
    let (mut name, mut shape, mut dtype, mut data) = (None, None, None, None);
    reader.object(|reader, key| {
        match &*key {
            "name" => name = Some(reader.string()?.into_owned()),
            "datatype" => dtype = Some(DType::parse(&reader.string()?)?),
            "shape" => shape = Some(read_shape(reader)?),
            "data" => {
                // Its type may come after it: remember where it stands.
                let position = reader.position();
                data = match (&name, dtype, &shape) {
                    (Some(name), Some(dtype), Some(shape)) => {
                        Some(Ok(json_tensor::read(reader, name, dtype, shape)?))
                    }
                    _ => {
                        reader.skip()?;
                        Some(Err(position))
                    }
                };
            }
            _ => reader.skip()?,
        }
        Ok(())
    })?;
    let name = name.ok_or_else(|| Error::invalid("an input has no \"name\""))?;
    let missing = |key: &str| Error::invalid(format!("input {name:?} has no {key:?}"));
    let dtype = dtype.ok_or_else(|| missing("datatype"))?;
    let shape = shape.ok_or_else(|| missing("shape"))?;
    let data = match data.ok_or_else(|| missing("data"))? {
        Ok(data) => data,
        Err(position) => json_tensor::read(&mut reader.at(position), &name, dtype, &shape)?,
    };
    Tensor::new(name, dtype, shape, data.into())
}

fn read_shape(reader: &mut Reader<'_>) -> Result<Vec<u64>, Error> {
    let mut shape = Vec::new();
    reader.array(|reader| {
        let text = reader.number()?;
        let dim =
            text.parse().map_err(|_| Error::invalid(format!("shape: {text} is not a dimension from 0")))?;
        if shape.len() == 32 {
            return Err(Error::invalid("shape: more than 32 dimensions"));
        }
        shape.push(dim);
        Ok(())
    })?;
    Ok(shape)
}

fn read_output(reader: &mut Reader<'_>) -> Result<String, Error> {
    let mut name = None;
    reader.object(|reader, key| {
        if key == "name" {
            name = Some(reader.string()?.into_owned());
            return Ok(());
        }
        reader.skip()
    })?;
    name.ok_or_else(|| Error::invalid("an output has no \"name\""))
}

fn read_parameters(reader: &mut Reader<'_>) -> Result<Vec<(String, Parameter)>, Error> {
    let mut parameters = Vec::new();
    reader.object(|reader, key| {
        let value = match reader.peek() {
            Some(b'"') => Parameter::Text(reader.string()?.into_owned()),
            Some(b't' | b'f') if reader.word("true") => Parameter::Bool(true),
            Some(b't' | b'f') if reader.word("false") => Parameter::Bool(false),
            Some(b'{' | b'[' | b'n') => {
                return Err(Error::invalid(format!("parameter {key:?} is not a string, a number or a bool")));
            }
            _ => {
                let text = reader.number()?;
                let float = || text.parse().map(Parameter::Float);
                let number = text.parse().map(Parameter::Int).or_else(|_| float());
                number.map_err(|_| Error::invalid(format!("parameter {key:?}: {text} is not a number")))?
            }
        };
        check_count("parameters", parameters.len())?;
        parameters.push((key.into_owned(), value));
        Ok(())
    })?;
    Ok(parameters)
}

/// Writes an inference response. Errors: unsupported, when an output has no JSON form.
pub fn encode(version: &Version, id: Option<&str>, outputs: &[Tensor]) -> Result<Vec<u8>, Error> {
    let bytes: usize = outputs.iter().map(|output| output.data().len()).sum();
    let mut out = Vec::with_capacity(256 + bytes * 3);
    out.extend_from_slice(b"{\"model_name\":");
    write_string(&mut out, version.model.as_str());
    out.extend_from_slice(b",\"model_version\":\"");
    out.extend_from_slice(itoa::Buffer::new().format(version.number.get()).as_bytes());
    out.push(b'"');
    if let Some(id) = id {
        out.extend_from_slice(b",\"id\":");
        write_string(&mut out, id);
    }
    out.extend_from_slice(b",\"outputs\":[");
    for (at, output) in outputs.iter().enumerate() {
        out.extend_from_slice(if at == 0 { b"{\"name\":" } else { b",{\"name\":" });
        write_string(&mut out, output.name());
        out.extend_from_slice(b",\"datatype\":\"");
        out.extend_from_slice(output.dtype().as_str().as_bytes());
        out.extend_from_slice(b"\",\"shape\":[");
        for (at, dim) in output.shape().iter().enumerate() {
            if at > 0 {
                out.push(b',');
            }
            out.extend_from_slice(itoa::Buffer::new().format(*dim).as_bytes());
        }
        out.extend_from_slice(b"],\"data\":");
        json_tensor::write(&mut out, output)?;
        out.push(b'}');
    }
    out.extend_from_slice(b"]}");
    Ok(out)
}

/// The server's metadata (`GET /v2`).
pub fn server_metadata(version: &str) -> Value {
    json!({"name": "modelhost", "version": version, "extensions": EXTENSIONS})
}

/// A model's metadata (`GET /v2/models/{model}`).
pub fn model_metadata(model: &Model, version: &Version) -> Value {
    let signature = &version.report.signature;
    let tensors = |specs: &[TensorSpec]| specs.iter().map(tensor_metadata).collect::<Vec<_>>();
    json!({
        "name": model.name.as_str(),
        "versions": model.versions.keys().map(ToString::to_string).collect::<Vec<_>>(),
        "platform": version.platform,
        "inputs": tensors(&signature.inputs),
        "outputs": tensors(&signature.outputs),
    })
}

fn tensor_metadata(spec: &TensorSpec) -> Value {
    let shape: Vec<i64> =
        spec.shape.iter().map(|dim| dim.and_then(|dim| i64::try_from(dim).ok()).unwrap_or(-1)).collect();
    json!({"name": spec.name, "datatype": spec.dtype.as_str(), "shape": shape})
}

/// A failure's body: `tritonclient` raises the text under `error`; `code` is for programs.
pub fn error(error: &Error) -> Value {
    json!({"error": error.message, "code": error.code.as_str()})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(body: &str, expected: Result<&str, &str>) {
        match (decode(body.as_bytes()), expected) {
            (Ok(request), Ok(expected)) => {
                let came = format!("{:?} {:?} {:?}", request.id, request.inputs, request.outputs);
                assert_eq!(came, expected);
            }
            (Err(error), Err(text)) => assert!(error.message.contains(text), "{error}"),
            (came, _) => panic!("{body} gave {came:?}"),
        }
    }

    #[test]
    fn keys_may_come_in_any_order() {
        let expected = Ok("Some(\"7\") [x FP32[2] (8 bytes)] [\"y\"]");
        check(
            r#"{"id":"7","inputs":[{"name":"x","shape":[2],"datatype":"FP32","data":[1,2]}],"outputs":[{"name":"y"}]}"#,
            expected,
        );
        check(
            r#"{"outputs":[{"parameters":{"a":[1]},"name":"y"}],"extra":{"a":[1,{}]},"inputs":[{"data":[1,2],"datatype":"FP32","shape":[2],"name":"x"}],"id":"7"}"#,
            expected,
        );
    }

    #[test]
    fn names_what_is_malformed() {
        let input = |input: &str| format!("{{\"inputs\":[{input}]}}");
        check("", Err("expected an object at byte 0, the end came"));
        check("{}x", Err("expected the end"));
        check(&input(r#"{"shape":[1]}"#), Err("an input has no \"name\""));
        check(&input(r#"{"name":"x","shape":[1],"datatype":"FP32"}"#), Err("input \"x\" has no \"data\""));
        check(&input(r#"{"name":"x","shape":[1],"data":[1]}"#), Err("input \"x\" has no \"datatype\""));
        check(
            &input(r#"{"name":"x","shape":[-1],"datatype":"FP32","data":[1]}"#),
            Err("-1 is not a dimension"),
        );
        check(
            &input(r#"{"name":"x","shape":[1],"datatype":"FLOAT","data":[1]}"#),
            Err("\"FLOAT\" is not one of"),
        );
        let x = r#"{"name":"x","shape":[1],"datatype":"FP32","data":[1]}"#;
        check(&input(&format!("{x},{x}")), Err("input \"x\" is given twice"));
        check(r#"{"parameters":{"a":{"b":1}}}"#, Err("parameter \"a\" is not a string"));
        check(r#"{"outputs":[{"name":"y"},{"name":"y"}]}"#, Err("asked for twice"));
        let huge = r#"{"name":"x","shape":[18446744073709551615,2],"datatype":"FP32","data":[1]}"#;
        check(&input(huge), Err("too many elements"));
    }

    #[test]
    fn parameters_keep_their_types() {
        let request = decode(br#"{"parameters":{"a":"t","b":1,"c":1.5,"d":true},"inputs":[]}"#).unwrap();
        let values: Vec<_> = request.parameters.iter().map(|(_, value)| value.clone()).collect();
        assert_eq!(
            values,
            [Parameter::Text("t".into()), Parameter::Int(1), Parameter::Float(1.5), Parameter::Bool(true)]
        );
    }
}
