//! The infer request: JSON, JSON with tensors behind it, or one raw tensor.

use std::num::ParseIntError;

use bytes::Bytes;
use modelhost_core::error::Error;
use modelhost_core::infer::{InferRequest, Parameter};
use modelhost_core::model::Signature;
use modelhost_core::room::Room;
use modelhost_core::tensor::{DType, Tensor};

use crate::json::Reader;
use crate::json_tensor;
use crate::reply::{OutputForm, ReplyForm, check_id, refuse_shared_memory, take_request_parameters};

/// Most inputs or outputs that one request may name.
const MAX_TENSORS: usize = 1024;

/// Most dimensions of a tensor.
const MAX_RANK: usize = 32;

/// How a body is laid out, as its `Inference-Header-Content-Length` header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// JSON, then this many bytes into the body the tensors.
    Json(usize),
    /// The header is 0: the body is the single input's data.
    Raw,
}

impl Framing {
    /// Reads the header of a body of `length` (uncompressed) bytes; without the header all of it is JSON.
    /// Errors: invalid argument, when it is no number from 0 to `length`.
    pub fn of(header: Option<&[u8]>, length: usize) -> Result<Self, Error> {
        let Some(header) = header else { return Ok(Self::Json(length)) };
        let text = String::from_utf8_lossy(header);
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse::<usize>() {
            Ok(0) if digits => Ok(Self::Raw),
            Ok(json) if digits && json <= length => Ok(Self::Json(json)),
            _ => Err(Error::invalid(format!(
                "header Inference-Header-Content-Length: {text:?} is not a number from 0 to the body's {length} bytes"
            ))),
        }
    }
}

/// Reads an inference request; binary tensors are slices of `body`, not copies. `json` is how much of it is JSON.
/// Errors: invalid argument naming the tensor and what is malformed; unsupported, for shared memory; resource
/// exhausted.
pub fn decode(body: &Bytes, json: usize, room: &Room) -> Result<(InferRequest, ReplyForm), Error> {
    let (mut request, mut form) = (InferRequest::default(), ReplyForm::default());
    let mut reader = Reader::new(body.get(..json).unwrap_or(body), room);
    let mut binary = body.get(json..).map_or(Bytes::new(), |rest| body.slice_ref(rest));
    reader.object(|reader, key| match &*key {
        "id" => {
            let id = reader.text()?;
            check_id(&id)?;
            request.id = Some(id);
            Ok(())
        }
        "parameters" => {
            request.parameters = reader.parameters()?;
            Ok(())
        }
        "inputs" => reader.array(|reader| {
            check_count("inputs", request.inputs.len())?;
            request.inputs.push(read_tensor(reader, request.inputs.len(), &mut binary)?);
            Ok(())
        }),
        "outputs" => reader.array(|reader| {
            check_count("outputs", request.outputs.len())?;
            let (name, output) = read_output(reader)?;
            if request.outputs.contains(&name) {
                return Err(Error::invalid(format!("output {name:?} is asked for twice")));
            }
            request.outputs.push(name);
            form.outputs.push(output);
            Ok(())
        }),
        _ => reader.skip(),
    })?;
    reader.finish()?;
    if !binary.is_empty() {
        return Err(Error::invalid(format!("body: {} bytes follow the last input's data", binary.len())));
    }
    take_request_parameters(&mut request, &mut form)?;
    Ok((request, form))
}

/// Reads a raw request: the whole body is the one input's data, and every output comes back raw. A first dimension that
/// the byte count leaves open is 1. Source: extension_binary_data.md, "Raw Binary Request". Errors: invalid argument,
/// when the model has several inputs or the body does not fill the input's shape; resource exhausted.
pub fn decode_raw(
    body: &Bytes,
    signature: &Signature,
    room: &Room,
) -> Result<(InferRequest, ReplyForm), Error> {
    let [spec] = signature.inputs.as_slice() else {
        let count = signature.inputs.len();
        return Err(Error::invalid(format!(
            "a raw request needs a model with one input, this one has {count}"
        )));
    };
    let wrong = |why: String| Error::invalid(format!("input {:?}: a raw request {why}", spec.name));
    let open = spec.shape.iter().filter(|dim| dim.is_none()).count();
    let mut dims = spec.shape.clone();
    if open == 2
        && let Some(batch @ None) = dims.first_mut()
    {
        *batch = Some(1);
    } else if open > 1 {
        return Err(wrong(format!("leaves {open} dimensions open")));
    }
    let fixed = dims.iter().flatten().try_fold(1_u64, |product, dim| product.checked_mul(*dim));
    let fixed = fixed.ok_or_else(|| wrong("has too many elements".into()))?;
    let (count, data) = match spec.dtype.size() {
        Some(size) => (body.len() as u64 / size as u64, body.clone()),
        None => {
            let length = u32::try_from(body.len());
            let length = length.map_err(|error| wrong("is longer than 4 GiB".into()).because(error))?;
            room.take(body.len() + size_of::<u32>())?;
            (1, [&length.to_le_bytes(), &**body].concat().into())
        }
    };
    let shape = dims.iter().map(|dim| dim.unwrap_or(count.checked_div(fixed).unwrap_or(0))).collect();
    let input = Tensor::new(spec.name.clone(), spec.dtype, shape, data)?;
    let request = InferRequest { inputs: vec![input], ..InferRequest::default() };
    Ok((request, ReplyForm { binary: true, outputs: Vec::new() }))
}

