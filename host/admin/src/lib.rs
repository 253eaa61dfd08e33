//! The admin API: what operators do, as JSON over HTTP on an address of its own.
//!
//! Changes run to their end even when the client goes away; each is written before it is acknowledged.

mod deployments;
mod intake;
mod resources;
mod routes;

pub mod wire;

pub use intake::Intake;
pub use resources::{Admin, CountComparisons, MakeAside};
pub use routes::{Reply, refuse, router};
