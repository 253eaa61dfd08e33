//! Everything but inference: metadata, configuration, statistics, the repository, settings.

use modelhost_core::error::Error;
use modelhost_core::event::{Statistics, Tally};
use modelhost_core::graph::GraphStatus;
use modelhost_core::tensor::TensorSpec;
use modelhost_core::version::{Model, Version};
use serde_json::{Map, Value, json};

use crate::EXTENSIONS;
use crate::control::{IndexEntry, LogSettings, SettingValue, TraceSettings, check_repository_parameter};

/// The server's metadata (`GET /v2`).
pub fn server_metadata(version: &str) -> Value {
    json!({"name": "modelhost", "version": version, "extensions": EXTENSIONS})
}

/// A model's metadata (`GET /v2/models/{model}`).
pub fn model_metadata(model: &Model, version: &Version) -> Value {
    let signature = &version.report.signature;
    let tensor = |spec: &TensorSpec| json!({"name": spec.name, "datatype": spec.dtype.as_str(), "shape": spec.wire_shape()});
    json!({
        "name": model.name.as_str(),
        "versions": model.versions.keys().map(ToString::to_string).collect::<Vec<_>>(),
        "platform": version.platform,
        "inputs": signature.inputs.iter().map(tensor).collect::<Vec<_>>(),
        "outputs": signature.outputs.iter().map(tensor).collect::<Vec<_>>(),
    })
}

/// A model's configuration (`GET /v2/models/{model}/config`): the part of Triton's that has a meaning here. Its shapes
/// hold the batch dimension, so `max_batch_size` is 0. Its parameters say what evaluates each of the version's
/// `graphs`, while it is in memory.
pub fn model_config(version: &Version, graphs: &[GraphStatus]) -> Value {
    let signature = &version.report.signature;
    let tensor = |spec: &TensorSpec| json!({"name": spec.name, "data_type": spec.dtype.config_name(), "dims": spec.wire_shape()});
    let graph =
        |graph: &GraphStatus| (format!("graph {}", graph.name), json!({"string_value": graph.place()}));
    json!({
        "name": version.model.as_str(),
        "platform": version.platform,
        "backend": version.backend(),
        "max_batch_size": 0,
        "input": signature.inputs.iter().map(tensor).collect::<Vec<_>>(),
        "output": signature.outputs.iter().map(tensor).collect::<Vec<_>>(),
        "response_cache": {"enable": version.package.response_cache},
        "parameters": graphs.iter().map(graph).collect::<Map<_, _>>(),
    })
}

/// Versions' statistics (`GET /v2/models/{model}/stats`). Source: extension_statistics.md.
pub fn statistics(versions: &[(&Version, Statistics)]) -> Value {
    let tally = |tally: Tally| json!({"count": tally.count, "ns": tally.nanos});
    let one = |(version, seen): &(&Version, Statistics)| {
        json!({
            "name": version.model.as_str(),
            "version": version.number.to_string(),
            "last_inference": seen.last_inference_ms,
            "inference_count": seen.rows,
            "execution_count": seen.runs,
            "inference_stats": {
                "success": tally(seen.success),
                "fail": tally(seen.fail),
                "queue": tally(seen.queue),
                "compute_input": tally(seen.decode),
                "compute_infer": tally(seen.infer),
                "compute_output": tally(seen.encode),
                "cache_hit": tally(seen.cache_hit),
                "cache_miss": tally(seen.cache_miss),
            },
            "response_stats": {},
            "batch_stats": [],
            "memory_usage": [],
        })
    };
    json!({"model_stats": versions.iter().map(one).collect::<Vec<_>>()})
}

/// The repository's index (`POST /v2/repository/index`).
pub fn index(entries: &[IndexEntry]) -> Value {
    let entry = |entry: &IndexEntry| {
        json!({
            "name": entry.model,
            "version": entry.version.to_string(),
            "state": entry.state(),
            "reason": entry.unavailable.clone().unwrap_or_default(),
        })
    };
    entries.iter().map(entry).collect()
}

/// Reads what an index request asks: whether only versions that can answer are listed. An empty body asks for all.
/// Errors: invalid argument.
pub fn read_index(body: &[u8]) -> Result<bool, Error> {
    match object(body)?.get("ready") {
        None => Ok(false),
        Some(Value::Bool(ready)) => Ok(*ready),
        Some(_) => Err(Error::invalid("body: \"ready\" is not a bool")),
    }
}

/// Checks the body of a load or an unload. Errors: invalid argument; unsupported, when it brings files or settings.
pub fn read_load(body: &[u8]) -> Result<(), Error> {
    match object(body)?.get("parameters") {
        None => Ok(()),
        Some(Value::Object(parameters)) => {
            parameters.keys().try_for_each(|name| check_repository_parameter(name))
        }
        Some(_) => Err(Error::invalid("body: \"parameters\" is not an object")),
    }
}

