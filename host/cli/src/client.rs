//! Calls to a host, and the exit code of each kind of failure.

use std::fs::File;
use std::process::ExitCode;

use anyhow::{Context, Result};
use modelhost_admin::wire;
use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::http::Response;
use ureq::{Agent, Body, SendBody};

/// Why a call failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The request was malformed, or named something that does not exist.
    Caller(String),
    /// The host understood the request, but refused it or failed.
    Refused(String),
    /// No host answers at the address.
    Unreachable(String),
}

impl Failure {
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Caller(_) => 2,
            Self::Refused(_) => 3,
            Self::Unreachable(_) => 4,
        })
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Caller(text) | Self::Refused(text) | Self::Unreachable(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Failure {}

/// A client of one of a host's addresses.
pub(crate) struct Client {
    agent: Agent,
    base: String,
}

impl Client {
    pub(crate) fn new(address: &str) -> Self {
        let base = address.trim_end_matches('/');
        let base = if base.contains("://") { base.to_owned() } else { format!("http://{base}") };
        let agent = Agent::config_builder().http_status_as_error(false).build().new_agent();
        Self { agent, base }
    }

    pub(crate) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.read(self.agent.get(self.url(path)).call())
    }

    pub(crate) fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.read(self.agent.post(self.url(path)).send_json(body))
    }

    pub(crate) fn put<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.read(self.agent.put(self.url(path)).send_json(body))
    }

    pub(crate) fn patch<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.read(self.agent.patch(self.url(path)).send_json(body))
    }

    pub(crate) fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.read(self.agent.delete(self.url(path)).call())
    }

    /// Sends a body as it is. Returns the answer's text and the version that answered.
    pub(crate) fn post_raw(&self, path: &str, body: &[u8]) -> Result<(String, Option<String>)> {
        let response =
            self.check(self.agent.post(self.url(path)).content_type("application/json").send(body))?;
        let version = response.headers().get("modelhost-version").and_then(|value| value.to_str().ok());
        let version = version.map(str::to_owned);
        Ok((response.into_body().read_to_string().context("reading the answer")?, version))
    }

    /// Whether the host already has the blob at `path`.
    pub(crate) fn has(&self, path: &str) -> Result<bool> {
        let response = self.agent.get(self.url(path)).call();
        Ok(response.map_err(|error| self.unreachable(&error))?.status().is_success())
    }

    /// Uploads a file's content.
    pub(crate) fn put_file(&self, path: &str, file: File) -> Result<()> {
        let body = SendBody::from_owned_reader(file);
        self.check(self.agent.put(self.url(path)).content_type("application/octet-stream").send(body))?;
        Ok(())
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    fn unreachable(&self, error: &ureq::Error) -> Failure {
        Failure::Unreachable(format!("no host answers at {}: {error}", self.base))
    }

    fn read<T: DeserializeOwned>(&self, result: Result<Response<Body>, ureq::Error>) -> Result<T> {
        self.check(result)?.into_body().read_json().context("unexpected answer from the host")
    }

    fn check(&self, result: Result<Response<Body>, ureq::Error>) -> Result<Response<Body>, Failure> {
        let mut response = result.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.body_mut().read_to_string().unwrap_or_default();
        let text = match serde_json::from_str::<wire::Failure>(&body) {
            Ok(failure) => failure.error,
            Err(_) => format!("HTTP {status}: {body}"),
        };
        let callers = matches!(status.as_u16(), 400 | 404 | 405 | 413);
        Err(if callers { Failure::Caller(text) } else { Failure::Refused(text) })
    }
}
