//! Whether a version is in memory: one state under one lock, and its transitions. Only decides. Other code loads,
//! counts and unloads.
//!
//! | event \ stage | cold, failed | loading | ready |
//! |---|---|---|---|
//! | asked | loading (failed: after its pause) | waits; the version is kept | returns it |
//! | loaded | | ready, or cold if not kept | |
//! | load failed | | failed, or cold if only room was missing | |
//! | unloaded | | not kept; waiting callers get it | cold |
//! | withdrawn | refuses callers | not kept; waiting callers are refused | cold, refuses callers |
//! | retired | is never kept again | not kept; waiting callers get it | cold |
//!
//! An event during a load takes precedence over the load. The latest event counts. Lock order: a pool's lock, then
//! this one.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::ports::LoadedModel;
use tokio::sync::watch;

use super::sync::{Mutex, MutexGuard};

/// Pause after a failed load. It doubles with each failure, up to the second value.
const RETRY_AFTER: Duration = Duration::from_secs(1);
pub(crate) const RETRY_AFTER_MOST: Duration = Duration::from_secs(60);

pub(crate) type Ready = Arc<dyn LoadedModel>;

/// The result of a load that ended.
type Outcome = Option<Result<Ready, Error>>;

/// Who asks for a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    /// A prediction. It respects a withdrawal and the pause after a failure.
    Caller,
    /// A request for the load itself. It ends a withdrawal and tries at once.
    Operator,
}

/// The result of asking.
pub(crate) enum Asked {
    /// It is in memory.
    There(Ready),
    /// Another request loads it.
    Wait(Wait),
    /// The asking request has to load it.
    Load(Wait),
}

/// Waits for a load.
pub(crate) struct Wait(watch::Receiver<Outcome>);

impl Wait {
    /// Waits for the end of the load. Errors: those of the load.
    pub(crate) async fn end(mut self) -> Result<Ready, Error> {
        let gone = || Error::new(ErrorCode::Unavailable, "the host is shutting down");
        let outcome = self.0.wait_for(Option::is_some).await.map_err(|_| gone())?;
        outcome.clone().unwrap_or_else(|| Err(gone()))
    }
}

pub(crate) struct Residence {
    /// Set while the stage is ready. Read without the lock.
    model: ArcSwapOption<Ready>,
    state: Mutex<State>,
}

struct State {
    stage: Stage,
    /// A client unloaded it. It is not loaded again until that is asked for.
    withdrawn: bool,
    /// Another slot has the version now. Earlier requests finish here, and nothing stays in memory.
    retired: bool,
    /// A policy keeps it in memory.
    pinned: bool,
}

enum Stage {
    Cold,
    Loading {
        outcome: watch::Sender<Outcome>,
        /// Whether the version stays in memory. False if it was unloaded since it was last asked for.
        keep: bool,
        /// The pause after the last failure.
        paused: Option<Duration>,
    },
    Ready,
    Failed {
        error: Error,
        until: Instant,
        paused: Duration,
    },
}

impl Residence {
    /// Not in memory. `withdrawn`: the version was withdrawn in another slot.
    pub(crate) fn new(withdrawn: bool) -> Self {
        let state = State { stage: Stage::Cold, withdrawn, retired: false, pinned: false };
        Self { model: ArcSwapOption::empty(), state: Mutex::new(state) }
    }

    /// The loaded version, if there is one. Takes no lock.
    pub(crate) fn ready(&self) -> Option<Ready> {
        self.model.load().as_deref().map(Ready::clone)
    }

    /// Whether it is loaded. Takes no lock.
    pub(crate) fn is_ready(&self) -> bool {
        self.model.load().is_some()
    }

    /// Asks for the version. Errors: unavailable, if it is withdrawn; the error of the last load, during the pause;
    /// resource exhausted, if `most_waiting` callers wait for the load already.
    pub(crate) fn ask(&self, who: Who, now: Instant, most_waiting: u32) -> Result<Asked, Error> {
        let mut state = self.lock();
        if who == Who::Operator {
            state.withdrawn = false;
        } else if state.withdrawn {
            return Err(withdrawn());
        }
        let paused = match &mut state.stage {
            Stage::Ready => match self.ready() {
                Some(model) => return Ok(Asked::There(model)),
                None => None, // cannot be: both change together
            },
            Stage::Loading { outcome, keep, .. } => {
                if who == Who::Caller && outcome.receiver_count() >= most_waiting as usize {
                    let text =
                        format!("it is being loaded, and {most_waiting} requests wait for that already");
                    return Err(Error::new(ErrorCode::ResourceExhausted, text));
                }
                *keep = true;
                return Ok(Asked::Wait(Wait(outcome.subscribe())));
            }
            Stage::Failed { error, until, .. } if who == Who::Caller && now < *until => {
                return Err(error.clone());
            }
            Stage::Failed { paused, .. } => Some(*paused),
            Stage::Cold => None,
        };
        let (outcome, wait) = watch::channel(None);
        state.stage = Stage::Loading { outcome, keep: true, paused };
        Ok(Asked::Load(Wait(wait)))
    }

