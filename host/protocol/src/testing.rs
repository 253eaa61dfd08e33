//! A version to decode for, and one request in every dialect.

#![allow(clippy::unwrap_used, reason = "a fixture: a panic is its way to fail")]

#[cfg(test)]
use bytes::Bytes;
use modelhost_core::artifact::Digest;
#[cfg(test)]
use modelhost_core::budget::ByteBudget;
#[cfg(test)]
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::graph::{Batching, GraphOptions};
use modelhost_core::model::{ModelName, ModelVersion, Signature};
#[cfg(test)]
use modelhost_core::room::Room;
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
        column("purpose", ColumnKind::Categorical(vec!["car".into(), "tv".into()].into()), true),
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
    let (version, room) = (version(), Room::unbounded());
    let expected = vec![fp32("input", &[2, 2], &[40.0, 1.0, 1.5, 0.0])];
    let raw = expected[0].data().clone();

    let json = r#"{"inputs":[{"name":"input","datatype":"FP32","shape":[2,2],"data":[40,1,1.5,0]}]}"#;
    let (request, _) = oip_rest::decode(&Bytes::from_static(json.as_bytes()), json.len(), &room).unwrap();
    assert_eq!(request.inputs, expected);
    let json = r#"{"inputs":[{"name":"input","datatype":"FP32","shape":[2,2],"parameters":{"binary_data_size":16}}]}"#;
    let (request, _) = oip_rest::decode(&[json.as_bytes(), &raw].concat().into(), json.len(), &room).unwrap();
    assert_eq!(request.inputs, expected);
    assert_eq!(oip_rest::decode_raw(&raw, &version.report.signature, &room).unwrap().0.inputs, expected);

    let input = |contents| pb::model_infer_request::InferInputTensor {
        name: "input".into(),
        datatype: "FP32".into(),
        shape: vec![2, 2],
        contents,
        ..Default::default()
    };
    let typed = pb::InferTensorContents { fp32_contents: vec![40.0, 1.0, 1.5, 0.0], ..Default::default() };
    let typed = pb::ModelInferRequest { inputs: vec![input(Some(typed))], ..Default::default() };
    assert_eq!(oip_grpc::decode(typed, &room).unwrap().0.inputs, expected);
    let untyped = pb::ModelInferRequest {
        inputs: vec![input(None)],
        raw_input_contents: vec![raw],
        ..Default::default()
    };
    assert_eq!(oip_grpc::decode(untyped, &room).unwrap().0.inputs, expected);

    let rows = r#"[{"age":40,"purpose":"tv"},{"purpose":"car","age":1.5}]"#;
    assert_eq!(records::decode(rows.as_bytes(), &version, None, &room).unwrap().inputs, expected);
    for body in [
        "{\"instances\":[[40,1],[1.5,0]]}".to_owned(),
        "{\"instances\":[{\"input\":[40,1]},{\"input\":[1.5,0]}]}".to_owned(),
        "{\"inputs\":[[40,1],[1.5,0]]}".to_owned(),
        "{\"inputs\":{\"input\":[[40,1],[1.5,0]]}}".to_owned(),
        format!("{{\"instances\":{rows}}}"),
    ] {
        let body = Bytes::from(body);
        assert_eq!(tf_serving::decode(&body, &version, None, &room).unwrap().0.inputs, expected, "{body:?}");
        assert_eq!(mlflow::decode(&body, &version, None, &room).unwrap().inputs, expected, "{body:?}");
    }
    for body in [
        format!("{{\"dataframe_records\":{rows}}}"),
        r#"{"dataframe_split":{"data":[["tv",40],["car",1.5]],"columns":["purpose","age"],"index":[0,1]}}"#
            .to_owned(),
        r#"{"dataframe_split":{"data":[[40,"tv"],[1.5,"car"]]}}"#.to_owned(),
    ] {
        let body = Bytes::from(body);
        assert_eq!(mlflow::decode(&body, &version, None, &room).unwrap().inputs, expected, "{body:?}");
    }
    for size in [1, 7, 100] {
        let mut decoder = csv::Decoder::new(&version, None).unwrap();
        let file = b"purpose,age\ntv,40\r\n\"car\",1.5";
        file.chunks(size).for_each(|piece| decoder.feed(piece, &room).unwrap());
        decoder.feed(&[], &room).unwrap();
        assert_eq!(decoder.take(&room).unwrap().unwrap().inputs, expected);
    }
}

