//! The one grammar of names: of prefixes, models, deployments and aliases.

use crate::error::Error;
use crate::model::ModelVersion;

/// Longest name, in bytes.
const LONGEST: usize = 64;

/// Whether this is a name: 1 to 64 ASCII letters, digits, `.`, `_` and `-`, of which the first is a letter or digit.
/// Errors: invalid argument, naming the `subject` and the text.
pub fn check(subject: &str, text: &str) -> Result<(), Error> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let starts_well = text.starts_with(|first: char| first.is_ascii_alphanumeric());
    if text.len() <= LONGEST && starts_well && text.bytes().all(allowed) {
        return Ok(());
    }
    let shown: String = text.chars().take(LONGEST).collect();
    let more = if shown.len() < text.len() { "…" } else { "" };
    Err(Error::invalid(format!(
        "{subject} {shown:?}{more} is not 1 to {LONGEST} letters, digits, '.', '_' or '-', starting \
         with a letter or digit"
    )))
}

/// Whether this is a name that can stand in a URL's path, where it must differ from these words and from a version.
/// Errors: as [`check`].
pub fn check_in_path(subject: &str, text: &str, words: &[&str]) -> Result<(), Error> {
    check(subject, text)?;
    let why = if words.contains(&text) {
        "it follows a model's name in a URL"
    } else if ModelVersion::parse(text).is_ok() {
        "it would be taken for a version"
    } else {
        return Ok(());
    };
    Err(Error::invalid(format!("{subject} {text:?} is reserved: {why}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(result: Result<(), Error>) -> String {
        result.map_or_else(|error| error.message, |()| "ok".to_owned())
    }

    #[test]
    fn a_name_is_short_and_plain() {
        let longest = "x".repeat(64);
        for text in ["a", "0", "team-a.gpu_1", "6", "v6", "a..b", &longest] {
            assert_eq!(check("alias", text), Ok(()));
        }
        for text in ["", ".", "-a", "_a", ".a", "a b", "a/b", "a\n", "a\0", "ü", "é", "a%20", "..", "../a"]
        {
            let expected = format!(
                "alias {text:?} is not 1 to 64 letters, digits, '.', '_' or '-', starting with a letter or digit"
            );
            assert_eq!(said(check("alias", text)), expected);
        }
    }

    #[test]
    fn a_message_shows_no_more_of_it_than_a_name_may_have() {
        for long in ["x".repeat(65), "ü".repeat(1 << 20)] {
            let said = said(check("alias", &long));
            assert!(said.contains("\"… is not 1 to 64") && said.len() < 300, "{} bytes", said.len());
        }
    }

    #[test]
    fn words_of_a_url_and_versions_are_reserved() {
        for (text, expected) in [
            ("stable", "ok"),
            ("docs2", "ok"),
            ("docs", "alias \"docs\" is reserved: it follows a model's name in a URL"),
            ("v6", "alias \"v6\" is reserved: it would be taken for a version"),
            ("6", "alias \"6\" is reserved: it would be taken for a version"),
            ("v0", "ok"),
        ] {
            assert_eq!(said(check_in_path("alias", text, &["docs", "infer"])), expected);
        }
    }
}
