//! What a web page in somebody's browser may ask of this host. A page reaches loopback as its reader does, so the
//! address guards nothing: what a browser says of a request (`Host`, `Origin`, `Sec-Fetch-Site`) decides. Programs
//! other than browsers can say anything and are not meant here.
//!
//! - `Host`: a page whose name was pointed at this host's address after it was loaded (DNS rebinding) is of the same
//!   origin as what it asks; only the name tells. An address cannot be pointed elsewhere.
//! - `Origin` and `Sec-Fetch-Site`, of whatever changes or predicts: the page itself must be this host's.
//! - Content types, on the admin port: a form or a plain `fetch` of a foreign page cannot send JSON without asking
//!   first, and nothing here answers such a question (`OPTIONS`).

use std::net::IpAddr;

use hyper::header::{
    CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use hyper::http::uri::Authority;
use hyper::{Method, Request, Uri, Version};
use modelhost_core::error::{Error, ErrorCode};

/// Where a browser says how the page relates to what it asks. Source: W3C, Fetch Metadata Request Headers.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// What the guard reads of a request.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) method: &'a Method,
    pub(crate) uri: &'a Uri,
    pub(crate) version: Version,
    pub(crate) headers: &'a HeaderMap,
}

impl<'a> Asked<'a> {
    pub(crate) fn by<B>(request: &'a Request<B>) -> Self {
        let (method, uri) = (request.method(), request.uri());
        Self { method, uri, version: request.version(), headers: request.headers() }
    }
}

/// The names of one listener, and the pages that may use it.
#[derive(Debug, Clone)]
pub(crate) struct Allowed {
    address: IpAddr,
    hosts: Vec<String>,
    origins: Vec<String>,
}

impl Allowed {
    /// `address`: what the listener is bound to. Errors: invalid argument, naming the setting.
    pub(crate) fn new(address: IpAddr, hosts: &[String], origins: &[String]) -> Result<Self, Error> {
        for host in hosts {
            let plain =
                host.parse::<Authority>().is_ok_and(|authority| authority.as_str() == authority.host());
            if !plain {
                return Err(Error::invalid(format!(
                    "allowed_hosts: {host:?} is not a host's name without scheme and port, as in \"models.example.org\""
                )));
            }
        }
        for origin in origins {
            let authority = authority_of(origin).and_then(|text| text.parse::<Authority>().ok());
            if authority.is_none_or(|authority| authority.as_str().contains('@')) {
                return Err(Error::invalid(format!(
                    "allowed_origins: {origin:?} is not an origin, as in \"https://console.example.org\""
                )));
            }
        }
        let lower = |texts: &[String]| texts.iter().map(|text| text.to_ascii_lowercase()).collect();
        Ok(Self { address, hosts: lower(hosts), origins: lower(origins) })
    }

    /// Loopback, the listener's own address (any, where it listens on all of them), and the names that were configured.
    fn host(&self, authority: &str) -> bool {
        let Ok(authority) = authority.parse::<Authority>() else { return false };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = host.parse::<IpAddr>() {
            let address = address.to_canonical();
            return address.is_loopback() || self.address.is_unspecified() || address == self.address;
        }
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        host == "localhost" || host.ends_with(".localhost") || self.hosts.contains(&host)
    }

    fn origin(&self, origin: &str) -> bool {
        self.origins.iter().any(|allowed| allowed.eq_ignore_ascii_case(origin))
    }
}

/// The public port. Programs send what they like: the name is checked where a browser asks, or where names were
/// configured. Errors: permission denied.
pub(crate) fn check_public(asked: Asked<'_>, allowed: &Allowed) -> Result<(), Error> {
    let browser = asked.headers.contains_key(ORIGIN) || asked.headers.contains_key(SEC_FETCH_SITE);
    if browser || !allowed.hosts.is_empty() {
        check_host(asked, allowed)?;
    }
    if browser { check_origin(asked, allowed) } else { Ok(()) }
}

