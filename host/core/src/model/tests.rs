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
