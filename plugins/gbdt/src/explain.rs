//! Contributions: how much each column moves a row's sums away from what they are on average (TreeSHAP, with the
//! covers of training).
//!
//! A leaf's share in a column's Shapley value is an integral over t in [0, 1] of a product with one factor for each
//! column on the leaf's path: `(1 - t) z + t o`, where z is the share of training rows that pass the path's splits on
//! that column, and o is whether the row does. The product's degree is below the number of columns, so that
//! Gauss-Legendre quadrature of half as many points is exact. The leaves below an edge share its factors: products go
//! down the tree, sums come up, and each edge costs a few operations per point. Source: Owen, Multilinear extensions
//! of games (1972); Yu et al., Linear TreeShap (2022).

use crate::ensemble::{Ask, Ensemble, Scores};
use crate::trees::{Forest, Row, Visit};

/// Explains one model's answers.
#[derive(Debug)]
pub struct Explainer<'a> {
    ensemble: &'a Ensemble,
    points: Points,
    trees: Vec<Tree>,
}

/// A tree's edges, each named by the node it leads to, parents first.
#[derive(Debug)]
struct Tree {
    group: usize,
    edges: Vec<Edge>,
    /// Of each edge and point: one over the factor of a row that passes.
    passing: Vec<f64>,
    /// The average over training, one for each of the leaf's numbers.
    mean: Vec<f64>,
    /// Inner nodes of the forest, whose decisions edges refer to.
    inner: Vec<u32>,
}

#[derive(Debug, Clone, Copy)]
struct Edge {
    column: u32,
    /// The edge above, plus one; none where it starts at the root.
    parent: u32,
    /// The nearest edge above that asks the same column, plus one.
    same: u32,
    /// Which of the inner nodes decides.
    decision: u32,
    is_left: bool,
    /// Share of the training rows at the node above.
    share: f64,
    /// The same, of all edges of this column down to here.
    passed: f64,
    /// The leaf's bits, where it leads to one.
    leaf: Option<u64>,
}

/// Gauss-Legendre points on [0, 1].
#[derive(Debug)]
struct Points {
    /// 1 - t.
    rest: Vec<f64>,
    weights: Vec<f64>,
}

impl<'a> Explainer<'a> {
    /// Prepares the model's trees. Errors: it has no trees that can be explained, or its file has no covers.
    pub fn new(ensemble: &'a Ensemble) -> Result<Self, String> {
        let forest = match &ensemble.scores {
            Scores::Single(forest)
            | Scores::Double(forest)
            | Scores::Weighted(forest, _)
            | Scores::Vectors(forest, _) => forest,
            Scores::Weights(_) => {
                return Ok(Self { ensemble, points: Points::new(1), trees: Vec::new() });
            }
            Scores::Linear(..) => return Err("linear trees have no contributions".into()),
            Scores::CatBoost(_) => return Err("contributions of CatBoost models are not supported".into()),
        };
        let visits: Vec<Vec<Visit>> = (0..forest.len()).map(|tree| forest.visit(tree)).collect();
        let splits = visits.iter().filter(|visits| visits.len() > 1);
        if splits.flatten().any(|visit| visit.cover.is_nan()) {
            return Err("the model's file does not say how many rows its nodes saw in training".into());
        }
        let columns = visits.iter().map(|visits| longest(visits)).max().unwrap_or(0);
        // Few sizes, so that the loops over them are unrolled.
        let points = Points::new(match columns {
            0..=4 => 2,
            5..=8 => 4,
            9..=16 => 8,
            _ => 16,
        });
        let tree = |(number, visits): (usize, &Vec<Visit>)| {
            Tree::new(ensemble, forest.group(number), visits, &points)
        };
        let trees = visits.iter().enumerate().map(tree).collect();
        Ok(Self { ensemble, points, trees })
    }

