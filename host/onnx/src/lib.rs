//! ONNX graphs: their signatures, and their evaluation by tract. The code is pure computation. The host evaluates
//! graphs with it outside the sandbox (`modelhost-nn`), and a component inside (`plugins/onnx-sandboxed`).

mod check;
mod element;
mod external;
mod graph;
mod needs;

pub use check::check_signature;
pub use external::external_tensors;
pub use graph::{Graph, check_names, is_bounded};
pub use needs::Leave;

#[cfg(test)]
mod tests;
