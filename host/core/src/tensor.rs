//! Tensors and their types. A [`Tensor`] cannot exist with data that disagrees with its shape.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::Error;

mod categories;
#[cfg(test)]
mod tests;

pub use categories::Categories;

/// Most dimensions of a tensor: numpy's own bound.
pub const MAX_RANK: usize = 32;

/// Longest name of a tensor or a column, in bytes.
pub const MAX_NAME: usize = 1024;

/// The most that the other dimensions of a tensor without elements may announce. Written as lists or columns, such a
/// tensor has as many empty ones.
const MAX_EMPTY: u64 = 1 << 20;

/// An Open Inference Protocol V2 datatype, or Triton's BF16.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are the protocol's")]
pub enum DType {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Bf16,
    Fp32,
    Fp64,
    Bytes,
}

impl DType {
    /// Every datatype, in the contract's order.
    pub const ALL: [Self; 14] = [
        Self::Bool,
        Self::Uint8,
        Self::Uint16,
        Self::Uint32,
        Self::Uint64,
        Self::Int8,
        Self::Int16,
        Self::Int32,
        Self::Int64,
        Self::Fp16,
        Self::Bf16,
        Self::Fp32,
        Self::Fp64,
        Self::Bytes,
    ];

    /// The protocol's spelling, e.g. `FP32`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::Uint8 => "UINT8",
            Self::Uint16 => "UINT16",
            Self::Uint32 => "UINT32",
            Self::Uint64 => "UINT64",
            Self::Int8 => "INT8",
            Self::Int16 => "INT16",
            Self::Int32 => "INT32",
            Self::Int64 => "INT64",
            Self::Fp16 => "FP16",
            Self::Bf16 => "BF16",
            Self::Fp32 => "FP32",
            Self::Fp64 => "FP64",
            Self::Bytes => "BYTES",
        }
    }

    /// Reads the protocol's spelling. Errors: an unknown name, with the list of known ones.
    pub fn parse(text: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|dtype| dtype.as_str() == text).ok_or_else(|| {
            let known: Vec<_> = Self::ALL.iter().map(|dtype| dtype.as_str()).collect();
            Error::invalid(format!("datatype {text:?} is not one of {}", known.join(", ")))
        })
    }

    /// The spelling of Triton's model configuration, e.g. `TYPE_FP32`; BYTES is `TYPE_STRING` there.
    pub fn config_name(self) -> &'static str {
        match self {
            Self::Bool => "TYPE_BOOL",
            Self::Uint8 => "TYPE_UINT8",
            Self::Uint16 => "TYPE_UINT16",
            Self::Uint32 => "TYPE_UINT32",
            Self::Uint64 => "TYPE_UINT64",
            Self::Int8 => "TYPE_INT8",
            Self::Int16 => "TYPE_INT16",
            Self::Int32 => "TYPE_INT32",
            Self::Int64 => "TYPE_INT64",
            Self::Fp16 => "TYPE_FP16",
            Self::Bf16 => "TYPE_BF16",
            Self::Fp32 => "TYPE_FP32",
            Self::Fp64 => "TYPE_FP64",
            Self::Bytes => "TYPE_STRING",
        }
    }

    /// Bytes per element; `None` for BYTES, whose elements vary.
    pub fn size(self) -> Option<usize> {
        match self {
            Self::Bool | Self::Uint8 | Self::Int8 => Some(1),
            Self::Uint16 | Self::Int16 | Self::Fp16 | Self::Bf16 => Some(2),
            Self::Uint32 | Self::Int32 | Self::Fp32 => Some(4),
            Self::Uint64 | Self::Int64 | Self::Fp64 => Some(8),
            Self::Bytes => None,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a column of a table holds.
#[derive(Debug, Clone, PartialEq)]
pub enum ColumnKind {
    /// A number.
    Numeric,
    /// One of these values. It travels as its index.
    Categorical(Categories),
}

/// One named column of a rank-2 tensor that is a table.
#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    /// Unique in its table.
    pub name: String,
    /// A number, or a category with its values.
    pub kind: ColumnKind,
    /// For people.
    pub description: Option<String>,
    /// Unit of measure, e.g. `EUR`.
    pub unit: Option<String>,
    /// Smallest value seen in training, inclusive. A hint, not enforced.
    pub minimum: Option<f64>,
    /// Largest value seen in training, inclusive. A hint, not enforced.
    pub maximum: Option<f64>,
    /// Whether a row may be without a value for it. NaN stands for that.
    pub missing: bool,
    /// Whether a text that is none of its categories counts as missing; else it is refused. The manifest alone says so.
    pub unknown_is_missing: bool,
}

/// A tensor's type. Each request decides a dimension that is `None` (-1 on the wire).
#[derive(Debug, Clone, PartialEq)]
pub struct TensorSpec {
    /// Unique among the inputs or the outputs of a signature.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Dimensions, outermost first.
    pub shape: Vec<Option<u64>>,
    /// Empty unless the tensor is a table of named columns. It is shared: thousands of versions have the same
    /// columns.
    pub columns: Arc<[Column]>,
}

impl TensorSpec {
    /// The shape, with -1 for dimensions that each request decides.
    pub fn wire_shape(&self) -> Vec<i64> {
        self.shape.iter().map(|dim| dim.and_then(|dim| i64::try_from(dim).ok()).unwrap_or(-1)).collect()
    }

    /// Whether `tensor` has this datatype and shape. The message begins with `role`: `input` or `output`.
    /// Errors: invalid argument, naming the tensor, what was expected and what came.
    pub fn check(&self, role: &str, tensor: &Tensor) -> Result<(), Error> {
        let name = &self.name;
        if tensor.dtype != self.dtype {
            let (came, expected) = (tensor.dtype, self.dtype);
            return Err(Error::invalid(format!("{role} {name:?}: datatype {came} is not {expected}")));
        }
        let fits = tensor.shape.len() == self.shape.len()
            && tensor.shape.iter().zip(&self.shape).all(|(came, dim)| dim.is_none_or(|dim| dim == *came));
        if !fits {
            let expected = DisplayShape(&self.shape);
            return Err(Error::invalid(format!(
                "{role} {name:?}: shape {:?} does not match {expected}",
                tensor.shape
            )));
        }
        Ok(())
    }
}

/// Prints `[-1, 4]`.
pub struct DisplayShape<'a>(pub &'a [Option<u64>]);

