use proptest::prelude::*;

use super::*;
use crate::testing::{fp32, version};

fn read(file: &[u8], size: usize) -> Result<Vec<u8>, String> {
    let (version, room) = (version(), Room::unbounded());
    let mut decoder = Decoder::new(&version, Some("user")).unwrap();
    let mut data = Vec::new();
    for piece in file.chunks(size).chain([&[][..]]) {
        decoder.feed(piece, &room).map_err(|error| error.message)?;
        if let Some(request) = decoder.take(&room).unwrap() {
            data.extend_from_slice(request.inputs[0].data());
        }
    }
    Ok(data)
}

fn check(file: &str, expected: Result<&[f32], &str>) {
    match (read(file.as_bytes(), 5), expected) {
        (Ok(data), Ok(expected)) => {
            let came: Vec<_> =
                data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            assert_eq!(format!("{came:?}"), format!("{expected:?}"));
        }
        (Err(error), Err(text)) => assert!(error.contains(text), "{error}"),
        (came, _) => panic!("{file:?} gave {came:?}"),
    }
}

#[test]
fn reads_what_spreadsheets_write() {
    check("\u{feff}age,purpose\r\n40,tv\r\n\r\n1.5,\r\n", Ok(&[40.0, 1.0, 1.5, f32::NAN]));
    check("age\n 1e3 ", Ok(&[1000.0, f32::NAN]));
    check("user,age\nu1,1", Ok(&[1.0, f32::NAN]));
    check("age,purpose\n", Ok(&[]));
    check("", Ok(&[]));
}

#[test]
fn names_record_and_field() {
    check("age,height\n", Err("field \"height\": is not a column"));
    check("age,age\n", Err("\"age\" stands twice"));
    check("user,user\n", Err("\"user\" stands twice"));
    check("age\n1\nx\n", Err("record 1, field \"age\": \"x\" is not a number"));
    check("purpose\ncar\n", Err("record 0, field \"age\": is missing"));
    check("age,purpose\n1,boat\n", Err("record 0, field \"purpose\": \"boat\" is not one of"));
    check("age,purpose\n1\n", Err("record 0: has 1 of 2 fields"));
    check("age\n1,2\n", Err("record 0: has more than 1 fields"));
    check(&format!("age\n{}", "1".repeat(100_000)), Err("longer than"));
}

#[test]
fn the_sticky_field_is_the_first_records() {
    let file = b"age,user\n1,\"u,1\"\n2,u2\n";
    assert_eq!(first_field(file, "user"), Some(b"u,1".to_vec()));
    assert_eq!(first_field(file, "purpose"), None);
    assert_eq!(first_field(b"age", "age"), None);
}

#[test]
fn writes_a_column_for_each_value() {
    let texts =
        Tensor::new("t".into(), DType::Bytes, vec![2], b"\x03\0\0\0a\"b\0\0\0\0".to_vec().into()).unwrap();
    let outputs = [fp32("p", &[2, 2], &[0.5, 1.0, f32::NAN, f32::INFINITY]), texts];
    let written =
        String::from_utf8(encode(&version(), &outputs, true, &Room::unbounded()).unwrap().to_vec()).unwrap();
    assert_eq!(written, "p_0,p_1,t\n0.5,1.0,\"a\"\"b\"\n,Infinity,\n");
}

proptest! {
    #[test]
    fn the_pieces_do_not_matter(file in "(age|purpose|tv|car|[0-9]{1,3}|,|\n|\"){0,40}", size in 1_usize..20) {
        prop_assert_eq!(read(file.as_bytes(), size), read(file.as_bytes(), 1000));
    }
}
