//! Universal Binary JSON (specification draft 12, big-endian), as a serde deserializer: XGBoost's default format.

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor, value::Error};
use serde::{Deserialize, de::Error as _};

/// Deepest nesting read.
const MAX_DEPTH: u32 = 64;

/// Reads one value.
pub(crate) fn from_slice<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Result<T, String> {
    let mut reader = Reader { bytes, depth: 0 };
    let marker = reader.marker().map_err(|error| error.to_string())?;
    T::deserialize(Value { reader: &mut reader, marker }).map_err(|error| error.to_string())
}

struct Reader<'de> {
    bytes: &'de [u8],
    depth: u32,
}

impl<'de> Reader<'de> {
    fn take(&mut self, count: usize) -> Result<&'de [u8], Error> {
        let (taken, rest) =
            self.bytes.split_at_checked(count).ok_or_else(|| Error::custom("UBJSON ends too early"))?;
        self.bytes = rest;
        Ok(taken)
    }

    fn chunk<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        self.take(N)?.try_into().map_err(|_| Error::custom("UBJSON ends too early"))
    }

    fn marker(&mut self) -> Result<u8, Error> {
        loop {
            let [marker] = self.chunk()?;
            if marker != b'N' {
                return Ok(marker);
            }
        }
    }

    fn next_is(&mut self, marker: u8) -> bool {
        let found = self.bytes.first() == Some(&marker);
        if found {
            self.bytes = self.bytes.get(1..).unwrap_or_default();
        }
        found
    }

    fn int(&mut self, marker: u8) -> Result<i64, Error> {
        Ok(match marker {
            b'i' => i64::from(i8::from_be_bytes(self.chunk()?)),
            b'U' => i64::from(u8::from_be_bytes(self.chunk()?)),
            b'I' => i64::from(i16::from_be_bytes(self.chunk()?)),
            b'l' => i64::from(i32::from_be_bytes(self.chunk()?)),
            b'L' => i64::from_be_bytes(self.chunk()?),
            other => return Err(Error::custom(format!("UBJSON marker {:?} is no integer", other as char))),
        })
    }

    fn length(&mut self) -> Result<usize, Error> {
        let marker = self.marker()?;
        usize::try_from(self.int(marker)?).map_err(|_| Error::custom("a UBJSON length is negative"))
    }

    fn string(&mut self) -> Result<&'de str, Error> {
        let length = self.length()?;
        std::str::from_utf8(self.take(length)?).map_err(Error::custom)
    }
}

struct Value<'a, 'de> {
    reader: &'a mut Reader<'de>,
    marker: u8,
}

impl<'de> Deserializer<'de> for Value<'_, 'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let reader = self.reader;
        match self.marker {
            b'Z' => visitor.visit_unit(),
            b'T' => visitor.visit_bool(true),
            b'F' => visitor.visit_bool(false),
            b'd' => visitor.visit_f32(f32::from_be_bytes(reader.chunk()?)),
            b'D' => visitor.visit_f64(f64::from_be_bytes(reader.chunk()?)),
            b'S' | b'H' => visitor.visit_borrowed_str(reader.string()?),
            b'C' => visitor.visit_char(char::from(reader.chunk::<1>()?[0])),
            b'[' | b'{' => {
                reader.depth += 1;
                if reader.depth > MAX_DEPTH {
                    return Err(Error::custom("UBJSON is nested too deep"));
                }
                let items = Items::start(reader, if self.marker == b'[' { b']' } else { b'}' })?;
                if self.marker == b'[' { visitor.visit_seq(items) } else { visitor.visit_map(items) }
            }
            marker => visitor.visit_i64(reader.int(marker)?),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.marker == b'Z' { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

/// An array's or object's content: to its end marker, or counted, or counted and of one type.
struct Items<'a, 'de> {
    reader: &'a mut Reader<'de>,
    end: u8,
    of_type: Option<u8>,
    left: Option<usize>,
}

impl<'a, 'de> Items<'a, 'de> {
    fn start(reader: &'a mut Reader<'de>, end: u8) -> Result<Self, Error> {
        let of_type = if reader.next_is(b'$') { Some(reader.marker()?) } else { None };
        let left = if reader.next_is(b'#') { Some(reader.length()?) } else { None };
        if of_type.is_some() && left.is_none() {
            return Err(Error::custom("a UBJSON type without a count"));
        }
        Ok(Self { reader, end, of_type, left })
    }

    /// Whether another item comes.
    fn more(&mut self) -> bool {
        let more = match &mut self.left {
            Some(0) => false,
            Some(left) => {
                *left -= 1;
                true
            }
            None => !self.reader.next_is(self.end),
        };
        if !more {
            self.reader.depth -= 1;
        }
        more
    }

    fn value<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Error> {
        let marker = match self.of_type {
            Some(marker) => marker,
            None => self.reader.marker()?,
        };
        seed.deserialize(Value { reader: self.reader, marker })
    }
}

impl<'de> SeqAccess<'de> for Items<'_, 'de> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        if self.more() { self.value(seed).map(Some) } else { Ok(None) }
    }

    fn size_hint(&self) -> Option<usize> {
        self.left.map(|left| left.min(self.reader.bytes.len()))
    }
}

impl<'de> MapAccess<'de> for Items<'_, 'de> {
    type Error = Error;

    fn next_key_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        if !self.more() {
            return Ok(None);
        }
        let key = self.reader.string()?;
        seed.deserialize(serde::de::value::BorrowedStrDeserializer::new(key)).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Error> {
        self.value(seed)
    }
}
