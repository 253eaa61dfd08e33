use modelhost_core::deployment::Bounds;
use modelhost_core::tensor::DType;

use super::*;
use crate::fakes::{Runtime, later, pool, slot};
use crate::pool::Places;

fn request() -> Arc<InferRequest> {
    let x = Tensor::new("x".into(), DType::Uint8, vec![1], vec![7].into()).unwrap();
    Arc::new(InferRequest { inputs: vec![x], ..InferRequest::default() })
}

fn one(runtime: &Arc<Runtime>, bounds: &Bounds) -> Arc<Slot> {
    slot("m/a", &pool("default", bounds, &Places::new(10, 1 << 20)), runtime)
}

async fn ask(slot: Arc<Slot>, deadline: Deadline) -> Result<u8, ErrorCode> {
    let answer = slot.infer(request(), Instant::now(), deadline, Role::Primary).await;
    answer.map(|(outputs, _)| outputs[0].data()[0]).map_err(|error| error.code)
}

/// Waits until `count` callers wait for the load.
async fn waiting(slot: &Arc<Slot>, count: usize) {
    while slot.residence.waiting() < count {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn loads_beyond_the_threads_for_them_wait_and_all_end() {
    let (runtime, places) = (Runtime::quick(), Places::new(100, 1 << 20));
    let pool = pool("default", &Bounds::default(), &places);
    let slots: Vec<_> = (0..16).map(|at| slot(&format!("m/m{at}"), &pool, &runtime)).collect();
    let asks = slots.iter().flat_map(|slot| (0..4).map(|_| ask(Arc::clone(slot), later())));
    let answers = futures_util::future::join_all(asks).await;
    assert_eq!(answers, vec![Ok(7); 64]);
    assert_eq!(runtime.begun.available_permits(), 16, "each was loaded once");
}

#[tokio::test]
async fn who_waits_for_a_load_holds_no_instance() {
    let runtime = Runtime::new();
    let cold = one(&runtime, &Bounds { instances: 1, ..Bounds::default() });
    let other = slot("m/b", &cold.pool, &Runtime::quick());
    let waits: Vec<_> = (0..3).map(|_| tokio::spawn(ask(Arc::clone(&cold), later()))).collect();
    runtime.begins().await;
    assert_eq!(ask(other, later()).await, Ok(7), "one instance, and nobody has it");
    runtime.end.add_permits(1);
    for wait in waits {
        assert_eq!(wait.await.unwrap(), Ok(7));
    }
}

#[tokio::test]
async fn the_callers_deadline_ends_its_wait_and_not_the_load() {
    let runtime = Runtime::new();
    let slot = one(&runtime, &Bounds::default());
    let soon = Deadline::after(Instant::now(), Duration::from_millis(20));
    assert_eq!(ask(Arc::clone(&slot), soon).await, Err(ErrorCode::DeadlineExceeded));
    assert_eq!(slot.pool.admission.counts(), (0, 0));
    runtime.end.add_permits(1);
    assert_eq!(ask(Arc::clone(&slot), later()).await, Ok(7));
    assert_eq!(runtime.begun.available_permits(), 1, "the first load went on");
}

/// The load counts as waiting, because the usual run time decides the order of requests and their threads.
#[tokio::test]
async fn the_time_of_a_load_is_no_time_of_the_run() {
    let (runtime, start) = (Runtime::new(), Instant::now());
    let slot = one(&runtime, &Bounds::default());
    let asked = Arc::clone(&slot);
    let asked =
        tokio::spawn(async move { asked.infer(request(), start, later(), Role::Primary).await.unwrap().1 });
    runtime.begins().await;
    let loading = start.elapsed();
    runtime.end.add_permits(1);
    let timing = asked.await.unwrap();
    assert!(timing.queued >= loading && timing.queued + timing.ran <= start.elapsed(), "{timing:?}");
}

#[tokio::test]
async fn no_more_wait_for_a_load_than_may_run_and_queue() {
    let runtime = Runtime::new();
    let slot = one(&runtime, &Bounds::default());
    let limits = &slot.version.package.limits;
    let most = (limits.queue + limits.concurrency) as usize;
    let waits: Vec<_> = (0..most).map(|_| tokio::spawn(ask(Arc::clone(&slot), later()))).collect();
    waiting(&slot, most).await;
    assert_eq!(ask(Arc::clone(&slot), later()).await, Err(ErrorCode::ResourceExhausted));
    waits.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn an_unload_during_a_load_wins() {
    let runtime = Runtime::new();
    let slot = one(&runtime, &Bounds::default());
    let waits = tokio::spawn(ask(Arc::clone(&slot), later()));
    runtime.begins().await;
    assert!(!slot.unload(), "it was not there yet");
    runtime.end.add_permits(1);
    assert_eq!(waits.await.unwrap(), Ok(7), "who came before is answered");
    assert!(!slot.is_ready());
    assert_eq!(slot.pool.status(1).loaded, 0);
}

#[tokio::test]
async fn a_withdrawal_during_a_load_refuses_who_waits_at_once() {
    let runtime = Runtime::new();
    let slot = one(&runtime, &Bounds::default());
    let waits = tokio::spawn(ask(Arc::clone(&slot), later()));
    runtime.begins().await;
    slot.withdraw();
    assert_eq!(waits.await.unwrap(), Err(ErrorCode::Unavailable));
    runtime.end.add_permits(1);
    assert_eq!(ask(Arc::clone(&slot), later()).await, Err(ErrorCode::Unavailable));
    assert!(slot.load(Who::Operator).await.is_ok() && slot.is_ready());
}

/// A registered package was accepted, so a later failure is not the caller's.
#[tokio::test]
async fn no_load_is_the_callers_fault() {
    for code in ErrorCode::ALL {
        let runtime = Runtime::quick();
        runtime.results.lock().unwrap().push(Err(Error::new(code, "said of the load")));
        let slot = one(&runtime, &Bounds::default());
        let came = ask(slot, later()).await.unwrap_err();
        let hosts = [
            ErrorCode::ResourceExhausted,
            ErrorCode::DeadlineExceeded,
            ErrorCode::Unavailable,
            ErrorCode::PluginFault,
            ErrorCode::Internal,
        ];
        assert_eq!(came, if hosts.contains(&code) { code } else { ErrorCode::Unavailable }, "{code}");
    }
}

#[tokio::test]
async fn a_load_that_panics_is_the_hosts_failure_and_is_tried_again() {
    let runtime = Runtime::quick();
    runtime.panics.store(true, Ordering::Relaxed);
    let slot = one(&runtime, &Bounds::default());
    assert_eq!(ask(Arc::clone(&slot), later()).await, Err(ErrorCode::Internal));
    assert!(slot.load(Who::Operator).await.is_ok());
}
