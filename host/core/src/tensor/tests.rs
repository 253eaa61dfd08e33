use super::*;

fn check(dtype: DType, shape: &[u64], data: &[u8], expected: Result<(), &str>) {
    let tensor = Tensor::new("x".into(), dtype, shape.to_vec(), Bytes::copy_from_slice(data));
    match (tensor, expected) {
        (Ok(_), Ok(())) => {}
        (Err(error), Err(text)) => assert!(error.message.contains(text), "{error}"),
        (came, expected) => panic!("{came:?} is not {expected:?}"),
    }
}

#[test]
fn holds_exactly_what_its_shape_announces() {
    check(DType::Fp32, &[2], &[0; 8], Ok(()));
    check(DType::Fp32, &[], &[0; 4], Ok(()));
    check(DType::Fp32, &[0, 7], &[], Ok(()));
    check(DType::Fp32, &[2], &[0; 7], Err("needs 2 x 4 bytes, 7 came"));
    check(DType::Fp64, &[u64::MAX], &[], Err("needs"));
    check(DType::Int8, &[u64::MAX, 2], &[], Err("too many elements"));
}

#[test]
fn a_tensor_without_elements_announces_little() {
    for shape in [&[3, 0][..], &[0, 5], &[0, 3, 512, 512], &[1 << 20, 0]] {
        check(DType::Fp32, shape, &[], Ok(()));
    }
    for shape in [&[1 << 42, 0][..], &[0, 1 << 42], &[1 << 11, 0, 1 << 11], &[(1 << 20) + 1, 0, 0]] {
        check(DType::Fp32, shape, &[], Err("rows or columns, more than 1048576"));
        check(DType::Bytes, shape, &[], Err("has no elements, but announces"));
    }
    check(DType::Fp32, &[0, 1 << 42, 1 << 42], &[], Err("too many elements"));
}

#[test]
fn a_rank_is_bounded() {
    check(DType::Uint8, &[1; MAX_RANK], &[0], Ok(()));
    check(DType::Uint8, &[1; MAX_RANK + 1], &[0], Err("its shape has 33 dimensions, more than 32"));
    check(DType::Uint8, &vec![1; 1 << 20], &[0], Err("1048576 dimensions"));
}

#[test]
fn a_name_is_short_and_stays_on_its_line() {
    let long = "x".repeat(MAX_NAME + 1);
    for (name, expected) in [
        ("x", true),
        ("/model/StatefulPartitionedCall:0", true),
        ("größe in m²", true),
        (&long[1..], true),
        ("", false),
        (&long, false),
        ("a\nb", false),
        ("a\u{1b}[2J", false),
        ("a\u{2028}b", false),
        ("a\u{202e}b", false),
    ] {
        assert_eq!(check_name(name).is_ok(), expected, "{name:?}");
    }
}

#[test]
fn refuses_bool_bytes_other_than_0_and_1() {
    check(DType::Bool, &[2], &[0, 1], Ok(()));
    check(DType::Bool, &[2], &[0, 2], Err("neither 0 nor 1"));
}

#[test]
fn refuses_bytes_elements_that_do_not_add_up() {
    check(DType::Bytes, &[2], &[1, 0, 0, 0, b'a', 0, 0, 0, 0], Ok(()));
    check(DType::Bytes, &[1], &[1, 0, 0, 0, b'a', 0, 0, 0, 0], Err("announces 1 BYTES elements, 2 came"));
    check(DType::Bytes, &[1], &[9, 0, 0, 0, b'a'], Err("element 0 runs past the end"));
    check(DType::Bytes, &[1], &[9, 0, 0], Err("element 0 runs past the end"));
}

#[test]
fn names_tensor_expected_and_came_on_mismatch() {
    let spec =
        TensorSpec { name: "x".into(), dtype: DType::Fp32, shape: vec![None, Some(4)], columns: [].into() };
    let tensor = |dtype: DType, shape: &[u64]| {
        let bytes = usize::try_from(element_count(shape).unwrap()).unwrap() * dtype.size().unwrap();
        Tensor::new("x".into(), dtype, shape.to_vec(), vec![0; bytes].into()).unwrap()
    };
    assert_eq!(spec.check("input", &tensor(DType::Fp32, &[3, 4])), Ok(()));
    let error = spec.check("input", &tensor(DType::Fp32, &[1, 3])).unwrap_err();
    assert_eq!(error.message, "input \"x\": shape [1, 3] does not match [-1, 4]");
    let error = spec.check("output", &tensor(DType::Fp64, &[1, 4])).unwrap_err();
    assert_eq!(error.message, "output \"x\": datatype FP64 is not FP32");
}

#[test]
fn debug_prints_no_values() {
    let tensor = Tensor::new("x".into(), DType::Uint8, vec![1], vec![42].into()).unwrap();
    assert_eq!(format!("{tensor:?}"), "x UINT8[1] (1 bytes)");
}

#[test]
fn datatype_names_read_back() {
    for dtype in DType::ALL {
        assert_eq!(DType::parse(dtype.as_str()), Ok(dtype));
    }
    assert!(DType::parse("FLOAT").unwrap_err().message.contains("FP32"));
}
