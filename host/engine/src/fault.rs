//! Decides whose fault a failure is. A guest that traps, exceeds a limit or breaks the contract is the plugin's
//! fault.

use modelhost_core::error::{Error, ErrorCode};
use wasmtime::{PoolConcurrencyLimitError, Trap};

use crate::limits::Refused;
use crate::said;
use crate::state::State;

/// The guest ran past its deadline.
#[derive(Debug, thiserror::Error)]
#[error("deadline passed")]
pub(crate) struct DeadlinePassed;

/// A failure in a step of preparing a version.
pub(crate) fn in_step(step: &str, error: &wasmtime::Error) -> Error {
    Error::new(ErrorCode::PluginFault, said::error(step, error))
}

/// The error of a call into the guest. Explains it in the guest's terms where possible.
pub(crate) fn of_call(error: &wasmtime::Error, state: &State, limit_ms: u128) -> Error {
    if error.is::<PoolConcurrencyLimitError>() {
        return Error::new(ErrorCode::ResourceExhausted, "every instance slot of this host is in use");
    }
    if error.is::<DeadlinePassed>() && state.stop.callers_passed() {
        return Error::new(ErrorCode::DeadlineExceeded, "the request's deadline passed while the plugin ran");
    }
    if let Some(error) = error.downcast_ref::<Error>()
        && error.code != ErrorCode::InvalidArgument
    {
        return error.clone(); // the host's own, from a call that the guest made
    }
    // A guest that gets no memory aborts. Other traps have other causes.
    let trap = error.downcast_ref::<Trap>();
    let refused = state
        .memory
        .refused
        .as_ref()
        .filter(|_| trap.is_none_or(|trap| *trap == Trap::UnreachableCodeReached));
    if let Some(Refused::Deployment(refusal)) = refused {
        return refusal.clone();
    }
    let what = if error.is::<DeadlinePassed>() {
        format!("the plugin did not answer within its deadline of {limit_ms} ms")
    } else if refused.is_some() {
        "the plugin ran out of the memory that its limit allows".to_owned()
    } else if let Some(trap) = trap {
        format!("the plugin trapped: {}", trap_text(*trap))
    } else {
        format!("the plugin failed: {}", said::text(&error.root_cause().to_string()))
    };
    let said = state.last_error.as_ref().map(|said| format!(" (it said: {said})")).unwrap_or_default();
    Error::new(ErrorCode::PluginFault, format!("{what}{said}"))
}

fn trap_text(trap: Trap) -> String {
    match trap {
        Trap::StackOverflow => "call stack exhausted".to_owned(),
        Trap::UnreachableCodeReached => "it panicked or aborted".to_owned(),
        other => other.to_string().trim_start_matches("wasm trap: ").to_owned(),
    }
}
