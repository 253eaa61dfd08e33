//! A host to test against, in this process or as the real binary. It has its own data folder and free ports.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test harness fails by panicking"
)]

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use modelhost_server::{Config, Server};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use ureq::Agent;

/// The folder of built components. Panics with the command to run if it is not set.
pub fn components() -> PathBuf {
    let dir = std::env::var_os("MODELHOST_COMPONENTS").map(PathBuf::from);
    dir.expect("MODELHOST_COMPONENTS is not set: run `cargo xtask test`, which builds the components first")
}

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests is in the root").to_owned()
}

/// An HTTP answer.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The header `modelhost-version`, if present.
    pub version: Option<u32>,
    /// The body. A string if it is not JSON.
    pub body: Value,
    /// The headers, by lower-case name.
    pub headers: HashMap<String, String>,
}

impl Answer {
    /// The text of `error`, or an empty string.
    pub fn error(&self) -> &str {
        self.body["error"].as_str().unwrap_or_default()
    }
}

/// A client of one host.
#[derive(Clone)]
pub struct Client {
    agent: Agent,
    /// The URL of the public port.
    pub url: String,
    /// The URL of the admin port.
    pub admin: String,
}

impl Client {
    fn new(url: String, admin: String) -> Self {
        let agent = Agent::config_builder().http_status_as_error(false).build().new_agent();
        Self { agent, url, admin }
    }

    /// Sends a request with `headers` to an absolute URL.
    pub fn send(
        &self,
        method: &str,
        url: &str,
        body: &[u8],
        headers: &[(&str, &str)],
    ) -> Result<Answer, ureq::Error> {
        let mut request = ureq::http::Request::builder().method(method).uri(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut response = self.agent.run(request.body(body.to_vec()).expect("a valid request"))?;
        let header = |name: &str| {
            response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
        };
        let version = header("modelhost-version").and_then(|text| text.parse().ok());
        let text = |value: &ureq::http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let headers =
            response.headers().iter().map(|(name, value)| (name.to_string(), text(value))).collect();
        let status = response.status().as_u16();
        let text = response.body_mut().with_config().limit(1 << 30).read_to_string()?;
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Ok(Answer { status, version, body, headers })
    }

    /// Sends GET to the public port.
    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", &format!("{}{path}", self.url), b"", &[]).expect("an answer")
    }

    /// Sends POST to the public port.
    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_with(path, body, &[])
    }

    /// Sends POST with headers to the public port.
    pub fn post_with(&self, path: &str, body: &Value, headers: &[(&str, &str)]) -> Answer {
        let body = body.to_string();
        self.send("POST", &format!("{}{path}", self.url), body.as_bytes(), headers).expect("an answer")
    }

    /// Sends a request to the admin port.
    pub fn admin(&self, method: &str, path: &str, body: &Value) -> Result<Answer, ureq::Error> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let json = [("content-type", "application/json")];
        self.send(method, &format!("{}/v1{path}", self.admin), body.as_bytes(), &json)
    }

    /// Runs an operation on a model, e.g. `promote`.
    pub fn operate(&self, model: &str, operation: &str, body: &Value) -> Answer {
        self.admin("POST", &format!("/models/{model}/{operation}"), body).expect("an answer")
    }

    /// Uploads the package's files and registers it.
    pub fn try_register(&self, model: &str, package: &Package, promote: bool) -> Result<Answer, ureq::Error> {
        self.send_package(model, package, json!({"promote": promote}))
    }

    /// As [`Self::try_register`], in a deployment.
    pub fn try_register_in(
        &self,
        model: &str,
        package: &Package,
        deployment: &str,
    ) -> Result<Answer, ureq::Error> {
        self.send_package(model, package, json!({"deployment": deployment}))
    }

    fn send_package(&self, model: &str, package: &Package, mut body: Value) -> Result<Answer, ureq::Error> {
        let mut files = serde_json::Map::new();
        for (name, content) in &package.files {
            let digest = digest(content);
            let url = format!("{}/v1/models/{model}/blobs/{digest}", self.admin);
            let answer = self.send("PUT", &url, content, &[("content-type", "application/octet-stream")])?;
            if answer.status != 201 {
                return Ok(answer);
            }
            files.insert(name.clone(), digest.into());
        }
        body["manifest"] = package.manifest.as_str().into();
        body["files"] = files.into();
        self.admin("POST", &format!("/models/{model}/versions"), &body)
    }

    /// Registers a package. Panics if the host refuses it.
    pub fn register(&self, model: &str, package: &Package, promote: bool) -> u32 {
        let answer = self.try_register(model, package, promote).expect("an answer");
        assert_eq!(answer.status, 200, "{answer:?}");
        u32::try_from(answer.body["version"].as_u64().expect("a version")).expect("a small number")
    }
}