fn check_count(what: &str, count: usize) -> Result<(), Error> {
    if count < MAX_TENSORS { Ok(()) } else { Err(Error::invalid(format!("{what}: more than {MAX_TENSORS}"))) }
}

/// What an input's object said so far; `data` may stand before what says how to read it.
#[derive(Default)]
struct Input {
    name: Option<String>,
    shape: Option<Vec<u64>>,
    dtype: Option<DType>,
    data: Option<Data>,
    binary_size: Option<usize>,
}

enum Data {
    Read(Bytes),
    /// Stands here in the JSON.
    At(usize),
}

/// Reads the input at this place; its binary data is taken from the front of `binary`.
fn read_tensor(reader: &mut Reader<'_>, at: usize, binary: &mut Bytes) -> Result<Tensor, Error> {
    let mut input = Input::default();
    let read = reader.object(|reader, key| input.read(reader, &key));
    let parts = read.and_then(|()| input.finish(reader, binary)).map_err(|error| match &input.name {
        Some(name) => error.within(format_args!("input {name:?}")),
        None => error.within(format_args!("input number {at}")),
    });
    let (name, dtype, shape, data) = parts?;
    Tensor::new(name, dtype, shape, data)
}

impl Input {
    fn read(&mut self, reader: &mut Reader<'_>, key: &str) -> Result<(), Error> {
        match key {
            "name" => self.name = Some(reader.name()?.into_owned()),
            "datatype" => self.dtype = Some(DType::parse(&reader.name()?)?),
            "shape" => self.shape = Some(read_shape(reader)?),
            "parameters" => {
                for (name, value) in reader.parameters()? {
                    refuse_shared_memory(&name)?;
                    if name == "binary_data_size" {
                        self.binary_size = Some(binary_size(&value)?);
                    }
                }
            }
            "data" => {
                let position = reader.position();
                self.data = Some(match (self.dtype, &self.shape) {
                    (Some(dtype), Some(shape)) => Data::Read(json_tensor::read(reader, dtype, shape)?),
                    _ => {
                        reader.skip()?;
                        Data::At(position)
                    }
                });
            }
            _ => reader.skip()?,
        }
        Ok(())
    }

    fn finish(
        &mut self,
        reader: &Reader<'_>,
        binary: &mut Bytes,
    ) -> Result<(String, DType, Vec<u64>, Bytes), Error> {
        let missing = |key: &str| Error::invalid(format!("has no {key:?}"));
        let name = self.name.clone().ok_or_else(|| missing("name"))?;
        let dtype = self.dtype.ok_or_else(|| missing("datatype"))?;
        let shape = self.shape.take().ok_or_else(|| missing("shape"))?;
        let data: Bytes = match (self.data.take(), self.binary_size) {
            (Some(_), Some(_)) => {
                return Err(Error::invalid("has \"data\" and \"binary_data_size\", not one of them"));
            }
            (None, None) => return Err(missing("data")),
            (Some(Data::Read(data)), None) => data,
            (Some(Data::At(position)), None) => json_tensor::read(&mut reader.at(position), dtype, &shape)?,
            (None, Some(size)) if size <= binary.len() => binary.split_to(size),
            (None, Some(size)) => {
                let left = binary.len();
                return Err(Error::invalid(format!(
                    "binary_data_size {size} is more than the {left} bytes left in the body"
                )));
            }
        };
        Ok((name, dtype, shape, data))
    }
}

fn binary_size(value: &Parameter) -> Result<usize, Error> {
    match value {
        Parameter::Int(size) => usize::try_from(*size).ok(),
        Parameter::Text(_) | Parameter::Float(_) | Parameter::Bool(_) => None,
    }
    .ok_or_else(|| Error::invalid(format!("binary_data_size {value} is not a number of bytes")))
}

