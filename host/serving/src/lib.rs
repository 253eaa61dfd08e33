//! The use case: find the model, decide who answers, admit the request, run it, show challengers a copy, observe.
//!
//! Readers share one immutable table of routes; a change replaces the table, never a part of it. A request that has
//! resolved its version keeps it to the end, whatever is published meanwhile.

mod admission;
mod batch;
mod cache;
mod demand;
#[cfg(test)]
mod fakes;
mod lifecycle;
mod loads;
mod meter;
mod mirror;
mod pause;
mod pool;
#[cfg(test)]
mod races;
mod rank;
mod repository;
mod residence;
#[cfg(test)]
#[path = "residence/tests.rs"]
mod residence_tests;
mod resolve;
mod slot;
mod threads;

/// Locks that tests of races replace.
mod sync {
    pub(crate) use std::sync::{Mutex, MutexGuard};
}

pub use cache::Cached;
pub use lifecycle::{Config, Serving};
pub use mirror::compare;
pub use repository::Availability;
pub use resolve::{Admitted, Answer, Desk, Resolved, Target};
pub use threads::less_urgent;
