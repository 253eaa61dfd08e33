//! Deployments: their bounds, their isolation from each other, and their reports.

use std::time::{Duration, Instant};

use modelhost_tests::{Client, Host, Package, x};
use serde_json::{Value, json};

fn admin(client: &Client, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let answer = client.admin(method, path, body).unwrap();
    (answer.status, answer.body)
}

fn create(client: &Client, name: &str, bounds: Value) -> Value {
    let (status, row) = admin(client, "PUT", &format!("/deployments/{name}"), &bounds);
    assert_eq!(status, 200, "{row}");
    row
}

pub(crate) fn show(client: &Client, name: &str) -> Value {
    admin(client, "GET", &format!("/deployments/{name}"), &Value::Null).1
}

fn place(client: &Client, model: &str, deployment: &str) {
    let (status, body) =
        admin(client, "PUT", &format!("/models/{model}/deployment"), &json!({"deployment": deployment}));
    assert_eq!(status, 200, "{body}");
}

fn register_in(client: &Client, model: &str, package: &Package, deployment: &str) {
    client.register(model, package, true);
    place(client, model, deployment);
}

fn infer(client: &Client, model: &str) -> u16 {
    client.post(&format!("/v2/models/{model}/infer"), &x(&[1.0])).status
}

/// Waits until `there` returns true.
pub(crate) fn until(what: &str, there: impl Fn() -> bool) {
    let begun = Instant::now();
    while !there() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn they_are_made_changed_recreated_and_deleted_and_survive_a_restart() {
    let host = Host::start_with(|config| config.instances = 100);
    let client = &host.client;
    let row = create(client, "team-a", json!({"instances": 3, "queue": 5, "memory_mib": 64, "threads": 1}));
    assert_eq!([&row["instances"], &row["queue"], &row["threads"], &row["versions"]], [3, 5, 1, 0]);
    let (status, again) = admin(client, "PUT", "/deployments/team-a", &json!({}));
    assert_eq!((status, &again["error"]), (409, &json!("deployment team-a exists already")));
    for (name, body, text) in [
        ("a%20b", json!({}), "is not 1 to 64 letters"),
        ("b", json!({"instances": 101}), "instances = 101 is not between 1 and 100"),
        ("b", json!({"isolation": "none"}), "neither \"request\" nor \"instance\""),
        ("b", json!({"colour": "red"}), "unknown field `colour`"),
    ] {
        let (status, answer) = admin(client, "PUT", &format!("/deployments/{name}"), &body);
        assert!(status == 400 && answer["error"].as_str().unwrap().contains(text), "{body}: {answer}");
    }

    register_in(client, "demo/a", &Package::fault("echo", ""), "team-a");
    client.register("demo/b", &Package::fault("echo", ""), true);
    assert_eq!([infer(client, "demo/a"), infer(client, "demo/b")], [200, 200]);
    assert_eq!(show(client, "team-a")["loaded"], 1);
    assert_eq!(show(client, "default")["versions"], 1, "one prefix, two deployments");
    let (status, held) = admin(client, "DELETE", "/deployments/team-a", &Value::Null);
    assert_eq!(status, 409, "{held}");

    let (_, changed) = admin(client, "PATCH", "/deployments/team-a", &json!({"queue": 7, "threads": 0}));
    assert_eq!([&changed["queue"], &changed["instances"], &changed["loaded"]], [7, 3, 1]);
    assert_eq!(infer(client, "demo/a"), 200);

    let path = "/deployments/team-a/recreate";
    let (_, plan) = admin(client, "POST", path, &json!({"dry_run": true}));
    assert_eq!([&plan["done"], &plan["unloaded"][0]["model"]], [&json!(false), &json!("demo/a")]);
    assert_eq!(plan["unloaded"][0]["percent"], 100.0);
    assert_eq!(show(client, "team-a")["loaded"], 1, "nothing was changed");
    let (_, done) = admin(client, "POST", path, &json!({}));
    assert_eq!(done["done"], true);
    assert_eq!([&show(client, "team-a")["loaded"], &show(client, "team-a")["admitted"]], [0, 0]);
    assert_eq!([infer(client, "demo/a"), infer(client, "demo/b")], [200, 200]);
    let usage = |model: &str| {
        let (_, rows) = admin(client, "GET", "/usage", &Value::Null);
        rows.as_array().unwrap().iter().find(|row| row["model"] == model).unwrap().clone()
    };
    assert_eq!(usage("demo/a")["answered"], 3, "its counters are kept");
    place(client, "demo/a", "default");
    assert_eq!(
        [&show(client, "team-a")["loaded"], &show(client, "team-a")["versions"]],
        [0, 0],
        "the old deployment keeps nothing"
    );
    assert_eq!(infer(client, "demo/a"), 200);
    assert_eq!(
        [&usage("demo/a")["answered"], &usage("demo/a")["deployment"]],
        [&json!(4), &json!("default")]
    );
    place(client, "demo/a", "team-a");

    let host = host.restart(|_| {});
    let client = &host.client;
    let row = show(client, "team-a");
    assert_eq!([&row["queue"], &row["instances"], &row["versions"]], [7, 3, 1]);
    assert_eq!(infer(client, "demo/a"), 200);
    place(client, "demo/a", "default");
    assert_eq!(infer(client, "demo/a"), 200);
    assert_eq!(admin(client, "DELETE", "/deployments/team-a", &Value::Null).0, 200);
    assert_eq!(admin(client, "GET", "/deployments/team-a", &Value::Null).0, 404);
    assert_eq!(admin(client, "DELETE", "/deployments/default", &Value::Null).0, 409);
}

#[test]
fn the_configuration_file_names_them_too() {
    let settings = "instances = 50\n\
                    [deployments.gpu]\ninstances = 2\nisolation = 'instance'\ncapabilities = ['wasi:nn']";
    let host = Host::start_with(|config| {
        let data_dir = config.data_dir.clone();
        let file = data_dir.with_extension("toml");
        std::fs::write(&file, settings).unwrap();
        config.deployments = modelhost_server::Config::read(&file).unwrap().deployments;
        std::fs::remove_file(file).unwrap();
    });
    let row = show(&host.client, "gpu");
    assert_eq!(
        [&row["instances"], &row["isolation"], &row["capabilities"]],
        [&json!(2), &json!("instance"), &json!(["wasi:nn"])]
    );
    // The deployment's isolation applies only to manifests that set none.
    let register = |manifest: &str| {
        let package = Package::fault("count", manifest);
        let answer = host.client.try_register_in("demo/m", &package, "gpu").unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body["isolation"].as_str().unwrap().to_owned()
    };
    assert_eq!(register(""), "instance");
    assert_eq!(register("isolation = 'request'"), "request");
    let refused = host.client.try_register_in("demo/m", &Package::fault("echo", ""), "nowhere").unwrap();
    assert_eq!((refused.status, refused.error()), (404, "deployment nowhere does not exist"));
}

#[test]
fn a_capability_must_be_allowed_where_the_version_runs() {
    let host = Host::start();
    create(&host.client, "open", json!({"capabilities": ["wasi:nn"]}));
    let package = Package::fault("echo", "capabilities = ['wasi:nn']");
    let refused = host.client.try_register("demo/m", &package, false).unwrap();
    assert_eq!(refused.status, 400);
    assert!(refused.error().contains("deployment default does not allow \"wasi:nn\""), "{}", refused.error());
    assert_eq!(host.client.try_register_in("demo/m", &package, "open").unwrap().status, 200);
    let (status, moved) =
        admin(&host.client, "PUT", "/models/demo/m/deployment", &json!({"deployment": "default"}));
    assert_eq!(status, 400, "{moved}");
}

/// One deployment is full and busy. The other one answers as usual.
#[test]
fn a_full_deployment_does_not_fill_another() {
    let host = Host::start();
    let client = &host.client;
    create(client, "noisy", json!({"instances": 2, "queue": 3, "threads": 1}));
    create(client, "quiet", json!({}));
    let spin = Package::fault("spin", "[limits]\ndeadline_ms = 10000");
    register_in(client, "demo/spin", &spin, "noisy");
    register_in(client, "demo/quiet", &Package::fault("echo", ""), "quiet");
    assert_eq!(infer(client, "demo/quiet"), 200);
    std::thread::scope(|scope| {
        let flood: Vec<_> = (0..12).map(|_| scope.spawn(|| infer(client, "demo/spin"))).collect();
        until("two run and three wait", || {
            let row = show(client, "noisy");
            row["running"] == 2 && row["waiting"] == 3
        });
        for _ in 0..50 {
            assert_eq!(infer(client, "demo/quiet"), 200);
        }
        let row = show(client, "noisy");
        assert_eq!(row["refused"], 7, "{row}");
        let text = client.get("/metrics").body.as_str().unwrap().to_owned();
        for line in [
            "modelhost_deployment_running{deployment=\"noisy\"} 2",
            "modelhost_deployment_waiting{deployment=\"noisy\"} 3",
            "modelhost_deployment_refused_total{deployment=\"noisy\"} 7",
            "modelhost_deployment_instances_limit{deployment=\"noisy\"} 2",
        ] {
            assert!(text.contains(line), "{line}");
        }
        // A torn-down deployment refuses waiting requests. Running requests end by themselves.
        let (_, done) = admin(client, "POST", "/deployments/noisy/recreate", &json!({}));
        assert_eq!([&done["refused"], &done["finishing"]], [3, 2]);
        let statuses: Vec<_> = flood.into_iter().map(|request| request.join().unwrap()).collect();
        // The guest's deadline and the request's are microseconds apart, so either may pass first.
        let ended = statuses.iter().filter(|status| [502, 504].contains(*status)).count();
        let refused = statuses.iter().filter(|status| **status == 503).count();
        assert_eq!([refused, ended], [10, 2], "{statuses:?}");
    });
}

#[test]
fn instances_share_the_memory_of_their_deployment() {
    let host = Host::start();
    create(&host.client, "small", json!({"memory_mib": 1}));
    register_in(&host.client, "demo/m", &Package::fault("echo", ""), "small");
    let answer = host.client.post("/v2/models/demo/m/infer", &x(&[1.0]));
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.error().contains("of the 1 MiB that they may have together"), "{}", answer.error());
    admin(&host.client, "PATCH", "/deployments/small", &json!({"memory_mib": 64}));
    assert_eq!(infer(&host.client, "demo/m"), 200);
    assert_eq!(show(&host.client, "small")["memory_bytes"], 0, "the memory is given back");
}

