//! The real binary: output that scripts rely on, exit codes, and a graceful shutdown.

use std::process::{Command, Output};

use modelhost_tests::{Package, Process, binary, root, x};
use serde_json::Value;

fn modelhost(process: &Process, args: &[&str]) -> Output {
    let mut command = Command::new(binary());
    command.env("MODELHOST_ADMIN", &process.client.admin).env("MODELHOST_URL", &process.client.url);
    command.current_dir(root()).args(args).output().unwrap()
}

fn ok(process: &Process, args: &[&str]) -> String {
    let output = modelhost(process, args);
    assert!(output.status.success(), "{args:?} {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn json(process: &Process, args: &[&str]) -> Value {
    serde_json::from_str(&ok(process, &[args, &["--output", "json"]].concat())).unwrap()
}

#[test]
fn a_session_with_every_command() {
    let data = tempfile::tempdir().unwrap();
    let host = Process::start(data.path());
    assert_eq!(ok(&host, &["register", "bank/credit", "examples/credit-risk/logistic", "--promote"]), "1");
    let registered = json(&host, &["register", "bank/credit", "examples/credit-risk/xgboost"]);
    assert_eq!((&registered["model"], &registered["version"]), (&"bank/credit".into(), &2.into()));
    assert_eq!(registered["digest"].as_str().unwrap().len(), 64);
    assert_eq!(ok(&host, &["promote", "bank/credit", "v2"]), "v2 100%");
    assert_eq!(ok(&host, &["rollback", "bank/credit"]), "v1 100%");
    assert_eq!(
        ok(&host, &["split", "bank/credit", "1=90", "2=10", "--sticky", "header:X-User-Id"]),
        "v1 90%, v2 10%; sticky by header:x-user-id"
    );
    assert_eq!(ok(&host, &["promote", "bank/credit", "1"]), "v1 100%");
    assert_eq!(ok(&host, &["challenge", "bank/credit", "2"]), "v1 100%; challenged by v2");
    assert_eq!(ok(&host, &["challenge", "bank/credit", "--none"]), "v1 100%");
    assert_eq!(json(&host, &["alias", "bank/credit", "stable", "2"]), serde_json::json!({"stable": 2}));
    let actions: Vec<_> = json(&host, &["history", "bank/credit"])
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["action"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(
        actions,
        [
            "challenge --none",
            "challenge 2",
            "promote 1",
            "split 1=90 2=10",
            "rollback",
            "promote 2",
            "promote 1"
        ]
    );
    assert_eq!(json(&host, &["list", "prefixes"]), serde_json::json!([{"prefix": "bank", "models": 1}]));
    assert_eq!(json(&host, &["list", "models", "bank"])[0]["versions"], 2);
    assert_eq!(
        json(&host, &["list", "versions", "bank/credit"])[1]["aliases"],
        serde_json::json!(["stable"])
    );
    assert!(ok(&host, &["show", "bank/credit"]).contains("logistic regression"));
    let rows = "examples/credit-risk/held-out.json";
    let predictions = json(&host, &["predict", "bank/credit", rows, "--version", "stable"]);
    assert_eq!(predictions["version"], 2);
    assert_eq!(predictions["predictions"].as_array().unwrap().len(), 334);
    let report = json(&host, &["bench", "bank/credit", rows, "-c", "4", "-n", "200"]);
    assert_eq!((&report["requests"], &report["failures"]), (&200.into(), &0.into()));
    assert_eq!(ok(&host, &["unload", "bank/credit", "2"]), "unloaded");
    assert_eq!(ok(&host, &["unload", "bank/credit", "2"]), "was not loaded");
}

#[test]
fn exit_codes_tell_caller_refusal_and_absence_apart() {
    let data = tempfile::tempdir().unwrap();
    let host = Process::start(data.path());
    let broken = tempfile::tempdir().unwrap();
    std::fs::write(broken.path().join("model.toml"), "runtime = 'linear'\nartifacts = ['m.json']").unwrap();
    std::fs::write(broken.path().join("m.json"), "{}").unwrap();
    let broken = broken.path().to_str().unwrap();
    for (args, code, text) in [
        (vec!["promote", "nope/nope", "1"], 2, "model nope/nope is not registered"),
        (vec!["promote", "nope", "1"], 2, "not of the form prefix/name"),
        (vec!["promote", "a/b", "x"], 2, "a version is a number"),
        (vec!["register", "a/b", "/nowhere"], 2, "model.toml"),
        (vec!["register", "a/b", broken], 3, "m.json: missing field `format`"),
        (vec!["serve", "--admin-listen", "0.0.0.0:0", "--data-dir", broken], 2, "--admin-allow-remote"),
        (vec!["list", "--admin", "http://127.0.0.1:1"], 4, "no host answers at http://127.0.0.1:1"),
    ] {
        let output = modelhost(&host, &args);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?} {errors}");
        assert!(errors.contains(text), "{args:?} {errors}");
    }
    let second = Command::new(binary())
        .args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--data-dir"])
        .arg(data.path())
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(3), "{second:?}");
    assert!(String::from_utf8(second.stderr).unwrap().contains("is used by another host"));
}

