//! A model's OpenAPI 3.1 document, made from its signature: the short URL, TF Serving's predict, MLflow's invocations
//! and the Open Inference Protocol.

use modelhost_core::tensor::{Column, ColumnKind, DType, MAX_RANK, TensorSpec};
use modelhost_core::version::{Model, Version};
use serde_json::{Map, Value, json};

use crate::example;

/// The document of one model, as `version` takes and gives; paths without a version go by the model's policy.
pub fn document(model: &Model, version: &Version) -> Value {
    let name = model.name.as_str();
    let signature = &version.report.signature;
    let mut paths = Map::new();
    let mut add = |path: String, method: &str, operation: Value| {
        let methods = paths.entry(path).or_insert_with(|| json!({}));
        if let Some(methods) = methods.as_object_mut() {
            methods.insert(method.to_owned(), operation);
        }
    };
    let mut page = read("The model's page", "page");
    if let Some(content) = page.pointer_mut("/responses/200/content") {
        *content = json!({"text/html": {"schema": {"type": "string"}}});
    }
    add(format!("/models/{name}/"), "get", page);
    if signature.table().is_some() {
        let rows = records_schema(version);
        let example = example::fields(version).map(|fields| json!([example::record(&fields)]));
        let mut json_body = json!({"schema": rows});
        if let (Some(example), Some(body)) = (example, json_body.as_object_mut()) {
            body.insert("example".into(), example);
        }
        let content = json!({"application/json": json_body, "text/csv": {"schema": {"type": "string"}}});
        let mut operation =
            predict("Predict rows", "predictRows", content, predictions_schema(signature, true));
        if let Some(ok) = operation.pointer_mut("/responses/200/content").and_then(Value::as_object_mut) {
            ok.insert("text/csv".into(), json!({"schema": {"type": "string"}}));
        }
        add(format!("/models/{name}/"), "post", operation);
        let invocations = json!({"application/json": {"schema": {
            "type": "object",
            "properties": {"dataframe_records": records_list(version)},
            "required": ["dataframe_records"],
            "additionalProperties": false,
        }}, "text/csv": {"schema": {"type": "string"}}});
        let operation = predict(
            "MLflow's scoring protocol",
            "invocations",
            invocations,
            predictions_schema(signature, false),
        );
        add(format!("/models/{name}/invocations"), "post", operation);
    }
    let v1 = json!({"application/json": {"schema": instances_schema(version)}});
    let v1_out = json!({"type": "object", "properties": {"predictions": {}, "outputs": {}}});
    add(
        format!("/v1/models/{name}:predict"),
        "post",
        predict("TF Serving's and KServe V1's predict", "v1Predict", v1, v1_out),
    );
    let infer = json!({"application/json": {"schema": infer_schema(&signature.inputs)}});
    let infer_out = response_schema(&signature.outputs);
    let mut operation = predict("Open Inference Protocol V2", "infer", infer, infer_out);
    if let Some(ok) = operation.pointer_mut("/responses/200/content").and_then(Value::as_object_mut) {
        ok.insert(
            "application/octet-stream".into(),
            json!({"schema": {"type": "string", "format": "binary"}}),
        );
    }
    add(format!("/v2/models/{name}/infer"), "post", operation);
    for (rest, summary, id) in [
        ("", "What the model takes and gives", "metadata"),
        ("/ready", "Whether it can answer", "ready"),
        ("/config", "Its configuration", "config"),
        ("/stats", "What its versions did", "stats"),
    ] {
        add(format!("/v2/models/{name}{rest}"), "get", read(summary, id));
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": name,
            "version": version.number.to_string(),
            "description": version.card.description,
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {"schemas": {"Error": {
            "type": "object",
            "properties": {"error": {"type": "string"}, "code": {"type": "string"}},
            "required": ["error"],
        }}},
    })
}

/// Statuses that any prediction may end with.
const FAILURES: [(&str, &str); 10] = [
    ("400", "The request is malformed or does not fit the signature"),
    ("404", "There is no such model or version"),
    ("405", "Another method"),
    ("413", "The body is larger than allowed"),
    ("415", "The body's type or coding is not read here"),
    ("500", "The host failed"),
    ("501", "The model or host does not do this"),
    ("502", "The model failed"),
    ("503", "No version is ready, or too many requests wait"),
    ("504", "The deadline passed"),
];

fn predict(summary: &str, id: &str, content: Value, schema: Value) -> Value {
    let mut responses = failures();
    responses.insert(
        "200".into(),
        json!({
            "description": "The predictions",
            "headers": {"modelhost-version": {"description": "The version that answered", "schema": {"type": "integer"}}},
            "content": {"application/json": {"schema": schema}},
        }),
    );
    json!({
        "summary": summary,
        "operationId": id,
        "requestBody": {"required": true, "content": content},
        "responses": responses,
    })
}

