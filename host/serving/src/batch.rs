//! Joins requests to a version without graphs, if its manifest asks for it. Requests that arrive within the delay are
//! answered by one instance.
//!
//! Joined requests agree in parameters, requested outputs, and everything but their rows (see `core::batch`). If a
//! joint run fails, each member is run alone, so that only the bad request fails. A request waits for the whole delay
//! even if no other one comes, because that is not known beforehand.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use modelhost_core::batch::{self, Batch, Gather, Join, Member, Settled};
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::graph::{Batching, Counts};
use modelhost_core::infer::{Deadline, InferRequest};
use modelhost_core::tensor::Tensor;
use tokio::sync::{Notify, oneshot};

use crate::meter::{Metered, Outcome};
use crate::pause::pause;
use crate::residence::Ready;
use crate::threads::Threads;

/// The waiting requests of one version.
pub(crate) struct Batcher {
    most: u64,
    waiting: Mutex<Waiting>,
    /// Notified when a batch is due earlier than before.
    earlier: Notify,
    /// Rows per run.
    pub(crate) rows: Counts,
}

struct Waiting {
    gather: Gather<Asked>,
    /// Whether a task takes out due batches.
    is_driven: bool,
}

/// A request and its caller.
struct Asked {
    request: Arc<InferRequest>,
    model: Ready,
    threads: Arc<Threads>,
    /// Its share of the processor time of failed runs.
    spent: Duration,
    reply: oneshot::Sender<Outcome>,
}

impl Join for Asked {
    fn inputs(&self) -> &[Tensor] {
        &self.request.inputs
    }

    fn fits(&self, other: &Self) -> bool {
        let (one, other) = (&self.request, &other.request);
        one.parameters == other.parameters
            && one.outputs == other.outputs
            && batch::fit(&one.inputs, &other.inputs)
    }
}

impl Batcher {
    pub(crate) fn new(batching: Batching) -> Arc<Self> {
        let waiting = Waiting { gather: Gather::new(batching), is_driven: false };
        Arc::new(Self {
            most: u64::from(batching.max_batch),
            waiting: Mutex::new(waiting),
            earlier: Notify::new(),
            rows: Counts::default(),
        })
    }

