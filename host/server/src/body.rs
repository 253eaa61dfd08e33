//! Bodies: collected within bounds of bytes and time, decompressed and compressed by their `Content-Encoding`.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use async_compression::tokio::bufread::{
    GzipDecoder, GzipEncoder, Lz4Decoder, Lz4Encoder, ZlibDecoder, ZlibEncoder, ZstdDecoder, ZstdEncoder,
};
use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyDataStream, BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{ACCEPT_ENCODING, CONTENT_ENCODING, HeaderMap};
use modelhost_core::error::{Error, ErrorCode};
use tokio::io::{AsyncBufRead, AsyncRead, AsyncReadExt};
use tokio::sync::oneshot;
use tokio_util::io::StreamReader;

/// What goes out.
pub(crate) enum ResponseBody {
    /// All of it is there.
    Whole(Full<Bytes>),
    /// It is made while it is sent.
    Streamed(UnsyncBoxBody<Bytes, Broken>),
}

/// A response that ends early: the connection is cut, so that nobody takes it for whole.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Broken(pub(crate) String);

/// A response that is there.
pub(crate) fn whole(body: impl Into<Bytes>) -> ResponseBody {
    ResponseBody::Whole(Full::new(body.into()))
}

/// A response that is made while it is sent.
pub(crate) fn streamed<B>(body: B) -> ResponseBody
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: std::fmt::Display,
{
    ResponseBody::Streamed(body.map_err(|error| Broken(error.to_string())).boxed_unsync())
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match self.get_mut() {
            Self::Whole(body) => Pin::new(body)
                .poll_frame(context)
                .map(|frame| frame.map(|frame| frame.map_err(|never| match never {}))),
            Self::Streamed(body) => Pin::new(body).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(body) => body.is_end_stream(),
            Self::Streamed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body) => body.size_hint(),
            Self::Streamed(body) => body.size_hint(),
        }
    }
}

/// A content coding. RFC 9110, 8.4.1; lz4 frames are what Practicus clients send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coding {
    Gzip,
    /// The zlib format, which HTTP calls deflate.
    Deflate,
    Zstd,
    Lz4,
}

/// Most preferred first, where a client accepts several alike.
const CODINGS: [Coding; 4] = [Coding::Zstd, Coding::Gzip, Coding::Deflate, Coding::Lz4];

/// Answers smaller than this go out as they are: compressing them saves no packet.
const COMPRESS_FROM: usize = 1024;

impl Coding {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().as_str() {
            "gzip" | "x-gzip" => Some(Self::Gzip),
            "deflate" | "zlib" => Some(Self::Deflate),
            "zstd" => Some(Self::Zstd),
            "lz4" => Some(Self::Lz4),
            _ => None,
        }
    }

    /// The request body's coding. Errors: unsupported format, naming it.
    pub(crate) fn of_request(headers: &HeaderMap) -> Result<Option<Self>, Error> {
        let Some(value) = headers.get(CONTENT_ENCODING) else { return Ok(None) };
        let text = String::from_utf8_lossy(value.as_bytes());
        let text = text.trim();
        if text.is_empty() || text.eq_ignore_ascii_case("identity") {
            return Ok(None);
        }
        Self::parse(text).map(Some).ok_or_else(|| {
            let known = "gzip, deflate, zstd, lz4 and identity";
            Error::new(
                ErrorCode::UnsupportedFormat,
                format!("Content-Encoding {text:?} is not one of {known}"),
            )
        })
    }

    /// The coding that the client prefers for the response, if any.
    pub(crate) fn for_response(headers: &HeaderMap) -> Option<Self> {
        let mut best: Option<(Self, f32)> = None;
        for coding in CODINGS {
            let mut quality = None;
            for offer in headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok()) {
                for offer in offer.split(',') {
                    let (name, parameters) = offer.split_once(';').unwrap_or((offer, ""));
                    if Self::parse(name.trim()) == Some(coding) {
                        let weight = parameters.trim().strip_prefix("q=");
                        quality = Some(weight.map_or(1.0, |weight| weight.parse().unwrap_or(0.0)));
                    }
                }
            }
            if let Some(quality) = quality.filter(|quality| *quality > 0.0)
                && best.is_none_or(|(_, best)| quality > best)
            {
                best = Some((coding, quality));
            }
        }
        best.map(|(coding, _)| coding)
    }

    /// The plain bytes behind coded ones.
    pub(crate) fn decoder<'a>(
        self,
        coded: impl AsyncBufRead + Send + 'a,
    ) -> Pin<Box<dyn AsyncRead + Send + 'a>> {
        match self {
            Self::Gzip => {
                let mut decoder = GzipDecoder::new(coded);
                decoder.multiple_members(true);
                Box::pin(decoder)
            }
            Self::Deflate => Box::pin(ZlibDecoder::new(coded)),
            Self::Zstd => Box::pin(ZstdDecoder::new(coded)),
            Self::Lz4 => Box::pin(Lz4Decoder::new(coded)),
        }
    }

    fn encoder(self, plain: impl AsyncBufRead + Send + 'static) -> Pin<Box<dyn AsyncRead + Send>> {
        match self {
            Self::Gzip => Box::pin(GzipEncoder::new(plain)),
            Self::Deflate => Box::pin(ZlibEncoder::new(plain)),
            Self::Zstd => Box::pin(ZstdEncoder::new(plain)),
            Self::Lz4 => Box::pin(Lz4Encoder::new(plain)),
        }
    }

    /// Compresses a whole response; one that is too small to gain is left, and so `None`.
    pub(crate) async fn compress(self, plain: &Bytes) -> Option<Bytes> {
        if plain.len() < COMPRESS_FROM {
            return None;
        }
        let mut coded = BytesMut::with_capacity(plain.len() / 2);
        let mut encoder = self.encoder(io::Cursor::new(plain.clone()));
        loop {
            coded.reserve(READ);
            match encoder.read_buf(&mut coded).await {
                Ok(0) => return Some(coded.freeze()),
                Ok(_) => tokio::task::consume_budget().await,
                Err(_) => return None, // from memory to memory: it goes out uncompressed
            }
        }
    }
}

