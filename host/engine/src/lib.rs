//! Runs model versions as sandboxed WebAssembly components. No wasmtime type leaves this crate.
//!
//! The life of a version: have a `compiler` compile it, `verify` its imports, `load` it once in a scratch instance and snapshot
//! its memory, then answer every request in a fresh instance of that snapshot (`instance`). The `cache` keeps compiled
//! code on disk, so that a restart compiles nothing.

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
