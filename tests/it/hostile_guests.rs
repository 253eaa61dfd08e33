//! Authors who mean harm: what a component says, does, or takes to compile costs its own version only.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use modelhost_tests::{Client, Host, Package, Process, x};
use serde_json::{Value, json};

const INFER: &str = "/v2/models/demo/m/infer";

fn refused(client: &Client, package: &Package, text: &str) {
    let answer = client.try_register("demo/bad", package, true).unwrap();
    assert!((400..500).contains(&answer.status), "{answer:?}");
    assert!(answer.error().contains(text), "{}", answer.error());
    assert!(answer.error().len() < 10_000, "{} bytes", answer.error().len());
    assert!(!answer.error().contains('\n'), "{}", answer.error());
}

#[test]
fn a_signature_beyond_the_bounds_is_refused_by_name() {
    let host = Host::start();
    let faults = || Package::fault("echo", "");
    for (package, text) in [
        (
            faults().with_parameter("rank", "10000"),
            "load: input \"x\": its shape has 10000 dimensions, more than 32",
        ),
        (faults().with_parameter("inputs", "80000"), "load: the signature has 80000 inputs, more than 1024"),
        (
            faults().with_parameter("columns", "20000"),
            "load: input \"x\": it has 20000 columns, more than 16384",
        ),
        (
            faults().with_parameter("name", "x\\nERROR forged"),
            "load: input: name \"x\\nERROR forged\" holds '\\n', which cannot be printed",
        ),
    ] {
        refused(&host.client, &package, text);
    }
    refused(&host.client, &faults().with_parameter("name", &"x".repeat(2000)), "a name of 2000 bytes");
}

#[test]
fn a_huge_shape_has_a_short_page_and_document() {
    let host = Host::start();
    let package = Package::fault("echo", "").with_parameter("rank", "8").with_parameter("dim", "64");
    host.client.register("demo/m", &package, true);
    for path in ["/models/demo/m/", "/models/demo/m/openapi.json", "/v2/models/demo/m"] {
        let answer = host.client.get(path);
        assert_eq!(answer.status, 200, "{path}");
        assert!(answer.body.to_string().len() < 256 << 10, "{path}: {} bytes", answer.body.to_string().len());
    }
}

#[test]
fn an_answer_beyond_the_bounds_is_the_plugins_fault() {
    let host = Host::start();
    for (fault, text) in [
        ("empty-rows", "shape [4398046511104, 0] has no elements, but announces"),
        ("huge-rank", "its shape has 10000 dimensions, more than 32"),
        ("many-outputs", "80000 came, more than 1024"),
        ("long-name", "a name of 1048576 bytes"),
        ("fail-in-two-lines", "all is well\\n2026-01-01T00:00:00Z ERROR forged"),
        ("panic-in-two-lines", "all is well\\n2026-01-01T00:00:00Z ERROR forged"),
    ] {
        for isolation in ["request", "instance"] {
            let package = Package::fault(fault, &format!("isolation = '{isolation}'"));
            host.client.register("demo/m", &package, true);
            let answer = host.client.post(INFER, &x(&[1.0]));
            assert_eq!((answer.status, &answer.body["code"]), (502, &"plugin_fault".into()), "{answer:?}");
            assert!(answer.error().contains(text), "{fault}: {}", answer.error());
            assert!(answer.error().len() < 10_000 && !answer.error().contains('\n'), "{fault}");
        }
    }
}

/// The guest says what the request spells: the host answers all of it, or says that it is the plugin's fault.
#[test]
fn whatever_a_guest_says_is_answered() {
    let host = Host::start();
    let package = Package::fault("say", "").with_parameter("datatype", "UINT8");
    host.client.register("demo/m", &package, true);
    let say = |bytes: &[u8]| {
        let input = json!({"name": "x", "datatype": "UINT8", "shape": [bytes.len()], "data": bytes});
        host.client.post(INFER, &json!({"inputs": [input]}))
    };
    let y = [1, 1, b'y', 0, 1, 2, 2, 8, 9];
    assert_eq!(say(&y).body["outputs"][0]["data"], json!([8, 9]));
    assert_eq!(say(&[1, 1, b'y', 0, 1, 0, 0]).body["outputs"][0]["data"], json!([]));
    let mut state = 1_u64;
    for at in 0..300 {
        // Mostly what a good answer is, with some bytes changed (Knuth's MMIX generator).
        let mut bytes = y.repeat(1 + at % 3);
        for _ in 0..at % 4 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let place = usize::try_from(state >> 33).unwrap() % bytes.len();
            bytes[place] = (state >> 25).to_le_bytes()[0];
        }
        let answer = say(&bytes);
        assert!([200, 502].contains(&answer.status), "{bytes:?}: {answer:?}");
    }
}

