//! The Open Inference Protocol over REST.

use std::sync::Arc;
use std::time::Instant;

use hyper::Response;
use hyper::header::HeaderValue;
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::event::Statistics;
use modelhost_core::routing::StickyKey;
use modelhost_core::version::Version;
use modelhost_protocol::control::IndexEntry;
use modelhost_protocol::oip_rest::{self, Encoded, Framing};
use modelhost_serving::Target;
use serde_json::json;

use super::answer::{JSON, body, json};
use super::{Answer, Call, Public, header_key, parameter_key};
use crate::body::ResponseBody;

impl Public {
    pub(super) fn ready(&self) -> Answer {
        self.check_ready()?;
        Ok(json(&json!({"ready": true})))
    }

    pub(super) fn models(&self) -> Response<ResponseBody> {
        let names: Vec<_> = self.serving.models().iter().map(|model| model.name.to_string()).collect();
        json(&json!({"models": names}))
    }

    pub(super) fn model_metadata(&self, target: Target<'_>) -> Answer {
        let (model, version) = self.serving.describe(target)?;
        Ok(json(&oip_rest::model_metadata(&model, &version)))
    }

    pub(super) fn model_config(&self, target: Target<'_>) -> Answer {
        let (_, version) = self.serving.describe(target)?;
        Ok(json(&oip_rest::model_config(&version, &self.serving.graphs(&version))))
    }

    pub(super) fn model_ready(&self, target: Target<'_>) -> Answer {
        if let Some(why) = self.serving.unavailable(target)? {
            let text = format!("model {} is not ready: {why}", target.model);
            return Err(Error::new(ErrorCode::Unavailable, text));
        }
        Ok(json(&json!({"name": target.model, "ready": true})))
    }

    pub(super) fn statistics(&self, target: Option<Target<'_>>) -> Answer {
        let statistics = self.serving.statistics(target)?;
        let seen: Vec<(&Version, Statistics)> =
            statistics.iter().map(|(version, seen)| (&**version, *seen)).collect();
        Ok(json(&oip_rest::statistics(&seen)))
    }

    pub(super) async fn infer(&self, target: Target<'_>, call: &mut Call) -> Answer {
        let content = self.collect(call).await?;
        let decoding = Instant::now();
        let header = call.head.headers.get(oip_rest::HEADER_LENGTH).map(HeaderValue::as_bytes);
        let framing = Framing::of(header, content.len())?;
        let mut decoded = None;
        let key = |key: &StickyKey| match (key, framing) {
            (StickyKey::Header(name), _) => header_key(&call.head.headers, name),
            (StickyKey::Field(_), Framing::Raw) => None,
            (StickyKey::Field(field), Framing::Json(length)) => {
                let (request, _) = decoded.insert(oip_rest::decode(&content, length)).as_ref().ok()?;
                parameter_key(request, field)
            }
        };
        let resolved = self.resolve(target, &mut call.record, key)?;
        let (bytes, version) = (content.len(), Arc::clone(resolved.version()));
        let decode = move || match framing {
            Framing::Json(length) => oip_rest::decode(&content, length),
            Framing::Raw => oip_rest::decode_raw(&content, &version.report.signature),
        };
        let (mut request, form) = match decoded {
            Some(decoded) => decoded?,
            None => resolved.work(bytes, decode).await?,
        };
        let id = request.id.take();
        call.record.decode = decoding.elapsed();
        let encode =
            |version: &Version, outputs: &[_]| oip_rest::encode(version, id.as_deref(), outputs, &form);
        let encoded = call.record.predict(&resolved, request, self.request_timeout, encode).await?;
        Ok(predicted(encoded))
    }

    pub(super) async fn index(&self, call: &mut Call) -> Answer {
        let only_ready = oip_rest::read_index(&self.collect(call).await?)?;
        Ok(json(&oip_rest::index(&self.repository_index(only_ready)?)))
    }

    pub(super) async fn load(&self, model: &str, call: &mut Call) -> Answer {
        oip_rest::read_load(&self.collect(call).await?)?;
        self.load_model(model).await?;
        Ok(json(&json!({})))
    }

    pub(super) async fn unload(&self, model: &str, call: &mut Call) -> Answer {
        oip_rest::read_load(&self.collect(call).await?)?;
        self.unload_model(model)?;
        Ok(json(&json!({})))
    }
}

/// What both transports of the protocol do.
impl Public {
    pub(crate) fn repository_index(&self, only_ready: bool) -> Result<Vec<IndexEntry>, Error> {
        let all = self.serving.availability(None)?;
        let entry = |(version, unavailable): (std::sync::Arc<Version>, Option<String>)| IndexEntry {
            model: version.model.to_string(),
            version: version.number.get(),
            unavailable,
        };
        Ok(all.into_iter().filter(|(_, why)| !only_ready || why.is_none()).map(entry).collect())
    }

    pub(crate) async fn load_model(&self, model: &str) -> Result<(), Error> {
        self.check_control()?;
        self.serving.load_model(model).await
    }

    pub(crate) fn unload_model(&self, model: &str) -> Result<(), Error> {
        self.check_control()?;
        self.serving.unload_model(model)
    }

    /// Errors: unsupported, unless the operator lets callers steer.
    pub(crate) fn check_control(&self) -> Result<(), Error> {
        if self.repository_control {
            return Ok(());
        }
        let text = "callers may not load, unload or change settings here: the operator allows it with --repository-control";
        Err(Error::new(ErrorCode::Unsupported, text))
    }
}

fn predicted(encoded: Encoded) -> Response<ResponseBody> {
    let Some(length) = encoded.json_length else { return body(JSON, encoded.body) };
    let mut response = body("application/octet-stream", encoded.body);
    response.headers_mut().insert(oip_rest::HEADER_LENGTH, HeaderValue::from(length));
    response
}
