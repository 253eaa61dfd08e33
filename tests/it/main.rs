//! The whole host, in process and as the real binary. One binary: each more would link wasmtime again.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "tests: a panic is their way to fail"
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
mod hostile_guests;
mod loading;
mod observe;
mod overload;
mod predictions;
mod python;
mod traffic;
