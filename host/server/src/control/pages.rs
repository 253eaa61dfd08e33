//! Pages for people: the list of models, a page and API documentation for each.

use std::sync::{Arc, OnceLock};

use hyper::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, HOST, HeaderMap, HeaderValue,
    X_CONTENT_TYPE_OPTIONS,
};
use modelhost_core::error::Error;
use modelhost_core::version::Version;
use modelhost_protocol::openapi;
use modelhost_protocol::page::{self, Outcome};
use modelhost_serving::Target;

use crate::answer::{self, DOCS_POLICY, PAGE_POLICY, body, json};
use crate::dialects::{Form, HTML};
use crate::public::{Answer, Call, Public};

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
    pub(super) async fn root(&self, call: &Call) -> Answer {
        if !wants_html(&call.head.headers) {
            return Ok(json(&serde_json::json!({"status": "alive"})));
        }
        let serving = Arc::clone(&self.serving);
        let page = move || Ok(page::models(&serving.models())?.into());
        Ok(answer::page(self.document(call, HTML, "page of models".to_owned(), page).await?, PAGE_POLICY))
    }

    pub(super) async fn page(&self, target: Target<'_>, call: &Call) -> Answer {
        let (form, version) = self.form_of(target, call)?;
        let name = format!(
            "page {} {} {:p} {}",
            version.number,
            form.explicit,
            Arc::as_ptr(&form.model),
            form.authority
        );
        let page = move || Ok(form.page(&version, &Outcome::Empty)?.into());
        Ok(answer::page(self.document(call, HTML, name, page).await?, PAGE_POLICY))
    }

    pub(super) async fn openapi(&self, target: Target<'_>, call: &Call) -> Answer {
        let (model, version) = self.serving.describe(target)?;
        let name = format!("openapi {} {:p}", version.number, Arc::as_ptr(&model));
        self.list(call, name, move || Ok(openapi::document(&model, &version))).await
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
        Ok(answer::page(body(HTML, html), DOCS_POLICY))
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

    /// A model's page, and the version that the target names. Errors: not found; unavailable.
    pub(crate) fn form_of(&self, target: Target<'_>, call: &Call) -> Result<(Form, Arc<Version>), Error> {
        let (model, version) = self.serving.describe(target)?;
        let text = |name| call.head.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let authority = call.head.uri.authority().map(hyper::http::uri::Authority::as_str).or(text(HOST));
        let form = Form {
            model,
            explicit: target.version.is_some(),
            authority: authority.unwrap_or("127.0.0.1:8080").to_owned(),
            content_type: text(CONTENT_TYPE).unwrap_or_default().to_owned(),
            fields: Arc::new(OnceLock::new()),
        };
        Ok((form, version))
    }
}

/// What browsers call a filled-in form.
pub(crate) fn is_form(content_type: &[u8]) -> bool {
    content_type.starts_with(b"application/x-www-form-urlencoded")
        || content_type.starts_with(b"multipart/form-data")
}

/// `curl -d` calls JSON a form too, but does not ask for HTML.
pub(crate) fn wants_html(headers: &HeaderMap) -> bool {
    let accepts = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok());
    accepts.is_some_and(|accept| accept.contains("text/html"))
}
