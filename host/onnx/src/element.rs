//! Converts the domain's tensors to tract's and back.

use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::tensor::{DType, Tensor};
use tract_onnx::prelude::{
    Datum, DatumType, SymbolValues, TDim, Tensor as Value, TractResult, tract_ndarray,
};

/// tract's name of a datatype. BF16 has none, but `graph::dtype` refuses graphs with BF16.
pub(crate) fn datum(dtype: DType) -> DatumType {
    match dtype {
        DType::Bool => DatumType::Bool,
        DType::Uint8 => DatumType::U8,
        DType::Uint16 => DatumType::U16,
        DType::Uint32 => DatumType::U32,
        DType::Uint64 => DatumType::U64,
        DType::Int8 => DatumType::I8,
        DType::Int16 => DatumType::I16,
        DType::Int32 => DatumType::I32,
        DType::Int64 => DatumType::I64,
        DType::Fp16 | DType::Bf16 => DatumType::F16,
        DType::Fp32 => DatumType::F32,
        DType::Fp64 => DatumType::F64,
        DType::Bytes => DatumType::String,
    }
}

/// Converts a caller's tensor. Errors: invalid argument, if a BYTES element is not UTF-8.
pub(crate) fn read(tensor: &Tensor) -> Result<Value, Error> {
    let shape: Vec<usize> =
        tensor.shape().iter().map(|size| usize::try_from(*size).unwrap_or(usize::MAX)).collect();
    let made = match tensor.dtype() {
        DType::Bytes => {
            let texts = tensor.bytes_elements().map(|element| {
                let text = str::from_utf8(element);
                text.map(str::to_owned).map_err(|error| {
                    Error::invalid(format!("input {:?}: an element is no UTF-8: {error}", tensor.name()))
                })
            });
            strings(&shape, texts.collect::<Result<_, _>>()?)
        }
        dtype => plain(datum(dtype), &shape, tensor.data()),
    };
    made.map_err(|error| Error::invalid(format!("input {:?}: {error:#}", tensor.name())))
}

fn strings(shape: &[usize], texts: Vec<String>) -> TractResult<Value> {
    Ok(tract_ndarray::ArrayD::from_shape_vec(shape, texts)?.into())
}

fn plain(datum: DatumType, shape: &[usize], data: &[u8]) -> TractResult<Value> {
    let mut value = Value::zero_dt(datum, shape)?;
    value.try_as_plain_ram_mut()?.as_bytes_mut().copy_from_slice(data);
    Ok(value)
}

/// Converts an output to the datatype that the graph declares. tract computes shapes in a type of its own, so they
/// are evaluated with the `sizes` of the open dimensions. Errors: plugin fault.
pub(crate) fn write(name: &str, dtype: DType, value: &Value, sizes: &SymbolValues) -> Result<Tensor, Error> {
    let failed = |error| Error::new(ErrorCode::PluginFault, format!("output {name:?}: {error:#}"));
    let shape: Vec<u64> = value.shape().iter().map(|size| *size as u64).collect();
    let plain = value.try_as_plain_ram().map_err(failed)?;
    if value.datum_type() == String::datum_type() {
        let texts = plain.as_slice::<String>().map_err(failed)?;
        return Tensor::from_bytes_elements(name.to_owned(), shape, texts.iter().map(String::as_bytes));
    }
    let numbers;
    let value = if value.datum_type() == TDim::datum_type() {
        let dims = plain.as_slice::<TDim>().map_err(failed)?.iter();
        let sized: Vec<i64> =
            dims.map(|dim| dim.eval_to_i64(sizes)).collect::<Result<_, _>>().map_err(failed)?;
        numbers = Value::from_shape(value.shape(), &sized).map_err(failed)?;
        &numbers
    } else {
        value
    };
    let value = value.cast_to_dt(datum(dtype)).map_err(failed)?;
    let data = value.try_as_plain_ram().map_err(failed)?.as_bytes().to_vec();
    Tensor::new(name.to_owned(), dtype, shape, data.into())
}