/// Bytes made room for at a time.
const READ: usize = 64 << 10;

/// Bounds on one request's body.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Bytes, before and after decompression.
    pub(crate) most: usize,
    /// Its arrival.
    pub(crate) time: Duration,
}

/// The whole body, decompressed. Errors: too large, before or after decompression; deadline exceeded while it arrives; invalid
/// argument, when it ends early or is not what its coding says; unsupported format.
pub(crate) async fn collect(
    headers: &HeaderMap,
    body: &mut Incoming,
    bounds: Bounds,
) -> Result<Bytes, Error> {
    let coding = Coding::of_request(headers)?;
    if body.size_hint().lower() > bounds.most as u64 {
        return Err(too_large(bounds.most));
    }
    let limited = Limited::new(body, bounds.most);
    let collected = async {
        match coding {
            None => match limited.collect().await {
                Ok(body) => Ok(body.to_bytes()),
                Err(error) if error.is::<LengthLimitError>() => Err(too_large(bounds.most)),
                Err(error) => Err(Error::invalid(format!("body: {error}"))),
            },
            Some(coding) => decompress(coding, limited, bounds.most).await,
        }
    };
    let late = |_| Error::new(ErrorCode::DeadlineExceeded, "body: it did not arrive in time");
    tokio::time::timeout(bounds.time, collected).await.map_err(late)?
}

/// Bytes and time that a refused request may still send: a connection closed on a sender takes the refusal with it.
const LINGER_BYTES: usize = 1 << 20;
const LINGER: Duration = Duration::from_secs(1);

/// Reads and forgets the rest of a refused request's body, within bounds.
pub(crate) async fn drain(body: Incoming) {
    let mut rest = Limited::new(body, LINGER_BYTES);
    let read = async { while let Some(Ok(_)) = rest.frame().await {} };
    drop(tokio::time::timeout(LINGER, read).await); // whoever sends on is cut off
}

/// A request's body in the hands of a handler that may not read it; what is left comes back when the handler lets go of it.
pub(crate) struct Lent {
    body: Option<Incoming>,
    back: Option<oneshot::Sender<Incoming>>,
}

impl Lent {
    pub(crate) fn new(body: Incoming) -> (Self, oneshot::Receiver<Incoming>) {
        let (back, left) = oneshot::channel();
        (Self { body: Some(body), back: Some(back) }, left)
    }
}

impl Body for Lent {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.body.as_mut().map_or(Poll::Ready(None), |body| Pin::new(body).poll_frame(context))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, Body::size_hint)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let (Some(body), Some(back)) = (self.body.take(), self.back.take()) {
            drop(back.send(body)); // nobody waits for it any more
        }
    }
}

async fn decompress(coding: Coding, body: Limited<&mut Incoming>, most: usize) -> Result<Bytes, Error> {
    let coded = StreamReader::new(BodyDataStream::new(body).map_err(io::Error::other));
    let mut decoder = coding.decoder(coded);
    let mut plain = BytesMut::new();
    loop {
        plain.reserve(READ);
        let read = decoder.read_buf(&mut plain).await.map_err(|error| {
            let bound = error.get_ref().is_some_and(|inner| inner.is::<LengthLimitError>());
            if bound {
                too_large(most)
            } else {
                Error::invalid(format!("body: {}: {error}", coding.as_str()))
            }
        })?;
        if read == 0 {
            return Ok(plain.freeze());
        }
        if plain.len() > most {
            return Err(Error::new(
                ErrorCode::TooLarge,
                format!("body: decompresses to more than the {most} bytes allowed"),
            ));
        }
        tokio::task::consume_budget().await;
    }
}

fn too_large(most: usize) -> Error {
    Error::new(ErrorCode::TooLarge, format!("body: larger than the {most} bytes allowed"))
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    #[test]
    fn the_client_chooses_the_coding() {
        for (accept, expected) in [
            ("", None),
            ("gzip", Some(Coding::Gzip)),
            ("gzip, deflate, br, zstd", Some(Coding::Zstd)),
            ("gzip;q=1.0, zstd;q=0.5", Some(Coding::Gzip)),
            ("gzip;q=0, identity", None),
            ("lz4", Some(Coding::Lz4)),
            ("br", None),
        ] {
            let headers = HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static(accept))]);
            assert_eq!(Coding::for_response(&headers), expected, "{accept}");
        }
    }

    #[tokio::test]
    async fn every_coding_gives_back_what_it_took() {
        let plain = Bytes::from("a line of text\n".repeat(1000));
        for coding in CODINGS {
            let coded = coding.compress(&plain).await.unwrap();
            assert!(coded.len() < plain.len() / 4, "{coding:?}");
            let mut back = Vec::new();
            coding.decoder(io::Cursor::new(coded)).read_to_end(&mut back).await.unwrap();
            assert_eq!(back, plain, "{coding:?}");
        }
        assert_eq!(Coding::Gzip.compress(&Bytes::from_static(b"small")).await, None);
    }
}
