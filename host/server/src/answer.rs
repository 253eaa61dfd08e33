//! Responses.

use bytes::Bytes;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Method, Response, StatusCode};
use modelhost_core::error::{Error, ErrorCode};
use modelhost_protocol::{oip_rest, status};

use crate::body::{ResponseBody, whole};
use crate::dialects::JSON;
use crate::guard;

pub(crate) const TEXT: &str = "text/plain; charset=utf-8";

/// A body of this media type.
pub(crate) fn body(media_type: &'static str, body: impl Into<Bytes>) -> Response<ResponseBody> {
    let mut response = Response::new(whole(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

pub(crate) fn json(value: &serde_json::Value) -> Response<ResponseBody> {
    body(JSON, value.to_string())
}

/// A page holds what callers typed: nothing in it may run.
pub(crate) const PAGE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// The viewer runs from its files, styles what it shows, and asks this host.
pub(crate) const DOCS_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
     connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'";

/// A page, which nobody may frame.
pub(crate) fn page(mut response: Response<ResponseBody>, policy: &'static str) -> Response<ResponseBody> {
    guard::protect(response.headers_mut(), policy);
    response
}

pub(crate) fn wrong_method(allowed: &[Method]) -> Response<ResponseBody> {
    let allowed = allowed.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
    let mut response = json(&serde_json::json!({"error": format!("only {allowed} is answered here")}));
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    if let Ok(value) = HeaderValue::from_str(&allowed) {
        response.headers_mut().insert(ALLOW, value);
    }
    response
}

/// The host's own failures are logged, and shown without what is inside.
pub(crate) fn refuse(error: &Error, request_id: &str) -> Response<ResponseBody> {
    let mut response = json(&oip_rest::error(&shown(error, request_id)));
    *response.status_mut() =
        StatusCode::from_u16(status::http(error.code)).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if matches!(error.code, ErrorCode::ResourceExhausted | ErrorCode::Unavailable) {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// What the caller sees of a failure: all of it, unless it is the host's own.
pub(crate) fn shown(error: &Error, request_id: &str) -> Error {
    if error.code != ErrorCode::Internal {
        return error.clone();
    }
    tracing::error!(error = %error.chain(), request_id, "a request failed");
    Error::internal(format!("the host failed; its log has the reason under request {request_id}"))
}
