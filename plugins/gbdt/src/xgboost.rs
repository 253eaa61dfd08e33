//! XGBoost's model schema (doc/model.schema), the same in JSON and UBJSON. Boosters `gbtree`, `dart` and `gblinear`.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

use crate::ensemble::{Best, Categories, Ensemble, Feature, Library, Scores};
use crate::output::{Link, Output};
use crate::trees::{Branch, Forest, Leaf, Reading, Special};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    learner: Learner,
    /// Of the library: major, minor, patch.
    #[serde(default)]
    version: Vec<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Learner {
    #[serde(default)]
    attributes: BTreeMap<String, String>,
    #[serde(default)]
    feature_names: Vec<String>,
    #[serde(default, rename = "feature_types")]
    _feature_types: Vec<String>,
    gradient_booster: Booster,
    learner_model_param: LearnerParam,
    objective: Objective,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LearnerParam {
    /// `5E-1`, or from XGBoost 3.1 on `[5E-1,5E-1]`, one per class.
    base_score: String,
    num_class: String,
    num_feature: String,
    #[serde(default)]
    num_target: String,
    /// Whether `base_score` was estimated.
    #[serde(rename = "boost_from_average")]
    _boost_from_average: Option<IgnoredAny>,
}

/// Its parameters matter in training only.
#[derive(Deserialize)]
struct Objective {
    name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Booster {
    name: String,
    model: Option<BoosterModel>,
    /// Only in dart, which wraps a gbtree.
    gbtree: Option<Box<Booster>>,
    #[serde(default)]
    weight_drop: Vec<f32>,
}

/// The model of a gbtree, or of a gblinear.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BoosterModel {
    #[serde(default)]
    trees: Vec<Tree>,
    #[serde(default)]
    tree_info: Vec<i64>,
    /// From XGBoost 2.0 on.
    #[serde(default)]
    iteration_indptr: Vec<usize>,
    gbtree_model_param: Option<TreesParam>,
    /// From XGBoost 3.1 on.
    cats: Option<Encodings>,
    #[serde(default)]
    weights: Vec<f32>,
    #[serde(rename = "boosted_rounds")]
    _boosted_rounds: Option<IgnoredAny>,
    #[serde(rename = "param")]
    _param: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct TreesParam {
    #[serde(default)]
    num_parallel_tree: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Encodings {
    /// One a feature, empty for numbers.
    #[serde(default)]
    enc: Vec<Encoding>,
    #[serde(default, rename = "feature_segments")]
    _feature_segments: IgnoredAny,
    #[serde(default, rename = "sorted_idx")]
    _sorted_idx: IgnoredAny,
}

/// With offsets the values are the bytes of texts, else whole numbers.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Encoding {
    offsets: Option<Vec<usize>>,
    #[serde(default)]
    values: Vec<i64>,
    #[serde(rename = "type")]
    _type: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tree {
    left_children: Vec<i64>,
    right_children: Vec<i64>,
    split_indices: Vec<i64>,
    split_conditions: Vec<Number>,
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
    /// Of every node; where leaves are vectors, `size_leaf_vector` numbers a node, until XGBoost 3.0 also the leaves'.
    #[serde(default)]
    base_weights: Vec<Number>,
    /// Where leaves are vectors, from XGBoost 3.1 on: a leaf's right child says which.
    #[serde(default)]
    leaf_weights: Vec<Number>,
    tree_param: TreeParam,
    #[serde(rename = "id")]
    _id: Option<IgnoredAny>,
    #[serde(rename = "parents")]
    _parents: Option<IgnoredAny>,
    #[serde(rename = "loss_changes")]
    _loss_changes: Option<IgnoredAny>,
    /// What each node saw of the training data.
    #[serde(default)]
    sum_hessian: Vec<Number>,
}

#[derive(Deserialize)]
struct TreeParam {
    #[serde(default)]
    size_leaf_vector: String,
}

/// A number; `null` stands for NaN.
#[derive(Clone, Copy)]
struct Number(f32);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Option::<f32>::deserialize(deserializer).map(|number| Self(number.unwrap_or(f32::NAN)))
    }
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
    let file = serde_json::from_slice(&without_nan(bytes));
    ensemble(file.map_err(|error| format!("not an XGBoost, LightGBM or CatBoost model: {error}"))?)
}

pub(crate) fn parse_ubjson(bytes: &[u8]) -> Result<Ensemble, String> {
    ensemble(crate::ubjson::from_slice(bytes).map_err(|error| format!("not an XGBoost model: {error}"))?)
}

/// XGBoost writes `NaN`, which JSON has no word for, as the threshold of a categorical node: `null` is read as that.
fn without_nan(json: &[u8]) -> Cow<'_, [u8]> {
    const NAN: &[u8] = b"NaN";
    if !json.windows(NAN.len()).any(|word| word == NAN) {
        return Cow::Borrowed(json);
    }
    let (mut out, mut in_text, mut at) = (Vec::with_capacity(json.len() + 64), false, 0);
    while let Some(byte) = json.get(at) {
        match byte {
            b'"' => in_text = !in_text,
            b'\\' if in_text => {
                out.push(*byte);
                at += 1;
            }
            b'N' if !in_text && json[at..].starts_with(NAN) => {
                out.extend_from_slice(b"null");
                at += NAN.len();
                continue;
            }
            _ => {}
        }
        out.extend(json.get(at));
        at += 1;
    }
    Cow::Owned(out)
}

