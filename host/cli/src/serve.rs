//! `modelhost serve`.

use std::io::Write;

use anyhow::{Context, Result};
use modelhost_server::{Config, Error, ErrorCode, Server, start_logs};
use tokio::signal::unix::{SignalKind, signal};

use crate::args::{LogFormat, ServeArgs};
use crate::client::Failure;

/// Serves until SIGTERM or Ctrl-C, then drains.
pub(crate) fn run(args: &ServeArgs) -> Result<()> {
    let format = match args.log_format {
        LogFormat::Text => modelhost_server::LogFormat::Text,
        LogFormat::Json => modelhost_server::LogFormat::Json,
    };
    start_logs(format, &args.log).map_err(Failure::Caller)?;
    let config = config(args).map_err(|error| failure(&error))?;
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = config.threads {
        builder.worker_threads(threads.max(1));
    }
    builder.enable_all().build().context("starting threads")?.block_on(serve(config))
}

async fn serve(config: Config) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let server = Server::start(config).await.map_err(|error| failure(&error))?;
    println!("listening on http://{}", server.address());
    if let Some(address) = server.grpc_address() {
        println!("listening on http://{address} (gRPC)");
    }
    println!("listening on http://{} (admin)", server.admin_address());
    std::io::stdout().flush().context("writing to standard output")?;
    tokio::select! {
        _ = terminate.recv() => {}
        result = tokio::signal::ctrl_c() => result.context("listening for Ctrl-C")?,
    }
    eprintln!("shutting down: waiting for running requests");
    server.stop().await;
    Ok(())
}

fn config(args: &ServeArgs) -> Result<Config, Error> {
    let mut config = args.config.as_deref().map(Config::read).transpose()?.unwrap_or_default();
    if let Some(data_dir) = &args.data_dir {
        config.data_dir.clone_from(data_dir);
    }
    config.listen = args.listen.unwrap_or(config.listen);
    config.admin_listen = args.admin_listen.unwrap_or(config.admin_listen);
    config.grpc_listen = args.grpc_listen.or(config.grpc_listen);
    config.repository_control |= args.repository_control;
    config.otlp_endpoint = args.otlp_endpoint.clone().or(config.otlp_endpoint);
    config.access_log &= !args.no_access_log;
    config.admin_allow_remote |= args.admin_allow_remote;
    config.runtimes_dir = args.runtimes_dir.clone().or(config.runtimes_dir);
    Ok(config)
}

fn failure(error: &Error) -> Failure {
    match error.code {
        ErrorCode::InvalidArgument | ErrorCode::NotFound => Failure::Caller(error.message.clone()),
        _ => Failure::Refused(error.message.clone()),
    }
}
