//! CatBoost's JSON model: numbers compared with borders, categories by hash, statistics of categories (CTRs), and
//! trees over those.
//!
//! Everything that a tree asks is whether one number of a row, its slot, is above a border. Slots are the columns of
//! numbers; then whether a category is a certain one; then each CTR.

mod slots;

use std::collections::HashMap;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::ensemble::{Best, Ensemble, Feature, Library, Scores};
use crate::output::{Link, Output};
use crate::trees::{Branch, Forest, Leaf, Reading, Row};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    features_info: FeaturesInfo,
    model_info: ModelInfo,
    oblivious_trees: Option<Vec<ObliviousTree>>,
    trees: Option<Vec<TreeNode>>,
    scale_and_bias: (f64, Vec<f64>),
    #[serde(default)]
    ctr_data: HashMap<String, CtrData>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FeaturesInfo {
    #[serde(default)]
    float_features: Vec<FloatFeature>,
    #[serde(default)]
    categorical_features: Vec<CategoricalFeature>,
    #[serde(default)]
    ctrs: Vec<CtrInfo>,
    text_features: Option<IgnoredAny>,
    embedding_features: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct FloatFeature {
    #[serde(default)]
    feature_id: String,
    flat_feature_index: usize,
    #[serde(default)]
    borders: Vec<f64>,
    #[serde(default)]
    nan_value_treatment: String,
}

#[derive(Deserialize)]
struct CategoricalFeature {
    #[serde(default)]
    feature_id: String,
    flat_feature_index: usize,
    /// Hashes of the categories that trees ask for.
    #[serde(default)]
    values: Vec<i64>,
}

#[derive(Deserialize)]
struct CtrInfo {
    borders: Vec<f64>,
    ctr_type: String,
    elements: Vec<Element>,
    identifier: String,
    prior_numerator: f32,
    /// So spelt.
    prior_denomerator: f32,
    scale: f32,
    shift: f32,
    #[serde(default)]
    target_border_idx: usize,
}

/// What categories of a combination are joined from.
#[derive(Deserialize)]
struct Element {
    combination_element: String,
    cat_feature_index: Option<usize>,
    float_feature_index: Option<usize>,
    border: Option<f64>,
    value: Option<i64>,
}

#[derive(Deserialize)]
struct CtrData {
    #[serde(default)]
    counter_denominator: f32,
    /// A hash as text, then `hash_stride - 1` numbers; and again.
    hash_map: Vec<Value>,
    hash_stride: usize,
}

#[derive(Deserialize)]
struct ModelInfo {
    params: Option<Value>,
}

#[derive(Deserialize)]
struct ObliviousTree {
    leaf_values: Vec<f64>,
    #[serde(default)]
    splits: Option<Vec<Split>>,
}

#[derive(Deserialize)]
struct Split {
    split_index: usize,
}

/// A node with a split and children, or a leaf with one or several values.
#[derive(Deserialize)]
struct TreeNode {
    split: Option<Split>,
    left: Option<Box<TreeNode>>,
    right: Option<Box<TreeNode>>,
    value: Option<Value>,
}

/// How a row's values become slots.
#[derive(Debug)]
pub(crate) struct Slots {
    floats: Vec<Float>,
    /// Columns that hold categories.
    columns: Vec<CategoryColumn>,
    /// Column (of `columns`) and hash.
    one_hot: Vec<(usize, u32)>,
    ctrs: Vec<Ctr>,
}

#[derive(Debug)]
struct Float {
    column: usize,
    /// What a missing value counts as.
    missing: f64,
}

#[derive(Debug)]
struct CategoryColumn {
    column: usize,
    name: String,
    /// The hashes of the manifest's categories; none where values are whole numbers themselves.
    hashes: Option<Vec<u32>>,
    /// A missing value counts as a category that training has not seen.
    may_be_missing: bool,
}

#[derive(Debug)]
struct Ctr {
    projection: Projection,
    kind: CtrKind,
    prior: (f32, f32),
    scale: f32,
    shift: f32,
    denominator: f32,
    /// The numbers of each combination of categories that training saw.
    table: HashMap<u64, Vec<f32>>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum CtrKind {
    /// Rows of this class, of all.
    Buckets(usize),
    /// Rows of a class above this one, of all.
    Borders(usize),
    /// Sum and count.
    Mean,
    /// Count.
    Counter,
}

#[derive(Debug)]
struct Projection {
    categories: Vec<usize>,
    /// Slot and border.
    floats: Vec<(usize, f64)>,
    exact: Vec<(usize, u32)>,
}

/// Trees whose levels each ask one thing.
#[derive(Debug)]
pub(crate) struct Oblivious {
    /// Slot and border.
    splits: Vec<(u32, f64)>,
    /// Where each tree's splits and leaves begin; its splits end where the next one's begin.
    trees: Vec<(usize, usize)>,
    /// `[leaf, groups]` of each tree.
    leaves: Vec<f64>,
}

/// The trees over the slots.
#[derive(Debug)]
pub(crate) enum Trees {
    Oblivious(Oblivious),
    /// Leaves' bits say where their numbers begin.
    Any(Forest, Vec<f64>),
}

/// What CatBoost makes of a row.
#[derive(Debug)]
pub(crate) struct CatBoost {
    pub(crate) slots: Slots,
    trees: Trees,
    scale: f64,
    bias: Vec<f64>,
}

pub(crate) fn parse(bytes: &[u8]) -> Result<Ensemble, String> {
    let file: File =
        serde_json::from_slice(bytes).map_err(|error| format!("not a CatBoost model: {error}"))?;
    let info = &file.features_info;
    for (what, given) in [("text", &info.text_features), ("embedding", &info.embedding_features)] {
        if given.is_some() {
            return Err(format!("{what} features are not supported"));
        }
    }
    let (scale, bias) = file.scale_and_bias;
    let groups = bias.len();
    let (link, output) = link(&loss(&file.model_info)?, groups)?;
    let features = features(info)?;
    let slots = slots(info, file.ctr_data)?;
    let questions = questions(info);
    let trees = match (file.oblivious_trees, file.trees) {
        (Some(trees), None) => Trees::Oblivious(oblivious(&trees, &questions, groups)?),
        (None, Some(trees)) => any(&trees, &questions, slots.len(), groups)?,
        _ => return Err("neither oblivious_trees nor trees, or both".into()),
    };
    let count = trees.len();
    let model = CatBoost { slots, trees, scale, bias };
    Ok(Ensemble {
        library: Library::CatBoost,
        features,
        loose_categories: Vec::new(),
        scores: Scores::CatBoost(Box::new(model)),
        base: vec![0.0; groups],
        iterations: (0..=count).collect(),
        best: Best::All,
        averages: false,
        link,
        output,
    })
}

fn loss(info: &ModelInfo) -> Result<String, String> {
    let unsaid = || "the model does not say its loss function".to_owned();
    let params = match info.params.as_ref().ok_or_else(unsaid)? {
        Value::String(text) => serde_json::from_str(text).map_err(|_| unsaid())?,
        other => other.clone(),
    };
    let loss = params.pointer("/loss_function/type").and_then(Value::as_str);
    loss.map(str::to_owned).ok_or_else(unsaid)
}

fn link(loss: &str, groups: usize) -> Result<(Link, Output), String> {
    let probabilities = Output { name: "probabilities", width: Some(groups) };
    Ok(match loss {
        "Logloss" | "CrossEntropy" | "Focal" => (Link::Logistic { scale: 1.0 }, Output::one("probability")),
        "MultiClass" => (Link::Softmax, probabilities),
        "MultiClassOneVsAll" | "MultiLogloss" | "MultiCrossEntropy" => {
            (Link::Logistic { scale: 1.0 }, probabilities)
        }
        "Poisson" | "Tweedie" => (Link::Exp, Output::one("prediction")),
        "RMSEWithUncertainty" => (Link::Variance, Output { name: "prediction", width: Some(2) }),
        "RMSE"
        | "MAE"
        | "Quantile"
        | "MultiQuantile"
        | "LogLinQuantile"
        | "MAPE"
        | "Lq"
        | "Huber"
        | "Expectile"
        | "LogCosh"
        | "GroupQuantile"
        | "MultiRMSE"
        | "MultiRMSEWithMissingValues"
        | "Cox"
        | "SurvivalAft"
        | "QueryRMSE"
        | "QuerySoftMax"
        | "QueryCrossEntropy"
        | "PairLogit"
        | "PairLogitPairwise"
        | "YetiRank"
        | "YetiRankPairwise"
        | "LambdaMart"
        | "StochasticFilter"
        | "StochasticRank" => (Link::Identity, Output::predictions(groups)),
        other => {
            return Err(format!(
                "loss function {other:?} is not supported; those that CatBoost 1.2 trains are"
            ));
        }
    })
}

fn features(info: &FeaturesInfo) -> Result<Vec<Feature>, String> {
    let floats = info.float_features.iter().map(|feature| (feature.flat_feature_index, &feature.feature_id));
    let categorical = info.categorical_features.iter();
    let categorical = categorical.map(|feature| (feature.flat_feature_index, &feature.feature_id));
    let mut all: Vec<(usize, &String)> = floats.chain(categorical).collect();
    all.sort_unstable();
    if all.iter().enumerate().any(|(at, (index, _))| *index != at) {
        return Err("its features are not numbered one after the other".into());
    }
    // Unnamed ones have no name, or their number.
    let name = |at: usize, id: &str| (!id.is_empty() && id != at.to_string()).then(|| id.to_owned());
    Ok(all.into_iter().map(|(at, id)| Feature { name: name(at, id), categories: None }).collect())
}

/// What each split index asks: slot and border.
fn questions(info: &FeaturesInfo) -> Vec<(u32, f64)> {
    let floats = info.float_features.iter().map(|feature| feature.borders.as_slice());
    let values = info.categorical_features.iter().flat_map(|feature| &feature.values);
    let one_hot = values.map(|_| [0.5].as_slice());
    let ctrs = info.ctrs.iter().map(|ctr| ctr.borders.as_slice());
    let slots = floats.chain(one_hot).chain(ctrs).enumerate();
    slots.flat_map(|(slot, borders)| borders.iter().map(move |border| (slot as u32, *border))).collect()
}

fn slots(info: &FeaturesInfo, mut data: HashMap<String, CtrData>) -> Result<Slots, String> {
    let floats = info.float_features.iter().map(|feature| {
        let missing = match feature.nan_value_treatment.as_str() {
            "AsTrue" => f64::INFINITY,
            // Where training saw none, no comparison holds.
            "AsFalse" | "AsIs" => f64::NEG_INFINITY,
            other => return Err(format!("nan_value_treatment {other:?} is not known")),
        };
        Ok(Float { column: feature.flat_feature_index, missing })
    });
    let columns = info.categorical_features.iter().map(|feature| CategoryColumn {
        column: feature.flat_feature_index,
        name: String::new(),
        hashes: None,
        may_be_missing: false,
    });
    let one_hot = info.categorical_features.iter().enumerate();
    let one_hot = one_hot.flat_map(|(at, feature)| feature.values.iter().map(move |hash| (at, *hash as u32)));
    let mut tables = HashMap::new();
    for ctr in &info.ctrs {
        if let Some(data) = data.remove(&ctr.identifier) {
            tables.insert(ctr.identifier.clone(), (data.counter_denominator, data.table()?));
        }
    }
    let ctrs = info.ctrs.iter().map(|ctr| {
        let (denominator, table) =
            tables.get(&ctr.identifier).ok_or_else(|| format!("ctr_data lacks {}", ctr.identifier))?;
        ctr.read(info, *denominator, table.clone())
    });
    Ok(Slots {
        floats: floats.collect::<Result<_, _>>()?,
        columns: columns.collect(),
        one_hot: one_hot.collect(),
        ctrs: ctrs.collect::<Result<_, _>>()?,
    })
}

impl CtrData {
    fn table(&self) -> Result<HashMap<u64, Vec<f32>>, String> {
        if self.hash_stride == 0 || !self.hash_map.len().is_multiple_of(self.hash_stride) {
            return Err("ctr_data: not a whole number of entries".into());
        }
        let entries = self.hash_map.chunks_exact(self.hash_stride).map(|entry| {
            let (hash, numbers) = entry.split_first()?;
            let hash = hash.as_str()?.parse().ok()?;
            let numbers =
                numbers.iter().map(|number| Some(number.as_f64()? as f32)).collect::<Option<_>>()?;
            Some((hash, numbers))
        });
        let mut table: HashMap<u64, Vec<f32>> =
            entries.collect::<Option<_>>().ok_or("ctr_data: an entry is no hash and numbers")?;
        // Stands for an empty place.
        table.remove(&u64::MAX);
        Ok(table)
    }
}

impl CtrInfo {
    fn read(
        &self,
        info: &FeaturesInfo,
        denominator: f32,
        table: HashMap<u64, Vec<f32>>,
    ) -> Result<Ctr, String> {
        let border = self.target_border_idx;
        let (kind, width) = match self.ctr_type.as_str() {
            "Buckets" => (CtrKind::Buckets(border), border + 1),
            "Borders" => (CtrKind::Borders(border), border + 2),
            "BinarizedTargetMeanValue" | "FloatTargetMeanValue" => (CtrKind::Mean, 2),
            "Counter" | "FeatureFreq" => (CtrKind::Counter, 1),
            other => return Err(format!("CTRs of type {other:?} are not supported")),
        };
        if table.values().any(|numbers| numbers.len() < width) {
            return Err(format!("ctr_data: {} has too few numbers", self.identifier));
        }
        let (numbers, categories) = (info.float_features.len(), info.categorical_features.len());
        let mut projection = Projection { categories: Vec::new(), floats: Vec::new(), exact: Vec::new() };
        for element in &self.elements {
            let category = element.cat_feature_index.filter(|at| *at < categories);
            let float = element.float_feature_index.filter(|at| *at < numbers);
            match (element.combination_element.as_str(), category, float, element.border, element.value) {
                ("cat_feature_value", Some(at), ..) => projection.categories.push(at),
                ("float_feature", _, Some(at), Some(border), _) => projection.floats.push((at, border)),
                ("cat_feature_exact_value", Some(at), _, _, Some(value)) => {
                    projection.exact.push((at, value as u32));
                }
                (other, ..) => return Err(format!("combinations of {other:?} are not supported")),
            }
        }
        Ok(Ctr {
            projection,
            kind,
            prior: (self.prior_numerator, self.prior_denomerator),
            scale: self.scale,
            shift: self.shift,
            denominator,
            table,
        })
    }
}

fn oblivious(trees: &[ObliviousTree], questions: &[(u32, f64)], groups: usize) -> Result<Oblivious, String> {
    let mut all = Oblivious { splits: Vec::new(), trees: Vec::new(), leaves: Vec::new() };
    for (at, tree) in trees.iter().enumerate() {
        let splits = tree.splits.as_deref().unwrap_or_default();
        all.trees.push((all.splits.len(), all.leaves.len()));
        for split in splits {
            let question = questions.get(split.split_index);
            all.splits.push(*question.ok_or_else(|| format!("tree {at}: split {}", split.split_index))?);
        }
        if splits.len() > 24 || tree.leaf_values.len() != groups << splits.len() {
            let (depth, leaves) = (splits.len(), tree.leaf_values.len());
            return Err(format!(
                "tree {at}: {leaves} leaf values at a depth of {depth} and for {groups} sums"
            ));
        }
        all.leaves.extend_from_slice(&tree.leaf_values);
    }
    Ok(all)
}

fn any(trees: &[TreeNode], questions: &[(u32, f64)], slots: usize, groups: usize) -> Result<Trees, String> {
    let mut forest = Forest::new(slots, Reading { zero: 0.0, first_category: 0.0 });
    let mut leaves = Vec::new();
    for (at, tree) in trees.iter().enumerate() {
        let mut branches = Vec::new();
        let done = flatten(tree, questions, groups, &mut branches, &mut leaves);
        done.and_then(|_| forest.push(0, &branches, &[])).map_err(|why| format!("tree {at}: {why}"))?;
    }
    Ok(Trees::Any(forest, leaves))
}

/// Adds a node and what is below it; returns where it stands.
fn flatten(
    node: &TreeNode,
    questions: &[(u32, f64)],
    groups: usize,
    branches: &mut Vec<Branch>,
    leaves: &mut Vec<f64>,
) -> Result<usize, String> {
    let at = branches.len();
    let (Some(split), Some(left), Some(right)) = (&node.split, &node.left, &node.right) else {
        let numbers = match &node.value {
            Some(Value::Array(values)) => values.iter().map(Value::as_f64).collect(),
            Some(value) => value.as_f64().map(|value| vec![value]),
            None => None,
        };
        let numbers = numbers.filter(|numbers| numbers.len() == groups).ok_or("a leaf's value")?;
        branches.push(Branch::Leaf(Leaf::At(leaves.len())));
        leaves.extend(numbers);
        return Ok(at);
    };
    let (slot, border) = *questions.get(split.split_index).ok_or("a split's index")?;
    branches.push(Branch::Leaf(Leaf::At(0)));
    let left = flatten(left, questions, groups, branches, leaves)?;
    let right = flatten(right, questions, groups, branches, leaves)?;
    // Above the border is right; the slot is never missing.
    branches[at] =
        Branch::Split { feature: slot, threshold: border.next_up(), missing_left: true, left, right };
    Ok(at)
}

impl Trees {
    fn len(&self) -> usize {
        match self {
            Self::Oblivious(trees) => trees.trees.len(),
            Self::Any(forest, _) => forest.len(),
        }
    }
}

impl CatBoost {
    /// Adds the trees' numbers to the sums.
    pub(crate) fn add<T: Copy + Into<f64>>(
        &self,
        values: &[T],
        trees: std::ops::Range<usize>,
        row: &mut Row,
        sums: &mut [f64],
    ) {
        let groups = sums.len();
        let first = trees.start;
        self.slots.fill(values, &mut row.values);
        match &self.trees {
            Trees::Oblivious(all) => {
                for tree in trees {
                    let (start, leaves) = all.trees[tree];
                    let end = all.trees.get(tree + 1).map_or(all.splits.len(), |next| next.0);
                    let splits = all.splits[start..end].iter().enumerate();
                    let leaf = splits.fold(0, |leaf, (level, (slot, border))| {
                        leaf | usize::from(row.values[*slot as usize] > *border) << level
                    });
                    let numbers = all.leaves[leaves + leaf * groups..].iter();
                    sums.iter_mut().zip(numbers).for_each(|(sum, number)| *sum += number);
                }
            }
            Trees::Any(forest, leaves) => {
                let slots = std::mem::take(&mut row.values);
                forest.read(&slots, row);
                forest.walk(row, trees, |_, _, bits| {
                    let numbers = leaves[bits as usize..].iter();
                    sums.iter_mut().zip(numbers).for_each(|(sum, number)| *sum += number);
                });
            }
        }
        for (sum, bias) in sums.iter_mut().zip(&self.bias) {
            *sum = *sum * self.scale + if first == 0 { *bias } else { 0.0 };
        }
    }
}
