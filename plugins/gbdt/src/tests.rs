//! Answers against the original libraries': see tests/fixtures.

use std::fmt::Write as _;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use modelhost_sdk::{Column, ColumnKind};
use serde_json::Value;

use super::*;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/gbdt")
}

fn fixture(name: &str) -> Vec<u8> {
    let file = fs::File::open(folder().join(format!("{name}.gz"))).unwrap();
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(file).read_to_end(&mut bytes).unwrap();
    bytes
}

/// Numbers as the fixtures have them: `null` for NaN, text for infinities.
fn number(value: &Value) -> f64 {
    match value {
        Value::Null => f64::NAN,
        Value::String(text) => text.parse().unwrap(),
        other => other.as_f64().unwrap(),
    }
}

fn numbers(value: &Value, out: &mut Vec<f64>) {
    match value {
        Value::Array(values) => values.iter().for_each(|value| numbers(value, out)),
        other => out.push(number(other)),
    }
}

fn columns(value: &Value) -> Vec<Column> {
    let column = |value: &Value| {
        let kind = value.get("categories").map_or(ColumnKind::Numeric, |categories| {
            ColumnKind::Categorical(serde_json::from_value(categories.clone()).unwrap())
        });
        Column { kind, missing: true, ..Column::numeric(value["name"].as_str().unwrap()) }
    };
    value.as_array().map_or_else(Vec::new, |columns| columns.iter().map(column).collect())
}

fn pairs(value: &Value) -> Vec<(String, String)> {
    let pair = |(name, value): (&String, &Value)| (name.clone(), value.as_str().unwrap().to_owned());
    value.as_object().map_or_else(Vec::new, |pairs| pairs.iter().map(pair).collect())
}

fn tensor(values: &[f64], columns: usize, datatype: Datatype) -> Tensor {
    let shape = [(values.len() / columns) as u64, columns as u64];
    if datatype == Datatype::Fp64 {
        return Tensor::from_values("input", &shape, values);
    }
    let values: Vec<f32> = values.iter().map(|value| *value as f32).collect();
    Tensor::from_values("input", &shape, &values)
}

fn doubles(tensor: &Tensor) -> Vec<f64> {
    match tensor.datatype {
        Datatype::Fp64 => tensor.values::<f64>().unwrap().into_owned(),
        _ => tensor.values::<f32>().unwrap().iter().map(|value| f64::from(*value)).collect(),
    }
}

/// `ulps N`, of f32; or `relative X`.
fn agrees(came: f64, expected: f64, bound: &str) -> bool {
    if came.is_nan() || expected.is_nan() {
        return came.is_nan() && expected.is_nan();
    }
    match bound.split_once(' ').unwrap() {
        ("ulps", most) => {
            let ordered = |value: f64| {
                let bits = (value as f32).to_bits() as i32;
                i64::from(if bits < 0 { i32::MIN.wrapping_sub(bits) } else { bits })
            };
            ordered(came).abs_diff(ordered(expected)) <= most.parse().unwrap()
        }
        ("relative", most) => {
            came == expected || (came - expected).abs() <= most.parse::<f64>().unwrap() * expected.abs()
        }
        (other, _) => panic!("{other}"),
    }
}

fn text(error: Error) -> String {
    match error {
        Error::Model(text) | Error::InvalidInput(text) => text,
    }
}