/// A table of columns that may all be missing: a row of it takes two bytes of text, and 4 a column in memory.
#[cfg(test)]
fn wide(columns: u16) -> Version {
    let mut version = version();
    let mut table = version.report.signature.inputs[0].clone();
    let column = |at: u16| Column { name: format!("c{at}"), missing: true, ..table.columns[0].clone() };
    table.columns = (0..columns).map(column).collect();
    table.shape = vec![None, Some(columns.into())];
    version.package.columns = table.columns.clone();
    version.report.signature.inputs = vec![table];
    version
}

/// What reads within this room, `read` is asked to do.
#[cfg(test)]
fn refused_within<T>(bytes: u64, what: &str, read: impl FnOnce(&Room) -> Result<T, Error>) {
    let room = Room::of(ByteBudget::new("this host", bytes).charge());
    match read(&room) {
        Ok(_) => panic!("{what}: was read within {bytes} bytes"),
        Err(error) => assert_eq!(error.code, ErrorCode::ResourceExhausted, "{what}: {error}"),
    }
    let taken = room.into_charge().bytes();
    assert!(taken <= bytes, "{what}: {taken} bytes were taken");
}

#[test]
fn what_grows_when_it_is_read_takes_room_first() {
    const MIB: usize = 1 << 20;
    let numbers = |count: usize| format!("[{}]", vec!["0"; count].join(","));
    let doubles = with_inputs(&[("x", DType::Fp64, &[None])]);
    let texts = with_inputs(&[("x", DType::Bytes, &[None])]);
    let (zeros, empty) = (numbers(MIB), format!("[{}]", vec!["\"\""; MIB].join(",")));
    let escaped = format!("[\"{}\"]", "\\n".repeat(MIB));
    for (dtype, shape, data) in
        [("FP64", MIB, &zeros), ("FP64", 1, &zeros), ("BYTES", MIB, &empty), ("BYTES", 1, &escaped)]
    {
        for order in ["first", "last"] {
            let about = format!(r#""datatype":"{dtype}","shape":[{shape}]"#);
            let input = match order {
                "first" => format!(r#"{{"name":"x",{about},"data":{data}}}"#),
                _ => format!(r#"{{"name":"x","data":{data},{about}}}"#),
            };
            let body = Bytes::from(format!(r#"{{"inputs":[{input}]}}"#));
            refused_within(2 << 20, dtype, |room| oip_rest::decode(&body, body.len(), room));
        }
    }
    for (version, data) in [(&doubles, &zeros), (&texts, &empty), (&texts, &escaped)] {
        for key in ["instances", "inputs"] {
            let body = Bytes::from(format!("{{\"{key}\":{data}}}"));
            refused_within(2 << 20, key, |room| tf_serving::decode(&body, version, None, room));
            refused_within(2 << 20, key, |room| mlflow::decode(&body, version, None, room));
        }
    }
    let named = Bytes::from(format!("{{\"instances\":[{}]}}", vec!["{\"x\":[0,0,0,0]}"; MIB / 4].join(",")));
    refused_within(2 << 20, "rows by name", |room| tf_serving::decode(&named, &doubles, None, room));
    let wide = wide(10_000);
    let rows = format!("[{}]", vec!["{}"; 1000].join(","));
    refused_within(2 << 20, "records", |room| records::decode(rows.as_bytes(), &wide, None, room));
    for body in [
        format!("{{\"instances\":{}}}", rows.replacen("{}", "{\"c1\":0}", 1)),
        format!("{{\"dataframe_records\":{rows}}}"),
        format!("{{\"dataframe_split\":{{\"columns\":[],\"data\":{}}}}}", rows.replace("{}", "[]")),
    ] {
        let body = Bytes::from(body);
        refused_within(2 << 20, "a table", |room| mlflow::decode(&body, &wide, None, room));
    }
    let file = format!("c7\n{}", "1\n".repeat(1000));
    refused_within(2 << 20, "a CSV file", |room| csv::decode(file.as_bytes(), &wide, None, room));
    let contents = |contents| pb::ModelInferRequest {
        inputs: vec![pb::model_infer_request::InferInputTensor {
            name: "x".into(),
            datatype: "INT32".into(),
            shape: vec![1 << 20],
            contents: Some(contents),
            ..Default::default()
        }],
        ..Default::default()
    };
    let message = contents(pb::InferTensorContents { int_contents: vec![0; MIB], ..Default::default() });
    let bytes = Bytes::from(prost::Message::encode_to_vec(&message));
    refused_within(2 << 20, "typed contents", |room| oip_grpc::read(&bytes, ("", ""), 64 << 20, room));
    refused_within(2 << 20, "their bytes", |room| oip_grpc::decode(message, room));
}

#[test]
fn what_grows_when_it_is_written_takes_room_first() {
    let small: Vec<u8> = vec![0xff; 1 << 20];
    let flags = Tensor::new("p".into(), DType::Bool, vec![1 << 20], vec![0; 1 << 20].into()).unwrap();
    let bytes = Tensor::new("p".into(), DType::Int8, vec![1 << 20], small.into()).unwrap();
    let texts = Tensor::new("p".into(), DType::Bytes, vec![1 << 18], vec![0; 1 << 20].into()).unwrap();
    let hidden = Tensor::from_bytes_elements("p".into(), vec![1], [&vec![1; 1 << 20][..]]).unwrap();
    let long = bytes.clone().named("n".repeat(1000));
    let deep =
        Tensor::new("p".into(), DType::Int8, [vec![1 << 14], vec![1; 31]].concat(), vec![0; 1 << 14].into())
            .unwrap();
    let empty = Tensor::new("n".repeat(1000), DType::Int8, vec![0, 1 << 20], Bytes::new()).unwrap();
    let form = |binary| crate::ReplyForm { binary, ..Default::default() };
    let version = version();
    for output in [&flags, &texts, &hidden, &long] {
        let outputs = std::slice::from_ref(output);
        refused_within(2 << 20, output.name(), |room| records::encode(&version, outputs, room));
        refused_within(2 << 20, output.name(), |room| mlflow::encode(outputs, room));
    }
    for output in [&flags, &bytes, &texts, &hidden, &deep] {
        let outputs = std::slice::from_ref(output);
        for layout in [tf_serving::Layout::Rows, tf_serving::Layout::Columns] {
            refused_within(1 << 20, output.name(), |room| tf_serving::encode(outputs, layout, room));
        }
    }
    for output in [&flags, &bytes, &texts, &hidden] {
        let outputs = std::slice::from_ref(output);
        refused_within(1 << 19, "OIP", |room| oip_rest::encode(&version, None, outputs, &form(false), room));
        refused_within(1 << 19, "raw", |room| oip_rest::encode(&version, None, outputs, &form(true), room));
        refused_within(1 << 19, "gRPC", |room| {
            oip_grpc::written(&oip_grpc::encode(&version, None, outputs, &form(false), room)?, room)
        });
        refused_within(1 << 19, "raw gRPC", |room| {
            oip_grpc::written(&oip_grpc::encode(&version, None, outputs, &form(true), room)?, room)
        });
    }
    for output in [&flags, &bytes, &empty] {
        let outputs = std::slice::from_ref(output);
        refused_within(1 << 20, "CSV", |room| csv::encode(&version, outputs, true, room));
    }
    let mut classes = form(false);
    classes.outputs = vec![crate::OutputForm { binary: None, classes: Some(1) }];
    refused_within(8 << 20, "classes", |room| oip_rest::encode(&version, None, &[bytes], &classes, room));
}

/// Each row once looked for its texts from the first on.
#[test]
fn a_million_rows_of_text_are_written_in_order() {
    let count = 1 << 20;
    let numbers: Vec<String> = (0..count).map(|at: u64| at.to_string()).collect();
    let texts =
        Tensor::from_bytes_elements("t".into(), vec![count], numbers.iter().map(String::as_bytes)).unwrap();
    let (version, room) = (version(), Room::unbounded());
    for written in [
        records::encode(&version, std::slice::from_ref(&texts), &room),
        tf_serving::encode(std::slice::from_ref(&texts), tf_serving::Layout::Rows, &room),
        csv::encode(&version, std::slice::from_ref(&texts), false, &room),
    ] {
        let written = written.unwrap();
        let text = std::str::from_utf8(&written).unwrap();
        assert!(
            text.contains("1048574") && text.trim_end_matches(['"', '}', ']', '\n']).ends_with("1048575")
        );
    }
}
