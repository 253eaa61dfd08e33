//! A version to decode for, and one request in every dialect.

#![allow(clippy::unwrap_used, reason = "a fixture: a panic is its way to fail")]

#[cfg(test)]
use bytes::Bytes;
use modelhost_core::artifact::Digest;
use modelhost_core::graph::{Batching, GraphOptions};
use modelhost_core::model::{ModelName, ModelVersion, Signature};
#[cfg(test)]
use modelhost_core::tensor::Tensor;
use modelhost_core::tensor::{Column, ColumnKind, DType, TensorSpec};
use modelhost_core::version::{Card, Isolation, Limits, LoadReport, Package, Version};

#[cfg(test)]
use crate::oip_grpc::pb;
#[cfg(test)]
use crate::{csv, mlflow, oip_grpc, oip_rest, records, tf_serving};

/// A model with one table of an age and a purpose, and one number a row.
pub(crate) fn version() -> Version {
    let column = |name: &str, kind, missing| Column {
        name: name.into(),
        kind,
        description: None,
        unit: None,
        minimum: None,
        maximum: None,
        missing,
        unknown_is_missing: false,
    };
    let columns = vec![
        column("age", ColumnKind::Numeric, false),
        column("purpose", ColumnKind::Categorical(vec!["car".into(), "tv".into()]), true),
    ];
    let input = TensorSpec {
        name: "input".into(),
        dtype: DType::Fp32,
        shape: vec![None, Some(2)],
        columns: columns.clone().into(),
    };
    let output = TensorSpec { name: "p".into(), dtype: DType::Fp32, shape: vec![None], columns: [].into() };
    let signature = Signature { inputs: vec![input], outputs: vec![output] };
    Version {
        model: ModelName::parse("a/b").unwrap(),
        number: ModelVersion::new(6).unwrap(),
        digest: Digest::from_bytes([0; 32]),
        package: Package {
            component: Digest::from_bytes([0; 32]),
            artifacts: Vec::new(),
            parameters: Vec::new(),
            columns: columns.into(),
            capabilities: Vec::new(),
            response_cache: false,
            graphs: GraphOptions::default(),
            batching: Batching::NONE,
            isolation: None,
            limits: Limits::DEFAULT,
            examples: Vec::new(),
        },
        report: LoadReport { signature, isolation: Isolation::Request, isolation_note: None },
        card: Card::default(),
        platform: String::new(),
    }
}

/// The same version with other inputs, no table.
pub(crate) fn with_inputs(inputs: &[(&str, DType, &[Option<u64>])]) -> Version {
    let spec = |(name, dtype, shape): &(&str, DType, &[Option<u64>])| TensorSpec {
        name: (*name).into(),
        dtype: *dtype,
        shape: shape.to_vec(),
        columns: [].into(),
    };
    let mut version = version();
    version.report.signature.inputs = inputs.iter().map(spec).collect();
    version
}

#[cfg(test)]
pub(crate) fn fp32(name: &str, shape: &[u64], values: &[f32]) -> Tensor {
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Tensor::new(name.into(), DType::Fp32, shape.to_vec(), data.into()).unwrap()
}

/// Two rows: age 40 for a tv, age 1.5 for a car.
#[test]
fn every_dialect_reads_the_same_request() {
    let version = version();
    let expected = vec![fp32("input", &[2, 2], &[40.0, 1.0, 1.5, 0.0])];
    let raw = expected[0].data().clone();

    let json = r#"{"inputs":[{"name":"input","datatype":"FP32","shape":[2,2],"data":[40,1,1.5,0]}]}"#;
    let (request, _) = oip_rest::decode(&Bytes::from_static(json.as_bytes()), json.len()).unwrap();
    assert_eq!(request.inputs, expected);
    let json = r#"{"inputs":[{"name":"input","datatype":"FP32","shape":[2,2],"parameters":{"binary_data_size":16}}]}"#;
    let (request, _) = oip_rest::decode(&[json.as_bytes(), &raw].concat().into(), json.len()).unwrap();
    assert_eq!(request.inputs, expected);
    assert_eq!(oip_rest::decode_raw(&raw, &version.report.signature).unwrap().0.inputs, expected);

    let input = |contents| pb::model_infer_request::InferInputTensor {
        name: "input".into(),
        datatype: "FP32".into(),
        shape: vec![2, 2],
        contents,
        ..Default::default()
    };
    let typed = pb::InferTensorContents { fp32_contents: vec![40.0, 1.0, 1.5, 0.0], ..Default::default() };
    let typed = pb::ModelInferRequest { inputs: vec![input(Some(typed))], ..Default::default() };
    assert_eq!(oip_grpc::decode(typed).unwrap().0.inputs, expected);
    let untyped = pb::ModelInferRequest {
        inputs: vec![input(None)],
        raw_input_contents: vec![raw],
        ..Default::default()
    };
    assert_eq!(oip_grpc::decode(untyped).unwrap().0.inputs, expected);

    let rows = r#"[{"age":40,"purpose":"tv"},{"purpose":"car","age":1.5}]"#;
    assert_eq!(records::decode(rows.as_bytes(), &version, None).unwrap().inputs, expected);
    for body in [
        "{\"instances\":[[40,1],[1.5,0]]}".to_owned(),
        "{\"instances\":[{\"input\":[40,1]},{\"input\":[1.5,0]}]}".to_owned(),
        "{\"inputs\":[[40,1],[1.5,0]]}".to_owned(),
        "{\"inputs\":{\"input\":[[40,1],[1.5,0]]}}".to_owned(),
        format!("{{\"instances\":{rows}}}"),
    ] {
        let body = Bytes::from(body);
        assert_eq!(tf_serving::decode(&body, &version, None).unwrap().0.inputs, expected, "{body:?}");
        assert_eq!(mlflow::decode(&body, &version, None).unwrap().inputs, expected, "{body:?}");
    }
    for body in [
        format!("{{\"dataframe_records\":{rows}}}"),
        r#"{"dataframe_split":{"data":[["tv",40],["car",1.5]],"columns":["purpose","age"],"index":[0,1]}}"#
            .to_owned(),
        r#"{"dataframe_split":{"data":[[40,"tv"],[1.5,"car"]]}}"#.to_owned(),
    ] {
        let body = Bytes::from(body);
        assert_eq!(mlflow::decode(&body, &version, None).unwrap().inputs, expected, "{body:?}");
    }
    for size in [1, 7, 100] {
        let mut decoder = csv::Decoder::new(&version, None).unwrap();
        let file = b"purpose,age\ntv,40\r\n\"car\",1.5";
        file.chunks(size).for_each(|piece| decoder.feed(piece).unwrap());
        decoder.feed(&[]).unwrap();
        assert_eq!(decoder.take().unwrap().unwrap().inputs, expected);
    }
}
