//! A JSON reader over bytes that builds no tree: tensors of millions of numbers go straight to their bytes.
//!
//! Beside RFC 8259 it reads the bare tokens `NaN`, `Infinity` and `-Infinity`, which Triton and TF Serving write and
//! read too. Nesting is bounded.

use std::borrow::Cow;

use modelhost_core::error::Error;
use modelhost_core::infer::Parameter;
use modelhost_core::room::Room;

use crate::out::Out;
use crate::reply::check_name;

/// Most parameters of one request or tensor.
const MAX_PARAMETERS: usize = 1024;

/// Longest number: messages quote it.
const MAX_NUMBER: usize = 4096;

/// Deepest nesting read.
const MAX_DEPTH: u32 = 64;

type Result<T> = std::result::Result<T, Error>;

pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    depth: u32,
    room: &'a Room,
}

impl<'a> Reader<'a> {
    /// `room`: what is kept of the text takes from it.
    pub(crate) fn new(bytes: &'a [u8], room: &'a Room) -> Self {
        Self { bytes, at: 0, depth: 0, room }
    }

    /// Where what is read is kept.
    pub(crate) fn room(&self) -> &'a Room {
        self.room
    }

    /// The byte that the next value or punctuation starts with.
    pub(crate) fn peek(&mut self) -> Option<u8> {
        while let Some(byte) = self.bytes.get(self.at) {
            match byte {
                b' ' | b'\n' | b'\r' | b'\t' => self.at += 1,
                other => return Some(*other),
            }
        }
        None
    }

    /// Takes `byte` if it comes next.
    fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, byte: u8, what: &str) -> Result<()> {
        if self.take(byte) { Ok(()) } else { Err(self.wrong(what)) }
    }

    /// A syntax error here.
    pub(crate) fn wrong(&mut self, expected: &str) -> Error {
        let came = match self.peek() {
            None => "the end".to_owned(),
            Some(byte) if byte.is_ascii_graphic() => format!("'{}'", byte as char),
            Some(byte) => format!("byte 0x{byte:02x}"),
        };
        Error::invalid(format!(
            "body is not valid JSON: expected {expected} at byte {}, {came} came",
            self.at
        ))
    }

    /// Nothing but white space may follow.
    pub(crate) fn finish(mut self) -> Result<()> {
        if self.peek().is_none() { Ok(()) } else { Err(self.wrong("the end")) }
    }

    /// Where the next value starts, to come back to it with [`Self::at`].
    pub(crate) fn position(&mut self) -> usize {
        self.peek();
        self.at
    }

    /// Where it stands.
    pub(crate) fn position_now(&self) -> usize {
        self.at
    }

    /// A reader at a position of the same text.
    pub(crate) fn at(&self, position: usize) -> Self {
        Self { at: position, ..*self }
    }

    /// Calls `field` before each value of an object; it must read the value.
    pub(crate) fn object(
        &mut self,
        mut field: impl FnMut(&mut Self, Cow<'a, str>) -> Result<()>,
    ) -> Result<()> {
        self.expect(b'{', "an object")?;
        self.deeper()?;
        if !self.take(b'}') {
            loop {
                let name = self.name()?;
                self.expect(b':', "':'")?;
                field(self, name)?;
                if self.take(b'}') {
                    break;
                }
                self.expect(b',', "',' or '}'")?;
            }
        }
        self.depth -= 1;
        Ok(())
    }

    /// Calls `element` before each value of an array; it must read the value.
    pub(crate) fn array(&mut self, mut element: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        self.expect(b'[', "an array")?;
        self.deeper()?;
        if !self.take(b']') {
            loop {
                element(self)?;
                if self.take(b']') {
                    break;
                }
                self.expect(b',', "',' or ']'")?;
            }
        }
        self.depth -= 1;
        Ok(())
    }

    fn deeper(&mut self) -> Result<()> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Error::invalid(format!("body: nested deeper than {MAX_DEPTH} levels")));
        }
        Ok(())
    }

    /// A string, borrowed unless it has escapes; only then it takes room.
    pub(crate) fn string(&mut self) -> Result<Cow<'a, str>> {
        if self.peek() != Some(b'"') {
            return Err(self.wrong("a string"));
        }
        let start = self.at;
        let mut escaped = false;
        let mut end = start + 1;
        loop {
            match self.bytes.get(end) {
                Some(b'"') => break,
                Some(b'\\') => {
                    escaped = true;
                    end += 2;
                }
                Some(0..=0x1f) | None => {
                    self.at = end.min(self.bytes.len());
                    return Err(self.wrong("the rest of a string"));
                }
                Some(_) => end += 1,
            }
        }
        self.at = end + 1;
        let quoted = self.bytes.get(start..=end).unwrap_or_default();
        let wrong =
            || Error::invalid(format!("body is not valid JSON: the string at byte {start} is malformed"));
        if escaped {
            self.room.take(quoted.len())?;
            let text: String = serde_json::from_slice(quoted).map_err(|error| wrong().because(error))?;
            self.room.give_back(quoted.len() - text.len());
            return Ok(Cow::Owned(text));
        }
        let inner = quoted.get(1..quoted.len() - 1).unwrap_or_default();
        std::str::from_utf8(inner).map(Cow::Borrowed).map_err(|error| wrong().because(error))
    }

    /// A string that names something: a short one.
    pub(crate) fn name(&mut self) -> Result<Cow<'a, str>> {
        let name = self.string()?;
        check_name(&name).map(|()| name)
    }

    /// A string to keep.
    pub(crate) fn text(&mut self) -> Result<String> {
        let text = self.string()?;
        self.keep(text)
    }

    /// Keeps a string that was read.
    pub(crate) fn keep(&self, text: Cow<'a, str>) -> Result<String> {
        if let Cow::Borrowed(text) = text {
            self.room.take(text.len())?;
        }
        Ok(text.into_owned())
    }

    /// The text of a number or of one of the tokens `NaN`, `Infinity`, `-Infinity`.
    pub(crate) fn number(&mut self) -> Result<&'a str> {
        self.peek();
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let of_number = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'.');
        let length = rest.iter().position(|byte| !of_number(byte)).unwrap_or(rest.len());
        if length > MAX_NUMBER {
            return Err(Error::invalid(format!(
                "body: a number of {length} digits is longer than {MAX_NUMBER}"
            )));
        }
        let text = rest.get(..length).and_then(|text| std::str::from_utf8(text).ok()).unwrap_or_default();
        let digits = text.strip_prefix('-').unwrap_or(text);
        if digits.starts_with(|first: char| first.is_ascii_digit())
            || matches!(text, "NaN" | "Infinity" | "-Infinity")
        {
            self.at += length;
            return Ok(text);
        }
        Err(self.wrong("a number"))
    }

    /// The unread text, for parsers that find a number's end themselves, with [`Self::advance`].
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        self.peek();
        self.bytes.get(self.at..).unwrap_or_default()
    }

    /// Moves on by this many bytes of [`Self::rest`].
    pub(crate) fn advance(&mut self, bytes: usize) {
        self.at += bytes;
    }

    /// Reads `word` if it comes next.
    pub(crate) fn word(&mut self, word: &str) -> bool {
        let found = self.rest().starts_with(word.as_bytes());
        self.at += if found { word.len() } else { 0 };
        found
    }

    /// Reads an object of parameters, whose values are strings, numbers and bools. Errors: invalid argument, naming the
    /// parameter.
    pub(crate) fn parameters(&mut self) -> Result<Vec<(String, Parameter)>> {
        let mut parameters = Vec::new();
        self.object(|reader, key| {
            let value = match reader.peek() {
                Some(b'"') => Parameter::Text(reader.text()?),
                Some(b't' | b'f') if reader.word("true") => Parameter::Bool(true),
                Some(b't' | b'f') if reader.word("false") => Parameter::Bool(false),
                Some(b'{' | b'[' | b'n') => {
                    return Err(Error::invalid(format!(
                        "parameter {key:?} is not a string, a number or a bool"
                    )));
                }
                _ => {
                    let text = reader.number()?;
                    let float = || text.parse().map(Parameter::Float);
                    let number = text.parse().map(Parameter::Int).or_else(|_| float());
                    number.map_err(|error| {
                        Error::invalid(format!("parameter {key:?}: {text} is not a number")).because(error)
                    })?
                }
            };
            if parameters.len() == MAX_PARAMETERS {
                return Err(Error::invalid(format!("parameters: more than {MAX_PARAMETERS}")));
            }
            parameters.push((reader.keep(key)?, value));
            Ok(())
        })?;
        Ok(parameters)
    }

    /// Reads a value of any kind and forgets it.
    pub(crate) fn skip(&mut self) -> Result<()> {
        match self.peek() {
            Some(b'{') => self.object(|reader, _| reader.skip()),
            Some(b'[') => self.array(Self::skip),
            Some(b'"') => self.string().map(drop),
            _ if self.word("true") || self.word("false") || self.word("null") => Ok(()),
            _ => self.number().map(drop),
        }
    }
}

