//! What the manifest's `[parameters]` and a request's parameters may say.

use std::ops::Range;

use modelhost_sdk::Config;

use crate::ensemble::{Ask, Best, Ensemble, Library};

/// Takes the manifest's `[parameters]`: `model`, which the SDK reads, and `iterations`: `best`, `all`, or how many of
/// the first. Errors: one that is unknown; or training stopped early, and only the manifest can say which iterations
/// are meant.
pub(crate) fn configure(ensemble: &mut Ensemble, config: &Config) -> Result<(), String> {
    if let Some((name, _)) =
        config.parameters.iter().find(|(name, _)| !matches!(name.as_str(), "model" | "iterations"))
    {
        return Err(format!(
            "parameter {name:?} is unknown: the manifest may say \"model\" and \"iterations\""
        ));
    }
    let best = match ensemble.best {
        Best::All => None,
        Best::First(count) | Best::Ambiguous(count) => Some(count),
    };
    let trained = ensemble.iterations();
    ensemble.best = match (config.parameter("iterations"), best) {
        (None, Some(best)) if matches!(ensemble.best, Best::Ambiguous(_)) => {
            return Err(format!(
                "it was trained with early stopping: the best are its first {best} of {trained} iterations, and \
                 XGBoost's own interfaces differ in which they use: set iterations = \"best\" or \"all\" under \
                 [parameters]"
            ));
        }
        (None, _) => ensemble.best,
        (Some("all"), _) => Best::All,
        (Some("best"), Some(best)) => Best::First(best),
        (Some("best"), None) => {
            return Err("parameter \"iterations\": the file does not say which are best".into());
        }
        (Some(count), _) => Best::First(within("iterations", count, trained)?),
    };
    Ok(())
}

/// The inference protocol's own parameters, which hosts and clients settle: they say nothing about answers.
const OF_THE_PROTOCOL: [&str; 5] = ["timeout", "priority", "sequence_id", "sequence_start", "sequence_end"];

/// Reads a request's parameters. Errors: one that is unknown, or no such thing.
pub(crate) fn ask(ensemble: &Ensemble, parameters: &[(String, String)], rows: u64) -> Result<Ask, String> {
    let mut ask = Ask::default();
    let (mut begin, mut end, mut count) = (0, None, None);
    let trained = ensemble.iterations();
    for (name, value) in parameters {
        match (name.as_str(), ensemble.library()) {
            ("iteration_begin", _)
            | ("start_iteration", Library::LightGbm)
            | ("ntree_start", Library::CatBoost) => begin = within(name, value, trained)?,
            // As in the libraries: zero means all that are left.
            ("iteration_end", _) | ("ntree_end", Library::CatBoost) => {
                end = Some(within(name, value, trained)?).filter(|end| *end > 0);
            }
            ("num_iteration", Library::LightGbm) => {
                count = Some(within(name, value, trained)?).filter(|count| *count > 0);
            }
            ("ntree_limit", Library::XgBoost) => {
                let trees = within(name, value, usize::MAX)?;
                let limit = trees / ensemble.parallel_trees();
                end = (trees > 0).then(|| limit.min(trained));
            }
            ("base_margin", Library::XgBoost) => ask.margin = margin(value, rows, ensemble.groups())?,
            (name, _) if OF_THE_PROTOCOL.contains(&name) || name.starts_with("triton_") => {}
            (_, library) => return Err(format!("parameter {name:?} is unknown: {}", known(library))),
        }
    }
    if begin > 0 || end.is_some() || count.is_some() {
        ask.iterations = Some(range(ensemble, begin, end, count)?);
    }
    Ok(ask)
}

fn known(library: Library) -> &'static str {
    match library {
        Library::XgBoost => "XGBoost models take iteration_begin, iteration_end, ntree_limit and base_margin",
        Library::CatBoost => "CatBoost models take iteration_begin, iteration_end, ntree_start and ntree_end",
        Library::LightGbm => {
            "LightGBM models take iteration_begin, iteration_end, start_iteration and num_iteration"
        }
    }
}

fn range(
    ensemble: &Ensemble,
    begin: usize,
    end: Option<usize>,
    count: Option<usize>,
) -> Result<Range<usize>, String> {
    let trained = ensemble.iterations();
    let end = match (end, count) {
        (Some(_), Some(_)) => return Err("iteration_end and num_iteration exclude each other".into()),
        (Some(end), None) => end,
        (None, Some(count)) => (begin + count).min(trained),
        (None, None) => trained,
    };
    if ensemble.is_linear() {
        return Err("a linear booster has no iterations to choose from".into());
    }
    if begin < end { Ok(begin..end) } else { Err(format!("iterations {begin} to {end}: there are none")) }
}

/// A count, at most `most`.
fn within(name: &str, text: &str, most: usize) -> Result<usize, String> {
    let count: usize =
        text.trim().parse().map_err(|_| format!("parameter {name:?}: {text:?} is no count"))?;
    if count <= most {
        Ok(count)
    } else {
        Err(format!("parameter {name:?}: {count} is more than the model's {most} iterations"))
    }
}

/// One number, or one for every row and group, with commas between them.
fn margin(text: &str, rows: u64, groups: usize) -> Result<Vec<f32>, String> {
    let numbers = text.trim().trim_start_matches('[').trim_end_matches(']').split(',');
    let margin = numbers.map(|number| number.trim().parse::<f32>()).collect::<Result<Vec<_>, _>>();
    let margin = margin.map_err(|_| "parameter \"base_margin\": not a list of numbers")?;
    let all = rows.checked_mul(groups as u64);
    if margin.len() == 1 || all == Some(margin.len() as u64) {
        return Ok(margin);
    }
    let came = margin.len();
    Err(format!(
        "parameter \"base_margin\": {came} numbers for {rows} rows of {groups}: one is expected, or one each"
    ))
}
