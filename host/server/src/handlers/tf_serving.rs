//! TF Serving's REST API and KServe V1.

use std::sync::Arc;
use std::time::Instant;

use modelhost_core::version::Version;
use modelhost_protocol::tf_serving::{self, decode, encode, first_field};
use modelhost_serving::Target;

use super::answer::{JSON, body, json};
use super::{Answer, Call, Public};

impl Public {
    pub(super) async fn tf_predict(&self, target: Target<'_>, call: &mut Call) -> Answer {
        let content = self.collect(call).await?;
        let decoding = Instant::now();
        let (resolved, sticky_field) = self.resolve_by(target, call, |field| first_field(&content, field))?;
        let (bytes, version) = (content.len(), Arc::clone(resolved.version()));
        let decode = move || decode(&content, &version, sticky_field.as_deref());
        let (request, layout) = resolved.work(bytes, decode).await?;
        call.record.decode = decoding.elapsed();
        let encode = |_: &Version, outputs: &[_]| encode(outputs, layout);
        Ok(body(JSON, call.record.predict(&resolved, request, self.request_timeout, encode).await?))
    }

    /// Errors: unsupported, always.
    pub(super) fn tf_unsupported(&self, target: Target<'_>, verb: &str) -> Answer {
        self.serving.describe(target)?;
        Err(tf_serving::refuse_verb(verb))
    }

    pub(super) fn tf_status(&self, target: Target<'_>) -> Answer {
        let ready = self.serving.unavailable(target)?.is_none();
        let mut versions = self.serving.availability(Some(target.model))?;
        if target.version.is_some() {
            let (_, version) = self.serving.describe(target)?;
            versions.retain(|(other, _)| other.number == version.number);
        }
        let versions: Vec<(u32, Option<String>)> =
            versions.into_iter().map(|(version, why)| (version.number.get(), why)).collect();
        Ok(json(&tf_serving::status(target.model, ready, &versions)))
    }

    pub(super) fn tf_metadata(&self, target: Target<'_>) -> Answer {
        let (model, version) = self.serving.describe(target)?;
        Ok(json(&tf_serving::metadata(&model, &version)))
    }
}
