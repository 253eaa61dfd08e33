//! Bounds on an ONNX file. Its author may write anything into it. No work may grow faster than the size of the file.
//!
//! Protobuf's reader refuses messages that are nested more than 100 deep, which bounds the nesting of graphs. Before
//! tract makes a tensor, it checks that the tensor holds as many elements as its dimensions announce.

use std::collections::{HashMap, HashSet};

use modelhost_core::model::Signature;
use tract_onnx::pb::tensor_shape_proto::dimension;
use tract_onnx::pb::{GraphProto, TensorProto, ValueInfoProto, type_proto};

/// Most inputs that a caller feeds. Also the most outputs.
const MOST_VALUES: usize = 1024;

/// Longest name of an input or output, in bytes.
const LONGEST_NAME: usize = 1024;

/// Most dimensions.
const MOST_DIMS: usize = 32;

/// Longest name of a dimension, in bytes. tract parses it as an expression, one call deeper for each parenthesis.
const LONGEST_DIM: usize = 256;

/// Most elements of a tensor that a node makes from a few bytes.
const MOST_CONSTANT: i64 = 1 << 26;

/// Checks that a graph's signature is within the bounds. Errors: the bound that is exceeded.
pub fn check_signature(signature: &Signature) -> Result<(), String> {
    for (role, specs) in [("input", &signature.inputs), ("output", &signature.outputs)] {
        if specs.len() > MOST_VALUES {
            return Err(format!("it has {} {role}s, more than {MOST_VALUES}", specs.len()));
        }
        let mut names = HashSet::new();
        for spec in specs {
            check_value(&spec.name, spec.shape.len()).map_err(|why| format!("{role} {why}"))?;
            if !names.insert(&spec.name) {
                return Err(format!("{role} {:?} is declared twice", spec.name));
            }
        }
    }
    Ok(())
}

/// The inputs that a caller feeds. A file may list initializers among its inputs too.
pub(crate) fn fed(graph: &GraphProto) -> impl Iterator<Item = &ValueInfoProto> {
    let given: HashSet<&str> = graph.initializer.iter().map(|given| given.name.as_str()).collect();
    graph.input.iter().filter(move |input| !given.contains(&*input.name))
}

/// Checks that tract may read a graph. Errors: what is wrong with it.
pub(crate) fn check_graph(graph: &GraphProto) -> Result<(), String> {
    for (role, count) in [("input", fed(graph).count()), ("output", graph.output.len())] {
        if count > MOST_VALUES {
            return Err(format!("it has {count} {role}s, more than {MOST_VALUES}"));
        }
    }
    graph.input.iter().chain(&graph.output).chain(&graph.value_info).try_for_each(check_dims)?;
    check_constants(graph)?;
    let attributes = graph.node.iter().flat_map(|node| &node.attribute);
    attributes.flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs)).try_for_each(check_graph)
}

fn check_value(name: &str, rank: usize) -> Result<(), String> {
    if name.len() > LONGEST_NAME {
        return Err(format!("with a name of {} bytes, more than {LONGEST_NAME}", name.len()));
    }
    if rank > MOST_DIMS {
        return Err(format!("{name:?} has {rank} dimensions, more than {MOST_DIMS}"));
    }
    Ok(())
}

fn check_dims(value: &ValueInfoProto) -> Result<(), String> {
    let kind = value.r#type.as_ref().and_then(|kind| kind.value.as_ref());
    let Some(type_proto::Value::TensorType(tensor)) = kind else { return Ok(()) };
    let Some(shape) = &tensor.shape else { return Ok(()) };
    check_value(&value.name, shape.dim.len()).map_err(|why| format!("value {why}"))?;
    let length = |dim: &Option<dimension::Value>| match dim {
        Some(dimension::Value::DimParam(name)) => name.len(),
        Some(dimension::Value::DimValue(_)) | None => 0,
    };
    let longest = shape.dim.iter().map(|dim| length(&dim.value)).max().unwrap_or(0);
    if longest > LONGEST_DIM {
        let name = &value.name;
        return Err(format!(
            "value {name:?}: a dimension's name of {longest} bytes, more than {LONGEST_DIM}"
        ));
    }
    Ok(())
}

/// tract computes constants when it plans. A few bytes of a file must not fill the memory.
fn check_constants(graph: &GraphProto) -> Result<(), String> {
    let mut constants: HashMap<&str, &TensorProto> =
        graph.initializer.iter().map(|given| (given.name.as_str(), given)).collect();
    for node in graph.node.iter().filter(|node| node.op_type == "Constant") {
        let value = node.attribute.iter().find_map(|attribute| attribute.t.as_ref());
        constants.extend(node.output.first().map(String::as_str).zip(value));
    }
    for node in &graph.node {
        let at = match &*node.op_type {
            "ConstantOfShape" => 0,
            "Expand" | "Tile" => 1,
            _ => continue,
        };
        let shape = node.input.get(at).and_then(|name| constants.get(name.as_str()));
        let sizes = shape.map(|shape| integers(shape)).unwrap_or_default();
        let elements = sizes.iter().try_fold(1_i64, |product, size| product.checked_mul(*size));
        if elements.is_none_or(|elements| elements > MOST_CONSTANT) {
            let first: Vec<_> = sizes.iter().take(MOST_DIMS).collect();
            return Err(format!(
                "node {:?} ({}): sizes {first:?} make more than {MOST_CONSTANT} elements",
                node.name, node.op_type
            ));
        }
    }
    Ok(())
}

