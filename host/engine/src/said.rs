//! Makes texts of a guest safe to show: short and on one line, so that they cannot forge log lines. `core` bounds
//! tensors and signatures.

use modelhost_core::tensor::is_printable;

/// Longest text, in bytes.
const MAX_TEXT: usize = 4096;

/// Escapes unprintable characters and cuts long texts.
pub(crate) fn text(said: &str) -> String {
    let head = said.get(..said.floor_char_boundary(MAX_TEXT)).unwrap_or_default();
    let mut text = String::with_capacity(head.len());
    for char in head.chars() {
        if is_printable(char) {
            text.push(char);
        } else {
            text.extend(char.escape_default());
        }
    }
    text
}

/// The error of a step. wasmtime's errors quote the component.
pub(crate) fn error(step: &str, error: &wasmtime::Error) -> String {
    format!("{step}: {}", text(&format!("{error:#}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_stays_on_its_line_and_ends() {
        for (said, expected) in [
            ("größe 1", "größe 1"),
            ("ok\nINFO forged\r\n", "ok\\nINFO forged\\r\\n"),
            ("\u{1b}[31mred", "\\u{1b}[31mred"),
            ("\u{202e}back", "\\u{202e}back"),
            ("", ""),
        ] {
            assert_eq!(text(said), expected);
        }
        assert_eq!(text(&"ü".repeat(5000)).len(), MAX_TEXT);
    }
}
