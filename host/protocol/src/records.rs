//! The short form: `POST /models/{prefix}/{name}/` with JSON records, mapped to columns by the signature's names.
//!
//! In: `[{"age": 40, "purpose": "car"}, …]`, or one record alone. Out: `{"model", "version", "predictions": [{…}, …]}`, one
//! object a row, non-finite numbers as `null`.

use std::borrow::Cow;
use std::collections::HashMap;

use modelhost_core::deployment::Version;
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::infer::InferRequest;
use modelhost_core::tensor::{Column, ColumnKind, DType, Tensor, element_count};

use crate::json::{Reader, write_string};
use crate::json_tensor;

/// Reads records into the signature's table. `sticky_field` may stand in a record beside the columns.
/// Errors: invalid argument naming record and field: unknown, missing, given twice, no number, no such category;
/// unsupported when the model's input is no table.
pub fn decode(body: &[u8], version: &Version, sticky_field: Option<&str>) -> Result<InferRequest, Error> {
    let table =
        version.report.signature.table().filter(|table| table.dtype == DType::Fp32).ok_or_else(|| {
            let model = &version.model;
            Error::new(
                ErrorCode::Unsupported,
                format!("model {model} takes tensors, not records: call /v2/models/{model}/infer"),
            )
        })?;
    let columns: HashMap<&str, usize> =
        table.columns.iter().enumerate().map(|(at, column)| (column.name.as_str(), at)).collect();
    let mut rows =
        Rows { columns: &table.columns, by_name: columns, sticky_field, data: Vec::new(), count: 0 };
    let mut reader = Reader::new(body);
    match reader.peek() {
        Some(b'{') => rows.read(&mut reader)?,
        _ => reader.array(|reader| rows.read(reader))?,
    }
    reader.finish()?;
    let shape = vec![rows.count, table.columns.len() as u64];
    let input = Tensor::new(table.name.clone(), DType::Fp32, shape, rows.data.into())?;
    Ok(InferRequest { inputs: vec![input], ..InferRequest::default() })
}

/// The text of `field` in the first record, for a policy that is sticky by it.
pub fn first_field(body: &[u8], field: &str) -> Option<Vec<u8>> {
    let mut reader = Reader::new(body);
    let mut found = None;
    let mut first = |reader: &mut Reader<'_>| {
        reader.object(|reader, key| {
            if key != field {
                return reader.skip();
            }
            let text = match reader.peek() {
                Some(b'"') => reader.string()?,
                _ => Cow::Borrowed(reader.number()?),
            };
            found = Some(text.into_owned().into_bytes());
            Ok(())
        })
    };
    // Whatever is wrong with the body is said by `decode`.
    match reader.peek()? {
        b'{' => first(&mut reader).ok()?,
        _ => {
            let mut taken = false;
            reader
                .array(
                    |reader| if std::mem::replace(&mut taken, true) { reader.skip() } else { first(reader) },
                )
                .ok()?;
        }
    }
    found
}

struct Rows<'a> {
    columns: &'a [Column],
    by_name: HashMap<&'a str, usize>,
    sticky_field: Option<&'a str>,
    data: Vec<u8>,
    count: u64,
}

impl Rows<'_> {
    fn read(&mut self, reader: &mut Reader<'_>) -> Result<(), Error> {
        let number = self.count;
        let wrong =
            |field: &str, why: &str| Error::invalid(format!("record {number}, field {field:?}: {why}"));
        let mut row: Vec<Option<f32>> = vec![None; self.columns.len()];
        reader.object(|reader, key| {
            let Some((at, column)) =
                self.by_name.get(&*key).and_then(|at| Some((*at, self.columns.get(*at)?)))
            else {
                if self.sticky_field == Some(&*key) {
                    return reader.skip();
                }
                return Err(wrong(&key, "is not a column of this model"));
            };
            let value = read_value(reader, column).map_err(|error| wrong(&key, &error.message))?;
            match row.get_mut(at) {
                Some(Some(_)) => Err(wrong(&key, "is given twice")),
                Some(place) => {
                    *place = Some(value);
                    Ok(())
                }
                None => Ok(()),
            }
        })?;
        for (column, value) in self.columns.iter().zip(row) {
            let value = value.unwrap_or(f32::NAN);
            if value.is_nan() && !column.missing {
                return Err(wrong(&column.name, "is missing"));
            }
            self.data.extend_from_slice(&value.to_le_bytes());
        }
        self.count += 1;
        Ok(())
    }
}

fn read_value(reader: &mut Reader<'_>, column: &Column) -> Result<f32, Error> {
    if reader.word("null") {
        return Ok(f32::NAN);
    }
    match &column.kind {
        ColumnKind::Numeric if reader.peek() == Some(b'"') => {
            Err(Error::invalid("a number is expected, a string came"))
        }
        ColumnKind::Numeric => json_tensor::read_float(reader),
        ColumnKind::Categorical(values) => {
            if reader.peek() != Some(b'"') {
                return Err(Error::invalid(format!("one of {values:?} is expected")));
            }
            let text = reader.string()?;
            let index = values.iter().position(|value| *value == text);
            let index = index.ok_or_else(|| Error::invalid(format!("{text:?} is not one of {values:?}")))?;
            #[expect(clippy::cast_precision_loss, reason = "a category's index is far below 2^24")]
            Ok(index as f32)
        }
    }
}

/// Writes predictions, one object a row. Errors: plugin fault when an output has another number of rows;
/// unsupported when it has no JSON form.
pub fn encode(version: &Version, outputs: &[Tensor]) -> Result<Vec<u8>, Error> {
    let rows = outputs.first().and_then(|output| output.shape().first().copied()).unwrap_or(0);
    let mut widths = Vec::with_capacity(outputs.len());
    for output in outputs {
        let (first, rest) = output.shape().split_first().unwrap_or((&0, &[]));
        if *first != rows {
            let text = format!("output {:?} has {first} rows where {rows} are expected", output.name());
            return Err(Error::new(ErrorCode::PluginFault, text));
        }
        let width = element_count(rest).and_then(|width| usize::try_from(width).ok()).unwrap_or(0);
        widths.push((width, !rest.is_empty()));
    }
    let mut out = Vec::with_capacity(128);
    out.extend_from_slice(b"{\"model\":");
    write_string(&mut out, version.model.as_str());
    out.extend_from_slice(b",\"version\":");
    out.extend_from_slice(itoa::Buffer::new().format(version.number.get()).as_bytes());
    out.extend_from_slice(b",\"predictions\":[");
    for row in 0..usize::try_from(rows).unwrap_or(0) {
        out.extend_from_slice(if row == 0 { b"{" } else { b",{" });
        for (at, (output, (width, is_list))) in outputs.iter().zip(&widths).enumerate() {
            if at > 0 {
                out.push(b',');
            }
            write_string(&mut out, output.name());
            out.extend_from_slice(if *is_list { b":[" } else { b":" });
            json_tensor::write_elements(&mut out, output, row * width, *width, "null")?;
            if *is_list {
                out.push(b']');
            }
        }
        out.push(b'}');
    }
    out.extend_from_slice(b"]}");
    Ok(out)
}

#[cfg(test)]
mod tests;
