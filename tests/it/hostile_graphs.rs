//! Graphs of authors who mean harm: what reading or evaluating one takes costs its own version only.

use modelhost_tests::{Package, x};
use serde_json::json;

/// The parts of an ONNX file that these graphs need, as protobuf has them. Source: onnx.proto3.
mod onnx {
    fn varint(mut number: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while number > 127 {
            bytes.push(number.to_le_bytes()[0] | 128);
            number >>= 7;
        }
        bytes.push(number.to_le_bytes()[0]);
        bytes
    }

    fn number(field: u64, value: u64) -> Vec<u8> {
        [varint(field << 3), varint(value)].concat()
    }

    fn bytes(field: u64, content: &[u8]) -> Vec<u8> {
        [varint(field << 3 | 2), varint(content.len() as u64), content.to_vec()].concat()
    }

    pub(super) fn node(op: &str, inputs: &[&str], output: &str) -> Vec<u8> {
        let inputs: Vec<u8> = inputs.iter().flat_map(|name| bytes(1, name.as_bytes())).collect();
        let name = format!("{op} of {output}");
        [inputs, bytes(2, output.as_bytes()), bytes(3, name.as_bytes()), bytes(4, op.as_bytes())].concat()
    }

    /// Of INT64, in one dimension.
    pub(super) fn constant(name: &str, values: &[u64]) -> Vec<u8> {
        let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        [number(1, values.len() as u64), number(2, 7), bytes(8, name.as_bytes()), bytes(9, &raw)].concat()
    }

    /// `x` of `[n]` comes, `y` of `[n]` goes; both are FP32.
    pub(super) fn graph(constants: &[Vec<u8>], nodes: &[Vec<u8>]) -> Vec<u8> {
        let shape = bytes(1, &bytes(2, b"n"));
        let tensor = [number(1, 1), bytes(2, &shape)].concat();
        let value = |name: &str| [bytes(1, name.as_bytes()), bytes(2, &bytes(1, &tensor))].concat();
        let graph = [
            nodes.iter().flat_map(|node| bytes(1, node)).collect(),
            bytes(2, b"g"),
            constants.iter().flat_map(|constant| bytes(5, constant)).collect(),
            bytes(11, &value("x")),
            bytes(12, &value("y")),
        ];
        [number(1, 8), bytes(8, &[bytes(1, b""), number(2, 13)].concat()), bytes(7, &graph.concat())].concat()
    }
}

use onnx::{constant, graph, node};

/// As many multiplications of constant matrices as take a processor for minutes, in a few kilobytes.
fn endless() -> Vec<u8> {
    let sizes = constant("sizes", &[1500, 1500]);
    let mut nodes = vec![node("ConstantOfShape", &["sizes"], "m0")];
    for at in 0..500 {
        nodes.push(node("ConstantOfShape", &["sizes"], &format!("c{at}")));
        nodes.push(node("MatMul", &[&format!("m{at}"), &format!("c{at}")], &format!("m{}", at + 1)));
    }
    nodes.push(node("ReduceSum", &["m500"], "sum"));
    nodes.push(node("Reshape", &["sum", "one"], "row"));
    nodes.push(node("Add", &["x", "row"], "y"));
    graph(&[sizes, constant("one", &[1])], &nodes)
}

/// 16 GiB of a constant: the product of two that are small.
fn huge() -> Vec<u8> {
    let nodes = [
        node("ConstantOfShape", &["high"], "column"),
        node("ConstantOfShape", &["wide"], "line"),
        node("MatMul", &["column", "line"], "m"),
        node("ReduceSum", &["m"], "sum"),
        node("Reshape", &["sum", "one"], "row"),
        node("Add", &["x", "row"], "y"),
    ];
    let sizes = [constant("high", &[1 << 16, 1]), constant("wide", &[1, 1 << 16]), constant("one", &[1])];
    graph(&sizes, &nodes)
}

fn backends() -> Vec<&'static str> {
    match crate::graphs::onnxruntime() {
        Some(_) => vec!["tract", "onnxruntime"],
        None => vec!["tract"],
    }
}

/// Before, each kept a thread of the host for as long as it lasted; after twenty nobody's graph was read any more.
#[test]
fn graphs_whose_reading_never_ends_cost_their_authors_only() {
    let host = crate::graphs::host_with(|config| config.limits.compile_deadline_ms = 1000);
    for backend in backends() {
        let package = |file| Package::graph(file, &format!("[graphs]\nbackend = '{backend}'"));
        std::thread::scope(|scope| {
            let refused: Vec<_> = (0..3)
                .map(|at| {
                    let (host, package) = (&host, package(endless()));
                    scope.spawn(move || {
                        host.client.try_register(&format!("demo/bad{at}"), &package, true).unwrap()
                    })
                })
                .collect();
            let mlp = crate::graphs::fixture("mlp.onnx");
            host.client.register("demo/m", &package(mlp), true);
            for answer in refused.into_iter().map(|answer| answer.join().unwrap()) {
                assert_eq!(answer.status, 422, "{backend}: {answer:?}");
                let why = "graphs: it took more than the 1 s of processor time allowed";
                assert_eq!(answer.error(), why, "{backend}");
            }
        });
    }
}

/// tract computes what is constant while it reads. ONNX Runtime leaves that to the evaluation.
#[test]
fn a_graph_that_grows_while_it_is_read_costs_its_author_only() {
    let host = crate::graphs::host_with(|config| config.limits.compile_mib = 1024);
    let package = Package::graph(huge(), "[graphs]\nbackend = 'tract'");
    let answer = host.client.try_register("demo/bad", &package, true).unwrap();
    assert_eq!(answer.status, 422, "{answer:?}");
    assert!(answer.error().starts_with("graphs: its process ended ("), "{}", answer.error());
    host.client.register("demo/m", &Package::fault("echo", ""), true);
    assert_eq!(host.client.post("/v2/models/demo/m/infer", &x(&[1.0])).status, 200);
}

/// What a graph takes between its input and its output follows from what its caller sends.
#[test]
fn an_evaluation_stays_within_the_versions_limit() {
    let host = crate::graphs::host_with(|_| {});
    let manifest = "limits = { graph_mib = 16 }\n[graphs]\nbackend = 'tract'";
    let wide = Package::graph(crate::graphs::fixture("wide.onnx"), manifest);
    host.client.register("demo/wide", &wide, true);
    let ask = |rows: usize| {
        let x = json!({"name": "x", "datatype": "FP32", "shape": [rows, 1], "data": vec![1; rows]});
        host.client.post("/v2/models/demo/wide/infer", &json!({"inputs": [x]}))
    };
    assert_eq!(ask(1000).status, 200);
    let much = ask(100_000);
    assert_eq!(much.status, 502, "{much:?}");
    assert!(much.error().contains("between its inputs and outputs"), "{}", much.error());
    assert_eq!(ask(1000).status, 200, "what it had is given back");
}
