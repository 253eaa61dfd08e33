//! The use case: find the model, decide who answers, admit the request, run it, show challengers a copy, observe.
//!
//! Readers share one immutable table of routes; a change replaces the table, never a part of it. A request that has
//! resolved its version keeps it to the end, whatever is published meanwhile.

mod admission;
mod batch;
mod cache;
mod demand;
mod lifecycle;
mod mirror;
mod pool;
mod repository;
mod resolve;
mod slot;
mod threads;

pub use cache::Cached;
pub use lifecycle::{Config, Serving};
pub use mirror::compare;
pub use repository::Availability;
pub use resolve::{Admitted, Answer, Desk, Resolved, Target};
