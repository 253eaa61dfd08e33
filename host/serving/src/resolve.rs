//! From a name in a URL to the version that answers, and its answer.
//!
//! Each step can only be made from the one before: a model that is there, a place in its deployment, the version that answers, the answer.

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

/// What takes longer to read or write than to hand to another thread.
const LARGE: usize = 64 << 10;

/// How often a stream looks whether its deployment has a place again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What a caller names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target<'a> {
    /// `prefix/name`.
    pub model: &'a str,
    /// A version (`6`, `v6`) or an alias (`stable`); without it the policy decides.
    pub version: Option<&'a str>,
}

/// A request whose deployment has room for it, before anybody read its body.
///
/// The deployment is that of the version that the caller names, else of the policy's primary: the model alone decides it, because the key
/// that decides the version may stand in the body. A place is taken when the body is there, so that who sends slowly keeps nobody out; it
/// moves when the choice falls on a version that runs elsewhere.
pub struct Admitted {
    serving: Arc<Serving>,
    route: Arc<Route>,
    named: Option<ModelVersion>,
    pool: Arc<Pool>,
    arrival: Option<Arrival>,
}

/// The version that will answer a request, and who sees a copy.
pub struct Resolved {
    serving: Arc<Serving>,
    slot: Arc<Slot>,
    mirrors: Vec<Arc<Slot>>,
    /// `None` while it waits for its caller.
    arrival: Option<Arrival>,
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
    /// Lets a request in. An explicit version bypasses the policy. Errors: not found; unavailable when nothing was promoted yet; resource
    /// exhausted when its deployment is full.
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

    /// What requests are charged to before their deployment is known.
    pub fn bodies(&self) -> &Arc<ByteBudget> {
        &self.places.bodies
    }

    /// What streams are charged to while they wait for their callers: what many slow ones hold, others do not lack.
    pub fn streams(&self) -> &Arc<ByteBudget> {
        &self.places.streams
    }

    /// Why a model, or the version that the target names, cannot answer now. Errors: not found.
    pub fn unavailable(&self, target: Target<'_>) -> Result<Option<String>, Error> {
        let route = self.route(target.model)?;
        if target.version.is_none() && route.model.policy.is_none() {
            return Ok(Some("it has no promoted version yet".to_owned()));
        }
        let (_, version) = self.describe(target)?;
        Ok(route.slot(version.number).and_then(|slot| slot.residence.unavailable()))
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

impl Admitted {
    /// What decides the version, where the policy is sticky and the caller named none.
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

    /// For the request's bytes.
    pub fn charge(&self) -> Charge {
        self.pool.bodies.charge()
    }

    /// Takes its place: the body is there. Errors: resource exhausted, when others took the room meanwhile.
    pub fn enter(&mut self) -> Result<(), Error> {
        self.arrival = Some(self.pool.arrive()?);
        Ok(())
    }

    /// Where its work is done.
    pub fn desk(&self) -> Desk {
        Desk::of(&self.pool)
    }

    /// Decides who answers, by the policy in force now. `key`: the sticky key's value, where the request has it; `draw`: 64 random bits.
    /// Errors: as [`Serving::admit`], since the policy may have changed or the choice may fall on another deployment.
    pub fn choose(self, key: Option<&[u8]>, draw: u64) -> Result<Resolved, Error> {
        let Self { serving, route, named, pool, arrival } = self;
        // While the body came, operators may have changed what is served.
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

/// Where work that grows with a request is done: what is large goes to the threads of its deployment, so that it takes no other's time.
#[derive(Clone)]
pub struct Desk(Arc<Threads>);

impl Desk {
    fn of(pool: &Pool) -> Self {
        Self(pool.threads.load_full())
    }

    /// Does work of so many bytes. Errors: as the work's.
    pub async fn work<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        if bytes < LARGE { work.await } else { self.0.run(Box::pin(work), true).await? }
    }

    /// Goes on with work there, whoever waits for it.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(Box::pin(work));
    }
}

impl Resolved {
    /// The version that answers.
    pub fn version(&self) -> &Arc<Version> {
        &self.slot.version
    }

    /// For the answer's bytes.
    pub fn charge(&self) -> Charge {
        self.slot.pool.bodies.charge()
    }

    /// Where its work is done.
    pub fn desk(&self) -> Desk {
        Desk::of(&self.slot.pool)
    }

    /// Gives the place in the deployment back, until [`Self::enter`]: a stream waits for its caller.
    pub fn leave(&mut self) {
        self.arrival = None;
    }

    /// Takes a place in the deployment again; waits for one. Errors: resource exhausted, when none came free before the deadline.
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

    /// Notes how long reading the request and writing the response took.
    pub fn codec(&self, decode: Duration, encode: Duration) {
        self.slot.recorder.codec(decode, encode);
    }

    /// Answers, then shows the challengers a copy. `longest`: how long the host lets any request wait and run; what is made for the
    /// response cache may take as long, because others wait for it too.
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

    /// The one who makes an answer makes it for everybody who waits for it: its own deadline ends its waiting, not theirs.
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
