//! Serves linear and logistic regression exported from a scikit-learn pipeline as `modelhost-linear/1` JSON.
//!
//! The one input is `input`, FP32, [-1, n_features]. A categorical value is sent as its index, a missing value as NaN.
//! Sums are computed in f64, as in scikit-learn. Answers are FP32.

#![allow(clippy::cast_possible_truncation, reason = "answers are f32 by contract")]

mod model;

use modelhost_sdk::{Config, Error, Model, Request, Signature, Tensor, artifact};

pub use model::Linear;

impl Model for Linear {
    fn load(config: &Config) -> Result<(Self, Signature), Error> {
        let name = config.model_file()?;
        let model = Self::parse(&artifact(&name)?).map_err(|why| Error::Model(format!("{name}: {why}")))?;
        let signature = model.signature(config)?;
        Ok((model, signature))
    }

    fn infer(&self, request: &Request) -> Result<Vec<Tensor>, Error> {
        let input = request.input("input")?;
        let rows = input.shape.first().copied().unwrap_or(0);
        let answers = self.predict(&input.values::<f32>()?)?;
        Ok(vec![Tensor::from_values(self.output(), &self.output_shape(rows), &answers)])
    }
}

#[cfg(target_family = "wasm")]
modelhost_sdk::export!(Linear);

#[cfg(test)]
mod tests;
