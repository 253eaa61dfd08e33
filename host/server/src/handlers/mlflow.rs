//! MLflow's scoring protocol, for a named model or the configured default.

use std::sync::Arc;
use std::time::Instant;

use hyper::Response;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::version::Version;
use modelhost_protocol::mlflow::{self, Format};
use modelhost_protocol::{csv, status};
use modelhost_serving::Target;

use super::answer::{JSON, body, json, shown};
use super::{Answer, Call, Public};
use crate::body::ResponseBody;

const TEXT: &str = "text/plain; charset=utf-8";

impl Public {
    /// 200 while the model can answer, 404 otherwise, as MLflow's clients expect.
    pub(super) fn ping(&self, target: Target<'_>) -> Answer {
        let mut response = body(TEXT, "\n");
        if self.check_ready().is_err() || self.serving.unavailable(target)?.is_some() {
            *response.status_mut() = hyper::StatusCode::NOT_FOUND;
        }
        Ok(response)
    }

    pub(super) fn version() -> Response<ResponseBody> {
        body(TEXT, env!("CARGO_PKG_VERSION"))
    }

    /// The target, or the configured default. Errors: not found, when there is none.
    pub(super) fn or_default<'a>(&'a self, target: Option<Target<'a>>) -> Result<Target<'a>, Error> {
        if let Some(target) = target {
            return Ok(target);
        }
        let model = self.default_model.as_ref().ok_or_else(|| {
            Error::not_found("no model answers here: name one, as in /models/PREFIX/NAME/invocations, or configure default_model")
        })?;
        Ok(Target { model: model.as_str(), version: None })
    }

    /// Failures go out by MLflow's keys.
    pub(super) async fn invocations(&self, target: Target<'_>, call: &mut Call) -> Answer {
        let answer = self.invoke(target, call).await;
        Ok(answer.unwrap_or_else(|error| {
            let error = shown(&error, &call.record.request_id);
            let mut response = match error.code {
                ErrorCode::UnsupportedFormat => body(TEXT, error.message.clone()),
                _ => json(&mlflow::error(&error)),
            };
            *response.status_mut() =
                hyper::StatusCode::from_u16(status::http(error.code)).unwrap_or_default();
            response
        }))
    }

    async fn invoke(&self, target: Target<'_>, call: &mut Call) -> Answer {
        let kind = call.head.headers.get(CONTENT_TYPE).map(HeaderValue::to_str);
        let format = Format::of(kind.and_then(Result::ok))?;
        let content = self.collect(call).await?;
        let decoding = Instant::now();
        let (resolved, sticky_field) = self.resolve_by(target, call, |field| match format {
            Format::Json => mlflow::first_field(&content, field),
            Format::Csv => csv::first_field(&content, field),
        })?;
        let (bytes, version) = (content.len(), Arc::clone(resolved.version()));
        let decode = move || match format {
            Format::Json => mlflow::decode(&content, &version, sticky_field.as_deref()),
            Format::Csv => csv::decode(&content, &version, sticky_field.as_deref()),
        };
        let request = resolved.work(bytes, decode).await?;
        call.record.decode = decoding.elapsed();
        let encode = |_: &Version, outputs: &[_]| mlflow::encode(outputs);
        Ok(body(JSON, call.record.predict(&resolved, request, self.request_timeout, encode).await?))
    }
}
