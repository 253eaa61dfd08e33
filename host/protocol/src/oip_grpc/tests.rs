use super::*;
use crate::oip_grpc::pb::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};

fn input(
    name: &str,
    datatype: &str,
    shape: &[i64],
    contents: Option<pb::InferTensorContents>,
) -> InferInputTensor {
    InferInputTensor {
        name: name.into(),
        datatype: datatype.into(),
        shape: shape.to_vec(),
        parameters: HashMap::new(),
        contents,
    }
}

fn check(message: pb::ModelInferRequest, expected: Result<&str, &str>) {
    match (decode(message, &Room::unbounded()), expected) {
        (Ok((request, _)), Ok(expected)) => assert_eq!(format!("{:?}", request.inputs), expected),
        (Err(error), Err(text)) => assert!(error.message.contains(text), "{error}"),
        (came, _) => panic!("gave {came:?}"),
    }
}

fn one(input: InferInputTensor, raw: &[&'static [u8]]) -> pb::ModelInferRequest {
    pb::ModelInferRequest {
        inputs: vec![input],
        raw_input_contents: raw.iter().map(|raw| Bytes::from_static(raw)).collect(),
        ..pb::ModelInferRequest::default()
    }
}

#[test]
fn typed_and_raw_contents_give_the_same_request() {
    let contents = pb::InferTensorContents { fp32_contents: vec![1.0, 2.0], ..Default::default() };
    let typed = decode(one(input("x", "FP32", &[2], Some(contents)), &[]), &Room::unbounded()).unwrap();
    let raw =
        decode(one(input("x", "FP32", &[2], None), &[&[0, 0, 128, 63, 0, 0, 0, 64]]), &Room::unbounded())
            .unwrap();
    assert_eq!(typed.0.inputs, raw.0.inputs);
    assert_eq!((typed.1.binary, raw.1.binary), (false, true));
}

#[test]
fn names_the_tensor_that_is_malformed() {
    let ints = |values: &[i32]| {
        Some(pb::InferTensorContents { int_contents: values.to_vec(), ..Default::default() })
    };
    check(one(input("x", "INT8", &[2], ints(&[1, -128])), &[]), Ok("[x INT8[2] (2 bytes)]"));
    check(one(input("x", "INT8", &[1], ints(&[200])), &[]), Err("input \"x\": 200 is no INT8"));
    check(
        one(input("x", "FP32", &[1], ints(&[1])), &[]),
        Err("FP32 elements belong in fp32_contents, int_contents came"),
    );
    check(one(input("x", "FP16", &[1], ints(&[1])), &[]), Err("FP16 has no typed contents"));
    check(one(input("x", "FP32", &[-1], None), &[]), Err("input \"x\": shape: -1 is not a dimension"));
    check(one(input("x", "FP33", &[1], None), &[]), Err("input \"x\": datatype \"FP33\""));
    check(one(input("x", "FP32", &[i64::MAX, 3], None), &[]), Err("too many elements"));
    check(one(input("x", "FP32", &[1], None), &[&[0; 4], &[0; 4]]), Err("2 entries for 1 inputs"));
    check(
        one(input("x", "FP32", &[1], None), &[&[0; 3]]),
        Err("\"x\": shape [1] of FP32 needs 1 x 4 bytes, 3 came"),
    );
    check(
        one(input("x", "INT32", &[1], ints(&[1])), &[&[0; 4]]),
        Err("although raw_input_contents are used"),
    );
}

#[test]
fn every_datatype_writes_and_reads_back() {
    for dtype in DType::ALL.into_iter().filter(|dtype| !matches!(dtype, DType::Fp16 | DType::Bf16)) {
        let data: Vec<u8> = match dtype {
            DType::Bytes => vec![2, 0, 0, 0, b'a', b'b', 0, 0, 0, 0],
            DType::Bool => vec![1, 0],
            other => (0..2 * other.size().unwrap_or(1)).map(|at| u8::try_from(at).unwrap() + 60).collect(),
        };
        let tensor = Tensor::new("x".into(), dtype, vec![2], data.into()).unwrap();
        let back = contents::read(dtype, contents::write(&tensor), &Room::unbounded()).unwrap();
        assert_eq!(&back, tensor.data(), "{dtype}");
    }
}

#[test]
fn parameters_come_in_the_order_of_their_names() {
    let value = |choice| pb::InferParameter { parameter_choice: Some(choice) };
    let message = pb::ModelInferRequest {
        parameters: HashMap::from([
            ("b".to_owned(), value(ParameterChoice::Uint64Param(7))),
            ("a".to_owned(), value(ParameterChoice::DoubleParam(0.5))),
        ]),
        outputs: vec![InferRequestedOutputTensor {
            name: "y".into(),
            parameters: HashMap::from([("classification".to_owned(), value(ParameterChoice::Int64Param(2)))]),
        }],
        ..Default::default()
    };
    let (request, form) = decode(message, &Room::unbounded()).unwrap();
    assert_eq!(request.parameters, [("a".into(), Parameter::Float(0.5)), ("b".into(), Parameter::Int(7))]);
    assert_eq!(form.outputs[0].classes, Some(2));
    let message = pb::ModelInferRequest {
        parameters: HashMap::from([("a".to_owned(), value(ParameterChoice::Uint64Param(u64::MAX)))]),
        ..Default::default()
    };
    check(message, Err("parameter \"a\": 18446744073709551615 is above"));
}
