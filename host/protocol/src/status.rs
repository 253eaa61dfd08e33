//! Error codes on the wire, in one place, so that two front-ends never disagree.

use modelhost_core::error::ErrorCode;

/// The HTTP status of a failure. A plugin's fault is 502, so that it is never taken for the host's 500.
pub fn http(code: ErrorCode) -> u16 {
    match code {
        ErrorCode::InvalidArgument => 400,
        ErrorCode::PermissionDenied => 403,
        ErrorCode::NotFound => 404,
        ErrorCode::Conflict => 409,
        ErrorCode::TooLarge => 413,
        ErrorCode::UnsupportedFormat => 415,
        ErrorCode::Internal => 500,
        ErrorCode::Unsupported => 501,
        ErrorCode::PluginFault => 502,
        ErrorCode::ResourceExhausted | ErrorCode::Unavailable => 503,
        ErrorCode::DeadlineExceeded => 504,
    }
}

/// The gRPC status of a failure. A plugin's fault is UNKNOWN (2), so that it is never taken for the host's INTERNAL
/// (13).
pub fn grpc(code: ErrorCode) -> i32 {
    match code {
        ErrorCode::PluginFault => 2,
        ErrorCode::InvalidArgument => 3,
        ErrorCode::DeadlineExceeded => 4,
        ErrorCode::NotFound => 5,
        ErrorCode::PermissionDenied => 7,
        ErrorCode::TooLarge | ErrorCode::ResourceExhausted => 8,
        ErrorCode::Conflict => 9,
        ErrorCode::Unsupported | ErrorCode::UnsupportedFormat => 12,
        ErrorCode::Internal => 13,
        ErrorCode::Unavailable => 14,
    }
}
