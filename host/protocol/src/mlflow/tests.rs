use super::*;
use crate::testing::{fp32, version};

fn wrong(body: &str, expected: &str) {
    let error =
        decode(&Bytes::copy_from_slice(body.as_bytes()), &version(), None, &Room::unbounded()).unwrap_err();
    assert!(error.message.contains(expected), "{error}");
}

#[test]
fn exactly_one_form_is_read() {
    wrong("[]", "expected an object");
    wrong("{}", "none of");
    wrong(r#"{"instances":[[1,0]],"inputs":[[1,0]]}"#, "more than one of");
    wrong(r#"{"data":[]}"#, "\"data\" is not one of");
    wrong(r#"{"messages":[]}"#, "for language models");
    wrong(r#"{"dataframe_split":{"columns":["age"]}}"#, "has no \"data\"");
    wrong(r#"{"dataframe_split":{"columns":["height"],"data":[]}}"#, "\"height\": is not a column");
    wrong(r#"{"dataframe_split":{"columns":["age","age"],"data":[]}}"#, "\"age\" stands twice");
    wrong(r#"{"dataframe_split":{"columns":["age","purpose"],"data":[[1]]}}"#, "record 0: has 1 of 2 values");
    wrong(r#"{"dataframe_split":{"columns":["age"],"data":[[1,2]]}}"#, "record 0: has more than 1 values");
}

#[test]
fn parameters_reach_the_model() {
    let body = Bytes::from_static(br#"{"params":{"seed":7},"instances":[[1,0]]}"#);
    let request = decode(&body, &version(), None, &Room::unbounded()).unwrap();
    assert_eq!(request.parameters, [("seed".into(), Parameter::Int(7))]);
}

#[test]
fn other_content_types_are_refused() {
    for (kind, expected) in [
        (Some("application/json"), Ok(Format::Json)),
        (Some("application/json; charset=UTF-8"), Ok(Format::Json)),
        (Some("text/csv;charset=\"utf-8\""), Ok(Format::Csv)),
        (Some("text/csv; charset=latin1"), Err("is not charset=utf-8")),
        (Some("application/json; format=pandas"), Err("is not charset=utf-8")),
        (Some("text/plain"), Err("\"text/plain\" is not")),
        (None, Err("is missing")),
    ] {
        match (Format::of(kind), expected) {
            (Ok(came), Ok(expected)) => assert_eq!(came, expected),
            (Err(error), Err(text)) => assert!(error.message.contains(text), "{error}"),
            (came, _) => panic!("{kind:?} gave {came:?}"),
        }
    }
}

#[test]
fn predictions_are_records() {
    let outputs = [fp32("p", &[2], &[0.5, 1.0]), fp32("q", &[2, 2], &[1.0, 2.0, 3.0, 4.0])];
    let written = String::from_utf8(encode(&outputs, &Room::unbounded()).unwrap().to_vec()).unwrap();
    assert_eq!(written, r#"{"predictions":[{"p":0.5,"q":[1.0,2.0]},{"p":1.0,"q":[3.0,4.0]}]}"#);
}