/// The elements of an INT64 initializer. Source: onnx.proto3, `TensorProto`.
fn integers(tensor: &TensorProto) -> Vec<i64> {
    let (chunks, _) = tensor.raw_data.as_chunks::<8>();
    if chunks.is_empty() {
        tensor.int64_data.clone()
    } else {
        chunks.iter().map(|chunk| i64::from_le_bytes(*chunk)).collect()
    }
}

#[cfg(test)]
mod tests {
    use tract_onnx::pb::AttributeProto;
    use tract_onnx::pb::tensor_proto::DataType;

    use super::*;
    use crate::Graph;
    use crate::tests::build::{encoded, node, tensor_of};

    fn value(name: &str, dims: &[&str]) -> ValueInfoProto {
        crate::tests::build::value(name, DataType::Float, dims)
    }

    fn tensor(name: &str, dims: &[i64], values: &[i64]) -> TensorProto {
        tensor_of(name, dims, values)
    }

    /// Parses `y = x` after `change` was applied to it.
    fn refused(change: impl FnOnce(&mut GraphProto), why: &str) {
        let mut graph = GraphProto {
            input: vec![value("x", &["n"])],
            output: vec![value("y", &["n"])],
            node: vec![node("Identity", &["x"], "y")],
            ..GraphProto::default()
        };
        change(&mut graph);
        let said = parse(&encoded(graph));
        assert!(said.contains(why), "{said:.300}");
    }

    fn parse(file: &[u8]) -> String {
        let parsed = Graph::parse(file, &|name| Err(format!("no file {name:?}")));
        parsed.map_or_else(|why| why, |_| "it was read".to_owned())
    }

    #[test]
    fn a_file_that_says_what_no_file_should_is_refused() {
        refused(|_| {}, "it was read");
        let deep = format!("{}n{}", "(".repeat(200_000), ")".repeat(200_000));
        refused(|graph| graph.input = vec![value("x", &[&deep])], "a dimension's name of 400001 bytes");
        refused(|graph| graph.value_info = vec![value("x", &[&deep])], "a dimension's name of 400001 bytes");
        refused(|graph| graph.input = vec![value("x", &["n"; 33])], "\"x\" has 33 dimensions");
        let deepest = format!("{}n{}", "(".repeat(127), ")".repeat(127));
        refused(|graph| graph.input = vec![value("x", &[&deepest])], "it was read");
        let many = || (0..80_000).map(|at| value(&format!("x{at}"), &["n"]));
        refused(|graph| graph.input.extend(many()), "it has 80001 inputs, more than 1024");
        refused(|graph| graph.output.extend(many()), "it has 80001 outputs");
        let long = "x".repeat(1 << 20);
        refused(|graph| graph.input.push(value(&long, &["n"])), "a name of 1048576 bytes");
    }

    #[test]
    fn a_tensor_that_announces_more_than_it_holds_is_refused() {
        for (dims, why) in [
            (&[1 << 50][..], "Raw tensor data length"),
            (&[i64::MAX, i64::MAX], "overflows"),
            (&[-1], "Negative dimension"),
            (&[2], "Raw tensor data length"),
        ] {
            refused(|graph| graph.initializer.push(tensor("w", dims, &[1])), why);
            let mut holder = node("Constant", &[], "c");
            let value = AttributeProto { t: Some(tensor("w", dims, &[1])), ..AttributeProto::default() };
            holder.attribute.push(AttributeProto { name: "value".to_owned(), ..value });
            refused(|graph| graph.node.push(holder), "Constant");
        }
    }

    #[test]
    fn sizes_that_a_constant_holds_are_looked_at_wherever_it_is() {
        let fills = |graph: &mut GraphProto| graph.node.push(node("ConstantOfShape", &["sizes"], "filled"));
        let sizes = || tensor("sizes", &[1], &[1 << 40]);
        let why = "sizes [1099511627776] make more than";
        refused(|graph| (graph.initializer.push(sizes()), fills(graph)).1, why);
        let mut holder = node("Constant", &[], "sizes");
        holder.attribute.push(AttributeProto { t: Some(sizes()), ..AttributeProto::default() });
        refused(|graph| (graph.node.push(holder.clone()), fills(graph)).1, why);
        let mut body = GraphProto { node: vec![holder], ..GraphProto::default() };
        fills(&mut body);
        let mut scan = node("Scan", &["x"], "z");
        scan.attribute.push(AttributeProto { g: Some(body), ..AttributeProto::default() });
        refused(|graph| graph.node.push(scan), why);
    }

    #[test]
    fn graphs_in_graphs_without_end_are_refused_before_they_are_walked() {
        let wrap = |field: u8, content: Vec<u8>| {
            let mut bytes = vec![field << 3 | 2];
            prost::encode_length_delimiter(content.len(), &mut bytes).unwrap();
            bytes.extend(content);
            bytes
        };
        let mut graph = Vec::new();
        for _ in 0..5000 {
            graph = wrap(1, wrap(5, wrap(6, graph)));
        }
        let said = parse(&wrap(7, graph));
        assert!(said.contains("it is no ONNX file") && said.contains("recursion"), "{said:.300}");
    }
}