/// Runs one case; says what is wrong.
fn run(version: &str, tables: &Value, case: &Value) -> Result<(), String> {
    let model = case["model"].as_str().unwrap();
    let config = Config { parameters: pairs(&case["parameters"]), columns: columns(&case["columns"]) };
    let loaded = Gbdt::new(model, &fixture(&format!("{version}/{model}")), &config);
    if let Some(why) = case["refused"].as_str() {
        return match loaded {
            Err(Error::Model(text)) if text.contains(why) => Ok(()),
            other => Err(format!("{:?} is not refused with {why:?}", other.map(|(_, signature)| signature))),
        };
    }
    let (model, signature) = loaded.map_err(text)?;
    if let Some(expected) = case.get("signature") {
        let (came, expected) = (&signature.inputs[0].columns, columns(expected));
        if format!("{came:?}") != format!("{expected:?}") {
            return Err(format!("columns {came:?}, not {expected:?}"));
        }
    }
    let mut values = Vec::new();
    numbers(&tables[case["table"].as_str().unwrap()], &mut values);
    if let Some(more) = case.get("more") {
        numbers(more, &mut values);
    }
    let spec = &signature.inputs[0];
    let input = tensor(&values, spec.columns.len(), spec.datatype);
    let rows = input.shape[0];
    let request = Request { inputs: vec![input], outputs: Vec::new(), parameters: pairs(&case["request"]) };
    let outputs = model.infer(&request).map_err(text)?;
    if let Some(expected) = case.get("contributions") {
        check_contributions(&model, &request, expected)?;
    }
    let mut expected = Vec::new();
    numbers(&case["expected"], &mut expected);
    let width = case["expected"][0].as_array().map(Vec::len);
    let shape: Vec<u64> = [rows].into_iter().chain(width.map(|width| width as u64)).collect();
    if outputs[0].shape != shape {
        return Err(format!("shape {:?}, not {shape:?}", outputs[0].shape));
    }
    let came = doubles(&outputs[0]);
    let bound = case["bound"].as_str().unwrap();
    let wrong: Vec<usize> =
        (0..expected.len()).filter(|at| !agrees(came[*at], expected[*at], bound)).collect();
    wrong.first().map_or(Ok(()), |first| {
        let (count, all) = (wrong.len(), expected.len());
        Err(format!(
            "{count} of {all} answers, as number {first}: {}, not {}",
            came[*first], expected[*first]
        ))
    })
}

/// To 1e-5, and that they add up to the sum. `expected`: of the first rows.
fn check_contributions(model: &Gbdt, request: &Request, expected: &Value) -> Result<(), String> {
    let (features, groups) = (model.columns.len(), model.ensemble.groups());
    let rows = expected.as_array().unwrap().len();
    let values = &doubles(&request.inputs[0])[..rows * features];
    let ask = parameters::ask(&model.ensemble, &request.parameters, rows as u64)?;
    let came = Explainer::new(&model.ensemble)?.contributions(values, &ask);
    let mut flat = Vec::new();
    numbers(expected, &mut flat);
    if came.len() != flat.len() {
        return Err(format!("{} contributions, not {}", came.len(), flat.len()));
    }
    let wrong = |at: &usize| (came[*at] - flat[*at]).abs() > 1e-5 * flat[*at].abs().max(1.0);
    if let Some(at) = (0..flat.len()).find(wrong) {
        return Err(format!("contribution {at}: {}, not {}", came[at], flat[at]));
    }
    let sums: Vec<f64> = came.chunks_exact(features + 1).map(|of_group| of_group.iter().sum()).collect();
    let margins = model.ensemble.sums(values, &ask);
    let apart = |(sum, margin): (&f64, &f64)| (sum - margin).abs() > 1e-5 * margin.abs().max(1.0);
    if sums.len() != rows * groups || sums.iter().zip(&margins).any(apart) {
        return Err("the contributions do not add up to the sums".into());
    }
    Ok(())
}

/// Every case of one library's release.
fn check(version: &str) {
    let cases: Value = serde_json::from_slice(&fixture(&format!("{version}/cases.json"))).unwrap();
    let mut wrong = String::new();
    for case in cases["cases"].as_array().unwrap() {
        if let Err(why) = run(version, &cases["tables"], case) {
            writeln!(wrong, "{}: {why}", case["name"].as_str().unwrap()).unwrap();
        }
    }
    assert!(wrong.is_empty(), "{version}:\n{wrong}");
}

