//! Joins requests to a version without graphs that asks for it: those that come within its delay are answered by one instance.
//!
//! What is joined agrees in parameters, outputs asked for, and everything but rows. Where a joined request fails, each member is asked
//! alone, so that the one at fault fails alone.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use modelhost_core::batch;
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::graph::{Batching, Counts};
use modelhost_core::infer::{Deadline, InferRequest};
use modelhost_core::ports::LoadedModel;
use modelhost_core::tensor::Tensor;
use tokio::sync::{Notify, oneshot};

use crate::threads::Threads;

/// The requests of one version that wait for others.
pub(crate) struct Batcher {
    batching: Batching,
    gathering: Mutex<Option<Gathering>>,
    /// Of what ran.
    pub(crate) rows: Counts,
}

struct Gathering {
    members: Vec<Member>,
    rows: u64,
    full: Arc<Notify>,
}

struct Member {
    request: Arc<InferRequest>,
    rows: u64,
    deadline: Deadline,
    reply: oneshot::Sender<Result<Vec<Tensor>, Error>>,
}

impl Batcher {
    pub(crate) fn new(batching: Batching) -> Arc<Self> {
        Arc::new(Self { batching, gathering: Mutex::default(), rows: Counts::default() })
    }

    /// Answers the request, with others if they come in time. What was joined runs to its end, whoever leaves.
    pub(crate) async fn infer(
        self: Arc<Self>,
        model: Arc<dyn LoadedModel>,
        threads: Arc<Threads>,
        request: Arc<InferRequest>,
        deadline: Deadline,
    ) -> Result<Vec<Tensor>, Error> {
        let rows = batch::rows(&request.inputs).unwrap_or(0);
        let (reply, answer) = oneshot::channel();
        let member = Member { request: Arc::clone(&request), rows, deadline, reply };
        match self.join(member) {
            Joined::Alone => {
                self.rows.add(rows);
                return model.infer(request, deadline).await;
            }
            Joined::Member => {}
            Joined::First(full) => drop(tokio::spawn(self.lead(model, threads, full))),
        }
        answer.await.unwrap_or_else(|_| Err(Error::new(ErrorCode::Unavailable, "the host is shutting down")))
    }

    fn gathering(&self) -> MutexGuard<'_, Option<Gathering>> {
        self.gathering.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn join(&self, member: Member) -> Joined {
        let most = u64::from(self.batching.max_batch);
        let mut gathering = self.gathering();
        if member.rows == 0 || member.rows >= most {
            return Joined::Alone;
        }
        match &mut *gathering {
            None => {
                let full = Arc::new(Notify::new());
                let rows = member.rows;
                *gathering = Some(Gathering { members: vec![member], rows, full: Arc::clone(&full) });
                Joined::First(full)
            }
            Some(open) => {
                let fits = open.rows + member.rows <= most
                    && open.members.first().is_some_and(|first| fit(&first.request, &member.request));
                if !fits {
                    return Joined::Alone;
                }
                open.rows += member.rows;
                open.members.push(member);
                if open.rows == most {
                    open.full.notify_one();
                }
                Joined::Member
            }
        }
    }

    async fn lead(self: Arc<Self>, model: Arc<dyn LoadedModel>, threads: Arc<Threads>, full: Arc<Notify>) {
        let until = Instant::now() + self.batching.max_delay;
        tokio::select! {
            () = full.notified() => {}
            () = pause(until) => {}
        }
        let members = self.gathering().take().map(|gathering| gathering.members).unwrap_or_default();
        let members: Vec<_> = members.into_iter().filter(|member| !member.reply.is_closed()).collect();
        self.answer(&model, &threads, members).await;
    }

    async fn answer(&self, model: &Arc<dyn LoadedModel>, threads: &Arc<Threads>, members: Vec<Member>) {
        if let Some(joined) = join(&members).filter(|_| members.len() > 1) {
            let deadline =
                members.iter().map(|member| member.deadline).max_by_key(|deadline| deadline.instant());
            let rows: Vec<u64> = members.iter().map(|member| member.rows).collect();
            let ran = match deadline {
                Some(deadline) => {
                    threads.run(Arc::clone(model).infer(Arc::new(joined), deadline), false).await
                }
                None => return,
            };
            if let Ok(answers) = ran.flatten().and_then(|outputs| batch::split(&outputs, &rows)) {
                self.rows.add(rows.iter().sum());
                for (member, outputs) in members.into_iter().zip(answers) {
                    drop(member.reply.send(Ok(outputs))); // a caller who left needs no answer
                }
                return;
            }
        }
        for Member { request, rows, deadline, reply } in members {
            self.rows.add(rows);
            let (alone, threads) = (Arc::clone(model).infer(request, deadline), Arc::clone(threads));
            tokio::spawn(async move { drop(reply.send(threads.run(alone, false).await.flatten())) });
        }
    }
}