fn read_shape(reader: &mut Reader<'_>) -> Result<Vec<u64>, Error> {
    let mut shape = Vec::new();
    reader.array(|reader| {
        let text = reader.number()?;
        let wrong = |error: ParseIntError| {
            Error::invalid(format!("shape: {text} is not a dimension from 0")).because(error)
        };
        let dim = text.parse().map_err(wrong)?;
        if shape.len() == MAX_RANK {
            return Err(Error::invalid(format!("shape: more than {MAX_RANK} dimensions")));
        }
        shape.push(dim);
        Ok(())
    })?;
    Ok(shape)
}

fn read_output(reader: &mut Reader<'_>) -> Result<(String, OutputForm), Error> {
    let (mut name, mut form) = (None, OutputForm::default());
    reader.object(|reader, key| {
        match &*key {
            "name" => name = Some(reader.name()?.into_owned()),
            "parameters" => {
                for (parameter, value) in reader.parameters()? {
                    form.set(&parameter, &value)?;
                }
            }
            _ => reader.skip()?,
        }
        Ok(())
    })?;
    let name = name.ok_or_else(|| Error::invalid("an output has no \"name\""))?;
    Ok((name, form))
}

#[cfg(test)]
mod tests {
    use modelhost_core::tensor::TensorSpec;

    use super::*;

    fn check(body: &str, expected: Result<&str, &str>) {
        match (read(body), expected) {
            (Ok(request), Ok(expected)) => {
                let came = format!("{:?} {:?} {:?}", request.id, request.inputs, request.outputs);
                assert_eq!(came, expected);
            }
            (Err(error), Err(text)) => assert!(error.message.contains(text), "{error}"),
            (came, _) => panic!("{body} gave {came:?}"),
        }
    }

    fn read(body: &str) -> Result<InferRequest, Error> {
        let bytes = Bytes::copy_from_slice(body.as_bytes());
        decode(&bytes, body.len(), &Room::unbounded()).map(|(request, _)| request)
    }

    #[test]
    fn keys_may_come_in_any_order() {
        let expected = Ok("Some(\"7\") [x FP32[2] (8 bytes)] [\"y\"]");
        check(
            r#"{"id":"7","inputs":[{"name":"x","shape":[2],"datatype":"FP32","data":[1,2]}],"outputs":[{"name":"y"}]}"#,
            expected,
        );
        check(
            r#"{"outputs":[{"parameters":{"a":1},"name":"y"}],"extra":{"a":[1,{}]},"inputs":[{"data":[1,2],"datatype":"FP32","shape":[2],"name":"x"}],"id":"7"}"#,
            expected,
        );
    }

