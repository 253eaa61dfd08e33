//! Elements: Open Inference Protocol tensors to tract's, and back.

use modelhost_sdk::{Datatype, Error, Tensor};
use tract_onnx::prelude::{
    Datum, DatumType, SymbolValues, TDim, Tensor as Value, TractResult, f16, tract_ndarray,
};

/// tract's name for a datatype. BF16 has none: no graph that has it passes `graph::datatype`.
pub(crate) fn datum(datatype: Datatype) -> DatumType {
    match datatype {
        Datatype::Bool => DatumType::Bool,
        Datatype::Uint8 => DatumType::U8,
        Datatype::Uint16 => DatumType::U16,
        Datatype::Uint32 => DatumType::U32,
        Datatype::Uint64 => DatumType::U64,
        Datatype::Int8 => DatumType::I8,
        Datatype::Int16 => DatumType::I16,
        Datatype::Int32 => DatumType::I32,
        Datatype::Int64 => DatumType::I64,
        Datatype::Fp16 | Datatype::Bf16 => DatumType::F16,
        Datatype::Fp32 => DatumType::F32,
        Datatype::Fp64 => DatumType::F64,
        Datatype::Bytes => DatumType::String,
    }
}

/// A caller's tensor. Errors: the caller's, when a BYTES element is no UTF-8.
pub(crate) fn read(tensor: &Tensor) -> Result<Value, Error> {
    let shape: Vec<usize> =
        tensor.shape.iter().map(|size| usize::try_from(*size).unwrap_or(usize::MAX)).collect();
    let made = match tensor.datatype {
        Datatype::Bool => {
            let values: Vec<bool> = tensor.data.iter().map(|byte| *byte != 0).collect();
            Value::from_shape(&shape, &values)
        }
        Datatype::Uint8 => Value::from_shape(&shape, &tensor.values::<u8>()?),
        Datatype::Uint16 => Value::from_shape(&shape, &tensor.values::<u16>()?),
        Datatype::Uint32 => Value::from_shape(&shape, &tensor.values::<u32>()?),
        Datatype::Uint64 => Value::from_shape(&shape, &tensor.values::<u64>()?),
        Datatype::Int8 => Value::from_shape(&shape, &tensor.values::<i8>()?),
        Datatype::Int16 => Value::from_shape(&shape, &tensor.values::<i16>()?),
        Datatype::Int32 => Value::from_shape(&shape, &tensor.values::<i32>()?),
        Datatype::Int64 => Value::from_shape(&shape, &tensor.values::<i64>()?),
        Datatype::Fp16 | Datatype::Bf16 => {
            let (halves, _) = tensor.data.as_chunks::<2>();
            let values: Vec<f16> = halves.iter().map(|half| f16::from_le_bytes(*half)).collect();
            Value::from_shape(&shape, &values)
        }
        Datatype::Fp32 => Value::from_shape(&shape, &tensor.values::<f32>()?),
        Datatype::Fp64 => Value::from_shape(&shape, &tensor.values::<f64>()?),
        Datatype::Bytes => {
            let texts = tensor.bytes_elements()?.into_iter().map(|element| {
                let text = str::from_utf8(element);
                text.map(str::to_owned).map_err(|error| {
                    Error::InvalidInput(format!("input {:?}: an element is no UTF-8: {error}", tensor.name))
                })
            });
            strings(&shape, texts.collect::<Result<_, _>>()?)
        }
    };
    made.map_err(|error| Error::InvalidInput(format!("input {:?}: {error:#}", tensor.name)))
}

fn strings(shape: &[usize], texts: Vec<String>) -> TractResult<Value> {
    Ok(tract_ndarray::ArrayD::from_shape_vec(shape, texts)?.into())
}

/// An answer, as the datatype that the graph declares: tract computes shapes in a type of its own, from the `sizes` of open dimensions.
/// Errors: the model's.
pub(crate) fn write(
    name: &str,
    datatype: Datatype,
    value: &Value,
    sizes: &SymbolValues,
) -> Result<Tensor, Error> {
    let failed = |error| Error::Model(format!("output {name:?}: {error:#}"));
    let shape: Vec<u64> = value.shape().iter().map(|size| *size as u64).collect();
    let plain = value.try_as_plain_ram().map_err(failed)?;
    if value.datum_type() == String::datum_type() {
        let texts = plain.as_slice::<String>().map_err(failed)?;
        let texts: Vec<&[u8]> = texts.iter().map(String::as_bytes).collect();
        return Ok(Tensor::from_bytes_elements(name, &shape, &texts));
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
    let value = value.cast_to_dt(datum(datatype)).map_err(failed)?;
    let data = value.try_as_plain_ram().map_err(failed)?.as_bytes().to_vec();
    Ok(Tensor { name: name.to_owned(), datatype, shape, data })
}
