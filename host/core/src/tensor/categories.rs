//! The values of a categorical column.

use std::fmt;
use std::ops::Deref;

/// A column's values, in the order of their indices. One is found by its text in a time that hardly grows with their
/// number: a caller may send many rows for a column of many values.
#[derive(Clone)]
pub struct Categories {
    values: Vec<String>,
    /// The values' indices, by text, then by index.
    by_text: Box<[u32]>,
}

impl Categories {
    /// The index of the first value with this text.
    pub fn index(&self, text: &str) -> Option<usize> {
        let of = |index: u32| self.values.get(index as usize).map(String::as_str);
        let at = self.by_text.partition_point(|index| of(*index).is_some_and(|value| value < text));
        let index = self.by_text.get(at).copied().filter(|index| of(*index) == Some(text))?;
        Some(index as usize)
    }
}

impl From<Vec<String>> for Categories {
    fn from(values: Vec<String>) -> Self {
        // A signature's text is bounded far below 2^32 values.
        let mut by_text: Box<[u32]> = (0..u32::try_from(values.len()).unwrap_or(u32::MAX)).collect();
        by_text.sort_by_key(|index| values.get(*index as usize));
        Self { values, by_text }
    }
}

impl From<Categories> for Vec<String> {
    fn from(categories: Categories) -> Self {
        categories.values
    }
}

impl Deref for Categories {
    type Target = [String];

    fn deref(&self) -> &[String] {
        &self.values
    }
}

impl PartialEq for Categories {
    fn eq(&self, other: &Self) -> bool {
        self.values == other.values
    }
}

impl fmt::Debug for Categories {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.values.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_value_of_a_text_is_found() {
        let texts = ["tv", "", "car", "tv", "ä", "car"].map(str::to_owned).to_vec();
        let categories = Categories::from(texts.clone());
        for text in ["", "car", "tv", "ä", "a", "cars", "zz"] {
            let expected = texts.iter().position(|value| value == text);
            assert_eq!(categories.index(text), expected, "{text:?}");
        }
        assert_eq!(Categories::from(Vec::new()).index(""), None);
        assert_eq!(Vec::from(categories), texts);
    }
}