fn read(summary: &str, id: &str) -> Value {
    let mut responses = failures();
    responses.insert(
        "200".into(),
        json!({"description": summary, "content": {"application/json": {"schema": {"type": "object"}}}}),
    );
    json!({"summary": summary, "operationId": id, "responses": responses})
}

fn failures() -> Map<String, Value> {
    let failure = |(status, description): (&str, &str)| {
        let schema = json!({"schema": {"$ref": "#/components/schemas/Error"}});
        let content = if status == "415" {
            json!({"application/json": schema, "text/plain": {"schema": {"type": "string"}}})
        } else {
            json!({"application/json": schema})
        };
        (status.to_owned(), json!({"description": description, "content": content}))
    };
    FAILURES.into_iter().map(failure).collect()
}

/// One row or a list of rows.
fn records_schema(version: &Version) -> Value {
    json!({"anyOf": [records_list(version), record_schema(version)]})
}

fn records_list(version: &Version) -> Value {
    json!({"type": "array", "minItems": 1, "items": record_schema(version)})
}

fn record_schema(version: &Version) -> Value {
    let Some(table) = version.report.signature.table() else { return json!({"type": "object"}) };
    let columns = table.columns.iter();
    let properties: Map<_, _> =
        columns.clone().map(|column| (column.name.clone(), column_schema(column, table.dtype))).collect();
    let rules = columns.zip(crate::table::rules(version, table));
    let required: Vec<_> =
        rules.filter(|(_, rule)| !rule.may_be_absent).map(|(column, _)| &column.name).collect();
    json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
}

/// Ranges seen in training are told, not enforced; a number must fit the table's datatype.
fn column_schema(column: &Column, dtype: DType) -> Value {
    let range = match (column.minimum, column.maximum) {
        (Some(least), Some(most)) => Some(format!("{least} to {most} in training")),
        (Some(least), None) => Some(format!("from {least} in training")),
        (None, Some(most)) => Some(format!("up to {most} in training")),
        (None, None) => None,
    };
    let unit = column.unit.as_ref().map(|unit| format!("unit: {unit}"));
    let texts: Vec<_> = [column.description.clone(), unit, range].into_iter().flatten().collect();
    let mut schema = match &column.kind {
        ColumnKind::Numeric => {
            let types = if column.missing { json!(["number", "null"]) } else { json!("number") };
            match dtype {
                DType::Fp32 => json!({"type": types, "minimum": f32::MIN, "maximum": f32::MAX}),
                _ => json!({"type": types}),
            }
        }
        ColumnKind::Categorical(values) => {
            let null = column.missing.then_some(Value::Null);
            json!({"enum": values.iter().cloned().map(Value::from).chain(null).collect::<Vec<_>>()})
        }
    };
    if let (Some(schema), false) = (schema.as_object_mut(), texts.is_empty()) {
        schema.insert("description".into(), texts.join("; ").into());
    }
    schema
}

fn predictions_schema(signature: &modelhost_core::model::Signature, named: bool) -> Value {
    let value = |spec: &TensorSpec| {
        let element = json!({"type": element_types(spec.dtype, true)});
        if spec.shape.len() > 1 { json!({"type": "array", "items": element}) } else { element }
    };
    let outputs: Map<_, _> = signature.outputs.iter().map(|spec| (spec.name.clone(), value(spec))).collect();
    let rows = json!({"type": "array", "items": {"type": "object", "properties": outputs}});
    if named {
        json!({"type": "object", "properties": {
            "model": {"type": "string"}, "version": {"type": "integer"}, "predictions": rows,
        }, "required": ["model", "version", "predictions"]})
    } else {
        json!({"type": "object", "properties": {"predictions": rows}, "required": ["predictions"]})
    }
}

fn element_types(dtype: DType, or_null: bool) -> Vec<&'static str> {
    let name = match dtype {
        DType::Bool => "boolean",
        DType::Bytes => "string",
        DType::Fp16 | DType::Bf16 | DType::Fp32 | DType::Fp64 => "number",
        _ => "integer",
    };
    if or_null { vec![name, "null"] } else { vec![name] }
}

/// A value nested as deep as the tensor has dimensions, fixed lengths included. No deeper than a tensor can be,
/// whatever an older host registered.
fn nested_schema(dtype: DType, shape: &[Option<u64>]) -> Value {
    shape.iter().take(MAX_RANK).rev().fold(element_schema(dtype), |items, dim| match dim {
        None => json!({"type": "array", "items": items, "minItems": 1}),
        Some(dim) => json!({"type": "array", "items": items, "minItems": dim, "maxItems": dim}),
    })
}

