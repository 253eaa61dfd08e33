//! Splits, sticky callers, challengers, aliases, and swaps under load.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use modelhost_tests::{Client, Host, Package, x};
use serde_json::json;

const INFER: &str = "/v2/models/demo/m/infer";

fn two_versions() -> Host {
    let host = Host::start();
    host.client.register("demo/m", &Package::fault("echo", ""), true);
    host.client.register("demo/m", &Package::fault("echo", "description = 'second'"), false);
    host
}

fn version(client: &Client, headers: &[(&str, &str)]) -> u32 {
    let answer = client.post_with(INFER, &x(&[1.0]), headers);
    assert_eq!(answer.status, 200, "{answer:?}");
    let version = answer.version.unwrap();
    assert_eq!(answer.body["model_version"], version.to_string());
    version
}

/// An epoch counts the start and the end of each swap. A reader accepts both versions during a swap.
#[test]
fn twenty_swaps_under_load_fail_and_misroute_nothing() {
    let host = two_versions();
    // An even epoch is settled on version 1 + (epoch / 2) % 2. An odd epoch is a swap in progress.
    let (epoch, stop, answers) = (AtomicU64::new(0), AtomicBool::new(false), AtomicU64::new(0));
    let settled = |epoch: u64| 1 + u32::try_from(epoch / 2 % 2).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                let client = host.client.clone();
                while !stop.load(Ordering::Relaxed) {
                    let before = epoch.load(Ordering::SeqCst);
                    let came = version(&client, &[]);
                    let after = epoch.load(Ordering::SeqCst);
                    let mut allowed = (before / 2..=after.div_ceil(2)).map(|half| settled(half * 2));
                    assert!(
                        allowed.any(|version| version == came),
                        "{came} between epochs {before} and {after}"
                    );
                    answers.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for swap in 0..20 {
            let served = answers.load(Ordering::Relaxed);
            while answers.load(Ordering::Relaxed) < served + 50 {
                std::thread::yield_now();
            }
            epoch.fetch_add(1, Ordering::SeqCst);
            let answer = if swap % 2 == 0 {
                host.client.operate("demo/m", "promote", &json!({"version": 2}))
            } else {
                host.client.operate("demo/m", "rollback", &json!({}))
            };
            assert_eq!(answer.status, 200, "{answer:?}");
            epoch.fetch_add(1, Ordering::SeqCst);
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_sticky_caller_stays_and_raising_a_split_moves_none_back() {
    let host = two_versions();
    let split = |first: u32, second: u32| {
        let weights = json!([{"version": 1, "weight": first}, {"version": 2, "weight": second}]);
        let answer =
            host.client.operate("demo/m", "split", &json!({"weights": weights, "sticky": "header:X-User"}));
        assert_eq!(answer.status, 200, "{answer:?}");
    };
    let ask = || -> HashMap<String, u32> {
        let users = (0..300).map(|user| format!("user-{user}"));
        users.map(|user| (user.clone(), version(&host.client, &[("x-user", &user)]))).collect()
    };
    split(70, 30);
    let before = ask();
    assert_eq!(ask(), before);
    let second = before.values().filter(|version| **version == 2).count();
    assert!((50..130).contains(&second), "{second} of 300 at 30 %");
    split(40, 60);
    for (user, version) in ask() {
        assert!(version == 2 || before[&user] == 1, "{user} moved back");
    }
}

#[test]
fn sticky_by_field_reads_parameters() {
    let host = two_versions();
    let weights = json!([{"version": 1, "weight": 1}, {"version": 2, "weight": 1}]);
    host.client.operate("demo/m", "split", &json!({"weights": weights, "sticky": "field:customer"}));
    let ask = |customer: u32| {
        let mut request = x(&[1.0]);
        request["parameters"] = json!({"customer": customer});
        host.client.post(INFER, &request).version.unwrap()
    };
    let versions: Vec<_> = (0..40).map(|customer| (ask(customer), ask(customer))).collect();
    assert!(versions.iter().all(|(first, second)| first == second));
    assert!(
        versions.iter().any(|(version, _)| *version == 1)
            && versions.iter().any(|(version, _)| *version == 2)
    );
}

#[test]
fn challengers_see_everything_and_change_nothing() {
    let host = two_versions();
    let count = host.client.register("demo/m", &Package::fault("count", ""), false);
    let panic = host.client.register("demo/m", &Package::fault("panic", ""), false);
    let answer = host.client.operate("demo/m", "challenge", &json!({"challengers": [1, 2, count, panic]}));
    assert_eq!(answer.status, 200, "{answer:?}");
    for _ in 0..20 {
        let answer = host.client.post(INFER, &x(&[5.0]));
        assert_eq!((answer.version, &answer.body["outputs"][0]["data"]), (Some(1), &json!([5.0])));
    }
    let outcome = |challenger: u32, outcome: &str| {
        let detail = host.client.admin("GET", "/models/demo/m", &json!(null)).unwrap().body;
        let rows = detail["challengers"].as_array().unwrap().clone();
        let row = rows.iter().find(|row| row["challenger"] == challenger).unwrap();
        row["outcomes"][outcome].as_u64().unwrap()
    };
    let start = std::time::Instant::now();
    let outcomes = || [outcome(2, "equal"), outcome(count, "differs"), outcome(panic, "failed")];
    while outcomes() != [20, 20, 20] && start.elapsed().as_secs() < 20 {
        std::thread::yield_now();
    }
    assert_eq!(outcomes(), [20, 20, 20]);
    let detail = host.client.admin("GET", "/models/demo/m", &json!(null)).unwrap().body;
    assert_eq!(detail["policy"]["shares"], json!([{"version": 1, "percent": 100.0}]));
}

#[test]
fn aliases_point_at_versions_that_load() {
    let host = two_versions();
    let set = |alias: &str, version: u32| {
        host.client
            .admin("PUT", &format!("/models/demo/m/aliases/{alias}"), &json!({"version": version}))
            .unwrap()
    };
    assert_eq!(set("stable", 2).body, json!({"stable": 2}));
    assert_eq!(host.client.post("/v2/models/demo/m/versions/stable/infer", &x(&[1.0])).version, Some(2));
    assert_eq!(set("stable", 9).status, 404);
    assert_eq!(set("v7", 1).status, 400);
    let removed = host.client.admin("DELETE", "/models/demo/m/aliases/stable", &json!(null)).unwrap();
    assert_eq!(removed.body, json!({}));
}

#[test]
fn an_unloaded_version_comes_back_with_its_next_request() {
    let host = two_versions();
    let loaded = |number: usize| {
        let detail = host.client.admin("GET", "/models/demo/m", &json!(null)).unwrap().body;
        detail["versions"][number - 1]["loaded"].as_bool().unwrap()
    };
    assert!(loaded(1) && !loaded(2), "registration alone does not load a version");
    let unload = host.client.operate("demo/m", "versions/1/unload", &json!({}));
    assert_eq!(unload.body, json!({"unloaded": true}));
    assert!(!loaded(1));
    assert_eq!(version(&host.client, &[]), 1);
    assert!(loaded(1));
}

#[test]
fn versions_make_room_and_a_pinned_one_stays() {
    let host = Host::start_with(|config| config.loaded_versions = Some(3));
    for _ in 0..6 {
        host.client.register("demo/m", &Package::fault("echo", ""), false);
    }
    assert_eq!(host.client.operate("demo/m", "pin", &json!({"pinned": true})).status, 409);
    host.client.operate("demo/m", "promote", &json!({"version": 1}));
    let policy = host.client.operate("demo/m", "pin", &json!({"pinned": true})).body;
    assert_eq!(policy["pinned"], true);
    for number in 1..=6 {
        let path = format!("/v2/models/demo/m/versions/{number}/infer");
        assert_eq!(host.client.post(&path, &x(&[1.0])).status, 200);
    }
    let loaded = |host: &Host| -> Vec<u64> {
        let detail = host.client.admin("GET", "/models/demo/m", &json!(null)).unwrap().body;
        let loaded = detail["versions"].as_array().unwrap().iter().filter(|row| row["loaded"] == true);
        loaded.map(|row| row["version"].as_u64().unwrap()).collect()
    };
    // Load times decide which of the others stay. `serving::pool` tests that order with fixed times.
    let stay = loaded(&host);
    assert!(stay.len() == 3 && stay.contains(&1) && stay.contains(&6), "{stay:?}");
    let host = host.restart(|_| {});
    while loaded(&host).is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_eq!(loaded(&host), [1], "only the pinned version is loaded again without a caller");
}
