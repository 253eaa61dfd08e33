//! Joins requests along their first dimension, and takes the answers apart again. [`Gather`] decides which requests
//! are joined, and when.

mod gather;

pub use gather::{Batch, Gather, Join, Member, Settled};

use bytes::{Bytes, BytesMut};

use crate::error::{Error, ErrorCode};
use crate::model::Signature;
use crate::tensor::{DType, Tensor, TensorSpec};

/// Whether requests can be joined at all: the first dimension of every input and output is open.
pub fn can_join(signature: &Signature) -> bool {
    let open = |spec: &TensorSpec| spec.shape.first() == Some(&None);
    signature.inputs.iter().chain(&signature.outputs).all(open)
}

/// The rows of a request: the first dimension of its inputs. `None` when the inputs differ in it: the request runs
/// alone.
pub fn rows(inputs: &[Tensor]) -> Option<u64> {
    let rows = *inputs.first()?.shape().first()?;
    inputs.iter().all(|input| input.shape().first() == Some(&rows)).then_some(rows)
}

/// Whether two requests differ in their rows alone. Such requests can be joined.
pub fn fit(one: &[Tensor], other: &[Tensor]) -> bool {
    let same = |(one, other): (&Tensor, &Tensor)| {
        one.dtype() == other.dtype()
            && one.name() == other.name()
            && one.shape().get(1..) == other.shape().get(1..)
    };
    one.len() == other.len() && one.iter().zip(other).all(same)
}

/// The requests as one, in their order. They must fit ([`fit`]). Errors: internal.
pub fn join(members: &[&[Tensor]]) -> Result<Vec<Tensor>, Error> {
    let Some((first, _)) = members.split_first() else { return Ok(Vec::new()) };
    let joined = first.iter().enumerate().map(|(at, tensor)| {
        let parts = || members.iter().filter_map(|member| member.get(at));
        let mut data = BytesMut::with_capacity(parts().map(|part| part.data().len()).sum());
        let mut shape = tensor.shape().to_vec();
        if let Some(rows) = shape.first_mut() {
            *rows = parts().filter_map(|part| part.shape().first()).sum();
        }
        parts().for_each(|part| data.extend_from_slice(part.data()));
        Tensor::new(tensor.name().to_owned(), tensor.dtype(), shape, data.freeze())
            .map_err(|error| Error::internal("a batch cannot be joined").because(error))
    });
    joined.collect()
}

/// Takes the answer of a batch apart, into one answer for each member. `rows` are the members' rows. Nothing is
/// copied.
/// Errors: plugin fault, when an output has another number of rows than the batch.
pub fn split(outputs: &[Tensor], rows: &[u64]) -> Result<Vec<Vec<Tensor>>, Error> {
    let total: u64 = rows.iter().sum();
    let mut members: Vec<Vec<Tensor>> = rows.iter().map(|_| Vec::with_capacity(outputs.len())).collect();
    for output in outputs {
        let (name, shape) = (output.name(), output.shape());
        if shape.first() != Some(&total) {
            return Err(Error::new(
                ErrorCode::PluginFault,
                format!("output {name:?}: shape {shape:?} has not the {total} rows of its batch"),
            ));
        }
        let mut rest = output.data().clone();
        for (member, rows) in members.iter_mut().zip(rows) {
            let shape: Vec<u64> = std::iter::once(*rows).chain(shape.iter().skip(1).copied()).collect();
            let elements = crate::tensor::element_count(&shape).unwrap_or(u64::MAX);
            let data = take_elements(&mut rest, output.dtype(), elements);
            member.push(Tensor::new(name.to_owned(), output.dtype(), shape, data)?);
        }
    }
    Ok(members)
}

fn take_elements(rest: &mut Bytes, dtype: DType, count: u64) -> Bytes {
    let length = match dtype.size() {
        Some(size) => usize::try_from(count).unwrap_or(usize::MAX).saturating_mul(size),
        None => {
            let mut length = 0_usize;
            for _ in 0..count {
                let Some(bytes) = rest.get(length..).and_then(|tail| tail.first_chunk::<4>()) else { break };
                length += 4 + u32::from_le_bytes(*bytes) as usize;
            }
            length
        }
    };
    rest.split_to(length.min(rest.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(name: &str, shape: &[u64], values: &[u8]) -> Tensor {
        Tensor::new(name.into(), DType::Uint8, shape.to_vec(), values.to_vec().into()).unwrap()
    }

    fn texts(name: &str, values: &[&str]) -> Tensor {
        let elements = values.iter().map(|text| text.as_bytes());
        Tensor::from_bytes_elements(name.into(), vec![values.len() as u64], elements).unwrap()
    }

    #[test]
    fn what_is_joined_comes_apart_again() {
        let one = [floats("x", &[1, 2], &[1, 2]), texts("t", &["a"])];
        let two = [floats("x", &[2, 2], &[3, 4, 5, 6]), texts("t", &["", "ccc"])];
        assert!(fit(&one, &two));
        let joined = join(&[&one, &two]).unwrap();
        assert_eq!(joined, [floats("x", &[3, 2], &[1, 2, 3, 4, 5, 6]), texts("t", &["a", "", "ccc"])]);
        assert_eq!(split(&joined, &[1, 2]).unwrap(), [one.to_vec(), two.to_vec()]);
    }

    #[test]
    fn only_rows_may_differ() {
        let one = [floats("x", &[1, 2], &[1, 2])];
        assert!(!fit(&one, &[floats("x", &[1, 1], &[1])]));
        assert!(!fit(&one, &[floats("y", &[1, 2], &[1, 2])]));
        assert!(!fit(&one, &[]));
        assert_eq!(rows(&[floats("x", &[1, 2], &[1, 2]), floats("y", &[2], &[1, 2])]), None);
        assert_eq!(rows(&one), Some(1));
        assert_eq!(rows(&[]), None);
    }

    #[test]
    fn an_output_of_other_rows_is_the_graphs_fault() {
        let error = split(&[floats("y", &[2], &[1, 2])], &[1, 2]).unwrap_err();
        assert_eq!(error.message, "output \"y\": shape [2] has not the 3 rows of its batch");
    }
}
