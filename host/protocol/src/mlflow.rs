//! MLflow's scoring protocol: `POST /invocations` with one of four JSON forms or CSV.
//!
//! Source: mlflow/mlflow, mlflow/pyfunc/scoring_server/__init__.py. Predictions go out as records, one object a row.

use bytes::Bytes;
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::infer::{InferRequest, Parameter};
use modelhost_core::room::Room;
use modelhost_core::tensor::Tensor;
use modelhost_core::version::Version;
use serde_json::{Value, json};

use crate::json::Reader;
use crate::json_named::{read_columns, read_instances, sticky_value};
use crate::out::Out;
use crate::table::{Field, Rows, write_records};

/// What a body holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `application/json`.
    Json,
    /// `text/csv`.
    Csv,
}

impl Format {
    /// Reads a `Content-Type`. Errors: unsupported format: another type, another charset than UTF-8, an unknown
    /// parameter.
    pub fn of(content_type: Option<&str>) -> Result<Self, Error> {
        let wrong = |why: String| Error::new(ErrorCode::UnsupportedFormat, why);
        let content_type = content_type.ok_or_else(|| {
            wrong("Content-Type is missing: application/json or text/csv is read".to_owned())
        })?;
        let (kind, parameters) = content_type.split_once(';').unwrap_or((content_type, ""));
        for parameter in parameters.split(';').map(str::trim).filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let utf8 = value.trim_matches('"').eq_ignore_ascii_case("utf-8");
            if !name.eq_ignore_ascii_case("charset") || !utf8 {
                return Err(wrong(format!("Content-Type: parameter {parameter:?} is not charset=utf-8")));
            }
        }
        match kind.trim().to_ascii_lowercase().as_str() {
            "application/json" => Ok(Self::Json),
            "text/csv" => Ok(Self::Csv),
            other => Err(wrong(format!("Content-Type {other:?} is not application/json or text/csv"))),
        }
    }
}

/// Reads the JSON forms. Errors: invalid argument naming what is malformed, when not exactly one of them is there, for
/// the form of language models, and for tables where the model takes tensors; resource exhausted.
pub fn decode(
    body: &Bytes,
    version: &Version,
    sticky_field: Option<&str>,
    room: &Room,
) -> Result<InferRequest, Error> {
    let mut reader = Reader::new(body, room);
    let (mut inputs, mut parameters): (Option<Vec<Tensor>>, _) = (None, Vec::new());
    reader.object(|reader, key| {
        let read = match &*key {
            "dataframe_split" => read_split(reader, version, sticky_field)?,
            "dataframe_records" => {
                let mut rows = Rows::new(version, sticky_field)?;
                reader.array(|reader| rows.record(reader))?;
                rows.take(room)?.inputs
            }
            "instances" => read_instances(reader, version, sticky_field)?,
            "inputs" => read_columns(reader, version)?,
            "params" => {
                parameters = read_params(reader)?;
                return Ok(());
            }
            "messages" | "prompt" | "input" => {
                let text = format!("{key:?} is for language models; this model takes a table or tensors");
                return Err(Error::invalid(text));
            }
            _ => return Err(Error::invalid(format!("{key:?} is not one of {FORMS}"))),
        };
        match inputs.replace(read) {
            None => Ok(()),
            Some(_) => Err(Error::invalid(format!("body: more than one of {FORMS}"))),
        }
    })?;
    reader.finish()?;
    let inputs = inputs.ok_or_else(|| Error::invalid(format!("body: none of {FORMS}")))?;
    Ok(InferRequest { inputs, parameters, ..InferRequest::default() })
}

const FORMS: &str = "\"dataframe_split\", \"dataframe_records\", \"instances\" and \"inputs\"";

/// `{"columns": […], "data": [[…], …]}`; `index` is passed over. Without columns the values stand in the signature's
/// order.
fn read_split(
    reader: &mut Reader<'_>,
    version: &Version,
    sticky_field: Option<&str>,
) -> Result<Vec<Tensor>, Error> {
    let mut rows = Rows::new(version, sticky_field)?;
    let (mut columns, mut data): (Option<Vec<Field>>, _) = (None, None);
    reader.object(|reader, key| match &*key {
        "columns" => {
            let mut fields = Vec::new();
            reader.array(|reader| {
                let name = reader.name()?;
                let field = rows.field(&name)?;
                if fields.contains(&field) {
                    return Err(Error::invalid(format!("field {name:?} stands twice in \"columns\"")));
                }
                fields.push(field);
                Ok(())
            })?;
            columns = Some(fields);
            Ok(())
        }
        "data" => {
            // The columns may come after it.
            data = Some(reader.position());
            reader.skip()
        }
        _ => reader.skip(),
    })?;
    let data = data.ok_or_else(|| Error::invalid("\"dataframe_split\" has no \"data\""))?;
    let columns = columns.unwrap_or_else(|| (0..rows.columns().len()).map(Field::Column).collect());
    reader.at(data).array(|reader| {
        let mut at = 0;
        reader.array(|reader| {
            let field = columns.get(at);
            at += 1;
            match field {
                Some(Field::Column(at)) => rows.json(reader, *at),
                Some(Field::Sticky) => reader.skip(),
                None => Err(rows.in_row(Error::invalid(format!("has more than {} values", columns.len())))),
            }
        })?;
        if at < columns.len() {
            return Err(rows.in_row(Error::invalid(format!("has {at} of {} values", columns.len()))));
        }
        rows.end_row(reader.room())
    })?;
    Ok(rows.take(reader.room())?.inputs)
}

fn read_params(reader: &mut Reader<'_>) -> Result<Vec<(String, Parameter)>, Error> {
    if reader.word("null") {
        return Ok(Vec::new());
    }
    reader.parameters()
}

/// Writes `{"predictions": [{…}, …]}`. Errors: plugin fault, when outputs have different numbers of rows; resource
/// exhausted.
pub fn encode(outputs: &[Tensor], room: &Room) -> Result<Bytes, Error> {
    let mut out = Out::new(room, 128);
    out.extend_from_slice(b"{\"predictions\":");
    write_records(&mut out, outputs)?;
    out.push(b'}');
    out.finish()
}

/// A failure's body, by MLflow's keys.
pub fn error(error: &Error) -> Value {
    let code = match error.code {
        ErrorCode::InvalidArgument | ErrorCode::TooLarge | ErrorCode::UnsupportedFormat => "BAD_REQUEST",
        ErrorCode::PermissionDenied => "PERMISSION_DENIED",
        ErrorCode::NotFound => "RESOURCE_DOES_NOT_EXIST",
        ErrorCode::ResourceExhausted => "REQUEST_LIMIT_EXCEEDED",
        ErrorCode::Unavailable => "TEMPORARILY_UNAVAILABLE",
        ErrorCode::DeadlineExceeded => "DEADLINE_EXCEEDED",
        ErrorCode::Unsupported => "NOT_IMPLEMENTED",
        ErrorCode::Conflict | ErrorCode::PluginFault | ErrorCode::Internal => "INTERNAL_ERROR",
    };
    json!({"error_code": code, "message": error.message, "error": error.message, "code": error.code.as_str()})
}

/// The value that a policy which is sticky by `field` goes by: of the first row, or of a parameter.
pub fn first_field(body: &[u8], field: &str, room: &Room) -> Option<Vec<u8>> {
    sticky_value(body, field, room)
}

#[cfg(test)]
mod tests;
