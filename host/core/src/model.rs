//! Names and numbers of models, and what a version takes and gives.

use std::collections::HashSet;
use std::fmt;

use crate::error::Error;
use crate::name;
use crate::tensor::{Column, ColumnKind, MAX_RANK, TensorSpec, check_name};

#[cfg(test)]
mod tests;

/// Words that follow a model's name in a URL of the Open Inference Protocol. No name may be one of them.
const WORDS_AFTER_A_MODEL: [&str; 9] =
    ["versions", "infer", "ready", "config", "stats", "generate", "generate_stream", "trace", "labels"];

/// `prefix/name`, e.g. `marketing/churn`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ModelName {
    text: String,
    slash: usize,
}

impl ModelName {
    /// Reads `prefix/name`. Each part is a [`crate::name`]. It must not be a word that follows a name in a URL
    /// (`versions`, `infer`, …), and must not read as a version (`v6`).
    pub fn parse(text: &str) -> Result<Self, Error> {
        let (prefix, name) = text
            .split_once('/')
            .ok_or_else(|| Error::invalid(format!("model {text:?} is not of the form prefix/name")))?;
        for (part, segment) in [("prefix", prefix), ("name", name)] {
            name::check_in_path(&format!("a model's {part}"), segment, &WORDS_AFTER_A_MODEL)?;
        }
        Ok(Self { text: text.to_owned(), slash: prefix.len() })
    }

    /// `prefix/name`.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The namespace.
    pub fn prefix(&self) -> &str {
        self.text.get(..self.slash).unwrap_or_default()
    }

    /// The name within its prefix.
    pub fn name(&self) -> &str {
        self.text.get(self.slash + 1..).unwrap_or_default()
    }
}

/// Maps keyed by name can be searched by text, without an allocation.
impl std::borrow::Borrow<str> for ModelName {
    fn borrow(&self) -> &str {
        &self.text
    }
}

/// Hashes as its text does, because `Borrow` promises so.
impl std::hash::Hash for ModelName {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A version's number: from 1, per model, never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelVersion(u32);

impl ModelVersion {
    /// The first version of a model.
    pub const FIRST: Self = Self(1);

    /// A number from storage. Errors: zero.
    pub fn new(number: u32) -> Result<Self, Error> {
        if number == 0 {
            Err(Error::invalid("version 0 does not exist: they start at 1"))
        } else {
            Ok(Self(number))
        }
    }

    /// Reads `6` or `v6`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let digits = text.strip_prefix('v').unwrap_or(text);
        let number = digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok()).flatten();
        number
            .and_then(|number| Self::new(number).ok())
            .ok_or_else(|| Error::invalid(format!("version {text:?} is not a number from 1, as in 6 or v6")))
    }

    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for ModelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Most inputs of a signature, and most outputs.
pub const MAX_TENSORS: usize = 1024;

/// Most columns of a table.
pub const MAX_COLUMNS: usize = 16_384;

/// Most bytes of a signature: its texts, and [`ITEM_BYTES`] for each text and each dimension.
const MAX_SIGNATURE_BYTES: usize = 1 << 20;

/// Bytes that a text or a dimension counts besides its own.
const ITEM_BYTES: usize = 16;

/// A version's inputs and outputs.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Signature {
    /// The tensors of a request. All of them are required.
    pub inputs: Vec<TensorSpec>,
    /// The tensors of a response.
    pub outputs: Vec<TensorSpec>,
}

impl Signature {
    /// Whether the signature can be served. A plugin's own description of itself is checked here before anything else
    /// reads it.
    /// Errors: invalid argument, on no input or output, a name given twice (tensor or column), a name that is not
    /// allowed, or more of anything than the bounds allow.
    pub fn check(&self) -> Result<(), Error> {
        let mut bytes = 0;
        for (role, specs) in [("input", &self.inputs), ("output", &self.outputs)] {
            if specs.is_empty() {
                return Err(Error::invalid(format!("the signature has no {role}")));
            }
            if specs.len() > MAX_TENSORS {
                let count = specs.len();
                let text = format!("the signature has {count} {role}s, more than {MAX_TENSORS}");
                return Err(Error::invalid(text));
            }
            let mut names = HashSet::new();
            for spec in specs {
                check_name(&spec.name).map_err(|error| error.within(role))?;
                if !names.insert(&spec.name) {
                    let name = &spec.name;
                    return Err(Error::invalid(format!("{role} {name:?} stands twice in the signature")));
                }
                bytes += check_spec(role, spec)?;
                if bytes > MAX_SIGNATURE_BYTES {
                    return Err(Error::invalid(format!(
                        "the signature has more than {MAX_SIGNATURE_BYTES} bytes of names, categories and descriptions"
                    )));
                }
            }
        }
        Ok(())
    }

    /// The only input, when it is a table of named columns.
    pub fn table(&self) -> Option<&TensorSpec> {
        match self.inputs.as_slice() {
            [input] if !input.columns.is_empty() => Some(input),
            _ => None,
        }
    }
}

/// Returns its bytes.
fn check_spec(role: &str, spec: &TensorSpec) -> Result<usize, Error> {
    let (name, rank) = (&spec.name, spec.shape.len());
    let refusal = |why: String| Err(Error::invalid(format!("{role} {name:?}: {why}")));
    if rank > MAX_RANK {
        return refusal(format!("its shape has {rank} dimensions, more than {MAX_RANK}"));
    }
    let mut bytes = name.len() + (rank + 1) * ITEM_BYTES;
    let count = spec.columns.len();
    if count == 0 {
        return Ok(bytes);
    }
    if count > MAX_COLUMNS {
        return refusal(format!("it has {count} columns, more than {MAX_COLUMNS}"));
    }
    if !matches!(spec.shape.as_slice(), [_, Some(width)] if *width == count as u64) {
        return refusal(format!(
            "{count} columns do not fit shape {}",
            crate::tensor::DisplayShape(&spec.shape)
        ));
    }
    let mut names = HashSet::new();
    for column in spec.columns.iter() {
        if let Err(error) = check_name(&column.name) {
            return refusal(format!("column: {}", error.message));
        }
        if !names.insert(&column.name) {
            return refusal(format!("column {:?} stands twice", column.name));
        }
        bytes += column_bytes(column);
    }
    Ok(bytes)
}

fn column_bytes(column: &Column) -> usize {
    let categories: &[String] = match &column.kind {
        ColumnKind::Numeric => &[],
        ColumnKind::Categorical(values) => values,
    };
    let texts = [&column.name].into_iter().chain(&column.description).chain(&column.unit).chain(categories);
    texts.map(|text| text.len() + ITEM_BYTES).sum()
}
