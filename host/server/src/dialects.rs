//! The dialects of HTTP: each reads a request and writes an answer, in the words of `modelhost_protocol`.

pub(crate) mod csv;
mod form;
mod mlflow;
mod oip;
mod records;
mod tf_serving;

pub(crate) use form::{Form, HTML};
pub(crate) use mlflow::Mlflow;
pub(crate) use oip::Oip;
pub(crate) use records::Records;
pub(crate) use tf_serving::TfServing;

/// The media type of most answers.
pub(crate) const JSON: &str = "application/json";