/// Reads a settings request. Errors: invalid argument or unsupported, naming the setting.
pub fn read_log_settings(body: &[u8]) -> Result<LogSettings, Error> {
    let mut settings = LogSettings::default();
    for (name, value) in &object(body)? {
        let value = match value {
            Value::Bool(flag) => SettingValue::Bool(*flag),
            Value::Number(number) => {
                let number = number.as_u64().and_then(|number| u32::try_from(number).ok());
                number.map_or(SettingValue::Other, SettingValue::Number)
            }
            Value::String(text) => SettingValue::Text(text),
            Value::Null | Value::Array(_) | Value::Object(_) => SettingValue::Other,
        };
        settings.set(name, value)?;
    }
    Ok(settings)
}

/// The log settings in force (`GET /v2/logging`).
pub fn log_settings(settings: LogSettings) -> Value {
    json!({
        "log_file": "",
        "log_info": settings.info,
        "log_warning": settings.warning,
        "log_error": settings.error,
        "log_verbose_level": settings.verbose_level,
        "log_format": "default",
    })
}

/// Reads a trace settings request; values are strings or lists of strings, null clears. Errors: as
/// [`read_log_settings`].
pub fn read_trace_settings(body: &[u8]) -> Result<TraceSettings, Error> {
    let mut settings = TraceSettings::default();
    for (name, value) in &object(body)? {
        let values: Option<Vec<&str>> = match value {
            Value::Null => Some(Vec::new()),
            Value::String(text) => Some(vec![text]),
            Value::Array(values) => values.iter().map(Value::as_str).collect(),
            Value::Bool(_) | Value::Number(_) | Value::Object(_) => None,
        };
        let values = values.ok_or_else(|| {
            Error::invalid(format!("setting {name:?}: {value} is not a string or a list of them"))
        })?;
        settings.set(name, &values)?;
    }
    Ok(settings)
}

/// The trace settings in force (`GET /v2/trace/setting`).
pub fn trace_settings(settings: TraceSettings) -> Value {
    let value = |(name, value): (&str, String)| {
        (name.to_owned(), if name == "trace_level" { json!([value]) } else { json!(value) })
    };
    Value::Object(settings.values().into_iter().map(value).collect())
}

/// A failure's body: `tritonclient` raises the text under `error`; `code` is for programs.
pub fn error(error: &Error) -> Value {
    json!({"error": error.message, "code": error.code.as_str()})
}

/// A small control request. The clients send an empty body where they have nothing to say.
fn object(body: &[u8]) -> Result<Map<String, Value>, Error> {
    if body.is_empty() {
        return Ok(Map::new());
    }
    serde_json::from_slice(body)
        .map_err(|error| Error::invalid(format!("body is not a JSON object: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_tritonclient_sends() {
        assert_eq!(read_index(b""), Ok(false));
        assert_eq!(read_index(br#"{"ready":true}"#), Ok(true));
        assert_eq!(read_load(br#"{"parameters":{"unload_dependents":true}}"#), Ok(()));
        let error = read_load(br#"{"parameters":{"file:1/model.wasm":"AA=="}}"#).unwrap_err();
        assert!(error.message.contains("\"file:1/model.wasm\""), "{error}");
        let settings =
            read_log_settings(br#"{"log_info":false,"log_verbose_level":1,"log_file":""}"#).unwrap();
        assert_eq!((settings.info, settings.verbose_level, settings.error), (Some(false), Some(1), None));
        let settings = read_trace_settings(br#"{"trace_level":["TIMESTAMPS"],"trace_rate":"5"}"#).unwrap();
        assert_eq!(settings, TraceSettings { on: Some(true), rate: Some(5) });
    }

    #[test]
    fn names_the_setting_that_is_wrong() {
        for body in ["[]", "{\"ready\":1}"] {
            assert!(read_index(body.as_bytes()).is_err(), "{body}");
        }
        for (body, expected) in [
            ("{\"log_info\":1}", "\"log_info\" is not a bool"),
            ("{\"log_verbose_level\":-1}", "\"log_verbose_level\" is not a number"),
            ("{\"log_file\":\"/tmp/x\"}", "\"log_file\": the host's command line"),
            ("{\"colour\":1}", "\"colour\" is unknown"),
        ] {
            let error = read_log_settings(body.as_bytes()).unwrap_err();
            assert!(error.message.contains(expected), "{error}");
        }
        for (body, expected) in [
            ("{\"trace_rate\":\"0\"}", "not a number from 1"),
            ("{\"trace_rate\":5}", "not a string"),
            ("{\"trace_level\":[\"ALL\"]}", "not OFF or TIMESTAMPS"),
            ("{\"trace_file\":\"x\"}", "exported over OTLP"),
        ] {
            let error = read_trace_settings(body.as_bytes()).unwrap_err();
            assert!(error.message.contains(expected), "{error}");
        }
    }
}
