//! From a name in a URL to the version that answers, and its answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::event::Role;
use modelhost_core::infer::{Deadline, InferRequest};
use modelhost_core::model::ModelVersion;
use modelhost_core::routing::{StickyKey, decide};
use modelhost_core::tensor::Tensor;
use modelhost_core::version::{Model, Version};

use crate::cache::Cached;
use crate::lifecycle::{Route, Serving};
use crate::pool::Arrival;
use crate::slot::Slot;

/// What takes longer to read or write than to hand to another thread.
const LARGE: usize = 64 << 10;

/// What a caller names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target<'a> {
    /// `prefix/name`.
    pub model: &'a str,
    /// A version (`6`, `v6`) or an alias (`stable`); without it the policy decides.
    pub version: Option<&'a str>,
}

/// The version that will answer a request, and who sees a copy.
pub struct Resolved {
    serving: Arc<Serving>,
    slot: Arc<Slot>,
    mirrors: Vec<Arc<Slot>>,
    _arrival: Arrival,
}

/// A prediction and who made it.
pub struct Answer {
    /// In the order asked for.
    pub outputs: Arc<Vec<Tensor>>,
    /// Waiting for an instance.
    pub queued: Duration,
    /// Running.
    pub ran: Duration,
    /// What the response cache did, where the version uses it.
    pub cached: Option<Cached>,
}

impl Serving {
    /// Decides who answers. `key` finds the value of the policy's sticky key in the request; `draw` is 64 random bits.
    /// An explicit version bypasses the policy. Errors: not found; unavailable when nothing was promoted yet; resource exhausted when its
    /// deployment is full.
    pub fn resolve(
        self: &Arc<Self>,
        target: Target<'_>,
        key: impl FnOnce(&StickyKey) -> Option<Vec<u8>>,
        draw: u64,
    ) -> Result<Resolved, Error> {
        let route = self.route(target.model)?;
        let (number, mirrors) = match target.version {
            Some(version) => (find_number(&route.model, version)?, Vec::new()),
            None => {
                let policy = route.model.policy.as_ref().ok_or_else(|| {
                    let text = format!("model {} has no promoted version yet", target.model);
                    Error::new(ErrorCode::Unavailable, text)
                })?;
                let key = policy.sticky().and_then(key);
                let decision = decide(policy, route.seed, key.as_deref(), draw);
                (decision.serve, decision.mirror().filter_map(|number| route.slot(number)).collect())
            }
        };
        let slot = route.slot(number).ok_or_else(|| no_version(&route.model, number))?;
        let arrival = slot.pool.arrive()?;
        Ok(Resolved { serving: Arc::clone(self), slot, mirrors, _arrival: arrival })
    }

    /// Why a model, or the version that the target names, cannot answer now. Errors: not found.
    pub fn unavailable(&self, target: Target<'_>) -> Result<Option<String>, Error> {
        let route = self.route(target.model)?;
        if target.version.is_none() && route.model.policy.is_none() {
            return Ok(Some("it has no promoted version yet".to_owned()));
        }
        let (_, version) = self.describe(target)?;
        Ok(route.slot(version.number).and_then(|slot| slot.unavailable()))
    }

    /// What is known of a model, and the version that the target names or the policy's primary.
    /// Errors: not found; unavailable when it names none and nothing was promoted yet.
    pub fn describe(&self, target: Target<'_>) -> Result<(Arc<Model>, Arc<Version>), Error> {
        let route = self.route(target.model)?;
        let number = match target.version {
            Some(version) => find_number(&route.model, version)?,
            None => {
                let latest = || route.model.versions.keys().next_back().copied();
                let primary = route.model.policy.as_ref().map(|policy| policy.primary());
                primary.or_else(latest).ok_or_else(|| unknown(target.model))?
            }
        };
        let version = route.model.versions.get(&number).cloned();
        let version = version.ok_or_else(|| no_version(&route.model, number))?;
        Ok((Arc::clone(&route.model), version))
    }

    pub(crate) fn route(&self, model: &str) -> Result<Arc<Route>, Error> {
        self.table.load().get(model).cloned().ok_or_else(|| unknown(model))
    }
}

impl Resolved {
    /// The version that answers.
    pub fn version(&self) -> &Arc<Version> {
        &self.slot.version
    }

    /// Does work that grows with the request, of so many bytes: what is large goes to the threads of its deployment, so that it takes no
    /// other's time. Errors: as the work's.
    pub async fn work<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        if bytes < LARGE {
            return work();
        }
        let threads = self.slot.pool.threads.load_full();
        threads.run(Box::pin(async move { work() }), true).await?
    }

    /// Notes how long reading the request and writing the response took.
    pub fn codec(&self, decode: Duration, encode: Duration) {
        self.slot.recorder.codec(decode, encode);
    }

    /// Answers, then shows the challengers a copy. `limit` bounds waiting and running together.
    pub async fn infer(&self, mut request: InferRequest, limit: Duration) -> Result<Answer, Error> {
        request.conform(&self.slot.version.report.signature)?;
        let request = Arc::new(request);
        let start = Instant::now();
        let deadline = Deadline::after(start, limit);
        let answer = if self.slot.version.package.response_cache {
            self.slot.check_available()?;
            self.cached(&request, start, deadline).await?
        } else {
            self.run(&request, start, deadline).await?
        };
        if !self.mirrors.is_empty() {
            let version = self.slot.version.number;
            self.serving.mirror.send(version, &self.mirrors, &request, &answer.outputs);
        }
        Ok(answer)
    }

    async fn run(
        &self,
        request: &Arc<InferRequest>,
        start: Instant,
        deadline: Deadline,
    ) -> Result<Answer, Error> {
        let (outputs, timing) = self.slot.infer(Arc::clone(request), start, deadline, Role::Primary).await?;
        Ok(Answer { outputs: Arc::new(outputs), queued: timing.queued, ran: timing.ran, cached: None })
    }

    async fn cached(
        &self,
        request: &Arc<InferRequest>,
        start: Instant,
        deadline: Deadline,
    ) -> Result<Answer, Error> {
        let mut ran = None;
        let run = async {
            let answer = self.run(request, Instant::now(), deadline).await?;
            let outputs = Arc::clone(&answer.outputs);
            ran = Some(answer);
            Ok(outputs)
        };
        let found = self.serving.cache.answer(&self.slot.version, request, deadline.instant(), run).await;
        let took = start.elapsed();
        let (outputs, cached) = found?;
        match cached {
            Cached::Hit(_) => self.slot.recorder.cache_hit(took),
            Cached::Miss => self.slot.recorder.cache_miss(took),
        }
        let (queued, ran) =
            ran.map_or((Duration::ZERO, Duration::ZERO), |answer| (answer.queued, answer.ran));
        Ok(Answer { outputs, queued, ran, cached: Some(cached) })
    }
}

fn find_number(model: &Model, text: &str) -> Result<ModelVersion, Error> {
    match (ModelVersion::parse(text), model.aliases.get(text)) {
        (Ok(number), _) => Ok(number),
        (Err(_), Some(number)) => Ok(*number),
        (Err(_), None) => {
            Err(Error::not_found(format!("model {} has no version or alias {text:?}", model.name)))
        }
    }
}

fn unknown(model: &str) -> Error {
    Error::not_found(format!("model {model:?} is not registered"))
}

fn no_version(model: &Model, number: ModelVersion) -> Error {
    Error::not_found(format!("model {} has no version {number}", model.name))
}
