//! One version's place in memory: loaded on first use, kept until it is unloaded.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use modelhost_core::deployment::Version;
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::event::{Prediction, Role};
use modelhost_core::infer::{Deadline, InferRequest};
use modelhost_core::ports::{LoadedModel, ModelRuntime, Recorder};
use modelhost_core::tensor::Tensor;
use tokio::sync::Mutex;

use crate::admission::Admission;

/// A version that failed to load is not tried again for this long, doubling up to the second.
const RETRY_AFTER: Duration = Duration::from_secs(1);
const RETRY_AFTER_MOST: Duration = Duration::from_secs(60);

pub(crate) struct Slot {
    pub(crate) version: Arc<Version>,
    pub(crate) recorder: Arc<dyn Recorder>,
    loaded: ArcSwapOption<Ready>,
    /// Held while loading, so that callers who come meanwhile wait for that one load.
    loading: Mutex<Option<LastFailure>>,
    admission: Admission,
    /// Unloaded by a client: not loaded again until it is told to.
    withdrawn: AtomicBool,
    /// When it was last used, in microseconds since [`START`].
    last_used: AtomicU64,
}

/// One origin for every slot, so that their times compare.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

type Ready = Arc<dyn LoadedModel>;

struct LastFailure {
    error: Error,
    until: Instant,
    pause: Duration,
}

impl Slot {
    pub(crate) fn new(version: Arc<Version>, recorder: Arc<dyn Recorder>) -> Self {
        let limits = version.package.limits;
        Self {
            version,
            admission: Admission::new(limits.concurrency, limits.queue, Arc::clone(&recorder)),
            recorder,
            loaded: ArcSwapOption::empty(),
            loading: Mutex::new(None),
            withdrawn: AtomicBool::new(false),
            last_used: AtomicU64::new(0),
        }
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.loaded.load().is_some()
    }

    pub(crate) fn unload(&self) -> bool {
        self.loaded.swap(None).is_some()
    }

    /// Unloads it and answers nobody, until a load that somebody asks for.
    pub(crate) fn withdraw(&self) {
        self.withdrawn.store(true, Ordering::Relaxed);
        self.unload();
    }

    /// Takes a withdrawal back.
    pub(crate) fn bring_back(&self) {
        self.withdrawn.store(false, Ordering::Relaxed);
    }

    /// Errors: unavailable, when it is withdrawn.
    pub(crate) fn check_available(&self) -> Result<(), Error> {
        if self.withdrawn.load(Ordering::Relaxed) {
            return Err(self.name_version(Error::new(ErrorCode::Unavailable, "it is unloaded")));
        }
        Ok(())
    }

    /// Why it cannot answer: withdrawn, or it failed to load and is not tried again yet.
    pub(crate) fn unavailable(&self) -> Option<String> {
        if self.withdrawn.load(Ordering::Relaxed) {
            return Some("unloaded".to_owned());
        }
        let failure = self.loading.try_lock().ok()?;
        failure.as_ref().filter(|_| !self.is_ready()).map(|last| last.error.message.clone())
    }

    /// When it was last used; larger is later.
    pub(crate) fn last_used(&self) -> u64 {
        self.last_used.load(Ordering::Relaxed)
    }

    /// The loaded version; loads it if need be. Says whether this call loaded it.
    /// Errors: the load's; for a while the remembered one, so that a broken version cannot burn the machine.
    pub(crate) async fn load(&self, runtime: &dyn ModelRuntime, retry: bool) -> Result<(Ready, bool), Error> {
        if let Some(model) = self.loaded.load_full() {
            return Ok((Ready::clone(&model), false));
        }
        let mut failure = self.loading.lock().await;
        if retry {
            self.bring_back();
        } else if self.withdrawn.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorCode::Unavailable, "it is unloaded"));
        }
        if let Some(model) = self.loaded.load_full() {
            return Ok((Ready::clone(&model), false));
        }
        if let Some(last) = failure.as_ref().filter(|last| !retry && Instant::now() < last.until) {
            return Err(last.error.clone());
        }
        match runtime.load(&self.version.package, Some(&self.version.report)).await {
            Ok(model) => {
                *failure = None;
                self.loaded.store(Some(Arc::new(Arc::clone(&model))));
                Ok((model, true))
            }
            Err(error) => {
                let pause =
                    failure.as_ref().map_or(RETRY_AFTER, |last| (last.pause * 2).min(RETRY_AFTER_MOST));
                *failure = Some(LastFailure { error: error.clone(), until: Instant::now() + pause, pause });
                Err(error)
            }
        }
    }

    /// Runs one request within the version's bounds and records it.
    pub(crate) async fn infer(
        &self,
        runtime: &dyn ModelRuntime,
        request: &InferRequest,
        deadline: Deadline,
        role: Role,
    ) -> Result<(Vec<Tensor>, Timing), Error> {
        let start = Instant::now();
        let since_start = start.saturating_duration_since(*START).as_micros();
        self.last_used.store(u64::try_from(since_start).unwrap_or(u64::MAX), Ordering::Relaxed);
        let mut admitted = start;
        let result = async {
            let _permit = self.admission.enter(deadline).await?;
            let model = match self.loaded.load_full() {
                Some(model) => Ready::clone(&model),
                None => self.load(runtime, false).await?.0,
            };
            admitted = Instant::now();
            model.infer(request, deadline).await
        }
        .await;
        let end = Instant::now();
        let timing = Timing { queued: admitted - start, ran: end - admitted };
        self.recorder.prediction(&Prediction {
            role,
            error: result.as_ref().err().map(|error: &Error| error.code),
            rows: request.rows(),
            queued: timing.queued,
            ran: timing.ran,
        });
        match result {
            Ok(outputs) => Ok((outputs, timing)),
            Err(error) => Err(self.name_version(error)),
        }
    }

    /// A fault of the plugin or its load says which version it was.
    fn name_version(&self, error: Error) -> Error {
        match error.code {
            ErrorCode::InvalidArgument => error,
            code => {
                let (model, number) = (&self.version.model, self.version.number);
                Error::new(code, format!("model {model} version {number}: {}", error.message))
            }
        }
    }
}

/// Where a request's time went.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timing {
    pub(crate) queued: Duration,
    pub(crate) ran: Duration,
}
