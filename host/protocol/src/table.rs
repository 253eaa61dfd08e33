//! Rows of named columns on their way into the signature's table: shared by every dialect that has rows.

use std::collections::HashMap;
use std::fmt;

use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::infer::InferRequest;
use modelhost_core::room::Room;
use modelhost_core::tensor::{Categories, Column, ColumnKind, DType, Tensor, TensorSpec, element_count};
use modelhost_core::version::Version;

use crate::json::{Reader, write_string};
use crate::json_tensor::{Writing, read_float};
use crate::out::Out;

/// Rows collected for one request.
pub(crate) struct Rows<'a> {
    spec: &'a TensorSpec,
    /// One a column.
    rules: Vec<Rule>,
    by_name: HashMap<&'a str, usize>,
    /// May stand in a row beside the columns.
    sticky_field: Option<&'a str>,
    /// The row being read.
    row: Vec<Option<f64>>,
    data: Vec<u8>,
    /// Rows so far, those of earlier requests of the same stream included.
    count: u64,
    /// Rows of this request.
    rows: u64,
}

/// What the manifest allows of a column.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Rule {
    /// A row may leave it out altogether. Who forgets a column, or misspells it, is told elsewhere.
    pub(crate) may_be_absent: bool,
    unknown_is_missing: bool,
}

/// Where a value of a row belongs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Field {
    Column(usize),
    /// The policy's sticky field: no column, and not read here.
    Sticky,
}

impl<'a> Rows<'a> {
    /// Errors: invalid argument, when the version's input is no table.
    pub(crate) fn new(version: &'a Version, sticky_field: Option<&'a str>) -> Result<Self, Error> {
        let spec = table(version).ok_or_else(|| {
            let model = &version.model;
            let text =
                format!("model {model} takes tensors, not rows of columns: call /v2/models/{model}/infer");
            Error::invalid(text)
        })?;
        let by_name =
            spec.columns.iter().enumerate().map(|(at, column)| (column.name.as_str(), at)).collect();
        let row = vec![None; spec.columns.len()];
        Ok(Self {
            spec,
            rules: rules(version, spec),
            by_name,
            sticky_field,
            row,
            data: Vec::new(),
            count: 0,
            rows: 0,
        })
    }

    /// The table's columns.
    pub(crate) fn columns(&self) -> &'a [Column] {
        &self.spec.columns
    }

    /// Where a field of this name belongs. Errors: invalid argument, when it is no column.
    pub(crate) fn field(&self, name: &str) -> Result<Field, Error> {
        match self.by_name.get(name) {
            Some(at) => Ok(Field::Column(*at)),
            None if self.sticky_field == Some(name) => Ok(Field::Sticky),
            None => Err(Error::invalid(format!("field {name:?}: is not a column of this model"))),
        }
    }

    /// Reads one JSON object as a row. Errors: invalid argument naming record and field; resource exhausted.
    pub(crate) fn record(&mut self, reader: &mut Reader<'_>) -> Result<(), Error> {
        reader.object(|reader, key| match self.field(&key).map_err(|error| self.in_row(error))? {
            Field::Column(at) => self.json(reader, at),
            Field::Sticky => reader.skip(),
        })?;
        self.end_row(reader.room())
    }

    /// Reads one JSON value of the row. Errors: invalid argument naming record and field.
    pub(crate) fn json(&mut self, reader: &mut Reader<'_>, at: usize) -> Result<(), Error> {
        let Some(column) = self.columns().get(at) else { return reader.skip() };
        let value =
            read_value(reader, column, self.rule(at)).map_err(|error| self.in_field(&column.name, error))?;
        self.set(at, value)
    }

    /// Reads one value of the row as a person or a file writes it; empty is missing. Errors: invalid argument naming
    /// record and field.
    pub(crate) fn text(&mut self, text: &[u8], at: usize) -> Result<(), Error> {
        let Some(column) = self.columns().get(at) else { return Ok(()) };
        let value =
            parse_value(text, column, self.rule(at)).map_err(|error| self.in_field(&column.name, error))?;
        self.set(at, value)
    }

    fn rule(&self, at: usize) -> Rule {
        self.rules.get(at).copied().unwrap_or_default()
    }

    fn set(&mut self, at: usize, value: f64) -> Result<(), Error> {
        let (Some(place), Some(column)) = (self.row.get_mut(at), self.spec.columns.get(at)) else {
            return Ok(());
        };
        let is_given = place.replace(value).is_some();
        if self.spec.dtype == DType::Fp32 && value.is_finite() && !to_single(value).is_finite() {
            return Err(
                self.in_field(&column.name, Error::invalid("the number is too large for its datatype"))
            );
        }
        if is_given { Err(self.in_field(&column.name, Error::invalid("is given twice"))) } else { Ok(()) }
    }

    /// Ends the row. Errors: invalid argument, naming the column that is missing and must not be; resource exhausted.
    pub(crate) fn end_row(&mut self, room: &Room) -> Result<(), Error> {
        room.reserve(
            &mut self.data,
            self.spec.columns.len() * self.spec.dtype.size().unwrap_or(size_of::<f64>()),
        )?;
        for (at, column) in self.columns().iter().enumerate() {
            let given = self.row.get_mut(at).and_then(Option::take);
            if given.is_none() && column.missing && !self.rule(at).may_be_absent {
                return Err(self.in_field(
                    &column.name,
                    Error::invalid("is missing: a row without a value says null, or nothing in CSV"),
                ));
            }
            let value = given.unwrap_or(f64::NAN);
            if value.is_nan() && !column.missing {
                return Err(self.in_field(&column.name, Error::invalid("is missing")));
            }
            match self.spec.dtype {
                DType::Fp64 => self.data.extend_from_slice(&value.to_le_bytes()),
                _ => self.data.extend_from_slice(&to_single(value).to_le_bytes()),
            }
        }
        self.count += 1;
        self.rows += 1;
        Ok(())
    }

    /// Rows of the request being collected.
    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    /// The rows collected so far, as a request; the next one begins.
    pub(crate) fn take(&mut self, room: &Room) -> Result<InferRequest, Error> {
        let shape = vec![std::mem::take(&mut self.rows), self.spec.columns.len() as u64];
        let data = room.finish(std::mem::take(&mut self.data));
        let input = Tensor::new(self.spec.name.clone(), self.spec.dtype, shape, data)?;
        Ok(InferRequest { inputs: vec![input], ..InferRequest::default() })
    }

    fn in_field(&self, name: &str, error: Error) -> Error {
        error.within(format_args!("record {}, field {name:?}", self.count))
    }

    /// Says which row it was.
    pub(crate) fn in_row(&self, error: Error) -> Error {
        error.within(format_args!("record {}", self.count))
    }
}

