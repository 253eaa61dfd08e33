//! The whole host, in process and as the real binary. One binary: each more would link wasmtime again.

mod cli;
mod durability;
mod faults;
mod overload;
mod predictions;
mod python;
mod traffic;