/// The digest under which a blob is uploaded.
pub fn digest(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A manifest and the files that it names.
pub struct Package {
    /// `model.toml`.
    pub manifest: String,
    /// Names and contents of the files.
    pub files: Vec<(String, Vec<u8>)>,
}

impl Package {
    /// The `model.toml` and `model.json` of a folder of the repository.
    pub fn folder(path: &str) -> Self {
        let folder = root().join(path);
        let manifest = fs::read_to_string(folder.join("model.toml")).expect("model.toml");
        let model = fs::read(folder.join("model.json")).expect("model.json");
        Self { manifest, files: vec![("model.json".into(), model)] }
    }

    /// A graph of `tests/fixtures/onnx`, cut to at most `bytes`, in the sandboxed runtime.
    pub fn onnx(graph: &str, bytes: usize) -> Self {
        let mut file = fs::read(root().join(format!("tests/fixtures/onnx/{graph}.onnx"))).expect("the graph");
        file.truncate(bytes);
        let manifest = "runtime = 'onnx-sandboxed'\nartifacts = ['model.onnx']\n".to_owned();
        Self { manifest, files: vec![("model.onnx".into(), file)] }
    }

    /// A graph in the runtime `onnx`, with further manifest lines.
    pub fn graph(file: Vec<u8>, manifest: &str) -> Self {
        let head = "runtime = 'onnx'\nartifacts = ['model.onnx']\ncapabilities = ['wasi:nn']";
        Self { manifest: format!("{head}\n{manifest}\n"), files: vec![("model.onnx".into(), file)] }
    }

    /// The guest that misbehaves as `fault` says, with further manifest lines before its parameters.
    pub fn fault(fault: &str, manifest: &str) -> Self {
        let component = fs::read(components().join("tests/faults.wasm")).expect("the faults guest");
        Self {
            manifest: format!("component = 'faults.wasm'\n{manifest}\n[parameters]\nfault = '{fault}'\n"),
            files: vec![("faults.wasm".into(), component)],
        }
    }
}

impl Package {
    /// Adds a line to the manifest's last table, `[parameters]`.
    pub fn with_parameter(mut self, name: &str, value: &str) -> Self {
        self.manifest.push_str(&format!("{name} = '{value}'\n"));
        self
    }
}

/// A host in this process.
pub struct Host {
    server: Option<Server>,
    runtime: tokio::runtime::Runtime,
    /// A client of the host.
    pub client: Client,
    data: tempfile::TempDir,
}

impl Host {
    /// Starts a host with the default settings.
    pub fn start() -> Self {
        Self::start_with(|_| {})
    }

    /// Starts a host with changed settings.
    pub fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        Self::start_in(tempfile::tempdir().expect("a folder"), change)
    }

    fn start_in(data: tempfile::TempDir, change: impl FnOnce(&mut Config)) -> Self {
        let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        let mut config = Config {
            data_dir: data.path().to_owned(),
            listen: any,
            admin_listen: any,
            runtimes_dir: Some(components().join("runtimes")),
            instances: 100,
            compiler: Some(binary()),
            ..Config::default()
        };
        change(&mut config);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let server = runtime.block_on(Server::start(config)).expect("the host starts");
        let url = format!("http://{}", server.address());
        let admin = format!("http://{}", server.admin_address());
        Self { server: Some(server), runtime, client: Client::new(url, admin), data }
    }

    /// The data folder.
    pub fn data(&self) -> &Path {
        self.data.path()
    }

    /// The additional gRPC address, if there is one.
    pub fn grpc_address(&self) -> Option<std::net::SocketAddr> {
        self.server.as_ref().and_then(Server::grpc_address)
    }

    /// Shuts the host down gracefully.
    pub fn stop(mut self) {
        if let Some(server) = self.server.take() {
            self.runtime.block_on(server.stop());
        }
    }

    /// Shuts the host down, calls `between` with the data folder, and starts another host over the same data.
    pub fn restart(mut self, between: impl FnOnce(&Path)) -> Self {
        if let Some(server) = self.server.take() {
            self.runtime.block_on(server.stop());
        }
        let data = self.data;
        drop(self.runtime);
        between(data.path());
        Self::start_in(data, |_| {})
    }
}

/// The real binary, built by `cargo xtask test`.
pub fn binary() -> PathBuf {
    std::env::var_os("MODELHOST_BINARY")
        .map(PathBuf::from)
        .expect("MODELHOST_BINARY is not set: run `cargo xtask test`")
}

/// A host as a process of its own. Dropping it kills the process.
pub struct Process {
    /// The running binary.
    pub child: Child,
    /// A client of the host.
    pub client: Client,
}

impl Process {
    /// Starts the binary over a data folder and waits until it serves.
    pub fn start(data: &Path) -> Self {
        Self::start_with(data, &["--log", "error"], Stdio::inherit())
    }

    /// Starts the binary with further arguments. Its log goes to `log`.
    pub fn start_with(data: &Path, arguments: &[&str], log: Stdio) -> Self {
        Self::start_as(data, Command::new(binary()).arg("serve").args(arguments).stderr(log))
    }

    /// Starts the command `serve`, which runs `modelhost serve` with its own arguments and environment.
    pub fn start_as(data: &Path, serve: &mut Command) -> Self {
        let mut child = serve
            .args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"])
            .arg("--data-dir")
            .arg(data)
            .arg("--runtimes-dir")
            .arg(components().join("runtimes"))
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let mut address = || {
            let line = lines.next().expect("a line").expect("text");
            let rest =
                line.strip_prefix("listening on ").unwrap_or_else(|| panic!("unexpected line {line:?}"));
            rest.trim_end_matches(" (admin)").to_owned()
        };
        let (url, admin) = (address(), address());
        let client = Client::new(url, admin);
        Self { child, client }
    }

    /// Sends a signal, e.g. `-TERM`.
    pub fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.child.id().to_string()]).status();
        assert!(status.expect("kill starts").success());
    }

    /// Kills the process with SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().expect("it is killed");
        self.child.wait().expect("it ends");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A request for the faults guest: `{"inputs": [{"name": "x", …}]}`.
pub fn x(values: &[f32]) -> Value {
    json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [values.len()], "data": values}]})
}

/// The held-out rows of the credit example, and the library's own probabilities for them.
pub fn held_out(library: &str) -> (Value, Vec<f64>) {
    let read = |name: &str| -> Value {
        let text = fs::read_to_string(root().join("examples/credit-risk").join(name)).expect(name);
        serde_json::from_str(&text).expect("JSON")
    };
    let expected = read("expected.json")[library]
        .as_array()
        .expect("a list")
        .iter()
        .map(|p| p.as_f64().expect("a number"))
        .collect();
    (read("held-out.json"), expected)
}