#[test]
fn what_does_not_fit_makes_room_or_is_refused() {
    let host = Host::start();
    create(&host.client, "small", json!({"loaded_mib": 1}));
    let models: Vec<_> = (0..12).map(|number| format!("demo/m{number}")).collect();
    for model in &models {
        register_in(&host.client, model, &Package::fault("echo", ""), "small");
        assert_eq!(infer(&host.client, model), 200);
    }
    let row = show(&host.client, "small");
    assert!(
        row["evictions"].as_u64().unwrap() > 0 && row["loaded_bytes"].as_u64().unwrap() <= 1 << 20,
        "{row}"
    );
    // Pinned versions stay in memory, so at some point another one has no room.
    let mut refused = None;
    for model in &models {
        let answer = host.client.operate(model, "pin", &json!({"pinned": true}));
        if answer.status != 200 {
            refused = Some(answer);
            break;
        }
    }
    let refused = refused.expect("not all versions fit");
    assert_eq!(refused.status, 507);
    assert!(refused.error().contains("serve or are pinned"), "{}", refused.error());
}

#[test]
fn warm_instances_come_with_demand_and_go_without() {
    let host = Host::start_with(|config| config.idle_instance_ms = 50);
    host.client.register("demo/m", &Package::fault("count", "isolation = 'instance'"), true);
    assert_eq!(infer(&host.client, "demo/m"), 200);
    let idle = || show(&host.client, "default")["idle_instances"].as_u64().unwrap();
    until("no warm instance is left", || idle() == 0);
    assert_eq!(show(&host.client, "default")["memory_bytes"], 0);
    let answer = host.client.post("/v2/models/demo/m/infer", &x(&[1.0]));
    assert_eq!(answer.body["outputs"][0]["data"][0], 1.0, "a new instance counts from the start");
}

