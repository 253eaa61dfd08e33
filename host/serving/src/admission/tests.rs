use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use modelhost_core::deployment::Bounds;
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::infer::Deadline;
use modelhost_core::ports::Recorder;
use modelhost_core::version::Limits;
use tokio::time::timeout;

use crate::admission::{Admission, Line, Permit};
use crate::fakes::{Counts, version};

fn admission(instances: u32, queue: u32) -> Admission {
    Admission::new(&Bounds { instances, queue, ..Bounds::default() })
}

/// A version of this model with this usual run time.
fn line(model: &str, usual_run: Duration) -> Arc<Line> {
    line_of(model, 64, usual_run)
}

fn line_of(model: &str, concurrency: u32, usual_run: Duration) -> Arc<Line> {
    let mut version = Arc::into_inner(version(model, 1, 64)).unwrap();
    version.package.limits = Limits { concurrency, ..version.package.limits };
    let line = Line::new(&version, Arc::new(Counts::default()) as Arc<dyn Recorder>);
    if !usual_run.is_zero() {
        line.ran(usual_run, None);
    }
    line
}

fn after(limit: Duration) -> Deadline {
    Deadline::after(Instant::now(), limit)
}

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(1);

/// Enters the queue. The future waits from its first poll on.
async fn queued<'a>(
    admission: &'a Admission,
    line: &'a Arc<Line>,
) -> std::pin::Pin<Box<dyn Future<Output = Result<Permit<'a>, Error>> + 'a>> {
    let mut waiting: std::pin::Pin<Box<dyn Future<Output = _>>> =
        Box::pin(admission.enter(line, Instant::now(), after(LONG)));
    let polled = std::future::poll_fn(|_| {
        let mut context = std::task::Context::from_waker(Waker::noop());
        std::task::Poll::Ready(waiting.as_mut().poll(&mut context))
    });
    assert!(polled.await.is_pending());
    waiting
}

fn code<T>(result: Result<T, Error>) -> ErrorCode {
    result.map(drop).unwrap_err().code
}

#[tokio::test]
async fn refuses_at_once_beyond_the_queue() {
    let (admission, a) = (admission(1, 1), line("m/a", Duration::ZERO));
    let running = admission.enter(&a, Instant::now(), after(LONG)).await.unwrap();
    let waiting = queued(&admission, &a).await;
    assert_eq!(code(admission.enter(&a, Instant::now(), after(LONG)).await), ErrorCode::ResourceExhausted);
    assert_eq!((admission.counts(), a.waiting(), admission.totals().refused), ((1, 1), 1, 1));
    drop(running);
    let permit = waiting.await.unwrap();
    assert_eq!((admission.counts(), a.waiting()), ((1, 0), 0));
    drop(permit);
    assert_eq!((admission.counts(), admission.totals().admitted.count), ((0, 0), 2));
}

#[tokio::test]
async fn gives_up_at_the_deadline_and_leaves_the_queue() {
    let (admission, a) = (admission(1, 5), line("m/a", Duration::ZERO));
    let running = admission.enter(&a, Instant::now(), after(LONG)).await.unwrap();
    assert_eq!(code(admission.enter(&a, Instant::now(), after(SHORT)).await), ErrorCode::DeadlineExceeded);
    drop(queued(&admission, &a).await);
    assert_eq!((admission.counts(), a.waiting()), ((1, 0), 0));
    drop(running);
    assert!(admission.enter(&a, Instant::now(), after(LONG)).await.is_ok());
}

#[tokio::test]
async fn a_grant_that_nobody_takes_comes_back() {
    let (admission, a) = (admission(1, 5), line("m/a", Duration::ZERO));
    let running = admission.enter(&a, Instant::now(), after(LONG)).await.unwrap();
    let waiting = queued(&admission, &a).await;
    drop(running);
    assert_eq!(admission.counts(), (1, 0), "granted");
    drop(waiting);
    assert_eq!((admission.counts(), a.running()), ((0, 0), 0));
}

#[tokio::test]
async fn refuses_who_would_wait_past_its_deadline() {
    let (admission, a) = (admission(2, 100), line("m/a", Duration::from_millis(100)));
    let _running = [
        admission.enter(&a, Instant::now(), after(LONG)).await.unwrap(),
        admission.enter(&a, Instant::now(), after(LONG)).await.unwrap(),
    ];
    let mut waiting = Vec::new();
    for _ in 0..10 {
        waiting.push(queued(&admission, &a).await);
    }
    let refused =
        admission.enter(&a, Instant::now(), after(Duration::from_millis(300))).await.map(drop).unwrap_err();
    assert!(refused.message.contains("would wait about 500 ms"), "{refused}");
    assert_eq!(admission.totals().hopeless, 1);
    // Another model does not wait behind these ten requests. It gets its turn.
    let b = line("m/b", Duration::from_millis(100));
    assert!(
        timeout(SHORT, admission.enter(&b, Instant::now(), after(Duration::from_millis(300)))).await.is_err(),
        "it waits"
    );
}

