//! CSV rows in and out, piece by piece: a file of any length passes through the memory of a few pieces.
//!
//! Source: RFC 4180, with a header line, UTF-8. An empty field is a missing value. Columns may stand in any order.

use std::borrow::Cow;

use bytes::Bytes;
use csv_core::{ReadFieldResult, Reader};
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::infer::InferRequest;
use modelhost_core::room::Room;
use modelhost_core::tensor::{DType, Tensor};
use modelhost_core::version::Version;

use crate::json_tensor::Writing;
use crate::out::Out;
use crate::table::{Field, Rows, widths};

/// Longest field.
const MAX_FIELD: usize = 64 << 10;

/// Turns pieces of a file into requests.
pub struct Decoder<'a> {
    rows: Rows<'a>,
    reader: Reader,
    /// The header's fields, in its order.
    header: Vec<Field>,
    /// The field being read.
    field: Vec<u8>,
    /// Its place in the line.
    at: usize,
    in_header: bool,
    started: bool,
}

impl<'a> Decoder<'a> {
    /// `sticky_field` may stand in the header beside the columns. Errors: invalid argument, when the model's input is
    /// no table.
    pub fn new(version: &'a Version, sticky_field: Option<&'a str>) -> Result<Self, Error> {
        let rows = Rows::new(version, sticky_field)?;
        Ok(Self {
            rows,
            reader: Reader::new(),
            header: Vec::new(),
            field: Vec::new(),
            at: 0,
            in_header: true,
            started: false,
        })
    }

    /// Reads the next piece of the file; an empty one ends it. Errors: invalid argument naming record and field;
    /// resource exhausted.
    pub fn feed(&mut self, piece: &[u8], room: &Room) -> Result<(), Error> {
        let ends = piece.is_empty();
        // The reader drops a byte order mark only if it comes whole: it never does, and the header's first name is
        // trimmed instead.
        let first = if std::mem::replace(&mut self.started, true) { 0 } else { 1 };
        let (first, rest) = piece.split_at_checked(first).unwrap_or((piece, &[]));
        self.read(first, ends, room)?;
        self.read(rest, ends, room)
    }

    fn read(&mut self, mut piece: &[u8], ends: bool, room: &Room) -> Result<(), Error> {
        let mut buffer = [0; 256];
        loop {
            // The reader takes an empty piece for the end of the file.
            if piece.is_empty() && !ends {
                return Ok(());
            }
            let (result, read, written) = self.reader.read_field(piece, &mut buffer);
            piece = piece.get(read..).unwrap_or_default();
            self.field.extend_from_slice(buffer.get(..written).unwrap_or_default());
            if self.field.len() > MAX_FIELD {
                let error = Error::invalid(format!("a field is longer than {MAX_FIELD} bytes"));
                return Err(self.rows.in_row(error));
            }
            match result {
                ReadFieldResult::InputEmpty | ReadFieldResult::OutputFull => {}
                ReadFieldResult::Field { record_end } => self.end_field(record_end, room)?,
                ReadFieldResult::End => return Ok(()),
            }
        }
    }

    fn end_field(&mut self, record_end: bool, room: &Room) -> Result<(), Error> {
        if self.in_header {
            let name = String::from_utf8_lossy(&self.field);
            // A byte order mark is what spreadsheets write first.
            let name = name.trim_start_matches('\u{feff}').trim();
            let field = self.rows.field(name)?;
            if self.header.contains(&field) {
                return Err(Error::invalid(format!("field {name:?} stands twice in the header")));
            }
            self.header.push(field);
            self.in_header = !record_end;
        } else {
            match self.header.get(self.at) {
                Some(Field::Column(at)) => self.rows.text(&self.field, *at)?,
                Some(Field::Sticky) => {}
                None => {
                    let error = Error::invalid(format!("has more than {} fields", self.header.len()));
                    return Err(self.rows.in_row(error));
                }
            }
            self.at += 1;
            if record_end {
                if self.at < self.header.len() {
                    let error = Error::invalid(format!("has {} of {} fields", self.at, self.header.len()));
                    return Err(self.rows.in_row(error));
                }
                self.rows.end_row(room)?;
                self.at = 0;
            }
        }
        self.field.clear();
        Ok(())
    }

    /// The rows read since the last call, as a request; `None` when there are none. Errors: as a tensor's.
    pub fn take(&mut self, room: &Room) -> Result<Option<InferRequest>, Error> {
        if self.rows.rows() == 0 { Ok(None) } else { self.rows.take(room).map(Some) }
    }
}

