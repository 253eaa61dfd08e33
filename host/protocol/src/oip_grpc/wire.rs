//! A message before it is decoded: whom it is for, and what decoding it would take. Both are read off its bytes, and
//! nothing is allocated.
//!
//! Source: the Protocol Buffers encoding. Field numbers are those of `ModelInferRequest` and what lies in it.

use modelhost_core::error::{Error, ErrorCode};

use super::pb;

/// Most inputs, requested outputs, or parameters of one message.
const MAX_ENTRIES: usize = 1024;

/// What an entry of a map takes of memory.
const MAP_ENTRY: usize = 160;

/// Fields looked at for the names: every serialiser writes fields in the order of their numbers, names first.
const NAMES_WITHIN: usize = 64;

/// One field.
enum Value<'a> {
    Number,
    Bytes(&'a [u8]),
}

/// The fields of a message; ends early where it is malformed or not all there.
struct Fields<'a> {
    rest: &'a [u8],
    is_malformed: bool,
}

impl<'a> Fields<'a> {
    fn of(message: &'a [u8]) -> Self {
        Self { rest: message, is_malformed: false }
    }

    /// Errors: invalid argument, when a field could not be read. Groups are no fields of the protocol's, and a decoder
    /// reads on behind them.
    fn end(&self) -> Result<(), Error> {
        if self.is_malformed { Err(Error::invalid("body: not a ModelInferRequest message")) } else { Ok(()) }
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for at in 0..10 {
            let (byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            value |= u64::from(byte & 0x7f) << (7 * at);
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, length: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(usize::try_from(length).ok()?)?;
        self.rest = rest;
        Some(taken)
    }

    fn field(&mut self) -> Option<(u64, Value<'a>)> {
        let key = self.varint()?;
        let value = match key & 7 {
            0 => self.varint().map(|_| Value::Number),
            1 => self.take(8).map(|_| Value::Number),
            2 => {
                let length = self.varint()?;
                self.take(length).map(Value::Bytes)
            }
            5 => self.take(4).map(|_| Value::Number),
            _ => None,
        };
        Some((key >> 3, value?))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = (u64, Value<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        self.is_malformed |= field.is_none();
        if field.is_none() {
            self.rest = &[];
        }
        field
    }
}

/// Whom a message is for; empty where the start does not say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Names<'a> {
    /// The model.
    pub model: &'a str,
    /// Its version.
    pub version: &'a str,
    /// The request.
    pub id: &'a str,
}

/// Reads the names at the start of a message.
pub fn names(start: &[u8]) -> Names<'_> {
    let mut names = Names::default();
    for (number, value) in Fields::of(start).take(NAMES_WITHIN) {
        let Value::Bytes(bytes) = value else { continue };
        let text = std::str::from_utf8(bytes).unwrap_or_default();
        match number {
            1 => names.model = text,
            2 => names.version = text,
            3 => names.id = text,
            _ => {}
        }
    }
    names
}

/// What decoding a message takes besides its own bytes: at most `most`, texts apart. Errors: too large; invalid
/// argument, when it has too many entries or is malformed.
pub(super) fn check(message: &[u8], most: usize) -> Result<usize, Error> {
    let (mut inputs, mut outputs, mut others, mut weight, mut texts) = (0, 0, 0, 0_usize, 0);
    let mut fields = Fields::of(message);
    for (number, value) in fields.by_ref() {
        let Value::Bytes(bytes) = value else { continue };
        match number {
            5 => {
                inputs += 1;
                let taken = input(bytes)?;
                weight = weight.saturating_add(taken.weight);
                texts += taken.texts;
            }
            6 => {
                outputs += 1;
                weight += size_of::<pb::model_infer_request::InferRequestedOutputTensor>();
                let mut asked = Fields::of(bytes);
                others += asked.by_ref().filter(|(number, _)| *number == 2).count();
                asked.end()?;
                texts += bytes.len();
            }
            7 => weight += size_of::<bytes::Bytes>(),
            4 => {
                others += 1;
                texts += bytes.len();
            }
            _ => texts += bytes.len(),
        }
        for (what, count) in [("inputs", inputs), ("outputs", outputs), ("parameters", others)] {
            if count > MAX_ENTRIES {
                return Err(Error::invalid(format!("{what}: more than {MAX_ENTRIES}")));
            }
        }
    }
    fields.end()?;
    if weight + others * MAP_ENTRY > most {
        let text = format!(
            "body: its typed contents take more than the {most} bytes allowed; send raw_input_contents"
        );
        return Err(Error::new(ErrorCode::TooLarge, text));
    }
    Ok(weight + others * MAP_ENTRY + texts)
}

/// What an input's fields take when they are decoded.
struct Taken {
    weight: usize,
    /// Bytes that are copied as they are.
    texts: usize,
}

fn input(message: &[u8]) -> Result<Taken, Error> {
    let (mut weight, mut texts) = (size_of::<pb::model_infer_request::InferInputTensor>(), 0);
    let mut parameters = 0;
    let mut fields = Fields::of(message);
    for (number, value) in fields.by_ref() {
        weight = weight.saturating_add(match (number, value) {
            (3, Value::Bytes(packed)) => packed.len().saturating_mul(8),
            (3, Value::Number) => 8,
            (4, value) => {
                parameters += 1;
                texts += if let Value::Bytes(entry) = value { entry.len() } else { 0 };
                MAP_ENTRY
            }
            (5, Value::Bytes(contents)) => self::contents(contents)?,
            (_, Value::Bytes(text)) => {
                texts += text.len();
                0
            }
            (_, Value::Number) => 0,
        });
        if parameters > MAX_ENTRIES {
            return Err(Error::invalid(format!("input parameters: more than {MAX_ENTRIES}")));
        }
    }
    fields.end()?;
    Ok(Taken { weight, texts })
}

/// What typed contents take: the elements as the message's fields hold them.
fn contents(message: &[u8]) -> Result<usize, Error> {
    let weigh = |(number, value)| match (number, value) {
        (_, Value::Number) => 8,
        (2 | 4, Value::Bytes(packed)) => packed.len().saturating_mul(4),
        (3 | 5, Value::Bytes(packed)) => packed.len().saturating_mul(8),
        (8, Value::Bytes(_)) => size_of::<bytes::Bytes>(),
        (_, Value::Bytes(packed)) => packed.len(),
    };
    let mut fields = Fields::of(message);
    let weight = fields.by_ref().map(weigh).fold(0, usize::saturating_add);
    fields.end()?;
    Ok(weight)
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::pb::model_infer_request::InferInputTensor;
    use super::*;

    fn message() -> pb::ModelInferRequest {
        pb::ModelInferRequest {
            model_name: "a/b".into(),
            model_version: "v6".into(),
            id: "1".into(),
            inputs: vec![InferInputTensor { name: "x".into(), ..Default::default() }],
            raw_input_contents: vec![bytes::Bytes::from_static(&[0; 1000])],
            ..Default::default()
        }
    }

    #[test]
    fn names_stand_at_the_start() {
        let bytes = message().encode_to_vec();
        for end in [12, 20, bytes.len()] {
            assert_eq!(names(&bytes[..end]), Names { model: "a/b", version: "v6", id: "1" }, "{end}");
        }
        assert_eq!(names(&bytes[..5]), Names { model: "a/b", ..Names::default() });
        assert_eq!(names(b""), Names::default());
        assert_eq!(names(&[0xff; 100]), Names::default());
    }

    fn check_it(change: impl FnOnce(&mut pb::ModelInferRequest), expected: Option<&str>) {
        let mut message = message();
        change(&mut message);
        match (check(&message.encode_to_vec(), 1 << 20), expected) {
            (Ok(_), None) => {}
            (Err(error), Some(text)) => assert!(error.message.contains(text), "{error}"),
            (came, _) => panic!("{came:?}"),
        }
    }

    #[test]
    fn what_would_take_too_much_is_refused_before_it_is_decoded() {
        let contents = |elements: usize| pb::InferTensorContents {
            bytes_contents: vec![bytes::Bytes::new(); elements],
            ..Default::default()
        };
        check_it(|_| {}, None);
        check_it(
            |message| message.inputs = vec![InferInputTensor::default(); 1025],
            Some("inputs: more than 1024"),
        );
        check_it(|message| message.outputs = vec![Default::default(); 1025], Some("outputs: more than 1024"));
        check_it(|message| message.inputs[0].contents = Some(contents(1000)), None);
        check_it(
            |message| message.inputs[0].contents = Some(contents(100_000)),
            Some("its typed contents take more"),
        );
        assert!(check(&[0xff; 100], 1 << 20).unwrap_err().message.contains("not a ModelInferRequest"));
    }

    #[test]
    fn what_stands_behind_a_group_is_not_overlooked() {
        const GROUP: [u8; 2] = [0x7b, 0x7c]; // the begin and the end of field 15
        let field = |number: u8, content: Vec<u8>| {
            let mut bytes = vec![number << 3 | 2];
            prost::encoding::encode_varint(content.len() as u64, &mut bytes);
            [bytes, content].concat()
        };
        let elements = [&GROUP[..], &[8 << 3 | 2, 0].repeat(100_000)].concat();
        let contents = field(5, elements);
        let behind = field(5, [GROUP.to_vec(), contents.clone()].concat());
        let parameters = field(6, [GROUP.to_vec(), [2 << 3 | 2, 0].repeat(2000)].concat());
        for message in [field(5, contents), behind, parameters] {
            assert!(pb::ModelInferRequest::decode(&*message).is_ok(), "it can be decoded");
            assert!(check(&message, 1 << 20).unwrap_err().message.contains("not a ModelInferRequest"));
        }
    }
}