    /// Contributions to the sums (before the link) of row-major `values` `[rows, features]`: `[rows, groups, features
    /// + 1]`, the last of each group what the sum is on average. They add up to the sum.
    pub fn contributions<T: Copy + Into<f64>>(&self, values: &[T], ask: &Ask) -> Vec<f64> {
        match self.points.weights.len() {
            1 => self.of_weights(values, ask),
            2 => self.of_trees::<T, 2>(values, ask),
            4 => self.of_trees::<T, 4>(values, ask),
            8 => self.of_trees::<T, 8>(values, ask),
            _ => self.of_trees::<T, 16>(values, ask),
        }
    }

    fn of_trees<T: Copy + Into<f64>, const Q: usize>(&self, values: &[T], ask: &Ask) -> Vec<f64> {
        let ensemble = self.ensemble;
        let (forest, vectors, weights): (&Forest, &[f32], &[f32]) = match &ensemble.scores {
            Scores::Single(forest) | Scores::Double(forest) => (forest, &[], &[]),
            Scores::Weighted(forest, weights) => (forest, &[], weights),
            Scores::Vectors(forest, vectors) => (forest, vectors, &[]),
            Scores::Linear(..) | Scores::Weights(_) | Scores::CatBoost(_) => return Vec::new(),
        };
        let (features, groups) = (ensemble.features.len(), ensemble.base.len());
        let asked = ensemble.trees_asked(ask);
        let divisor = ensemble.divisor(ask);
        let mut all = Vec::with_capacity(values.len() / features * (features + 1) * groups);
        let (mut row, mut sums) = (Row::default(), ensemble.base.clone());
        let mut scratch = Scratch::<Q>::new(self);
        for (number, values) in values.chunks_exact(features).enumerate() {
            let start = all.len();
            all.resize(start + (features + 1) * groups, 0.0);
            let of_row = &mut all[start..];
            forest.read(values, &mut row);
            for (at, tree) in self.trees[asked.clone()].iter().enumerate() {
                let weight = weights.get(asked.start + at).map_or(1.0, |weight| f64::from(*weight));
                scratch.descend(tree, forest, &row, &self.points);
                for (target, mean) in tree.mean.iter().enumerate() {
                    let group = tree.group + target;
                    let of_group = &mut of_row[group * (features + 1)..][..features + 1];
                    of_group[features] += mean * weight;
                    let value = |bits: u64| match vectors {
                        [] => f64::from_bits(bits) * weight,
                        vectors => f64::from(vectors[bits as usize + target]),
                    };
                    scratch.ascend(tree, value, &self.points, of_group);
                }
            }
            ensemble.start(&ask.margin, number, &mut sums);
            for (group, sum) in sums.iter().enumerate() {
                let of_group = &mut of_row[group * (features + 1)..][..features + 1];
                of_group.iter_mut().for_each(|contribution| *contribution /= divisor);
                of_group[features] += sum;
            }
        }
        all
    }

    fn of_weights<T: Copy + Into<f64>>(&self, values: &[T], ask: &Ask) -> Vec<f64> {
        let Scores::Weights(weights) = &self.ensemble.scores else { return Vec::new() };
        let (features, groups) = (self.ensemble.features.len(), self.ensemble.base.len());
        let mut sums = self.ensemble.base.clone();
        let mut all = Vec::new();
        for (number, values) in values.chunks_exact(features).enumerate() {
            self.ensemble.start(&ask.margin, number, &mut sums);
            for (group, sum) in sums.iter().enumerate() {
                let of = |column: usize| f64::from(weights[column * groups + group]);
                all.extend(values.iter().enumerate().map(|(column, value)| {
                    let value: f64 = (*value).into();
                    if value.is_nan() { 0.0 } else { value * of(column) }
                }));
                all.push(of(features) + sum);
            }
        }
        all
    }
}

/// Most columns on a path.
fn longest(visits: &[Visit]) -> usize {
    let mut columns: Vec<Vec<u32>> = Vec::with_capacity(visits.len());
    for visit in visits {
        let mut own = visit.parent.map_or_else(Vec::new, |parent| columns[parent].clone());
        if let Some(parent) = visit.parent
            && !own.contains(&visits[parent].column)
        {
            own.push(visits[parent].column);
        }
        columns.push(own);
    }
    columns.iter().map(Vec::len).max().unwrap_or(0)
}

