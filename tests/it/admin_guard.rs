//! Attacks on the admin port and the data folder: by pages of other sites, other teams, slow senders and local users.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use modelhost_tests::{Client, Host, Package, Process, x};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const MODEL: &str = "demo/m";
const JSON: (&str, &str) = ("content-type", "application/json");

fn digest(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn primary(client: &Client) -> Value {
    client.admin("GET", "/models/demo/m", &Value::Null).unwrap().body["policy"]["primary"].clone()
}

/// Sends a request as a browser or `curl` would. Returns the status and the text of the error.
fn send(client: &Client, method: &str, url: &str, body: &[u8], headers: &[(&str, &str)]) -> (u16, String) {
    let answer = client.send(method, url, body, headers).unwrap();
    (answer.status, answer.error().to_owned())
}

#[test]
fn pages_of_other_sites_change_and_predict_nothing() {
    let host = Host::start();
    for _ in 0..2 {
        host.client.register(MODEL, &Package::fault("echo", ""), true);
    }
    let admin = format!("{}/v1", host.client.admin);
    let own = host.client.admin.as_str();
    let blob = format!("{admin}/models/demo/m/blobs/{}", digest(b"x"));
    let (promote, rollback) =
        (format!("{admin}/models/demo/m/promote"), format!("{admin}/models/demo/m/rollback"));
    let recreate = format!("{admin}/deployments/default/recreate");
    let infer = format!("{}/v2/models/demo/m/infer", host.client.url);
    let rows = x(&[1.0]).to_string();
    let (to_1, octets) = (br#"{"version": 1}"#.as_slice(), ("content-type", "application/octet-stream"));
    for page in [
        ("origin", "http://evil.example"),
        ("origin", "http://127.0.0.1:1"),
        ("origin", "null"),
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
        ("host", "evil.example"),
    ] {
        for (method, url, body, kind) in [
            ("POST", &promote, to_1, JSON),
            ("POST", &rollback, b"{}", JSON),
            ("POST", &rollback, b"", JSON),
            ("POST", &recreate, b"{}", JSON),
            ("PUT", &blob, b"x", octets),
            ("DELETE", &format!("{admin}/deployments/default"), b"", JSON),
        ] {
            let (status, error) = send(&host.client, method, url, body, &[page, kind]);
            assert_eq!(status, 403, "{method} {url} {page:?}: {error}");
        }
        if page.0 != "host" {
            let (status, error) = send(&host.client, "POST", &infer, rows.as_bytes(), &[page]);
            assert_eq!(status, 403, "{page:?}: {error}");
        }
    }
    // DNS rebinding: a name that points here since the page was loaded.
    let rebound = [("host", "evil.example"), ("origin", "http://evil.example")];
    assert_eq!(send(&host.client, "POST", &infer, rows.as_bytes(), &rebound).0, 403);
    assert_eq!(
        send(&host.client, "GET", &format!("{admin}/models"), b"", &[("host", "evil.example")]).0,
        403
    );
    // A form or a simple `fetch` can send these without a preflight request.
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=b", ""] {
        let headers = [("content-type", kind)];
        assert_eq!(send(&host.client, "POST", &promote, to_1, &headers).0, 415, "{kind:?}");
        assert_eq!(send(&host.client, "POST", &rollback, b"{}", &headers).0, 415, "{kind:?}");
    }
    assert_eq!(send(&host.client, "PUT", &blob, b"x", &[("content-type", "text/plain")]).0, 415);
    assert_eq!(send(&host.client, "OPTIONS", &promote, b"", &[("origin", "http://evil.example")]).0, 403);
    assert_eq!(primary(&host.client), 2);

    // The host's own pages and programs are let in.
    let ours = [JSON, ("origin", own), ("sec-fetch-site", "same-origin")];
    assert_eq!(send(&host.client, "POST", &promote, to_1, &ours).0, 200);
    assert_eq!(send(&host.client, "POST", &rollback, b"", &[]).0, 200);
    assert_eq!(send(&host.client, "PUT", &blob, b"x", &[octets]).0, 201);
    let stranger = [("host", "models.example"), ("content-type", "application/x-www-form-urlencoded")];
    assert_eq!(send(&host.client, "POST", &infer, rows.as_bytes(), &stranger).0, 200);
    let answer = host.client.send("GET", &format!("{admin}/models"), b"", &[]).unwrap();
    assert_eq!(answer.headers["x-content-type-options"], "nosniff");
    assert!(answer.headers["content-security-policy"].contains("default-src 'none'"));
}

#[test]
fn configured_names_and_origins_are_let_in() {
    let host = Host::start_with(|config| {
        config.allowed_hosts = vec!["models.example".to_owned()];
        config.allowed_origins = vec!["https://console.example".to_owned()];
    });
    host.client.register(MODEL, &Package::fault("echo", ""), true);
    let infer = format!("{}/v2/models/demo/m/infer", host.client.url);
    let rows = x(&[1.0]).to_string();
    for (headers, status) in [
        (vec![("host", "models.example:8080")], 200),
        (vec![("host", "models.example"), ("origin", "http://models.example")], 200),
        (vec![("origin", "https://console.example"), ("sec-fetch-site", "cross-site")], 200),
        (vec![("host", "other.example")], 403),
        (vec![("origin", "https://other.example")], 403),
    ] {
        let (came, error) = send(&host.client, "POST", &infer, rows.as_bytes(), &headers);
        assert_eq!(came, status, "{headers:?}: {error}");
    }
}

#[test]
fn pages_run_no_script_of_their_own_and_cannot_be_framed() {
    let host = Host::start();
    host.client.register("demo/credit", &Package::folder("examples/credit-risk/logistic"), true);
    for path in ["/", "/models/demo/credit/", "/models/demo/credit/docs"] {
        let url = format!("{}{path}", host.client.url);
        let answer = host.client.send("GET", &url, b"", &[("accept", "text/html")]).unwrap();
        let policy = &answer.headers["content-security-policy"];
        assert!(
            policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"),
            "{policy}"
        );
        let scripts = policy.split(';').find(|part| part.trim().starts_with("script-src"));
        assert!(!scripts.is_some_and(|scripts| scripts.contains("unsafe-inline")), "{policy}");
        assert_eq!(answer.headers["x-frame-options"], "DENY");
        assert_eq!(answer.headers["x-content-type-options"], "nosniff");
        assert_eq!(answer.headers["referrer-policy"], "same-origin");
        let html = answer.body.as_str().unwrap();
        assert!(!html.contains("<script>"), "{path} has an inline script");
    }
    assert_eq!(host.client.get("/assets/docs.js").status, 200);
}

#[test]
fn a_digest_gives_another_prefix_nothing() {
    let host = Host::start();
    let package = Package::folder("examples/credit-risk/logistic");
    host.client.register("bank/credit", &package, true);
    let digest = digest(&package.files[0].1);
    let ask = |model: &str| {
        let url = format!("/models/{model}/blobs/{digest}");
        host.client.admin("GET", &url, &Value::Null).unwrap().status
    };
    assert_eq!([ask("bank/credit"), ask("bank/other"), ask("shop/credit")], [200, 200, 404]);
    let body = json!({"manifest": package.manifest, "files": {"model.json": digest}});
    let register = |client: &Client, model: &str| {
        client.admin("POST", &format!("/models/{model}/versions"), &body).unwrap()
    };
    let stolen = register(&host.client, "shop/credit");
    assert_eq!(stolen.status, 400, "{stolen:?}");
    assert!(stolen.error().contains("was not uploaded to prefix \"shop\""), "{stolen:?}");
    assert_eq!(register(&host.client, "bank/other").status, 200, "the blob belongs to its prefix");
    let host = host.restart(|_| {});
    assert_eq!(
        register(&host.client, "bank/third").status,
        200,
        "the blob belongs to its prefix after a restart too"
    );
    assert_eq!(register(&host.client, "shop/credit").status, 400);
    host.client.register("shop/credit", &package, true);
}

#[test]
fn slow_and_endless_senders_are_let_go() {
    let host = Host::start_with(|config| config.request_timeout_ms = 300);
    let address = host.client.admin.trim_start_matches("http://").to_owned();
    let open = |head: &str| {
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let head = format!(
            "{head}\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{{"
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream
    };
    let upload = format!("PUT /v1/models/demo/m/blobs/{} HTTP/1.1", digest(b"x"));
    let upload = |_| {
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        write!(stream, "{upload}\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nx").unwrap();
        stream
    };
    let started = Instant::now();
    let json: Vec<_> = (0..20).map(|_| open("POST /v1/models/demo/m/promote HTTP/1.1")).collect();
    let uploads: Vec<_> = (0..20).map(upload).collect();
    for mut stream in json.into_iter().chain(uploads) {
        let mut answer = String::new();
        drop(stream.read_to_string(&mut answer));
        assert!(answer.starts_with("HTTP/1.1 504"), "{answer}");
        assert!(answer.contains("did not arrive in time"), "{answer}");
    }
    assert!(started.elapsed() < Duration::from_secs(25), "the host waited for slow senders");
    assert_eq!(fs::read_dir(host.data().join("blobs/partial")).unwrap().count(), 0);
    host.client.register(MODEL, &Package::fault("echo", ""), true);
}

#[test]
fn nobody_but_the_owner_reads_the_data_folder() {
    let outside = tempfile::tempdir().unwrap();
    let data = outside.path().join("data");
    let process = Process::start(&data);
    process.client.register(MODEL, &Package::folder("examples/credit-risk/logistic"), true);
    process.kill();
    fn look(path: &Path, open: &mut Vec<String>) {
        let meta = path.symlink_metadata().unwrap();
        if meta.permissions().mode() & 0o077 != 0 {
            open.push(format!("{} {:o}", path.display(), meta.permissions().mode()));
        }
        if meta.is_dir() {
            fs::read_dir(path).unwrap().for_each(|entry| look(&entry.unwrap().path(), open));
        }
    }
    let mut open = Vec::new();
    look(&data, &mut open);
    assert_eq!(open, Vec::<String>::new());
}

#[test]
fn a_lowered_limit_stops_its_versions_and_not_the_host() {
    let data = tempfile::tempdir().unwrap();
    let process = Process::start(data.path());
    let mut large = Package::fault("echo", "artifacts = ['a.bin']");
    large.files.push(("a.bin".into(), vec![7; 3 << 20]));
    process.client.register("demo/large", &large, true);
    process.client.register(MODEL, &Package::fault("echo", ""), true);
    process.kill();
    let config = data.path().join("config.toml");
    fs::write(&config, "limits = { artifact_mib = 1 }").unwrap();
    let log = fs::File::create(data.path().join("log")).unwrap();
    let arguments = ["--config", config.to_str().unwrap(), "--log", "warn"];
    let process = Process::start_with(data.path(), &arguments, log.into());
    assert_eq!(process.client.post("/v2/models/demo/m/infer", &x(&[1.0])).status, 200);
    let large = process.client.post("/v2/models/demo/large/infer", &x(&[1.0]));
    assert_eq!(large.status, 503, "{large:?}");
    assert!(large.error().contains("artifact_mib = 1"), "{large:?}");
    let log = fs::read_to_string(data.path().join("log")).unwrap();
    assert!(log.contains("demo/large") && log.contains("artifact_mib = 1"), "{log}");
}