    /// Answers the request, together with others that come in time. Also returns its share of the processor time. A
    /// joint run goes on to its end even if callers leave. A member waits no longer than its own deadline.
    pub(crate) async fn infer(
        self: Arc<Self>,
        model: Ready,
        threads: Arc<Threads>,
        request: Arc<InferRequest>,
        deadline: Deadline,
    ) -> Outcome {
        let rows = batch::rows(&request.inputs).unwrap_or(0);
        if rows == 0 || rows >= self.most {
            self.rows.add(rows);
            return Metered::new(model.infer(request, deadline), true).await;
        }
        let (reply, answer) = oneshot::channel();
        let (arrived, until) = (Instant::now(), deadline.instant());
        let asked = Asked { request, model, threads, spent: Duration::ZERO, reply };
        self.push(Member { request: asked, arrived, deadline: until });
        match tokio::time::timeout_at(until.into(), answer).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => (
                Err(Error::new(
                    ErrorCode::Unavailable,
                    "its batch ended without an answer; a retry may succeed",
                )),
                None,
            ),
            Err(_) => {
                let text = "the request's deadline passed while it was answered together with others";
                (Err(Error::new(ErrorCode::DeadlineExceeded, text)), None)
            }
        }
    }

    fn push(self: &Arc<Self>, member: Member<Asked>) {
        let threads = Arc::clone(&member.request.threads);
        let mut waiting = self.waiting();
        let before = waiting.gather.due();
        waiting.gather.push(member);
        if waiting.gather.due() < before {
            self.earlier.notify_one();
        }
        self.drive(&mut waiting, threads);
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes sure that a task takes out due batches.
    fn drive(self: &Arc<Self>, waiting: &mut Waiting, threads: Arc<Threads>) {
        if !waiting.is_driven {
            waiting.is_driven = true;
            let (driver, home) = (Arc::clone(self), Arc::clone(&threads));
            threads.spawn(Box::pin(async move {
                driver.take_out().await;
                drop(home); // they live as long as anybody waits here
            }));
        }
    }

    /// The next due batch, or when one will be due. If no request waits, returns `None` and the task ends.
    fn next(&self) -> Option<Result<Batch<Asked>, Instant>> {
        let mut waiting = self.waiting();
        let next = waiting.gather.take(Instant::now()).map(Ok).or_else(|| waiting.gather.due().map(Err));
        waiting.is_driven = next.is_some();
        next
    }

    /// Takes out due batches as long as requests wait.
    async fn take_out(self: Arc<Self>) {
        while let Some(next) = self.next() {
            match next {
                Ok(batch) => {
                    let Some(first) = batch.members().first() else { continue };
                    let threads = Arc::clone(&first.request.threads);
                    let answer = Arc::clone(&self).answer(batch, Arc::clone(&threads));
                    threads.spawn(Box::pin(answer));
                }
                Err(due) => tokio::select! {
                    () = self.earlier.notified() => {}
                    () = pause(due) => {}
                },
            }
        }
    }

    async fn answer(self: Arc<Self>, mut batch: Batch<Asked>, threads: Arc<Threads>) {
        drop(batch.part(|member| member.request.reply.is_closed()));
        let (Some(first), Some(until)) = (batch.members().first(), batch.deadline()) else { return };
        let (model, rows) = (Arc::clone(&first.request.model), batch.rows());
        let outcome = match joined(&batch, &first.request.request) {
            Ok(request) => {
                Metered::new(model.infer(request, Deadline::after(Instant::now(), left(until))), true).await
            }
            Err(error) => (Err(error), None),
        };
        let (outputs, used) = outcome;
        // The callers that are still here share all of the time.
        let here = batch.members().iter().filter(|member| !member.request.reply.is_closed()).count();
        let share = used.map(|used| used / u32::try_from(here.max(1)).unwrap_or(u32::MAX));
        match batch.settle(outputs) {
            Settled::Answered(answers) => {
                self.rows.add(rows);
                for (asked, outputs) in answers {
                    let used = share.map(|share| share + asked.spent);
                    drop(asked.reply.send((outputs, used))); // a caller who left needs no answer
                }
            }
            Settled::Failed(mut members, _) => {
                for member in &mut members {
                    member.request.spent += share.unwrap_or_default();
                }
                let mut waiting = self.waiting();
                waiting.gather.again(members);
                self.earlier.notify_one();
                self.drive(&mut waiting, threads);
            }
        }
    }
}

fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}

fn joined(batch: &Batch<Asked>, first: &Arc<InferRequest>) -> Result<Arc<InferRequest>, Error> {
    if batch.members().len() == 1 {
        return Ok(Arc::clone(first));
    }
    let inputs = batch.inputs()?.into_owned();
    Ok(Arc::new(InferRequest { inputs, ..InferRequest::clone(first) }))
}

#[cfg(test)]
mod tests {
    use modelhost_core::deployment::DeploymentName;
    use modelhost_core::model::Signature;
    use modelhost_core::ports::{BoxFuture, Footprint, LoadedModel};
    use modelhost_core::tensor::DType;
    use modelhost_core::version::{Isolation, LoadReport};

    use tokio::sync::Semaphore;

    use super::*;
    use crate::fakes::echo;
    use crate::meter::thread_time;

    /// Doubles its input and records it. Fails on 13. A joint run takes processor time before it fails.
    struct Doubler {
        report: LoadReport,
        asked: Mutex<Vec<Vec<u8>>>,
    }

    impl LoadedModel for Doubler {
        fn report(&self) -> &LoadReport {
            &self.report
        }

        fn infer(
            self: Arc<Self>,
            request: Arc<InferRequest>,
            _deadline: Deadline,
        ) -> BoxFuture<'static, Result<Vec<Tensor>, Error>> {
            let input = &request.inputs[0];
            self.asked.lock().unwrap().push(input.data().to_vec());
            let doubled: Vec<u8> = input.data().iter().map(|value| value * 2).collect();
            let output = Tensor::new("y".into(), DType::Uint8, input.shape().to_vec(), doubled.into());
            let (poisoned, joined) = (input.data().contains(&13), input.data().len() > 1);
            Box::pin(async move {
                let start = thread_time();
                while poisoned && joined && thread_time() - start < FAILS_IN {}
                if poisoned { Err(Error::invalid("13 is poison")) } else { Ok(vec![output?]) }
            })
        }

        fn footprint(&self) -> Footprint {
            Footprint::default()
        }