#[test]
fn usage_tells_what_a_version_took() {
    let host = Host::start();
    host.client.register("demo/m", &Package::fault("echo", ""), true);
    host.client.register("demo/idle", &Package::fault("echo", ""), false);
    for _ in 0..20 {
        assert_eq!(infer(&host.client, "demo/m"), 200);
    }
    let (_, rows) = admin(&host.client, "GET", "/usage", &Value::Null);
    assert_eq!(rows.as_array().unwrap().len(), 1, "only versions that were used: {rows}");
    let row = &rows[0];
    assert_eq!(
        [&row["model"], &row["version"], &row["deployment"]],
        [&json!("demo/m"), &json!(1), &json!("default")]
    );
    assert_eq!([&row["answered"], &row["failed"], &row["rows"], &row["loads"]], [20, 0, 20, 1]);
    let cpu = row["cpu_us_per_prediction"].as_f64().unwrap();
    assert!(cpu > 1.0 && cpu < 1e6, "{cpu} us");
    assert!(row["peak_instance_bytes"].as_u64().unwrap() > 1 << 20, "{row}");
    assert!(row["loaded_bytes"].as_u64().unwrap() > 1 << 16, "{row}");
    let answers: u64 =
        row["latency"].as_array().unwrap().iter().map(|class| class[1].as_u64().unwrap()).sum();
    assert_eq!(answers, 20);
    let text = host.client.get("/metrics").body.as_str().unwrap().to_owned();
    let cpu = "modelhost_version_cpu_seconds_total{model=\"demo/m\",version=\"1\",deployment=\"default\"} ";
    let seconds: f64 = text.lines().find_map(|line| line.strip_prefix(cpu)).unwrap().parse().unwrap();
    assert!(seconds > 0.0 && seconds < 20.0, "{seconds}");
}

/// The host does not run machine code that was changed on disk. It compiles the component again.
#[test]
fn changed_machine_code_is_not_run() {
    let host = Host::start();
    host.client.register("demo/m", &Package::fault("echo", ""), true);
    let host = host.restart(|data| {
        let texts = std::fs::read_dir(data.join("compiled")).unwrap().flatten().map(|entry| entry.path());
        let texts: Vec<_> =
            texts.filter(|path| path.extension().is_some_and(|extension| extension == "text")).collect();
        assert!(!texts.is_empty());
        for path in texts {
            let mut code = std::fs::read(&path).unwrap();
            code.fill(0xcc);
            std::fs::write(path, code).unwrap();
        }
    });
    assert_eq!(infer(&host.client, "demo/m"), 200);
}
