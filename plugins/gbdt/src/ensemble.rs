//! A model as any library trained it: scores that start somewhere, are added up over iterations, and become answers.

use std::ops::Range;

use crate::catboost::CatBoost;
use crate::output::{Link, Output};
use crate::trees::{Forest, Row};

/// Who trained the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Library {
    /// Reads and adds in f32.
    XgBoost,
    /// Reads and adds in f64.
    LightGbm,
    /// Reads f32, adds in f64.
    CatBoost,
}

/// What one column of the model's input is, as far as its file says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Feature {
    /// Its name in the training table.
    pub name: Option<String>,
    /// Its categories.
    pub categories: Option<Categories>,
}

/// Categories in the order of their numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Categories {
    /// As texts.
    Known(Vec<String>),
    /// XGBoost's Python package until 3.2 counts characters where bytes are meant: beyond ASCII, texts are cut in
    /// wrong places and the last ones are incomplete. They can be compared with a list, but not read.
    Cut {
        /// All texts, one after the other.
        bytes: Vec<u8>,
        /// Where each begins, and where the last one ends.
        offsets: Vec<usize>,
    },
}

/// Which iterations count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Best {
    /// All of them.
    All,
    /// So many of the first: training stopped early, and whoever wrote the file asks for the best.
    First(usize),
    /// Training stopped early, and the library's interfaces differ: one answers with so many, the other with all.
    Ambiguous(usize),
}

/// A booster.
#[derive(Debug)]
pub(crate) enum Scores {
    /// Each leaf adds its value to its tree's group, in f32.
    Single(Forest),
    /// The same in f64.
    Double(Forest),
    /// XGBoost's dart: each tree has a weight.
    Weighted(Forest, Vec<f32>),
    /// Each leaf adds `groups` numbers, in f32: its bits say where they begin.
    Vectors(Forest, Vec<f32>),
    /// Leaves are linear functions (LightGBM's `linear_tree`).
    Linear(Forest, Vec<LinearLeaf>),
    /// XGBoost's gblinear: `[features + 1, groups]`, the last row is the bias.
    Weights(Vec<f32>),
    CatBoost(Box<CatBoost>),
}

/// What a leaf of a linear tree adds.
#[derive(Debug)]
pub(crate) struct LinearLeaf {
    pub(crate) constant: f64,
    /// Feature and coefficient.
    pub(crate) terms: Vec<(usize, f64)>,
    /// Added instead where one of the features is missing.
    pub(crate) otherwise: f64,
}

/// A loaded model.
#[derive(Debug)]
pub struct Ensemble {
    pub(crate) library: Library,
    pub(crate) features: Vec<Feature>,
    /// Categories of columns that the file does not name, in the columns' order.
    pub(crate) loose_categories: Vec<Vec<String>>,
    pub(crate) scores: Scores,
    /// Where each group's sum starts.
    pub(crate) base: Vec<f64>,
    /// Where each iteration's trees begin, and where the last one's end.
    pub(crate) iterations: Vec<usize>,
    pub(crate) best: Best,
    /// Sums are divided by the number of iterations.
    pub(crate) averages: bool,
    pub(crate) link: Link,
    pub(crate) output: Output,
}

/// What a request may change.
#[derive(Debug, Clone, Default)]
pub struct Ask {
    /// The iterations that count; `None` means those that the model says.
    pub iterations: Option<Range<usize>>,
    /// Where the sums start: none (where the model says), one number, or `[rows, groups]`.
    pub margin: Vec<f32>,
}

impl Ensemble {
    /// Columns of the input.
    pub fn features(&self) -> &[Feature] {
        &self.features
    }

    /// Who trained it.
    pub fn library(&self) -> Library {
        self.library
    }

    /// Sums per row: classes, targets, or 1.
    pub fn groups(&self) -> usize {
        self.base.len()
    }

    /// Iterations that the file holds.
    pub fn iterations(&self) -> usize {
        self.iterations.len().saturating_sub(1)
    }

    /// Trees that an iteration grows side by side for each sum.
    pub(crate) fn parallel_trees(&self) -> usize {
        let groups = if matches!(self.scores, Scores::Vectors(..)) { 1 } else { self.groups() };
        self.iterations.get(1).map_or(1, |trees| trees / groups).max(1)
    }

    /// Whether it is no trees, but weights.
    pub(crate) fn is_linear(&self) -> bool {
        matches!(self.scores, Scores::Weights(_))
    }

    /// What the answers are.
    pub fn output(&self) -> Output {
        self.output
    }

    /// Answers for row-major `values` `[rows, features]`, row by row as [`Output::width`] says. `ask` is within the
    /// model's iterations, its margin none, one or all of `[rows, groups]`.
    pub fn predict<T: Copy + Into<f64>>(&self, values: &[T], ask: &Ask) -> Vec<f64> {
        self.answer(values, ask, self.output.width.unwrap_or(1), |sums| match self.library {
            Library::XgBoost => self.link.apply_single(sums),
            Library::LightGbm | Library::CatBoost => self.link.apply(sums),
        })
    }

