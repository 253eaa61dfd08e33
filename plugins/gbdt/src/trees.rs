//! The trees of every format in one form, and the walk down them.
//!
//! A node goes left when `value < threshold`. A LightGBM node's `value <= threshold` (f64) becomes that exactly, since
//! values are f32: the threshold is the next f32 above the largest one that still goes left.
//!
//! Children stand side by side, and a leaf leads to itself, so that a walk is a fixed number of steps without branches.
//! Several trees are walked at once: their steps do not depend on each other, and one loop check serves them all.

/// What the model answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// P(class 1), shape `[rows]`.
    Probability,
    /// P(class), shape `[rows, classes]`.
    Probabilities,
    /// A number, shape `[rows]`.
    Prediction,
}

impl Output {
    /// The output tensor's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Probability => "probability",
            Self::Probabilities => "probabilities",
            Self::Prediction => "prediction",
        }
    }
}

/// What happens to the sums.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Link {
    Identity,
    /// 1 / (1 + exp(-scale * x)).
    Logistic {
        scale: f64,
    },
    Softmax,
    Exp,
    /// sign(x) x^2.
    SignedSquare,
}

/// The node's `bits` say which categories go left.
const CATEGORY: u32 = 1 << 31;
/// Needs more than a comparison or 32 categories: see [`Special`].
const SPECIAL: u32 = 1 << 30;
const INDEX: u32 = SPECIAL - 1;

/// Categories that a node's bits hold.
const INLINE_CATEGORIES: u32 = 32;
/// What stands for a value that is none of those, and for a missing one.
const UNKNOWN: u32 = 32;
const MISSING: u32 = 33;

/// Trees walked side by side.
const LANES: usize = 4;

/// One node, 16 bytes. A leaf's `left` is itself and its value is its threshold.
#[derive(Debug, Clone, Copy)]
struct Node {
    /// Feature number, or index into `specials`; and the flags.
    feature: u32,
    /// The left child; the right one follows it.
    left: u32,
    /// Bits 0 to 31: the threshold, or which categories go left; 32: whether unknown categories do; 33: whether
    /// missing values do.
    bits: u64,
}

impl Node {
    fn threshold(self) -> f32 {
        f32::from_bits(self.bits as u32)
    }
}

/// A value as a node's bits are asked for it: its category, [`UNKNOWN`] or [`MISSING`].
fn category_of(value: f32) -> u32 {
    match value {
        _ if value.is_nan() => MISSING,
        // XGBoost and LightGBM both cut off the fraction, and -0.5 with it.
        _ if value > -1.0 && value < INLINE_CATEGORIES as f32 => value as u32,
        _ => UNKNOWN,
    }
}

/// A node that is not a plain comparison.
#[derive(Debug, Clone)]
pub(crate) enum Special {
    /// Goes to `left` when the category's bit is set. Missing, negative and unknown categories have no bit.
    Categories { feature: u32, bits: Vec<u32>, set_goes_left: bool, missing_left: bool },
    /// Zero counts as missing (LightGBM's `zero_as_missing`).
    ZeroMissing { feature: u32, threshold: f32, missing_left: bool },
}

/// A tree as a format describes it.
#[derive(Debug, Clone)]
pub(crate) enum Branch {
    Leaf(f64),
    Split { feature: u32, threshold: f32, missing_left: bool, left: usize, right: usize },
    Special { special: Special, left: usize, right: usize },
}

#[derive(Debug, Clone, Copy)]
struct Tree {
    root: u32,
    depth: u32,
    group: u32,
}

/// Trees, and what to make of their sums.
#[derive(Debug)]
pub struct Ensemble {
    nodes: Vec<Node>,
    specials: Vec<Special>,
    trees: Vec<Tree>,
    /// Where each group's sum starts.
    base: Vec<f64>,
    features: usize,
    names: Vec<String>,
    link: Link,
    output: Output,
    /// XGBoost adds in f32, in tree order; LightGBM in f64.
    single_precision: bool,
    /// Divides the sums (random forests).
    divisor: f64,
}