    /// Whether the loading version would stay in memory now.
    pub(crate) fn is_wanted(&self) -> bool {
        let state = self.lock();
        !state.retired && matches!(state.stage, Stage::Loading { keep: true, .. })
    }

    /// Ends a load successfully. `has_room`: whether there is room for the version. Returns whether it stays in
    /// memory.
    pub(crate) fn loaded(&self, model: Ready, has_room: bool) -> bool {
        let mut state = self.lock();
        let retired = state.retired;
        let Stage::Loading { outcome, keep, .. } = std::mem::replace(&mut state.stage, Stage::Cold) else {
            return false;
        };
        let stays = keep && has_room && !retired;
        if stays {
            state.stage = Stage::Ready;
            self.model.store(Some(Arc::new(Arc::clone(&model))));
        }
        drop(state);
        outcome.send_replace(Some(Ok(model)));
        stays
    }

    /// Ends a load with an error. The error is remembered for a pause, so that a broken version does not waste time.
    /// If only room was missing, the version is fine and there is no pause.
    pub(crate) fn failed(&self, error: Error, now: Instant) {
        let mut state = self.lock();
        let Stage::Loading { outcome, paused, .. } = std::mem::replace(&mut state.stage, Stage::Cold) else {
            return;
        };
        if error.code != ErrorCode::ResourceExhausted {
            let paused = paused.map_or(RETRY_AFTER, |paused| (paused * 2).min(RETRY_AFTER_MOST));
            state.stage = Stage::Failed { error: error.clone(), until: now + paused, paused };
        }
        drop(state);
        outcome.send_replace(Some(Err(error)));
    }

    /// Unloads the version, or keeps a running load from staying in memory. Only its pool calls this, and counts it.
    /// The caller drops the result without a lock.
    pub(crate) fn unload(&self) -> Option<Arc<Ready>> {
        self.leave(&mut self.lock())
    }

    /// Unloads the version. It answers no caller until a load is asked for.
    pub(crate) fn withdraw(&self) -> Option<Arc<Ready>> {
        let mut state = self.lock();
        state.withdrawn = true;
        if let Stage::Loading { outcome, .. } = &mut state.stage {
            let (fresh, _) = watch::channel(None);
            std::mem::replace(outcome, fresh).send_replace(Some(Err(withdrawn())));
        }
        self.leave(&mut state)
    }

    /// Unloads the version for good. Earlier requests finish.
    pub(crate) fn retire(&self) -> Option<Arc<Ready>> {
        let mut state = self.lock();
        state.retired = true;
        self.leave(&mut state)
    }

    /// Ends a withdrawal.
    pub(crate) fn bring_back(&self) {
        self.lock().withdrawn = false;
    }

    pub(crate) fn is_withdrawn(&self) -> bool {
        self.lock().withdrawn
    }

    /// Sets whether the version is kept in memory.
    pub(crate) fn pin(&self, pinned: bool) {
        self.lock().pinned = pinned;
    }

    pub(crate) fn is_pinned(&self) -> bool {
        self.lock().pinned
    }

    /// Errors: unavailable, if it is withdrawn. Takes no lock if the version is loaded.
    pub(crate) fn check_available(&self) -> Result<(), Error> {
        if !self.is_ready() && self.is_withdrawn() { Err(withdrawn()) } else { Ok(()) }
    }

    /// Why it cannot answer: it is withdrawn, or its load failed.
    pub(crate) fn unavailable(&self) -> Option<String> {
        let state = self.lock();
        match &state.stage {
            _ if state.withdrawn => Some("unloaded".to_owned()),
            Stage::Failed { error, .. } => Some(error.message.clone()),
            Stage::Cold | Stage::Loading { .. } | Stage::Ready => None,
        }
    }

    /// How many callers wait for the load.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        match &self.lock().stage {
            Stage::Loading { outcome, .. } => outcome.receiver_count(),
            Stage::Cold | Stage::Ready | Stage::Failed { .. } => 0,
        }
    }

    fn leave(&self, state: &mut State) -> Option<Arc<Ready>> {
        match &mut state.stage {
            Stage::Loading { keep, .. } => *keep = false,
            Stage::Ready => state.stage = Stage::Cold,
            Stage::Cold | Stage::Failed { .. } => {}
        }
        self.model.swap(None)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn withdrawn() -> Error {
    Error::new(ErrorCode::Unavailable, "it is unloaded")
}
