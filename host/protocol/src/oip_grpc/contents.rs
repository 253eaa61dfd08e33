//! Typed contents: one field of the message holds the elements, the one that belongs to the datatype.

use bytes::Bytes;
use modelhost_core::error::Error;
use modelhost_core::room::Room;
use modelhost_core::tensor::{DType, Tensor};

use super::pb::InferTensorContents;

/// The elements as little-endian bytes. Errors: invalid argument, when another field than the datatype's has elements,
/// or one does not fit the datatype; resource exhausted.
pub(super) fn read(dtype: DType, contents: InferTensorContents, room: &Room) -> Result<Bytes, Error> {
    let lengths = [
        ("bool_contents", contents.bool_contents.len()),
        ("int_contents", contents.int_contents.len()),
        ("int64_contents", contents.int64_contents.len()),
        ("uint_contents", contents.uint_contents.len()),
        ("uint64_contents", contents.uint64_contents.len()),
        ("fp32_contents", contents.fp32_contents.len()),
        ("fp64_contents", contents.fp64_contents.len()),
        ("bytes_contents", contents.bytes_contents.len()),
    ];
    let field = field(dtype).ok_or_else(|| {
        Error::invalid(format!("{dtype} has no typed contents; send it in raw_input_contents"))
    })?;
    if let Some((other, _)) = lengths.iter().find(|(name, length)| *length > 0 && *name != field) {
        return Err(Error::invalid(format!("{dtype} elements belong in {field}, {other} came")));
    }
    let count = lengths.iter().map(|(_, length)| length).sum::<usize>();
    let texts = contents.bytes_contents.iter().map(|element| element.len() + size_of::<u32>()).sum();
    let mut bytes = Vec::new();
    room.reserve(&mut bytes, dtype.size().map_or(texts, |size| count * size))?;
    macro_rules! narrow {
        ($field:ident, $to:ty) => {
            for value in contents.$field {
                let outside = |error| Error::invalid(format!("{value} is no {dtype}")).because(error);
                bytes.extend_from_slice(&<$to>::try_from(value).map_err(outside)?.to_le_bytes());
            }
        };
    }
    macro_rules! same {
        ($field:ident) => {
            contents.$field.iter().for_each(|value| bytes.extend_from_slice(&value.to_le_bytes()))
        };
    }
    match dtype {
        DType::Bool => bytes.extend(contents.bool_contents.iter().map(|flag| u8::from(*flag))),
        DType::Int8 => narrow!(int_contents, i8),
        DType::Int16 => narrow!(int_contents, i16),
        DType::Int32 => same!(int_contents),
        DType::Int64 => same!(int64_contents),
        DType::Uint8 => narrow!(uint_contents, u8),
        DType::Uint16 => narrow!(uint_contents, u16),
        DType::Uint32 => same!(uint_contents),
        DType::Uint64 => same!(uint64_contents),
        DType::Fp32 => same!(fp32_contents),
        DType::Fp64 => same!(fp64_contents),
        DType::Bytes => {
            for element in &contents.bytes_contents {
                let too_long = |error| Error::invalid("a BYTES element is longer than 4 GiB").because(error);
                let length = u32::try_from(element.len()).map_err(too_long)?;
                bytes.extend_from_slice(&length.to_le_bytes());
                bytes.extend_from_slice(element);
            }
        }
        DType::Fp16 | DType::Bf16 => {}
    }
    Ok(room.finish(bytes))
}

/// The field that holds a datatype's elements.
fn field(dtype: DType) -> Option<&'static str> {
    Some(match dtype {
        DType::Bool => "bool_contents",
        DType::Int8 | DType::Int16 | DType::Int32 => "int_contents",
        DType::Int64 => "int64_contents",
        DType::Uint8 | DType::Uint16 | DType::Uint32 => "uint_contents",
        DType::Uint64 => "uint64_contents",
        DType::Fp32 => "fp32_contents",
        DType::Fp64 => "fp64_contents",
        DType::Bytes => "bytes_contents",
        DType::Fp16 | DType::Bf16 => return None,
    })
}

/// Bytes that [`write`] takes.
pub(super) fn weight(tensor: &Tensor) -> usize {
    let bytes = tensor.data().len();
    match tensor.dtype() {
        DType::Int8 | DType::Uint8 => bytes * size_of::<u32>(),
        DType::Int16 | DType::Uint16 => bytes / 2 * size_of::<u32>(),
        DType::Bytes => bytes / size_of::<u32>() * size_of::<Bytes>(),
        _ => bytes,
    }
}

/// A tensor's elements in the field of its datatype; nothing for FP16 and BF16.
pub(super) fn write(tensor: &Tensor) -> InferTensorContents {
    let mut contents = InferTensorContents::default();
    let data = tensor.data();
    macro_rules! all {
        ($number:ty, $size:literal) => {
            data.as_chunks::<$size>().0.iter().map(|bytes| <$number>::from_le_bytes(*bytes).into()).collect()
        };
    }
    match tensor.dtype() {
        DType::Bool => contents.bool_contents = data.iter().map(|byte| *byte != 0).collect(),
        DType::Int8 => contents.int_contents = all!(i8, 1),
        DType::Int16 => contents.int_contents = all!(i16, 2),
        DType::Int32 => contents.int_contents = all!(i32, 4),
        DType::Int64 => contents.int64_contents = all!(i64, 8),
        DType::Uint8 => contents.uint_contents = all!(u8, 1),
        DType::Uint16 => contents.uint_contents = all!(u16, 2),
        DType::Uint32 => contents.uint_contents = all!(u32, 4),
        DType::Uint64 => contents.uint64_contents = all!(u64, 8),
        DType::Fp32 => contents.fp32_contents = all!(f32, 4),
        DType::Fp64 => contents.fp64_contents = all!(f64, 8),
        DType::Bytes => {
            contents.bytes_contents =
                tensor.bytes_elements().map(|element| data.slice_ref(element)).collect();
        }
        DType::Fp16 | DType::Bf16 => {}
    }
    contents
}
