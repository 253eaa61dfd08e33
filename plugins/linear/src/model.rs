//! The model: its columns, its coefficients and the three tasks.

use modelhost_sdk::{Column, ColumnKind, Config, Datatype, Error, Signature, TensorSpec};
use serde::Deserialize;

const FORMAT: &str = "modelhost-linear/1";

/// What the model predicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Task {
    /// The linear score itself.
    Regression,
    /// P(second class), by the logistic function.
    Binary,
    /// P(class), by softmax.
    Multiclass,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: String,
    task: Task,
    #[serde(default)]
    classes: Vec<String>,
    columns: Vec<FileColumn>,
    /// One row per score, with one coefficient per expanded feature.
    coefficients: Vec<Vec<f64>>,
    intercepts: Vec<f64>,
}

/// One column before expansion.
#[derive(Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
enum FileColumn {
    /// Expands to `(value - mean) / scale`. `impute` first replaces a missing value.
    Numeric {
        name: String,
        #[serde(default)]
        mean: f64,
        #[serde(default = "one")]
        scale: f64,
        impute: Option<f64>,
    },
    /// Expands to one indicator per category except `drop`. With `ignore_unknown`, a missing value sets no indicator.
    Categorical {
        name: String,
        categories: Vec<String>,
        drop: Option<usize>,
        #[serde(default)]
        ignore_unknown: bool,
    },
}

fn one() -> f64 {
    1.0
}

/// What one column adds to every score.
#[derive(Debug)]
enum Term {
    /// Adds `weights[score] * value`. The weights include mean and scale.
    Numeric { weights: Vec<f64>, impute: Option<f64> },
    /// Adds `weights[category][score]`.
    Categorical { weights: Vec<Vec<f64>>, ignore_unknown: bool },
}

/// A linear model over a table.
#[derive(Debug)]
pub struct Linear {
    task: Task,
    columns: Vec<Column>,
    terms: Vec<Term>,
    intercepts: Vec<f64>,
}