enum Joined {
    Alone,
    Member,
    First(Arc<Notify>),
}

fn fit(one: &InferRequest, other: &InferRequest) -> bool {
    one.parameters == other.parameters
        && one.outputs == other.outputs
        && batch::fit(&one.inputs, &other.inputs)
}

fn join(members: &[Member]) -> Option<InferRequest> {
    let first = &members.first()?.request;
    let inputs: Vec<&[Tensor]> = members.iter().map(|member| member.request.inputs.as_slice()).collect();
    let inputs = batch::join(&inputs).ok()?;
    Some(InferRequest { inputs, ..InferRequest::clone(first) })
}

/// Until then, to less than a millisecond: timers count whole ones.
async fn pause(until: Instant) {
    let whole = until.saturating_duration_since(Instant::now()).saturating_sub(Duration::from_millis(1));
    if whole > Duration::from_millis(1) {
        tokio::time::sleep(whole).await;
    }
    while Instant::now() < until {
        tokio::task::yield_now().await;
    }
}

#[cfg(test)]
mod tests {
    use modelhost_core::deployment::DeploymentName;
    use modelhost_core::model::Signature;
    use modelhost_core::ports::{BoxFuture, Footprint};
    use modelhost_core::tensor::DType;
    use modelhost_core::version::{Isolation, LoadReport};

    use super::*;

    /// Doubles; 13 is poison. Remembers what it was asked.
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
            let poisoned = input.data().contains(&13);
            Box::pin(
                async move { if poisoned { Err(Error::invalid("13 is poison")) } else { Ok(vec![output?]) } },
            )
        }

        fn footprint(&self) -> Footprint {
            Footprint::default()
        }

        fn shrink(&self, _idle: Duration) {}

        fn rest(&self) {}
    }

    fn doubler() -> Arc<Doubler> {
        let report = LoadReport {
            signature: Signature::default(),
            isolation: Isolation::Request,
            isolation_note: None,
        };
        Arc::new(Doubler { report, asked: Mutex::default() })
    }

    async fn ask(model: &Arc<Doubler>, max_batch: u32, requests: &[&[u8]]) -> Vec<Result<Vec<u8>, Error>> {
        let batcher = Batcher::new(Batching { max_batch, max_delay: Duration::from_millis(50) });
        let threads = Arc::new(Threads::new(&DeploymentName::default(), Some(1)));
        let answers = requests.iter().map(|values| {
            let data = values.to_vec().into();
            let input = Tensor::new("x".into(), DType::Uint8, vec![values.len() as u64], data).unwrap();
            let request = Arc::new(InferRequest { inputs: vec![input], ..InferRequest::default() });
            let deadline = Deadline::after(Instant::now(), Duration::from_secs(10));
            Arc::clone(&batcher).infer(
                Arc::clone(model) as Arc<dyn LoadedModel>,
                Arc::clone(&threads),
                request,
                deadline,
            )
        });
        let answers = futures_util::future::join_all(answers).await;
        answers.into_iter().map(|answer| answer.map(|outputs| outputs[0].data().to_vec())).collect()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn those_who_come_in_time_are_answered_together() {
        let model = doubler();
        let answers = ask(&model, 4, &[&[1], &[2, 3], &[4, 5], &[6], &[7, 8, 9, 10, 11]]).await;
        let answers: Vec<_> = answers.into_iter().map(Result::unwrap).collect();
        assert_eq!(answers, [vec![2], vec![4, 6], vec![8, 10], vec![12], vec![14, 16, 18, 20, 22]]);
        let mut asked = model.asked.lock().unwrap().clone();
        asked.sort();
        assert_eq!(asked, [vec![1, 2, 3, 6], vec![4, 5], vec![7, 8, 9, 10, 11]]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_poisoned_member_fails_alone() {
        let answers = ask(&doubler(), 8, &[&[1], &[13], &[3]]).await;
        assert_eq!(answers[0].as_ref().unwrap(), &[2]);
        assert_eq!(answers[1].as_ref().unwrap_err().message, "13 is poison");
        assert_eq!(answers[2].as_ref().unwrap(), &[6]);
    }
}