/// Reads a whole file as one request. Errors: as [`Decoder::feed`]; invalid argument, when it has no rows.
pub fn decode(
    file: &[u8],
    version: &Version,
    sticky_field: Option<&str>,
    room: &Room,
) -> Result<InferRequest, Error> {
    let mut decoder = Decoder::new(version, sticky_field)?;
    decoder.feed(file, room)?;
    decoder.feed(&[], room)?;
    decoder.take(room)?.ok_or_else(|| Error::invalid("body: a CSV file without rows"))
}

/// The text of `field` in the first record of what is there of a file, for a policy that is sticky by it.
pub fn first_field(start: &[u8], field: &str) -> Option<Vec<u8>> {
    let mut reader = Reader::new();
    let (mut rest, mut value, mut buffer) = (start, Vec::new(), [0; 256]);
    let (mut in_header, mut place, mut at) = (true, None, 0);
    loop {
        let (result, read, written) = reader.read_field(rest, &mut buffer);
        rest = rest.get(read..)?;
        value.extend_from_slice(buffer.get(..written)?);
        if value.len() > MAX_FIELD {
            return None; // whoever decodes it says so
        }
        match result {
            ReadFieldResult::Field { record_end } => {
                if in_header && value == field.as_bytes() {
                    place = Some(at);
                } else if !in_header && place == Some(at) {
                    return Some(value);
                }
                if record_end && !in_header {
                    return None;
                }
                at = if record_end { 0 } else { at + 1 };
                in_header &= !record_end;
                value.clear();
            }
            ReadFieldResult::InputEmpty if rest.is_empty() => return None,
            ReadFieldResult::InputEmpty | ReadFieldResult::OutputFull => {}
            ReadFieldResult::End => return None,
        }
    }
}

/// Writes the rows of a response, after a header line if `header`. A NaN is empty; an output of several values a row
/// has a column for each. Errors: plugin fault, when outputs have different numbers of rows; unsupported, for FP16 and
/// BF16; resource exhausted.
pub fn encode(version: &Version, outputs: &[Tensor], header: bool, room: &Room) -> Result<Bytes, Error> {
    let (rows, widths) = widths(outputs)?;
    let values: usize = widths.iter().map(|width| width.elements).sum();
    let mut out = Out::new(room, rows.saturating_mul(values).saturating_mul(12).saturating_add(64));
    if header {
        let names = outputs.iter().zip(&widths).flat_map(|(output, width)| {
            let spec = version.report.signature.outputs.iter().find(|spec| spec.name == output.name());
            let columns = spec.map_or(&[][..], |spec| &spec.columns);
            (0..width.elements).map(move |at| match columns.get(at) {
                Some(column) => Cow::Borrowed(column.name.as_str()),
                None if width.is_list => Cow::Owned(format!("{}_{at}", output.name())),
                None => Cow::Borrowed(output.name()),
            })
        });
        for (at, name) in names.enumerate() {
            out.check()?;
            separate(&mut out, at);
            write_field(&mut out, name.as_bytes());
        }
        out.extend_from_slice(b"\n");
    }
    let no_form = |output: &Tensor, error: Error| {
        let text = format!("output {:?} has a datatype without a CSV form", output.name());
        Error::new(ErrorCode::Unsupported, text).because(error)
    };
    let mut outputs = outputs
        .iter()
        .zip(widths)
        .map(|(output, width)| {
            let values = Writing::of(output).map_err(|error| no_form(output, error))?;
            Ok((output.dtype() == DType::Bytes, width, values))
        })
        .collect::<Result<Vec<_>, Error>>()?;
    for _ in 0..rows {
        out.check()?;
        let mut at = 0;
        for (is_text, width, values) in &mut outputs {
            for _ in 0..width.elements {
                separate(&mut out, at);
                at += 1;
                match is_text {
                    true => write_field(&mut out, values.text()),
                    false => values.elements(&mut out, 1, "")?,
                }
            }
        }
        out.extend_from_slice(b"\n");
    }
    out.finish()
}

fn separate(out: &mut Out<'_>, at: usize) {
    if at > 0 {
        out.push(b',');
    }
}

/// Quoted where it must be.
fn write_field(out: &mut Out<'_>, field: &[u8]) {
    if !field.iter().any(|byte| matches!(byte, b',' | b'"' | b'\n' | b'\r')) {
        return out.extend_from_slice(field);
    }
    out.push(b'"');
    for byte in field {
        if *byte == b'"' {
            out.push(b'"');
        }
        out.push(*byte);
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests;
