//! The trees of every format in one form, and the walk down them.
//!
//! A node goes left when `value < threshold`, in f64: every f32 is one, and LightGBM's `value <= threshold` is
//! exactly that with the next larger threshold.
//!
//! Children stand side by side, and a leaf leads to itself, so that a walk is a fixed number of steps without branches.
//! Several trees are walked at once: their steps do not depend on each other, and one loop check serves them all.

use std::ops::Range;

/// The node's `bits` say which categories go left.
const CATEGORY: u32 = 1 << 31;
/// Needs more than a comparison or a few categories: see [`Special`].
const SPECIAL: u32 = 1 << 30;
/// A missing value goes left of the threshold.
const MISSING_LEFT: u32 = 1 << 29;
const INDEX: u32 = MISSING_LEFT - 1;

/// Categories that a node's bits hold.
const INLINE_CATEGORIES: u32 = 62;
/// What stands for a value that is none of those, and for a missing one.
const UNKNOWN: u32 = 62;
const MISSING: u32 = 63;

/// Trees walked side by side.
const LANES: usize = 4;

/// One node, 16 bytes. A leaf's `left` is itself.
#[derive(Debug, Clone, Copy)]
struct Node {
    /// Feature number, or index into `specials`; and the flags.
    feature: u32,
    /// The left child; the right one follows it.
    left: u32,
    /// The threshold or a leaf's value, as an f64. Or which categories go left, and whether [`UNKNOWN`] and
    /// [`MISSING`] do. Or where a leaf's numbers stand.
    bits: u64,
}

/// A node that is not a plain comparison.
#[derive(Debug, Clone)]
pub(crate) enum Special {
    /// Goes to `left` when the category's bit is set. Missing, negative and unknown categories have no bit.
    Categories { feature: u32, bits: Vec<u32>, set_goes_left: bool, missing_left: bool },
    /// Zero counts as missing (LightGBM's `zero_as_missing`), and the threshold itself goes left.
    ZeroMissing { feature: u32, threshold: f64, missing_left: bool },
}

impl Special {
    fn feature(&self) -> u32 {
        let (Self::Categories { feature, .. } | Self::ZeroMissing { feature, .. }) = self;
        *feature
    }
}

/// One node as it is met in a tree.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Visit {
    pub(crate) node: u32,
    /// Its number among the nodes met.
    pub(crate) parent: Option<usize>,
    pub(crate) is_left: bool,
    /// The column that it asks; nothing in a leaf.
    pub(crate) column: u32,
    pub(crate) cover: f32,
    /// A leaf's bits.
    pub(crate) leaf: Option<u64>,
}

/// What a walk ends at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Leaf {
    Value(f64),
    /// Where the leaf's numbers stand in a list of the format's own.
    At(usize),
}

/// A tree as a format describes it.
#[derive(Debug, Clone)]
pub(crate) enum Branch {
    Leaf(Leaf),
    Split { feature: u32, threshold: f64, missing_left: bool, left: usize, right: usize },
    Special { special: Special, left: usize, right: usize },
}

#[derive(Debug, Clone, Copy)]
struct Tree {
    root: u32,
    depth: u32,
    group: u32,
}

/// How a library reads values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Reading {
    /// What is no further from zero counts as zero.
    pub(crate) zero: f64,
    /// Smaller values are no category. Between -1 and 0, the fraction is cut off: category 0.
    pub(crate) first_category: f64,
}

/// A row as the walk needs it; kept from row to row.
#[derive(Debug, Default)]
pub(crate) struct Row {
    pub(crate) values: Vec<f64>,
    /// Each value as a node's bits are asked for it: its category, [`UNKNOWN`] or [`MISSING`].
    categories: Vec<u32>,
}

/// Trees over rows of numbers.
#[derive(Debug)]
pub(crate) struct Forest {
    nodes: Vec<Node>,
    /// How much of the training data each node saw; NaN where the file does not say.
    covers: Vec<f32>,
    specials: Vec<Special>,
    trees: Vec<Tree>,
    features: usize,
    reading: Reading,
    has_categories: bool,
}

impl Forest {
    pub(crate) fn new(features: usize, reading: Reading) -> Self {
        let (nodes, covers, specials, trees) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { nodes, covers, specials, trees, features, reading, has_categories: false }
    }

