//! Weights that an ONNX file stores in other files beside it. Source: onnx.proto3, `TensorProto.external_data`.

use std::collections::btree_map::{BTreeMap, Entry};

use bytes::Bytes;
use memchr::memmem;
use tract_onnx::pb::{GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto};

use crate::graph;

/// The key of the entry that every such tensor has.
const LOCATION: &str = "location";

/// Lists the tensors that are stored in other files: the name of the file, and the number of bytes unless it is the
/// rest of the file. Errors: the file is not ONNX; a tensor does not name its file.
pub fn external_tensors(file: &[u8]) -> Result<Vec<(String, Option<usize>)>, String> {
    // Most files have no such tensors, and decoding one copies its weights.
    if memmem::find(file, LOCATION.as_bytes()).is_none() {
        return Ok(Vec::new());
    }
    let mut tensors = Vec::new();
    each_tensor(&mut graph::decode(file)?, &mut |tensor| {
        if is_external(tensor) {
            tensors.push((location(tensor)?.to_owned(), number(tensor, "length")?));
        }
        Ok(())
    })?;
    Ok(tensors)
}

/// Copies these weights into the model. `read` returns the content of a file. Errors: the tensor, and what is wrong
/// with its file.
pub(crate) fn bring_in(
    model: &mut ModelProto,
    read: &dyn Fn(&str) -> Result<Bytes, String>,
) -> Result<(), String> {
    let mut files = BTreeMap::new();
    each_tensor(model, &mut |tensor| {
        if !is_external(tensor) {
            return Ok(());
        }
        let name = location(tensor)?.to_owned();
        let of = |why: String| format!("tensor {:?}: {why}", tensor.name);
        let content = match files.entry(name.clone()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(read(&name).map_err(of)?),
        };
        let start = number(tensor, "offset")?.unwrap_or(0);
        let length = number(tensor, "length")?.unwrap_or(content.len().saturating_sub(start));
        let part = start.checked_add(length).and_then(|end| content.get(start..end));
        let part = part.ok_or_else(|| {
            of(format!("{length} bytes from {start} on are not in {name:?}, which has {}", content.len()))
        })?;
        tensor.raw_data = part.to_vec();
        tensor.data_location = None;
        tensor.external_data.clear();
        Ok(())
    })
}

fn is_external(tensor: &TensorProto) -> bool {
    tensor.data_location.is_some_and(|location| location != 0) || !tensor.external_data.is_empty()
}

fn entry<'a>(tensor: &'a TensorProto, key: &str) -> Option<&'a str> {
    tensor.external_data.iter().find(|entry| entry.key == key).map(|entry| entry.value.as_str())
}

fn location(tensor: &TensorProto) -> Result<&str, String> {
    entry(tensor, LOCATION)
        .ok_or_else(|| format!("tensor {:?} is in another file, and says not in which", tensor.name))
}

fn number(tensor: &TensorProto, key: &str) -> Result<Option<usize>, String> {
    let parse = |text: &str| text.parse().map_err(|_| format!("tensor {:?}: {key} {text:?}", tensor.name));
    entry(tensor, key).map(parse).transpose()
}

type Each<'a> = dyn FnMut(&mut TensorProto) -> Result<(), String> + 'a;

/// Calls `each` for every tensor, wherever a model may have one.
pub(crate) fn each_tensor(model: &mut ModelProto, each: &mut Each<'_>) -> Result<(), String> {
    let training = model.training_info.iter_mut();
    let training = training.flat_map(|info| info.initialization.iter_mut().chain(&mut info.algorithm));
    for graph in model.graph.iter_mut().chain(training) {
        of_graph(graph, each)?;
    }
    for function in &mut model.functions {
        of_nodes(&mut function.node, each)?;
    }
    Ok(())
}

fn of_graph(graph: &mut GraphProto, each: &mut Each<'_>) -> Result<(), String> {
    graph.initializer.iter_mut().try_for_each(&mut *each)?;
    of_sparse(&mut graph.sparse_initializer, each)?;
    of_nodes(&mut graph.node, each)
}

fn of_nodes(nodes: &mut [NodeProto], each: &mut Each<'_>) -> Result<(), String> {
    for attribute in nodes.iter_mut().flat_map(|node| &mut node.attribute) {
        attribute.t.iter_mut().chain(&mut attribute.tensors).try_for_each(&mut *each)?;
        of_sparse(&mut attribute.sparse_tensor, each)?;
        of_sparse(&mut attribute.sparse_tensors, each)?;
        for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
            of_graph(graph, each)?;
        }
    }
    Ok(())
}

fn of_sparse<'a>(
    tensors: impl IntoIterator<Item = &'a mut SparseTensorProto>,
    each: &mut Each<'_>,
) -> Result<(), String> {
    tensors
        .into_iter()
        .flat_map(|sparse| sparse.values.iter_mut().chain(&mut sparse.indices))
        .try_for_each(each)
}
