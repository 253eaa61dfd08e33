//! Serves gradient-boosted trees: XGBoost JSON and UBJSON, LightGBM text.
//!
//! One FP32 input `input` [-1, n_features]; a missing value is NaN, a categorical one its index. Answers are FP32:
//! `probability` [-1], `probabilities` [-1, classes] or `prediction` [-1], as the objective says.

#![allow(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a guest: a wrong index is a trap of its own sandbox, and its numbers are f32 by contract"
)]

mod lightgbm;
mod trees;
mod ubjson;
mod xgboost;

use modelhost_sdk::{
    Column, Config, Datatype, Error, Model, Request, Signature, Tensor, TensorSpec, artifact,
};

pub use trees::{Ensemble, Output};

/// Reads a model of any supported format. Errors: what is wrong or not supported, in words.
pub fn parse(bytes: &[u8]) -> Result<Ensemble, String> {
    let is_ubjson = matches!(bytes, [b'{', b'L' | b'l' | b'i' | b'U' | b'I' | b'#' | b'$', ..]);
    let ensemble = if bytes.starts_with(b"tree\n") || bytes.starts_with(b"tree\r\n") {
        lightgbm::parse(bytes)?
    } else if is_ubjson {
        xgboost::parse_ubjson(bytes)?
    } else {
        xgboost::parse_json(bytes)?
    };
    if ensemble.features() == 0 { Err("the model has no features".into()) } else { Ok(ensemble) }
}

/// A loaded model and what it answers.
#[derive(Debug)]
pub struct Gbdt(Ensemble);

impl Model for Gbdt {
    fn load(config: &Config) -> Result<(Self, Signature), Error> {
        let name = config.model_file()?;
        let ensemble = parse(&artifact(&name)?).map_err(|why| Error::Model(format!("{name}: {why}")))?;
        let columns = columns(&ensemble, config)?;
        let shape: &[i64] = match ensemble.output() {
            Output::Probabilities => &[-1, ensemble.groups() as i64],
            Output::Probability | Output::Prediction => &[-1],
        };
        let signature = Signature {
            inputs: vec![TensorSpec::new("input", Datatype::Fp32, &[]).with_columns(columns)],
            outputs: vec![TensorSpec::new(ensemble.output().name(), Datatype::Fp32, shape)],
        };
        Ok((Self(ensemble), signature))
    }

    fn infer(&self, request: &Request) -> Result<Vec<Tensor>, Error> {
        let input = request.input("input")?;
        let rows = input.shape.first().copied().unwrap_or(0);
        let answers = self.0.predict(&input.values::<f32>()?);
        let name = self.0.output().name();
        let shape = match self.0.output() {
            Output::Probabilities => vec![rows, self.0.groups() as u64],
            Output::Probability | Output::Prediction => vec![rows],
        };
        Ok(vec![Tensor::from_values(name, &shape, &answers)])
    }
}

/// The manifest's columns, or the model's own names. Errors: another number of them.
fn columns(ensemble: &Ensemble, config: &Config) -> Result<Vec<Column>, Error> {
    let features = ensemble.features();
    if config.columns.is_empty() {
        let name = |at: usize| ensemble.names().get(at).cloned().unwrap_or_else(|| format!("f{at}"));
        return Ok((0..features).map(|at| Column { missing: true, ..Column::numeric(&name(at)) }).collect());
    }
    if config.columns.len() != features {
        let described = config.columns.len();
        return Err(Error::Model(format!(
            "the manifest describes {described} features, the model has {features}"
        )));
    }
    for (column, name) in config.columns.iter().zip(ensemble.names()) {
        if column.name != *name {
            let described = &column.name;
            return Err(Error::Model(format!(
                "the manifest's feature {described:?} is {name:?} in the model"
            )));
        }
    }
    Ok(config.columns.clone())
}

#[cfg(target_family = "wasm")]
modelhost_sdk::export!(Gbdt);

#[cfg(test)]
mod tests;
