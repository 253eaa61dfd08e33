//! Warm-up: the manifest's examples must run and match before a version serves.

use std::time::{Duration, Instant};

use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::infer::{Deadline, InferRequest};
use modelhost_core::tensor::{DType, Tensor};
use modelhost_core::version::Example;

use crate::instance::Loaded;

/// How long an example waits for what it needs beside its own time, e.g. memory that others have.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs every example, each within `limit`. Errors: what the model answered differently, naming example, output and element.
pub(crate) async fn run(model: &Loaded, examples: &[Example], limit: Duration) -> Result<(), Error> {
    for (at, example) in examples.iter().enumerate() {
        let in_example =
            |error: Error| Error::new(error.code, format!("warm: example {}: {}", at + 1, error.message));
        let mut request: InferRequest = example.request.clone();
        request.conform(&model.report.signature).map_err(in_example)?;
        let deadline = Deadline::after(Instant::now(), limit.max(PATIENCE));
        let outputs = model.answer(&request, limit, deadline).await.map_err(in_example)?;
        for expected in &example.outputs {
            let came = outputs.iter().find(|output| output.name() == expected.name());
            compare(came, expected, example.tolerance)
                .map_err(|why| Error::new(ErrorCode::PluginFault, why))
                .map_err(in_example)?;
        }
    }
    Ok(())
}

fn compare(came: Option<&Tensor>, expected: &Tensor, tolerance: f64) -> Result<(), String> {
    let name = expected.name();
    let came = came.ok_or_else(|| format!("output {name:?} did not come"))?;
    if (came.dtype(), came.shape()) != (expected.dtype(), expected.shape()) {
        return Err(format!("output {name:?}: {expected:?} was expected, {came:?} came"));
    }
    let numbers = |tensor: &Tensor| -> Vec<f64> {
        match tensor.dtype() {
            DType::Fp32 => tensor
                .data()
                .as_chunks::<4>()
                .0
                .iter()
                .map(|bytes| f64::from(f32::from_le_bytes(*bytes)))
                .collect(),
            DType::Fp64 => {
                tensor.data().as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect()
            }
            _ => Vec::new(),
        }
    };
    let (numbers_came, numbers_expected) = (numbers(came), numbers(expected));
    if numbers_expected.is_empty() && came.data() != expected.data() {
        return Err(format!("output {name:?} differs"));
    }
    for (at, (came, expected)) in numbers_came.iter().zip(&numbers_expected).enumerate() {
        let equal = (came - expected).abs() <= tolerance || (came.is_nan() && expected.is_nan());
        if !equal && came.to_bits() != expected.to_bits() {
            return Err(format!(
                "output {name:?}, element {at}: {expected} was expected, {came} came (tolerance {tolerance})"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(values: &[f32]) -> Tensor {
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Tensor::new("p".into(), DType::Fp32, vec![values.len() as u64], data.into()).unwrap()
    }

    fn check(came: &[f32], expected: &[f32], text: Option<&str>) {
        let result = compare(Some(&tensor(came)), &tensor(expected), 1e-6);
        match (result, text) {
            (Ok(()), None) => {}
            (Err(error), Some(text)) => assert!(error.contains(text), "{error}"),
            (came, _) => panic!("{came:?} is not {text:?}"),
        }
    }

    #[test]
    fn compares_within_the_tolerance() {
        check(&[0.5, 1.0], &[0.5, 1.0000005], None);
        check(&[f32::NAN], &[f32::NAN], None);
        check(&[f32::INFINITY], &[f32::INFINITY], None);
        check(&[0.5, 1.0], &[0.5, 1.1], Some("element 1: 1.1"));
        check(&[0.5], &[f32::NAN], Some("element 0"));
        check(&[0.5], &[0.5, 0.5], Some("came"));
        assert!(compare(None, &tensor(&[]), 0.0).unwrap_err().contains("did not come"));
    }
}