impl Tree {
    fn new(ensemble: &Ensemble, group: usize, visits: &[Visit], points: &Points) -> Self {
        let mut edges: Vec<Edge> = Vec::with_capacity(visits.len());
        let mut inner = Vec::new();
        let mut decisions = vec![0; visits.len()];
        let mut passing = Vec::new();
        for (at, visit) in visits.iter().enumerate() {
            if visit.leaf.is_none() {
                decisions[at] = inner.len() as u32;
                inner.push(visit.node);
            }
            // Edge n leads to visit n + 1; the root's number is 0, which stands for no edge.
            let Some(parent) = visit.parent else { continue };
            let column = visits[parent].column;
            let mut same = parent as u32;
            while same > 0 && edges[same as usize - 1].column != column {
                same = edges[same as usize - 1].parent;
            }
            // Nothing came here in training: next to nothing, so that no factor is zero.
            let share = f64::from((visit.cover / visits[parent].cover).clamp(1e-30, 1.0));
            let passed = if same > 0 { edges[same as usize - 1].passed * share } else { share };
            let (is_left, decision) = (visit.is_left, decisions[parent]);
            edges.push(Edge {
                column,
                parent: parent as u32,
                same,
                decision,
                is_left,
                share,
                passed,
                leaf: visit.leaf,
            });
            passing.extend(points.rest.iter().map(|rest| 1.0 / (passed * rest + 1.0 - rest)));
        }
        let groups = ensemble.base.len();
        let (vectors, group, width): (&[f32], _, _) = match &ensemble.scores {
            Scores::Vectors(_, vectors) => (vectors, 0, groups),
            _ => (&[], group, 1),
        };
        let value = |bits: u64, target: usize| match vectors {
            [] => f64::from_bits(bits),
            vectors => f64::from(vectors[bits as usize + target]),
        };
        let root = f64::from(visits[0].cover);
        let mean = |target: usize| {
            if let Some(bits) = visits[0].leaf {
                return value(bits, target);
            }
            let leaves = visits.iter().filter_map(|visit| Some((visit.leaf?, f64::from(visit.cover))));
            leaves.map(|(bits, cover)| value(bits, target) * cover / root).sum()
        };
        let mean = (0..width).map(mean).collect();
        Self { group, edges, passing, mean, inner }
    }
}

/// What a walk over one tree needs.
struct Scratch<const Q: usize> {
    /// Whether each inner node sends the row left.
    decisions: Vec<bool>,
    /// Whether the row passes all splits on an edge's column down to it.
    passes: Vec<bool>,
    /// The product of the factors down to an edge, at each point.
    products: Vec<[f64; Q]>,
    /// The leaves' values times their products, below an edge.
    sums: Vec<[f64; Q]>,
}

impl<const Q: usize> Scratch<Q> {
    fn new(explainer: &Explainer<'_>) -> Self {
        let most = explainer.trees.iter().map(|tree| tree.edges.len()).max().unwrap_or(0) + 1;
        let (decisions, passes) = (vec![false; most], vec![false; most]);
        Self { decisions, passes, products: vec![[1.0; Q]; most], sums: vec![[0.0; Q]; most] }
    }

    fn descend(&mut self, tree: &Tree, forest: &Forest, row: &Row, points: &Points) {
        for (decision, node) in self.decisions.iter_mut().zip(&tree.inner) {
            *decision = forest.goes_left(*node, row);
        }
        let rest: &[f64; Q] = exact(&points.rest);
        let inverses = tree.passing.as_chunks::<Q>().0;
        for (at, edge) in tree.edges.iter().enumerate() {
            let passed_above = edge.same == 0 || self.passes[edge.same as usize];
            let passes = passed_above & (self.decisions[edge.decision as usize] == edge.is_left);
            let above = &self.products[edge.parent as usize];
            let product = if !passed_above {
                above.map(|product| product * edge.share)
            } else {
                let own = if passes { 1.0 } else { 0.0 };
                let factor = |q: usize| edge.passed * rest[q] + own * (1.0 - rest[q]);
                match edge.same {
                    0 => std::array::from_fn(|q| above[q] * factor(q)),
                    same => {
                        let inverse = &inverses[same as usize - 1];
                        std::array::from_fn(|q| above[q] * factor(q) * inverse[q])
                    }
                }
            };
            self.products[at + 1] = product;
            self.passes[at + 1] = passes;
        }
    }

