//! Puts the host together: configuration, storage, engine, serving, two listeners, shutdown.

mod body;
mod call;
mod config;
mod grpc;
mod handlers;
mod http;
mod system;
mod wiring;

pub use config::Config;
pub use modelhost_core::error::{Error, ErrorCode};
pub use modelhost_engine::run_compiler;
pub use modelhost_telemetry::{LogFormat, start_logs};
pub use wiring::Server;
