//! Builds small ONNX files.

use prost::Message as _;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension};
use tract_onnx::pb::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, type_proto,
};

/// A dimension is a size or a name.
pub(crate) fn value(name: &str, datatype: DataType, dims: &[&str]) -> ValueInfoProto {
    let dim = |dim: &&str| Dimension {
        value: Some(match dim.parse() {
            Ok(size) => dimension::Value::DimValue(size),
            Err(_) => dimension::Value::DimParam((*dim).to_owned()),
        }),
        ..Dimension::default()
    };
    let shape = Some(TensorShapeProto { dim: dims.iter().map(dim).collect() });
    let tensor = type_proto::Tensor { elem_type: datatype as i32, shape };
    let r#type =
        Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() });
    ValueInfoProto { name: name.to_owned(), r#type, ..ValueInfoProto::default() }
}

pub(crate) fn node(op: &str, inputs: &[&str], output: &str) -> NodeProto {
    NodeProto {
        op_type: op.to_owned(),
        input: inputs.iter().map(|name| (*name).to_owned()).collect(),
        output: vec![output.to_owned()],
        ..NodeProto::default()
    }
}

/// A number of an initializer.
pub(crate) trait Number: bytemuck::Pod {
    const TYPE: DataType;
}

impl Number for i64 {
    const TYPE: DataType = DataType::Int64;
}

impl Number for f32 {
    const TYPE: DataType = DataType::Float;
}

pub(crate) fn tensor_of<N: Number>(name: &str, dims: &[i64], values: &[N]) -> TensorProto {
    TensorProto {
        name: name.to_owned(),
        dims: dims.to_vec(),
        data_type: N::TYPE as i32,
        raw_data: bytemuck::cast_slice(values).to_vec(),
        ..TensorProto::default()
    }
}

/// Encodes the file.
pub(crate) fn encoded(graph: GraphProto) -> Vec<u8> {
    let opset = OperatorSetIdProto { version: 13, ..Default::default() };
    let model = ModelProto { graph: Some(graph), opset_import: vec![opset], ..ModelProto::default() };
    model.encode_to_vec()
}
