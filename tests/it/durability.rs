//! Acknowledged changes survive a crash. Other changes are not left half done.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use modelhost_tests::{Client, Host, Package, Process, x};
use serde_json::{Value, json};

const MODEL: &str = "demo/m";

fn detail(client: &Client) -> Value {
    client.admin("GET", "/models/demo/m", &Value::Null).unwrap().body
}

fn serves(client: &Client) -> bool {
    client.post("/v2/models/demo/m/infer", &x(&[1.0])).status == 200
}

#[test]
fn comes_back_to_the_same_state_and_answers() {
    let host = Host::start();
    for _ in 0..3 {
        host.client.register(MODEL, &Package::fault("echo", ""), true);
    }
    let weights = json!([{"version": 2, "weight": 60}, {"version": 3, "weight": 40}]);
    host.client.operate(MODEL, "split", &json!({"weights": weights, "sticky": "header:x-user"}));
    host.client.operate(MODEL, "challenge", &json!({"challengers": [1]}));
    host.client.admin("PUT", "/models/demo/m/aliases/stable", &json!({"version": 2})).unwrap();
    let without_loaded = |client: &Client| {
        let mut detail = detail(client);
        for version in detail["versions"].as_array_mut().unwrap() {
            version["loaded"] = Value::Null;
        }
        detail
    };
    let ask = |client: &Client| -> Vec<_> {
        let users = (0..50).map(|user| format!("u{user}"));
        let path = "/v2/models/demo/m/infer";
        users.map(|user| client.post_with(path, &x(&[1.0]), &[("x-user", &user)]).version).collect()
    };
    // The comparison counts start at zero with the host, so nothing is predicted before.
    let before = without_loaded(&host.client);
    let host = host.restart(|_| {});
    assert_eq!(without_loaded(&host.client), before);
    let answers = ask(&host.client);
    let host = host.restart(|_| {});
    assert_eq!(ask(&host.client), answers, "sticky callers keep their version across restarts");
    assert_eq!(host.client.operate(MODEL, "rollback", &json!({})).body["primary"], 3);
}

#[test]
fn kill_9_during_register_promote_and_rollback_loses_nothing_acknowledged() {
    let data = tempfile::tempdir().unwrap();
    let (mut promoted, mut under_way) = (None, None);
    let mut registered = 0;
    for round in 0..50_u64 {
        let process = Process::start(data.path());
        let client = process.client.clone();
        if let Some(primary) = promoted {
            let detail = detail(&client);
            let versions = detail["versions"].as_array().unwrap();
            assert!(
                versions.len() as u64 >= registered,
                "round {round}: {registered} were acknowledged, {detail}"
            );
            // The operation in progress when the host died may or may not have been written.
            let now = detail["policy"]["primary"].as_u64().unwrap();
            assert!(now == primary || under_way == Some(now), "round {round}: {now} {primary} {under_way:?}");
            promoted = Some(now);
            registered = versions.len() as u64;
            assert!(serves(&client), "round {round}");
        }
        let (stop, acknowledged) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let work = scope.spawn(|| operate(&client, (&stop, &acknowledged), round));
            if round == 0 {
                crate::deployments::until("some are registered", || acknowledged.load(Ordering::Relaxed) > 3);
            }
            std::thread::sleep(Duration::from_millis(40 + round * 7 % 160)); // the kill comes at a varying moment
            process.signal("-KILL");
            stop.store(true, Ordering::Relaxed);
            let (last, pending, more) = work.join().unwrap();
            promoted = last.or(promoted);
            under_way = pending;
            registered = registered.max(more);
        });
        let partial = fs::read_dir(data.path().join("blobs/partial")).unwrap().count();
        assert!(partial <= 1, "there was only one upload at a time");
    }
    assert!(registered > 3, "only {registered} versions were registered");
}

/// Registers, promotes and rolls back until the host is gone. Returns the last acknowledged primary, the primary of the
/// operation in progress, and the number of acknowledged versions.
fn operate(
    client: &Client,
    (stop, acknowledged): (&AtomicBool, &AtomicU64),
    round: u64,
) -> (Option<u64>, Option<u64>, u64) {
    let (mut primary, mut versions) = (None, 0);
    for step in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let package = Package::fault("echo", &format!("description = 'round {round} step {step}'"));
        let Ok(answer) = client.try_register(MODEL, &package, false) else { break };
        assert_eq!(answer.status, 200, "{answer:?}");
        let version = answer.body["version"].as_u64().unwrap();
        versions = version;
        acknowledged.store(version, Ordering::Relaxed);
        let before = primary;
        let policy = json!({"version": version});
        let Ok(answer) = client.admin("POST", "/models/demo/m/promote", &policy) else {
            return (primary, Some(version), versions);
        };
        assert_eq!(answer.status, 200, "{answer:?}");
        primary = Some(version);
        if step % 3 == 2 {
            let Ok(answer) = client.admin("POST", "/models/demo/m/rollback", &json!({})) else {
                return (primary, before, versions);
            };
            assert_eq!(answer.body["primary"].as_u64(), before);
            primary = before;
        }
    }
    (primary, None, versions)
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let list = fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path());
    list.filter(|path| path.extension().is_some_and(|found| found == extension)).collect()
}

