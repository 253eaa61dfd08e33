//! Answers against onnxruntime's: see tests/fixtures/onnx.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    clippy::cast_lossless,
    clippy::unnecessary_cast,
    reason = "small numbers of every type"
)]

use std::fs;
use std::path::{Path, PathBuf};

use modelhost_core::error::ErrorCode;
use modelhost_core::tensor::{DType, Tensor};
use serde_json::Value;

use super::{Graph, external_tensors};

/// Largest difference from onnxruntime: absolute below 1, relative above.
const TOLERANCE: f64 = 1e-5;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/onnx")
}

fn read(name: &str) -> Vec<u8> {
    fs::read(fixtures().join(name)).unwrap()
}

/// A graph in one file.
fn parse(file: &[u8]) -> Result<Graph, String> {
    Graph::parse(file, &|name| Err(format!("no file {name:?}")))
}

fn graph(name: &str) -> Graph {
    parse(&read(&format!("{name}.onnx"))).unwrap_or_else(|why| panic!("{name}: {why}"))
}

/// A half's bits, exactly, for the few values the fixtures have.
fn half(value: f64) -> u16 {
    let bits = (value as f32).to_bits();
    if bits == 0 { 0 } else { ((((bits >> 23) & 0xff) - 112) << 10 | ((bits >> 13) & 0x3ff)) as u16 }
}

fn from_half(bits: u16) -> f64 {
    let bits = u32::from(bits);
    if bits == 0 { 0.0 } else { f64::from(f32::from_bits(((bits >> 10) + 112) << 23 | (bits & 0x3ff) << 13)) }
}

fn tensor(value: &Value) -> Tensor {
    let name = value["name"].as_str().unwrap().to_owned();
    let shape: Vec<u64> =
        value["shape"].as_array().unwrap().iter().map(|size| size.as_u64().unwrap()).collect();
    let data = value["data"].as_array().unwrap();
    let dtype = DType::parse(value["datatype"].as_str().unwrap()).unwrap();
    let numbers = || data.iter().map(|number| number.as_f64().unwrap());
    macro_rules! bytes {
        ($rust:ty) => {
            numbers().flat_map(|number| (number as $rust).to_le_bytes()).collect::<Vec<u8>>()
        };
    }
    let bytes = match dtype {
        DType::Bool => data.iter().map(|bit| u8::from(bit.as_bool().unwrap())).collect(),
        DType::Uint8 => bytes!(u8),
        DType::Uint16 => bytes!(u16),
        DType::Uint32 => bytes!(u32),
        DType::Uint64 => bytes!(u64),
        DType::Int8 => bytes!(i8),
        DType::Int16 => bytes!(i16),
        DType::Int32 => bytes!(i32),
        DType::Int64 => bytes!(i64),
        DType::Fp16 => numbers().flat_map(|number| half(number).to_le_bytes()).collect(),
        DType::Bf16 => unreachable!("no fixture has it"),
        DType::Fp32 => bytes!(f32),
        DType::Fp64 => bytes!(f64),
        DType::Bytes => {
            let texts = data.iter().map(|text| text.as_str().unwrap().as_bytes());
            return Tensor::from_bytes_elements(name, shape, texts).unwrap();
        }
    };
    Tensor::new(name, dtype, shape, bytes.into()).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    macro_rules! numbers {
        ($rust:ty) => {
            bytemuck::pod_collect_to_vec::<u8, $rust>(tensor.data())
                .into_iter()
                .map(|number| number as f64)
                .collect()
        };
    }
    match tensor.dtype() {
        DType::Bool | DType::Uint8 => numbers!(u8),
        DType::Uint16 => numbers!(u16),
        DType::Uint32 => numbers!(u32),
        DType::Uint64 => numbers!(u64),
        DType::Int8 => numbers!(i8),
        DType::Int16 => numbers!(i16),
        DType::Int32 => numbers!(i32),
        DType::Int64 => numbers!(i64),
        DType::Fp16 => {
            bytemuck::pod_collect_to_vec::<u8, u16>(tensor.data()).into_iter().map(from_half).collect()
        }
        DType::Fp32 => numbers!(f32),
        DType::Fp64 => numbers!(f64),
        DType::Bf16 | DType::Bytes => Vec::new(),
    }
}

