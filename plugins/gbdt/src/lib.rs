//! Serves gradient-boosted trees: XGBoost JSON and UBJSON, LightGBM text, CatBoost JSON.
//!
//! One input `input` [-1, n_features], in the numbers that the library itself reads: FP32 for XGBoost and CatBoost,
//! FP64 for LightGBM. A missing value is NaN, a categorical one its index. Answers are in the numbers that it adds
//! in, FP32 for XGBoost, else FP64: `probability` [-1], `probabilities` [-1, classes] or `prediction` [-1] or [-1,
//! targets], as the objective says.
//!
//! What a file says and is not understood here is refused by name: an answer is the library's own, or there is none.

#![allow(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a guest: a wrong index is a trap of its own sandbox, and its numbers are f32 by contract"
)]

mod catboost;
mod city_hash;
mod columns;
mod ensemble;
mod explain;
mod lightgbm;
mod output;
mod parameters;
mod trees;
mod ubjson;
mod xgboost;

use modelhost_sdk::{Config, Datatype, Error, Model, Request, Signature, Tensor, TensorSpec, artifact};

use crate::ensemble::Scores;
pub use crate::ensemble::{Ask, Ensemble, Feature, Library};
pub use crate::explain::Explainer;
pub use crate::output::Output;

/// Reads a model of any supported format. Errors: what is wrong or not supported, in words.
pub fn parse(bytes: &[u8]) -> Result<Ensemble, String> {
    let is_ubjson = matches!(bytes, [b'{', b'L' | b'l' | b'i' | b'U' | b'I' | b'#' | b'$', ..]);
    let ensemble = match bytes {
        [b'C', b'B', b'M', b'1', ..] => {
            return Err(
                "a CatBoost .cbm file is not read here: export it with save_model(\"model.json\", format=\"json\")"
                    .into(),
            );
        }
        [b'b', b'i', b'n', b'f', ..] => {
            return Err(
                "XGBoost's old binary format is not read here: save it with save_model(\"model.json\")"
                    .into(),
            );
        }
        [0x80, 2..=5, ..] => {
            return Err(
                "a Python pickle is not read here: save the model with the library's save_model".into()
            );
        }
        _ if bytes.starts_with(b"tree\n") || bytes.starts_with(b"tree\r\n") => lightgbm::parse(bytes)?,
        _ if is_ubjson => xgboost::parse_ubjson(bytes)?,
        _ => parse_json(bytes)?,
    };
    if ensemble.features().is_empty() { Err("the model has no features".into()) } else { Ok(ensemble) }
}

/// The first key tells who wrote it.
fn parse_json(bytes: &[u8]) -> Result<Ensemble, String> {
    const DUMP: &str = "a dump for people is not a whole model: save it with save_model";
    match first_key(bytes) {
        Some("name" | "nodeid") => Err(DUMP.into()),
        Some(
            "ctr_data" | "features_info" | "model_info" | "oblivious_trees" | "scale_and_bias" | "trees",
        ) => catboost::parse(bytes),
        _ if bytes.trim_ascii_start().first() == Some(&b'[') => Err(DUMP.into()),
        _ => xgboost::parse_json(bytes),
    }
}

fn first_key(bytes: &[u8]) -> Option<&str> {
    let inner = bytes.trim_ascii_start().strip_prefix(b"{")?.trim_ascii_start().strip_prefix(b"\"")?;
    let end = inner.iter().position(|byte| *byte == b'"')?;
    std::str::from_utf8(inner.get(..end)?).ok()
}

/// A loaded model and what it answers.
#[derive(Debug)]
pub struct Gbdt {
    ensemble: Ensemble,
    /// For messages.
    columns: Vec<String>,
}

impl Gbdt {
    /// Reads the model file `name`. Errors: the model, naming what is wrong or not supported, or what the manifest
    /// says differently.
    pub fn new(name: &str, bytes: &[u8], config: &Config) -> Result<(Self, Signature), Error> {
        let in_file = |why: String| Error::Model(format!("{name}: {why}"));
        let mut ensemble = parse(bytes).map_err(in_file)?;
        parameters::configure(&mut ensemble, config).map_err(in_file)?;
        let columns = columns::merge(&ensemble, config).map_err(Error::Model)?;
        if let Scores::CatBoost(model) = &mut ensemble.scores {
            model.slots.describe(&columns, !config.columns.is_empty()).map_err(in_file)?;
        }
        let shape: Vec<i64> =
            [-1].into_iter().chain(ensemble.output().width.map(|width| width as i64)).collect();
        let (reads, writes) = ensemble.library().datatypes();
        let names = columns.iter().map(|column| column.name.clone()).collect();
        let signature = Signature {
            inputs: vec![TensorSpec::new("input", reads, &[]).with_columns(columns)],
            outputs: vec![TensorSpec::new(ensemble.output().name, writes, &shape)],
        };
        Ok((Self { ensemble, columns: names }, signature))
    }
}

impl Model for Gbdt {
    fn load(config: &Config) -> Result<(Self, Signature), Error> {
        let name = config.model_file()?;
        Self::new(&name, &artifact(&name)?, config)
    }

    fn infer(&self, request: &Request) -> Result<Vec<Tensor>, Error> {
        let input = request.input("input")?;
        let rows = input.shape.first().copied().unwrap_or(0);
        let ask = parameters::ask(&self.ensemble, &request.parameters, rows).map_err(Error::InvalidInput)?;
        let Output { name, width } = self.ensemble.output();
        let shape: Vec<u64> = [rows].into_iter().chain(width.map(|width| width as u64)).collect();
        let answers = if self.ensemble.library().datatypes().0 == Datatype::Fp64 {
            self.ensemble.predict(&input.values::<f64>()?, &ask)
        } else {
            let values = input.values::<f32>()?;
            self.check(&values).map_err(Error::InvalidInput)?;
            self.ensemble.predict(&values, &ask)
        };
        if self.ensemble.library().datatypes().1 == Datatype::Fp64 {
            return Ok(vec![Tensor::from_values(name, &shape, &answers)]);
        }
        let answers: Vec<f32> = answers.into_iter().map(|answer| answer as f32).collect();
        Ok(vec![Tensor::from_values(name, &shape, &answers)])
    }
}

impl Gbdt {
    /// Errors: which value the library does not take either.
    fn check(&self, values: &[f32]) -> Result<(), String> {
        match &self.ensemble.scores {
            Scores::CatBoost(model) => model.slots.check(values, self.columns.len()),
            Scores::Weights(_) => {
                let infinite = values.iter().position(|value| value.is_infinite());
                infinite.map_or(Ok(()), |at| {
                    let (row, column) = (at / self.columns.len(), &self.columns[at % self.columns.len()]);
                    Err(format!("row {row}, column {column:?}: a linear booster takes no infinity"))
                })
            }
            _ => Ok(()),
        }
    }
}

impl Library {
    /// The numbers that the library reads, and those that it answers with.
    fn datatypes(self) -> (Datatype, Datatype) {
        match self {
            Self::XgBoost => (Datatype::Fp32, Datatype::Fp32),
            Self::LightGbm => (Datatype::Fp64, Datatype::Fp64),
            Self::CatBoost => (Datatype::Fp32, Datatype::Fp64),
        }
    }
}

#[cfg(target_family = "wasm")]
modelhost_sdk::export!(Gbdt);

#[cfg(test)]
mod tests;