fn element_schema(dtype: DType) -> Value {
    let integer = |least: i128, most: i128| {
        // Beyond 2^53 a JSON number is not exact everywhere.
        let bound = |value: i128| i64::try_from(value.clamp(-(1 << 53), 1 << 53)).unwrap_or_default();
        json!({"type": "integer", "minimum": bound(least), "maximum": bound(most)})
    };
    match dtype {
        DType::Bool => json!({"type": "boolean"}),
        DType::Bytes => json!({"type": "string"}),
        DType::Fp16 | DType::Bf16 | DType::Fp32 => {
            json!({"type": "number", "minimum": f32::MIN, "maximum": f32::MAX})
        }
        DType::Fp64 => json!({"type": "number"}),
        DType::Uint8 => integer(0, u8::MAX.into()),
        DType::Uint16 => integer(0, u16::MAX.into()),
        DType::Uint32 => integer(0, u32::MAX.into()),
        DType::Uint64 => integer(0, u64::MAX.into()),
        DType::Int8 => integer(i8::MIN.into(), i8::MAX.into()),
        DType::Int16 => integer(i16::MIN.into(), i16::MAX.into()),
        DType::Int32 => integer(i32::MIN.into(), i32::MAX.into()),
        DType::Int64 => integer(i64::MIN.into(), i64::MAX.into()),
    }
}

fn instances_schema(version: &Version) -> Value {
    let inputs = &version.report.signature.inputs;
    let row = |spec: &TensorSpec| nested_schema(spec.dtype, spec.shape.get(1..).unwrap_or_default());
    let named: Map<_, _> = inputs.iter().map(|spec| (spec.name.clone(), row(spec))).collect();
    let names: Vec<_> = inputs.iter().map(|spec| &spec.name).collect();
    let mut rows = vec![
        json!({"type": "object", "properties": named, "required": names, "additionalProperties": false}),
    ];
    if let [only] = inputs.as_slice() {
        rows.push(row(only));
    }
    if version.report.signature.table().is_some() {
        rows.push(record_schema(version));
    }
    let lists: Vec<_> =
        rows.into_iter().map(|row| json!({"type": "array", "items": row, "minItems": 1})).collect();
    json!({"type": "object", "properties": {"instances": {"anyOf": lists}}, "required": ["instances"]})
}

fn infer_schema(inputs: &[TensorSpec]) -> Value {
    let dim = |dim: &Option<u64>| {
        dim.map_or_else(|| json!({"type": "integer", "minimum": 0}), |dim| json!({"const": dim}))
    };
    let tensor = |spec: &TensorSpec| {
        json!({"type": "object", "properties": {
            "name": {"const": spec.name},
            "datatype": {"const": spec.dtype.as_str()},
            "shape": {"type": "array", "prefixItems": spec.shape.iter().map(dim).collect::<Vec<_>>(), "items": false, "minItems": spec.shape.len(), "maxItems": spec.shape.len()},
            "data": {"type": "array", "items": {}},
        }, "required": ["name", "datatype", "shape", "data"]})
    };
    json!({"type": "object", "properties": {
        "id": {"type": "string"},
        "parameters": {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}},
        "inputs": {"type": "array", "prefixItems": inputs.iter().map(tensor).collect::<Vec<_>>(),
            "items": false, "minItems": inputs.len(), "maxItems": inputs.len()},
    }, "required": ["inputs"]})
}

fn response_schema(outputs: &[TensorSpec]) -> Value {
    json!({"type": "object", "properties": {
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
        "id": {"type": "string"},
        "outputs": {"type": "array", "maxItems": outputs.len(), "items": {"type": "object", "properties": {
            "name": {"enum": outputs.iter().map(|spec| &spec.name).collect::<Vec<_>>()},
            "datatype": {"type": "string"},
            "shape": {"type": "array", "items": {"type": "integer"}},
        }, "required": ["name", "datatype", "shape"]}},
    }, "required": ["model_name", "model_version", "outputs"]})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{version, with_inputs};

    fn model(version: &Version) -> Model {
        Model::new(version.model.clone())
    }

    #[test]
    fn a_table_has_rows_with_its_columns() {
        let version = version();
        let document = document(&model(&version), &version);
        let row = document
            .pointer("/paths/~1models~1a~1b~1/post/requestBody/content/application~1json/schema/anyOf/1");
        let row = row.unwrap();
        assert_eq!(row["required"], json!(["age"]));
        assert_eq!(row["properties"]["purpose"], json!({"enum": ["car", "tv", null]}));
    }

    #[test]
    fn what_an_older_host_registered_is_written_too() {
        let version = with_inputs(&[("x", DType::Fp32, &[Some(64); 10_000])]);
        let document = document(&model(&version), &version).to_string();
        assert!(document.len() < 1 << 20, "{} bytes", document.len());
    }

    #[test]
    fn tensors_have_no_rows_of_columns() {
        let version = with_inputs(&[("x", DType::Int8, &[None, Some(2)])]);
        let document = document(&model(&version), &version);
        assert!(document.pointer("/paths/~1models~1a~1b~1/post").is_none());
        let rows = "/paths/~1v1~1models~1a~1b:predict/post/requestBody/content/application~1json/schema/properties/instances/anyOf/1";
        let element = json!({"type": "integer", "minimum": -128, "maximum": 127});
        assert_eq!(
            document.pointer(rows).unwrap()["items"],
            json!({"type": "array", "items": element, "minItems": 2, "maxItems": 2})
        );
    }
}
