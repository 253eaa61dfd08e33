use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

fn threads() -> Arc<Threads> {
    Arc::new(Threads::new(&DeploymentName::default(), Some(1)))
}

/// Each load waits for another thread, and all places for loads are taken all the time.
#[tokio::test]
async fn loads_that_wait_for_other_threads_end_and_few_run_at_once() {
    let (threads, running) = (threads(), Arc::new(AtomicUsize::new(0)));
    let loads = (0..LOADING_AT_ONCE * 8).map(|at| {
        let (threads, running) = (Arc::clone(&threads), Arc::clone(&running));
        let job = async move {
            let before = running.fetch_add(1, Ordering::SeqCst);
            let read = tokio::task::spawn_blocking(move || at).await.unwrap();
            let spawned = tokio::spawn(async move { read }).await.unwrap();
            running.fetch_sub(1, Ordering::SeqCst);
            (spawned, before < LOADING_AT_ONCE)
        };
        tokio::spawn(async move { threads.load(Box::pin(job)).await.unwrap() })
    });
    for (at, load) in loads.collect::<Vec<_>>().into_iter().enumerate() {
        let load = tokio::time::timeout(Duration::from_secs(60), load).await;
        assert_eq!(load.expect("it never ends").unwrap(), (at, true));
    }
}

#[tokio::test]
async fn a_short_job_stays_and_a_long_one_moves() {
    let threads = threads();
    let here = std::thread::current().id();
    let job = || Box::pin(async { std::thread::current().id() }) as Job<_>;
    assert_eq!(threads.run(job(), false).await, Ok(here));
    assert_ne!(threads.run(job(), true).await, Ok(here));
    let slow = Box::pin(async {
        std::thread::sleep(LONG);
        tokio::task::yield_now().await;
        std::thread::current().id()
    });
    assert_ne!(threads.run(slow, false).await, Ok(here), "its first slice was long");
}

#[tokio::test]
async fn a_job_that_panics_fails_alone() {
    let threads = threads();
    let broken = |number: u32| assert_eq!(number, 0, "as the test told it");
    let panics = Box::pin(async move { broken(1) }) as Job<()>;
    assert!(threads.load(panics).await.unwrap_err().message.contains("did not end"));
    assert_eq!(threads.load(Box::pin(async { 7 })).await, Ok(7));
}
