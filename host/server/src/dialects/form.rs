//! A model's page as a dialect: a filled-in form in, the page with its answer out.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures_util::FutureExt;
use modelhost_core::error::Error;
use modelhost_core::infer::InferRequest;
use modelhost_core::room::Room;
use modelhost_core::tensor::Tensor;
use modelhost_core::version::{Model, Version};
use modelhost_protocol::page::{self, Outcome, Posted};
use modelhost_serving::Resolved;

use crate::pipeline::{Choice, Dialect, Encoded};

/// Copies of a form's bytes at once while it is read.
const COPIES: usize = 3;

/// The media type of pages.
pub(crate) const HTML: &str = "text/html; charset=utf-8";

#[derive(Clone)]
pub(crate) struct Form {
    pub(crate) model: Arc<Model>,
    /// The caller named the version.
    pub(crate) explicit: bool,
    /// The host and port that the caller reached the host under.
    pub(crate) authority: String,
    /// The form's.
    pub(crate) content_type: String,
    /// What was filled in, once it is read: it stays on the page, also when there is no answer.
    pub(crate) fields: Arc<OnceLock<Vec<(String, String)>>>,
}

impl Form {
    /// The page as this version sees it.
    pub(crate) fn page(&self, version: &Version, outcome: &Outcome<'_>) -> Result<String, Error> {
        let fields = self.fields.get().map_or(&[][..], Vec::as_slice);
        page::model(&self.model, version, self.explicit, &self.authority, fields, outcome)
    }
}

impl Dialect for Form {
    type Form = ();

    fn decode(
        &self,
        content: &Bytes,
        choice: Choice,
        room: &Room,
    ) -> Result<(Resolved, InferRequest, ()), Error> {
        // Taking a form apart copies it, its parts, and what it holds.
        room.take(content.len().saturating_mul(COPIES))?;
        let posted = read(&self.content_type, content)?;
        let fields = self.fields.get_or_init(|| posted.fields.clone());
        let (resolved, sticky) = choice.by_field(|field| {
            let found = fields.iter().find(|(name, _)| name == field);
            found.map(|(_, value)| value.clone().into_bytes())
        })?;
        let request = page::decode(&posted, resolved.version(), sticky.as_deref(), room)?;
        Ok((resolved, request, ()))
    }

    fn encode(&self, version: &Version, outputs: &[Tensor], (): (), _: &Room) -> Result<Encoded, Error> {
        Ok(Encoded::new(HTML, self.page(version, &Outcome::Answered(version, outputs))?))
    }
}

/// Takes a form apart, url-encoded or in parts. A file that was not chosen has neither name nor content.
/// Errors: invalid argument, when its parts cannot be told apart or are too many.
fn read(content_type: &str, content: &Bytes) -> Result<Posted, Error> {
    let Ok(boundary) = multer::parse_boundary(content_type) else { return Posted::read(content) };
    let whole = content.clone();
    let parts =
        multer::Multipart::new(futures_util::stream::once(async { Ok::<_, Infallible>(whole) }), boundary);
    // All of it is there: nothing waits.
    read_parts(parts).now_or_never().unwrap_or_else(|| Err(Error::invalid("form: it ends early")))
}

async fn read_parts(mut parts: multer::Multipart<'_>) -> Result<Posted, Error> {
    let wrong = |error: multer::Error| Error::invalid(format!("form: {error}")).because(error);
    let mut posted = Posted::default();
    while let Some(part) = parts.next_field().await.map_err(wrong)? {
        let name = part.name().unwrap_or_default().to_owned();
        match part.file_name() {
            None => posted.add_field(name, part.text().await.map_err(wrong)?)?,
            Some("") => {}
            Some(_) => posted.add_file(name, part.bytes().await.map_err(wrong)?)?,
        }
    }
    Ok(posted)
}