#[test]
fn answers_as_xgboost_1_7_does() {
    check("xgboost-1.7");
}

#[test]
fn answers_as_xgboost_2_1_does() {
    check("xgboost-2.1");
}

#[test]
fn answers_as_xgboost_3_2_does() {
    check("xgboost-3.2");
}

#[test]
fn answers_as_lightgbm_3_3_does() {
    check("lightgbm-3.3");
}

#[test]
fn answers_as_lightgbm_4_7_does() {
    check("lightgbm-4.7");
}

#[test]
fn answers_as_catboost_1_2_does() {
    check("catboost-1.2");
}

fn load(model: &str, bytes: &[u8], parameters: &[(&str, &str)]) -> Result<Gbdt, String> {
    let parameters =
        parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let config = Config { parameters, columns: Vec::new() };
    Gbdt::new(model, bytes, &config).map(|(model, _)| model).map_err(text)
}

/// Row 0 of zeros, asked with these parameters.
fn ask(model: &Gbdt, parameters: &[(&str, &str)], value: f64) -> Result<Vec<f64>, String> {
    let parameters =
        parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let columns = model.ensemble.features().len();
    let input = tensor(&vec![value; columns], columns, model.ensemble.library().datatypes().0);
    let request = Request { inputs: vec![input], outputs: Vec::new(), parameters };
    model.infer(&request).map(|outputs| doubles(&outputs[0])).map_err(text)
}

#[track_caller]
fn refused<T>(result: Result<T, String>, why: &str) {
    match result {
        Err(text) => assert!(text.contains(why), "{text:?} does not say {why:?}"),
        Ok(_) => panic!("not refused with {why:?}"),
    }
}