/// The admin port: the name is always checked, and what comes is JSON, or bytes where a file is uploaded. Errors:
/// permission denied; unsupported format.
pub(crate) fn check_admin(asked: Asked<'_>, has_body: bool, allowed: &Allowed) -> Result<(), Error> {
    check_host(asked, allowed)?;
    check_origin(asked, allowed)?;
    if !has_body || is_safe(asked.method) {
        return Ok(());
    }
    let uploads = *asked.method == Method::PUT && asked.uri.path().contains("/blobs/");
    let expected = if uploads { "application/octet-stream" } else { "application/json" };
    let came = asked.headers.get(CONTENT_TYPE).map(|kind| String::from_utf8_lossy(kind.as_bytes()));
    match came.as_deref() {
        Some(kind) if media_type(kind).eq_ignore_ascii_case(expected) => Ok(()),
        // No page can send a PUT of any kind unasked, and `curl -T` names no type.
        None if uploads => Ok(()),
        came => Err(Error::new(
            ErrorCode::UnsupportedFormat,
            format!("content-type {:?}: expected {expected}", came.unwrap_or_default()),
        )),
    }
}

/// Every name that the request gives must be ours. HTTP/2 has it in `:authority`. Only HTTP/1.0 may leave it out, and
/// then only look.
fn check_host(asked: Asked<'_>, allowed: &Allowed) -> Result<(), Error> {
    let in_uri = asked.uri.authority().map(|authority| authority.as_str().as_bytes());
    let in_headers = asked.headers.get_all(HOST).iter().map(HeaderValue::as_bytes);
    let mut names = in_uri.into_iter().chain(in_headers).map(String::from_utf8_lossy).peekable();
    if names.peek().is_none() {
        let probe = asked.version <= Version::HTTP_10 && is_safe(asked.method);
        return if probe { Ok(()) } else { Err(denied("the request names no host".to_owned())) };
    }
    match names.find(|name| !allowed.host(name)) {
        None => Ok(()),
        Some(name) => Err(denied(format!(
            "host {name:?} is not one of this host's names; the setting allowed_hosts adds names"
        ))),
    }
}

/// Whatever changes or predicts comes from a page of this host, or of an allowed origin, or from no page.
fn check_origin(asked: Asked<'_>, allowed: &Allowed) -> Result<(), Error> {
    if is_safe(asked.method) {
        return Ok(());
    }
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    if let Some(origin) = asked.headers.get(ORIGIN).map(text) {
        if allowed.origin(&origin) {
            return Ok(());
        }
        if !is_same_origin(asked, &origin) {
            return Err(denied(format!(
                "origin {origin:?} may not change or predict anything here; the setting allowed_origins adds origins"
            )));
        }
    }
    match asked.headers.get(SEC_FETCH_SITE).map(HeaderValue::as_bytes) {
        None | Some(b"same-origin" | b"none") => Ok(()),
        Some(_) => Err(denied("a page of another site may not change or predict anything here".to_owned())),
    }
}

fn is_same_origin(asked: Asked<'_>, origin: &str) -> bool {
    let host = || asked.headers.get(HOST).and_then(|host| host.to_str().ok());
    let ours = asked.uri.authority().map(Authority::as_str).or_else(host);
    authority_of(origin).is_some_and(|theirs| ours.is_some_and(|ours| ours.eq_ignore_ascii_case(theirs)))
}

fn authority_of(origin: &str) -> Option<&str> {
    origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"))
}

fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

fn media_type(kind: &str) -> &str {
    kind.split(';').next().unwrap_or_default().trim()
}

fn denied(text: String) -> Error {
    Error::new(ErrorCode::PermissionDenied, text)
}

/// For what is no page: nothing in it is loaded, run or framed.
pub(crate) const NO_PAGE: &str = "default-src 'none'; frame-ancestors 'none'";

/// Puts on what keeps a browser from running, framing or guessing at an answer; `policy` says what a page may load.
/// The referrer stays: without it a browser calls the origin of a page's own form `null`.
pub(crate) fn protect(headers: &mut HeaderMap, policy: &'static str) {
    for (name, value) in [
        (CONTENT_SECURITY_POLICY, policy),
        (X_FRAME_OPTIONS, "DENY"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

#[cfg(test)]
mod tests;
