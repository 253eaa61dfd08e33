//! Tensors by rows or by name, as TF Serving, KServe V1 and MLflow write them.

use std::collections::HashMap;

use modelhost_core::error::Error;
use modelhost_core::room::Room;
use modelhost_core::tensor::{Tensor, TensorSpec};
use modelhost_core::version::Version;

use crate::json::Reader;
use crate::json_tensor::read_nested;
use crate::table::{Rows, first_record_field};

/// Reads `instances`: a list of rows, each a value of the one input, an object by input names, or, for a model whose
/// input is a table, an object by column names. Errors: invalid argument naming row, input and field.
pub(crate) fn read_instances(
    reader: &mut Reader<'_>,
    version: &Version,
    sticky_field: Option<&str>,
) -> Result<Vec<Tensor>, Error> {
    let inputs = &version.report.signature.inputs;
    if reader.peek() != Some(b'[') {
        return Err(reader.wrong("a list of instances"));
    }
    match first_key(&reader.at(reader.position_now())) {
        Some(key) if inputs.iter().any(|input| input.name == key) => read_objects(reader, inputs),
        Some(key) if key != "b64" => {
            let mut rows = Rows::new(version, sticky_field)?;
            reader.array(|reader| rows.record(reader))?;
            Ok(rows.take(reader.room())?.inputs)
        }
        _ => Ok(vec![read_single(reader, inputs)?]),
    }
}

/// Reads `inputs`: a value of the one input, or an object by input names. Errors: invalid argument naming the input.
pub(crate) fn read_columns(reader: &mut Reader<'_>, version: &Version) -> Result<Vec<Tensor>, Error> {
    let inputs = &version.report.signature.inputs;
    if reader.peek() != Some(b'{') {
        return Ok(vec![read_single(reader, inputs)?]);
    }
    let mut tensors: Vec<Tensor> = Vec::new();
    reader.object(|reader, key| {
        let spec = find(inputs, &key)?;
        if tensors.iter().any(|tensor| tensor.name() == spec.name) {
            return Err(Error::invalid(format!("input {key:?} is given twice")));
        }
        tensors.push(read_tensor(reader, spec)?);
        Ok(())
    })?;
    Ok(tensors)
}

fn read_single(reader: &mut Reader<'_>, inputs: &[TensorSpec]) -> Result<Tensor, Error> {
    let [spec] = inputs else {
        let names: Vec<_> = inputs.iter().map(|input| input.name.as_str()).collect();
        return Err(Error::invalid(format!("the model has the inputs {names:?}: name each value")));
    };
    read_tensor(reader, spec)
}

fn read_tensor(reader: &mut Reader<'_>, spec: &TensorSpec) -> Result<Tensor, Error> {
    let read = read_nested(reader, spec.dtype);
    let (shape, data) = read.map_err(|error| error.within(format_args!("input {:?}", spec.name)))?;
    Tensor::new(spec.name.clone(), spec.dtype, shape, data)
}

/// The text of `field` in the first row of `instances` or `dataframe_records`, or among the parameters, for a policy
/// that is sticky by it. Whatever is malformed is said by who decodes it.
pub(crate) fn sticky_value(body: &[u8], field: &str, room: &Room) -> Option<Vec<u8>> {
    let mut found = None;
    let read = Reader::new(body, room).object(|reader, key| {
        match &*key {
            "instances" | "dataframe_records" | "params" => {
                found = found.take().or(first_record_field(&mut reader.at(reader.position_now()), field));
            }
            _ => {}
        }
        reader.skip()
    });
    read.ok().and(found)
}

/// One input's rows so far.
#[derive(Default)]
struct Column {
    /// Of one row.
    shape: Option<Vec<u64>>,
    data: Vec<u8>,
    rows: u64,
}

fn read_objects(reader: &mut Reader<'_>, inputs: &[TensorSpec]) -> Result<Vec<Tensor>, Error> {
    let mut columns: HashMap<&str, Column> = HashMap::new();
    let (mut row, room) = (0_u64, reader.room());
    reader.array(|reader| {
        reader.object(|reader, key| {
            let spec = find(inputs, &key)?;
            let within = |error: Error| error.within(format_args!("instance {row}, input {key:?}"));
            let wrong = |why: &str| within(Error::invalid(why));
            let (shape, data) = read_nested(reader, spec.dtype).map_err(within)?;
            let column = columns.entry(spec.name.as_str()).or_default();
            if column.rows != row {
                return Err(wrong(if column.rows > row { "is given twice" } else { "was missing before" }));
            }
            if *column.shape.get_or_insert_with(|| shape.clone()) != shape {
                return Err(wrong(&format!("has shape {shape:?}, those before it another")));
            }
            room.reserve(&mut column.data, data.len())?;
            column.data.extend_from_slice(&data);
            room.give_back(data.len());
            column.rows += 1;
            Ok(())
        })?;
        row += 1;
        Ok(())
    })?;
    let mut tensors = Vec::new();
    for spec in inputs {
        let Some(column) = columns.remove(spec.name.as_str()) else { continue };
        if column.rows != row {
            return Err(Error::invalid(format!(
                "instance {}, input {:?}: is missing",
                column.rows, spec.name
            )));
        }
        let shape = std::iter::once(row).chain(column.shape.unwrap_or_default()).collect();
        tensors.push(Tensor::new(spec.name.clone(), spec.dtype, shape, room.finish(column.data))?);
    }
    Ok(tensors)
}

fn find<'a>(inputs: &'a [TensorSpec], name: &str) -> Result<&'a TensorSpec, Error> {
    let found = inputs.iter().find(|input| input.name == name);
    found.ok_or_else(|| Error::invalid(format!("input {name:?} is not in the signature")))
}

/// The first key of the first element of a list, if that is an object. What is malformed is said by who reads it.
fn first_key(reader: &Reader<'_>) -> Option<String> {
    let mut reader = reader.at(reader.position_now());
    let mut key = None;
    // Stops at the first key by failing on purpose.
    let stop = || Err(Error::invalid(""));
    drop(reader.array(|reader| {
        if reader.peek() != Some(b'{') {
            return stop();
        }
        drop(reader.object(|_, name| {
            key = Some(name.into_owned());
            stop()
        }));
        stop()
    }));
    key
}
