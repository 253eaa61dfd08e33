//! The small, stable set of error codes that every crate's error maps to.

use std::fmt;

/// What kind of failure it is, whoever reports it. Knows no transport: `protocol::status` maps it to HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// The caller sent something malformed or out of contract.
    InvalidArgument,
    /// Who asks, or the page that asks for them, may not.
    PermissionDenied,
    /// A named thing does not exist.
    NotFound,
    /// The request contradicts the current state; a retry without change fails again.
    Conflict,
    /// The request body or tensor is larger than a configured bound.
    TooLarge,
    /// The content's type or coding is not one that is read here.
    UnsupportedFormat,
    /// A bound on queued or running work is reached; a later retry may succeed.
    ResourceExhausted,
    /// The deadline passed before an answer was ready.
    DeadlineExceeded,
    /// The version or the host is not ready yet, or is shutting down.
    Unavailable,
    /// The operation exists in the protocol but not here.
    Unsupported,
    /// The plugin trapped, passed a limit or broke its contract.
    PluginFault,
    /// The host failed.
    Internal,
}

impl ErrorCode {
    /// Every code, for metrics that start at zero.
    pub const ALL: [Self; 12] = [
        Self::InvalidArgument,
        Self::PermissionDenied,
        Self::NotFound,
        Self::Conflict,
        Self::TooLarge,
        Self::UnsupportedFormat,
        Self::ResourceExhausted,
        Self::DeadlineExceeded,
        Self::Unavailable,
        Self::Unsupported,
        Self::PluginFault,
        Self::Internal,
    ];

    /// The snake_case name used on the wire, in logs and in metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidArgument => "invalid_argument",
            Self::PermissionDenied => "permission_denied",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::TooLarge => "too_large",
            Self::UnsupportedFormat => "unsupported_format",
            Self::ResourceExhausted => "resource_exhausted",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Unavailable => "unavailable",
            Self::Unsupported => "unsupported",
            Self::PluginFault => "plugin_fault",
            Self::Internal => "internal",
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A failure as every layer passes it on: a code to act on and a text for the person who caused it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// What to do about it.
    pub code: ErrorCode,
    /// Names the subject, what was expected and what came. Safe to show to the caller.
    pub message: String,
}

impl Error {
    /// An error with this code and text.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The caller's mistake.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidArgument, message)
    }

    /// A name that names nothing.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::NotFound, message)
    }

    /// The host's own failure.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Internal, message)
    }
}
