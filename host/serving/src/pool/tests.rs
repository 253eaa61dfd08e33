use super::*;
use crate::fakes::{Runtime, echo, pool, slot};
use crate::residence::Who;

async fn load(slot: &Arc<Slot>) -> Result<(), ErrorCode> {
    slot.load(Who::Caller).await.map(drop).map_err(|error| error.code)
}

/// Sets a version's demand and load time, so that the test does not depend on the machine.
fn worth(slot: &Arc<Slot>, asked: u32, load: Duration) {
    slot.rank.set(asked, load);
}

#[tokio::test]
async fn the_least_valuable_makes_room_and_a_pinned_one_stays() {
    let (runtime, places) = (Runtime::quick(), Places::new(3, 1 << 20));
    let pool = pool("default", &Bounds::default(), &places);
    let slots: Vec<_> = (0..6).map(|at| slot(&format!("m/m{at}"), &pool, &runtime)).collect();
    slots[0].residence.pin(true);
    for (slot, asked) in slots.iter().zip([1, 1, 1, 1, 50, 50]) {
        load(slot).await.unwrap();
        worth(slot, asked, Duration::from_millis(10));
    }
    let there: Vec<_> = slots.iter().map(|slot| slot.is_ready()).collect();
    assert_eq!(there, [true, false, false, false, true, true]);
    let status = pool.status(6);
    assert_eq!((status.totals.evictions, status.loaded, places.taken.load(Ordering::Relaxed)), (3, 3, 3));
}

#[tokio::test]
async fn a_place_is_made_wherever_the_host_has_most_to_spare() {
    let (runtime, places) = (Runtime::quick(), Places::new(2, 1 << 20));
    let (full, needs) =
        (pool("full", &Bounds::default(), &places), pool("needs", &Bounds::default(), &places));
    let [a, b] = ["m/a", "m/b"].map(|model| slot(model, &full, &runtime));
    let c = slot("m/c", &needs, &runtime);
    for (slot, asked) in [(&a, 9), (&b, 1), (&c, 1)] {
        load(slot).await.unwrap();
        worth(slot, asked, Duration::from_millis(10));
    }
    assert_eq!([a.is_ready(), b.is_ready(), c.is_ready()], [true, false, true]);
    a.residence.pin(true);
    c.residence.pin(true);
    assert_eq!(load(&b).await, Err(ErrorCode::ResourceExhausted), "what is pinned stays");
    c.unload();
    assert_eq!(load(&b).await, Ok(()), "its place is free again");
}

#[tokio::test]
async fn what_does_not_fit_is_refused_and_takes_no_place() {
    let (runtime, places) = (Runtime::quick(), Places::new(9, 1 << 20));
    let pool = pool("small", &Bounds { loaded_bytes: 100, ..Bounds::default() }, &places);
    let [a, b] = ["m/a", "m/b"].map(|model| slot(model, &pool, &runtime));
    a.residence.pin(true);
    runtime.results.lock().unwrap().extend([Ok(echo(60)), Ok(echo(60))]);
    assert_eq!((load(&a).await, load(&b).await), (Ok(()), Err(ErrorCode::ResourceExhausted)));
    assert_eq!((pool.status(2).loaded_bytes, places.taken.load(Ordering::Relaxed)), (60, 1));
    a.residence.pin(false);
    runtime.results.lock().unwrap().push(Ok(echo(60)));
    assert_eq!(load(&b).await, Ok(()), "nothing is wrong with it");
    assert_eq!([a.is_ready(), b.is_ready()], [false, true]);
}

#[tokio::test]
async fn what_grows_in_memory_makes_room_at_the_next_look() {
    let (runtime, places) = (Runtime::quick(), Places::new(9, 1 << 20));
    let pool = pool("small", &Bounds { loaded_bytes: 100, ..Bounds::default() }, &places);
    let (a, model) = (slot("m/a", &pool, &runtime), echo(60));
    runtime.results.lock().unwrap().push(Ok(Arc::clone(&model)));
    load(&a).await.unwrap();
    model.bytes.store(101, Ordering::Relaxed);
    pool.tidy(Duration::ZERO);
    assert!(!a.is_ready());
    assert_eq!(pool.status(1).loaded_bytes, 0);
}
