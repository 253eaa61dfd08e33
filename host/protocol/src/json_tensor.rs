//! Tensor data between JSON and bytes: nested or flat arrays in, flat arrays out.

use std::borrow::Cow;
use std::num::ParseIntError;
use std::str::FromStr;

use base64::Engine;
use bytes::Bytes;
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::room::Room;
use modelhost_core::tensor::{DType, Tensor};

use crate::json::{Reader, write_int, write_string};
use crate::out::Out;

/// Reads a tensor's data into little-endian bytes. `data` is flat and row-major, or nested as deep as `shape`.
/// Errors: invalid argument naming the element: mixed depth, a length that is not the shape's, a value that the
/// datatype does not hold; resource exhausted. FP16 and BF16 have no JSON form.
pub(crate) fn read(reader: &mut Reader<'_>, dtype: DType, shape: &[u64]) -> Result<Bytes, Error> {
    if matches!(dtype, DType::Fp16 | DType::Bf16) {
        return Err(Error::invalid(format!("{dtype} has no JSON form; send it as binary data")));
    }
    // What the body can hold bounds the reservation, whatever the shape announces: an element takes two bytes.
    let announced =
        shape.iter().try_fold(1_u64, |product, dim| product.checked_mul(*dim)).unwrap_or(u64::MAX);
    let possible = (reader.rest().len() as u64 / 2 + 1).min(announced);
    let expected = usize::try_from(possible).unwrap_or(0).saturating_mul(dtype.size().unwrap_or(4));
    let room = reader.room();
    let mut data = Data { dtype, shape, room, bytes: Vec::new(), leaf_level: None, count: 0 };
    room.reserve(&mut data.bytes, expected)?;
    data.array(reader, 0)?;
    Ok(room.finish(data.bytes))
}

/// Reads a value nested as deep as the tensor has dimensions; its lengths are the shape. A bare number is a scalar.
/// BYTES may be `{"b64": "…"}`, FP16 and BF16 are rounded from FP32. Errors: invalid argument naming the element:
/// ragged or mixed depth, a value that the datatype does not hold; resource exhausted.
pub(crate) fn read_nested(reader: &mut Reader<'_>, dtype: DType) -> Result<(Vec<u64>, Bytes), Error> {
    let room = reader.room();
    let mut data = Data { dtype, shape: &[], room, bytes: Vec::new(), leaf_level: None, count: 0 };
    let mut dims = Vec::new();
    data.nested(reader, 0, &mut dims)?;
    Ok((dims.into_iter().map(Option::unwrap_or_default).collect(), room.finish(data.bytes)))
}

struct Data<'a> {
    dtype: DType,
    shape: &'a [u64],
    room: &'a Room,
    bytes: Vec<u8>,
    /// How many arrays are around the first element found.
    leaf_level: Option<usize>,
    count: u64,
}

