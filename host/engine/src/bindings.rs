//! Generated from `wit/`. The bindings are typed, because the dynamic `Val` is three hundred times slower for
//! tensors.

#![allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated")]

wasmtime::component::bindgen!({
    path: "../../wit",
    world: "runtime",
    ownership: Borrowing { duplicate_if_necessary: true },
    imports: {
        "wasi:nn/graph.load": async | trappable,
        "wasi:nn/inference.[method]graph-execution-context.compute": async | trappable,
        "wasi:nn": trappable,
        "modelhost:inference/artifacts.read": trappable,
        "modelhost:inference/graphs.compute": async | trappable,
    },
    exports: { default: async },
    with: {
        "wasi:nn/tensor.tensor": crate::graphs::held::Tensor,
        "wasi:nn/graph.graph": crate::graphs::held::Graph,
        "wasi:nn/inference.graph-execution-context": crate::graphs::held::Context,
        "wasi:nn/errors.error": crate::graphs::held::NnError,
    },
});
