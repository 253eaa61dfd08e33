//! Content codings: what comes and goes compressed.

use std::io;
use std::pin::Pin;

use async_compression::tokio::bufread::{
    GzipDecoder, GzipEncoder, Lz4Decoder, Lz4Encoder, ZlibDecoder, ZlibEncoder, ZstdDecoder, ZstdEncoder,
};
use async_compression::zstd::DParameter;
use bytes::Bytes;
use hyper::header::{ACCEPT_ENCODING, CONTENT_ENCODING, HeaderMap};
use modelhost_core::budget::Charge;
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::room::Room;
use tokio::io::{AsyncBufRead, AsyncRead, AsyncReadExt};

/// The largest window that a zstd stream may ask for is 2 to this power: 8 MiB, the bound of RFC 9659.
const ZSTD_WINDOW: u32 = 23;

/// Bytes that a decoder may hold of a stream that is not whole yet: the largest window of any coding, and what
/// surrounds it.
pub(crate) const WORKSPACE: usize = (1 << ZSTD_WINDOW) + (1 << 20);

/// Bytes made room for at a time.
const READ: usize = 64 << 10;

/// A content coding. RFC 9110, 8.4.1; lz4 frames are what Practicus clients send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Coding {
    Gzip,
    /// The zlib format, which HTTP calls deflate.
    Deflate,
    Zstd,
    Lz4,
}

/// Most preferred first, where a client accepts several alike.
const CODINGS: [Coding; 4] = [Coding::Zstd, Coding::Gzip, Coding::Deflate, Coding::Lz4];

/// Offers of a client that are looked at: there are few codings.
const OFFERS: usize = 32;

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

    /// The coding of this name in gRPC's headers.
    pub(crate) fn grpc(name: &str) -> Option<Self> {
        Self::parse(name).filter(|coding| *coding != Self::Lz4)
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
        let values = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
        let offers = values.flat_map(|value| value.split(',')).take(OFFERS).filter_map(|offer| {
            let (name, parameters) = offer.split_once(';').unwrap_or((offer, ""));
            let weight = parameters.trim().strip_prefix("q=");
            let quality: f32 = weight.map_or(1.0, |weight| weight.parse().unwrap_or(0.0));
            Some((Self::parse(name.trim())?, quality)).filter(|(_, quality)| *quality > 0.0)
        });
        let rank = |coding| CODINGS.iter().position(|known| *known == coding);
        let best = offers.max_by(|(a, quality), (b, other)| {
            quality.total_cmp(other).then_with(|| rank(*b).cmp(&rank(*a)))
        });
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
            Self::Zstd => {
                Box::pin(ZstdDecoder::with_params(coded, &[DParameter::window_log_max(ZSTD_WINDOW)]))
            }
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

    /// Compresses a whole response, which `charge` grows with. One that is too small to gain is left, and one that
    /// finds no room: `None`.
    pub(crate) async fn compress(self, plain: &Bytes, charge: Charge) -> Option<(Bytes, Charge)> {
        if plain.len() < COMPRESS_FROM {
            return None;
        }
        let (room, mut coded) = (Room::of(charge), Vec::new());
        let mut encoder = self.encoder(io::Cursor::new(plain.clone()));
        loop {
            room.reserve(&mut coded, READ.min(plain.len())).ok()?;
            match encoder.read_buf(&mut coded).await {
                Ok(0) => return Some((room.finish(coded), room.into_charge())),
                Ok(_) => tokio::task::consume_budget().await,
                Err(_) => return None, // from memory to memory: it goes out uncompressed
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;
    use modelhost_core::budget::ByteBudget;

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
            ("deflate, gzip", Some(Coding::Gzip)),
        ] {
            let headers = HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static(accept))]);
            assert_eq!(Coding::for_response(&headers), expected, "{accept}");
        }
        let many = format!("{}gzip", "br,".repeat(OFFERS));
        let headers = HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_str(&many).unwrap())]);
        assert_eq!(Coding::for_response(&headers), None);
    }

    #[tokio::test]
    async fn every_coding_gives_back_what_it_took() {
        let plain = Bytes::from("a line of text\n".repeat(1000));
        let budget = ByteBudget::new("this host", 1 << 20);
        for coding in CODINGS {
            let (coded, charge) = coding.compress(&plain, budget.charge()).await.unwrap();
            assert!(coded.len() < plain.len() / 4 && charge.bytes() >= coded.len() as u64, "{coding:?}");
            let mut back = Vec::new();
            coding.decoder(io::Cursor::new(coded)).read_to_end(&mut back).await.unwrap();
            assert_eq!(back, plain, "{coding:?}");
        }
        assert_eq!(budget.used(), 0);
        assert!(Coding::Gzip.compress(&Bytes::from_static(b"small"), budget.charge()).await.is_none());
        let full = ByteBudget::new("this host", 100);
        assert!(Coding::Gzip.compress(&plain, full.charge()).await.is_none());
    }
}
