use super::*;

fn version(number: u32) -> ModelVersion {
    ModelVersion::new(number).unwrap()
}

fn weights(pairs: &[(u32, u32)]) -> Vec<(ModelVersion, u32)> {
    pairs.iter().map(|(number, weight)| (version(*number), *weight)).collect()
}

fn split(from: &Policy, pairs: &[(u32, u32)]) -> Policy {
    from.with_split(&weights(pairs), None).unwrap()
}

fn by_bucket(policy: &Policy) -> Vec<ModelVersion> {
    (0..BUCKETS).map(|bucket| version_at(policy, bucket)).collect()
}

/// A splitmix64 stream: the tests' random draws, the same every time.
fn draws() -> impl FnMut() -> u64 {
    let mut state = 42_u64;
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[test]
fn weights_become_exact_shares() {
    let policy = Policy::single(version(6));
    for (pairs, expected) in [
        (vec![(6, 90), (7, 10)], vec![(6, 9000), (7, 1000)]),
        (vec![(6, 1), (7, 1), (8, 1)], vec![(6, 3334), (7, 3333), (8, 3333)]),
        (vec![(6, u32::MAX), (7, u32::MAX)], vec![(6, 5000), (7, 5000)]),
        (vec![(6, 0), (7, 3)], vec![(7, 10_000)]),
    ] {
        let expected: Vec<_> =
            expected.into_iter().map(|(number, buckets)| (version(number), buckets)).collect();
        let mut shares = split(&policy, &pairs).shares();
        shares.sort_unstable();
        assert_eq!(shares, expected);
    }
}

#[test]
fn refuses_splits_that_mean_nothing() {
    let policy = Policy::single(version(1));
    for pairs in [vec![], vec![(1, 0)], vec![(1, 1), (1, 2)], (1..=17).map(|number| (number, 1)).collect()] {
        assert!(policy.with_split(&weights(&pairs), None).is_err(), "{pairs:?}");
    }
}

#[test]
fn ninety_to_ten_holds_over_100_000_draws() {
    let policy = split(&Policy::single(version(6)), &[(6, 90), (7, 10)]);
    let mut draw = draws();
    let challenger = (0..100_000).filter(|_| decide(&policy, 1, None, draw()).serve == version(7)).count();
    // Binomial(100000, 0.1): sd 94.87; the two-sided 99.9 % interval is 3.2905 sd.
    assert!((10_000 - 313..=10_000 + 313).contains(&challenger), "{challenger}");
}

#[test]
fn ninety_to_ten_holds_over_100_000_sticky_callers() {
    let policy = split(&Policy::single(version(6)), &[(6, 90), (7, 10)]);
    let serve = |user: u32| decide(&policy, seed("a/b"), Some(format!("user-{user}").as_bytes()), 0).serve;
    let challenger = (0..100_000).filter(|user| serve(*user) == version(7)).count();
    assert!((10_000 - 313..=10_000 + 313).contains(&challenger), "{challenger}");
}

#[test]
fn raising_a_split_moves_no_caller_back() {
    let ten = split(&Policy::single(version(6)), &[(6, 90), (7, 10)]);
    let twenty = split(&ten, &[(6, 80), (7, 20)]);
    for user in 0..100_000_u32 {
        let key = user.to_le_bytes();
        if decide(&ten, 9, Some(&key), 0).serve == version(7) {
            assert_eq!(decide(&twenty, 9, Some(&key), 0).serve, version(7), "user {user}");
        }
    }
}

#[test]
fn every_change_moves_as_few_buckets_as_its_weights_require() {
    let mut draw = draws();
    let mut policy = Policy::single(version(1));
    for _ in 0..300 {
        let pairs: Vec<_> = (1..=5).map(|number| (number, u32::try_from(draw() % 50).unwrap())).collect();
        if pairs.iter().all(|(_, weight)| *weight == 0) {
            continue;
        }
        let next = split(&policy, &pairs);
        let moved =
            by_bucket(&policy).iter().zip(by_bucket(&next)).filter(|(old, new)| **old != *new).count();
        let share = |policy: &Policy, number| {
            policy.shares().iter().find(|(v, _)| *v == version(number)).map_or(0, |(_, buckets)| *buckets)
        };
        let required: u16 =
            (1..=5).map(|number| share(&next, number).saturating_sub(share(&policy, number))).sum();
        assert_eq!(moved, usize::from(required), "{pairs:?}");
        policy = next;
    }
}

#[test]
fn a_challenger_that_answers_gets_no_copy() {
    let policy = Policy::single(version(7)).with_challengers(vec![version(7), version(8)]).unwrap();
    assert_eq!(decide(&policy, 0, None, 0).mirror().collect::<Vec<_>>(), [version(8)]);
}

#[test]
fn the_primary_stays_while_it_serves() {
    let policy = split(&Policy::single(version(6)), &[(7, 99), (6, 1)]);
    assert_eq!(policy.primary(), version(6));
    assert_eq!(split(&policy, &[(7, 1), (8, 1)]).primary(), version(7));
}

/// Fixed forever: another value here would move every sticky caller of every installation.
#[test]
fn hash_test_vectors() {
    assert_eq!(seed(""), 0x2d06_8005_38d3_94c2);
    assert_eq!(seed("marketing/churn"), xxh3_64_with_seed(b"marketing/churn", 0));
    assert_eq!([0, u64::MAX / 2, u64::MAX].map(bucket), [0, 4_999, 9_999]);
}

#[test]
fn reads_sticky_keys() {
    assert_eq!(StickyKey::parse("header:X-User-Id"), Ok(StickyKey::Header("x-user-id".into())));
    assert_eq!(StickyKey::parse("field:Customer"), Ok(StickyKey::Field("Customer".into())));
    for text in ["", "header:", "cookie:a", "x-user-id"] {
        assert!(StickyKey::parse(text).is_err(), "{text}");
    }
}
