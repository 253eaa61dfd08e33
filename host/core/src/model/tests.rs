use super::*;

#[test]
fn names_split_into_prefix_and_name() {
    let name = ModelName::parse("marketing/churn-2.b_c").unwrap();
    assert_eq!((name.prefix(), name.name()), ("marketing", "churn-2.b_c"));
}

#[test]
fn refuses_names_a_url_could_not_tell_apart() {
    for text in
        ["churn", "/churn", "a/", "a/b/c", "a/versions", "infer/b", "a/v6", "a/6", "a/-b", "a/ü", "a/b c", ""]
    {
        assert!(ModelName::parse(text).is_err(), "{text}");
    }
    assert!(ModelName::parse(&format!("a/{}", "b".repeat(65))).is_err());
}

#[test]
fn reads_versions_with_and_without_v() {
    for (text, expected) in [
        ("6", Some(6)),
        ("v6", Some(6)),
        ("0", None),
        ("", None),
        ("v", None),
        ("+6", None),
        ("6.0", None),
        ("vv6", None),
        ("4294967296", None),
    ] {
        assert_eq!(ModelVersion::parse(text).ok().map(ModelVersion::get), expected, "{text}");
    }
}

#[test]
fn maps_keyed_by_name_are_looked_up_by_text() {
    let map = std::collections::HashMap::from([(ModelName::parse("a/b").unwrap(), 1)]);
    assert_eq!(map.get("a/b"), Some(&1));
}

fn spec(name: &str, shape: Vec<Option<u64>>, columns: Vec<Column>) -> TensorSpec {
    TensorSpec { name: name.into(), dtype: crate::tensor::DType::Fp32, shape, columns: columns.into() }
}

fn column(name: &str, kind: ColumnKind) -> Column {
    let (name, description, unit, minimum, maximum) = (name.into(), None, None, None, None);
    Column { name, kind, description, unit, minimum, maximum, missing: false, unknown_is_missing: false }
}

fn check_inputs(inputs: Vec<TensorSpec>, expected: Result<(), &str>) {
    let signature = Signature { inputs, outputs: vec![spec("y", vec![None], vec![])] };
    match (signature.check(), expected) {
        (Ok(()), Ok(())) => {}
        (Err(error), Err(text)) => assert!(error.message.contains(text), "{error}"),
        (came, expected) => panic!("{came:?} is not {expected:?}"),
    }
}

#[test]
fn a_signature_is_bounded() {
    let many = |count: usize| (0..count).map(|at| spec(&at.to_string(), vec![], vec![])).collect();
    check_inputs(many(MAX_TENSORS), Ok(()));
    check_inputs(many(80_000), Err("the signature has 80000 inputs, more than 1024"));
    check_inputs(vec![spec("x", vec![None; MAX_RANK], vec![])], Ok(()));
    check_inputs(
        vec![spec("x", vec![None; 10_000], vec![])],
        Err("input \"x\": its shape has 10000 dimensions, more than 32"),
    );
    check_inputs(vec![spec("x\nINFO all is well", vec![], vec![])], Err("cannot be printed"));
    check_inputs(vec![spec("x", vec![], vec![]); 2], Err("input \"x\" stands twice"));
    let table = |columns: Vec<Column>| vec![spec("x", vec![None, Some(columns.len() as u64)], columns)];
    let columns = |count: usize| (0..count).map(|at| column(&at.to_string(), ColumnKind::Numeric)).collect();
    check_inputs(table(columns(MAX_COLUMNS)), Ok(()));
    check_inputs(table(columns(MAX_COLUMNS + 1)), Err("it has 16385 columns, more than 16384"));
    check_inputs(table(vec![column("a", ColumnKind::Numeric); 2]), Err("column \"a\" stands twice"));
    let empty = ColumnKind::Categorical(vec![String::new(); 100_000].into());
    check_inputs(table(vec![column("a", empty)]), Err("more than 1048576 bytes"));
    let long = Column { description: Some("x".repeat(2 << 20)), ..column("a", ColumnKind::Numeric) };
    check_inputs(table(vec![long]), Err("more than 1048576 bytes"));
}
