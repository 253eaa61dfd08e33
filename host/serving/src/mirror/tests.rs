use std::sync::atomic::Ordering;

use modelhost_core::deployment::Bounds;
use modelhost_core::tensor::DType;

use super::*;
use crate::fakes::{Counts, Runtime, pool, slot_with};
use crate::pool::Places;

fn mirror(queue: usize, bytes: u32) -> Arc<Mirror> {
    let config = Config { mirror_queue: queue, mirror_bytes: bytes, ..Config::default() };
    Mirror::new(&config)
}

/// A challenger in its own deployment, and its recorder.
fn challenger(model: &str, runtime: &Arc<Runtime>) -> (Arc<Slot>, Arc<Counts>) {
    let seen = Arc::new(Counts::default());
    let pool = pool("default", &Bounds::default(), &Places::new(10, 1 << 20));
    (slot_with(model, &pool, runtime, &seen), seen)
}

/// Sends a copy of a request and its answer, with `bytes` together.
fn send(mirror: &Arc<Mirror>, challenger: &Arc<Slot>, bytes: usize) {
    let data = vec![0; bytes].into();
    let output = Tensor::new("y".into(), DType::Uint8, vec![bytes as u64], data).unwrap();
    let served = ModelVersion::parse("2").unwrap();
    mirror.send(served, std::slice::from_ref(challenger), &Arc::default(), &Arc::new(vec![output]));
}

#[tokio::test]
async fn a_slow_challenger_delays_no_other_models_copies() {
    let mirror = mirror(100, 1 << 20);
    let (slow, fast) = (Runtime::new(), Runtime::quick());
    let ((slow, slow_seen), (fast, fast_seen)) = (challenger("m/slow", &slow), challenger("m/fast", &fast));
    (0..50).for_each(|_| send(&mirror, &slow, 1));
    (0..50).for_each(|_| send(&mirror, &fast, 1));
    fast_seen.compared.acquire_many(50).await.unwrap().forget();
    let dropped = [&slow_seen, &fast_seen].map(|seen| seen.dropped.load(Ordering::Relaxed));
    assert_eq!((slow_seen.compared.available_permits(), dropped), (0, [0, 0]));
}

#[tokio::test]
async fn one_model_may_take_half_of_the_room_and_gives_it_back() {
    let (mirror, end) = (mirror(8, 1000), Runtime::new());
    let (slow, seen) = challenger("m/slow", &end);
    let (other, other_seen) = challenger("m/other", &Runtime::new());
    let dropped = |seen: &Counts| seen.dropped.load(Ordering::Relaxed);
    (0..5).for_each(|_| send(&mirror, &slow, 100));
    assert_eq!(dropped(&seen), 1, "of 8 copies");
    send(&mirror, &other, 501);
    assert_eq!(dropped(&other_seen), 1, "of 1000 bytes");
    send(&mirror, &other, 500);
    send(&mirror, &other, 1);
    assert_eq!(dropped(&other_seen), 2);
    end.end.add_permits(1);
    seen.compared.acquire_many(4).await.unwrap().forget();
    while mirror.state().lanes.get(&slow.version.model).is_some_and(|lane| lane.running > 0) {
        tokio::task::yield_now().await;
    }
    assert_eq!(mirror.state().total, Load { copies: 1, bytes: 500 });
}
