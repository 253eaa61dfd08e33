//! What the Open Inference Protocol tells of models and lets callers do with them, besides asking them.

use std::sync::Arc;

use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::event::Statistics;
use modelhost_core::version::{Model, Version};
use modelhost_protocol::control::IndexEntry;
use modelhost_protocol::oip_rest;
use modelhost_serving::{Serving, Target};
use serde_json::{Value, json};

use crate::answer::json;
use crate::public::{Answer, Call, Public};

impl Public {
    pub(super) async fn model_metadata(&self, target: Target<'_>, call: &Call) -> Answer {
        self.known(target, call, "metadata", |model, version| Ok(oip_rest::model_metadata(model, version)))
            .await
    }

    pub(super) async fn model_config(&self, target: Target<'_>, call: &Call) -> Answer {
        let serving = Arc::clone(&self.serving);
        let tell =
            move |_: &Model, version: &Version| Ok(oip_rest::model_config(version, &serving.graphs(version)));
        self.known(target, call, "config", tell).await
    }

    pub(super) fn model_ready(&self, target: Target<'_>) -> Answer {
        if let Some(why) = self.serving.unavailable(target)? {
            let text = format!("model {} is not ready: {why}", target.model);
            return Err(Error::new(ErrorCode::Unavailable, text));
        }
        Ok(json(&json!({"name": target.model, "ready": true})))
    }

    pub(super) async fn statistics(&self, target: Option<Target<'_>>, call: &Call) -> Answer {
        let serving = Arc::clone(&self.serving);
        let Some(target) = target else {
            return self.list(call, "statistics".to_owned(), move || statistics(&serving, None)).await;
        };
        let explicit = target.version.is_some();
        let kind = if explicit { "statistics of" } else { "statistics of all" };
        let tell = move |model: &Model, version: &Version| {
            let number = version.number.to_string();
            let target = Target { model: model.name.as_str(), version: explicit.then_some(number.as_str()) };
            statistics(&serving, Some(target))
        };
        self.known(target, call, kind, tell).await
    }

    pub(super) async fn index(&self, call: &mut Call) -> Answer {
        let only_ready = oip_rest::read_index(&self.collect_control(call).await?)?;
        let serving = Arc::clone(&self.serving);
        let list = move || Ok(oip_rest::index(&index(&serving, only_ready)?));
        self.list(call, format!("index {only_ready}"), list).await
    }

    pub(super) async fn load(&self, model: &str, call: &mut Call) -> Answer {
        oip_rest::read_load(&self.collect_control(call).await?)?;
        self.load_model(model).await?;
        Ok(json(&json!({})))
    }

    pub(super) async fn unload(&self, model: &str, call: &mut Call) -> Answer {
        oip_rest::read_load(&self.collect_control(call).await?)?;
        self.unload_model(model)?;
        Ok(json(&json!({})))
    }

    /// Loads a model, if callers may. Errors: unsupported; as the load's.
    pub(crate) async fn load_model(&self, model: &str) -> Result<(), Error> {
        self.check_control()?;
        self.serving.load_model(model).await
    }

    /// Unloads a model, if callers may. Errors: unsupported; not found.
    pub(crate) fn unload_model(&self, model: &str) -> Result<(), Error> {
        self.check_control()?;
        self.serving.unload_model(model)
    }
}

fn statistics(serving: &Serving, target: Option<Target<'_>>) -> Result<Value, Error> {
    let statistics = serving.statistics(target)?;
    let seen: Vec<(&Version, Statistics)> =
        statistics.iter().map(|(version, seen)| (&**version, *seen)).collect();
    Ok(oip_rest::statistics(&seen))
}

/// Every version, or those that are ready. Errors: internal.
pub(crate) fn index(serving: &Serving, only_ready: bool) -> Result<Vec<IndexEntry>, Error> {
    let all = serving.availability(None)?;
    let entry = |(version, unavailable): (Arc<Version>, Option<String>)| IndexEntry {
        model: version.model.to_string(),
        version: version.number.get(),
        unavailable,
    };
    Ok(all.into_iter().filter(|(_, why)| !only_ready || why.is_none()).map(entry).collect())
}