#[test]
fn refuses_by_name_what_it_does_not_know() {
    let changed = |file: &str, from: &str, to: &str, why: &str| {
        let text = String::from_utf8(fixture(file)).unwrap();
        assert!(text.contains(from), "{file} has no {from:?}");
        refused(load(file, text.replacen(from, to, 1).as_bytes(), &[]), why);
    };
    let xgboost = "xgboost-3.2/binary-logistic.json";
    for (from, to, why) in [
        ("binary:logistic", "survival:next", "objective \"survival:next\" is not supported"),
        ("\"name\":\"gbtree\"", "\"name\":\"gbforest\"", "booster \"gbforest\" is not supported"),
        ("\"attributes\":{}", "\"attributes\":{},\"rotation\":1", "unknown field `rotation`"),
        ("\"tree_info\"", "\"tilt\":1,\"tree_info\"", "unknown field `tilt`"),
        ("\"base_weights\"", "\"tilt\":1,\"base_weights\"", "unknown field `tilt`"),
        (
            "\"num_class\":\"0\",\"num_feature\":\"8\"",
            "\"num_class\":\"0\",\"num_feature\":\"2\"",
            "splits on feature",
        ),
        (
            "\"num_class\":\"0\",\"num_feature\":\"8\"",
            "\"num_class\":\"0\",\"num_feature\":\"0\"",
            "there are 0",
        ),
        ("\"base_score\":\"[", "\"base_score\":\"[5E-1,", "base_score has 2 values for 1"),
        (
            "\"attributes\":{}",
            "\"attributes\":{\"best_iteration\":\"9\"}",
            "best_iteration is 9, the model has 5",
        ),
        ("\"iteration_indptr\":[0,1", "\"iteration_indptr\":[0,7", "iteration_indptr"),
        ("\"tree_info\":[0", "\"tree_info\":[1", "tree 0: is not of one of 1 groups"),
    ] {
        changed(xgboost, from, to, why);
    }
    let lightgbm = "lightgbm-4.7/binary.txt";
    for (from, to, why) in [
        ("objective=binary sigmoid:1", "objective=binary tilt:1", "\"tilt:1\" is not known"),
        ("objective=binary", "objective=ternary", "objective \"ternary\" is not supported"),
        ("version=v4", "version=v5", "version \"v5\""),
        ("max_feature_idx", "tilt=1\nmax_feature_idx", "\"tilt\" in LightGBM's format is not known"),
        ("shrinkage=", "tilt=1\nshrinkage=", "tree 0: \"tilt\" in LightGBM's format is not known"),
        ("tree_sizes=", "tree_sizes=1 ", "5 trees, where 6"),
        ("\nTree=4", "\nBush=4", "4 trees, where 5"),
        ("end of trees", "", "ends before its trees do"),
        ("max_feature_idx=7", "max_feature_idx=8", "feature_names are 8, features 9"),
        ("decision_type=", "decision_type=16 ", "values, not"),
    ] {
        changed(lightgbm, from, to, why);
    }
    let catboost = "catboost-1.2/rmse.json";
    for (from, to, why) in [
        ("\"type\":\"RMSE\"", "\"type\":\"Next\"", "loss function \"Next\" is not supported"),
        ("\"oblivious_trees\"", "\"oblivious_bushes\"", "unknown field `oblivious_bushes`"),
        ("\"float_features\"", "\"text_features\":[],\"float_features\"", "text features are not supported"),
        ("\"float_features\"", "\"tilt_features\":[],\"float_features\"", "unknown field `tilt_features`"),
        ("AsFalse", "AsIfNot", "nan_value_treatment \"AsIfNot\" is not known"),
        ("\"split_index\":", "\"split_index\":900", "tree 0: split 900"),
        ("\"leaf_values\":\n          [", "\"leaf_values\":\n          [1,", "leaf values at a depth of 3"),
    ] {
        changed(catboost, from, to, why);
    }
    changed(
        "catboost-1.2/ctrs.json",
        "\"ctr_type\":\"Counter\"",
        "\"ctr_type\":\"Next\"",
        "CTRs of type \"Next\"",
    );
    for (bytes, why) in [
        (b"CBM1\x80\x1b".as_slice(), "format=\"json\""),
        (b"binf\x00\x00".as_slice(), "old binary format"),
        (b"\x80\x04\x95".as_slice(), "pickle"),
        (b"PK\x03\x04".as_slice(), "not an XGBoost, LightGBM or CatBoost model"),
        (b"".as_slice(), "not an XGBoost, LightGBM or CatBoost model"),
    ] {
        refused(load("model", bytes, &[]), why);
    }
}

#[test]
fn refuses_parameters_it_does_not_know() {
    let (xgboost, lightgbm) =
        (fixture("xgboost-3.2/binary-logistic.json"), fixture("lightgbm-4.7/binary.txt"));
    refused(load("m", &xgboost, &[("iteration", "3")]), "parameter \"iteration\" is unknown");
    refused(load("m", &xgboost, &[("iterations", "6")]), "6 is more than the model's 5 iterations");
    refused(load("m", &xgboost, &[("iterations", "best")]), "does not say which are best");
    let [xgboost, lightgbm] = [xgboost, lightgbm].map(|bytes| load("m", &bytes, &[("model", "m")]).unwrap());
    for (model, parameters, why) in [
        (
            &xgboost,
            [("seed", "1")].as_slice(),
            "parameter \"seed\" is unknown: XGBoost models take iteration_begin",
        ),
        (&xgboost, &[("num_iteration", "1")], "parameter \"num_iteration\" is unknown"),
        (&xgboost, &[("iteration_end", "6")], "6 is more than the model's 5 iterations"),
        (&xgboost, &[("iteration_begin", "3"), ("iteration_end", "3")], "iterations 3 to 3: there are none"),
        (&xgboost, &[("iteration_begin", "-1")], "\"-1\" is no count"),
        (&xgboost, &[("base_margin", "a")], "not a list of numbers"),
        (&xgboost, &[("base_margin", "1,2,3")], "3 numbers for 1 rows of 1"),
        (&lightgbm, &[("base_margin", "1")], "parameter \"base_margin\" is unknown: LightGBM models take"),
        (&lightgbm, &[("ntree_limit", "1")], "parameter \"ntree_limit\" is unknown"),
        (&lightgbm, &[("iteration_end", "1"), ("num_iteration", "1")], "exclude each other"),
    ] {
        refused(ask(model, parameters, 0.0), why);
    }
    let all = ask(&xgboost, &[], 0.0).unwrap();
    assert_eq!(ask(&xgboost, &[("iteration_end", "0")], 0.0).unwrap(), all);
    assert_ne!(ask(&xgboost, &[("iteration_end", "4")], 0.0).unwrap(), all);
    assert_eq!(ask(&xgboost, &[("timeout", "1000"), ("priority", "1")], 0.0).unwrap(), all);
}