        fn shrink(&self, _idle: Duration) {}

        fn rest(&self) {}
    }

    /// Processor time until a joint run fails.
    const FAILS_IN: Duration = Duration::from_millis(6);

    fn doubler() -> Arc<Doubler> {
        let report = LoadReport {
            signature: Signature::default(),
            isolation: Isolation::Request,
            isolation_note: None,
        };
        Arc::new(Doubler { report, asked: Mutex::default() })
    }

    /// The answer to a request, and its processor time.
    type Came = (Result<Vec<u8>, Error>, Option<Duration>);

    async fn ask(model: &Arc<Doubler>, max_batch: u32, requests: &[&[u8]]) -> Vec<Came> {
        let batcher = Batcher::new(Batching { max_batch, max_delay: Duration::from_secs(1) });
        let threads = Arc::new(Threads::new(&DeploymentName::default(), Some(1)));
        let answers = requests.iter().map(|values| {
            let deadline = Deadline::after(Instant::now(), Duration::from_secs(10));
            Arc::clone(&batcher).infer(
                Arc::clone(model) as Arc<dyn LoadedModel>,
                Arc::clone(&threads),
                input(values),
                deadline,
            )
        });
        let answers = futures_util::future::join_all(answers).await;
        let data = |outputs: Vec<Tensor>| outputs[0].data().to_vec();
        answers.into_iter().map(|(answer, used)| (answer.map(data), used)).collect()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn those_who_come_in_time_are_answered_together() {
        let model = doubler();
        let answers = ask(&model, 4, &[&[1], &[2, 3], &[4, 5], &[6], &[7, 8, 9, 10, 11], &[20, 21]]).await;
        let answers: Vec<_> = answers.into_iter().map(|(answer, _)| answer.unwrap()).collect();
        assert_eq!(
            answers,
            [vec![2], vec![4, 6], vec![8, 10], vec![12], vec![14, 16, 18, 20, 22], vec![40, 42]]
        );
        let mut asked = model.asked.lock().unwrap().clone();
        asked.sort();
        assert_eq!(asked, [vec![1, 2, 3, 6], vec![4, 5, 20, 21], vec![7, 8, 9, 10, 11]]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_poisoned_member_fails_alone() {
        let answers = ask(&doubler(), 3, &[&[1], &[13], &[3]]).await;
        assert_eq!(answers[0].0.as_ref().unwrap(), &[2]);
        assert_eq!(answers[1].0.as_ref().unwrap_err().message, "13 is poison");
        assert_eq!(answers[2].0.as_ref().unwrap(), &[6]);
        let used: Duration = answers.iter().filter_map(|(_, used)| *used).sum();
        assert!(used >= FAILS_IN, "what failed together took its time too: {used:?}");
    }

    fn input(values: &[u8]) -> Arc<InferRequest> {
        let input = Tensor::new("x".into(), DType::Uint8, vec![values.len() as u64], values.to_vec().into());
        Arc::new(InferRequest { inputs: vec![input.unwrap()], ..InferRequest::default() })
    }

    /// A model that never ends answers two members together. One has a short deadline, the other a long one.
    #[tokio::test]
    async fn a_member_waits_no_longer_than_its_own_deadline_and_the_run_goes_on() {
        let batcher = Batcher::new(Batching { max_batch: 2, max_delay: Duration::from_secs(1) });
        let threads = Arc::new(Threads::new(&DeploymentName::default(), Some(1)));
        let model = echo(1);
        model.leave.forget_permits(Semaphore::MAX_PERMITS);
        let ask = |limit| {
            let deadline = Deadline::after(Instant::now(), limit);
            let (model, threads) = (Arc::clone(&model) as Ready, Arc::clone(&threads));
            tokio::spawn(Arc::clone(&batcher).infer(model, threads, input(&[1]), deadline))
        };
        let (short, long) = (ask(Duration::from_millis(30)), ask(Duration::from_secs(60)));
        let (outputs, _) = short.await.unwrap();
        assert_eq!(outputs.unwrap_err().code, ErrorCode::DeadlineExceeded);
        assert!(!long.is_finished());
        model.leave.add_permits(1);
        let (outputs, used) = long.await.unwrap();
        assert_eq!(outputs.unwrap()[0].data()[..], [1]);
        assert!(used.is_some(), "its share of the processor time is known");
    }
}