impl Data<'_> {
    fn array(&mut self, reader: &mut Reader<'_>, level: usize) -> Result<(), Error> {
        let mut length = 0_u64;
        reader.array(|reader| {
            length += 1;
            if reader.peek() == Some(b'[') {
                self.array(reader, level + 1)
            } else {
                self.element(reader, level)
            }
        })?;
        let nested = self.leaf_level.is_none_or(|leaf| leaf > 0) && self.shape.len() > 1;
        let expected = self.shape.get(level).copied();
        if nested && (level > 0 || self.leaf_level.is_some()) && expected != Some(length) {
            let shape = self.shape;
            return Err(Error::invalid(format!(
                "an array at depth {} has {length} elements, shape {shape:?} announces {}",
                level + 1,
                expected.map_or("none".into(), |expected| expected.to_string()),
            )));
        }
        Ok(())
    }

    fn nested(
        &mut self,
        reader: &mut Reader<'_>,
        level: usize,
        dims: &mut Vec<Option<u64>>,
    ) -> Result<(), Error> {
        let is_leaf = reader.peek() != Some(b'[');
        if self.leaf_level.is_some_and(|leaf| if is_leaf { leaf != level } else { leaf <= level }) {
            return Err(self.wrong("is nested deeper or less deep than the elements before it"));
        }
        if is_leaf {
            self.leaf_level = Some(level);
            self.value(reader)?;
            self.count += 1;
            return Ok(());
        }
        if dims.len() == level {
            dims.push(None);
        }
        let mut length = 0;
        reader.array(|reader| {
            length += 1;
            self.nested(reader, level + 1, dims)
        })?;
        match dims.get_mut(level) {
            Some(dim @ None) => *dim = Some(length),
            Some(Some(dim)) if *dim != length => {
                let dim = *dim;
                return Err(self.wrong(&format!(
                    "an array at depth {} has {length} elements, those before it {dim}",
                    level + 1
                )));
            }
            _ => {}
        }
        Ok(())
    }

    #[inline]
    fn element(&mut self, reader: &mut Reader<'_>, level: usize) -> Result<(), Error> {
        if self.leaf_level != Some(level) {
            self.check_level(level)?;
        }
        self.value(reader)?;
        self.count += 1;
        Ok(())
    }

    fn check_level(&mut self, level: usize) -> Result<(), Error> {
        let depth = level + 1;
        let rank = self.shape.len().max(1);
        if self.leaf_level.is_some() || (depth != 1 && depth != rank) {
            let why =
                format!("data is nested {depth} deep here; it must be flat or nested {rank} deep throughout");
            return Err(self.wrong(&why));
        }
        self.leaf_level = Some(level);
        Ok(())
    }

    fn value(&mut self, reader: &mut Reader<'_>) -> Result<(), Error> {
        self.room.reserve(&mut self.bytes, size_of::<u64>())?;
        match self.dtype {
            DType::Fp32 => {
                let value: f32 = self.float(reader)?;
                self.bytes.extend_from_slice(&value.to_le_bytes());
            }
            DType::Fp64 => {
                let value: f64 = self.float(reader)?;
                self.bytes.extend_from_slice(&value.to_le_bytes());
            }
            DType::Bool => {
                let value = if reader.word("true") {
                    1
                } else if reader.word("false") {
                    0
                } else {
                    self.int::<u8>(reader)?
                };
                self.bytes.push(value);
            }
            DType::Bytes if reader.peek() == Some(b'{') => {
                let bytes = read_b64(reader).map_err(|error| self.within(error))?;
                self.text(&bytes)?;
                self.room.give_back(bytes.len());
            }
            DType::Bytes => {
                let text = reader.string().map_err(|error| self.within(error))?;
                self.text(text.as_bytes())?;
                if let Cow::Owned(text) = text {
                    self.room.give_back(text.len());
                }
            }
            DType::Uint8 => self.push::<u8, 1>(reader, u8::to_le_bytes)?,
            DType::Uint16 => self.push::<u16, 2>(reader, u16::to_le_bytes)?,
            DType::Uint32 => self.push::<u32, 4>(reader, u32::to_le_bytes)?,
            DType::Uint64 => self.push::<u64, 8>(reader, u64::to_le_bytes)?,
            DType::Int8 => self.push::<i8, 1>(reader, i8::to_le_bytes)?,
            DType::Int16 => self.push::<i16, 2>(reader, i16::to_le_bytes)?,
            DType::Int32 => self.push::<i32, 4>(reader, i32::to_le_bytes)?,
            DType::Int64 => self.push::<i64, 8>(reader, i64::to_le_bytes)?,
            DType::Fp16 => {
                let value: f32 = self.float(reader)?;
                self.bytes.extend_from_slice(&half::f16::from_f32(value).to_le_bytes());
            }
            DType::Bf16 => {
                let value: f32 = self.float(reader)?;
                self.bytes.extend_from_slice(&half::bf16::from_f32(value).to_le_bytes());
            }
        }
        Ok(())
    }

    fn text(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let length = u32::try_from(bytes.len()).map_err(|_| self.wrong("longer than 4 GiB"))?;
        self.room.reserve(&mut self.bytes, bytes.len() + size_of::<u32>())?;
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn push<T: FromStr<Err = ParseIntError>, const N: usize>(
        &mut self,
        reader: &mut Reader<'_>,
        bytes: impl Fn(T) -> [u8; N],
    ) -> Result<(), Error> {
        let value = self.int(reader)?;
        self.bytes.extend_from_slice(&bytes(value));
        Ok(())
    }

    fn int<T: FromStr<Err = ParseIntError>>(&self, reader: &mut Reader<'_>) -> Result<T, Error> {
        let text = reader.number().map_err(|error| self.within(error))?;
        text.parse().map_err(|error| self.wrong(&format!("{text} is no {}", self.dtype)).because(error))
    }

    #[inline]
    fn float<T: Float>(&self, reader: &mut Reader<'_>) -> Result<T, Error> {
        read_float(reader).map_err(|error| self.within(error))
    }

    #[cold]
    fn wrong(&self, why: &str) -> Error {
        self.within(Error::invalid(why))
    }

    #[cold]
    fn within(&self, error: Error) -> Error {
        error.within(format_args!("element {}", self.count))
    }
}