    fn ascend(
        &mut self,
        tree: &Tree,
        value: impl Fn(u64) -> f64,
        points: &Points,
        contributions: &mut [f64],
    ) {
        let (rest, weights): (&[f64; Q], &[f64; Q]) = (exact(&points.rest), exact(&points.weights));
        // Where the row does not pass, a factor's weight is the same for all edges.
        let failing: [f64; Q] = std::array::from_fn(|q| -weights[q] / rest[q]);
        let inverses = tree.passing.as_chunks::<Q>().0;
        let weight = |edge: usize, passes: bool| -> [f64; Q] {
            if !passes {
                return failing;
            }
            let rest_of = 1.0 - tree.edges[edge].passed;
            std::array::from_fn(|q| rest_of * weights[q] * inverses[edge][q])
        };
        self.sums[..=tree.edges.len()].fill([0.0; Q]);
        for (at, edge) in tree.edges.iter().enumerate().rev() {
            let below = match edge.leaf {
                Some(bits) => {
                    let value = value(bits);
                    self.products[at + 1].map(|product| product * value)
                }
                None => self.sums[at + 1],
            };
            let above = &mut self.sums[edge.parent as usize];
            above.iter_mut().zip(&below).for_each(|(sum, below)| *sum += below);
            let passes = self.passes[at + 1];
            let passed_above = edge.same == 0 || self.passes[edge.same as usize];
            if edge.same > 0 && !passed_above {
                continue;
            }
            let mut own = weight(at, passes);
            if edge.same > 0 {
                let other = weight(edge.same as usize - 1, true);
                own.iter_mut().zip(&other).for_each(|(own, other)| *own -= other);
            }
            let share: f64 = own.iter().zip(&below).map(|(weight, below)| weight * below).sum();
            contributions[edge.column as usize] += share;
        }
    }
}

fn exact<const Q: usize>(list: &[f64]) -> &[f64; Q] {
    const { assert!(Q > 0) };
    list.first_chunk().unwrap_or(&[0.0; Q])
}

impl Points {
    /// `count` points: the roots of a Legendre polynomial, by Newton's method.
    fn new(count: usize) -> Self {
        let (mut rest, mut weights) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for at in 0..count {
            let mut x = (std::f64::consts::PI * (at as f64 + 0.75) / (count as f64 + 0.5)).cos();
            let mut slope = 1.0;
            for _ in 0..50 {
                let (mut before, mut value) = (1.0, x);
                for degree in 2..=count {
                    let degree = degree as f64;
                    let next = ((2.0 * degree - 1.0) * x * value - (degree - 1.0) * before) / degree;
                    (before, value) = (value, next);
                }
                slope = count as f64 * (x * value - before) / (x * x - 1.0);
                x -= value / slope;
            }
            rest.push((1.0 - x) / 2.0);
            weights.push(1.0 / ((1.0 - x * x) * slope * slope));
        }
        Self { rest, weights }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_integrate_polynomials_exactly() {
        for count in [1, 2, 4, 8, 16] {
            let points = Points::new(count);
            for degree in 0..2 * count {
                let terms = points.rest.iter().zip(&points.weights);
                let sum: f64 = terms.map(|(rest, weight)| weight * rest.powi(degree as i32)).sum();
                let expected = 1.0 / (degree as f64 + 1.0);
                assert!((sum - expected).abs() < 1e-14, "{count} points, degree {degree}: {sum}");
            }
        }
    }
}