fn ensemble(file: File) -> Result<Ensemble, String> {
    let Learner {
        attributes, feature_names, gradient_booster, learner_model_param: param, objective, ..
    } = file.learner;
    let count = |name: &str, text: &str| -> Result<usize, String> {
        if text.is_empty() {
            Ok(0)
        } else {
            text.parse().map_err(|_| format!("{name} {text:?} is no number"))
        }
    };
    let classes = count("num_class", &param.num_class)?;
    let targets = count("num_target", &param.num_target)?.max(1);
    let groups = if classes > 1 { classes } else { targets };
    let features = count("num_feature", &param.num_feature)?;
    let (link, output) = link(&objective.name, groups)?;
    let mut base = base_scores(&param.base_score, groups, &objective.name)?;
    let booster = booster(gradient_booster, features, groups)?;
    if matches!(booster.scores, Scores::Weights(_)) {
        linear_base(&mut base, &file.version)?;
    }
    let trained = booster.iterations.len() - 1;
    Ok(Ensemble {
        library: Library::XgBoost,
        features: named(features, feature_names, booster.categories)?,
        loose_categories: Vec::new(),
        best: best(&attributes, &booster.scores, trained)?,
        scores: booster.scores,
        base,
        iterations: booster.iterations,
        averages: false,
        link,
        output,
    })
}