impl fmt::Display for DisplayShape<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (at, dim) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            match dim {
                Some(dim) => write!(f, "{comma}{dim}")?,
                None => write!(f, "{comma}-1")?,
            }
        }
        f.write_str("]")
    }
}

/// A named tensor: little-endian, row-major, no padding. BOOL: one byte an element. BYTES: u32 length + bytes each.
#[derive(Clone, PartialEq)]
pub struct Tensor {
    name: String,
    dtype: DType,
    shape: Vec<u64>,
    data: Bytes,
}

impl Tensor {
    /// Checks that `data` holds exactly the elements that `shape` announces.
    /// Errors: invalid argument, naming the tensor, on a shape that no tensor may have ([`check_shape`]), a byte
    /// count that differs, a BOOL element other than 0 and 1, or BYTES lengths that do not add up.
    pub fn new(name: String, dtype: DType, shape: Vec<u64>, data: Bytes) -> Result<Self, Error> {
        let count = check_shape(&shape).map_err(|error| error.within(format_args!("tensor {name:?}")))?;
        match dtype.size() {
            Some(size) => {
                let expected = count.checked_mul(size as u64);
                if expected != Some(data.len() as u64) {
                    return Err(Error::invalid(format!(
                        "tensor {name:?}: shape {shape:?} of {dtype} needs {count} x {size} bytes, {} came",
                        data.len()
                    )));
                }
            }
            None => check_bytes_elements(&name, count, &data)?,
        }
        if dtype == DType::Bool && data.iter().any(|byte| *byte > 1) {
            return Err(Error::invalid(format!("tensor {name:?}: a BOOL element is neither 0 nor 1")));
        }
        Ok(Self { name, dtype, shape, data })
    }

