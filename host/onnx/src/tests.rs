//! Compares answers with onnxruntime's. See tests/fixtures/onnx.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::unnecessary_cast,
    reason = "small numbers of every type"
)]

use std::fs;
use std::path::{Path, PathBuf};

use half::f16;
use modelhost_core::compare;
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::tensor::{DType, Tensor};
use serde_json::Value;
use tract_onnx::pb::{GraphProto, tensor_proto::DataType};

use super::{Graph, Leave, external_tensors};
use build::{encoded, node, tensor_of, value};

pub(crate) mod build;

/// Largest difference from onnxruntime's answer: absolute below 1, relative above.
const TOLERANCE: f64 = 1e-5;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/onnx")
}

fn read(name: &str) -> Vec<u8> {
    fs::read(fixtures().join(name)).unwrap()
}

/// Parses a graph without files beside it.
fn parse(file: &[u8]) -> Result<Graph, String> {
    Graph::parse(file, &|name| Err(format!("no file {name:?}")))
}

fn graph(name: &str) -> Graph {
    parse(&read(&format!("{name}.onnx"))).unwrap_or_else(|why| panic!("{name}: {why}"))
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
        DType::Fp16 => numbers().flat_map(|number| f16::from_f64(number).to_le_bytes()).collect(),
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
                compare::check(came, expected, |expected| TOLERANCE * expected.abs().max(1.0))
                    .unwrap_or_else(|why| panic!("{name}: {why}"));
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

/// Allows a number of bytes at once, and a number of operators.
struct Counted {
    most: u64,
    held: u64,
    peak: u64,
    operators: std::cell::Cell<u64>,
}

impl Counted {
    fn new(most: u64, operators: u64) -> Self {
        Self { most, held: 0, peak: 0, operators: operators.into() }
    }
}

impl Leave for Counted {
    fn take(&mut self, bytes: u64) -> Result<(), Error> {
        if self.held.saturating_add(bytes) > self.most {
            return Err(Error::new(ErrorCode::TooLarge, format!("{bytes} bytes more")));
        }
        self.held += bytes;
        self.peak = self.peak.max(self.held);
        Ok(())
    }

    fn give_back(&mut self, bytes: u64) {
        self.held = self.held.checked_sub(bytes).expect("it was taken");
    }

    fn go_on(&self) -> Result<(), Error> {
        let left = self.operators.get().checked_sub(1);
        self.operators.set(left.ok_or_else(|| Error::new(ErrorCode::DeadlineExceeded, "it ends"))?);
        Ok(())
    }
}

fn fp32(name: &str, shape: &[u64]) -> Tensor {
    let elements: u64 = shape.iter().product();
    let data: Vec<u8> = (0..elements).flat_map(|_| 1_f32.to_le_bytes()).collect();
    Tensor::new(name.to_owned(), DType::Fp32, shape.to_vec(), data.into()).unwrap()
}

#[test]
fn what_an_evaluation_takes_follows_from_what_comes_and_is_given_back() {
    let graph = graph("wide"); // a thousand numbers for every one
    let peak = |rows: u64| {
        let mut leave = Counted::new(u64::MAX, 100);
        assert_eq!(graph.run_within(&[fp32("x", &[rows, 1])], &mut leave).unwrap().len(), 1);
        assert_eq!(leave.held, 0);
        leave.peak
    };
    let (few, many) = (peak(10), peak(1000));
    assert!((40_000..100_000).contains(&few), "{few}");
    assert!((4_000_000..10_000_000).contains(&many), "{many}");
    let mut leave = Counted::new(many - 1, 100);
    let refused = graph.run_within(&[fp32("x", &[1000, 1])], &mut leave).unwrap_err();
    assert_eq!((refused.code, leave.held), (ErrorCode::TooLarge, 0));
    let refused = graph.run_planned(&[fp32("x", &[1000, 1])], &mut Counted::new(many - 1, 100)).unwrap_err();
    assert_eq!(refused.code, ErrorCode::TooLarge);
    assert!(graph.rehearse(&mut Counted::new(few, 0)).is_ok());
    assert!(graph.rehearse(&mut Counted::new(3999, 0)).is_err(), "one row is too much");
}

#[test]
fn an_evaluation_ends_between_two_operators() {
    let ended = graph("mlp").run_within(&[fp32("x", &[1, 8])], &mut Counted::new(u64::MAX, 2)).unwrap_err();
    assert_eq!((ended.code, &*ended.message), (ErrorCode::DeadlineExceeded, "it ends"));
}

/// A caller's value decides the length of a range.
#[test]
fn a_range_is_counted_before_it_is_made() {
    let graph = GraphProto {
        input: vec![value("end", DataType::Float, &[])],
        output: vec![value("y", DataType::Float, &[])],
        initializer: vec![
            tensor_of("start", &[], &[0.0_f32]),
            tensor_of("step", &[], &[1.0_f32]),
            tensor_of("axes", &[1], &[0_i64]),
        ],
        node: vec![node("Range", &["start", "end", "step"], "r"), node("ReduceSum", &["r", "axes"], "y")],
        ..GraphProto::default()
    };
    let graph = parse(&encoded(graph)).unwrap();
    let run = |end: f32, leave: &mut Counted| {
        let end = Tensor::new("end".into(), DType::Fp32, vec![], end.to_le_bytes().to_vec().into());
        graph.run_within(&[end.unwrap()], leave).map(|outputs| outputs.len()).map_err(|error| error.code)
    };
    let mut leave = Counted::new(100_000, 100);
    assert_eq!(run(1000.0, &mut leave), Ok(1));
    assert!(leave.held == 0 && leave.peak >= 4000, "{}", leave.peak);
    for end in [1e15, f32::INFINITY, -1e15] {
        assert_eq!(run(end, &mut Counted::new(100_000, 100)), Err(ErrorCode::TooLarge), "{end}");
    }
}

/// Making a plan takes long, so `run_planned` must not make one.
#[test]
fn nothing_is_planned_for_whoever_must_not_wait() {
    let (graph, mut leave) = (graph("lstm"), Counted::new(u64::MAX, 10_000));
    let x = |rows: u64| fp32("x", &[5, rows, 3]);
    assert_eq!(graph.run_planned(&[x(2)], &mut leave), Ok(None));
    assert_eq!(graph.run_planned(&[x(2)], &mut leave), Ok(None));
    graph.run(&[x(2)]).unwrap();
    assert!(matches!(graph.run_planned(&[x(2)], &mut leave), Ok(Some(_))));
    assert_eq!(leave.held, 0);
}
