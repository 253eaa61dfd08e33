//! The short form: `POST /models/{prefix}/{name}/` with JSON records, mapped to columns by the signature's names.
//!
//! In: `[{"age": 40, "purpose": "car"}, …]`, or one record alone. Out: `{"model", "version", "predictions": [{…}, …]}`,
//! one object a row, non-finite numbers as `null`.

use bytes::Bytes;
use modelhost_core::error::Error;
use modelhost_core::infer::InferRequest;
use modelhost_core::room::Room;
use modelhost_core::tensor::Tensor;
use modelhost_core::version::Version;

use crate::json::{Reader, write_int, write_string};
use crate::out::Out;
use crate::table::{Rows, first_record_field, write_records};

/// Reads records into the signature's table. `sticky_field` may stand in a record beside the columns. Errors: invalid
/// argument naming record and field: unknown, missing, given twice, no number, no such category; or the model's input
/// is no table; resource exhausted.
pub fn decode(
    body: &[u8],
    version: &Version,
    sticky_field: Option<&str>,
    room: &Room,
) -> Result<InferRequest, Error> {
    let mut rows = Rows::new(version, sticky_field)?;
    let mut reader = Reader::new(body, room);
    match reader.peek() {
        Some(b'{') => rows.record(&mut reader)?,
        _ => reader.array(|reader| rows.record(reader))?,
    }
    reader.finish()?;
    rows.take(room)
}

/// The text of `field` in the first record, for a policy that is sticky by it.
pub fn first_field(body: &[u8], field: &str, room: &Room) -> Option<Vec<u8>> {
    first_record_field(&mut Reader::new(body, room), field)
}

/// Writes predictions, one object a row. Errors: plugin fault when an output has another number of rows;
/// unsupported when it has no JSON form; resource exhausted.
pub fn encode(version: &Version, outputs: &[Tensor], room: &Room) -> Result<Bytes, Error> {
    let mut out = Out::new(room, 128);
    out.extend_from_slice(b"{\"model\":");
    write_string(&mut out, version.model.as_str());
    out.extend_from_slice(b",\"version\":");
    write_int(&mut out, version.number.get());
    out.extend_from_slice(b",\"predictions\":");
    write_records(&mut out, outputs)?;
    out.push(b'}');
    out.finish()
}

#[cfg(test)]
mod tests;
