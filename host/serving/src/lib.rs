//! The use case: finds the model, decides which version answers, admits the request, runs it, shows challengers a
//! copy, and records it.
//!
//! Readers share one immutable table of routes. A change replaces the whole table. A request keeps the version that
//! it resolved to its end, whatever is published meanwhile.

mod admission;
#[cfg(test)]
#[path = "admission/tests.rs"]
mod admission_tests;
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

/// Locks that the race tests replace.
mod sync {
    pub(crate) use std::sync::{Mutex, MutexGuard};
}

pub use cache::Cached;
pub use lifecycle::{Config, Serving};
pub use mirror::compare;
pub use repository::Availability;
pub use resolve::{Admitted, Answer, Desk, Resolved, Target};
pub use threads::less_urgent;
