use std::sync::mpsc;

use modelhost_core::model::Signature;
use modelhost_core::tensor::{DType, TensorSpec};

use super::*;

const SOON: Duration = Duration::from_secs(10);

/// Doubles, after it was let through its gate; says what it was asked.
struct Doubler {
    signature: Signature,
    asked: mpsc::Sender<Vec<u8>>,
    gate: Option<Mutex<mpsc::Receiver<()>>>,
    width: usize,
}

impl Backend for Doubler {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn run(&self, inputs: &[Tensor], _stop: Option<&Stop>) -> Result<Vec<Tensor>, Error> {
        let input = &inputs[0];
        self.asked.send(input.data().to_vec()).unwrap();
        if let Some(gate) = &self.gate {
            gate.lock().unwrap().recv().ok();
        }
        assert!(!input.data().contains(&99), "99 cannot be doubled");
        if input.data().contains(&13) {
            return Err(Error::invalid("13 is poison"));
        }
        let doubled: Vec<u8> = input.data().iter().map(|value| value * 2).collect();
        Ok(vec![Tensor::new("y".into(), DType::Uint8, input.shape().to_vec(), doubled.into())?])
    }

    fn width(&self) -> usize {
        self.width
    }

    fn is_on_cpu(&self) -> bool {
        false
    }
}

struct Fixture {
    lane: Arc<Lane>,
    asked: mpsc::Receiver<Vec<u8>>,
    gate: mpsc::Sender<()>,
}

fn lane(max_batch: u32, max_delay: Duration, gated: bool) -> Fixture {
    lane_of(usize::MAX, max_batch, max_delay, gated)
}

fn lane_of(width: usize, max_batch: u32, max_delay: Duration, gated: bool) -> Fixture {
    let spec = |name: &str| TensorSpec {
        name: name.into(),
        dtype: DType::Uint8,
        shape: vec![None],
        columns: [].into(),
    };
    let (asked, was_asked) = mpsc::channel();
    let (open, gate) = mpsc::channel();
    let backend = Doubler {
        signature: Signature { inputs: vec![spec("x")], outputs: vec![spec("y")] },
        asked,
        gate: gated.then(|| Mutex::new(gate)),
        width,
    };
    let lane = Arc::new(Lane::new(Box::new(backend), Batching { max_batch, max_delay }, true));
    Fixture { lane, asked: was_asked, gate: open }
}

type Answer = tokio::task::JoinHandle<Result<Vec<u8>, Error>>;

fn ask(scheduler: &Arc<Scheduler>, lane: &Arc<Lane>, values: &[u8], within: Duration) -> Answer {
    let (scheduler, lane) = (Arc::clone(scheduler), Arc::clone(lane));
    let input =
        Tensor::new("x".into(), DType::Uint8, vec![values.len() as u64], values.to_vec().into()).unwrap();
    tokio::spawn(async move {
        let outputs = scheduler.run(&lane, vec![input], Instant::now() + within).await?;
        Ok(outputs[0].data().to_vec())
    })
}

