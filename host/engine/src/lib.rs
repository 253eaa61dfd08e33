//! Runs model versions as sandboxed WebAssembly components. No wasmtime type leaves this crate.
//!
//! A version's life: a `compiler` process compiles it, `verify` checks its imports, and `load` runs it once in a
//! scratch instance and takes a snapshot of its memory. Then each request runs in a fresh `instance` of that
//! snapshot. The `cache` keeps compiled code on disk, so that a restart compiles nothing.

mod bindings;
mod cache;
mod compile;
mod compiler;
mod convert;
mod examples;
mod fault;
mod graphs;
mod instance;
mod limits;
mod load;
mod said;
mod snapshot;
mod state;
mod stop;
mod text;
mod verify;
mod warm;

pub use compile::Config;
pub use compiler::{COMPILE, run_compiler};
pub use load::Runtime;