#[test]
fn a_guest_writes_no_line_of_the_log() {
    let data = tempfile::tempdir().unwrap();
    let path = data.path().join("log");
    let log = fs::File::create(&path).unwrap();
    let host = Process::start_with(data.path(), &["--log", "info"], log.into());
    for fault in ["log-two-lines", "panic-in-two-lines"] {
        host.client.register("demo/m", &Package::fault(fault, ""), true);
        host.client.post(INFER, &x(&[1.0]));
    }
    let log = fs::read_to_string(path).unwrap();
    assert!(log.contains("all is well\\n2026-01-01T00:00:00Z ERROR forged"), "{log}");
    assert!(!log.lines().any(|line| line.starts_with("2026-01-01T00:00:00Z ERROR forged")), "{log}");
}

/// A guest that sleeps for a day goes on at once, by its own clock too; equal requests get equal bytes.
#[test]
fn the_clock_stands_still_everywhere() {
    let host = Host::start();
    for isolation in ["request", "instance"] {
        let manifest = format!("isolation = '{isolation}'");
        host.client.register("demo/sleepy", &Package::fault("load-sleeps", &manifest), true);
        host.client.register("demo/m", &Package::fault("sleep", &manifest), true);
        let answers: Vec<_> = (0..20).map(|_| host.client.post(INFER, &x(&[1.0])).body).collect();
        assert!(answers.iter().all(|answer| answer["outputs"][0]["data"] == json!([0.0])), "{answers:?}");
    }
}

#[test]
fn a_load_that_never_ends_holds_only_its_own() {
    let host = Host::start_with(|config| config.limits.load_deadline_ms = 600_000);
    let endless: Vec<_> =
        (0..3).map(|_| start_registration(&host.client, &Package::fault("load-spins", ""))).collect();
    for at in 0..3 {
        host.client.register(&format!("demo/m{at}"), &Package::fault("echo", ""), true);
        assert_eq!(host.client.post(&format!("/v2/models/demo/m{at}/infer"), &x(&[1.0])).status, 200);
    }
    for mut stream in endless {
        assert!(is_unanswered(&mut stream), "it ended");
    }
}

/// A refusal of memory that the guest survived is not the reason of a later trap.
#[test]
fn a_later_trap_has_its_own_reason() {
    let host = Host::start();
    let manifest = "isolation = 'instance'\nlimits = { memory_mib = 64 }";
    host.client.register("demo/m", &Package::fault("grow-then-panic", manifest), true);
    assert_eq!(host.client.post(INFER, &x(&[1.0])).status, 200);
    let answer = host.client.post(INFER, &x(&[1.0]));
    assert_eq!(answer.status, 502);
    assert!(answer.error().contains("it panicked or aborted"), "{}", answer.error());
}

fn component(wat: &str) -> Package {
    let component = wat::parse_str(wat).unwrap();
    Package { manifest: "component = 'c.wasm'".into(), files: vec![("c.wasm".into(), component)] }
}

#[test]
fn what_one_instance_may_have_is_bounded_when_it_is_registered() {
    let host = Host::start();
    let parts = |part: &str, count: usize| (0..count).map(|_| part).collect::<String>();
    let many_instances =
        format!("(component (core module $m) {})", parts("(core instance (instantiate $m))", 17));
    refused(&host.client, &component(&many_instances), "17 core module instances");
    let memories = parts("(core instance (instantiate $m))", 2);
    let many_memories = format!("(component (core module $m (memory 1)) {memories})");
    refused(&host.client, &component(&many_memories), "2 Wasm linear memories");
    let tables = parts("(core instance (instantiate $m))", 5);
    let many_tables = format!("(component (core module $m (table 1 funcref)) {tables})");
    refused(&host.client, &component(&many_tables), "5 tables");
    let nested = parts("(instance (instantiate $c))", 17);
    let nested =
        format!("(component (component $c (core module $m) (core instance (instantiate $m))) {nested})");
    refused(&host.client, &component(&nested), "17 core module instances");
}

