use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use bytes::Bytes;
use modelhost_core::graph::Batching;
use modelhost_core::model::Signature;
use modelhost_core::tensor::{DType, TensorSpec};

use super::crew::{MOST_LOST, MOST_LOST_OF_VERSION, MOST_WAITING_OF_LANE};
use super::*;
use crate::backend::{Backend, Stop};
use crate::memory::Memory;

/// Longer than any passing test takes.
const SOON: Duration = Duration::from_secs(60);

/// Doubles its input once its gate opens, and records the input.
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

    fn run(&self, inputs: &[Tensor], _stop: &Stop) -> Result<Vec<Tensor>, Error> {
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

    fn run_now(&self, _inputs: &[Tensor]) -> Result<Option<Vec<Tensor>>, Error> {
        Ok(None)
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
    lane_of(&Memory::new(1 << 30), usize::MAX, Batching { max_batch, max_delay }, gated)
}

fn lane_of(memory: &Arc<Memory>, width: usize, batching: Batching, gated: bool) -> Fixture {
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
    let lane = Arc::new(Lane::new(Box::new(backend), batching, true, memory));
    Fixture { lane, asked: was_asked, gate: open }
}

type Answer = tokio::task::JoinHandle<Result<Vec<u8>, Error>>;

/// A tensor with these bytes.
fn tensor(values: impl Into<Bytes>) -> Tensor {
    let data = values.into();
    Tensor::new("x".into(), DType::Uint8, vec![data.len() as u64], data).unwrap()
}

async fn run(
    scheduler: &Scheduler,
    lane: &Arc<Lane>,
    input: Tensor,
    within: Duration,
) -> Result<Vec<u8>, Error> {
    let held = Memory::new(1 << 30).tensors(std::slice::from_ref(&input), ErrorCode::Internal).unwrap();
    let outputs = scheduler.run(lane, vec![input], held, Instant::now() + within).await?;
    Ok(outputs[0].data().to_vec())
}

fn ask(scheduler: &Arc<Scheduler>, lane: &Arc<Lane>, values: &[u8], within: Duration) -> Answer {
    let (scheduler, lane, input) = (Arc::clone(scheduler), Arc::clone(lane), tensor(values.to_vec()));
    tokio::spawn(async move { run(&scheduler, &lane, input, within).await })
}

/// Starts an evaluation that hangs, and leaves it.
async fn lose(scheduler: &Arc<Scheduler>, hangs: &Fixture) {
    let asked = ask(scheduler, &hangs.lane, &[1], SOON);
    hangs.asked.recv().unwrap();
    asked.abort();
    assert!(asked.await.unwrap_err().is_cancelled());
}

fn waiting_in(scheduler: &Scheduler, lane: &Arc<Lane>) -> usize {
    scheduler.0.state().waiting_in(lane)
}

async fn until(is_so: impl Fn() -> bool) {
    while !is_so() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Waits until `count` jobs wait in the lane.
async fn waiting(scheduler: &Scheduler, lane: &Arc<Lane>, count: usize) {
    until(|| waiting_in(scheduler, lane) == count).await;
}

/// Waits until no job waits or runs.
async fn rest(scheduler: &Scheduler) {
    until(|| scheduler.0.state().is_at_rest()).await;
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
        waiting(&scheduler, &lane, at + 1).await;
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
        waiting(&scheduler, &busy.lane, at + 1).await;
    }
    let other = ask(&scheduler, &calm.lane, &[3], SOON);
    waiting(&scheduler, &calm.lane, 1).await;
    for _ in 0..2 {
        busy.gate.send(()).unwrap();
    }
    calm.gate.send(()).unwrap();
    assert_eq!(other.await.unwrap().unwrap(), [6]);
    assert!(waiting_in(&scheduler, &busy.lane) >= 3, "its turn came after at most two of the other's");
    drop(busy.gate);
    for answer in answers {
        answer.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_hangs_past_its_deadline_keeps_no_one_else_waiting() {
    let scheduler = Scheduler::new(1);
    let (hangs, works) = (lane(1, Duration::ZERO, true), lane(1, Duration::ZERO, false));
    for _ in 0..MOST_LOST_OF_VERSION {
        lose(&scheduler, &hangs).await;
        assert_eq!(ask(&scheduler, &works.lane, &[2], SOON).await.unwrap().unwrap(), [4]);
    }
    let error = ask(&scheduler, &hangs.lane, &[1], SOON).await.unwrap().unwrap_err();
    assert_eq!(error.code, ErrorCode::ResourceExhausted);
    drop(hangs.gate); // all of them end
    rest(&scheduler).await;
    assert_eq!(ask(&scheduler, &hangs.lane, &[1], SOON).await.unwrap().unwrap(), [2]);
    assert_eq!(scheduler.0.state().threads, 1);
}

/// The bound used to be a graph's, but a version may have any number of graphs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_graphs_of_a_version_share_what_they_may_lose() {
    let scheduler = Scheduler::new(1);
    let memory = Memory::new(1 << 30);
    let of_version = |_| lane_of(&memory, usize::MAX, Batching::NONE, true);
    let hangs: Vec<_> = (0..=MOST_LOST_OF_VERSION).map(of_version).collect();
    for fixture in hangs.iter().take(MOST_LOST_OF_VERSION) {
        lose(&scheduler, fixture).await;
    }
    let error = ask(&scheduler, &hangs[MOST_LOST_OF_VERSION].lane, &[1], SOON).await.unwrap().unwrap_err();
    assert_eq!(error.code, ErrorCode::ResourceExhausted);
}

/// Evaluations beyond the bound used to be uncounted. They took the threads of all graphs, and later callers waited
/// in vain.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_every_thread_is_lost_others_are_refused_at_once_until_one_ends() {
    let scheduler = Scheduler::new(1);
    let works = lane(1, Duration::ZERO, false);
    let mut hanging = Vec::new();
    for _ in 0..MOST_LOST {
        assert_eq!(ask(&scheduler, &works.lane, &[2], SOON).await.unwrap().unwrap(), [4]);
        let hangs = lane(1, Duration::ZERO, true);
        lose(&scheduler, &hangs).await;
        hanging.push(hangs);
    }
    assert_eq!(ask(&scheduler, &works.lane, &[2], SOON).await.unwrap().unwrap(), [4]);
    let last = lane(1, Duration::ZERO, true);
    lose(&scheduler, &last).await;
    let error = ask(&scheduler, &works.lane, &[2], SOON).await.unwrap().unwrap_err();
    assert_eq!(error.code, ErrorCode::ResourceExhausted);
    let counted = |state: &crew::State<Lane>| (state.threads, state.lost);
    assert_eq!(counted(&scheduler.0.state()), (0, MOST_LOST + 1));
    drop((hanging, last)); // all of them end
    rest(&scheduler).await;
    assert_eq!(ask(&scheduler, &works.lane, &[2], SOON).await.unwrap().unwrap(), [4]);
    assert_eq!(scheduler.0.state().threads, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_who_left_is_not_answered() {
    let scheduler = Scheduler::new(1);
    let Fixture { lane, asked, gate } = lane(1, Duration::ZERO, true);
    let first = ask(&scheduler, &lane, &[1], SOON);
    asked.recv().unwrap();
    let left = ask(&scheduler, &lane, &[2], SOON);
    waiting(&scheduler, &lane, 1).await;
    left.abort();
    assert!(left.await.unwrap_err().is_cancelled());
    drop(gate);
    first.await.unwrap().unwrap();
    assert_eq!(ask(&scheduler, &lane, &[3], SOON).await.unwrap().unwrap(), [6]);
    assert_eq!(asked.try_iter().collect::<Vec<_>>(), [[3]]);
}

/// The job used to stay in the queue, with its uncounted tensors.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_caller_left_waiting_is_given_back_at_once() {
    let scheduler = Scheduler::new(1);
    let Fixture { lane, asked, gate } = lane(1, Duration::ZERO, true);
    let first = ask(&scheduler, &lane, &[1], SOON);
    asked.recv().unwrap();
    let kept = Arc::new([2_u8; 100]);
    let input = tensor(Bytes::from_owner(Kept(Arc::clone(&kept))));
    let late = run(&scheduler, &lane, input, Duration::from_millis(1)).await.unwrap_err();
    assert_eq!(late.code, ErrorCode::DeadlineExceeded);
    assert_eq!(Arc::strong_count(&kept), 1, "nobody keeps its tensors");
    assert_eq!(waiting_in(&scheduler, &lane), 0);
    drop(gate);
    first.await.unwrap().unwrap();
}

/// Bytes that show whether they are still held.
struct Kept(Arc<[u8; 100]>);

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &*self.0
    }
}

