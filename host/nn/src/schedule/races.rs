//! Race tests of the crew. shuttle runs its threads in thousands of orders, and detects deadlocks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use modelhost_core::batch::{Batch, Join, Member};
use modelhost_core::graph::Batching;
use modelhost_core::tensor::{DType, Tensor};
use shuttle::sync::atomic::{AtomicBool, Ordering};
use shuttle::sync::mpsc;
use shuttle::thread;

use crate::backend::Stop;
use crew::{Crew, Line, Ticket, Ticketed};

/// The same source with shuttle's locks and threads.
#[path = "crew.rs"]
#[allow(clippy::duplicate_mod, reason = "that is the point")]
#[expect(dead_code, reason = "some of it is for the other tests")]
mod crew;

mod sync {
    pub(super) use shuttle::sync::{Condvar, Mutex, MutexGuard};
    pub(super) use shuttle::thread;
}

/// How many orders each test tries.
const ORDERS: usize = 3000;

struct Lane {
    batching: Batching,
    width: usize,
    /// Whether an evaluation of [`HANGS`] may end.
    ends: AtomicBool,
}

/// A value whose evaluation goes on until it may end.
const HANGS: u8 = 255;

struct Job {
    ticket: Ticket,
    inputs: Vec<Tensor>,
    value: u8,
    reply: mpsc::Sender<u8>,
}

impl Join for Job {
    fn inputs(&self) -> &[Tensor] {
        &self.inputs
    }
}

impl Ticketed for Job {
    fn ticket(&self) -> Ticket {
        self.ticket
    }
}

impl Line for Lane {
    type Job = Job;

    fn batching(&self) -> Batching {
        self.batching
    }

    fn width(&self) -> usize {
        self.width
    }

    fn is_beside(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }

    /// Several members fail together, so that each is evaluated alone.
    fn evaluate(&self, mut batch: Batch<Job>, _stop: &Stop) -> Vec<Member<Job>> {
        thread::yield_now();
        let members = batch.part(|_| true);
        if members.len() > 1 {
            return members;
        }
        for Member { request, .. } in members {
            while request.value == HANGS && !self.ends.load(Ordering::SeqCst) {
                thread::yield_now();
            }
            request.reply.send(request.value).ok(); // a caller who left needs no answer
        }
        Vec::new()
    }
}

fn lane(width: usize, max_batch: u32) -> Arc<Lane> {
    Arc::new(Lane {
        batching: Batching { max_batch, max_delay: Duration::ZERO },
        width,
        ends: AtomicBool::new(false),
    })
}

fn submit(crew: &Arc<Crew<Lane>>, lane: &Arc<Lane>, value: u8) -> (Ticket, mpsc::Receiver<u8>) {
    let (reply, answer) = mpsc::channel();
    let input = Tensor::new("x".into(), DType::Uint8, vec![1], vec![value].into()).unwrap();
    let soon = Instant::now() + Duration::from_secs(600);
    let job = |ticket| Job { ticket, inputs: vec![input], value, reply };
    (crew.submit(lane, soon, job).unwrap(), answer)
}

/// Starts a thread for each caller. Even callers wait for their answer. The others leave.
fn check(threads: usize, lanes: &[(usize, u32)], callers: u8) {
    let crew = Crew::new(threads);
    let lanes: Vec<_> = lanes.iter().map(|(width, max_batch)| lane(*width, *max_batch)).collect();
    let asking = (0..callers).map(|value| {
        let (crew, lane) = (Arc::clone(&crew), Arc::clone(&lanes[usize::from(value) % lanes.len()]));
        thread::spawn(move || {
            let (ticket, answer) = submit(&crew, &lane, value);
            if value % 2 == 0 {
                assert_eq!(answer.recv(), Ok(value));
            } else {
                thread::yield_now();
                crew.leave(&lane, ticket);
            }
        })
    });
    for caller in asking.collect::<Vec<_>>() {
        caller.join().unwrap();
    }
    while !crew.state().is_at_rest() {
        thread::yield_now();
    }
    assert!(crew.state().threads <= threads, "no thread is counted twice");
    crew.close();
    while crew.state().threads > 0 {
        thread::yield_now();
    }
}

#[test]
fn whoever_waits_is_answered_and_whoever_left_is_forgotten() {
    shuttle::check_random(|| check(2, &[(usize::MAX, 1), (usize::MAX, 1)], 5), ORDERS);
}

#[test]
fn a_graph_that_few_may_evaluate_at_once_wakes_those_who_wait_for_a_place() {
    shuttle::check_random(|| check(2, &[(1, 1), (1, 1)], 6), ORDERS);
}

#[test]
fn those_who_failed_together_are_answered_alone() {
    shuttle::check_random(|| check(2, &[(1, 4), (2, 4)], 6), ORDERS);
}

/// One evaluation goes on until the other one is answered, so both need a thread.
#[test]
fn nobody_waits_for_a_thread_while_another_may_start() {
    shuttle::check_random(
        || {
            let crew = Crew::new(2);
            let lane = lane(usize::MAX, 1);
            let (_, answer) = submit(&crew, &lane, 1);
            assert_eq!(answer.recv(), Ok(1));
            let (hangs, other) = (submit(&crew, &lane, HANGS), submit(&crew, &lane, 2));
            assert_eq!(other.1.recv(), Ok(2));
            lane.ends.store(true, Ordering::SeqCst);
            assert_eq!(hangs.1.recv(), Ok(HANGS));
            crew.close();
        },
        ORDERS,
    );
}

/// The caller of an endless evaluation leaves. The thread is replaced, and counted again when the evaluation ends.
#[test]
fn a_lost_evaluation_keeps_no_one_else_waiting() {
    shuttle::check_random(
        || {
            let crew = Crew::new(1);
            let (hanging, works) = (lane(1, 1), lane(1, 1));
            let (ticket, _answer) = submit(&crew, &hanging, HANGS);
            let next = submit(&crew, &works, 2);
            crew.leave(&hanging, ticket);
            assert_eq!(next.1.recv(), Ok(2));
            hanging.ends.store(true, Ordering::SeqCst);
            while !crew.state().is_at_rest() {
                thread::yield_now();
            }
            assert_eq!(crew.state().threads, 1);
            crew.close();
        },
        ORDERS,
    );
}
