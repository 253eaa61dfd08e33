//! LightGBM's text model: `key=value` lines, a header, then a block a tree, then what it was trained with.

use std::collections::HashMap;

use crate::ensemble::{Best, Categories, Ensemble, Feature, Library, LinearLeaf, Scores};
use crate::output::{Link, Output};
use crate::trees::{Branch, Forest, Leaf, Reading, Special};

/// Bits of `decision_type`; the next two are the missing type.
const CATEGORICAL: u8 = 1;
const DEFAULT_LEFT: u8 = 2;

/// LightGBM's `kZeroThreshold`, a float that it compares with doubles.
const ZERO: f32 = 1e-35;

/// Keys that a header may have. What is not here may change answers in ways not known here.
const HEADER: [&str; 11] = [
    "version",
    "num_class",
    "num_tree_per_iteration",
    "label_index",
    "max_feature_idx",
    "objective",
    "average_output",
    "feature_names",
    "monotone_constraints",
    "feature_infos",
    "tree_sizes",
];

/// Keys that a tree may have.
const TREE: [&str; 22] = [
    "num_leaves",
    "num_cat",
    "split_feature",
    "split_gain",
    "threshold",
    "decision_type",
    "left_child",
    "right_child",
    "leaf_value",
    "leaf_weight",
    "leaf_count",
    "internal_value",
    "internal_weight",
    "internal_count",
    "cat_boundaries",
    "cat_threshold",
    "is_linear",
    "leaf_const",
    "num_features",
    "leaf_features",
    "leaf_coeff",
    "shrinkage",
];

type Block<'a> = HashMap<&'a str, &'a str>;

pub(crate) fn parse(bytes: &[u8]) -> Result<Ensemble, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "the LightGBM model is not UTF-8")?;
    let (body, rest) =
        text.split_once("\nend of trees").ok_or("the LightGBM model ends before its trees do")?;
    let mut blocks = body.split("\nTree=");
    // The first line is the word "tree".
    let header_lines = blocks.next().and_then(|header| header.split_once('\n')).unwrap_or_default().1;
    let header = block(header_lines, &HEADER)?;
    let version = value(&header, "version")?;
    if !matches!(version, "v2" | "v3" | "v4") {
        return Err(format!("version {version:?} of LightGBM's format is not known"));
    }
    let groups: usize = number(&header, "num_tree_per_iteration")?;
    let last_feature: usize = number(&header, "max_feature_idx")?;
    let features = last_feature + 1;
    let trees: Vec<&str> = blocks.collect();
    let sizes = header.get("tree_sizes").map_or(0, |sizes| sizes.split_ascii_whitespace().count());
    if groups == 0 || trees.len() != sizes || !sizes.is_multiple_of(groups) {
        return Err(format!("{} trees, where {sizes} in iterations of {groups} are announced", trees.len()));
    }
    let objective = header.get("objective").copied().unwrap_or("custom");
    let (link, output) = link(objective, groups)?;
    let reading = Reading { zero: f64::from(ZERO), first_category: (-1.0_f64).next_up() };
    let mut forest = Forest::new(features, reading);
    let mut leaves =
        Leaves { is_linear: trees.iter().any(|tree| tree.contains("\nis_linear=1")), linear: Vec::new() };
    for (at, tree) in trees.iter().enumerate() {
        let in_tree = |why: String| format!("tree {at}: {why}");
        // The first line is the tree's number.
        let tree = tree.split_once('\n').unwrap_or_default().1;
        let tree = block(tree, &TREE).map_err(in_tree)?;
        let branches = branches(&tree, features, &mut leaves).map_err(in_tree)?;
        let covers = covers(&tree);
        forest.push(at % groups, &branches, &covers).map_err(in_tree)?;
    }
    let scores =
        if leaves.is_linear { Scores::Linear(forest, leaves.linear) } else { Scores::Double(forest) };
    let (features, loose_categories) = features_of(&header, features, rest)?;
    Ok(Ensemble {
        library: Library::LightGbm,
        features,
        loose_categories,
        scores,
        base: vec![0.0; groups],
        iterations: (0..=trees.len()).step_by(groups).collect(),
        best: Best::All,
        averages: header.contains_key("average_output"),
        link,
        output,
    })
}

