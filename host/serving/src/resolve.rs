//! From a name in a URL to the version that answers, and to its answer.
//!
//! Each step needs the result of the one before: a known model, a place in its deployment, the answering version, the
//! answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use modelhost_core::budget::{ByteBudget, Charge};
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::event::Role;
use modelhost_core::infer::{Deadline, InferRequest};
use modelhost_core::model::ModelVersion;
use modelhost_core::routing::{StickyKey, decide};
use modelhost_core::tensor::Tensor;
use modelhost_core::version::{Model, Version};

use crate::cache::{self, Cached};
use crate::lifecycle::{Route, Serving};
use crate::pool::{Arrival, Pool};
use crate::slot::Slot;
use crate::threads::Threads;

/// Bytes that take longer to read or write than to move to another thread.
const LARGE: usize = 64 << 10;

/// How often a stream checks whether its deployment has a place again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What a caller asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target<'a> {
    /// `prefix/name`.
    pub model: &'a str,
    /// A version (`6`, `v6`) or an alias (`stable`). Without it the policy decides.
    pub version: Option<&'a str>,
}

/// A request whose deployment has room for it. Its body was not read yet.
///
/// The deployment is that of the named version, or of the policy's primary. It follows from the model alone, because
/// the key that decides the version may be in the body. The request takes its place when the body is there, so that
/// slow senders do not keep others out. It moves if another deployment's version is chosen.
pub struct Admitted {
    serving: Arc<Serving>,
    route: Arc<Route>,
    named: Option<ModelVersion>,
    pool: Arc<Pool>,
    arrival: Option<Arrival>,
}

/// The version that will answer a request, and its challengers.
pub struct Resolved {
    serving: Arc<Serving>,
    slot: Arc<Slot>,
    mirrors: Vec<Arc<Slot>>,
    /// `None` while the request waits for its caller.
    arrival: Option<Arrival>,
}

/// A prediction and how it was made.
pub struct Answer {
    /// The outputs in the requested order.
    pub outputs: Arc<Vec<Tensor>>,
    /// Time of waiting for an instance.
    pub queued: Duration,
    /// Time of running.
    pub ran: Duration,
    /// What the response cache did, if the version uses it.
    pub cached: Option<Cached>,
}

impl Serving {
    /// Lets a request in. A named version bypasses the policy. Errors: not found; unavailable, if nothing was
    /// promoted yet; resource exhausted, if the deployment is full.
    pub fn admit(self: &Arc<Self>, target: Target<'_>) -> Result<Admitted, Error> {
        let route = self.route(target.model)?;
        let named = target.version.map(|version| find_number(&route.model, version)).transpose()?;
        let first = match (named, &route.model.policy) {
            (Some(number), _) => number,
            (None, Some(policy)) => policy.primary(),
            (None, None) => {
                let text = format!("model {} has no promoted version yet", target.model);
                return Err(Error::new(ErrorCode::Unavailable, text));
            }
        };
        let slot = route.slot(first).ok_or_else(|| no_version(&route.model, first))?;
        slot.pool.check_room()?;
        let pool = Arc::clone(&slot.pool);
        Ok(Admitted { serving: Arc::clone(self), route, named, pool, arrival: None })
    }

    /// The budget for requests whose deployment is not known yet.
    pub fn bodies(&self) -> &Arc<ByteBudget> {
        &self.places.bodies
    }

    /// The budget for streams that wait for their callers. Many slow streams do not take bytes from other requests.
    pub fn streams(&self) -> &Arc<ByteBudget> {
        &self.places.streams
    }

    /// Why the model or the named version cannot answer now. Errors: not found.
    pub fn unavailable(&self, target: Target<'_>) -> Result<Option<String>, Error> {
        let route = self.route(target.model)?;
        if target.version.is_none() && route.model.policy.is_none() {
            return Ok(Some("it has no promoted version yet".to_owned()));
        }
        let (_, version) = self.describe(target)?;
        Ok(route.slot(version.number).and_then(|slot| slot.residence.unavailable()))
    }

    /// The model, and the named version or the policy's primary. Errors: not found; unavailable, if no version is
    /// named and nothing was promoted yet.
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

impl Admitted {
    /// The key that decides the version, if the policy is sticky and no version is named.
    pub fn sticky(&self) -> Option<&StickyKey> {
        if self.named.is_some() {
            return None;
        }
        self.route.model.policy.as_ref().and_then(|policy| policy.sticky())
    }

    /// How wide a row may be: the most columns of a table that one of the model's versions takes.
    pub fn columns(&self) -> usize {
        self.route.columns
    }

    /// A charge for the request's bytes.
    pub fn charge(&self) -> Charge {
        self.pool.bodies.charge()
    }

