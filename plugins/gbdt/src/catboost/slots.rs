//! From a row's values to the slots that the trees ask: numbers, hashes of categories, and what training counted of
//! them.

use modelhost_sdk::{Column, ColumnKind};

use super::{CategoryColumn, Ctr, CtrKind, Projection, Slots};
use crate::city_hash::city_hash_64;

impl Slots {
    pub(super) fn len(&self) -> usize {
        self.floats.len() + self.one_hot.len() + self.ctrs.len()
    }

    /// Takes the columns' names and categories. Errors: a column of categories that nobody describes.
    pub(crate) fn describe(&mut self, columns: &[Column], is_described: bool) -> Result<(), String> {
        for place in &mut self.columns {
            let column = &columns[place.column];
            if !is_described {
                return Err(format!(
                    "feature {:?} is categorical, and CatBoost's file does not hold the categories: the manifest must \
                     list them, as [[features]]; without a list, it takes whole numbers",
                    column.name
                ));
            }
            place.name.clone_from(&column.name);
            place.may_be_missing = column.missing;
            place.hashes = match &column.kind {
                ColumnKind::Categorical(texts) => Some(texts.iter().map(|text| hash(text)).collect()),
                ColumnKind::Numeric => None,
            };
        }
        Ok(())
    }

    /// Errors: which value is no category.
    pub(crate) fn check(&self, values: &[f32], columns: usize) -> Result<(), String> {
        for (row, values) in values.chunks_exact(columns).enumerate() {
            for place in &self.columns {
                let value = values[place.column];
                let at = || format!("row {row}, column {:?}", place.name);
                if value.is_nan() && !place.may_be_missing {
                    return Err(format!("{}: the category is missing", at()));
                }
                if !value.is_nan() && place.hash_of(value).is_none() {
                    let expected = place.hashes.as_ref().map_or_else(
                        || "a whole number".into(),
                        |hashes| format!("the index of one of {} categories", hashes.len()),
                    );
                    return Err(format!("{}: {value} is not {expected}", at()));
                }
            }
        }
        Ok(())
    }

    pub(super) fn fill<T: Copy + Into<f64>>(&self, values: &[T], row: &mut Vec<f64>) {
        row.clear();
        row.extend(self.floats.iter().map(|float| {
            let value = values[float.column].into();
            if value.is_nan() { float.missing } else { value }
        }));
        if self.columns.is_empty() {
            return;
        }
        let hashes: Vec<Option<u32>> =
            self.columns.iter().map(|place| place.hash_of(values[place.column].into() as f32)).collect();
        row.extend(self.one_hot.iter().map(|(at, hash)| f64::from(u8::from(hashes[*at] == Some(*hash)))));
        for ctr in &self.ctrs {
            row.push(f64::from(ctr.value(row, &hashes)));
        }
    }
}

impl CategoryColumn {
    /// `None` where the value is missing or none.
    fn hash_of(&self, value: f32) -> Option<u32> {
        if value.is_nan() || value.fract() != 0.0 {
            return None;
        }
        match &self.hashes {
            Some(hashes) => (value >= 0.0).then(|| hashes.get(value as usize).copied()).flatten(),
            None => (value.abs() <= 16_777_216.0).then(|| hash(&(value as i64).to_string())),
        }
    }
}

/// CatBoost keeps the lower half.
pub(super) fn hash(text: &str) -> u32 {
    city_hash_64(text.as_bytes()) as u32
}

impl Projection {
    fn hash(&self, row: &[f64], hashes: &[Option<u32>]) -> Option<u64> {
        const MULTIPLIER: u64 = 0x4906_ba49_4954_cb65;
        let join =
            |sum: u64, next: u64| MULTIPLIER.wrapping_mul(sum.wrapping_add(MULTIPLIER.wrapping_mul(next)));
        let mut sum = 0;
        for at in &self.categories {
            // Its sign is extended.
            sum = join(sum, i64::from(hashes[*at]? as i32) as u64);
        }
        for (at, border) in &self.floats {
            sum = join(sum, u64::from(row[*at] > *border));
        }
        for (at, value) in &self.exact {
            sum = join(sum, u64::from(hashes[*at] == Some(*value)));
        }
        Some(sum)
    }
}

impl Ctr {
    fn value(&self, row: &[f64], hashes: &[Option<u32>]) -> f32 {
        let found = self.projection.hash(row, hashes).and_then(|hash| self.table.get(&hash));
        let (good, total) = match (found, self.kind) {
            (None, CtrKind::Counter) => (0.0, self.denominator),
            (None, _) => (0.0, 0.0),
            (Some(numbers), CtrKind::Counter) => (numbers[0], self.denominator),
            (Some(numbers), CtrKind::Mean) => (numbers[0], numbers[1]),
            (Some(numbers), CtrKind::Buckets(class)) => (numbers[class], numbers.iter().sum()),
            (Some(numbers), CtrKind::Borders(border)) => {
                (numbers[border + 1..].iter().sum(), numbers.iter().sum())
            }
        };
        let (numerator, denominator) = self.prior;
        ((good + numerator) / (total + denominator) + self.shift) * self.scale
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_texts_of_every_length_as_catboost_does() {
        for (text, expected) in [
            ("a", -805_065_478),
            ("ab", -204_718_274),
            ("other", 1_296_376_507),
            ("abcdefgh", -24_192_233),
            ("abcdefghi", -1_275_414_319),
            ("xxxxxxxxxxxxxxxx", 2_067_776_764),
            ("0123456789abcdef0123456789abcdef", -40_601_866),
            ("qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq", -623_473_693),
            (&"Zürich ".repeat(8), -255_694_035),
            (&"abc".repeat(70), -1_936_978_565),
        ] {
            assert_eq!(hash(text) as i32, expected, "{text}");
        }
    }
}