fn link(objective: &str, groups: usize) -> Result<(Link, Output), String> {
    Ok(match objective {
        "binary:logistic" | "reg:logistic" => (Link::Logistic { scale: 1.0 }, Output::probabilities(groups)),
        "multi:softprob" => (Link::Softmax, Output { name: "probabilities", width: Some(groups) }),
        "multi:softmax" => (Link::Largest, Output::one("prediction")),
        "binary:hinge" => (Link::Step, Output::predictions(groups)),
        "reg:squarederror"
        | "reg:linear"
        | "reg:squaredlogerror"
        | "reg:absoluteerror"
        | "reg:pseudohubererror"
        | "reg:quantileerror"
        | "reg:expectileerror"
        | "binary:logitraw"
        | "rank:ndcg"
        | "rank:map"
        | "rank:pairwise" => (Link::Identity, Output::predictions(groups)),
        "count:poisson" | "reg:gamma" | "reg:tweedie" | "survival:cox" | "survival:aft" => {
            (Link::Exp, Output::predictions(groups))
        }
        other => {
            return Err(format!("objective {other:?} is not supported; those that XGBoost 3.2 has are"));
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
        "count:poisson" | "reg:gamma" | "reg:tweedie" | "survival:cox" | "survival:aft" => score.ln(),
        _ => score,
    };
    match scores.as_slice() {
        [one] => Ok(vec![f64::from(margin(*one)); groups]),
        many if many.len() == groups => Ok(many.iter().map(|score| f64::from(margin(*score))).collect()),
        many => Err(format!("base_score has {} values for {groups} classes or targets", many.len())),
    }
}

/// XGBoost 3.1 and 3.2 start every sum of a gblinear at the first class's base score. Errors: a later release may not.
fn linear_base(base: &mut [f64], version: &[u32]) -> Result<(), String> {
    let first = base.first().copied().unwrap_or_default();
    if version > [3, 2, u32::MAX].as_slice() && base.iter().any(|score| *score != first) {
        return Err(format!(
            "gblinear with several base scores, of XGBoost {version:?}, which is not known here"
        ));
    }
    base.fill(first);
    Ok(())
}

/// `XGBClassifier` and its kin, whose files have the attribute `scikit_learn`, answer with the best iterations;
/// `Booster.predict` with all of them.
fn best(attributes: &BTreeMap<String, String>, scores: &Scores, trained: usize) -> Result<Best, String> {
    let Some(text) = attributes.get("best_iteration") else { return Ok(Best::All) };
    let last: i64 = text.parse().map_err(|_| format!("best_iteration {text:?} is no number"))?;
    Ok(match usize::try_from(last.saturating_add(1)).unwrap_or(usize::MAX) {
        count if count == trained || matches!(scores, Scores::Weights(_)) => Best::All,
        count if count > trained => {
            return Err(format!("best_iteration is {last}, the model has {trained} iterations"));
        }
        count if attributes.contains_key("scikit_learn") => Best::First(count),
        count => Best::Ambiguous(count),
    })
}

fn named(
    features: usize,
    names: Vec<String>,
    categories: Vec<Option<Categories>>,
) -> Result<Vec<Feature>, String> {
    let lengths = [("feature_names", names.len()), ("cats", categories.len())];
    if let Some((what, length)) = lengths.into_iter().find(|(_, length)| *length != 0 && *length != features)
    {
        return Err(format!("{what} are {length}, features {features}"));
    }
    let (mut names, mut categories) = (names.into_iter(), categories.into_iter());
    let feature = |_| Feature { name: names.next(), categories: categories.next().flatten() };
    Ok((0..features).map(feature).collect())
}

/// What a booster's description comes to.
struct Read {
    scores: Scores,
    iterations: Vec<usize>,
    categories: Vec<Option<Categories>>,
}

fn booster(booster: Booster, features: usize, groups: usize) -> Result<Read, String> {
    match (booster.name.as_str(), booster.model, booster.gbtree) {
        ("gbtree", Some(model), None) => trees(model, None, features, groups),
        ("dart", None, Some(inner)) => {
            let model = inner.model.ok_or("a dart model without trees")?;
            trees(model, Some(booster.weight_drop), features, groups)
        }
        ("gblinear", Some(model), None) => {
            if model.weights.len() != (features + 1) * groups {
                let weights = model.weights.len();
                return Err(format!("{weights} weights for {features} features and {groups} sums"));
            }
            Ok(Read { scores: Scores::Weights(model.weights), iterations: vec![0], categories: Vec::new() })
        }
        (name, ..) => Err(format!("booster {name:?} is not supported; gbtree, dart and gblinear are")),
    }
}

fn trees(
    model: BoosterModel,
    weights: Option<Vec<f32>>,
    features: usize,
    groups: usize,
) -> Result<Read, String> {
    let count = model.trees.len();
    if model.tree_info.len() != count || weights.as_ref().is_some_and(|weights| weights.len() != count) {
        return Err(format!("{count} trees, and another number of groups or weights"));
    }
    let width = model.trees.first().map_or(Ok(1), Tree::width)?;
    let mut forest = Forest::new(features, Reading { zero: 0.0, first_category: 0.0 });
    let mut vectors = Vec::new();
    for (at, (tree, group)) in model.trees.iter().zip(&model.tree_info).enumerate() {
        let in_tree = |why: String| format!("tree {at}: {why}");
        if tree.width()? != width || (width > 1 && (width != groups || weights.is_some())) {
            return Err(in_tree(format!("leaves of {} numbers", tree.width()?)));
        }
        let group = usize::try_from(*group).ok().filter(|group| *group < groups);
        let group = group.ok_or_else(|| in_tree(format!("is not of one of {groups} groups")))?;
        let branches = branches(tree, width, &mut vectors).map_err(in_tree)?;
        let covers: Vec<f32> = tree.sum_hessian.iter().map(|cover| cover.0).collect();
        forest.push(group, &branches, &covers).map_err(in_tree)?;
    }
    let per_iteration = if width > 1 { 1 } else { groups };
    let iterations = iterations(&model, count, per_iteration)?;
    let scores = match weights {
        Some(weights) => Scores::Weighted(forest, weights),
        None if width > 1 => Scores::Vectors(forest, vectors),
        None => Scores::Single(forest),
    };
    let encodings = model.cats.map(|cats| cats.enc).unwrap_or_default();
    let categories = encodings.iter().map(Encoding::categories).collect::<Result<_, _>>()?;
    Ok(Read { scores, iterations, categories })
}

/// Where each iteration's trees begin, and the last one's end.
fn iterations(model: &BoosterModel, trees: usize, per_iteration: usize) -> Result<Vec<usize>, String> {
    let given = &model.iteration_indptr;
    if !given.is_empty() {
        let grows = given.windows(2).all(|pair| pair[0] <= pair[1]);
        let fits = given.first() == Some(&0) && given.last() == Some(&trees);
        return if grows && fits { Ok(given.clone()) } else { Err("iteration_indptr".into()) };
    }
    let parallel = model.gbtree_model_param.as_ref().map_or("", |param| &param.num_parallel_tree);
    let parallel = parallel.parse().unwrap_or(1).max(1);
    let step = per_iteration * parallel;
    if trees.is_multiple_of(step) {
        Ok((0..=trees).step_by(step).collect())
    } else {
        Err(format!("{trees} trees are no whole number of iterations of {step}"))
    }
}

impl Encoding {
    fn categories(&self) -> Result<Option<Categories>, String> {
        let Some(offsets) = &self.offsets else {
            return Ok(Some(Categories::Known(self.values.iter().map(i64::to_string).collect())));
        };
        if self.values.is_empty() && offsets.len() <= 1 {
            return Ok(None);
        }
        let bytes: Vec<u8> = self.values.iter().map(|byte| *byte as u8).collect();
        if !bytes.is_ascii() {
            return Ok(Some(Categories::Cut { bytes, offsets: offsets.clone() }));
        }
        let texts = offsets.windows(2).map(|ends| bytes.get(ends[0]..ends[1]).map(String::from_utf8_lossy));
        let texts = texts.map(|text| text.map(Cow::into_owned)).collect::<Option<_>>();
        Ok(Some(Categories::Known(texts.ok_or("cats: its offsets are not within its texts")?)))
    }
}

impl Tree {
    /// Numbers in a leaf.
    fn width(&self) -> Result<usize, String> {
        let text = &self.tree_param.size_leaf_vector;
        let width: usize = if text.is_empty() { 0 } else { text.parse().map_err(|_| "size_leaf_vector")? };
        Ok(width.max(1))
    }

    /// Where the numbers of a leaf that is a vector come from.
    fn vector(&self, node: usize, width: usize) -> Option<&[Number]> {
        let (list, at) = if self.leaf_weights.is_empty() {
            (&self.base_weights, node)
        } else {
            (&self.leaf_weights, usize::try_from(self.right_children[node]).ok()?)
        };
        list.get(at.checked_mul(width)?..)?.get(..width)
    }
}

fn branches(tree: &Tree, width: usize, vectors: &mut Vec<f32>) -> Result<Vec<Branch>, String> {
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
    let mut branch = |at: usize| -> Result<Branch, String> {
        let Number(condition) = tree.split_conditions[at];
        if tree.left_children[at] == -1 && width > 1 {
            let leaf = tree.vector(at, width).ok_or("a leaf without numbers")?;
            vectors.extend(leaf.iter().map(|number| number.0));
            return Ok(Branch::Leaf(Leaf::At(vectors.len() - width)));
        }
        if tree.left_children[at] == -1 {
            return Ok(Branch::Leaf(Leaf::Value(f64::from(condition))));
        }
        let (left, right) = (child(tree.left_children[at])?, child(tree.right_children[at])?);
        let feature = u32::try_from(tree.split_indices[at]).map_err(|_| "a negative feature")?;
        let missing_left = tree.default_left[at].is_set();
        match tree.split_type.get(at) {
            None | Some(0) => {
                Ok(Branch::Split { feature, threshold: f64::from(condition), missing_left, left, right })
            }
            Some(1) => {
                let bits = category_bits(tree, at)?;
                // The listed categories go right.
                let special = Special::Categories { feature, bits, set_goes_left: false, missing_left };
                Ok(Branch::Special { special, left, right })
            }
            Some(other) => Err(format!("split type {other}")),
        }
    };
    (0..count).map(&mut branch).collect()
}

fn category_bits(tree: &Tree, node: usize) -> Result<Vec<u32>, String> {
    let at = tree.categories_nodes.binary_search(&(node as i64));
    let at = at.map_err(|_| format!("categorical node {node} has no categories"))?;
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