#[test]
fn a_corrupted_compiled_file_is_made_again() {
    let host = Host::start();
    host.client.register(MODEL, &Package::fault("echo", ""), true);
    let host = host.restart(|data| {
        for path in files(&data.join("compiled"), "cwasm") {
            let mut content = fs::read(&path).unwrap();
            let middle = content.len() / 2;
            content[middle] ^= 0xff;
            fs::write(&path, content).unwrap();
        }
    });
    assert!(serves(&host.client));
    let host = host.restart(|data| {
        for path in files(&data.join("compiled"), "cwasm") {
            fs::write(&path, b"").unwrap();
        }
    });
    assert!(serves(&host.client));
    let host = host.restart(|data| fs::remove_dir_all(data.join("compiled")).unwrap());
    assert!(serves(&host.client));
}

#[test]
fn a_corrupted_artifact_is_named_and_mended_by_an_upload() {
    let host = Host::start();
    let package = Package::folder("examples/credit-risk/logistic");
    host.client.register("demo/credit", &package, true);
    host.client.register(MODEL, &Package::fault("echo", ""), true);
    let host = host.restart(|data| {
        fs::remove_dir_all(data.join("compiled")).unwrap();
        for folder in fs::read_dir(data.join("blobs")).unwrap().flatten() {
            for blob in fs::read_dir(folder.path()).unwrap().flatten() {
                let content = fs::read(blob.path()).unwrap();
                if content == package.files[0].1 {
                    fs::write(blob.path(), &content[1..]).unwrap();
                }
            }
        }
    });
    let (rows, _) = modelhost_tests::held_out("logistic");
    let answer = host.client.post("/models/demo/credit/", &rows);
    assert_eq!(answer.status, 500, "{answer:?}");
    assert!(serves(&host.client), "another model still serves");
    let promote = host.client.operate("demo/credit", "promote", &json!({"version": 1}));
    assert!(promote.error().contains("artifact \"model.json\": blob"), "{promote:?}");
    assert!(promote.error().contains("is corrupt"), "{promote:?}");
    host.client.register("demo/other", &package, false);
    assert_eq!(host.client.operate("demo/credit", "promote", &json!({"version": 1})).status, 200);
    assert_eq!(host.client.post("/models/demo/credit/", &rows).status, 200);
}

/// A small file system. Dropping it unmounts it.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// Mounts one. Returns `None` if this process may not mount.
    fn mount(options: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(dir.path()).output();
        mounted.is_ok_and(|output| output.status.success()).then_some(Self(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("--lazy").arg(self.0.path()).status());
    }
}

#[test]
fn a_full_disk_is_a_clear_error_and_loses_nothing() {
    let Some(disk) = SmallDisk::mount("size=64m") else {
        println!("skipped: this process may not mount a small file system");
        return;
    };
    let data = disk.0.path().join("data");
    let process = Process::start(&data);
    let client = process.client.clone();
    client.register(MODEL, &Package::fault("echo", ""), true);
    let filler = disk.0.path().join("filler");
    let fill = || drop(fs::write(&filler, vec![1_u8; 64 << 20]));
    fill();
    let mut package = Package::fault("echo", "artifacts = ['a.bin']");
    package.files.push(("a.bin".into(), vec![7; 1 << 20]));
    let answer = client.try_register(MODEL, &package, true).unwrap();
    assert_eq!(answer.status, 507, "{answer:?}");
    assert!(answer.error().contains("No space left"), "{answer:?}");
    let promote = client.operate(MODEL, "promote", &json!({"version": 1}));
    assert!(matches!(promote.status, 200 | 507), "{promote:?}");
    assert!(serves(&client));
    fs::remove_file(&filler).unwrap();
    client.register(MODEL, &package, true);
    process.kill();
    let process = Process::start(&data);
    assert_eq!(detail(&process.client)["policy"]["primary"], 2);
    assert!(serves(&process.client));
    drop(process);
}