/// `{"b64": "…"}`: bytes that need not be text.
fn read_b64(reader: &mut Reader<'_>) -> Result<Vec<u8>, Error> {
    let mut bytes = None;
    reader.object(|reader, key| {
        if key != "b64" || bytes.is_some() {
            return Err(Error::invalid(format!("{key:?} stands where only \"b64\" may, once")));
        }
        let text = reader.string()?;
        // Whoever wants the bytes copies them and gives back what they took; what an escaped text took stays taken.
        reader.room().take(text.len())?;
        let decoded = base64::engine::general_purpose::STANDARD.decode(text.as_bytes());
        let decoded = decoded
            .map_err(|error| Error::invalid(format!("\"b64\" is not base64: {error}")).because(error))?;
        reader.room().give_back(text.len() - decoded.len());
        bytes = Some(decoded);
        Ok(())
    })?;
    bytes.ok_or_else(|| Error::invalid("an object stands for bytes only with \"b64\" in it"))
}

/// f32 and f64.
pub(crate) trait Float: fast_float2::FastFloat + From<f32> + Into<f64> {}

impl Float for f32 {}
impl Float for f64 {}

/// Reads a number, `NaN`, `Infinity` or `-Infinity`. Errors: anything else; a number too large for the type.
#[inline]
pub(crate) fn read_float<T: Float>(reader: &mut Reader<'_>) -> Result<T, Error> {
    let rest = reader.rest();
    let digits = rest.strip_prefix(b"-").unwrap_or(rest);
    if digits.first().is_some_and(u8::is_ascii_digit)
        && let Ok((value, length)) = fast_float2::parse_partial::<T, _>(rest)
    {
        if !Into::<f64>::into(value).is_finite() {
            return Err(Error::invalid("the number is too large for its datatype"));
        }
        reader.advance(length);
        return Ok(value);
    }
    match reader.number()? {
        "NaN" => Ok(f32::NAN.into()),
        "Infinity" => Ok(f32::INFINITY.into()),
        _ => Ok(f32::NEG_INFINITY.into()),
    }
}

/// Writes a tensor's data as a flat array. Non-finite numbers are written as the bare tokens.
/// Errors: unsupported, for FP16 and BF16, and BYTES that are not UTF-8: they have no JSON form; resource exhausted.
pub(crate) fn write(out: &mut Out<'_>, tensor: &Tensor) -> Result<(), Error> {
    out.push(b'[');
    Writing::of(tensor)?.elements(out, usize::MAX, "NaN")?;
    out.push(b']');
    Ok(())
}

/// A tensor on its way out, from its first element to its last.
pub(crate) struct Writing<'a> {
    tensor: &'a Tensor,
    /// The next element.
    at: usize,
    /// BYTES elements from there on.
    texts: Box<dyn Iterator<Item = &'a [u8]> + 'a>,
}

impl<'a> Writing<'a> {
    /// FP16 and BF16 are written as FP32.
    pub(crate) fn widened(tensor: &'a Tensor) -> Self {
        Self { tensor, at: 0, texts: Box::new(tensor.bytes_elements()) }
    }

    /// Errors: unsupported, for FP16 and BF16.
    pub(crate) fn of(tensor: &'a Tensor) -> Result<Self, Error> {
        match tensor.dtype() {
            DType::Fp16 | DType::Bf16 => Err(no_json_form(tensor, "has a datatype without a JSON form")),
            _ => Ok(Self::widened(tensor)),
        }
    }

    /// Writes all of it, nested as deep as it has dimensions. `b64`: BYTES as `{"b64": "…"}`; those that are not UTF-8
    /// always are. Errors: resource exhausted.
    pub(crate) fn nested(&mut self, out: &mut Out<'_>, b64: bool) -> Result<(), Error> {
        self.level(out, self.tensor.shape(), b64)
    }

    /// Writes the part below the next index of its first dimension. Errors: resource exhausted.
    pub(crate) fn row(&mut self, out: &mut Out<'_>, b64: bool) -> Result<(), Error> {
        let shape = self.tensor.shape();
        self.level(out, shape.get(1..).unwrap_or_default(), b64)
    }

