//! XGBoost's model schema (doc/model.schema), the same in JSON and UBJSON. Boosters `gbtree` and `dart`.

use serde::Deserialize;

use crate::trees::{Branch, Ensemble, Link, Output, Parts, Special};

#[derive(Deserialize)]
struct File {
    learner: Learner,
}

#[derive(Deserialize)]
struct Learner {
    #[serde(default)]
    feature_names: Vec<String>,
    gradient_booster: Booster,
    learner_model_param: LearnerParam,
    objective: Objective,
}

#[derive(Deserialize)]
struct LearnerParam {
    /// `5E-1`, or from XGBoost 3.1 on `[5E-1,5E-1]`, one per class.
    base_score: String,
    num_class: String,
    num_feature: String,
    #[serde(default)]
    num_target: String,
}

#[derive(Deserialize)]
struct Objective {
    name: String,
}

#[derive(Deserialize)]
struct Booster {
    name: String,
    model: Option<Trees>,
    /// Only in dart, which wraps a gbtree.
    gbtree: Option<Box<Booster>>,
    #[serde(default)]
    weight_drop: Vec<f32>,
}

#[derive(Deserialize)]
struct Trees {
    trees: Vec<Tree>,
    tree_info: Vec<i64>,
}

#[derive(Deserialize)]
struct Tree {
    left_children: Vec<i64>,
    right_children: Vec<i64>,
    split_indices: Vec<i64>,
    split_conditions: Vec<f32>,
    default_left: Vec<Flag>,
    #[serde(default)]
    split_type: Vec<i64>,
    #[serde(default)]
    categories: Vec<i64>,
    #[serde(default)]
    categories_nodes: Vec<i64>,
    #[serde(default)]
    categories_segments: Vec<i64>,
    #[serde(default)]
    categories_sizes: Vec<i64>,
    tree_param: TreeParam,
}

#[derive(Deserialize)]
struct TreeParam {
    #[serde(default)]
    size_leaf_vector: String,
}

/// JSON writes true and false, older releases and UBJSON 0 and 1.
#[derive(Deserialize)]
#[serde(untagged)]
enum Flag {
    Bool(bool),
    Int(i64),
}

impl Flag {
    fn is_set(&self) -> bool {
        matches!(self, Self::Bool(true) | Self::Int(1))
    }
}

pub(crate) fn parse_json(bytes: &[u8]) -> Result<Ensemble, String> {
    ensemble(
        serde_json::from_slice(bytes)
            .map_err(|error| format!("not an XGBoost or LightGBM model: {error}"))?,
    )
}

pub(crate) fn parse_ubjson(bytes: &[u8]) -> Result<Ensemble, String> {
    ensemble(crate::ubjson::from_slice(bytes).map_err(|error| format!("not an XGBoost model: {error}"))?)
}

fn ensemble(file: File) -> Result<Ensemble, String> {
    let Learner { feature_names, gradient_booster, learner_model_param: param, objective } = file.learner;
    let number = |name: &str, text: &str| -> Result<usize, String> {
        if text.is_empty() {
            Ok(0)
        } else {
            text.parse().map_err(|_| format!("{name} {text:?} is no number"))
        }
    };
    if number("num_target", &param.num_target)? > 1 {
        return Err(format!(
            "num_target {}: models with several targets are not supported",
            param.num_target
        ));
    }
    let classes = number("num_class", &param.num_class)?;
    let (link, output) = link(&objective.name, classes)?;
    let mut ensemble = Ensemble::new(Parts {
        base: base_scores(&param.base_score, classes.max(1), &objective.name)?,
        features: number("num_feature", &param.num_feature)?,
        names: feature_names,
        link,
        output,
        single_precision: true,
        divisor: 1.0,
    });
    let (trees, weights) =
        match (gradient_booster.name.as_str(), gradient_booster.model, gradient_booster.gbtree) {
            ("gbtree", Some(model), _) => (model, Vec::new()),
            ("dart", _, Some(inner)) => {
                (inner.model.ok_or("a dart model without trees")?, gradient_booster.weight_drop)
            }
            (name, ..) => return Err(format!("booster {name:?} is not supported; gbtree and dart are")),
        };
    for (at, (tree, group)) in trees.trees.iter().zip(&trees.tree_info).enumerate() {
        let weight = weights.get(at).copied().unwrap_or(1.0);
        let group = usize::try_from(*group).map_err(|_| format!("tree {at}: class {group}"))?;
        let branches = branches(tree, weight).map_err(|why| format!("tree {at}: {why}"))?;
        ensemble.push(group, &branches).map_err(|why| format!("tree {at}: {why}"))?;
    }
    Ok(ensemble)
}

