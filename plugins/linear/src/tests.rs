//! Compares answers with scikit-learn's. The cases are in tests/fixtures.

use std::fs;
use std::path::Path;

use super::*;

fn fixture(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/linear").join(name)).unwrap()
}

#[test]
fn answers_as_scikit_learn_does() {
    for case in ["regression", "binary", "multiclass"] {
        let model = Linear::parse(&fixture(&format!("{case}.json"))).unwrap();
        let cases: serde_json::Value =
            serde_json::from_slice(&fixture(&format!("{case}.cases.json"))).unwrap();
        let flat = |value: &serde_json::Value| -> Vec<f64> {
            let rows = value.as_array().unwrap().iter();
            let numbers = rows.flat_map(|row| row.as_array().cloned().unwrap_or_else(|| vec![row.clone()]));
            numbers.map(|number| number.as_f64().unwrap()).collect()
        };
        let rows: Vec<f32> = flat(&cases["rows"]).into_iter().map(|value| value as f32).collect();
        let (came, expected) = (model.predict(&rows).unwrap(), flat(&cases["expected"]));
        assert_eq!(came.len(), expected.len());
        for (came, expected) in came.iter().zip(&expected) {
            let difference = (f64::from(*came) - expected).abs() / expected.abs().max(1.0);
            assert!(difference <= 1e-6, "{case}: {came} {expected}");
        }
    }
}

const SMALL: &str = r#"{"format":"modelhost-linear/1","task":"regression",
    "columns":[{"name":"a","kind":"numeric","mean":1,"scale":2,"impute":3},
               {"name":"b","kind":"numeric"},
               {"name":"c","kind":"categorical","categories":["x","y","z"],"drop":0}],
    "coefficients":[[10,100,5,7]],"intercepts":[1]}"#;

#[test]
fn imputes_standardises_and_drops() {
    let model = Linear::parse(SMALL.as_bytes()).unwrap();
    let predict = |row: [f32; 3]| model.predict(&row).map(|answers| answers[0]);
    assert_eq!(predict([5.0, 0.0, 0.0]).unwrap(), 1.0 + 10.0 * 2.0);
    assert_eq!(predict([f32::NAN, 0.5, 2.0]).unwrap(), 1.0 + 10.0 + 50.0 + 7.0);
    for (row, text) in [
        ([0.0, f32::NAN, 0.0], "row 0, column \"b\": the value is missing"),
        ([0.0, 0.0, 3.0], "row 0, column \"c\": 3 is not the index of one of 3 categories"),
        ([0.0, 0.0, 0.5], "row 0, column \"c\": 0.5 is not the index"),
        ([0.0, 0.0, f32::NAN], "row 0, column \"c\": NaN is not the index"),
    ] {
        match predict(row) {
            Err(Error::InvalidInput(message)) => assert!(message.contains(text), "{message}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn names_what_is_wrong_with_a_file() {
    for (from, to, text) in [
        ("linear/1", "linear/2", "format \"modelhost-linear/2\" is not \"modelhost-linear/1\""),
        ("regression", "clustering", "unknown variant `clustering`"),
        ("[[10,100,5,7]]", "[[10,100,5]]", "expand to 4 features, but a coefficient row has 3"),
        (
            "\"intercepts\":[1]",
            "\"intercepts\":[1,2]",
            "expected 1 scores, got 1 coefficient rows and 2 intercepts",
        ),
        ("\"drop\":0", "\"drop\":3", "drops category 3, but has only 3 categories"),
        ("\"scale\":2", "\"scale\":0", "scale 0 is not a finite number"),
    ] {
        let error = Linear::parse(SMALL.replace(from, to).as_bytes()).unwrap_err();
        assert!(error.contains(text), "{error}");
    }
}