    fn level(&mut self, out: &mut Out<'_>, shape: &[u64], b64: bool) -> Result<(), Error> {
        let is_text = self.tensor.dtype() == DType::Bytes;
        let Some((length, inner)) = shape.split_first() else {
            if is_text {
                write_text_or_b64(out, self.text(), b64);
                return Ok(());
            }
            return self.elements(out, 1, "NaN");
        };
        out.check()?;
        out.push(b'[');
        if inner.is_empty() && !is_text {
            self.elements(out, usize::try_from(*length).unwrap_or(usize::MAX), "NaN")?;
        } else {
            for at in 0..*length {
                if at > 0 {
                    out.push(b',');
                }
                self.level(out, inner, b64)?;
            }
        }
        out.push(b']');
        Ok(())
    }

    /// The next BYTES element.
    pub(crate) fn text(&mut self) -> &'a [u8] {
        self.texts.next().unwrap_or_default()
    }

    /// Writes the next `count` elements, separated by commas. `not_a_number` is what a NaN becomes; with `null` the
    /// infinities become that too. Errors: unsupported, for BYTES that are not UTF-8; resource exhausted.
    pub(crate) fn elements(
        &mut self,
        out: &mut Out<'_>,
        count: usize,
        not_a_number: &str,
    ) -> Result<(), Error> {
        let (tensor, start) = (self.tensor, self.at);
        self.at = start.saturating_add(count);
        macro_rules! write_all {
            ($number:ty, $size:literal, $write:expr) => {{
                let (chunks, _) = tensor.data().as_chunks::<$size>();
                for (at, chunk) in chunks.iter().skip(start).take(count).enumerate() {
                    if at > 0 {
                        out.push(b',');
                        out.check()?;
                    }
                    $write(&mut *out, <$number>::from_le_bytes(*chunk));
                }
            }};
        }
        let float = |out: &mut Out<'_>, value: f64, finite: &str| {
            let text = match value {
                _ if value.is_finite() => finite,
                _ if value.is_nan() || not_a_number == "null" => not_a_number,
                _ if value > 0.0 => "Infinity",
                _ => "-Infinity",
            };
            out.extend_from_slice(text.as_bytes());
        };
        let single =
            |out: &mut Out<'_>, value: f32| float(out, value.into(), ryu::Buffer::new().format(value));
        match tensor.dtype() {
            DType::Fp32 => write_all!(f32, 4, single),
            DType::Fp16 => {
                write_all!(half::f16, 2, |out: &mut Out<'_>, value: half::f16| single(out, value.to_f32()))
            }
            DType::Bf16 => {
                write_all!(half::bf16, 2, |out: &mut Out<'_>, value: half::bf16| single(out, value.to_f32()))
            }
            DType::Fp64 => write_all!(f64, 8, |out: &mut Out<'_>, value| {
                float(out, value, ryu::Buffer::new().format(value));
            }),
            DType::Bool => write_all!(u8, 1, |out: &mut Out<'_>, value| {
                out.extend_from_slice(if value == 0 { b"false" } else { b"true" });
            }),
            DType::Uint8 => write_all!(u8, 1, write_int),
            DType::Uint16 => write_all!(u16, 2, write_int),
            DType::Uint32 => write_all!(u32, 4, write_int),
            DType::Uint64 => write_all!(u64, 8, write_int),
            DType::Int8 => write_all!(i8, 1, write_int),
            DType::Int16 => write_all!(i16, 2, write_int),
            DType::Int32 => write_all!(i32, 4, write_int),
            DType::Int64 => write_all!(i64, 8, write_int),
            DType::Bytes => {
                for (at, element) in self.texts.by_ref().take(count).enumerate() {
                    if at > 0 {
                        out.push(b',');
                        out.check()?;
                    }
                    let text = std::str::from_utf8(element).map_err(|error| {
                        no_json_form(tensor, "holds bytes that are not UTF-8").because(error)
                    })?;
                    write_string(out, text);
                }
            }
        }
        Ok(())
    }
}

fn write_text_or_b64(out: &mut Out<'_>, bytes: &[u8], b64: bool) {
    /// Written at a time. A multiple of 3, so that padding comes at the end alone.
    const PIECE: usize = 3 << 10;
    match std::str::from_utf8(bytes) {
        Ok(text) if !b64 => write_string(out, text),
        _ => {
            out.extend_from_slice(b"{\"b64\":\"");
            for piece in bytes.chunks(PIECE) {
                out.extend_from_slice(base64::engine::general_purpose::STANDARD.encode(piece).as_bytes());
            }
            out.extend_from_slice(b"\"}");
        }
    }
}