#[test]
fn answers_as_onnxruntime_does() {
    let mut cases = 0;
    for entry in fs::read_dir(fixtures()).unwrap() {
        let file = entry.unwrap().file_name().into_string().unwrap();
        let Some(name) = file.strip_suffix(".cases.json") else { continue };
        let graph = graph(name);
        let signature = graph.signature();
        let content: Value = serde_json::from_slice(&read(&file)).unwrap();
        for case in content.as_array().unwrap() {
            let tensors =
                |key: &str| -> Vec<Tensor> { case[key].as_array().unwrap().iter().map(tensor).collect() };
            let (inputs, expected) = (tensors("inputs"), tensors("outputs"));
            let names = |tensors: &[Tensor]| {
                tensors.iter().map(|tensor| tensor.name().to_owned()).collect::<Vec<_>>()
            };
            assert_eq!(
                signature.inputs.iter().map(|spec| spec.name.clone()).collect::<Vec<_>>(),
                names(&inputs)
            );
            let came = graph.run(&inputs).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(names(&came), names(&expected), "{name}");
            for (came, expected) in came.iter().zip(&expected) {
                assert_eq!((came.dtype(), came.shape()), (expected.dtype(), expected.shape()), "{name}");
                if came.dtype() == DType::Bytes {
                    assert_eq!(came.data(), expected.data(), "{name}");
                }
                for (came, expected) in numbers(came).iter().zip(numbers(expected)) {
                    let difference = (came - expected).abs() / expected.abs().max(1.0);
                    assert!(difference <= TOLERANCE, "{name}: {came} {expected}");
                }
            }
            cases += 1;
        }
    }
    assert!(cases >= 25, "{cases}");
}

#[test]
fn the_signature_is_the_graphs() {
    let signature = graph("attention").signature();
    let shapes: Vec<_> =
        signature.inputs.iter().map(|spec| (spec.name.as_str(), spec.dtype, spec.wire_shape())).collect();
    assert_eq!(shapes, [("ids", DType::Int64, vec![-1, -1]), ("mask", DType::Int64, vec![-1, -1])]);
    assert_eq!(graph("mlp").signature().outputs[0].wire_shape(), [-1, 3]);
}

#[test]
fn dimensions_of_one_name_must_agree() {
    let integers = |name: &str, values: &[i64]| {
        let data: Vec<u8> = bytemuck::cast_slice(values).to_vec();
        Tensor::new(name.to_owned(), DType::Int64, vec![1, values.len() as u64], data.into()).unwrap()
    };
    let error =
        graph("attention").run(&[integers("ids", &[1, 2]), integers("mask", &[1, 1, 1])]).unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidArgument);
    let text = error.message;
    assert_eq!(text, r#"input "mask": its dimension "tokens" is 3, and 2 in another input"#);
}

#[test]
fn weights_may_lie_in_a_file_beside() {
    let file = read("apart/model.onnx");
    assert_eq!(external_tensors(&file), Ok(vec![("weights.bin".to_owned(), Some(32))]));
    assert_eq!(external_tensors(&read("mlp.onnx")), Ok(vec![]));
    let graph = Graph::parse(&file, &|name| Ok(read(&format!("apart/{name}")).into())).unwrap();
    let ones: Vec<u8> = [1_f32; 4].iter().flat_map(|one| one.to_le_bytes()).collect();
    let x = Tensor::new("x".into(), DType::Fp32, vec![1, 4], ones.into()).unwrap();
    let answer: Vec<u8> = [12_f32, 16.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    assert_eq!(graph.run(&[x]).unwrap()[0].data()[..], answer);
    let short = Graph::parse(&file, &|_| Ok(vec![0; 31].into())).map(|_| ()).unwrap_err();
    assert_eq!(short, r#"tensor "w": 32 bytes from 0 on are not in "weights.bin", which has 31"#);
    assert_eq!(parse(&file).map(|_| ()).unwrap_err(), r#"tensor "w": no file "weights.bin""#);
}

#[test]
fn an_unknown_operator_is_named() {
    let Err(why) = parse(&read("unknown_operator.onnx")) else { panic!("it was read") };
    assert!(why.contains("Frobnicate"), "{why}");
}

#[test]
fn a_loop_and_a_filled_tensor_take_what_their_values_say() {
    for (name, bounded) in
        [("mlp", true), ("attention", true), ("ml_forest", true), ("loop", false), ("huge_constant", false)]
    {
        assert_eq!(crate::is_bounded(&read(&format!("{name}.onnx"))), bounded, "{name}");
    }
    assert!(!crate::is_bounded(&read("unknown_operator.onnx")));
    assert!(!crate::is_bounded(b"no graph"));
}

#[test]
fn a_constant_that_would_fill_the_memory_is_refused() {
    let Err(why) = parse(&read("huge_constant.onnx")) else { panic!("it was read") };
    assert!(why.contains("node \"fill\" (ConstantOfShape): sizes [1099511627776] make more than"), "{why}");
}

#[test]
fn a_file_truncated_anywhere_is_an_error_or_a_graph_and_never_a_panic() {
    let file = read("mlp.onnx");
    for length in 0..file.len() {
        drop(parse(&file[..length]));
    }
    assert!(parse(&file[..file.len() / 2]).is_err());
    assert!(parse(b"").is_err());
}