    /// The sums before they become answers: `[rows, groups]`.
    #[cfg(test)]
    pub(crate) fn sums<T: Copy + Into<f64>>(&self, values: &[T], ask: &Ask) -> Vec<f64> {
        self.answer(values, ask, self.groups(), |_| {})
    }

    #[inline(always)]
    fn answer<T: Copy + Into<f64>>(
        &self,
        values: &[T],
        ask: &Ask,
        width: usize,
        link: impl Fn(&mut [f64]),
    ) -> Vec<f64> {
        let rows = values.chunks_exact(self.features.len());
        let (trees, divisor) = (self.trees_asked(ask), self.divisor(ask));
        let mut answers = Vec::with_capacity(rows.len() * width);
        let (mut sums, mut row) = (self.base.clone(), Row::default());
        for (number, values) in rows.enumerate() {
            self.start(&ask.margin, number, &mut sums);
            self.add(values, trees.clone(), &mut row, &mut sums);
            if self.averages {
                sums.iter_mut().for_each(|sum| *sum /= divisor);
            }
            link(&mut sums);
            answers.extend_from_slice(&sums[..width]);
        }
        answers
    }

    fn iterations_asked(&self, ask: &Ask) -> Range<usize> {
        ask.iterations.clone().unwrap_or(0..self.usual_iterations())
    }

    /// The trees that count.
    pub(crate) fn trees_asked(&self, ask: &Ask) -> Range<usize> {
        let iterations = self.iterations_asked(ask);
        self.iterations[iterations.start]..self.iterations[iterations.end]
    }

    /// What sums are divided by.
    pub(crate) fn divisor(&self, ask: &Ask) -> f64 {
        if self.averages { self.iterations_asked(ask).len().max(1) as f64 } else { 1.0 }
    }

    /// Iterations that count where a request does not say.
    pub(crate) fn usual_iterations(&self) -> usize {
        match self.best {
            Best::First(count) => count,
            Best::All | Best::Ambiguous(_) => self.iterations(),
        }
    }

    /// Sets the sums to where row `row`'s start.
    pub(crate) fn start(&self, margin: &[f32], row: usize, sums: &mut [f64]) {
        match margin {
            [] => sums.copy_from_slice(&self.base),
            [one] => sums.fill(f64::from(*one)),
            all => {
                let own = all[row * sums.len()..].iter();
                sums.iter_mut().zip(own).for_each(|(sum, margin)| *sum = f64::from(*margin));
            }
        }
    }

    #[inline(always)]
    fn add<T: Copy + Into<f64>>(&self, values: &[T], trees: Range<usize>, row: &mut Row, sums: &mut [f64]) {
        match &self.scores {
            Scores::Single(forest) => {
                forest.read(values, row);
                forest.walk(row, trees, |_, group, bits| add_single(&mut sums[group], f64::from_bits(bits)));
            }
            Scores::Double(forest) => {
                forest.read(values, row);
                forest.walk(row, trees, |_, group, bits| sums[group] += f64::from_bits(bits));
            }
            Scores::Weighted(forest, weights) => {
                forest.read(values, row);
                forest.walk(row, trees, |tree, group, bits| {
                    add_single(&mut sums[group], f64::from(f64::from_bits(bits) as f32 * weights[tree]));
                });
            }
            Scores::Vectors(forest, leaves) => {
                forest.read(values, row);
                forest.walk(row, trees, |_, _, bits| {
                    let leaf = leaves[bits as usize..].iter();
                    sums.iter_mut().zip(leaf).for_each(|(sum, value)| add_single(sum, f64::from(*value)));
                });
            }
            Scores::Linear(forest, leaves) => {
                forest.read(values, row);
                forest
                    .walk(row, trees, |_, group, bits| sums[group] += leaves[bits as usize].at(&row.values));
            }
            Scores::Weights(weights) => add_weights(values, weights, sums),
            Scores::CatBoost(model) => model.add(values, trees, row, sums),
        }
    }
}

/// An f32 sum. The sum of two f32 is rounded once, through f64 as well.
#[inline(always)]
fn add_single(sum: &mut f64, value: f64) {
    *sum = f64::from((*sum + value) as f32);
}

fn add_weights<T: Copy + Into<f64>>(values: &[T], weights: &[f32], sums: &mut [f64]) {
    let groups = sums.len();
    let bias = &weights[values.len() * groups..];
    sums.iter_mut().zip(bias).for_each(|(sum, bias)| add_single(sum, f64::from(*bias)));
    for (value, weights) in values.iter().zip(weights.chunks_exact(groups)) {
        let value = (*value).into() as f32;
        if !value.is_nan() {
            sums.iter_mut().zip(weights).for_each(|(sum, weight)| add_single(sum, f64::from(value * weight)));
        }
    }
}

impl LinearLeaf {
    fn at(&self, values: &[f64]) -> f64 {
        if self.terms.iter().any(|(feature, _)| values[*feature].is_nan()) {
            return self.otherwise;
        }
        self.terms
            .iter()
            .fold(self.constant, |sum, (feature, coefficient)| sum + coefficient * values[*feature])
    }
}
