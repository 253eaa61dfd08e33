//! LightGBM's text model: `key=value` lines, a header, then a block a tree.

use std::collections::HashMap;

use crate::trees::{Branch, Ensemble, Link, Output, Parts, Special};

/// Bits of `decision_type`.
const CATEGORICAL: u8 = 1;
const DEFAULT_LEFT: u8 = 2;

type Block<'a> = HashMap<&'a str, &'a str>;

pub(crate) fn parse(bytes: &[u8]) -> Result<Ensemble, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "the LightGBM model is not UTF-8")?;
    let body = text.split("end of trees").next().unwrap_or(text);
    let mut blocks = body.split("Tree=");
    let header_text = blocks.next().unwrap_or_default();
    let header = block(header_text);
    let per_iteration: usize = number(&header, "num_tree_per_iteration")?;
    let last_feature: usize = number(&header, "max_feature_idx")?;
    let (link, output) = link(value(&header, "objective")?, per_iteration)?;
    let trees: Vec<&str> = blocks.collect();
    let averages = header_text.lines().any(|line| line.trim() == "average_output");
    let iterations = (trees.len() / per_iteration.max(1)).max(1);
    let names = value(&header, "feature_names")?.split(' ').map(str::to_owned).collect();
    let mut ensemble = Ensemble::new(Parts {
        base: vec![0.0; per_iteration.max(1)],
        features: last_feature + 1,
        names,
        link,
        output,
        single_precision: false,
        divisor: if averages { iterations as f64 } else { 1.0 },
    });
    for (at, tree) in trees.iter().enumerate() {
        let in_tree = |why: String| format!("tree {at}: {why}");
        let branches = branches(&block(tree)).map_err(in_tree)?;
        ensemble.push(at % per_iteration.max(1), &branches).map_err(in_tree)?;
    }
    Ok(ensemble)
}

fn block(text: &str) -> Block<'_> {
    text.lines().filter_map(|line| line.trim_end().split_once('=')).collect()
}

fn value<'a>(block: &Block<'a>, key: &str) -> Result<&'a str, String> {
    block.get(key).copied().ok_or_else(|| format!("the LightGBM model has no {key:?}"))
}

fn number<T: std::str::FromStr>(block: &Block<'_>, key: &str) -> Result<T, String> {
    let text = value(block, key)?;
    text.trim().parse().map_err(|_| format!("{key} {text:?} is no number"))
}

fn list<T: std::str::FromStr>(block: &Block<'_>, key: &str, length: usize) -> Result<Vec<T>, String> {
    let text = value(block, key)?;
    let items = text.split_ascii_whitespace().map(str::parse).collect::<Result<Vec<T>, _>>();
    let items = items.map_err(|_| format!("{key}: not a list of numbers"))?;
    if items.len() == length {
        Ok(items)
    } else {
        Err(format!("{key} has {} values, not {length}", items.len()))
    }
}

fn link(objective: &str, per_iteration: usize) -> Result<(Link, Output), String> {
    let mut words = objective.split(' ');
    let name = words.next().unwrap_or_default();
    let options: Vec<&str> = words.collect();
    let scale = options.iter().find_map(|option| option.strip_prefix("sigmoid:"));
    let scale: f64 = scale.unwrap_or("1").parse().map_err(|_| format!("objective {objective:?}"))?;
    Ok(match name {
        "binary" | "cross_entropy" => (Link::Logistic { scale }, Output::Probability),
        "multiclass" if per_iteration > 1 => (Link::Softmax, Output::Probabilities),
        "regression" if options.contains(&"sqrt") => (Link::SignedSquare, Output::Prediction),
        "regression" | "regression_l1" | "huber" | "fair" | "quantile" | "mape" | "lambdarank"
        | "rank_xendcg" => (Link::Identity, Output::Prediction),
        "poisson" | "gamma" | "tweedie" => (Link::Exp, Output::Prediction),
        other => {
            return Err(format!(
                "objective {other:?} is not supported; binary, multiclass, regression and others are"
            ));
        }
    })
}

fn branches(block: &Block<'_>) -> Result<Vec<Branch>, String> {
    if block.get("is_linear").is_some_and(|flag| *flag != "0") {
        return Err("linear trees are not supported".into());
    }
    let leaves: usize = number(block, "num_leaves")?;
    let values: Vec<f64> = list(block, "leaf_value", leaves)?;
    let Some(splits) = leaves.checked_sub(1).filter(|splits| *splits > 0) else {
        return Ok(values.into_iter().map(Branch::Leaf).collect());
    };
    let features: Vec<u32> = list(block, "split_feature", splits)?;
    let thresholds: Vec<f64> = list(block, "threshold", splits)?;
    let decisions: Vec<u8> = list(block, "decision_type", splits)?;
    let lefts: Vec<i64> = list(block, "left_child", splits)?;
    let rights: Vec<i64> = list(block, "right_child", splits)?;
    let categories: usize = number(block, "num_cat")?;
    let boundaries: Vec<usize> =
        if categories > 0 { list(block, "cat_boundaries", categories + 1)? } else { Vec::new() };
    let words = boundaries.last().copied().unwrap_or(0);
    let bits: Vec<u32> = if categories > 0 { list(block, "cat_threshold", words)? } else { Vec::new() };
    // Splits come first, then leaves; a negative child is a leaf's complement.
    let child = |index: i64| {
        usize::try_from(if index < 0 { splits as i64 + !index } else { index }).unwrap_or(usize::MAX)
    };
    let mut branches = Vec::with_capacity(splits + leaves);
    for at in 0..splits {
        let (feature, left, right) = (features[at], child(lefts[at]), child(rights[at]));
        if decisions[at] & CATEGORICAL != 0 {
            let index = thresholds[at] as usize;
            let range = boundaries.get(index).zip(boundaries.get(index + 1));
            let words = range.and_then(|(start, end)| bits.get(*start..*end)).ok_or("cat_boundaries")?;
            let special = Special::Categories {
                feature,
                bits: words.to_vec(),
                set_goes_left: true,
                missing_left: false,
            };
            branches.push(Branch::Special { special, left, right });
            continue;
        }
        let threshold = first_f32_above(thresholds[at]);
        let default_left = decisions[at] & DEFAULT_LEFT != 0;
        branches.push(match decisions[at] >> 2 & 3 {
            // No missing values were seen in training: NaN counts as 0.
            0 => Branch::Split { feature, threshold, missing_left: 0.0 < threshold, left, right },
            1 => {
                let special = Special::ZeroMissing { feature, threshold, missing_left: default_left };
                Branch::Special { special, left, right }
            }
            2 => Branch::Split { feature, threshold, missing_left: default_left, left, right },
            other => return Err(format!("missing type {other}")),
        });
    }
    branches.extend(values.into_iter().map(Branch::Leaf));
    Ok(branches)
}

/// The smallest f32 above `threshold`: for every f32 x, `x <= threshold` exactly when `x < first_f32_above(threshold)`.
fn first_f32_above(threshold: f64) -> f32 {
    let near = threshold as f32;
    if f64::from(near) > threshold { near } else { near.next_up() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_split_f32_values_exactly_as_in_f64() {
        for threshold in [0.1, 0.5, 1e-35, -0.3, 16_777_217.0, 1.0 + 1e-12] {
            let near = threshold as f32;
            for value in [near.next_down().next_down(), near.next_down(), near, near.next_up()] {
                assert_eq!(
                    f64::from(value) <= threshold,
                    value < first_f32_above(threshold),
                    "{value} {threshold}"
                );
            }
        }
    }
}
