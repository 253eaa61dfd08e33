//! Challengers: copies of answered requests, run when there is room, compared with what the caller got.
//!
//! A copy never delays or changes the caller's answer. What does not fit the queue is dropped and counted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use modelhost_core::event::{Agreement, Comparison, Role};
use modelhost_core::infer::{Deadline, InferRequest};
use modelhost_core::model::ModelVersion;
use modelhost_core::tensor::{DType, Tensor};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc};

use crate::lifecycle::Config;
use crate::slot::Slot;

/// Waiting and running together, per copy: nobody waits for it.
const LIMIT: Duration = Duration::from_secs(30);

pub(crate) struct Mirror {
    queue: mpsc::Sender<Copy>,
    bytes: Arc<Semaphore>,
}

struct Copy {
    served: ModelVersion,
    challenger: Arc<Slot>,
    request: Arc<InferRequest>,
    answer: Arc<Vec<Tensor>>,
    _bytes: OwnedSemaphorePermit,
}

impl Mirror {
    /// Starts the workers; they end with the mirror.
    pub(crate) fn start(config: &Config) -> Self {
        let (queue, copies) = mpsc::channel(config.mirror_queue);
        let copies = Arc::new(Mutex::new(copies));
        for _ in 0..config.mirror_concurrency {
            tokio::spawn(work(Arc::clone(&copies)));
        }
        Self { queue, bytes: Arc::new(Semaphore::new(config.mirror_bytes as usize)) }
    }

    pub(crate) fn send(
        &self,
        served: ModelVersion,
        challengers: &[Arc<Slot>],
        request: &Arc<InferRequest>,
        answer: &Arc<Vec<Tensor>>,
    ) {
        let bytes: usize = request.inputs.iter().chain(&**answer).map(|tensor| tensor.data().len()).sum();
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        for challenger in challengers {
            let permit = Arc::clone(&self.bytes).try_acquire_many_owned(bytes);
            let sent = permit.is_ok_and(|permit| {
                let copy = Copy {
                    served,
                    challenger: Arc::clone(challenger),
                    request: Arc::clone(request),
                    answer: Arc::clone(answer),
                    _bytes: permit,
                };
                self.queue.try_send(copy).is_ok()
            });
            if !sent {
                challenger.recorder.comparison(&Comparison { served, agreement: Agreement::Dropped });
            }
        }
    }
}

async fn work(copies: Arc<Mutex<mpsc::Receiver<Copy>>>) {
    loop {
        let copy = copies.lock().await.recv().await;
        let Some(copy) = copy else { return };
        let agreement = run(&copy).await;
        copy.challenger.recorder.comparison(&Comparison { served: copy.served, agreement });
    }
}

async fn run(copy: &Copy) -> Agreement {
    let mut request = InferRequest::clone(&copy.request);
    if request.conform(&copy.challenger.version.report.signature).is_err() {
        return Agreement::Failed;
    }
    let start = Instant::now();
    let deadline = Deadline::after(start, LIMIT);
    match copy.challenger.infer(Arc::new(request), start, deadline, Role::Challenger).await {
        Ok((outputs, _)) => compare(&copy.answer, &outputs),
        Err(_) => Agreement::Failed,
    }
}

/// How a challenger's outputs compare with the served ones: by name; numbers by their largest |difference|.
pub fn compare(served: &[Tensor], challenger: &[Tensor]) -> Agreement {
    if served.len() != challenger.len() {
        return Agreement::Differs;
    }
    let mut largest = 0.0_f64;
    for expected in served {
        let Some(came) = challenger.iter().find(|output| output.name() == expected.name()) else {
            return Agreement::Differs;
        };
        if (came.dtype(), came.shape()) != (expected.dtype(), expected.shape()) {
            return Agreement::Differs;
        }
        if came.data() == expected.data() {
            continue;
        }
        match (numbers(expected), numbers(came)) {
            (Some(expected), Some(came)) => {
                let differences = expected.zip(came).map(|(expected, came)| (expected - came).abs());
                largest = differences.fold(largest, |largest, difference| {
                    // NaN against a number is as different as it gets; f64::max would drop it.
                    if difference.is_nan() { f64::INFINITY } else { largest.max(difference) }
                });
            }
            _ => return Agreement::Differs,
        }
    }
    Agreement::Compared(largest)
}

fn numbers(tensor: &Tensor) -> Option<Box<dyn Iterator<Item = f64> + '_>> {
    macro_rules! chunks {
        ($number:ty, $size:literal) => {
            Box::new(tensor.data().as_chunks::<$size>().0.iter().map(|bytes| {
                #[allow(
                    clippy::cast_precision_loss,
                    clippy::cast_lossless,
                    reason = "a difference for people"
                )]
                let number = <$number>::from_le_bytes(*bytes) as f64;
                number
            }))
        };
    }
    Some(match tensor.dtype() {
        DType::Uint8 | DType::Bool => chunks!(u8, 1),
        DType::Int8 => chunks!(i8, 1),
        DType::Uint16 => chunks!(u16, 2),
        DType::Int16 => chunks!(i16, 2),
        DType::Uint32 => chunks!(u32, 4),
        DType::Int32 => chunks!(i32, 4),
        DType::Uint64 => chunks!(u64, 8),
        DType::Int64 => chunks!(i64, 8),
        DType::Fp32 => chunks!(f32, 4),
        DType::Fp64 => chunks!(f64, 8),
        DType::Fp16 | DType::Bf16 | DType::Bytes => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, values: &[f32]) -> Tensor {
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Tensor::new(name.into(), DType::Fp32, vec![values.len() as u64], data.into()).unwrap()
    }

    #[test]
    fn compares_numbers_by_their_largest_difference() {
        let served = [tensor("a", &[1.0, 2.0]), tensor("b", &[f32::NAN])];
        let check = |challenger: &[Tensor], expected| assert_eq!(compare(&served, challenger), expected);
        check(&served, Agreement::Compared(0.0));
        check(&[tensor("b", &[f32::NAN]), tensor("a", &[1.5, 2.25])], Agreement::Compared(0.5));
        check(&[tensor("a", &[1.0, 2.0]), tensor("b", &[1.0])], Agreement::Compared(f64::INFINITY));
        check(&[tensor("a", &[1.0, 2.0])], Agreement::Differs);
        check(&[tensor("a", &[1.0]), tensor("b", &[1.0])], Agreement::Differs);
        check(&[tensor("a", &[1.0, 2.0]), tensor("c", &[1.0])], Agreement::Differs);
    }
}