    /// Takes a place, now that the body is there. Errors: resource exhausted, if others took it meanwhile.
    pub fn enter(&mut self) -> Result<(), Error> {
        self.arrival = Some(self.pool.arrive()?);
        Ok(())
    }

    /// Where its work is done.
    pub fn desk(&self) -> Desk {
        Desk::of(&self.pool)
    }

    /// Chooses the version by the current policy. `key`: the value of the sticky key, if the request has it. `draw`:
    /// 64 random bits. Errors: as [`Serving::admit`], because the policy may have changed, or the version may be in
    /// another deployment.
    pub fn choose(self, key: Option<&[u8]>, draw: u64) -> Result<Resolved, Error> {
        let Self { serving, route, named, pool, arrival } = self;
        // Operators may have changed the model while the body arrived.
        let route = serving.route(route.model.name.as_str())?;
        let (number, mirrors) = match (named, &route.model.policy) {
            (None, Some(policy)) => {
                let decision = decide(policy, route.seed, key, draw);
                (decision.serve, decision.mirror().filter_map(|number| route.slot(number)).collect())
            }
            (Some(number), _) => (number, Vec::new()),
            (None, None) => return Err(unknown(route.model.name.as_str())), // a policy is never taken back
        };
        let slot = route.slot(number).ok_or_else(|| no_version(&route.model, number))?;
        let moves = arrival.is_some() && !Arc::ptr_eq(&pool, &slot.pool);
        let arrival = if moves { Some(slot.pool.arrive()?) } else { arrival };
        Ok(Resolved { serving, slot, mirrors, arrival })
    }
}

/// Where work is done that grows with a request. Large work goes to the deployment's threads, so that it delays no
/// other request.
#[derive(Clone)]
pub struct Desk(Arc<Threads>);

impl Desk {
    fn of(pool: &Pool) -> Self {
        Self(pool.threads.load_full())
    }

    /// Does work on so many bytes. Errors: those of the work.
    pub async fn work<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        if bytes < LARGE { work.await } else { self.0.run(Box::pin(work), true).await? }
    }

    /// Does work there, even if no caller waits for it.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(Box::pin(work));
    }
}

impl Resolved {
    /// The version that answers.
    pub fn version(&self) -> &Arc<Version> {
        &self.slot.version
    }

    /// A charge for the answer's bytes.
    pub fn charge(&self) -> Charge {
        self.slot.pool.bodies.charge()
    }

    /// Where its work is done.
    pub fn desk(&self) -> Desk {
        Desk::of(&self.slot.pool)
    }

    /// Gives back the place in the deployment until [`Self::enter`], because a stream waits for its caller.
    pub fn leave(&mut self) {
        self.arrival = None;
    }

    /// Waits for a place in the deployment. Errors: resource exhausted, if none became free before the deadline.
    pub async fn enter(&mut self, deadline: Deadline) -> Result<(), Error> {
        while self.arrival.is_none() {
            self.arrival = if Instant::now() + LOOK_AGAIN >= deadline.instant() {
                Some(self.slot.pool.arrive()?)
            } else {
                self.slot.pool.try_arrive()
            };
            if self.arrival.is_none() {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
        Ok(())
    }

    /// Records how long reading the request and writing the response took.
    pub fn codec(&self, decode: Duration, encode: Duration) {
        self.slot.recorder.codec(decode, encode);
    }

    /// Answers the request, then sends the challengers a copy. `longest`: how long the host lets any request wait and
    /// run. Making an answer for the response cache may take that long, because other callers wait for it too.
    pub async fn infer(
        &self,
        mut request: InferRequest,
        deadline: Deadline,
        longest: Duration,
    ) -> Result<Answer, Error> {
        request.conform(&self.slot.version.report.signature)?;
        let request = Arc::new(request);
        let start = Instant::now();
        let answer = if self.slot.version.package.response_cache {
            self.slot.residence.check_available()?;
            self.cached(&request, start, deadline, longest).await?
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

    /// One caller makes the answer for all that wait for it. Its own deadline ends only its own waiting.
    async fn cached(
        &self,
        request: &Arc<InferRequest>,
        start: Instant,
        deadline: Deadline,
        longest: Duration,
    ) -> Result<Answer, Error> {
        let mut ran = None;
        let run = async {
            let begun = Instant::now();
            let answer = self.run(request, begun, Deadline::after(begun, longest)).await?;
            let outputs = Arc::clone(&answer.outputs);
            ran = Some(answer);
            Ok(outputs)
        };
        let (version, asked) = (Arc::clone(&self.slot.version), Arc::clone(request));
        let bytes = request.inputs.iter().map(|input| input.data().len()).sum();
        let key = self.desk().work(bytes, async move { Ok(cache::key(&version, &asked)) }).await?;
        let found = self.serving.cache.answer(key, deadline.instant(), run).await;
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
