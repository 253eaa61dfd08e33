//! The input's columns: what the file says, what the manifest says, and that they do not contradict.

use modelhost_sdk::{Column, ColumnKind, Config};

use crate::ensemble::{Categories, Ensemble, Feature};

/// The manifest's columns, or the model's own names, with the categories that the file holds.
/// Errors: the two contradict; or the file's categories belong to columns that only a manifest can name.
pub(crate) fn merge(ensemble: &Ensemble, config: &Config) -> Result<Vec<Column>, String> {
    let features = ensemble.features();
    if config.columns.is_empty() {
        if !ensemble.loose_categories.is_empty() {
            let lists = &ensemble.loose_categories;
            return Err(format!(
                "pandas_categorical: the file does not say which columns have the categories {lists:?}: the manifest \
                 must, as [[features]]"
            ));
        }
        return features.iter().enumerate().map(|(at, feature)| own(at, feature)).collect();
    }
    check_names(features, &config.columns)?;
    let mut columns = config.columns.clone();
    for (column, feature) in columns.iter_mut().zip(features) {
        if let Some(known) = &feature.categories {
            take_categories(column, known)?;
        }
    }
    if !ensemble.loose_categories.is_empty() {
        check_loose(&columns, &ensemble.loose_categories)?;
    }
    Ok(columns)
}

/// A column as the file alone describes it. It may be missing: trees have a way for that.
fn own(at: usize, feature: &Feature) -> Result<Column, String> {
    let name = feature.name.clone().unwrap_or_else(|| format!("f{at}"));
    let kind = match &feature.categories {
        None => ColumnKind::Numeric,
        Some(Categories::Known(texts)) => ColumnKind::Categorical(texts.clone()),
        Some(Categories::Cut { .. }) => return Err(unreadable(&name)),
    };
    Ok(Column { kind, missing: true, ..Column::numeric(&name) })
}

fn unreadable(name: &str) -> String {
    format!(
        "feature {name:?}: XGBoost wrote its categories incompletely, as some are not ASCII: the manifest must list \
         them, as [[features]]"
    )
}

fn check_names(features: &[Feature], columns: &[Column]) -> Result<(), String> {
    if columns.len() != features.len() {
        let (described, known) = (columns.len(), features.len());
        let names = features.iter().filter_map(|feature| feature.name.as_deref());
        let lacking: Vec<&str> =
            names.filter(|name| columns.iter().all(|column| column.name != *name)).collect();
        let lacking = if lacking.is_empty() { String::new() } else { format!(": it lacks {lacking:?}") };
        return Err(format!("the manifest describes {described} features, the model has {known}{lacking}"));
    }
    let named = columns
        .iter()
        .zip(features)
        .filter_map(|(column, feature)| Some((&column.name, feature.name.as_ref()?)));
    for (described, known) in named {
        if described != known {
            return Err(format!("the manifest's feature {described:?} is {known:?} in the model"));
        }
    }
    Ok(())
}

fn take_categories(column: &mut Column, known: &Categories) -> Result<(), String> {
    match (&column.kind, known) {
        (ColumnKind::Categorical(listed), Categories::Known(known)) => agree(&column.name, listed, known),
        (ColumnKind::Numeric, Categories::Known(known)) => {
            column.kind = ColumnKind::Categorical(known.clone());
            Ok(())
        }
        (ColumnKind::Numeric, Categories::Cut { .. }) => Err(unreadable(&column.name)),
        (ColumnKind::Categorical(listed), Categories::Cut { bytes, offsets }) => {
            let all = listed.concat();
            let by = |length: fn(&String) -> usize| {
                let mut end = 0;
                let ends = listed.iter().map(|text| {
                    end += length(text);
                    end
                });
                [0].into_iter().chain(ends).eq(offsets.iter().copied())
            };
            let whole = by(String::len) && all.as_bytes() == bytes;
            let cut = by(|text| text.chars().count()) && all.as_bytes().starts_with(bytes);
            if (whole || cut) && offsets.last() == Some(&bytes.len()) {
                return Ok(());
            }
            let (name, known) = (&column.name, String::from_utf8_lossy(bytes));
            Err(format!(
                "feature {name:?}: the manifest lists the categories {listed:?}, the model {known:?}, one after \
                 the other"
            ))
        }
    }
}

fn agree(name: &str, listed: &[String], known: &[String]) -> Result<(), String> {
    if listed == known {
        return Ok(());
    }
    Err(format!("feature {name:?}: the manifest lists the categories {listed:?}, the model {known:?}"))
}

/// The manifest's categorical columns must be the file's lists, one after the other.
fn check_loose(columns: &[Column], lists: &[Vec<String>]) -> Result<(), String> {
    let listed: Vec<(&str, &[String])> = columns
        .iter()
        .filter_map(|column| match &column.kind {
            ColumnKind::Categorical(listed) => Some((column.name.as_str(), listed.as_slice())),
            ColumnKind::Numeric => None,
        })
        .collect();
    if listed.len() != lists.len() {
        return Err(format!(
            "the manifest lists categories of {} features, the model has the categories {lists:?}",
            listed.len()
        ));
    }
    listed.into_iter().zip(lists).try_for_each(|((name, listed), known)| agree(name, listed, known))
}