/// `key=value` lines, and keys alone. Errors: a key that is not `known`.
fn block<'a>(text: &'a str, known: &[&str]) -> Result<Block<'a>, String> {
    let lines = text.lines().map(str::trim_end).filter(|line| !line.is_empty());
    let block: Block<'a> = lines.map(|line| line.split_once('=').unwrap_or((line, ""))).collect();
    match block.keys().find(|key| !known.contains(key)) {
        Some(key) => Err(format!("{key:?} in LightGBM's format is not known")),
        None => Ok(block),
    }
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

fn link(objective: &str, groups: usize) -> Result<(Link, Output), String> {
    let mut words = objective.split_ascii_whitespace();
    let name = words.next().unwrap_or_default();
    let (mut scale, mut is_root) = (1.0, false);
    for option in words {
        match option.split_once(':') {
            Some(("sigmoid", value)) => {
                scale = value.parse().map_err(|_| format!("objective {objective:?}"))?;
            }
            Some(("num_class", _)) => {}
            // Huber's and Poisson's do without it.
            None if option == "sqrt" => is_root = !matches!(name, "huber" | "poisson" | "gamma" | "tweedie"),
            _ => return Err(format!("objective {objective:?}: {option:?} is not known")),
        }
    }
    Ok(match name {
        "binary" => (Link::Logistic { scale }, Output::one("probability")),
        "cross_entropy" | "xentropy" => (Link::Logistic { scale: 1.0 }, Output::one("probability")),
        "cross_entropy_lambda" | "xentlambda" => (Link::Softplus, Output::one("prediction")),
        "multiclass" => (Link::Softmax, Output { name: "probabilities", width: Some(groups) }),
        "multiclassova" => (Link::Logistic { scale }, Output { name: "probabilities", width: Some(groups) }),
        "regression" | "regression_l1" | "fair" | "quantile" | "mape" if is_root => {
            (Link::SignedSquare, Output::one("prediction"))
        }
        "regression" | "regression_l1" | "huber" | "fair" | "quantile" | "mape" | "lambdarank"
        | "rank_xendcg" => (Link::Identity, Output::one("prediction")),
        // A file without an objective: it was a function of the author's, and sums are the answers.
        "custom" | "none" | "null" | "na" => (Link::Identity, Output::predictions(groups)),
        "poisson" | "gamma" | "tweedie" => (Link::Exp, Output::one("prediction")),
        other => {
            return Err(format!("objective {other:?} is not supported; those that LightGBM 4.7 has are"));
        }
    })
}

/// What leaves come to.
struct Leaves {
    /// Whether any tree's are functions; then all are.
    is_linear: bool,
    linear: Vec<LinearLeaf>,
}

impl Leaves {
    fn branches(
        &mut self,
        block: &Block<'_>,
        features: usize,
        values: Vec<f64>,
    ) -> Result<Vec<Branch>, String> {
        if !self.is_linear {
            return Ok(values.into_iter().map(|value| Branch::Leaf(Leaf::Value(value))).collect());
        }
        let first = self.linear.len();
        let count = values.len();
        if block.get("is_linear").is_none_or(|flag| *flag == "0") {
            let constant = |value| LinearLeaf { constant: value, terms: Vec::new(), otherwise: value };
            self.linear.extend(values.into_iter().map(constant));
        } else {
            let constants: Vec<f64> = list(block, "leaf_const", count)?;
            let widths: Vec<usize> = list(block, "num_features", count)?;
            let terms = widths.iter().sum();
            let mut numbers = list::<usize>(block, "leaf_features", terms)?.into_iter();
            let mut coefficients = list::<f64>(block, "leaf_coeff", terms)?.into_iter();
            for ((constant, width), otherwise) in constants.into_iter().zip(widths).zip(values) {
                let terms: Vec<_> = numbers.by_ref().zip(coefficients.by_ref()).take(width).collect();
                if let Some((feature, _)) = terms.iter().find(|(feature, _)| *feature >= features) {
                    return Err(format!("a leaf is a function of feature {feature}, there are {features}"));
                }
                self.linear.push(LinearLeaf { constant, terms, otherwise });
            }
        }
        Ok((first..first + count).map(|at| Branch::Leaf(Leaf::At(at))).collect())
    }
}

