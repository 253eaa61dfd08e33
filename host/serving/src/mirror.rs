//! Challengers: copies of answered requests, run when there is room, compared with what the caller got.
//!
//! A copy never delays or changes the caller's answer. What does not fit the queue is dropped and counted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use modelhost_core::compare::distance_by_name;
use modelhost_core::event::{Agreement, Comparison, Role};
use modelhost_core::infer::{Deadline, InferRequest};
use modelhost_core::model::ModelVersion;
use modelhost_core::tensor::Tensor;
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
    distance_by_name(challenger, served).map_or(Agreement::Differs, Agreement::Compared)
}
