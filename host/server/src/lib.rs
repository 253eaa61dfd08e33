//! Puts the host together: configuration, storage, engine, serving, two listeners, shutdown.

mod admin;
mod answer;
mod aside;
mod body;
mod coding;
mod config;
mod control;
mod data;
mod dialects;
mod exchange;
mod grpc;
mod guard;
mod listen;
mod pipeline;
mod public;
mod route;
mod system;
mod watch;
mod wiring;

pub use config::Config;
pub use modelhost_core::error::{Error, ErrorCode};
pub use modelhost_engine::run_compiler;
pub use modelhost_telemetry::{LogFormat, start_logs};
pub use wiring::Server;