/// Writes a string with its quotes.
pub(crate) fn write_string(out: &mut Out<'_>, text: &str) {
    out.push(b'"');
    let mut rest = text.as_bytes();
    while let Some(plain) = rest.iter().position(|byte| *byte < 0x20 || matches!(byte, b'"' | b'\\')) {
        let Some((before, [byte, after @ ..])) = rest.split_at_checked(plain) else { break };
        out.extend_from_slice(before);
        match byte {
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', *byte]),
            other => out.extend_from_slice(format!("\\u{other:04x}").as_bytes()),
        }
        rest = after;
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

/// Writes a whole number.
pub(crate) fn write_int(out: &mut Out<'_>, value: impl itoa::Integer) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

#[cfg(test)]
mod tests {
    use modelhost_core::budget::ByteBudget;
    use modelhost_core::error::ErrorCode;

    use super::*;

    fn skip(text: &str) -> Result<()> {
        let room = Room::unbounded();
        let mut reader = Reader::new(text.as_bytes(), &room);
        reader.skip()?;
        reader.finish()
    }

    #[test]
    fn reads_what_json_allows() {
        for text in [
            "{}",
            "[]",
            " [1, -2.5e+3 ,\"a\\\"b\\u00e9\", true,false,null,{\"a\":[{}]}] ",
            "NaN",
            "[-Infinity]",
            "0",
        ] {
            assert_eq!(skip(text), Ok(()), "{text}");
        }
    }

    #[test]
    fn refuses_the_rest_and_says_where() {
        for (text, expected) in [
            ("", "a number at byte 0, the end came"),
            ("[1", "',' or ']' at byte 2"),
            ("[1,]", "a number at byte 3, ']' came"),
            ("{\"a\" 1}", "':' at byte 5"),
            ("{a:1}", "a string at byte 1"),
            ("\"a", "the rest of a string"),
            ("\"\\", "the rest of a string"),
            ("1 2", "the end at byte 2"),
            ("nul", "a number"),
            ("+1", "a number"),
            ("\"\\x\"", "malformed"),
        ] {
            let error = skip(text).unwrap_err();
            assert!(error.message.contains(expected), "{text}: {error}");
        }
        assert!(skip(&"[".repeat(100)).unwrap_err().message.contains("deeper than 64"));
    }

    #[test]
    fn names_and_numbers_have_a_bound() {
        let error = skip(&format!("{{\"{}\":1}}", "n".repeat(5000))).unwrap_err();
        assert_eq!(error.message, "body: a name of 5000 bytes is longer than 4096");
        let error = skip(&"1".repeat(5000)).unwrap_err();
        assert_eq!(error.message, "body: a number of 5000 digits is longer than 4096");
    }

    #[test]
    fn strings_write_and_read_back() {
        let room = Room::unbounded();
        for text in ["", "plain", "quo\"te", "line\nbreak", "é\u{1}", "\\", "\r\t\u{8}\"\"end"] {
            let mut out = Out::new(&room, 0);
            write_string(&mut out, text);
            let out = out.finish().unwrap();
            assert_eq!(Reader::new(&out, &room).string().unwrap(), text);
            assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
        }
    }

    #[test]
    fn strings_that_are_kept_take_room() {
        let budget = ByteBudget::new("this host", 100);
        let plain = format!("\"{}\"", "x".repeat(200));
        let escaped = format!("\"{}\"", "\\n".repeat(100));
        let room = Room::of(budget.charge());
        assert_eq!(Reader::new(plain.as_bytes(), &room).string().unwrap().len(), 200);
        for text in [plain, escaped] {
            let refused = Reader::new(text.as_bytes(), &room).text().unwrap_err();
            assert_eq!(refused.code, ErrorCode::ResourceExhausted);
        }
        assert_eq!(Reader::new(b"\"kept\\n\"", &room).text().unwrap(), "kept\n");
        assert_eq!(budget.used(), 5);
    }
}