/// Until so many wait in the lane.
async fn waiting(lane: &Lane, count: usize) {
    while lane.queue().len() != count {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_wait_are_answered_together() {
    let scheduler = Scheduler::new(1);
    let Fixture { lane, asked, gate } = lane(4, Duration::ZERO, true);
    let first = ask(&scheduler, &lane, &[1], SOON);
    assert_eq!(asked.recv().unwrap(), [1]);
    let mut others = Vec::new();
    for (at, values) in [vec![2], vec![3, 4], vec![5], vec![6, 7]].iter().enumerate() {
        others.push(ask(&scheduler, &lane, values, SOON));
        waiting(&lane, at + 1).await;
    }
    for _ in 0..3 {
        gate.send(()).unwrap();
    }
    assert_eq!(first.await.unwrap().unwrap(), [2]);
    let mut answers = Vec::new();
    for other in others {
        answers.push(other.await.unwrap().unwrap());
    }
    assert_eq!(answers, [vec![4], vec![6, 8], vec![10], vec![12, 14]]);
    assert_eq!(asked.try_iter().collect::<Vec<_>>(), [vec![2, 3, 4, 5], vec![6, 7]]);
    let rows = lane.batch_rows.read();
    assert_eq!((rows.sum, rows.counts[0], rows.counts[1], rows.counts[2]), (7, 1, 1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poisoned_member_fails_alone() {
    for (poison, code) in [(13, ErrorCode::InvalidArgument), (99, ErrorCode::PluginFault)] {
        let scheduler = Scheduler::new(1);
        let Fixture { lane, asked: _asked, .. } = lane(3, Duration::from_millis(500), false);
        let answers = [1, poison, 3].map(|value| ask(&scheduler, &lane, &[value], SOON));
        let mut came = Vec::new();
        for answer in answers {
            came.push(answer.await.unwrap());
        }
        assert_eq!(came[0].as_ref().unwrap(), &[2]);
        assert_eq!(came[1].as_ref().unwrap_err().code, code);
        assert_eq!(came[2].as_ref().unwrap(), &[6]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_lane_does_not_delay_another() {
    let scheduler = Scheduler::new(1);
    let (busy, calm) = (lane(1, Duration::ZERO, true), lane(1, Duration::ZERO, true));
    let mut answers = vec![ask(&scheduler, &busy.lane, &[1], SOON)];
    busy.asked.recv().unwrap();
    for at in 0..5 {
        answers.push(ask(&scheduler, &busy.lane, &[2], SOON));
        waiting(&busy.lane, at + 1).await;
    }
    let other = ask(&scheduler, &calm.lane, &[3], SOON);
    waiting(&calm.lane, 1).await;
    for _ in 0..2 {
        busy.gate.send(()).unwrap();
    }
    calm.gate.send(()).unwrap();
    assert_eq!(other.await.unwrap().unwrap(), [6]);
    assert!(busy.lane.queue().len() >= 3, "its turn came after at most two of the other's");
    drop(busy.gate);
    for answer in answers {
        answer.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_hangs_past_its_deadline_keeps_no_one_else_waiting() {
    let scheduler = Scheduler::new(1);
    let (hangs, works) = (lane(1, Duration::ZERO, true), lane(1, Duration::ZERO, false));
    for _ in 0..MOST_LOST_OF_LANE {
        let error = ask(&scheduler, &hangs.lane, &[1], Duration::from_millis(20)).await.unwrap().unwrap_err();
        assert_eq!(error.code, ErrorCode::DeadlineExceeded);
        assert_eq!(ask(&scheduler, &works.lane, &[2], SOON).await.unwrap().unwrap(), [4]);
    }
    let error = ask(&scheduler, &hangs.lane, &[1], SOON).await.unwrap().unwrap_err();
    assert_eq!(error.code, ErrorCode::ResourceExhausted);
    drop(hangs.gate); // all of them end
    while hangs.lane.lost.load(Ordering::Relaxed) > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(ask(&scheduler, &hangs.lane, &[1], SOON).await.unwrap().unwrap(), [2]);
    let state = scheduler.state();
    assert_eq!((state.threads, state.lost), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_who_left_is_not_answered() {
    let scheduler = Scheduler::new(1);
    let Fixture { lane, asked, gate } = lane(1, Duration::ZERO, true);
    let first = ask(&scheduler, &lane, &[1], SOON);
    asked.recv().unwrap();
    let left = ask(&scheduler, &lane, &[2], SOON);
    waiting(&lane, 1).await;
    left.abort();
    assert!(left.await.unwrap_err().is_cancelled());
    drop(gate);
    first.await.unwrap().unwrap();
    assert_eq!(ask(&scheduler, &lane, &[3], SOON).await.unwrap().unwrap(), [6]);
    assert_eq!(asked.try_iter().collect::<Vec<_>>(), [[3]]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_that_a_lost_evaluation_had_is_taken_when_it_ends() {
    let scheduler = Scheduler::new(1);
    let Fixture { lane, asked, gate } = lane_of(1, 1, Duration::ZERO, true);
    let error = ask(&scheduler, &lane, &[1], Duration::from_millis(20)).await.unwrap().unwrap_err();
    assert_eq!(error.code, ErrorCode::DeadlineExceeded);
    let next = ask(&scheduler, &lane, &[2], SOON);
    waiting(&lane, 1).await;
    drop(gate);
    assert_eq!(next.await.unwrap().unwrap(), [4]);
    assert_eq!(asked.try_iter().collect::<Vec<_>>(), [[1], [2]]);
}