/// The version's input, where it is a table that rows can fill: of FP32 or FP64.
pub(crate) fn table(version: &Version) -> Option<&TensorSpec> {
    version.report.signature.table().filter(|table| matches!(table.dtype, DType::Fp32 | DType::Fp64))
}

/// The rules of the table's columns, from the manifest's columns of the same names.
pub(crate) fn rules(version: &Version, table: &TensorSpec) -> Vec<Rule> {
    let described = &version.package.columns;
    let of = |(at, column): (usize, &Column)| {
        // They usually stand in the same order.
        let same = described.get(at).filter(|described| described.name == column.name);
        let described = same.or_else(|| described.iter().find(|described| described.name == column.name));
        described.map_or_else(Rule::default, |described| Rule {
            may_be_absent: described.missing,
            unknown_is_missing: described.unknown_is_missing,
        })
    };
    table.columns.iter().enumerate().map(of).collect()
}

/// As the libraries do whose columns are FP32: the double is rounded.
#[expect(clippy::cast_possible_truncation, reason = "FP32 is what the signature says")]
fn to_single(value: f64) -> f32 {
    value as f32
}

fn read_value(reader: &mut Reader<'_>, column: &Column, rule: Rule) -> Result<f64, Error> {
    if reader.word("null") {
        return Ok(f64::NAN);
    }
    match &column.kind {
        ColumnKind::Numeric if reader.peek() == Some(b'"') => {
            Err(Error::invalid("a number is expected, a string came"))
        }
        ColumnKind::Numeric => read_float(reader),
        ColumnKind::Categorical(values) => {
            // Categories may be numbers or truth values in the training table.
            let text = match reader.peek() {
                Some(b'"') => reader.string()?,
                Some(b'-' | b'0'..=b'9') => reader.number()?.into(),
                Some(b't') if reader.word("true") => "true".into(),
                Some(b'f') if reader.word("false") => "false".into(),
                _ => return Err(Error::invalid(format!("one of {} is expected", Choices(values)))),
            };
            category(&text, values, rule)
        }
    }
}

fn parse_value(text: &[u8], column: &Column, rule: Rule) -> Result<f64, Error> {
    let text =
        std::str::from_utf8(text).map_err(|error| Error::invalid("is not UTF-8").because(error))?.trim();
    match &column.kind {
        _ if text.is_empty() => Ok(f64::NAN),
        ColumnKind::Numeric => {
            let number = fast_float2::parse(text);
            number.map_err(|error| {
                Error::invalid(format!("{:?} is not a number", excerpt(text))).because(error)
            })
        }
        ColumnKind::Categorical(values) => category(text, values, rule),
    }
}