fn no_json_form(tensor: &Tensor, why: &str) -> Error {
    Error::new(ErrorCode::Unsupported, format!("output {:?} {why}; ask for binary data", tensor.name()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(write: impl FnOnce(&mut Out<'_>) -> Result<(), Error>) -> Result<String, Error> {
        let room = Room::unbounded();
        let mut out = Out::new(&room, 0);
        write(&mut out)?;
        Ok(String::from_utf8(out.finish()?.to_vec()).unwrap())
    }

    fn check(dtype: DType, shape: &[u64], json: &str, expected: Result<&str, &str>) {
        let room = Room::unbounded();
        let mut reader = Reader::new(json.as_bytes(), &room);
        let result = read(&mut reader, dtype, shape)
            .and_then(|data| Tensor::new("x".into(), dtype, shape.to_vec(), data))
            .map(|tensor| written(|out| write(out, &tensor)).unwrap());
        match (result, expected) {
            (Ok(came), Ok(expected)) => assert_eq!(came, expected),
            (Err(error), Err(text)) => assert!(error.message.contains(text), "{error}"),
            (came, _) => panic!("{json} gave {came:?}"),
        }
    }

    #[test]
    fn reads_nested_and_flat_alike() {
        check(DType::Fp32, &[2, 2], "[[1, 2.5], [-3e1, 0]]", Ok("[1.0,2.5,-30.0,0.0]"));
        check(DType::Fp32, &[2, 2], "[1, 2.5, -3e1, 0]", Ok("[1.0,2.5,-30.0,0.0]"));
        check(DType::Int64, &[1, 1, 1], "[[[9007199254740993]]]", Ok("[9007199254740993]"));
        check(DType::Fp64, &[], "[0.1]", Ok("[0.1]"));
        check(DType::Fp32, &[0, 3], "[]", Ok("[]"));
        check(DType::Fp32, &[2, 0], "[[], []]", Ok("[]"));
        check(DType::Bool, &[3], "[true, false, 1]", Ok("[true,false,true]"));
        check(DType::Bytes, &[2], "[\"a\\n\", \"\"]", Ok("[\"a\\n\",\"\"]"));
        check(DType::Fp32, &[3], "[NaN, Infinity, -Infinity]", Ok("[NaN,Infinity,-Infinity]"));
    }

    #[test]
    fn refuses_what_does_not_fit_and_says_where() {
        check(DType::Fp32, &[2, 2], "[[1, 2], 3, 4]", Err("element 2: data is nested 1 deep"));
        check(DType::Fp32, &[2, 2], "[1, [2], 3, 4]", Err("element 1: data is nested 2 deep"));
        check(DType::Fp32, &[2, 2], "[[1, 2, 3], [4]]", Err("an array at depth 2 has 3 elements"));
        check(DType::Fp32, &[2, 2], "[[1, 2]]", Err("an array at depth 1 has 1 elements"));
        check(DType::Fp32, &[1, 1, 1], "[[1]]", Err("must be flat or nested 3 deep"));
        check(DType::Fp32, &[2], "[1]", Err("needs 2 x 4 bytes, 4 came"));
        check(DType::Uint8, &[1], "[256]", Err("element 0: 256 is no UINT8"));
        check(DType::Int32, &[2], "[1, 1.5]", Err("element 1: 1.5 is no INT32"));
        check(DType::Fp32, &[1], "[1e39]", Err("too large"));
        check(DType::Fp32, &[1], "[\"1\"]", Err("element 0: body is not valid JSON: expected a number"));
        check(DType::Bool, &[1], "[2]", Err("neither 0 nor 1"));
        check(DType::Fp16, &[1], "[1]", Err("send it as binary data"));
        check(DType::Fp32, &[1], "1", Err("expected an array"));
    }

    proptest! {
        #[test]
        fn floats_come_back_bit_for_bit(values in proptest::collection::vec(any::<f32>(), 0..50)) {
            let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            let shape = vec![values.len() as u64];
            let tensor = Tensor::new("x".into(), DType::Fp32, shape.clone(), data.into()).unwrap();
            let out = written(|out| write(out, &tensor)).unwrap();
            let room = Room::unbounded();
            let back = read(&mut Reader::new(out.as_bytes(), &room), DType::Fp32, &shape).unwrap();
            let back: Vec<f32> = back.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            for (came, expected) in back.iter().zip(&values) {
                prop_assert!(came.to_bits() == expected.to_bits() || (came.is_nan() && expected.is_nan()));
            }
        }

        #[test]
        fn never_panics(text in "[\\[\\]{}\",:0-9eE.+\\-aNIfintyul ]{0,60}") {
            let room = Room::unbounded();
            let mut reader = Reader::new(text.as_bytes(), &room);
            drop(read(&mut reader, DType::Fp32, &[2, 2]));
        }
    }
}
