//! Converts domain types to the generated ones and back.

use std::sync::Arc;

use modelhost_core::deployment::MemoryBudget;
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::infer::InferRequest;
use modelhost_core::model::{MAX_TENSORS, Signature};
use modelhost_core::tensor::{Column, ColumnKind, DType, Tensor, TensorSpec, check_name};
use modelhost_core::version::Package;

use crate::bindings::exports::modelhost::inference::model;
use crate::bindings::modelhost::inference::types;
use crate::limits::{COUNTED_BYTES, counted};
use crate::said;

/// Borrows from the request. The bytes of the tensors are copied once, into the guest.
pub(crate) struct RequestParts<'a> {
    inputs: Vec<types::TensorParam<'a>>,
    outputs: Vec<&'a str>,
    parameter_texts: Vec<String>,
    parameter_names: Vec<&'a str>,
}

impl<'a> RequestParts<'a> {
    pub(crate) fn new(request: &'a InferRequest) -> Self {
        let input = |tensor: &'a Tensor| types::TensorParam {
            name: tensor.name(),
            datatype: to_guest(tensor.dtype()),
            shape: tensor.shape(),
            data: tensor.data(),
        };
        Self {
            inputs: request.inputs.iter().map(input).collect(),
            outputs: request.outputs.iter().map(String::as_str).collect(),
            parameter_texts: request.parameters.iter().map(|(_, value)| value.to_string()).collect(),
            parameter_names: request.parameters.iter().map(|(name, _)| name.as_str()).collect(),
        }
    }

    /// Pairs of name and value, which [`Self::as_request`] borrows.
    pub(crate) fn parameters(&self) -> Vec<(&str, &str)> {
        let texts = self.parameter_texts.iter().map(String::as_str);
        self.parameter_names.iter().copied().zip(texts).collect()
    }

    pub(crate) fn as_request<'b>(&'b self, parameters: &'b [(&'b str, &'b str)]) -> model::Request<'b> {
        model::Request { inputs: &self.inputs, outputs: &self.outputs, parameters }
    }
}

/// Converts a guest's answer. Its bytes count in `budget`. Errors: plugin fault, on too many tensors, an invalid
/// name, or data that disagrees with its shape; resource exhausted, if the budget is used up.
pub(crate) fn outputs(response: model::Response, budget: &Arc<MemoryBudget>) -> Result<Vec<Tensor>, Error> {
    let outputs = tensors(response.outputs, budget);
    outputs.map_err(|error| match error.code {
        ErrorCode::InvalidArgument => error.with_code(ErrorCode::PluginFault).within("answer"),
        _ => error,
    })
}

/// Converts a guest's tensors. Their bytes count in `budget`. Errors: invalid argument, on too many tensors, an
/// invalid name, or data that disagrees with its shape; resource exhausted, if the budget is used up.
pub(crate) fn tensors(
    tensors: Vec<types::TensorResult>,
    budget: &Arc<MemoryBudget>,
) -> Result<Vec<Tensor>, Error> {
    if tensors.len() > MAX_TENSORS {
        return Err(Error::invalid(format!("tensors: {} came, more than {MAX_TENSORS}", tensors.len())));
    }
    // Many small tensors together are large.
    let is_large = tensors.iter().map(|tensor| tensor.data.len()).sum::<usize>() >= COUNTED_BYTES;
    let tensor = |tensor: types::TensorResult| {
        check_name(&tensor.name).map_err(|error| error.within("tensor"))?;
        let data = if is_large { counted(tensor.data, budget)? } else { tensor.data.into() };
        Tensor::new(tensor.name, from_guest(tensor.datatype), tensor.shape, data)
    };
    tensors.into_iter().map(tensor).collect()
}

/// Converts a tensor for a guest.
pub(crate) fn guests_tensor(tensor: Tensor) -> types::TensorResult {
    types::TensorResult {
        name: tensor.name().to_owned(),
        datatype: to_guest(tensor.dtype()),
        shape: tensor.shape().to_vec(),
        data: tensor.data().to_vec(),
    }
}

/// Converts a graph's signature for a guest.
pub(crate) fn guests_signature(signature: &Signature) -> types::Signature {
    let spec = |spec: &TensorSpec| types::TensorSpec {
        name: spec.name.clone(),
        datatype: to_guest(spec.dtype),
        shape: spec.wire_shape(),
        columns: Vec::new(),
    };
    types::Signature {
        inputs: signature.inputs.iter().map(spec).collect(),
        outputs: signature.outputs.iter().map(spec).collect(),
    }
}

/// Converts an error for a guest, with the culprit.
pub(crate) fn guests_error(error: Error) -> types::Error {
    match error.code {
        ErrorCode::InvalidArgument => types::Error::InvalidInput(error.message),
        _ => types::Error::Model(error.message),
    }
}

/// Converts a guest's error, with the culprit that it names.
pub(crate) fn error(error: types::Error) -> Error {
    match error {
        types::Error::InvalidInput(message) => Error::new(ErrorCode::InvalidArgument, said::text(&message)),
        types::Error::Model(message) => Error::new(ErrorCode::PluginFault, said::text(&message)),
    }
}