    /// Number of trees.
    pub(crate) fn len(&self) -> usize {
        self.trees.len()
    }

    /// Adds a tree to a group's sum. `covers`: how much of the training data each branch saw, where the file says so.
    /// Errors: a child or feature that does not exist, a node with two parents.
    pub(crate) fn push(&mut self, group: usize, branches: &[Branch], covers: &[f32]) -> Result<(), String> {
        let root = self.nodes.len();
        let empty = Node { feature: 0, left: 0, bits: 0 };
        self.nodes.push(empty);
        self.covers.push(f32::NAN);
        let mut depth = 0;
        // (branch, where its node stands, its level)
        let mut open = vec![(0_usize, root, 0_u32)];
        let mut placed = 0;
        while let Some((branch, at, level)) = open.pop() {
            placed += 1;
            if placed > branches.len() {
                return Err("its nodes form a cycle".into());
            }
            depth = depth.max(level);
            self.covers[at] = covers.get(branch).copied().unwrap_or(f32::NAN);
            let branch = branches.get(branch).ok_or("a child does not exist")?;
            let (node, children) = match branch {
                Branch::Leaf(leaf) => {
                    let bits = match leaf {
                        Leaf::Value(value) => value.to_bits(),
                        Leaf::At(index) => *index as u64,
                    };
                    (Node { feature: 0, left: at as u32, bits }, None)
                }
                Branch::Split { feature, threshold, missing_left, left, right } => {
                    self.check_feature(*feature)?;
                    if threshold.is_nan() {
                        return Err("a threshold is not a number".into());
                    }
                    let feature = feature | if *missing_left { MISSING_LEFT } else { 0 };
                    (Node { feature, left: 0, bits: threshold.to_bits() }, Some((*left, *right)))
                }
                Branch::Special { special, left, right } => (self.special(special)?, Some((*left, *right))),
            };
            let pair = self.nodes.len();
            if let Some((left, right)) = children {
                self.nodes.extend([empty, empty]);
                self.covers.extend([f32::NAN, f32::NAN]);
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
        self.check_feature(special.feature())?;
        if let Special::Categories { feature, bits, set_goes_left, missing_left } = special
            && let Some(set) = inline(bits)
        {
            self.has_categories = true;
            let known = (1 << INLINE_CATEGORIES) - 1;
            let left = if *set_goes_left { set } else { !set & known };
            // Without a bit: as the others without one.
            let bits = left | u64::from(!set_goes_left) << UNKNOWN | u64::from(*missing_left) << MISSING;
            return Ok(Node { feature: feature | CATEGORY, left: 0, bits });
        }
        let index = self.specials.len() as u32;
        self.specials.push(special.clone());
        Ok(Node { feature: index | SPECIAL, left: 0, bits: 0 })
    }

    fn check_feature(&self, feature: u32) -> Result<(), String> {
        if (feature as usize) < self.features && feature <= INDEX {
            return Ok(());
        }
        Err(format!("splits on feature {feature}, there are {}", self.features))
    }

    /// Takes over the next row.
    #[inline(always)]
    pub(crate) fn read<T: Copy + Into<f64>>(&self, values: &[T], row: &mut Row) {
        row.values.resize(self.features, 0.0);
        row.categories.resize(self.features, 0);
        for (place, value) in row.values.iter_mut().zip(values) {
            let value: f64 = (*value).into();
            *place = if value.abs() <= self.reading.zero { 0.0 } else { value };
        }
        if self.has_categories {
            let first = self.reading.first_category;
            let values = row.categories.iter_mut().zip(&row.values);
            values.for_each(|(category, value)| *category = category_of(*value, first));
        }
    }

    /// Walks down `trees`, in their order; `leaf` is told of each its number, its group and its leaf's bits.
    #[inline(always)]
    pub(crate) fn walk(&self, row: &Row, trees: Range<usize>, mut leaf: impl FnMut(usize, usize, u64)) {
        let mut number = trees.start;
        let mut arrive = |tree: &Tree, at: u32| {
            leaf(number, tree.group as usize, self.nodes[at as usize].bits);
            number += 1;
        };
        let mut groups_of_trees = self.trees[trees].chunks_exact(LANES);
        for trees in &mut groups_of_trees {
            let mut at: [u32; LANES] = std::array::from_fn(|lane| trees[lane].root);
            let depth = trees.iter().map(|tree| tree.depth).max().unwrap_or(0);
            for _ in 0..depth {
                for at in &mut at {
                    *at = self.step(*at, row);
                }
            }
            for (at, tree) in at.iter().zip(trees) {
                arrive(tree, *at);
            }
        }
        for tree in groups_of_trees.remainder() {
            arrive(tree, (0..tree.depth).fold(tree.root, |at, _| self.step(at, row)));
        }
    }

    /// The group whose sum a tree adds to.
    pub(crate) fn group(&self, tree: usize) -> usize {
        self.trees[tree].group as usize
    }

    /// A tree's nodes, parents first.
    pub(crate) fn visit(&self, tree: usize) -> Vec<Visit> {
        let mut visits: Vec<Visit> = Vec::new();
        let mut open = vec![(self.trees[tree].root, None, false)];
        while let Some((at, parent, is_left)) = open.pop() {
            let node = self.nodes[at as usize];
            let is_leaf = node.left == at;
            let column = match node.feature {
                special if special & SPECIAL != 0 => self.specials[(special & INDEX) as usize].feature(),
                plain => plain & INDEX,
            };
            let (cover, leaf) = (self.covers[at as usize], is_leaf.then_some(node.bits));
            let number = visits.len();
            visits.push(Visit { node: at, parent, is_left, column, cover, leaf });
            if !is_leaf {
                open.extend([(node.left + 1, Some(number), false), (node.left, Some(number), true)]);
            }
        }
        visits
    }

    /// Whether an inner node sends the row to its left child.
    pub(crate) fn goes_left(&self, node: u32, row: &Row) -> bool {
        self.step(node, row) == self.nodes[node as usize].left
    }

    /// One step down; a leaf stays where it is.
    #[inline(always)]
    fn step(&self, at: u32, row: &Row) -> u32 {
        let node = self.nodes[at as usize];
        if node.feature & SPECIAL != 0 {
            return node.left + u32::from(!self.special_goes_left(node.feature & INDEX, row));
        }
        let feature = (node.feature & INDEX) as usize;
        let value = row.values[feature];
        let by_category = node.bits >> row.categories[feature] & 1 == 1;
        let missing_left = value.is_nan() & (node.feature & MISSING_LEFT != 0);
        let by_value = (value < f64::from_bits(node.bits)) | missing_left;
        let left = if node.feature & CATEGORY != 0 { by_category } else { by_value };
        // A leaf leads to itself whatever the comparison says.
        node.left + u32::from(!left & (node.left != at))
    }

    #[cold]
    fn special_goes_left(&self, index: u32, row: &Row) -> bool {
        match &self.specials[index as usize] {
            Special::Categories { feature, bits, set_goes_left, missing_left } => {
                let value = row.values[*feature as usize];
                if value.is_nan() {
                    return *missing_left;
                }
                let category = value as i64;
                let word = usize::try_from(category / 32).ok().and_then(|word| bits.get(word));
                let is_category = value >= self.reading.first_category;
                let set = is_category && word.is_some_and(|word| word >> (category % 32) & 1 == 1);
                set == *set_goes_left
            }
            Special::ZeroMissing { feature, threshold, missing_left } => {
                let value = row.values[*feature as usize];
                if value.is_nan() || value == 0.0 { *missing_left } else { value <= *threshold }
            }
        }
    }
}

fn category_of(value: f64, first: f64) -> u32 {
    match value {
        _ if value.is_nan() => MISSING,
        _ if value >= first && value < f64::from(INLINE_CATEGORIES) => value as u32,
        _ => UNKNOWN,
    }
}

/// The set as one word, where it has room there.
fn inline(words: &[u32]) -> Option<u64> {
    let [low, high] = match words {
        [] => [0, 0],
        [low] => [*low, 0],
        [low, high] => [*low, *high],
        _ => return None,
    };
    let set = u64::from(high) << 32 | u64::from(low);
    (set >> INLINE_CATEGORIES == 0).then_some(set)
}
