//! Generated from `wit/`. Typed on purpose: the dynamic `Val` path is three hundred times slower for tensors.

#![allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated")]

wasmtime::component::bindgen!({
    path: "../../wit",
    world: "runtime",
    ownership: Borrowing { duplicate_if_necessary: true },
    exports: { default: async },
});