    /// A BYTES tensor of these elements. Errors: invalid argument, when their number is not what `shape` announces,
    /// or one is 4 GiB long.
    pub fn from_bytes_elements<'a>(
        name: String,
        shape: Vec<u64>,
        elements: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<Self, Error> {
        let mut data = Vec::new();
        for element in elements {
            let length = u32::try_from(element.len()).map_err(|_| {
                Error::invalid(format!("tensor {name:?}: an element of {} bytes", element.len()))
            })?;
            data.extend_from_slice(&length.to_le_bytes());
            data.extend_from_slice(element);
        }
        Self::new(name, DType::Bytes, shape, data.into())
    }

    /// The same tensor under another name.
    #[must_use]
    pub fn named(self, name: String) -> Self {
        Self { name, ..self }
    }

    /// The tensor's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Dimensions, outermost first. Empty: a scalar.
    pub fn shape(&self) -> &[u64] {
        &self.shape
    }

    /// The elements' bytes.
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// The elements of a BYTES tensor, in order. Empty for other datatypes.
    pub fn bytes_elements(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest: &[u8] = if self.dtype == DType::Bytes { &self.data } else { &[] };
        std::iter::from_fn(move || {
            let (length, tail) = rest.split_first_chunk::<4>()?;
            let (element, tail) = tail.split_at_checked(u32::from_le_bytes(*length) as usize)?;
            rest = tail;
            Some(element)
        })
    }
}

/// Never shows the values: a log must not hold a caller's data.
impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}{:?} ({} bytes)", self.name, self.dtype, self.shape, self.data.len())
    }
}

/// The product of the dimensions (1 for a scalar); `None` when it does not fit in u64.
pub fn element_count(shape: &[u64]) -> Option<u64> {
    product(shape.iter())
}

fn product<'a>(mut dims: impl Iterator<Item = &'a u64>) -> Option<u64> {
    dims.try_fold(1_u64, |product, dim| product.checked_mul(*dim))
}

/// Whether a tensor may have this shape. Returns the number of its elements. The dimensions of a shape without
/// elements are bounded too: a walk over its rows or columns has no data to end at. Errors: invalid argument, naming
/// the shape.
pub fn check_shape(shape: &[u64]) -> Result<u64, Error> {
    if shape.len() > MAX_RANK {
        let rank = shape.len();
        return Err(Error::invalid(format!("its shape has {rank} dimensions, more than {MAX_RANK}")));
    }
    let is_empty = shape.contains(&0);
    match product(shape.iter().filter(|dim| **dim > 0)) {
        None => Err(Error::invalid(format!("shape {shape:?} has too many elements"))),
        Some(count) if !is_empty => Ok(count),
        Some(announced) if announced <= MAX_EMPTY => Ok(0),
        Some(announced) => Err(Error::invalid(format!(
            "shape {shape:?} has no elements, but announces {announced} rows or columns, more than {MAX_EMPTY}"
        ))),
    }
}

/// Whether a tensor or a column of a signature may have this name. Errors: invalid argument, when the name is empty,
/// long, or cannot be printed on one line.
pub fn check_name(name: &str) -> Result<(), Error> {
    if name.is_empty() || name.len() > MAX_NAME {
        let length = name.len();
        return Err(Error::invalid(format!("a name of {length} bytes is not between 1 and {MAX_NAME}")));
    }
    match name.chars().find(|char| !is_printable(*char)) {
        Some(char) => Err(Error::invalid(format!("name {name:?} holds {char:?}, which cannot be printed"))),
        None => Ok(()),
    }
}

/// Whether the character stays on its line and in its place: no control, no line separator, no change of the
/// direction of writing.
pub fn is_printable(char: char) -> bool {
    !char.is_control() && !matches!(char, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn check_bytes_elements(name: &str, count: u64, data: &[u8]) -> Result<(), Error> {
    let (mut rest, mut found) = (data, 0_u64);
    while !rest.is_empty() {
        let element = rest.split_first_chunk::<4>().and_then(|(length, tail)| {
            let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
            tail.get(length..)
        });
        rest = element.ok_or_else(|| {
            Error::invalid(format!("tensor {name:?}: BYTES element {found} runs past the end of its data"))
        })?;
        found += 1;
    }
    if found == count {
        return Ok(());
    }
    Err(Error::invalid(format!("tensor {name:?}: its shape announces {count} BYTES elements, {found} came")))
}