fn link(objective: &str, classes: usize) -> Result<(Link, Output), String> {
    Ok(match objective {
        "binary:logistic" | "reg:logistic" => (Link::Logistic { scale: 1.0 }, Output::Probability),
        "multi:softprob" if classes > 1 => (Link::Softmax, Output::Probabilities),
        "reg:squarederror"
        | "reg:linear"
        | "reg:absoluteerror"
        | "reg:pseudohubererror"
        | "binary:logitraw"
        | "rank:ndcg"
        | "rank:map"
        | "rank:pairwise" => (Link::Identity, Output::Prediction),
        "count:poisson" | "reg:gamma" | "reg:tweedie" => (Link::Exp, Output::Prediction),
        other => {
            return Err(format!(
                "objective {other:?} is not supported; binary:logistic, multi:softprob, reg:squarederror and others are"
            ));
        }
    })
}

/// The sums' starts: base scores are stored as the objective's answers, so they go back through its link.
fn base_scores(text: &str, groups: usize, objective: &str) -> Result<Vec<f64>, String> {
    let wrong = |_| format!("base_score {text:?} is no number");
    let scores = text.trim_matches(['[', ']']).split(',').map(|score| score.trim().parse::<f32>());
    let scores = scores.collect::<Result<Vec<_>, _>>().map_err(wrong)?;
    let margin = |score: f32| match objective {
        "binary:logistic" | "reg:logistic" => -(1.0 / score - 1.0).ln(),
        "count:poisson" | "reg:gamma" | "reg:tweedie" => score.ln(),
        _ => score,
    };
    match scores.as_slice() {
        [one] => Ok(vec![f64::from(margin(*one)); groups]),
        many if many.len() == groups => Ok(many.iter().map(|score| f64::from(margin(*score))).collect()),
        many => Err(format!("base_score has {} values for {groups} classes", many.len())),
    }
}

fn branches(tree: &Tree, weight: f32) -> Result<Vec<Branch>, String> {
    if !matches!(tree.tree_param.size_leaf_vector.as_str(), "" | "0" | "1") {
        return Err("leaves that are vectors are not supported".into());
    }
    let count = tree.left_children.len();
    let lengths = [
        tree.right_children.len(),
        tree.split_indices.len(),
        tree.split_conditions.len(),
        tree.default_left.len(),
    ];
    if lengths.iter().any(|length| *length != count) {
        return Err(format!("its arrays have {count}, {lengths:?} elements"));
    }
    let child = |index: i64| usize::try_from(index).map_err(|_| format!("child {index}"));
    let branch = |at: usize| -> Result<Branch, String> {
        let condition = tree.split_conditions[at];
        if tree.left_children[at] == -1 {
            return Ok(Branch::Leaf(f64::from(condition * weight)));
        }
        let (left, right) = (child(tree.left_children[at])?, child(tree.right_children[at])?);
        let feature = u32::try_from(tree.split_indices[at]).map_err(|_| "a negative feature")?;
        let missing_left = tree.default_left[at].is_set();
        if tree.split_type.get(at).copied().unwrap_or(0) == 1 {
            let bits = category_bits(tree, at)?;
            // The listed categories go right.
            let special = Special::Categories { feature, bits, set_goes_left: false, missing_left };
            return Ok(Branch::Special { special, left, right });
        }
        Ok(Branch::Split { feature, threshold: condition, missing_left, left, right })
    };
    (0..count).map(branch).collect()
}

fn category_bits(tree: &Tree, node: usize) -> Result<Vec<u32>, String> {
    let at = tree.categories_nodes.iter().position(|index| *index == node as i64);
    let at = at.ok_or_else(|| format!("categorical node {node} has no categories"))?;
    let bound = |list: &[i64]| list.get(at).and_then(|bound| usize::try_from(*bound).ok());
    let (start, size) =
        bound(&tree.categories_segments).zip(bound(&tree.categories_sizes)).ok_or("categories")?;
    let categories = start.checked_add(size).and_then(|end| tree.categories.get(start..end));
    let mut bits = Vec::new();
    for category in categories.ok_or("categories")? {
        let category = usize::try_from(*category).ok().filter(|category| *category < 1 << 24);
        let category = category.ok_or_else(|| format!("node {node} has an impossible category"))?;
        if bits.len() <= category / 32 {
            bits.resize(category / 32 + 1, 0_u32);
        }
        bits[category / 32] |= 1 << (category % 32);
    }
    Ok(bits)
}