/// What a message quotes of a text.
fn excerpt(text: &str) -> &str {
    text.get(..text.floor_char_boundary(256)).unwrap_or_default()
}

/// Prints `["car", "tv"]`, or the first of many.
struct Choices<'a>(&'a [String]);

impl fmt::Display for Choices<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 20;
        let first = self.0.iter().take(SHOWN).map(|text| excerpt(text));
        let more = (self.0.len() > SHOWN).then_some(format_args!("…"));
        f.debug_list().entries(first).entries(more).finish()
    }
}

fn category(text: &str, values: &Categories, rule: Rule) -> Result<f64, Error> {
    let index = values.index(text);
    if index.is_none() && rule.unknown_is_missing {
        return Ok(f64::NAN);
    }
    let index = index
        .ok_or_else(|| Error::invalid(format!("{:?} is not one of {}", excerpt(text), Choices(values))))?;
    #[expect(clippy::cast_precision_loss, reason = "a category's index is far below 2^24")]
    Ok(index as f64)
}

/// The text of `field` in the first of a list of records, or in a record that stands alone. Whatever is malformed is
/// said by who decodes it.
pub(crate) fn first_record_field(reader: &mut Reader<'_>, field: &str) -> Option<Vec<u8>> {
    let mut found = None;
    let mut first = |reader: &mut Reader<'_>| {
        reader.object(|reader, key| {
            if key == field {
                found = Some(scalar(reader)?);
                return Ok(());
            }
            reader.skip()
        })
    };
    let mut taken = false;
    match reader.peek()? {
        b'{' => first(reader).ok()?,
        _ => reader
            .array(|reader| if std::mem::replace(&mut taken, true) { reader.skip() } else { first(reader) })
            .ok()?,
    }
    found
}

/// A string's or number's text.
fn scalar(reader: &mut Reader<'_>) -> Result<Vec<u8>, Error> {
    Ok(match reader.peek() {
        Some(b'"') => reader.text()?.into_bytes(),
        _ => {
            let number = reader.number()?;
            reader.room().take(number.len())?;
            number.as_bytes().to_vec()
        }
    })
}

/// One output's place in each row: how many elements, and whether they are a list.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Width {
    pub(crate) elements: usize,
    pub(crate) is_list: bool,
}

/// How many rows the outputs have and how wide each is in a row. Errors: plugin fault, when one has another number of
/// rows.
pub(crate) fn widths(outputs: &[Tensor]) -> Result<(usize, Vec<Width>), Error> {
    let rows = outputs.first().and_then(|output| output.shape().first().copied()).unwrap_or(0);
    let mut widths = Vec::with_capacity(outputs.len());
    for output in outputs {
        let (first, rest) = output.shape().split_first().unwrap_or((&0, &[]));
        if *first != rows {
            let text = format!("output {:?} has {first} rows where {rows} are expected", output.name());
            return Err(Error::new(ErrorCode::PluginFault, text));
        }
        let elements = element_count(rest).and_then(|width| usize::try_from(width).ok()).unwrap_or(0);
        widths.push(Width { elements, is_list: !rest.is_empty() });
    }
    Ok((usize::try_from(rows).unwrap_or(0), widths))
}

/// Writes `[{…}, …]`: one JSON object a row, named by outputs; non-finite numbers as `null`.
/// Errors: as [`widths`]; unsupported, when an output has no JSON form; resource exhausted.
pub(crate) fn write_records(out: &mut Out<'_>, outputs: &[Tensor]) -> Result<(), Error> {
    let (rows, widths) = widths(outputs)?;
    let mut outputs = outputs
        .iter()
        .zip(widths)
        .map(|(output, width)| Ok((output.name(), width, Writing::of(output)?)))
        .collect::<Result<Vec<_>, Error>>()?;
    out.push(b'[');
    for row in 0..rows {
        out.check()?;
        out.extend_from_slice(if row == 0 { b"{" } else { b",{" });
        for (at, (name, width, values)) in outputs.iter_mut().enumerate() {
            if at > 0 {
                out.push(b',');
            }
            write_string(out, name);
            out.extend_from_slice(if width.is_list { b":[" } else { b":" });
            values.elements(out, width.elements, "null")?;
            if width.is_list {
                out.push(b']');
            }
        }
        out.push(b'}');
    }
    out.push(b']');
    Ok(())
}
