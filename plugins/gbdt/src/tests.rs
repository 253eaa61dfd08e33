//! Answers against the original libraries': see tests/fixtures.

use std::fs;
use std::path::Path;

use super::*;

/// Largest difference, relative to numbers above 1.
const TOLERANCE: f64 = 1e-6;

fn check(file: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/gbdt");
    let ensemble = parse(&fs::read(folder.join(file)).unwrap()).unwrap();
    let case = Path::new(file).file_stem().unwrap().to_str().unwrap();
    let cases: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.join(format!("{case}.cases.json"))).unwrap()).unwrap();
    let flat = |value: &serde_json::Value| -> Vec<f64> {
        let rows = value.as_array().unwrap().iter();
        let number = |value: &serde_json::Value| value.as_f64().unwrap_or(f64::NAN);
        rows.flat_map(|row| {
            row.as_array().map_or_else(|| vec![number(row)], |row| row.iter().map(number).collect())
        })
        .collect()
    };
    let rows: Vec<f32> = flat(&cases["rows"]).into_iter().map(|value| value as f32).collect();
    let came = ensemble.predict(&rows);
    let expected = flat(&cases["expected"]);
    assert_eq!(came.len(), expected.len(), "{file}");
    for (at, (came, expected)) in came.iter().zip(&expected).enumerate() {
        let difference = (f64::from(*came) - expected).abs() / expected.abs().max(1.0);
        assert!(difference <= TOLERANCE, "{file}, answer {at}: {came} {expected}");
    }
}

#[test]
fn answers_as_xgboost_does() {
    for file in [
        "xgb-binary.json",
        "xgb-binary-ubj.ubj",
        "xgb-softprob.json",
        "xgb-softprob-ubj.ubj",
        "xgb-regression.json",
        "xgb-poisson.json",
        "xgb-categorical.json",
        "xgb-categorical-ubj.ubj",
        "xgb-dart.json",
    ] {
        check(file);
    }
}

#[test]
fn answers_as_lightgbm_does() {
    for file in [
        "lgb-binary.txt",
        "lgb-multiclass.txt",
        "lgb-regression.txt",
        "lgb-poisson.txt",
        "lgb-categorical.txt",
        "lgb-zero-missing.txt",
        "lgb-no-missing.txt",
        "lgb-forest.txt",
    ] {
        check(file);
    }
}

#[test]
fn names_what_is_not_supported() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/gbdt");
    let text = fs::read_to_string(folder.join("xgb-binary.json")).unwrap();
    for (from, to, expected) in [
        ("binary:logistic", "survival:cox", "objective \"survival:cox\" is not supported"),
        ("\"name\":\"gbtree\"", "\"name\":\"gblinear\"", "booster \"gblinear\" is not supported"),
        ("\"num_feature\":\"6\"", "\"num_feature\":\"2\"", "splits on feature"),
        ("\"num_feature\":\"6\"", "\"num_feature\":\"0\"", "there are 0"),
    ] {
        let error = parse(text.replace(from, to).as_bytes()).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_truncated_model_is_an_error() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/gbdt");
    for file in ["xgb-binary.json", "xgb-binary-ubj.ubj"] {
        let bytes = fs::read(folder.join(file)).unwrap();
        for length in (0..bytes.len() - 1).step_by(37) {
            assert!(parse(&bytes[..length]).is_err(), "{file} cut to {length}");
        }
    }
    // A text model may be cut between two trees; it must not panic anywhere.
    let bytes = fs::read(folder.join("lgb-categorical.txt")).unwrap();
    for length in (0..bytes.len()).step_by(37) {
        drop(parse(&bytes[..length]));
    }
}
