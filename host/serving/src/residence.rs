//! Whether a version is in memory: one state under one lock, and what each event makes of it. It decides; others load, count and unload.
//!
//! | event \ stage | cold, failed | loading | ready |
//! |---|---|---|---|
//! | asked | loading (failed: once its pause is over) | waits; it is kept | there |
//! | loaded | | ready, or cold if it is not kept | |
//! | load failed | | failed; cold, if only room was missing | |
//! | unloaded | | it is not kept; who waits gets it | cold |
//! | withdrawn | refuses | it is not kept; who waits is refused | cold, refuses |
//! | retired | is never kept again | it is not kept; who waits gets it | cold |
//!
//! An event that comes during a load wins over the load, and the latest event wins. Lock order: a pool's lock, then this one.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::ports::LoadedModel;
use tokio::sync::watch;

use super::sync::{Mutex, MutexGuard};

/// A version that failed to load is not tried again for this long, doubling up to the second.
const RETRY_AFTER: Duration = Duration::from_secs(1);
pub(crate) const RETRY_AFTER_MOST: Duration = Duration::from_secs(60);

pub(crate) type Ready = Arc<dyn LoadedModel>;

/// What came of a load, once it ended.
type Outcome = Option<Result<Ready, Error>>;

/// Who wants a version in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    /// A prediction. It respects a withdrawal and the pause after a failure.
    Caller,
    /// Somebody who asks for the load itself: takes a withdrawal back, and tries at once.
    Operator,
}

/// What asking led to.
pub(crate) enum Asked {
    /// It is in memory.
    There(Ready),
    /// Somebody loads it.
    Wait(Wait),
    /// Whoever asked has to load it.
    Load(Wait),
}

/// Waits for a load.
pub(crate) struct Wait(watch::Receiver<Outcome>);

impl Wait {
    /// Errors: the load's.
    pub(crate) async fn end(mut self) -> Result<Ready, Error> {
        let gone = || Error::new(ErrorCode::Unavailable, "the host is shutting down");
        let outcome = self.0.wait_for(Option::is_some).await.map_err(|_| gone())?;
        outcome.clone().unwrap_or_else(|| Err(gone()))
    }
}

pub(crate) struct Residence {
    /// Full while the stage is ready; read without the lock.
    model: ArcSwapOption<Ready>,
    state: Mutex<State>,
}

struct State {
    stage: Stage,
    /// Unloaded by a client: not loaded again until somebody asks for that.
    withdrawn: bool,
    /// Another slot has its version now: requests that came before finish here, and nothing stays in memory.
    retired: bool,
    /// A policy keeps it in memory.
    pinned: bool,
}

enum Stage {
    Cold,
    Loading {
        outcome: watch::Sender<Outcome>,
        /// Nobody unloaded it since it was last asked for.
        keep: bool,
        /// How long the last failure kept it from being tried again.
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
    /// Not in memory. Whoever was withdrawn elsewhere is withdrawn here.
    pub(crate) fn new(withdrawn: bool) -> Self {
        let state = State { stage: Stage::Cold, withdrawn, retired: false, pinned: false };
        Self { model: ArcSwapOption::empty(), state: Mutex::new(state) }
    }

    /// The loaded version, if it is there. Takes no lock.
    pub(crate) fn ready(&self) -> Option<Ready> {
        self.model.load().as_deref().map(Ready::clone)
    }

    /// Whether it is there. Takes no lock.
    pub(crate) fn is_ready(&self) -> bool {
        self.model.load().is_some()
    }

    /// Asks for the version. Errors: unavailable, when it is withdrawn; the last load's, while it is not tried again; resource exhausted,
    /// when so many wait for its load already.
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

    /// Whether what is being loaded will stay, as things are.
    pub(crate) fn is_wanted(&self) -> bool {
        let state = self.lock();
        !state.retired && matches!(state.stage, Stage::Loading { keep: true, .. })
    }

    /// The load ended well, and there is room for it or not. Says whether the version stays.
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

    /// The load failed. For a while the error is remembered, so that a broken version cannot burn the machine; where only room is missing,
    /// nothing is wrong with the version, and another moment has another answer.
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

    /// Takes it out of memory, or keeps a load under way from staying there. Only for its pool, which counts it; what comes back is to be
    /// dropped without a lock.
    pub(crate) fn unload(&self) -> Option<Arc<Ready>> {
        self.leave(&mut self.lock())
    }

    /// Unloads it and answers nobody, until a load that somebody asks for.
    pub(crate) fn withdraw(&self) -> Option<Arc<Ready>> {
        let mut state = self.lock();
        state.withdrawn = true;
        if let Stage::Loading { outcome, .. } = &mut state.stage {
            let (fresh, _) = watch::channel(None);
            std::mem::replace(outcome, fresh).send_replace(Some(Err(withdrawn())));
        }
        self.leave(&mut state)
    }

    /// Unloads it for good; requests that came before finish.
    pub(crate) fn retire(&self) -> Option<Arc<Ready>> {
        let mut state = self.lock();
        state.retired = true;
        self.leave(&mut state)
    }

    /// Takes a withdrawal back.
    pub(crate) fn bring_back(&self) {
        self.lock().withdrawn = false;
    }

    pub(crate) fn is_withdrawn(&self) -> bool {
        self.lock().withdrawn
    }

    /// Keeps it in memory once it is there, or no longer does.
    pub(crate) fn pin(&self, pinned: bool) {
        self.lock().pinned = pinned;
    }

    pub(crate) fn is_pinned(&self) -> bool {
        self.lock().pinned
    }

    /// Errors: unavailable, when it is withdrawn. A version that is there is not, so then no lock is taken.
    pub(crate) fn check_available(&self) -> Result<(), Error> {
        if !self.is_ready() && self.is_withdrawn() { Err(withdrawn()) } else { Ok(()) }
    }

    /// Why it cannot answer: withdrawn, or it failed to load.
    pub(crate) fn unavailable(&self) -> Option<String> {
        let state = self.lock();
        match &state.stage {
            _ if state.withdrawn => Some("unloaded".to_owned()),
            Stage::Failed { error, .. } => Some(error.message.clone()),
            Stage::Cold | Stage::Loading { .. } | Stage::Ready => None,
        }
    }

    /// How many wait for its load.
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
