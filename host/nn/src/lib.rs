//! Graphs that the host evaluates for components: natively, outside the sandbox, on the processor or a GPU.
//!
//! A graph is an artifact of a version. It is opened once, when the version is loaded, and all instances share it. A
//! `backend` evaluates it. `schedule` decides which evaluation is next, and which are joined. `reading` bounds how
//! many graphs are read at once. `untried` reads a graph in another process first. `memory` counts what a version's
//! graphs hold. There is no WebAssembly here: the engine translates `wasi:nn` to this.

mod backend;
mod cuda;
mod gpus;
mod graphs;
mod library;
mod memory;
mod onnxruntime;
mod reading;
mod schedule;
mod tract;
mod untried;
mod webgpu;

pub use gpus::gpus;
pub use graphs::{Config, Graph, Graphs, Opening, Runtime, TryFirst};
pub use library::environment;
pub use memory::Held;
pub use untried::Untried;
