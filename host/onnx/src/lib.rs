//! ONNX graphs: what they take and give, and their evaluation by tract. Pure computation, so that the host evaluates a graph outside
//! the sandbox (`modelhost-nn`) and a component evaluates it inside (`plugins/onnx-sandboxed`) with the same code.

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
