//! Tests the whole host, in process and as the real binary. All are in one binary, because each binary links wasmtime.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "tests fail by panicking"
)]

mod admin_guard;
mod cache;
mod cli;
mod csv;
mod deployments;
mod durability;
mod faults;
mod graphs;
mod hostile;
mod hostile_callers;
mod hostile_graphs;
mod hostile_grpc;
mod hostile_guests;
mod loading;
mod observe;
mod overload;
mod predictions;
mod python;
mod traffic;