#[tokio::test]
async fn models_take_turns_by_the_time_they_use() {
    let admission = admission(1, 100);
    let (slow, fast) = (line("m/slow", Duration::from_millis(30)), line("m/fast", Duration::from_millis(10)));
    let mut running = Some(admission.enter(&slow, Instant::now(), after(LONG)).await.unwrap());
    let mut waiting = Vec::new();
    for at in 0..16 {
        let line = if at < 8 { &slow } else { &fast };
        waiting.push((if at < 8 { 's' } else { 'f' }, queued(&admission, line).await));
    }
    let mut order = String::new();
    while order.len() < 8 {
        drop(running.take());
        waiting.retain_mut(|(name, future)| {
            // The granted future is ready at its next poll.
            let mut context = std::task::Context::from_waker(Waker::noop());
            match future.as_mut().poll(&mut context) {
                std::task::Poll::Ready(permit) => {
                    order.push(*name);
                    running = Some(permit.unwrap());
                    false
                }
                std::task::Poll::Pending => true,
            }
        });
        assert!(running.is_some(), "nobody was granted: {order}");
    }
    assert_eq!(order.matches('f').count(), 6, "three fast ones for a slow one: {order}");
}

#[tokio::test]
async fn a_full_queue_sheds_the_newest_of_whoever_waits_most() {
    let (admission, a, b) = (admission(1, 4), line("m/a", Duration::ZERO), line("m/b", Duration::ZERO));
    let running = admission.enter(&a, Instant::now(), after(LONG)).await.unwrap();
    let mut waiting = Vec::new();
    for _ in 0..4 {
        waiting.push(queued(&admission, &a).await);
    }
    let other = queued(&admission, &b).await;
    assert_eq!((a.waiting(), b.waiting(), admission.totals().shed), (3, 1, 1));
    let newest = waiting.pop().unwrap().await;
    assert_eq!(code(newest), ErrorCode::ResourceExhausted);
    assert_eq!(
        code(admission.enter(&a, Instant::now(), after(LONG)).await),
        ErrorCode::ResourceExhausted,
        "its own newest is this one"
    );
    drop(running);
    drop(other);
    drop(waiting);
    assert_eq!((admission.counts(), a.waiting(), b.waiting()), ((0, 0), 0, 0));
}

#[tokio::test]
async fn a_version_at_its_own_bound_holds_nobody_else_up() {
    let admission = admission(2, 10);
    let one = line_of("m/one", 1, Duration::ZERO);
    let other = line("m/other", Duration::ZERO);
    let _running = admission.enter(&one, Instant::now(), after(LONG)).await.unwrap();
    let _waiting = queued(&admission, &one).await;
    assert!(timeout(LONG, admission.enter(&other, Instant::now(), after(LONG))).await.unwrap().is_ok());
}

#[tokio::test]
async fn a_closed_one_refuses_who_waits_and_who_comes() {
    let (admission, a) = (admission(1, 4), line("m/a", Duration::ZERO));
    let running = admission.enter(&a, Instant::now(), after(LONG)).await.unwrap();
    let waiting = queued(&admission, &a).await;
    admission.close();
    assert_eq!(code(waiting.await), ErrorCode::Unavailable);
    assert_eq!(code(admission.enter(&a, Instant::now(), after(LONG)).await), ErrorCode::Unavailable);
    drop(running);
    assert_eq!((admission.counts(), a.waiting()), ((0, 0), 0));
}

#[tokio::test]
async fn raised_bounds_let_the_waiting_run() {
    let (admission, a) = (admission(1, 4), line("m/a", Duration::ZERO));
    let _running = admission.enter(&a, Instant::now(), after(LONG)).await.unwrap();
    let waiting = queued(&admission, &a).await;
    admission.set_bounds(&Bounds { instances: 2, queue: 4, ..Bounds::default() });
    assert!(waiting.await.is_ok());
}

#[test]
fn a_usual_run_follows_the_latest() {
    let line = line("m/a", Duration::ZERO);
    line.ran(Duration::from_millis(16), Some(Duration::from_millis(1)));
    assert_eq!((line.usual_run(), line.usual_cpu()), (Duration::from_millis(16), Duration::from_millis(1)));
    line.ran(Duration::from_millis(32), Some(Duration::from_millis(17)));
    line.ran(Duration::from_millis(17), None);
    assert_eq!((line.usual_run(), line.usual_cpu()), (Duration::from_millis(17), Duration::from_millis(2)));
}