    #[test]
    fn names_what_is_malformed() {
        let input = |input: &str| format!("{{\"inputs\":[{input}]}}");
        check("", Err("expected an object at byte 0, the end came"));
        check("{}x", Err("expected the end"));
        check(&input(r#"{"shape":[1]}"#), Err("input number 0: has no \"name\""));
        check(&input(r#"{"name":"x","shape":[1],"datatype":"FP32"}"#), Err("input \"x\": has no \"data\""));
        check(&input(r#"{"name":"x","shape":[1],"data":[1]}"#), Err("input \"x\": has no \"datatype\""));
        check(
            &input(r#"{"name":"x","shape":[-1],"datatype":"FP32","data":[1]}"#),
            Err("input \"x\": shape: -1 is not a dimension"),
        );
        check(
            &input(r#"{"name":"x","shape":[1],"datatype":"FLOAT","data":[1]}"#),
            Err("\"FLOAT\" is not one of"),
        );
        check(r#"{"parameters":{"a":{"b":1}}}"#, Err("parameter \"a\" is not a string"));
        check(r#"{"outputs":[{"name":"y"},{"name":"y"}]}"#, Err("asked for twice"));
        let huge = r#"{"name":"x","shape":[18446744073709551615,2],"datatype":"FP32","data":[1]}"#;
        check(&input(huge), Err("too many elements"));
    }

    #[test]
    fn parameters_keep_their_types() {
        let request = read(r#"{"parameters":{"a":"t","b":1,"c":1.5,"d":true},"inputs":[]}"#).unwrap();
        let values: Vec<_> = request.parameters.iter().map(|(_, value)| value.clone()).collect();
        assert_eq!(
            values,
            [Parameter::Text("t".into()), Parameter::Int(1), Parameter::Float(1.5), Parameter::Bool(true)]
        );
    }

    /// Two binary tensors behind their JSON.
    fn binary(sizes: [usize; 2], tail: &[u8]) -> (Bytes, usize) {
        let input = |name: &str, size: usize| {
            format!(
                r#"{{"name":"{name}","shape":[2],"datatype":"UINT8","parameters":{{"binary_data_size":{size}}}}}"#
            )
        };
        let json = format!(r#"{{"inputs":[{},{}]}}"#, input("a", sizes[0]), input("b", sizes[1]));
        ([json.as_bytes(), tail].concat().into(), json.len())
    }

    #[test]
    fn binary_data_is_a_slice_of_the_body() {
        let (body, json) = binary([2, 2], &[1, 2, 3, 4]);
        let (request, _) = decode(&body, json, &Room::unbounded()).unwrap();
        let data: Vec<_> = request.inputs.iter().map(|input| input.data().to_vec()).collect();
        assert_eq!(data, [[1, 2], [3, 4]]);
        assert!(body.as_ptr_range().contains(&request.inputs[1].data().as_ptr()));
    }

    #[test]
    fn binary_lengths_must_add_up() {
        for (sizes, tail, expected) in [
            ([2, 2], &[1, 2, 3][..], "input \"b\": binary_data_size 2 is more than the 1 bytes left"),
            ([2, 2], &[1, 2, 3, 4, 5], "1 bytes follow the last input's data"),
            ([2, 3], &[1, 2, 3, 4, 5], "\"b\": shape [2] of UINT8 needs 2 x 1 bytes, 3 came"),
            ([usize::MAX / 2, 2], &[1], "more than the 1 bytes left"),
        ] {
            let (body, json) = binary(sizes, tail);
            let error = decode(&body, json, &Room::unbounded()).unwrap_err();
            assert!(error.message.contains(expected), "{error}");
        }
        let both = r#"{"inputs":[{"name":"x","shape":[1],"datatype":"UINT8","data":[1],"parameters":{"binary_data_size":1}}]}"#;
        check(both, Err("\"x\": has \"data\" and \"binary_data_size\""));
        let shared = r#"{"inputs":[{"name":"x","parameters":{"shared_memory_region":"r"}}]}"#;
        check(shared, Err("shared memory is not served here"));
    }

    #[test]
    fn the_header_length_is_checked_against_the_body() {
        for (header, expected) in [
            (None, Some(Framing::Json(10))),
            (Some("0"), Some(Framing::Raw)),
            (Some("10"), Some(Framing::Json(10))),
            (Some("11"), None),
            (Some("-1"), None),
            (Some("+1"), None),
            (Some(""), None),
            (Some("99999999999999999999"), None),
        ] {
            assert_eq!(Framing::of(header.map(str::as_bytes), 10).ok(), expected, "{header:?}");
        }
    }

    fn raw(dtype: DType, shape: &[Option<u64>], body: &[u8]) -> Result<String, String> {
        let spec = TensorSpec { name: "x".into(), dtype, shape: shape.to_vec(), columns: [].into() };
        let signature = Signature { inputs: vec![spec], outputs: Vec::new() };
        let decoded = decode_raw(&Bytes::copy_from_slice(body), &signature, &Room::unbounded());
        decoded.map(|(request, _)| format!("{:?}", request.inputs)).map_err(|error| error.message)
    }

    #[test]
    fn a_raw_request_fills_the_one_input() {
        let check = |came: Result<String, String>, expected: &str| assert_eq!(came.unwrap(), expected);
        check(raw(DType::Fp32, &[None, Some(2)], &[0; 8]), "[x FP32[1, 2] (8 bytes)]");
        check(raw(DType::Fp32, &[None, Some(2)], &[0; 16]), "[x FP32[2, 2] (16 bytes)]");
        check(raw(DType::Fp32, &[None, None], &[0; 8]), "[x FP32[1, 2] (8 bytes)]");
        check(raw(DType::Bytes, &[None], b"text"), "[x BYTES[1] (8 bytes)]");
        assert!(raw(DType::Fp32, &[None, Some(2)], &[0; 7]).unwrap_err().contains("7 came"));
        assert!(raw(DType::Fp32, &[None, None, None], &[0; 8]).unwrap_err().contains("3 dimensions open"));
    }

    #[test]
    fn the_replys_form_is_read_apart_from_the_models_parameters() {
        let body = r#"{"parameters":{"binary_data_output":true,"a":1},"inputs":[],"outputs":[
            {"name":"x","parameters":{"binary_data":false}},{"name":"y","parameters":{"classification":3}}]}"#;
        let room = Room::unbounded();
        let (request, form) = decode(&Bytes::from_static(body.as_bytes()), body.len(), &room).unwrap();
        assert_eq!(request.parameters, [("a".into(), Parameter::Int(1))]);
        assert_eq!((form.is_binary(0), form.is_binary(1)), (false, true));
        assert_eq!(form.outputs[1].classes, Some(3));
        let wrong = r#"{"inputs":[],"outputs":[{"name":"x","parameters":{"classification":0}}]}"#;
        check(wrong, Err("\"classification\" is not a number of classes"));
    }
}
