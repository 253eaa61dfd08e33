use super::*;
use crate::error::ErrorCode;
use crate::tensor::DType;

/// A request for rows of a width. Requests of the same width fit.
#[derive(Debug, PartialEq)]
struct Ask(Vec<Tensor>);

impl Join for Ask {
    fn inputs(&self) -> &[Tensor] {
        &self.0
    }
}

/// `first` is the value of all elements. It tells one request from another.
fn ask(first: u8, rows: u64, width: u64) -> Ask {
    let data = vec![first; usize::try_from(rows * width).unwrap()];
    Ask(vec![Tensor::new("x".into(), DType::Uint8, vec![rows, width], data.into()).unwrap()])
}

fn who(batch: &Batch<Ask>) -> Vec<u8> {
    batch.members().iter().map(|member| member.request.0[0].data().first().copied().unwrap_or(0)).collect()
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Requests are (arrival, time that they have, rows, width); the batches that they make are (due, members). Times are
/// in milliseconds, and members are numbers from 0.
fn check(max_batch: u32, delay: u64, asked: &[(u64, u64, u64, u64)], expected: &[(u64, &[u8])]) {
    let start = Instant::now();
    let mut gather = Gather::new(Batching { max_batch, max_delay: millis(delay) });
    for (at, (arrived, time, rows, width)) in asked.iter().enumerate() {
        let arrived = start + millis(*arrived);
        let request = ask(u8::try_from(at).unwrap(), *rows, *width);
        gather.push(Member { request, arrived, deadline: arrived + millis(*time) });
    }
    assert_eq!(gather.len(), asked.len());
    let mut came = Vec::new();
    while let Some(due) = gather.due() {
        assert!(gather.take(due - Duration::from_nanos(1)).is_none(), "nothing is due earlier");
        let batch = gather.take(due).unwrap();
        came.push((u64::try_from((due - start).as_millis()).unwrap(), who(&batch)));
    }
    let expected: Vec<_> = expected.iter().map(|(due, members)| (*due, members.to_vec())).collect();
    assert_eq!(came, expected, "{asked:?}");
    assert!(gather.is_empty());
}

#[test]
fn what_fits_gathers_until_it_is_full_or_due() {
    // Nothing joins: each is due as it comes.
    check(1, 10, &[(0, 1000, 1, 1), (1, 1000, 1, 1)], &[(0, &[0]), (1, &[1])]);
    // The batch is due after the delay of its first request.
    check(8, 10, &[(0, 1000, 1, 1), (5, 1000, 2, 1)], &[(10, &[0, 1])]);
    // A full batch is due at once.
    check(4, 10, &[(0, 1000, 1, 1), (5, 1000, 3, 1)], &[(5, &[0, 1])]);
    // The third has too many rows for the room that is left, so it opens another batch, which later ones join. The
    // first batch keeps its room.
    check(
        4,
        10,
        &[(0, 1000, 3, 1), (1, 1000, 2, 1), (2, 1000, 1, 1), (3, 1000, 2, 1)],
        &[(2, &[0, 2]), (3, &[1, 3])],
    );
    // Other widths never join.
    check(4, 10, &[(0, 1000, 1, 1), (1, 1000, 1, 2), (2, 1000, 1, 1)], &[(10, &[0, 2]), (11, &[1])]);
    // A request that cannot be joined is due at once: it has no rows, or as many as a batch.
    check(4, 10, &[(0, 1000, 0, 1), (1, 1000, 4, 1), (2, 1000, 9, 1)], &[(0, &[0]), (1, &[1]), (2, &[2])]);
    // Without a delay all requests that wait are taken together.
    check(4, 0, &[(0, 1000, 1, 1), (1, 1000, 1, 1), (2, 1000, 1, 1)], &[(0, &[0, 1, 2])]);
}

#[test]
fn nobody_waits_for_others_longer_than_half_of_its_time() {
    check(8, 100, &[(0, 20, 1, 1)], &[(10, &[0])]);
    // The request in a hurry takes the others along.
    check(8, 100, &[(0, 1000, 1, 1), (1, 10, 1, 1)], &[(6, &[0, 1])]);
    // A request that came too late delays no other, and no other delays it.
    check(8, 100, &[(0, 1000, 1, 1), (50, 0, 1, 1)], &[(50, &[0, 1])]);
}

fn gathered(requests: Vec<Ask>, max_batch: u32) -> Gather<Ask> {
    let now = Instant::now();
    let mut gather = Gather::new(Batching { max_batch, max_delay: Duration::ZERO });
    for (at, request) in requests.into_iter().enumerate() {
        let time = millis(10 * (at as u64 + 1));
        gather.push(Member { request, arrived: now, deadline: now + time });
    }
    gather
}

fn batch_of(requests: Vec<Ask>) -> Batch<Ask> {
    let mut gather = gathered(requests, 100);
    let batch = gather.take(gather.due().unwrap()).unwrap();
    assert!(gather.is_empty());
    batch
}

#[test]
fn whoever_leaves_is_forgotten_and_its_rows_are_free() {
    let mut gather = gathered(vec![ask(0, 2, 1), ask(1, 2, 1), ask(2, 3, 1)], 4);
    let is = |value: u8| move |request: &Ask| request.0[0].data()[0] == value;
    assert_eq!(gather.remove(is(0)).unwrap().request, ask(0, 2, 1));
    assert!(gather.remove(is(0)).is_none());
    let now = gather.due().unwrap();
    gather.push(Member { request: ask(3, 2, 1), arrived: now, deadline: now });
    assert_eq!(gather.len(), 3);
    assert_eq!(who(&gather.take(now).unwrap()), [1, 3]);
    assert!(gather.remove(is(2)).is_some());
    assert!(gather.is_empty() && gather.due().is_none());
}

#[test]
fn a_batch_ends_with_its_last_member_and_each_gets_its_part() {
    let batch = batch_of(vec![ask(1, 2, 1), ask(2, 1, 1)]);
    assert_eq!(batch.rows(), 3);
    assert_eq!(batch.deadline(), batch.members().last().map(|member| member.deadline));
    let joined = batch.inputs().unwrap().into_owned();
    assert_eq!(joined[0].data()[..], [1, 1, 2]);
    let Settled::Answered(answers) = batch.settle(Ok(joined)) else { panic!("it was answered") };
    for (request, answer) in answers {
        assert_eq!(answer.unwrap(), request.0, "each echoes its inputs");
    }
}

#[test]
fn those_who_fail_together_are_asked_alone() {
    let batch = batch_of(vec![ask(1, 2, 1), ask(2, 1, 1)]);
    let Settled::Failed(members, error) = batch.settle(Err(Error::invalid("poison"))) else {
        panic!("nobody is answered")
    };
    assert_eq!(error.message, "poison");
    let mut gather = Gather::new(Batching { max_batch: 100, max_delay: millis(10) });
    gather.again(members);
    for expected in [1, 2] {
        let batch = gather.take(Instant::now()).unwrap();
        assert_eq!(who(&batch), [expected]);
        let Settled::Answered(answers) = batch.settle(Err(Error::invalid("poison"))) else {
            panic!("whoever was alone is answered")
        };
        assert_eq!(answers[0].1.as_ref().unwrap_err().code, ErrorCode::InvalidArgument);
    }
    assert!(gather.is_empty());
}

#[test]
fn an_answer_of_other_rows_is_a_failure_of_all() {
    let batch = batch_of(vec![ask(1, 2, 1), ask(2, 1, 1)]);
    let Settled::Failed(members, error) = batch.settle(Ok(ask(9, 2, 1).0)) else { panic!("it fits nobody") };
    assert_eq!((members.len(), error.code), (2, ErrorCode::PluginFault));
}

#[test]
fn those_who_left_part_from_a_batch() {
    let mut batch = batch_of(vec![ask(1, 1, 1), ask(2, 1, 1), ask(3, 1, 1)]);
    let late = batch.members()[0].deadline;
    let left = batch.part(|member| member.deadline <= late);
    assert_eq!((left.len(), who(&batch)), (1, vec![2, 3]));
}