/// What a format's reader fills in.
pub(crate) struct Parts {
    pub(crate) base: Vec<f64>,
    pub(crate) features: usize,
    pub(crate) names: Vec<String>,
    pub(crate) link: Link,
    pub(crate) output: Output,
    pub(crate) single_precision: bool,
    pub(crate) divisor: f64,
}

impl Ensemble {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { base, features, names, link, output, single_precision, divisor } = parts;
        Self {
            nodes: Vec::new(),
            specials: Vec::new(),
            trees: Vec::new(),
            base,
            features,
            names,
            link,
            output,
            single_precision,
            divisor,
        }
    }

    /// Columns of the input.
    pub fn features(&self) -> usize {
        self.features
    }

    /// The columns' names, when the model knows them.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Sums per row: classes, or 1.
    pub fn groups(&self) -> usize {
        self.base.len()
    }

    /// What the answers are.
    pub fn output(&self) -> Output {
        self.output
    }

    /// Adds a tree to a group's sum. Errors: a child or feature that does not exist, a node with two parents.
    pub(crate) fn push(&mut self, group: usize, branches: &[Branch]) -> Result<(), String> {
        if group >= self.base.len() {
            return Err(format!(
                "tree {} is of class {group}, there are {}",
                self.trees.len(),
                self.base.len()
            ));
        }
        let root = self.nodes.len();
        let empty = Node { feature: 0, left: 0, bits: 0 };
        self.nodes.push(empty);
        let mut depth = 0;
        // (branch, where its node stands, its level)
        let mut open = vec![(0_usize, root, 0_u32)];
        let mut placed = 0;
        while let Some((branch, at, level)) = open.pop() {
            placed += 1;
            if placed > branches.len() {
                return Err("a tree's nodes form a cycle".into());
            }
            depth = depth.max(level);
            let branch = branches.get(branch).ok_or("a child does not exist")?;
            let (node, children) = match branch {
                Branch::Leaf(value) => {
                    let bits = u64::from((*value as f32).to_bits());
                    (Node { feature: 0, left: at as u32, bits }, None)
                }
                Branch::Split { feature, threshold, missing_left, left, right } => {
                    self.check_feature(*feature)?;
                    let bits = u64::from(threshold.to_bits()) | u64::from(*missing_left) << MISSING;
                    (Node { feature: *feature, left: 0, bits }, Some((*left, *right)))
                }
                Branch::Special { special, left, right } => (self.special(special)?, Some((*left, *right))),
            };
            let pair = self.nodes.len();
            if let Some((left, right)) = children {
                self.nodes.extend([empty, empty]);
                open.push((right, pair + 1, level + 1));
                open.push((left, pair, level + 1));
            }
            self.nodes[at] = if children.is_some() { Node { left: pair as u32, ..node } } else { node };
        }
        self.trees.push(Tree { root: root as u32, depth, group: group as u32 });
        Ok(())
    }

    /// Few categories stand in the node itself; the rest is looked up.
    fn special(&mut self, special: &Special) -> Result<Node, String> {
        let (Special::Categories { feature, .. } | Special::ZeroMissing { feature, .. }) = special;
        self.check_feature(*feature)?;
        if let Special::Categories { feature, bits, set_goes_left, missing_left } = special
            && bits.len() <= 1
        {
            let set = bits.first().copied().unwrap_or(0);
            let left = u64::from(if *set_goes_left { set } else { !set });
            // Without a bit: as the others without one.
            let bits = left | u64::from(!set_goes_left) << UNKNOWN | u64::from(*missing_left) << MISSING;
            return Ok(Node { feature: feature | CATEGORY, left: 0, bits });
        }
        let index = self.specials.len() as u32;
        self.specials.push(special.clone());
        Ok(Node { feature: index | SPECIAL, left: 0, bits: 0 })
    }

    fn check_feature(&self, feature: u32) -> Result<(), String> {
        if (feature as usize) < self.features {
            return Ok(());
        }
        Err(format!("a tree splits on feature {feature}, there are {}", self.features))
    }

    /// Answers for row-major `values` `[rows, features]`: `[rows]`, or `[rows, groups]`.
    pub fn predict(&self, values: &[f32]) -> Vec<f32> {
        let groups = self.groups();
        let mut answers = Vec::with_capacity(values.len() / self.features.max(1) * groups);
        let mut sums = vec![0.0; groups];
        let mut categories = vec![0; self.features];
        for row in values.chunks_exact(self.features) {
            sums.copy_from_slice(&self.base);
            categories.iter_mut().zip(row).for_each(|(category, value)| *category = category_of(*value));
            self.add_trees(row, &categories, &mut sums);
            self.finish(&mut sums);
            answers.extend(sums.iter().map(|sum| *sum as f32));
        }
        answers
    }

    fn add_trees(&self, row: &[f32], categories: &[u32], sums: &mut [f64]) {
        let mut groups_of_trees = self.trees.chunks_exact(LANES);
        for trees in &mut groups_of_trees {
            let mut at: [u32; LANES] = std::array::from_fn(|lane| trees[lane].root);
            let depth = trees.iter().map(|tree| tree.depth).max().unwrap_or(0);
            for _ in 0..depth {
                for at in &mut at {
                    *at = self.step(*at, row, categories);
                }
            }
            for (at, tree) in at.iter().zip(trees) {
                self.add(tree, *at, sums);
            }
        }
        for tree in groups_of_trees.remainder() {
            let at = (0..tree.depth).fold(tree.root, |at, _| self.step(at, row, categories));
            self.add(tree, at, sums);
        }
    }

    #[inline(always)]
    fn add(&self, tree: &Tree, leaf: u32, sums: &mut [f64]) {
        let value = self.nodes[leaf as usize].threshold();
        let sum = &mut sums[tree.group as usize];
        *sum = if self.single_precision { f64::from(*sum as f32 + value) } else { *sum + f64::from(value) };
    }

    /// One step down; a leaf stays where it is.
    #[inline(always)]
    fn step(&self, at: u32, row: &[f32], categories: &[u32]) -> u32 {
        let node = self.nodes[at as usize];
        if node.feature & SPECIAL != 0 {
            return node.left + u32::from(!self.special_goes_left(node.feature & INDEX, row));
        }
        let feature = (node.feature & INDEX) as usize;
        let category = categories[feature];
        let by_category = node.bits >> category & 1 == 1;
        let by_value = (row[feature] < node.threshold()) | (by_category & (category == MISSING));
        let left = if node.feature & CATEGORY != 0 { by_category } else { by_value };
        // A leaf leads to itself whatever the comparison says.
        node.left + u32::from(!left & (node.left != at))
    }

    #[cold]
    fn special_goes_left(&self, index: u32, row: &[f32]) -> bool {
        match &self.specials[index as usize] {
            Special::Categories { feature, bits, set_goes_left, missing_left } => {
                let value = row[*feature as usize];
                if value.is_nan() {
                    return *missing_left;
                }
                let category = value as i64;
                let word = usize::try_from(category / 32).ok().and_then(|word| bits.get(word));
                let set = value > -1.0 && word.is_some_and(|word| word >> (category % 32) & 1 == 1);
                set == *set_goes_left
            }
            Special::ZeroMissing { feature, threshold, missing_left } => {
                let value = row[*feature as usize];
                // LightGBM's kZeroThreshold.
                if value.is_nan() || value.abs() <= 1e-35 { *missing_left } else { value < *threshold }
            }
        }
    }

    fn finish(&self, sums: &mut [f64]) {
        sums.iter_mut().for_each(|sum| *sum /= self.divisor);
        match self.link {
            Link::Identity => {}
            Link::Logistic { scale } => {
                sums.iter_mut().for_each(|sum| *sum = 1.0 / (1.0 + (-scale * *sum).exp()))
            }
            Link::Exp => sums.iter_mut().for_each(|sum| *sum = sum.exp()),
            Link::SignedSquare => sums.iter_mut().for_each(|sum| *sum *= sum.abs()),
            Link::Softmax => {
                let largest = sums.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                sums.iter_mut().for_each(|sum| *sum = (*sum - largest).exp());
                let total: f64 = sums.iter().sum();
                sums.iter_mut().for_each(|sum| *sum /= total);
            }
        }
    }
}
