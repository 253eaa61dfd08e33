//! Pages for people: the list of models, a page and API documentation for each.

use std::time::Instant;

use bytes::Bytes;
use hyper::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, HOST, HeaderMap, HeaderValue,
    X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Response, StatusCode};
use modelhost_core::error::Error;
use modelhost_core::version::Version;
use modelhost_protocol::page::{self, Outcome, Posted};
use modelhost_protocol::{openapi, status};
use modelhost_serving::Target;

use super::answer::{body, json, shown};
use super::{Answer, Call, Public};
use crate::body::ResponseBody;
use crate::guard;

const HTML: &str = "text/html; charset=utf-8";

/// Starts the documentation's viewer on what its page names: a page may run no script of its own.
const DOCS_SCRIPT: &str = include_str!("../../assets/docs.js");

/// Files of the documentation's viewer, compressed: `assets/swagger-ui/README.md` says which.
const ASSETS: [(&str, &str, &[u8]); 2] = [
    (
        "swagger-ui-bundle.js",
        "text/javascript",
        include_bytes!("../../assets/swagger-ui/swagger-ui-bundle.js.gz"),
    ),
    ("swagger-ui.css", "text/css", include_bytes!("../../assets/swagger-ui/swagger-ui.css.gz")),
];

impl Public {
    /// For people the list of models; for KServe V1's client whether the host lives.
    pub(super) fn root(&self, call: &Call) -> Answer {
        if !wants_html(&call.head.headers) {
            return Ok(json(&serde_json::json!({"status": "alive"})));
        }
        Ok(page_of(page::models(&self.serving.models())?, PAGE_POLICY))
    }

    pub(super) fn page(&self, target: Target<'_>, call: &Call) -> Answer {
        self.render(target, call, None, &[], &Outcome::Empty)
    }

    pub(super) fn openapi(&self, target: Target<'_>) -> Answer {
        let (model, version) = self.serving.describe(target)?;
        Ok(json(&openapi::document(&model, &version)))
    }

    pub(super) fn docs(&self, target: Target<'_>) -> Answer {
        let (model, _) = self.serving.describe(target)?;
        let document = match target.version {
            Some(version) => format!("/models/{}/{version}/openapi.json", model.name),
            None => format!("/models/{}/openapi.json", model.name),
        };
        // Names and versions hold no character that HTML or a string would mind.
        let html = format!(
            "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>{0}</title>\
             <link rel=\"stylesheet\" href=\"/assets/swagger-ui.css\"></head><body><div id=\"ui\" data-document=\"{document}\"></div>\
             <script src=\"/assets/swagger-ui-bundle.js\"></script><script src=\"/assets/docs.js\"></script>\
             <noscript>The document itself: <a href=\"{document}\">{document}</a></noscript></body></html>",
            model.name
        );
        Ok(page_of(html, DOCS_POLICY))
    }

    pub(super) fn asset(name: &str) -> Answer {
        if name == "docs.js" {
            return Ok(body("text/javascript", DOCS_SCRIPT));
        }
        let found = ASSETS.iter().find(|(asset, ..)| *asset == name);
        let (_, kind, content) =
            found.ok_or_else(|| Error::not_found(format!("there is no asset {name:?}")))?;
        let mut response = body(kind, *content);
        response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("public, max-age=86400"));
        response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        Ok(response)
    }

    /// Answers a filled-in form with the page and the answer, or with why there is none.
    pub(super) async fn form(&self, target: Target<'_>, call: &mut Call) -> Answer {
        let body = self.collect(call).await?;
        let posted = read_form(&call.head.headers, body).await?;
        let decoding = Instant::now();
        let answered = self.answer_form(target, call, &posted, decoding).await;
        match answered {
            Ok(page) => Ok(page),
            Err(error) => {
                let error = shown(&error, &call.record.request_id);
                let mut page = self.render(target, call, None, &posted.fields, &Outcome::Failed(&error))?;
                *page.status_mut() = StatusCode::from_u16(status::http(error.code)).unwrap_or_default();
                Ok(page)
            }
        }
    }

    async fn answer_form(
        &self,
        target: Target<'_>,
        call: &mut Call,
        posted: &Posted,
        decoding: Instant,
    ) -> Answer {
        let field = |field: &str| {
            let found = posted.fields.iter().find(|(name, _)| name == field);
            found.map(|(_, value)| value.clone().into_bytes())
        };
        let (resolved, sticky_field) = self.resolve_by(target, call, field)?;
        let request = page::decode(posted, resolved.version(), sticky_field.as_deref())?;
        call.record.decode = decoding.elapsed();
        let keep = |_: &Version, outputs: &[modelhost_core::tensor::Tensor]| Ok(outputs.to_vec());
        let outputs = call.record.predict(&resolved, request, self.request_timeout, keep).await?;
        let version = resolved.version();
        self.render(target, call, Some(version), &posted.fields, &Outcome::Answered(version, &outputs))
    }

    /// The page as `version` sees it, or the version that the target names.
    fn render(
        &self,
        target: Target<'_>,
        call: &Call,
        version: Option<&Version>,
        posted: &[(String, String)],
        outcome: &Outcome<'_>,
    ) -> Answer {
        let (model, described) = self.serving.describe(target)?;
        let version = version.unwrap_or(&described);
        let host = call.head.headers.get(HOST).and_then(|host| host.to_str().ok());
        let authority = call.head.uri.authority().map(hyper::http::uri::Authority::as_str).or(host);
        let authority = authority.unwrap_or("127.0.0.1:8080");
        let html = page::model(&model, version, target.version.is_some(), authority, posted, outcome)?;
        Ok(page_of(html, PAGE_POLICY))
    }
}

/// A page holds what callers typed: nothing in it may run.
const PAGE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// The viewer runs from its files, styles what it shows, and asks this host.
const DOCS_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
     connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'";

/// A page, which nobody may frame.
fn page_of(html: String, policy: &'static str) -> Response<ResponseBody> {
    let mut response = body(HTML, html);
    guard::protect(response.headers_mut(), policy);
    response
}

/// What browsers call a filled-in form.
pub(super) fn is_form(content_type: &[u8]) -> bool {
    content_type.starts_with(b"application/x-www-form-urlencoded")
        || content_type.starts_with(b"multipart/form-data")
}

/// Takes a form apart, url-encoded or in parts. A file that was not chosen has neither name nor content.
/// Errors: invalid argument, when its parts cannot be told apart.
async fn read_form(headers: &HeaderMap, body: Bytes) -> Result<Posted, Error> {
    let wrong = |error: multer::Error| Error::invalid(format!("form: {error}"));
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let Ok(boundary) = multer::parse_boundary(kind) else { return Ok(Posted::read(&body)) };
    let whole = futures_util::stream::once(async { Ok::<_, std::convert::Infallible>(body) });
    let mut parts = multer::Multipart::new(whole, boundary);
    let mut posted = Posted::default();
    while let Some(part) = parts.next_field().await.map_err(wrong)? {
        let name = part.name().unwrap_or_default().to_owned();
        match part.file_name() {
            None => posted.fields.push((name, part.text().await.map_err(wrong)?)),
            Some("") => {}
            Some(_) => posted.files.push((name, part.bytes().await.map_err(wrong)?)),
        }
    }
    Ok(posted)
}

/// `curl -d` calls JSON a form too, but does not ask for HTML.
pub(super) fn wants_html(headers: &HeaderMap) -> bool {
    let accepts = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok());
    accepts.is_some_and(|accept| accept.contains("text/html"))
}
