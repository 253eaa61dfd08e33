//! The small, stable set of error codes. The error of every crate maps to one of them.

use std::fmt;
use std::sync::Arc;

/// The kind of a failure, from whichever layer it comes. It knows no transport: `protocol::status` maps it to HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// The caller sent something malformed or out of contract.
    InvalidArgument,
    /// The caller, or the web page that asks for the caller, may not do this.
    PermissionDenied,
    /// A named thing does not exist.
    NotFound,
    /// The request contradicts the current state; a retry without change fails again.
    Conflict,
    /// The request body or tensor is larger than a configured bound.
    TooLarge,
    /// The content's type or coding cannot be read here.
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

/// Longest message, in bytes. It may quote what a caller sent, and goes into headers and logs.
pub const MAX_MESSAGE: usize = 8 << 10;

/// A failure as every layer passes it on: a code to act on, a text for the caller, and a cause for the log.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// Tells the caller what to do.
    pub code: ErrorCode,
    /// Names the subject, what was expected and what came. The caller may see it; at most [`MAX_MESSAGE`] bytes and a
    /// sign that it was cut.
    pub message: String,
    /// For the log alone: its text may name paths and libraries of this host.
    #[source]
    cause: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error with this code and text.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: cut(message.into()), cause: None }
    }

    /// The caller's mistake.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidArgument, message)
    }

    /// Nothing has this name.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::NotFound, message)
    }

    /// The plugin's fault.
    pub fn fault(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::PluginFault, message)
    }

    /// The host's own failure.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Internal, message)
    }

    /// The same failure, with the place where it happened before it: `context: message`.
    #[must_use]
    pub fn within(self, context: impl fmt::Display) -> Self {
        Self { message: cut(format!("{context}: {}", self.message)), ..self }
    }

    /// The same failure with another culprit.
    #[must_use]
    pub fn with_code(self, code: ErrorCode) -> Self {
        Self { code, ..self }
    }

    /// The same failure with its cause. Callers do not see the cause.
    #[must_use]
    pub fn because(self, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { cause: Some(Arc::from(cause.into())), ..self }
    }

    /// The message and every cause below it, for the log.
    pub fn chain(&self) -> impl fmt::Display + '_ {
        Chain(self)
    }
}

fn cut(mut message: String) -> String {
    if message.len() > MAX_MESSAGE {
        message.truncate(message.floor_char_boundary(MAX_MESSAGE));
        message.shrink_to_fit();
        message.push('…');
    }
    message
}

struct Chain<'a>(&'a Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)?;
        let mut below = std::error::Error::source(self.0);
        while let Some(cause) = below {
            write!(f, ": {cause}")?;
            below = cause.source();
        }
        Ok(())
    }
}

/// Two errors are equal when callers see the same. Causes are for the log.
impl PartialEq for Error {
    fn eq(&self, other: &Self) -> bool {
        (self.code, &self.message) == (other.code, &other.message)
    }
}

impl Eq for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_goes_before_the_message_and_keeps_the_rest() {
        let error = Error::invalid("it is 3").because("a cause").within("input \"x\"").within("record 2");
        assert_eq!(
            (error.code, &*error.message),
            (ErrorCode::InvalidArgument, "record 2: input \"x\": it is 3")
        );
        let chain = "record 2: input \"x\": it is 3: a cause";
        assert_eq!(error.chain().to_string(), chain);
        let faulty = error.with_code(ErrorCode::PluginFault);
        assert_eq!((faulty.code, faulty.chain().to_string()), (ErrorCode::PluginFault, chain.to_owned()));
    }

    #[test]
    fn a_message_is_short_whatever_it_quotes() {
        let error = Error::invalid(format!("name {:?} is too long", "ü".repeat(1 << 20)));
        assert!(error.message.len() <= MAX_MESSAGE + '…'.len_utf8() && error.message.ends_with('…'));
        let error = error.within("input \"x\"");
        assert!(
            error.message.len() <= MAX_MESSAGE + '…'.len_utf8()
                && error.message.starts_with("input \"x\": name")
        );
    }

    #[test]
    fn causes_are_for_the_log_alone() {
        let disk = std::io::Error::other("no space left on /dev/sda");
        let inner = Error::internal("the blob cannot be written").because(disk);
        let error = Error::internal("the version was not stored").because(inner);
        assert_eq!(error.to_string(), "the version was not stored");
        assert_eq!(error, Error::internal("the version was not stored"));
        let chain = "the version was not stored: the blob cannot be written: no space left on /dev/sda";
        assert_eq!(error.chain().to_string(), chain);
        assert_eq!(error.clone().chain().to_string(), chain, "a copy has the same causes");
    }
}
