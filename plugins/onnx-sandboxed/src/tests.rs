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

use modelhost_sdk::{Datatype, Error, Tensor};
use serde_json::Value;

use super::Graph;

/// Largest difference from onnxruntime: absolute below 1, relative above.
const TOLERANCE: f64 = 1e-5;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/onnx")
}

fn read(name: &str) -> Vec<u8> {
    fs::read(fixtures().join(name)).unwrap()
}

fn graph(name: &str) -> Graph {
    Graph::parse(&read(&format!("{name}.onnx"))).unwrap_or_else(|why| panic!("{name}: {why}"))
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
    let name = value["name"].as_str().unwrap();
    let shape: Vec<u64> =
        value["shape"].as_array().unwrap().iter().map(|size| size.as_u64().unwrap()).collect();
    let data = value["data"].as_array().unwrap();
    let numbers = || data.iter().map(|number| number.as_f64().unwrap());
    macro_rules! numbers {
        ($rust:ty) => {
            Tensor::from_values(name, &shape, &numbers().map(|number| number as $rust).collect::<Vec<_>>())
        };
    }
    match value["datatype"].as_str().unwrap() {
        "BOOL" => Tensor {
            name: name.into(),
            datatype: Datatype::Bool,
            shape,
            data: data.iter().map(|bit| u8::from(bit.as_bool().unwrap())).collect(),
        },
        "UINT8" => numbers!(u8),
        "UINT16" => numbers!(u16),
        "UINT32" => numbers!(u32),
        "UINT64" => numbers!(u64),
        "INT8" => numbers!(i8),
        "INT16" => numbers!(i16),
        "INT32" => numbers!(i32),
        "INT64" => numbers!(i64),
        "FP16" => Tensor {
            name: name.into(),
            datatype: Datatype::Fp16,
            shape,
            data: numbers().flat_map(|number| half(number).to_le_bytes()).collect(),
        },
        "FP32" => numbers!(f32),
        "FP64" => numbers!(f64),
        "BYTES" => {
            let texts: Vec<_> = data.iter().map(|text| text.as_str().unwrap().as_bytes()).collect();
            Tensor::from_bytes_elements(name, &shape, &texts)
        }
        other => panic!("{other}"),
    }
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    macro_rules! numbers {
        ($rust:ty) => {
            tensor.values::<$rust>().unwrap().iter().map(|number| *number as f64).collect()
        };
    }
    match tensor.datatype {
        Datatype::Bool => tensor.data.iter().map(|byte| f64::from(*byte)).collect(),
        Datatype::Uint8 => numbers!(u8),
        Datatype::Uint16 => numbers!(u16),
        Datatype::Uint32 => numbers!(u32),
        Datatype::Uint64 => numbers!(u64),
        Datatype::Int8 => numbers!(i8),
        Datatype::Int16 => numbers!(i16),
        Datatype::Int32 => numbers!(i32),
        Datatype::Int64 => numbers!(i64),
        Datatype::Fp16 => {
            let (halves, _) = tensor.data.as_chunks::<2>();
            halves.iter().map(|half| from_half(u16::from_le_bytes(*half))).collect()
        }
        Datatype::Fp32 => numbers!(f32),
        Datatype::Fp64 => numbers!(f64),
        Datatype::Bf16 | Datatype::Bytes => Vec::new(),
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
            let names =
                |tensors: &[Tensor]| tensors.iter().map(|tensor| tensor.name.clone()).collect::<Vec<_>>();
            assert_eq!(
                signature.inputs.iter().map(|spec| spec.name.clone()).collect::<Vec<_>>(),
                names(&inputs)
            );
            let came = graph
                .run(&inputs.iter().collect::<Vec<_>>())
                .unwrap_or_else(|error| panic!("{name}: {error:?}"));
            assert_eq!(names(&came), names(&expected), "{name}");
            for (came, expected) in came.iter().zip(&expected) {
                assert_eq!((came.datatype, &came.shape), (expected.datatype, &expected.shape), "{name}");
                if came.datatype == Datatype::Bytes {
                    assert_eq!(came.data, expected.data, "{name}");
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
        signature.inputs.iter().map(|spec| (spec.name.as_str(), spec.datatype, spec.shape.clone())).collect();
    assert_eq!(shapes, [("ids", Datatype::Int64, vec![-1, -1]), ("mask", Datatype::Int64, vec![-1, -1])]);
    assert_eq!(graph("mlp").signature().outputs[0].shape, [-1, 3]);
}

#[test]
fn dimensions_of_one_name_must_agree() {
    let ids = Tensor::from_values("ids", &[1, 2], &[1_i64, 2]);
    let mask = Tensor::from_values("mask", &[1, 3], &[1_i64, 1, 1]);
    let Err(Error::InvalidInput(text)) = graph("attention").run(&[&ids, &mask]) else { panic!("it ran") };
    assert_eq!(text, r#"input "mask": its dimension "tokens" is 3, and 2 in another input"#);
}

#[test]
fn an_unknown_operator_is_named() {
    let Err(why) = Graph::parse(&read("unknown_operator.onnx")) else { panic!("it was read") };
    assert!(why.contains("Frobnicate"), "{why}");
}

#[test]
fn a_file_truncated_anywhere_is_an_error_or_a_graph_and_never_a_panic() {
    let file = read("mlp.onnx");
    for length in 0..file.len() {
        drop(Graph::parse(&file[..length]));
    }
    assert!(Graph::parse(&file[..file.len() / 2]).is_err());
    assert!(Graph::parse(b"").is_err());
}
