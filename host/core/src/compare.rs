//! How far apart two tensors are. All comparisons use this: of examples with a model's answers, and of a challenger's
//! answer with the primary's.
//!
//! Equal bytes are equal. Numbers of other bytes are compared: NaN equals only NaN, an infinity equals only itself,
//! and whole numbers are subtracted exactly. Texts are equal or not. Tensors are read where they lie: nothing is
//! copied.

use std::fmt;
use std::ops::ControlFlow;

use half::{bf16, f16};

use crate::tensor::{DType, Tensor};

/// The largest |difference| of two elements at the same place. It is infinite where NaN meets a number. `None`: the
/// datatype, the shape or a text differs, so there is no such number.
pub fn distance(came: &Tensor, expected: &Tensor) -> Option<f64> {
    if !is_of_one_type(came, expected) || (came.dtype() == DType::Bytes && came.data() != expected.data()) {
        return None;
    }
    let mut largest = 0.0_f64;
    let found = each_unequal(came, expected, |_, came, expected| {
        let difference = difference(came, expected);
        // `max` alone would drop NaN.
        if !difference.is_finite() {
            return ControlFlow::Break(());
        }
        largest = largest.max(difference);
        ControlFlow::Continue(())
    });
    Some(if found.is_break() { f64::INFINITY } else { largest })
}

/// The same of several tensors, matched by name. `None` also when one is missing on either side.
pub fn distance_by_name(came: &[Tensor], expected: &[Tensor]) -> Option<f64> {
    if came.len() != expected.len() {
        return None;
    }
    expected.iter().try_fold(0.0_f64, |largest, expected| {
        let came = came.iter().find(|came| came.name() == expected.name())?;
        distance(came, expected).map(|distance| largest.max(distance))
    })
}

/// Whether every element is as near to the expected one as `allowed` says. That holds for fractions; all other
/// elements must be equal.
/// Errors: the first element that differs, with the expected value and the value that came.
pub fn check(came: &Tensor, expected: &Tensor, allowed: impl Fn(f64) -> f64) -> Result<(), String> {
    let name = expected.name();
    if !is_of_one_type(came, expected) {
        return Err(format!("output {name:?}: {expected:?} was expected, {came:?} came"));
    }
    let found = each_unequal(came, expected, |at, came, expected| {
        let tolerance = match expected {
            Element::Float(expected) => allowed(expected),
            Element::Integer(_) | Element::Text(_) => 0.0,
        };
        // `>` would let NaN pass: NaN is never near.
        if difference(came, expected) <= tolerance {
            return ControlFlow::Continue(());
        }
        let within = if tolerance > 0.0 { format!(" (tolerance {tolerance})") } else { String::new() };
        ControlFlow::Break(format!(
            "output {name:?}, element {at}: {expected} was expected, {came} came{within}"
        ))
    });
    found.break_value().map_or(Ok(()), Err)
}

fn is_of_one_type(one: &Tensor, other: &Tensor) -> bool {
    (one.dtype(), one.shape()) == (other.dtype(), other.shape())
}

#[derive(Clone, Copy)]
enum Element<'a> {
    Float(f64),
    Integer(i128),
    Text(&'a [u8]),
}

/// Most characters of a text that a message shows.
const SHOWN: usize = 64;

impl fmt::Display for Element<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Float(number) => write!(f, "{number}"),
            Self::Integer(number) => write!(f, "{number}"),
            Self::Text(text) => {
                let shown = text.get(..SHOWN).unwrap_or(text);
                let more = if text.len() > shown.len() { "…" } else { "" };
                write!(f, "{:?}{more}", String::from_utf8_lossy(shown))
            }
        }
    }
}

/// The difference of two elements of one datatype. NaN: there is none, because one of them is NaN and the other is
/// not, or because they are texts.
fn difference(came: Element<'_>, expected: Element<'_>) -> f64 {
    match (came, expected) {
        (Element::Float(came), Element::Float(expected)) => {
            // An infinity less itself would be NaN.
            let equal = came == expected || (came.is_nan() && expected.is_nan());
            if equal { 0.0 } else { (came - expected).abs() }
        }
        #[expect(clippy::cast_precision_loss, reason = "they differ; by how much is for people")]
        (Element::Integer(came), Element::Integer(expected)) => came.abs_diff(expected) as f64,
        _ => f64::NAN,
    }
}

