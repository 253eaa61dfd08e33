//! The manifest's first example, for people: what a form shows and a document quotes.

use modelhost_core::budget::ByteBudget;
use modelhost_core::room::Room;
use modelhost_core::tensor::{Column, ColumnKind, DType, Tensor};
use modelhost_core::version::Version;
use serde_json::Value;

use crate::json_tensor::Writing;
use crate::out::Out;

/// Longest example that is shown, in bytes: a person reads it.
pub(crate) const MAX_EXAMPLE: usize = 16 << 10;

/// One column's value in the example's first row, or one input's.
pub(crate) struct ExampleField {
    pub(crate) name: String,
    /// As a person types it; empty where it is missing.
    pub(crate) text: String,
    is_number: bool,
    /// A column without a value.
    is_missing: bool,
}

/// The first example's fields; `None` when the manifest has none.
pub(crate) fn fields(version: &Version) -> Option<Vec<ExampleField>> {
    let inputs = &version.package.examples.first()?.request.inputs;
    match version.report.signature.table() {
        Some(table) => {
            let values = numbers(inputs.first()?);
            let columns = table.columns.iter().zip(values);
            Some(columns.map(|(column, (value, text))| of_column(column, value, text)).collect())
        }
        None => Some(inputs.iter().map(of_input).collect()),
    }
}

/// A tensor's numbers, and each as a person writes it.
fn numbers(tensor: &Tensor) -> Vec<(f64, String)> {
    if tensor.dtype() == DType::Fp64 {
        let (values, _) = tensor.data().as_chunks::<8>();
        let values = values.iter().map(|bytes| f64::from_le_bytes(*bytes));
        return values.map(|value| (value, value.to_string())).collect();
    }
    let (values, _) = tensor.data().as_chunks::<4>();
    let values = values.iter().map(|bytes| f32::from_le_bytes(*bytes));
    values.map(|value| (f64::from(value), value.to_string())).collect()
}

fn of_column(column: &Column, value: f64, text: String) -> ExampleField {
    let (text, is_number) = match &column.kind {
        _ if value.is_nan() => (String::new(), false),
        ColumnKind::Numeric => (text, true),
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a category's index")]
        ColumnKind::Categorical(values) => (values.get(value as usize).cloned().unwrap_or_default(), false),
    };
    ExampleField { name: column.name.clone(), text, is_number, is_missing: value.is_nan() }
}

/// An input that cannot be shown stays empty.
fn of_input(tensor: &Tensor) -> ExampleField {
    let text = written(tensor, false, MAX_EXAMPLE).unwrap_or_default();
    ExampleField { name: tensor.name().to_owned(), text, is_number: false, is_missing: false }
}

/// A tensor as JSON, or its first row; `None` when it has no such form, or one longer than `most`.
pub(crate) fn written(tensor: &Tensor, first_row: bool, most: usize) -> Option<String> {
    // A buffer is made twice as large each time.
    let room = Room::of(ByteBudget::new("what is shown", 2 * most as u64).charge());
    let (mut out, mut writing) = (Out::new(&room, 0), Writing::widened(tensor));
    let written = if first_row { writing.row(&mut out, false) } else { writing.nested(&mut out, false) };
    written.ok()?;
    String::from_utf8(out.finish().ok()?.to_vec()).ok().filter(|text| text.len() <= most)
}

/// The fields as a JSON record: numbers as numbers, missing ones as `null`; what cannot be shown is left out.
pub(crate) fn record(fields: &[ExampleField]) -> Value {
    let value = |field: &ExampleField| {
        let number = field.is_number.then(|| field.text.parse::<f64>().ok()).flatten();
        let text = || if field.is_missing { Value::Null } else { Value::from(field.text.as_str()) };
        (field.name.clone(), number.map_or_else(text, Value::from))
    };
    let shown = fields.iter().filter(|field| field.is_missing || !field.text.is_empty());
    Value::Object(shown.map(value).collect())
}