/// The arguments of `load`, which [`Config::as_load_config`] borrows.
pub(crate) struct Config<'a> {
    parameters: Vec<(&'a str, &'a str)>,
    categories: Vec<Vec<&'a str>>,
    columns: &'a [Column],
}

impl<'a> Config<'a> {
    pub(crate) fn new(package: &'a Package) -> Self {
        let categories = |column: &'a Column| match &column.kind {
            ColumnKind::Numeric => Vec::new(),
            ColumnKind::Categorical(values) => values.iter().map(String::as_str).collect(),
        };
        Self {
            parameters: package
                .parameters
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str()))
                .collect(),
            categories: package.columns.iter().map(categories).collect(),
            columns: &package.columns,
        }
    }

    pub(crate) fn columns(&self) -> Vec<types::ColumnParam<'_>> {
        let column = |(column, values): (&'a Column, _)| column_param(column, values);
        self.columns.iter().zip(self.categories.iter().map(Vec::as_slice)).map(column).collect()
    }

    pub(crate) fn as_load_config<'b>(
        &'b self,
        columns: &'b [types::ColumnParam<'b>],
    ) -> model::LoadConfig<'b> {
        model::LoadConfig { parameters: &self.parameters, columns }
    }
}

fn column_param<'b>(column: &'b Column, categories: &'b [&'b str]) -> types::ColumnParam<'b> {
    types::ColumnParam {
        name: &column.name,
        kind: match column.kind {
            ColumnKind::Numeric => types::ColumnKindParam::Numeric,
            ColumnKind::Categorical(_) => types::ColumnKindParam::Categorical(categories),
        },
        description: column.description.as_deref(),
        unit: column.unit.as_deref(),
        minimum: column.minimum,
        maximum: column.maximum,
        missing: column.missing,
    }
}

/// Converts the signature that `load` returned. Errors: plugin fault, if it is invalid.
pub(crate) fn signature(signature: types::Signature) -> Result<Signature, Error> {
    let specs = |specs: Vec<types::TensorSpec>| specs.into_iter().map(spec).collect::<Result<Vec<_>, _>>();
    let signature = Signature { inputs: specs(signature.inputs)?, outputs: specs(signature.outputs)? };
    signature.check().map_err(|error| error.with_code(ErrorCode::PluginFault))?;
    Ok(signature)
}

fn spec(spec: types::TensorSpec) -> Result<TensorSpec, Error> {
    let dim = |dim: i64| match dim {
        -1 => Ok(None),
        _ => u64::try_from(dim).map(Some).map_err(|_| {
            let name = said::text(&spec.name);
            Error::new(ErrorCode::PluginFault, format!("tensor {name:?}: dimension {dim} is below -1"))
        }),
    };
    Ok(TensorSpec {
        shape: spec.shape.iter().copied().map(dim).collect::<Result<_, _>>()?,
        dtype: from_guest(spec.datatype),
        columns: spec.columns.into_iter().map(column).collect(),
        name: spec.name,
    })
}

fn column(column: types::ColumnResult) -> Column {
    Column {
        name: column.name,
        kind: match column.kind {
            types::ColumnKindResult::Numeric => ColumnKind::Numeric,
            types::ColumnKindResult::Categorical(values) => ColumnKind::Categorical(values.into()),
        },
        description: column.description,
        unit: column.unit,
        minimum: column.minimum,
        maximum: column.maximum,
        missing: column.missing,
        unknown_is_missing: false,
    }
}

fn to_guest(dtype: DType) -> types::Datatype {
    match dtype {
        DType::Bool => types::Datatype::Bool,
        DType::Uint8 => types::Datatype::Uint8,
        DType::Uint16 => types::Datatype::Uint16,
        DType::Uint32 => types::Datatype::Uint32,
        DType::Uint64 => types::Datatype::Uint64,
        DType::Int8 => types::Datatype::Int8,
        DType::Int16 => types::Datatype::Int16,
        DType::Int32 => types::Datatype::Int32,
        DType::Int64 => types::Datatype::Int64,
        DType::Fp16 => types::Datatype::Fp16,
        DType::Bf16 => types::Datatype::Bf16,
        DType::Fp32 => types::Datatype::Fp32,
        DType::Fp64 => types::Datatype::Fp64,
        DType::Bytes => types::Datatype::Bytes,
    }
}

fn from_guest(datatype: types::Datatype) -> DType {
    match datatype {
        types::Datatype::Bool => DType::Bool,
        types::Datatype::Uint8 => DType::Uint8,
        types::Datatype::Uint16 => DType::Uint16,
        types::Datatype::Uint32 => DType::Uint32,
        types::Datatype::Uint64 => DType::Uint64,
        types::Datatype::Int8 => DType::Int8,
        types::Datatype::Int16 => DType::Int16,
        types::Datatype::Int32 => DType::Int32,
        types::Datatype::Int64 => DType::Int64,
        types::Datatype::Fp16 => DType::Fp16,
        types::Datatype::Bf16 => DType::Bf16,
        types::Datatype::Fp32 => DType::Fp32,
        types::Datatype::Fp64 => DType::Fp64,
        types::Datatype::Bytes => DType::Bytes,
    }
}