/// Visits the places whose bytes differ, in order.
fn each_unequal<'a, Found>(
    came: &'a Tensor,
    expected: &'a Tensor,
    mut see: impl FnMut(usize, Element<'a>, Element<'a>) -> ControlFlow<Found>,
) -> ControlFlow<Found> {
    macro_rules! numbers {
        ($number:ty, $element:expr) => {{
            const SIZE: usize = size_of::<$number>();
            let (came, expected) = (came.data().as_chunks::<SIZE>().0, expected.data().as_chunks::<SIZE>().0);
            for (at, (came, expected)) in came.iter().zip(expected).enumerate() {
                if came != expected {
                    let element = |bytes: [u8; SIZE]| $element(<$number>::from_le_bytes(bytes));
                    see(at, element(*came), element(*expected))?;
                }
            }
        }};
    }
    macro_rules! integers {
        ($number:ty) => {
            numbers!($number, |number| Element::Integer(i128::from(number)))
        };
    }
    if came.data() == expected.data() {
        return ControlFlow::Continue(());
    }
    match expected.dtype() {
        DType::Bool | DType::Uint8 => integers!(u8),
        DType::Uint16 => integers!(u16),
        DType::Uint32 => integers!(u32),
        DType::Uint64 => integers!(u64),
        DType::Int8 => integers!(i8),
        DType::Int16 => integers!(i16),
        DType::Int32 => integers!(i32),
        DType::Int64 => integers!(i64),
        DType::Fp16 => numbers!(f16, |number: f16| Element::Float(number.to_f64())),
        DType::Bf16 => numbers!(bf16, |number: bf16| Element::Float(number.to_f64())),
        DType::Fp32 => numbers!(f32, |number: f32| Element::Float(f64::from(number))),
        DType::Fp64 => numbers!(f64, Element::Float),
        DType::Bytes => {
            let texts = came.bytes_elements().zip(expected.bytes_elements());
            for (at, (came, expected)) in texts.enumerate().filter(|(_, (came, expected))| came != expected) {
                see(at, Element::Text(came), Element::Text(expected))?;
            }
        }
    }
    ControlFlow::Continue(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(dtype: DType, bytes: Vec<u8>) -> Tensor {
        let elements = bytes.len() / dtype.size().unwrap();
        Tensor::new("y".into(), dtype, vec![elements as u64], bytes.into()).unwrap()
    }

    fn fp32(values: &[f32]) -> Tensor {
        tensor(DType::Fp32, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    fn fp64(values: &[f64]) -> Tensor {
        tensor(DType::Fp64, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    fn fp16(values: &[f64]) -> Tensor {
        tensor(DType::Fp16, values.iter().flat_map(|value| f16::from_f64(*value).to_le_bytes()).collect())
    }

    fn bf16s(values: &[f64]) -> Tensor {
        tensor(DType::Bf16, values.iter().flat_map(|value| bf16::from_f64(*value).to_le_bytes()).collect())
    }

    fn int64(values: &[i64]) -> Tensor {
        tensor(DType::Int64, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    fn uint64(values: &[u64]) -> Tensor {
        tensor(DType::Uint64, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    fn texts(values: &[&str]) -> Tensor {
        let elements = values.iter().map(|text| text.as_bytes());
        Tensor::from_bytes_elements("y".into(), vec![values.len() as u64], elements).unwrap()
    }

    const NAN: f64 = f64::NAN;
    const INFINITY: f64 = f64::INFINITY;

    #[test]
    fn the_distance_is_the_largest_difference() {
        let big = 1 << 53;
        for (came, expected, distance_is) in [
            (fp32(&[1.0, 2.0]), fp32(&[1.5, 2.25]), Some(0.5)),
            (fp64(&[NAN, INFINITY, -INFINITY]), fp64(&[NAN, INFINITY, -INFINITY]), Some(0.0)),
            (fp64(&[0.0]), fp64(&[-0.0]), Some(0.0)),
            (fp64(&[NAN, 1.0]), fp64(&[1.0, 1.0]), Some(INFINITY)),
            (fp64(&[1.0, 3.0]), fp64(&[NAN, 1.0]), Some(INFINITY)),
            (fp64(&[INFINITY]), fp64(&[-INFINITY]), Some(INFINITY)),
            (fp64(&[INFINITY]), fp64(&[1.0]), Some(INFINITY)),
            (fp64(&[f64::from_bits(NAN.to_bits() | 1)]), fp64(&[-NAN]), Some(0.0)),
            (fp16(&[1.0, NAN, INFINITY]), fp16(&[1.5, NAN, INFINITY]), Some(0.5)),
            (fp16(&[NAN]), fp16(&[0.0]), Some(INFINITY)),
            (bf16s(&[1.0, 2.0]), bf16s(&[1.0, 4.0]), Some(2.0)),
            (int64(&[big + 1, 0]), int64(&[big, 0]), Some(1.0)),
            (int64(&[i64::MIN]), int64(&[i64::MAX]), Some(18_446_744_073_709_551_615.0)),
            (uint64(&[u64::MAX]), uint64(&[u64::MAX - 1]), Some(1.0)),
            (tensor(DType::Bool, vec![1, 0]), tensor(DType::Bool, vec![1, 1]), Some(1.0)),
            (tensor(DType::Int8, vec![0xff]), tensor(DType::Int8, vec![1]), Some(2.0)),
            (texts(&["a", "b"]), texts(&["a", "b"]), Some(0.0)),
            (texts(&["a", "b"]), texts(&["a", "c"]), None),
            (fp32(&[1.0]), fp32(&[1.0, 1.0]), None),
            (fp32(&[1.0]), fp64(&[1.0]), None),
            (fp32(&[]), fp32(&[]), Some(0.0)),
        ] {
            let came_is = distance(&came, &expected);
            assert_eq!(came_is, distance_is, "{came:?} {expected:?}");
            assert_eq!(distance(&expected, &came), distance_is, "it is the same both ways");
        }
    }

    #[test]
    fn outputs_are_told_apart_by_name() {
        let served = [fp32(&[1.0]), fp32(&[f32::NAN]).named("z".into())];
        let swapped = [served[1].clone(), fp32(&[1.5])];
        for (came, expected) in [
            (&served[..], Some(0.0)),
            (&swapped, Some(0.5)),
            (&served[..1], None),
            (&[fp32(&[1.0]), fp32(&[1.0])], None),
            (&[fp32(&[1.0]), fp32(&[1.0]).named("z".into())], Some(INFINITY)),
        ] {
            assert_eq!(distance_by_name(came, &served), expected, "{came:?}");
        }
    }

    #[test]
    fn names_the_first_element_that_is_too_far() {
        for (came, expected, why) in [
            (fp32(&[0.5, 1.0]), fp32(&[0.5, 1.000_000_5]), None),
            (fp64(&[NAN, INFINITY]), fp64(&[NAN, INFINITY]), None),
            (fp64(&[0.5, 1.0]), fp64(&[0.5, 1.5]), Some("element 1: 1.5 was expected, 1 came (tolerance")),
            (fp64(&[0.5]), fp64(&[NAN]), Some("element 0: NaN was expected, 0.5 came")),
            (fp64(&[NAN]), fp64(&[0.5]), Some("element 0: 0.5 was expected, NaN came")),
            (fp64(&[-INFINITY]), fp64(&[INFINITY]), Some("element 0: inf was expected, -inf came")),
            (fp16(&[1.0]), fp16(&[2.0]), Some("element 0: 2 was expected, 1 came")),
            (int64(&[3]), int64(&[4]), Some("output \"y\", element 0: 4 was expected, 3 came")),
            (texts(&["a", "b"]), texts(&["a", "c"]), Some("element 1: \"c\" was expected, \"b\" came")),
            (fp32(&[0.5]), fp32(&[0.5, 0.5]), Some("y FP32[2] (8 bytes) was expected, y FP32[1]")),
        ] {
            let said = check(&came, &expected, |_| 1e-6);
            match why {
                None => assert_eq!(said, Ok(())),
                Some(why) => assert!(said.as_ref().unwrap_err().contains(why), "{said:?}"),
            }
        }
        let long = "x".repeat(1000);
        let said = check(&texts(&[&long]), &texts(&["a"]), |_| 0.0).unwrap_err();
        assert!(said.len() < 200, "{said}");
        assert!(check(&fp64(&[100.5]), &fp64(&[100.0]), |expected| expected.abs() / 100.0).is_ok());
    }
}
