use super::*;
use crate::testing::{fp32, version, with_inputs};

fn check(version: &Version, body: &str, expected: Result<&str, &str>) {
    match (decode(&Bytes::copy_from_slice(body.as_bytes()), version, None, &Room::unbounded()), expected) {
        (Ok((request, _)), Ok(expected)) => assert_eq!(format!("{:?}", request.inputs), expected),
        (Err(error), Err(text)) => assert!(error.message.contains(text), "{error}"),
        (came, _) => panic!("{body} gave {came:?}"),
    }
}

#[test]
fn reads_rows_and_columns_of_several_inputs() {
    let version = with_inputs(&[("a", DType::Int32, &[None]), ("b", DType::Bytes, &[None, Some(2)])]);
    let both = Ok("[a INT32[2] (8 bytes), b BYTES[2, 2] (20 bytes)]");
    check(&version, r#"{"instances":[{"a":1,"b":["x","y"]},{"b":["",{"b64":"eno="}],"a":2}]}"#, both);
    check(
        &version,
        r#"{"signature_name":"serving_default","inputs":{"a":[1,2],"b":[["x","y"],["","zz"]]}}"#,
        both,
    );
    check(
        &version,
        r#"{"instances":[{"a":1,"b":["x","y"]},{"a":2}]}"#,
        Err("instance 1, input \"b\": is missing"),
    );
    check(
        &version,
        r#"{"instances":[{"a":1},{"a":2,"b":["x"]}]}"#,
        Err("instance 1, input \"b\": was missing before"),
    );
    check(&version, r#"{"instances":[{"a":1,"a":2}]}"#, Err("input \"a\": is given twice"));
    check(&version, r#"{"instances":[{"a":1},{"a":[2]}]}"#, Err("has shape [1]"));
    check(&version, r#"{"instances":[1,2]}"#, Err("name each value"));
    check(&version, r#"{"inputs":{"c":1}}"#, Err("\"c\" is not in the signature"));
}

#[test]
fn reads_values_of_the_one_input() {
    let bytes = with_inputs(&[("image_bytes", DType::Bytes, &[None])]);
    check(&bytes, r#"{"instances":[{"b64":"aGk="},{"b64":""}]}"#, Ok("[image_bytes BYTES[2] (10 bytes)]"));
    check(&bytes, r#"{"instances":[{"b64":"aGk"}]}"#, Err("is not base64"));
    check(&bytes, r#"{"inputs":"text"}"#, Ok("[image_bytes BYTES[] (8 bytes)]"));
    let matrix = with_inputs(&[("x", DType::Fp16, &[None, None])]);
    check(&matrix, r#"{"instances":[[1.5,NaN],[-Infinity,0]]}"#, Ok("[x FP16[2, 2] (8 bytes)]"));
    check(
        &matrix,
        r#"{"instances":[[1],[2,3]]}"#,
        Err("an array at depth 2 has 2 elements, those before it 1"),
    );
    check(&matrix, r#"{"instances":[[1],2]}"#, Err("nested deeper or less deep"));
    check(&matrix, r#"{"instances":[1,[2]]}"#, Err("nested deeper or less deep"));
    check(&matrix, r#"{"instances":[]}"#, Ok("[x FP16[0] (0 bytes)]"));
}

#[test]
fn exactly_one_of_instances_and_inputs() {
    check(&version(), "{}", Err("neither"));
    check(&version(), r#"{"instances":[],"inputs":[]}"#, Err("exclude each other"));
    check(&version(), r#"{"signature_name":"other","instances":[]}"#, Err("signature \"other\""));
    check(&version(), r#"{"instances":1}"#, Err("a list of instances"));
}

#[test]
fn a_single_output_loses_its_name() {
    let p = || fp32("p", &[2], &[0.5, f32::NAN]);
    let encode = |outputs: &[Tensor], layout| encode(outputs, layout, &Room::unbounded());
    let written =
        |outputs: &[Tensor], layout| String::from_utf8(encode(outputs, layout).unwrap().to_vec()).unwrap();
    assert_eq!(written(&[p()], Layout::Rows), r#"{"predictions":[0.5,NaN]}"#);
    assert_eq!(written(&[p()], Layout::Columns), r#"{"outputs":[0.5,NaN]}"#);
    let image =
        Tensor::new("i_bytes".into(), DType::Bytes, vec![2], vec![1, 0, 0, 0, b'a', 0, 0, 0, 0].into())
            .unwrap();
    assert_eq!(
        written(&[p(), image], Layout::Rows),
        r#"{"predictions":[{"p":0.5,"i_bytes":{"b64":"YQ=="}},{"p":NaN,"i_bytes":{"b64":""}}]}"#
    );
    assert_eq!(
        written(&[fp32("m", &[2, 1, 2], &[1.0, 2.0, 3.0, 4.0])], Layout::Rows),
        r#"{"predictions":[[[1.0,2.0]],[[3.0,4.0]]]}"#
    );
    let short = fp32("q", &[1], &[0.5]);
    assert!(encode(&[p(), short], Layout::Rows).unwrap_err().message.contains("1 rows where 2"));
}
