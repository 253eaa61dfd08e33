//! The manifest's first example, for people: what a form shows and a document quotes.

use modelhost_core::tensor::{Column, ColumnKind, Tensor};
use modelhost_core::version::Version;
use serde_json::Value;

use crate::json_tensor::write_nested;

/// One column's value in the example's first row, or one input's.
pub(crate) struct ExampleField {
    pub(crate) name: String,
    /// As a person types it; empty where it is missing.
    pub(crate) text: String,
    is_number: bool,
}

/// The first example's fields; `None` when the manifest has none.
pub(crate) fn fields(version: &Version) -> Option<Vec<ExampleField>> {
    let inputs = &version.package.examples.first()?.request.inputs;
    match version.report.signature.table() {
        Some(table) => {
            let (values, _) = inputs.first()?.data().as_chunks::<4>();
            let values = values.iter().map(|bytes| f32::from_le_bytes(*bytes));
            Some(table.columns.iter().zip(values).map(|(column, value)| of_column(column, value)).collect())
        }
        None => inputs.iter().map(of_input).collect(),
    }
}

fn of_column(column: &Column, value: f32) -> ExampleField {
    let (text, is_number) = match &column.kind {
        _ if value.is_nan() => (String::new(), false),
        ColumnKind::Numeric => (value.to_string(), true),
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a category's index")]
        ColumnKind::Categorical(values) => (values.get(value as usize).cloned().unwrap_or_default(), false),
    };
    ExampleField { name: column.name.clone(), text, is_number }
}

fn of_input(tensor: &Tensor) -> Option<ExampleField> {
    let mut out = Vec::new();
    write_nested(&mut out, tensor, None, false).ok()?;
    Some(ExampleField {
        name: tensor.name().to_owned(),
        text: String::from_utf8(out).ok()?,
        is_number: false,
    })
}

/// The fields as a JSON record: numbers as numbers, missing ones left out.
pub(crate) fn record(fields: &[ExampleField]) -> Value {
    let value = |field: &ExampleField| {
        let number = field.is_number.then(|| field.text.parse::<f64>().ok()).flatten();
        (field.name.clone(), number.map_or_else(|| Value::from(field.text.as_str()), Value::from))
    };
    Value::Object(fields.iter().filter(|field| !field.text.is_empty()).map(value).collect())
}