fn branches(block: &Block<'_>, features: usize, leaves: &mut Leaves) -> Result<Vec<Branch>, String> {
    let count: usize = number(block, "num_leaves")?;
    let values: Vec<f64> = list(block, "leaf_value", count)?;
    let leaves = leaves.branches(block, features, values)?;
    let Some(splits) = count.checked_sub(1).filter(|splits| *splits > 0) else { return Ok(leaves) };
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
    let mut branches = Vec::with_capacity(splits + count);
    for at in 0..splits {
        let (feature, left, right) = (features[at], child(lefts[at]), child(rights[at]));
        if decisions[at] > 0b1111 {
            return Err(format!("decision type {}", decisions[at]));
        }
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
        let (threshold, default_left) = (thresholds[at], decisions[at] & DEFAULT_LEFT != 0);
        branches.push(match decisions[at] >> 2 {
            // No missing values were seen in training: NaN counts as 0.
            0 => split(feature, threshold, 0.0 <= threshold, left, right),
            1 => {
                let special = Special::ZeroMissing { feature, threshold, missing_left: default_left };
                Branch::Special { special, left, right }
            }
            2 => split(feature, threshold, default_left, left, right),
            other => return Err(format!("missing type {other}")),
        });
    }
    branches.extend(leaves);
    Ok(branches)
}

/// How many training rows each branch saw; none where the file does not say.
fn covers(block: &Block<'_>) -> Vec<f32> {
    let counts = |key: &str| -> Option<Vec<f32>> {
        block.get(key)?.split_ascii_whitespace().map(|count| count.parse().ok()).collect()
    };
    let inner = counts("internal_count").unwrap_or_default();
    match counts("leaf_count") {
        Some(leaves) => inner.into_iter().chain(leaves).collect(),
        None => Vec::new(),
    }
}

/// A node whose values up to the threshold, it included, go left.
fn split(feature: u32, threshold: f64, missing_left: bool, left: usize, right: usize) -> Branch {
    if threshold == f64::INFINITY {
        // All values but the missing ones: all that are in no set.
        let special = Special::Categories { feature, bits: Vec::new(), set_goes_left: false, missing_left };
        return Branch::Special { special, left, right };
    }
    Branch::Split { feature, threshold: threshold.next_up(), missing_left, left, right }
}

/// The features, and the lists of categories whose columns the file does not tell. `rest` is what follows the trees.
fn features_of(
    header: &Block<'_>,
    count: usize,
    rest: &str,
) -> Result<(Vec<Feature>, Vec<Vec<String>>), String> {
    let names = value(header, "feature_names")?.split(' ').map(|name| Some(name.to_owned()));
    let mut features: Vec<Feature> = names.map(|name| Feature { name, categories: None }).collect();
    if features.len() != count {
        return Err(format!("feature_names are {}, features {count}", features.len()));
    }
    let lists = pandas_categories(rest)?;
    let columns = categorical_columns(rest);
    if lists.len() != columns.len() || columns.iter().any(|column| *column >= count) {
        return Ok((features, lists));
    }
    for (column, list) in columns.into_iter().zip(lists) {
        features[column].categories = Some(Categories::Known(list));
    }
    Ok((features, Vec::new()))
}

/// The categories of pandas' columns, in the columns' order; the Python package writes them as the last line.
fn pandas_categories(rest: &str) -> Result<Vec<Vec<String>>, String> {
    const KEY: &str = "pandas_categorical:";
    let Some(json) = rest.lines().rev().find_map(|line| line.strip_prefix(KEY)) else {
        return Ok(Vec::new());
    };
    let lists: Option<Vec<Vec<serde_json::Value>>> =
        serde_json::from_str(json).map_err(|error| format!("{KEY} {error}"))?;
    let text = |value: serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let lists = lists.unwrap_or_default().into_iter();
    Ok(lists.map(|list| list.into_iter().map(text).collect()).collect())
}

/// The columns that training took for categorical, in their order; none where the file does not tell them by number.
fn categorical_columns(rest: &str) -> Vec<usize> {
    const KEY: &str = "[categorical_feature: ";
    let list = rest.lines().find_map(|line| line.strip_prefix(KEY)?.strip_suffix(']'));
    let columns = list.unwrap_or_default().split(',').map(|column| column.trim().parse());
    let mut columns = columns.collect::<Result<Vec<usize>, _>>().unwrap_or_default();
    columns.sort_unstable();
    columns
}
