//! Graphs that the host evaluates for its versions' components: outside the sandbox, natively, on the processor or a GPU.
//!
//! A graph belongs to a version's artifacts; it is opened once, when the version is loaded, and shared by all its instances. What evaluates
//! it is a `backend`; who is evaluated next, and together with whom, decides `schedule`; how many are read at once, `reading`; what it may
//! hold of memory is counted by `memory`. No WebAssembly here: the engine translates `wasi:nn` to this.

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
