//! The classification extension: an output's highest values instead of the tensor.
//!
//! Source: triton-inference-server/server, docs/protocol/extension_classification.md.

use std::cmp::Ordering;

use modelhost_core::error::Error;
use modelhost_core::room::Room;
use modelhost_core::tensor::{Column, DType, Tensor};

/// The `count` highest values of each row as BYTES `value:index`, with `:label` where a column of the output has that
/// index. The last dimension holds the classes: [.., n] becomes [.., min(count, n)]. Equal values keep their order, NaN
/// comes last. Errors: invalid argument, for BYTES, BOOL and scalars, which have no order or no classes; resource
/// exhausted.
pub(crate) fn classify(
    output: &Tensor,
    count: u32,
    columns: &[Column],
    room: &Room,
) -> Result<Tensor, Error> {
    let wrong = |why: &str| Error::invalid(format!("output {:?}: classification {why}", output.name()));
    // Its numbers, and their order within a row.
    let working = output.data().len() / output.dtype().size().unwrap_or(1) * 2 * size_of::<f64>();
    room.take(working)?;
    let values = numbers(output).ok_or_else(|| wrong("needs numbers"))?;
    let mut shape = output.shape().to_vec();
    let last = shape.last_mut().ok_or_else(|| wrong("needs at least one dimension"))?;
    let width = usize::try_from(*last).map_err(|_| wrong("has too many classes"))?;
    let kept = width.min(usize::try_from(count).unwrap_or(usize::MAX));
    *last = kept as u64;
    let mut data = Vec::new();
    for row in values.chunks(width.max(1)) {
        let mut order: Vec<usize> = (0..row.len()).collect();
        let value = |at: &usize| row.get(*at).copied().unwrap_or(f64::NAN);
        order.sort_by(|a, b| descending(value(a), value(b)));
        for index in order.iter().take(kept) {
            let mut text = format!("{}:{index}", value(index));
            if let Some(column) = columns.get(*index) {
                text.push(':');
                text.push_str(&column.name);
            }
            room.reserve(&mut data, size_of::<u32>() + text.len())?;
            data.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
            data.extend_from_slice(text.as_bytes());
        }
    }
    drop(values);
    room.give_back(working);
    Tensor::new(output.name().to_owned(), DType::Bytes, shape, room.finish(data))
}

fn descending(a: f64, b: f64) -> Ordering {
    b.partial_cmp(&a).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}

/// Every element as f64, which holds the order of all but the largest 64-bit integers. `None` for what is no number.
#[expect(clippy::cast_precision_loss, reason = "only their order and six digits of them are shown")]
fn numbers(tensor: &Tensor) -> Option<Vec<f64>> {
    let data = tensor.data();
    macro_rules! all {
        ($number:ty, $size:literal, $into:expr) => {
            data.as_chunks::<$size>().0.iter().map(|bytes| $into(<$number>::from_le_bytes(*bytes))).collect()
        };
    }
    Some(match tensor.dtype() {
        DType::Fp64 => all!(f64, 8, |value| value),
        // The shortest decimal of the f32, not the digits that its f64 would show.
        DType::Fp32 => all!(f32, 4, |value: f32| value.to_string().parse().unwrap_or(f64::from(value))),
        DType::Fp16 => all!(half::f16, 2, f64::from),
        DType::Bf16 => all!(half::bf16, 2, f64::from),
        DType::Uint8 => all!(u8, 1, f64::from),
        DType::Uint16 => all!(u16, 2, f64::from),
        DType::Uint32 => all!(u32, 4, f64::from),
        DType::Uint64 => all!(u64, 8, |value| value as f64),
        DType::Int8 => all!(i8, 1, f64::from),
        DType::Int16 => all!(i16, 2, f64::from),
        DType::Int32 => all!(i32, 4, f64::from),
        DType::Int64 => all!(i64, 8, |value| value as f64),
        DType::Bool | DType::Bytes => return None,
    })
}

#[cfg(test)]
mod tests {
    use modelhost_core::tensor::ColumnKind;

    use super::*;

    fn check(values: &[f32], shape: &[u64], count: u32, expected: &[&str]) {
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let output = Tensor::new("p".into(), DType::Fp32, shape.to_vec(), data.into()).unwrap();
        let column = |name: &str| Column {
            name: name.into(),
            kind: ColumnKind::Numeric,
            description: None,
            unit: None,
            minimum: None,
            maximum: None,
            missing: false,
            unknown_is_missing: false,
        };
        let classes = classify(&output, count, &[column("cat"), column("dog")], &Room::unbounded()).unwrap();
        let came: Vec<_> =
            classes.bytes_elements().map(|text| String::from_utf8(text.to_vec()).unwrap()).collect();
        assert_eq!(came, expected);
    }

    #[test]
    fn the_highest_come_first_with_index_and_label() {
        check(&[0.1, 0.7, 0.2], &[3], 2, &["0.7:1:dog", "0.2:2"]);
        check(&[0.1, 0.7, 3.0, 3.0], &[2, 2], 1, &["0.7:1:dog", "3:0:cat"]);
        check(&[f32::NAN, 1.0], &[2], 5, &["1:1:dog", "NaN:0:cat"]);
        check(&[], &[0, 2], 1, &[]);
    }

    #[test]
    fn what_has_no_order_is_refused() {
        let output = Tensor::new("p".into(), DType::Bool, vec![1], vec![1].into()).unwrap();
        assert!(classify(&output, 1, &[], &Room::unbounded()).unwrap_err().message.contains("needs numbers"));
    }
}