/// Both used to wake the same sleeping thread, so only the first one got a thread.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_who_come_at_once_have_a_thread_each() {
    let scheduler = Scheduler::new(2);
    let (hangs, works) = (lane(1, Duration::ZERO, true), lane(1, Duration::ZERO, false));
    // One thread exists and sleeps.
    assert_eq!(ask(&scheduler, &works.lane, &[1], SOON).await.unwrap().unwrap(), [2]);
    until(|| scheduler.0.state().idle == 1).await;
    tokio::select! {
        biased;
        _ = run(&scheduler, &hangs.lane, tensor(vec![1]), SOON) => panic!("it hangs"),
        answer = run(&scheduler, &works.lane, tensor(vec![2]), SOON) => assert_eq!(answer.unwrap(), [4]),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_that_a_lost_evaluation_had_is_taken_when_it_ends() {
    let scheduler = Scheduler::new(1);
    let hangs = lane_of(&Memory::new(1 << 30), 1, Batching::NONE, true);
    lose(&scheduler, &hangs).await;
    let next = ask(&scheduler, &hangs.lane, &[2], SOON);
    waiting(&scheduler, &hangs.lane, 1).await;
    drop(hangs.gate);
    assert_eq!(next.await.unwrap().unwrap(), [4]);
    assert_eq!(hangs.asked.try_iter().collect::<Vec<_>>(), [[2]]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_joined_member_waits_no_longer_than_its_own_deadline() {
    let scheduler = Scheduler::new(1);
    let Fixture { lane, asked, gate } = lane(2, SOON, true);
    let patient = ask(&scheduler, &lane, &[1], SOON);
    waiting(&scheduler, &lane, 1).await;
    let hurried = ask(&scheduler, &lane, &[2], Duration::from_millis(1));
    assert_eq!(hurried.await.unwrap().unwrap_err().code, ErrorCode::DeadlineExceeded);
    drop(gate);
    assert_eq!(patient.await.unwrap().unwrap(), [2], "the rest goes on");
    assert!(matches!(asked.recv().unwrap().as_slice(), [1, 2] | [1]));
}

/// Echoes its input, and records the names of the threads that evaluate.
struct Short {
    signature: Signature,
    /// Whether `run_now` can evaluate without making something first.
    is_there: Arc<AtomicBool>,
    ran_on: Arc<Mutex<Vec<String>>>,
}

impl Short {
    fn run_here(&self, inputs: &[Tensor]) -> Vec<Tensor> {
        self.ran_on.lock().unwrap().push(std::thread::current().name().unwrap_or_default().to_owned());
        inputs.to_vec()
    }
}

impl Backend for Short {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn run(&self, inputs: &[Tensor], _stop: &Stop) -> Result<Vec<Tensor>, Error> {
        Ok(self.run_here(inputs))
    }

    fn run_now(&self, inputs: &[Tensor]) -> Result<Option<Vec<Tensor>>, Error> {
        let is_there = self.is_there.swap(false, Ordering::Relaxed);
        Ok(is_there.then(|| self.run_here(inputs)))
    }

    fn width(&self) -> usize {
        usize::MAX
    }

    fn is_on_cpu(&self) -> bool {
        true
    }
}

/// A short evaluation runs on the calling thread, but only if it needs no new session or plan.
#[tokio::test]
async fn nothing_is_made_on_the_thread_that_asks() {
    let (scheduler, ran_on) = (Scheduler::new(1), Arc::default());
    let is_there = Arc::new(AtomicBool::new(false));
    let signature = Signature::default();
    let backend = Short { signature, is_there: Arc::clone(&is_there), ran_on: Arc::clone(&ran_on) };
    let lane = Arc::new(Lane::new(Box::new(backend), Batching::NONE, true, &Memory::new(1 << 30)));
    let ask = async || assert_eq!(run(&scheduler, &lane, tensor(vec![1]), SOON).await.unwrap(), [1]);
    while !lane.is_short(&[tensor(vec![1])]) {
        ask().await;
    }
    ask().await;
    assert!(ran_on.lock().unwrap().iter().all(|thread| thread == "graph"), "{ran_on:?}");
    is_there.store(true, Ordering::Relaxed);
    ask().await;
    assert_ne!(ran_on.lock().unwrap().last().unwrap(), "graph", "it was there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_has_a_bound() {
    let scheduler = Scheduler::new(1);
    let Fixture { lane, asked, gate } = lane(1, Duration::ZERO, true);
    let mut answers = vec![ask(&scheduler, &lane, &[1], SOON)];
    asked.recv().unwrap();
    answers.extend((0..MOST_WAITING_OF_LANE).map(|_| ask(&scheduler, &lane, &[1], SOON)));
    waiting(&scheduler, &lane, MOST_WAITING_OF_LANE).await;
    let error = ask(&scheduler, &lane, &[1], SOON).await.unwrap().unwrap_err();
    assert_eq!(error.code, ErrorCode::ResourceExhausted);
    drop(gate);
    for answer in answers {
        answer.await.unwrap().unwrap();
    }
    rest(&scheduler).await;
}
