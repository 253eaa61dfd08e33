//! Content addresses. Hashing itself lives where the bytes are (registry, engine).

use std::fmt;

use crate::error::Error;

/// A SHA-256 digest; content is named by it, so equal digests mean equal bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// From the hash function's output.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Reads 64 lower-case hexadecimal digits, with or without `sha256:` before them.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let wrong = || Error::invalid(format!("digest {text:?} is not 64 lower-case hexadecimal digits"));
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        let (pairs, rest) = hex.as_bytes().as_chunks::<2>();
        let mut bytes = [0; 32];
        if pairs.len() != bytes.len() || !rest.is_empty() {
            return Err(wrong());
        }
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
            *byte = nibble(*high).ok_or_else(wrong)? << 4 | nibble(*low).ok_or_else(wrong)?;
        }
        Ok(Self(bytes))
    }
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A file of a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// The name the runtime reads it by.
    pub name: String,
    /// Its content.
    pub digest: Digest,
    /// Its size in bytes.
    pub bytes: u64,
}

/// Longest name of a file, in bytes.
const MAX_FILE_NAME: usize = 255;

/// Whether a file of a package may have this name: it must be a plain path below the package's folder. Errors:
/// invalid argument, with the name and its fault.
pub fn check_file_name(name: &str) -> Result<(), Error> {
    let wrong = |why: &str| {
        let shown: String = name.chars().take(MAX_FILE_NAME).collect();
        Err(Error::invalid(format!("file {shown:?}: {why}")))
    };
    if name.is_empty() || name.len() > MAX_FILE_NAME {
        return wrong("a name has 1 to 255 bytes");
    }
    if name.contains(|char: char| char.is_control() || matches!(char, '\\' | ':')) {
        return wrong("a name holds no control characters, no ':' and no '\\'");
    }
    if name.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return wrong("a name is a plain path below the package's folder, without \"..\" and not absolute");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_text_reads_back() {
        let digest = Digest::from_bytes(std::array::from_fn(|at| u8::try_from(at * 7).unwrap()));
        assert_eq!(Digest::parse(&digest.to_string()), Ok(digest));
        assert_eq!(Digest::parse(&format!("sha256:{digest}")), Ok(digest));
    }

    #[test]
    fn a_file_lies_below_its_package() {
        for name in ["model.json", "weights/model.onnx.data", "..a", "a b", "größe.bin"] {
            assert_eq!(check_file_name(name), Ok(()), "{name:?}");
        }
        let long = "x".repeat(256);
        for name in [
            "",
            "/etc/passwd",
            "../a",
            "a/../b",
            "a/..",
            "./a",
            "a//b",
            "a/",
            "a\\b",
            "C:a",
            "a\nb",
            "a\0",
            &long,
        ] {
            assert!(check_file_name(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn refuses_what_is_no_digest() {
        for text in ["", "00", &"g".repeat(64), &"A".repeat(64), &"0".repeat(63), &"0".repeat(65), "ü"] {
            assert!(Digest::parse(text).is_err(), "{text}");
        }
    }
}