#[test]
fn a_linear_booster_takes_neither_infinity_nor_iterations() {
    let model = load("m", &fixture("xgboost-3.2/gblinear.json"), &[]).unwrap();
    refused(ask(&model, &[], f64::INFINITY), "row 0, column \"f0\": a linear booster takes no infinity");
    refused(ask(&model, &[("iteration_end", "1")], 0.0), "more than the model's 0 iterations");
}

#[test]
fn catboost_takes_only_categories() {
    let bytes = fixture("catboost-1.2/ctrs.json");
    let columns = |missing: bool| {
        let texts = ["Zug", "Aarau"].map(str::to_owned).to_vec();
        let column = |name| Column { missing, ..Column::numeric(name) };
        let street = ColumnKind::Categorical(vec!["x".into()]);
        vec![
            Column { kind: ColumnKind::Categorical(texts), ..column("town") },
            Column { missing: true, ..column("size") },
            column("rooms"),
            Column { kind: street, ..column("street") },
        ]
    };
    let load = |missing| {
        let config = Config { parameters: Vec::new(), columns: columns(missing) };
        Gbdt::new("m", &bytes, &config).unwrap().0
    };
    let infer = |model: &Gbdt, row: [f64; 4]| {
        let request = Request {
            inputs: vec![tensor(&row, 4, Datatype::Fp32)],
            outputs: Vec::new(),
            parameters: Vec::new(),
        };
        model.infer(&request).map(|outputs| doubles(&outputs[0])).map_err(text)
    };
    let model = load(false);
    assert!(infer(&model, [1.0, f64::NAN, 3.0, 0.0]).is_ok());
    for (row, why) in [
        ([2.0, 0.0, 3.0, 0.0], "row 0, column \"town\": 2 is not the index of one of 2 categories"),
        ([0.5, 0.0, 3.0, 0.0], "row 0, column \"town\": 0.5 is not the index"),
        ([-1.0, 0.0, 3.0, 0.0], "row 0, column \"town\": -1 is not the index"),
        ([0.0, 0.0, 3.5, 0.0], "row 0, column \"rooms\": 3.5 is not a whole number"),
        ([0.0, 0.0, 3.0, f64::NAN], "row 0, column \"street\": the category is missing"),
    ] {
        refused(infer(&model, row), why);
    }
    // Where the manifest allows it, a missing category counts as one that training has not seen.
    assert!(infer(&load(true), [f64::NAN, 0.0, 3.0, 0.0]).is_ok());
}

#[test]
fn a_truncated_model_is_an_error() {
    for file in ["xgboost-3.2/dart.json", "xgboost-3.2/multi-softprob-ubj.ubj", "lightgbm-4.7/categories.txt"]
    {
        let bytes = fixture(file);
        // What follows a text model's trees is for people.
        let needed = bytes.windows(12).position(|word| word == b"end of trees").unwrap_or(bytes.len() - 2);
        for length in (0..needed).step_by(if needed < 50_000 { 37 } else { 3_701 }) {
            assert!(parse(&bytes[..length]).is_err(), "{file} cut to {length}");
        }
    }
}
