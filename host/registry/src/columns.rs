//! Equal lists of columns are kept once. The versions of a model usually have the same list, and so do a signature
//! and its manifest.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Weak};

use modelhost_core::tensor::{Column, ColumnKind};

/// Lists by a hash of their names and categories. If two lists have the same hash, the first one is shared.
#[derive(Default)]
pub(crate) struct SharedColumns(HashMap<u64, Weak<[Column]>>);

impl SharedColumns {
    /// Replaces `columns` by a known equal list. If there is none, it becomes known.
    pub(crate) fn share(&mut self, columns: &mut Arc<[Column]>) {
        if columns.is_empty() {
            return;
        }
        let hash = hash_of(columns);
        match self.0.get(&hash).and_then(Weak::upgrade) {
            Some(known) if known == *columns => *columns = known,
            Some(_) => {}
            None => {
                if self.0.len() == self.0.capacity() {
                    self.0.retain(|_, list| list.strong_count() > 0);
                }
                self.0.insert(hash, Arc::downgrade(columns));
            }
        }
    }
}

fn hash_of(columns: &[Column]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for column in columns {
        column.name.hash(&mut hasher);
        if let ColumnKind::Categorical(values) = &column.kind {
            values.hash(&mut hasher);
        }
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns(minimum: Option<f64>) -> Arc<[Column]> {
        let kind = ColumnKind::Categorical(vec!["a".into(), "b".into()].into());
        let (name, description, unit) = ("c".to_owned(), None, None);
        let (maximum, missing, unknown_is_missing) = (None, false, false);
        [Column { name, kind, description, unit, minimum, maximum, missing, unknown_is_missing }].into()
    }

    #[test]
    fn equal_lists_become_one_and_others_stay() {
        let mut shared = SharedColumns::default();
        let (mut first, mut same, mut other) = (columns(None), columns(None), columns(Some(1.0)));
        for list in [&mut first, &mut same, &mut other] {
            shared.share(list);
        }
        assert!(Arc::ptr_eq(&first, &same));
        assert_eq!((&first, &other), (&columns(None), &columns(Some(1.0))));
        drop((first, same));
        shared.share(&mut other);
        let mut later = columns(Some(1.0));
        shared.share(&mut later);
        assert!(Arc::ptr_eq(&other, &later), "what nobody has any more makes room");
    }
}
