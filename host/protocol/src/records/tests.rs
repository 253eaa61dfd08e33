use modelhost_core::error::ErrorCode;
use modelhost_core::tensor::{ColumnKind, DType};

use super::*;
use crate::testing::version;

fn check(body: &str, expected: Result<&[f32], &str>) {
    match (decode(body.as_bytes(), &version(), Some("user"), &Room::unbounded()), expected) {
        (Ok(request), Ok(expected)) => {
            let data = request.inputs[0].data();
            let came: Vec<_> =
                data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            assert_eq!(format!("{came:?}"), format!("{expected:?}"));
        }
        (Err(error), Err(text)) => assert_eq!(error.message, text),
        (came, _) => panic!("{body} gave {came:?}"),
    }
}

#[test]
fn maps_fields_to_columns_by_name() {
    check(r#"[{"age": 40, "purpose": "tv"}, {"purpose": "car", "age": 1.5}]"#, Ok(&[40.0, 1.0, 1.5, 0.0]));
    check(r#"{"age": 40, "user": "u1"}"#, Ok(&[40.0, f32::NAN]));
    check(r#"[{"age": 40, "purpose": null}]"#, Ok(&[40.0, f32::NAN]));
    check("[]", Ok(&[]));
}

#[test]
fn only_the_manifest_lets_rows_leave_columns_out_or_name_unknown_categories() {
    let mut version = version();
    let answer = |version: &Version, body: &str| {
        decode(body.as_bytes(), version, None, &Room::unbounded())
            .map(|request| request.inputs[0].data().to_vec())
    };
    let bytes = |values: [f32; 2]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let unknown = r#"{"age": 40, "purpose": "boat"}"#;
    assert!(answer(&version, unknown).is_err());
    let mut columns = version.package.columns.to_vec();
    columns[1].unknown_is_missing = true;
    version.package.columns = columns.into();
    assert_eq!(answer(&version, unknown), Ok(bytes([40.0, f32::NAN])));
    // A model's own columns, without a manifest's.
    version.package.columns = [].into();
    assert_eq!(answer(&version, r#"{"age": 40, "purpose": null}"#), Ok(bytes([40.0, f32::NAN])));
    let error = answer(&version, r#"{"age": 40}"#).unwrap_err();
    assert!(error.message.starts_with("record 0, field \"purpose\": is missing: "), "{error}");
    let error = crate::csv::decode(b"age\n40\n", &version, None, &Room::unbounded()).unwrap_err();
    assert!(error.message.starts_with("record 0, field \"purpose\": is missing: "), "{error}");
}

#[test]
fn categories_may_be_numbers_and_truth_values() {
    let mut version = version();
    let mut columns = version.report.signature.inputs[0].columns.to_vec();
    columns[1].kind = ColumnKind::Categorical(["10", "-3", "false"].map(str::to_owned).to_vec().into());
    version.report.signature.inputs[0].columns = columns.into();
    for (value, expected) in [("10", 0.0), ("-3", 1.0), ("\"10\"", 0.0), ("false", 2.0)] {
        let body = format!(r#"{{"age": 1, "purpose": {value}}}"#);
        let request = decode(body.as_bytes(), &version, None, &Room::unbounded()).unwrap();
        assert_eq!(request.inputs[0].data().as_ref()[4..], f32::to_le_bytes(expected), "{value}");
    }
    let error = decode(br#"{"age": 1, "purpose": 11}"#, &version, None, &Room::unbounded()).unwrap_err();
    assert_eq!(error.message, r#"record 0, field "purpose": "11" is not one of ["10", "-3", "false"]"#);
}

#[test]
fn doubles_stay_doubles() {
    let mut version = version();
    version.report.signature.inputs[0].dtype = DType::Fp64;
    let body = r#"[{"age": 1700000000.123, "purpose": "tv"}, {"age": 16777217}, {"age": 1e300}]"#;
    let request = decode(body.as_bytes(), &version, None, &Room::unbounded()).unwrap();
    let (came, _) = request.inputs[0].data().as_chunks::<8>();
    let came: Vec<f64> = came.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect();
    let nan = f64::NAN;
    assert_eq!(format!("{came:?}"), format!("{:?}", [1_700_000_000.123, 1.0, 16_777_217.0, nan, 1e300, nan]));
    let csv = crate::csv::decode(b"age\n1700000000.123\n", &version, None, &Room::unbounded()).unwrap();
    assert_eq!(csv.inputs[0].data().as_ref()[..8], 1_700_000_000.123_f64.to_le_bytes());
}

#[test]
fn names_record_and_field() {
    check(r#"[{"purpose": "tv"}]"#, Err("record 0, field \"age\": is missing"));
    check(r#"[{"age":1},{"age": null}]"#, Err("record 1, field \"age\": is missing"));
    check(
        r#"[{"age":1,"purpose":"boat"}]"#,
        Err("record 0, field \"purpose\": \"boat\" is not one of [\"car\", \"tv\"]"),
    );
    check(r#"[{"age":1,"colour":1}]"#, Err("record 0: field \"colour\": is not a column of this model"));
    check(r#"[{"age":"old"}]"#, Err("record 0, field \"age\": a number is expected, a string came"));
    check(r#"[{"age":1e39}]"#, Err("record 0, field \"age\": the number is too large for its datatype"));
    check(r#"[{"age":1,"age":2}]"#, Err("record 0, field \"age\": is given twice"));
}

#[test]
fn finds_the_sticky_field_of_the_first_record() {
    for (body, expected) in [
        (r#"[{"age":1,"user":"u1"},{"user":"u2"}]"#, Some("u1")),
        (r#"{"user":17}"#, Some("17")),
        (r#"[{"age":1}]"#, None),
        ("[", None),
        ("", None),
    ] {
        let found = first_field(body.as_bytes(), "user", &Room::unbounded());
        assert_eq!(found.as_deref(), expected.map(str::as_bytes), "{body}");
    }
}

#[test]
fn writes_one_object_a_row() {
    let tensor = |name: &str, shape: &[u64], values: &[f32]| {
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Tensor::new(name.into(), DType::Fp32, shape.to_vec(), data.into()).unwrap()
    };
    let outputs = [tensor("p", &[2], &[0.5, f32::NAN]), tensor("q", &[2, 2], &[1.0, 2.0, 3.0, 4.0])];
    let text = String::from_utf8(encode(&version(), &outputs, &Room::unbounded()).unwrap().to_vec()).unwrap();
    assert_eq!(
        text,
        r#"{"model":"a/b","version":6,"predictions":[{"p":0.5,"q":[1.0,2.0]},{"p":null,"q":[3.0,4.0]}]}"#
    );
    let uneven = [tensor("p", &[2], &[1.0, 2.0]), tensor("q", &[1], &[1.0])];
    let error = encode(&version(), &uneven, &Room::unbounded()).unwrap_err();
    assert_eq!(error.code, ErrorCode::PluginFault);
}