#[test]
fn sigterm_lets_requests_finish() {
    let data = tempfile::tempdir().unwrap();
    let mut host = Process::start(data.path());
    host.client.register("demo/slow", &Package::fault("slow", "limits = { deadline_ms = 20000 }"), true);
    let client = host.client.clone();
    let request = std::thread::spawn(move || client.post("/v2/models/demo/slow/infer", &x(&[10_000.0])));
    while json(&host, &["deployment", "show", "default"])["running"] == 0 && !request.is_finished() {}
    assert!(
        !request.is_finished(),
        "the request must still run when the signal arrives: {:?}",
        request.join()
    );
    host.signal("-TERM");
    assert_eq!(request.join().unwrap().status, 200);
    assert_eq!(host.child.wait().unwrap().code(), Some(0));
}

#[test]
fn deployments_usage_and_top() {
    let data = tempfile::tempdir().unwrap();
    let host = Process::start(data.path());
    let bounds = [
        "--instances",
        "4",
        "--queue",
        "9",
        "--threads",
        "1",
        "--loaded-mib",
        "64",
        "--capability",
        "wasi:nn",
    ];
    let made = json(&host, &[&["deployment", "create", "team"], &bounds[..]].concat());
    assert_eq!([&made["instances"], &made["queue"], &made["loaded_mib"]], [4, 9, 64]);
    assert_eq!(made["capabilities"], serde_json::json!(["wasi:nn"]));
    assert_eq!(modelhost(&host, &["deployment", "create", "team"]).status.code(), Some(3));
    let updated = json(&host, &["deployment", "update", "team", "--queue", "3", "--capability", ""]);
    assert_eq!([&updated["queue"], &updated["instances"]], [3, 4]);
    assert_eq!(updated["capabilities"], serde_json::json!([]));
    let package = "examples/credit-risk/logistic";
    assert_eq!(ok(&host, &["register", "bank/credit", package, "--promote", "--deployment", "team"]), "1");
    assert_eq!(ok(&host, &["pin", "bank/credit"]), "v1 100%; pinned");
    assert_eq!(ok(&host, &["preload", "bank/credit", "1"]), "loaded");
    assert!(ok(&host, &["deployment", "list"]).contains("1/1"), "{}", ok(&host, &["deployment", "list"]));
    ok(&host, &["predict", "bank/credit", "examples/credit-risk/held-out.json"]);
    let usage = ok(&host, &["usage"]);
    assert!(usage.contains("bank/credit  v1       team"), "{usage}");
    let top = json(&host, &["top", "--once", "--interval", "0.1"]);
    assert_eq!(top["versions"][0]["model"], "bank/credit");
    assert_eq!(modelhost(&host, &["top", "--once", "--interval", "0"]).status.code(), Some(2));
    let plan = ok(&host, &["deployment", "recreate", "team"]);
    assert!(plan.contains("1 versions would be unloaded") && plan.contains("--yes"), "{plan}");
    let done = json(&host, &["deployment", "recreate", "team", "--yes"]);
    assert_eq!(done["done"], true);
    assert_eq!(json(&host, &["deployment", "show", "team"])["loaded"], 1, "a pinned version is loaded again");
    assert_eq!(modelhost(&host, &["deployment", "delete", "team"]).status.code(), Some(3));
    assert!(ok(&host, &["place", "bank/credit", "default"]).contains("default"));
    assert_eq!(ok(&host, &["deployment", "delete", "team"]), "deleted team");
    assert_eq!(modelhost(&host, &["deployment", "show", "team"]).status.code(), Some(2));
}
