//! Runs model versions as sandboxed WebAssembly components. No wasmtime type leaves this crate.
//!
//! The life of a version: `verify` its imports, `compile` it, `load` it once in a scratch instance and snapshot
//! its memory, then answer every request in a fresh instance of that snapshot (`instance`). The `cache` keeps compiled
//! code on disk, so that a restart compiles nothing.

mod bindings;
mod cache;
mod compile;
mod convert;
mod examples;
mod fault;
mod graphs;
mod instance;
mod limits;
mod load;
mod state;
mod text;
mod verify;

pub use compile::Config;
pub use load::Runtime;