/// A component of 48 KiB a function that takes a compiler very long for its size: a thousand variables live around a
/// loop, and many branches between them.
fn bomb(functions: usize) -> Package {
    const LOCALS: usize = 1000;
    let number = |mut number: usize| {
        let mut bytes = Vec::new();
        while number > 127 {
            bytes.push(number.to_le_bytes()[0] | 128);
            number >>= 7;
        }
        bytes.push(number.to_le_bytes()[0]);
        bytes
    };
    let sized = |content: Vec<u8>| [number(content.len()), content].concat();
    let section = |id: u8, content: Vec<u8>| [vec![id], sized(content)].concat();
    let step = |at: usize| {
        let [a, b, c] = [7919, 104_729, 1_299_709].map(|prime| number(at * prime % LOCALS));
        // if a is 0: b = a + c
        [&b"\x20"[..], &a, b"\x50\x04\x40\x20", &a, b"\x20", &c, b"\x7c\x21", &b, b"\x0b"].concat()
    };
    let steps = (0..3000).flat_map(step).collect();
    let function =
        [number(1), number(LOCALS), b"\x7e\x03\x40".to_vec(), steps, b"\x0c\0\x0b\x0b".to_vec()].concat();
    let code = [number(functions), sized(function).repeat(functions)].concat();
    let module = [
        b"\0asm\x01\0\0\0".to_vec(),
        section(1, b"\x01\x60\0\0".to_vec()),
        section(3, [number(functions), vec![0; functions]].concat()),
        section(10, code),
    ];
    let component = [b"\0asm\x0d\0\x01\0".to_vec(), section(1, module.concat())].concat();
    Package { manifest: "component = 'c.wasm'".into(), files: vec![("c.wasm".into(), component)] }
}

#[test]
fn compiling_is_bounded_in_time() {
    let host = Host::start_with(|config| config.limits.compile_deadline_ms = 1000);
    refused(&host.client, &bomb(100), "compile: it took more than the 1 s of processor time allowed");
}

#[test]
fn compiling_is_bounded_in_memory() {
    let host = Host::start_with(|config| config.limits.compile_mib = 24);
    refused(&host.client, &bomb(10), "compile: its process ended (");
}

/// Compilers of this host: one waits for a job, the others compile.
fn compilers(host: &Process) -> usize {
    let is_child = |entry: &fs::DirEntry| {
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let (state, parent) = (fields.next()?, fields.next()?);
        (state != "Z" && parent == host.child.id().to_string()).then_some(())
    };
    fs::read_dir("/proc").unwrap().flatten().filter(|entry| is_child(entry).is_some()).count()
}

fn is_unanswered(stream: &mut TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    stream.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

fn wait_for(what: &str, mut is: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is() {
        assert!(start.elapsed() < Duration::from_secs(120), "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Bombs in every lane: others register, callers are answered, and who leaves takes its work along.
#[test]
fn a_bomb_costs_its_author_only() {
    let data = tempfile::tempdir().unwrap();
    let host = Process::start(data.path());
    host.client.register("demo/m", &Package::fault("echo", ""), true);
    let mut bombs: Vec<_> = (0..3).map(|_| start_registration(&host.client, &bomb(400))).collect();
    wait_for("a bomb is compiled", || compilers(&host) > 1);
    assert_eq!(host.client.post(INFER, &x(&[1.0])).status, 200);
    host.client.register("demo/m", &Package::fault("count", ""), true);
    host.client.register("demo/other", &Package::folder("examples/credit-risk/xgboost"), true);
    assert!(bombs.iter_mut().all(is_unanswered), "the bombs are compiled still");
    drop(bombs);
    wait_for("nothing is compiled when nobody waits for it", || compilers(&host) <= 1);
    host.client.register("demo/m", &Package::fault("echo", ""), true);
}

/// The request of a registration, sent; its answer is not waited for. Dropping the stream leaves.
fn start_registration(client: &Client, package: &Package) -> TcpStream {
    let mut files = serde_json::Map::new();
    for (name, content) in &package.files {
        let digest = modelhost_tests::digest(content);
        let url = format!("{}/v1/models/demo/bomb/blobs/{digest}", client.admin);
        let kind = [("content-type", "application/octet-stream")];
        assert_eq!(client.send("PUT", &url, content, &kind).unwrap().status, 201);
        files.insert(name.clone(), digest.into());
    }
    let body = json!({"manifest": package.manifest, "files": Value::Object(files)}).to_string();
    let mut stream = TcpStream::connect(client.admin.trim_start_matches("http://")).unwrap();
    let head = "POST /v1/models/demo/bomb/versions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    let head = format!("{head}Content-Length: {}\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
    stream
}