impl Linear {
    /// Parses `modelhost-linear/1`. Errors: a description of what is wrong.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        let file: File = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        if file.format != FORMAT {
            return Err(format!("format {:?} is not {FORMAT:?}", file.format));
        }
        file.columns.iter().try_for_each(FileColumn::check)?;
        let scores = file.coefficients.len();
        let expected = match file.task {
            Task::Regression | Task::Binary => 1,
            Task::Multiclass => file.classes.len(),
        };
        if scores != expected || file.intercepts.len() != expected || expected == 0 {
            let intercepts = file.intercepts.len();
            return Err(format!(
                "expected {expected} scores, got {scores} coefficient rows and {intercepts} intercepts"
            ));
        }
        let width: usize = file.columns.iter().map(FileColumn::width).sum();
        if let Some(row) = file.coefficients.iter().find(|row| row.len() != width) {
            return Err(format!(
                "the columns expand to {width} features, but a coefficient row has {}",
                row.len()
            ));
        }
        Ok(Self::assemble(file))
    }

    fn assemble(file: File) -> Self {
        let mut intercepts = file.intercepts;
        let (mut columns, mut terms, mut at) = (Vec::new(), Vec::new(), 0);
        for column in file.columns {
            let weights = |offset: usize| -> Vec<f64> {
                file.coefficients.iter().filter_map(|row| row.get(at + offset).copied()).collect()
            };
            let width = column.width();
            match column {
                FileColumn::Numeric { name, mean, scale, impute } => {
                    let weights: Vec<f64> = weights(0).iter().map(|weight| weight / scale).collect();
                    for (intercept, weight) in intercepts.iter_mut().zip(&weights) {
                        *intercept -= weight * mean;
                    }
                    columns.push(Column { missing: impute.is_some(), ..Column::numeric(&name) });
                    terms.push(Term::Numeric { weights, impute });
                }
                FileColumn::Categorical { name, categories, drop, ignore_unknown } => {
                    let zero = vec![0.0; intercepts.len()];
                    let feature =
                        |category: usize| category - usize::from(drop.is_some_and(|drop| drop < category));
                    let weights =
                        (0..categories.len())
                            .map(|category| {
                                if drop == Some(category) { zero.clone() } else { weights(feature(category)) }
                            })
                            .collect();
                    let kind = ColumnKind::Categorical(categories);
                    columns.push(Column { kind, missing: ignore_unknown, ..Column::numeric(&name) });
                    terms.push(Term::Categorical { weights, ignore_unknown });
                }
            }
            at += width;
        }
        Self { task: file.task, columns, terms, intercepts }
    }

    /// The signature, with the manifest's descriptions of the columns.
    /// Errors: the manifest's columns differ from the model's.
    pub fn signature(&self, config: &Config) -> Result<Signature, Error> {
        let mut columns = self.columns.clone();
        if !config.columns.is_empty() && config.columns.len() != columns.len() {
            let (described, known) = (config.columns.len(), columns.len());
            return Err(Error::Model(format!(
                "the manifest describes {described} features, but the model has {known}"
            )));
        }
        for (column, described) in columns.iter_mut().zip(&config.columns) {
            if column.name != described.name {
                let (known, described) = (&column.name, &described.name);
                return Err(Error::Model(format!(
                    "the manifest's feature {described:?} is {known:?} in the model"
                )));
            }
            column.description.clone_from(&described.description);
            column.unit.clone_from(&described.unit);
            column.minimum = described.minimum;
            column.maximum = described.maximum;
        }
        let inputs = vec![TensorSpec::new("input", Datatype::Fp32, &[]).with_columns(columns)];
        let shape: &[i64] =
            if self.task == Task::Multiclass { &[-1, self.intercepts.len() as i64] } else { &[-1] };
        Ok(Signature { inputs, outputs: vec![TensorSpec::new(self.output(), Datatype::Fp32, shape)] })
    }

    /// The output's name.
    pub fn output(&self) -> &'static str {
        match self.task {
            Task::Regression => "prediction",
            Task::Binary => "probability",
            Task::Multiclass => "probabilities",
        }
    }

    /// The output's shape for this many rows.
    pub fn output_shape(&self, rows: u64) -> Vec<u64> {
        if self.task == Task::Multiclass { vec![rows, self.intercepts.len() as u64] } else { vec![rows] }
    }

    /// Answers for row-major `values` `[rows, columns]`: `[rows]`, or `[rows, classes]`.
    /// Errors: invalid input, if a value is missing or not a category. The message names row and column.
    pub fn predict(&self, values: &[f32]) -> Result<Vec<f32>, Error> {
        let rows = values.chunks_exact(self.terms.len());
        let mut answers = Vec::with_capacity(rows.len() * self.intercepts.len());
        let mut scores = self.intercepts.clone();
        for (number, row) in rows.enumerate() {
            scores.copy_from_slice(&self.intercepts);
            for ((term, column), value) in self.terms.iter().zip(&self.columns).zip(row) {
                let at = || format!("row {number}, column {:?}", column.name);
                add(term, *value, &mut scores)
                    .map_err(|why| Error::InvalidInput(format!("{}: {why}", at())))?;
            }
            self.finish(&mut scores);
            answers.extend(scores.iter().map(|score| *score as f32));
        }
        Ok(answers)
    }

    fn finish(&self, scores: &mut [f64]) {
        match self.task {
            Task::Regression => {}
            Task::Binary => scores.iter_mut().for_each(|score| *score = 1.0 / (1.0 + (-*score).exp())),
            Task::Multiclass => {
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                scores.iter_mut().for_each(|score| *score = (*score - largest).exp());
                let sum: f64 = scores.iter().sum();
                scores.iter_mut().for_each(|score| *score /= sum);
            }
        }
    }
}

fn add(term: &Term, value: f32, scores: &mut [f64]) -> Result<(), String> {
    let (weights, value) = match term {
        Term::Numeric { weights, impute } => {
            let value = if value.is_nan() { impute.ok_or("the value is missing")? } else { f64::from(value) };
            (weights, value)
        }
        Term::Categorical { ignore_unknown: true, .. } if value.is_nan() => return Ok(()),
        Term::Categorical { weights, .. } => {
            let index = (value >= 0.0 && value.fract() == 0.0).then_some(value as usize);
            let category = index.and_then(|index| weights.get(index));
            (
                category.ok_or_else(|| {
                    format!("{value} is not the index of one of {} categories", weights.len())
                })?,
                1.0,
            )
        }
    };
    scores.iter_mut().zip(weights).for_each(|(score, weight)| *score += weight * value);
    Ok(())
}

impl FileColumn {
    fn check(&self) -> Result<(), String> {
        match self {
            Self::Numeric { name, scale, .. } if *scale == 0.0 || !scale.is_finite() => {
                Err(format!("column {name:?}: scale {scale} is not a finite number other than 0"))
            }
            Self::Categorical { name, categories, drop: Some(drop), .. } if *drop >= categories.len() => {
                Err(format!(
                    "column {name:?} drops category {drop}, but has only {} categories",
                    categories.len()
                ))
            }
            _ => Ok(()),
        }
    }

    /// How many features the column expands to.
    fn width(&self) -> usize {
        match self {
            Self::Numeric { .. } => 1,
            Self::Categorical { categories, drop, .. } => categories.len() - usize::from(drop.is_some()),
        }
    }
}
