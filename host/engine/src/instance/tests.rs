//! No data of a request reaches the next one, however the pool resets its slots.

use std::sync::Mutex;
use std::time::Instant;

use modelhost_core::artifact::{Artifact, Digest};
use modelhost_core::error::ErrorCode;
use modelhost_core::graph::{Batching, GraphOptions};
use modelhost_core::ports::ModelRuntime;
use modelhost_core::tensor::{DType, TensorSpec};
use modelhost_core::version::{Isolation, Limits};
use wasmtime::component::Component;
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};

use super::*;
use crate::compile::{self, Config};
use crate::state;

/// The number of requests over all settings and threads.
const REQUESTS: u32 = 1_000_000;
const THREADS: u32 = 2;

fn secret_component() -> Vec<u8> {
    let mut module = wat::parse_str(include_str!("secret.wat")).unwrap();
    let mut resolve = wit_parser::Resolve::default();
    let (package, _) = resolve.push_dir("../../wit").unwrap();
    let world = resolve.select_world(&[package], Some("runtime")).unwrap();
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
    ComponentEncoder::default().module(&module).unwrap().validate(true).encode().unwrap()
}

fn package() -> Package {
    Package {
        component: Digest::from_bytes([0; 32]),
        artifacts: Vec::new(),
        parameters: Vec::new(),
        columns: [].into(),
        capabilities: Vec::new(),
        response_cache: false,
        graphs: GraphOptions::default(),
        batching: Batching::NONE,
        isolation: Some(Isolation::Request),
        limits: Limits::DEFAULT,
        examples: Vec::new(),
    }
}

fn loaded(config: &Config, instances: Instances) -> Arc<Loaded> {
    let engine = compile::engine(config).unwrap();
    let component = Component::from_binary(&engine, &secret_component()).unwrap();
    let pre = state::linker(&engine).unwrap().instantiate_pre(&component).and_then(RuntimePre::new).unwrap();
    let leak =
        TensorSpec { name: "leak".into(), dtype: DType::Uint64, shape: vec![Some(1)], columns: [].into() };
    let signature = Signature { inputs: Vec::new(), outputs: vec![leak] };
    Arc::new(Loaded {
        engine,
        pre,
        report: LoadReport { signature, isolation: Isolation::Request, isolation_note: None },
        memory: Arc::new(MemoryBudget::new(u64::MAX)),
        memory_bytes: 64 << 20,
        peak_bytes: AtomicU64::new(0),
        code_bytes: 0,
        is_file: false,
        limit: Duration::from_secs(10),
        instances,
        graphs: None,
    })
}

async fn leak(loaded: &Arc<Loaded>) -> u64 {
    let deadline = Deadline::after(Instant::now(), Duration::from_secs(10));
    let outputs = Arc::clone(loaded).infer(Arc::default(), deadline).await.unwrap();
    u64::from_le_bytes(outputs[0].data()[..].try_into().unwrap())
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

#[test]
fn a_million_fresh_instances_find_no_secret_whatever_the_reset() {
    let dir = tempfile::tempdir().unwrap();
    // (bytes kept resident, pagemap scan)
    let mut settings = vec![(0, Some(false)), (64 << 10, Some(false)), (4 << 20, Some(false))];
    if wasmtime::PoolingAllocationConfig::is_pagemap_scan_available() {
        settings.extend([(0, Some(true)), (64 << 10, Some(true)), (4 << 20, Some(true))]);
    } else {
        println!("this kernel has no pagemap scan: its settings are left out");
    }
    let each = REQUESTS / u32::try_from(settings.len()).unwrap() / THREADS + 1;
    for (keep_resident_bytes, pagemap_scan) in settings {
        // With few slots, each one is reused at once.
        let config =
            Config { instances: 4, keep_resident_bytes, pagemap_scan, ..Config::new(dir.path().to_owned()) };
        let loaded = loaded(&config, Instances::Fresh);
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    run(async {
                        for request in 0..each {
                            let leak = leak(&loaded).await;
                            assert_eq!(leak, 0, "request {request}, {keep_resident_bytes} {pagemap_scan:?}");
                        }
                    });
                });
            }
        });
    }
}

/// Proves that the guest would find a secret: the same guest finds it in a warm instance.
#[test]
fn a_warm_instance_finds_what_it_left() {
    struct NoBlobs;
    impl BlobStore for NoBlobs {
        fn read<'a>(&'a self, _: &'a Digest, _: u64) -> BoxFuture<'a, Result<bytes::Bytes, Error>> {
            Box::pin(async { Err(Error::not_found("no blobs")) })
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let warm = Warm::new(Arc::new(NoBlobs), package(), Duration::from_secs(1));
    let config = Config { instances: 4, ..Config::new(dir.path().to_owned()) };
    let loaded = loaded(&config, Instances::Warm(Box::new(warm)));
    run(async {
        let store =
            State::store(&loaded.engine, loaded.memory_limit(), Stop::after(loaded.limit), None, None);
        let instance = Instance::start(&loaded.pre, store, loaded.limit).await.unwrap();
        let Instances::Warm(warm) = &loaded.instances else { unreachable!() };
        warm.add(instance);
        assert_eq!(leak(&loaded).await, 0);
        assert_ne!(leak(&loaded).await, 0);
        assert_eq!(loaded.footprint().idle_instances, 1);
        assert_ne!(loaded.memory.used(), 0);
        loaded.shrink(Duration::ZERO);
        assert_eq!((loaded.footprint().idle_instances, loaded.memory.used()), (0, 0));
    });
}

/// A snapshot cannot keep `table.set`.
#[test]
fn insisting_on_fresh_instances_refuses_what_cannot_be_snapshot() {
    struct Secret;
    impl BlobStore for Secret {
        fn read<'a>(&'a self, _: &'a Digest, _: u64) -> BoxFuture<'a, Result<bytes::Bytes, Error>> {
            Box::pin(async { Ok(secret_component().into()) })
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let config = Config { instances: 4, ..Config::new(dir.path().to_owned()) };
    let runtime = crate::Runtime::new(config, Arc::new(Secret)).unwrap();
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let refusal = tokio.block_on(async move {
        let load = tokio::spawn(async move {
            runtime.load(&package(), None, &Arc::new(MemoryBudget::new(u64::MAX))).await.map(drop)
        });
        load.await.unwrap().unwrap_err()
    });
    assert!(refusal.message.contains("cannot be snapshot: "), "{refusal}");
    assert!(refusal.message.contains("table"), "it names the reason: {refusal}");
}

/// An empty store that records the size limit of each read.
#[derive(Default)]
struct Nothing(Mutex<Vec<u64>>);

impl BlobStore for Nothing {
    fn read<'a>(&'a self, _: &'a Digest, most: u64) -> BoxFuture<'a, Result<bytes::Bytes, Error>> {
        self.0.lock().unwrap().push(most);
        Box::pin(async { Err(Error::not_found("no blobs")) })
    }
}

fn artifact(name: &str, byte: u8) -> Artifact {
    Artifact { name: name.into(), digest: Digest::from_bytes([byte; 32]), bytes: 1 }
}

#[test]
fn a_version_that_does_not_start_is_not_started_again_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Arc::new(Nothing::default());
    let package = Package { artifacts: vec![artifact("model", 1)], ..package() };
    let warm = Warm::new(Arc::clone(&blobs) as Arc<dyn BlobStore>, package, Duration::from_secs(1));
    let config = Config { instances: 4, ..Config::new(dir.path().to_owned()) };
    let loaded = loaded(&config, Instances::Warm(Box::new(warm)));
    run(async {
        for _ in 0..100 {
            let deadline = Deadline::after(Instant::now(), Duration::from_secs(10));
            let error = Arc::clone(&loaded).infer(Arc::default(), deadline).await.unwrap_err();
            assert!(error.message.contains("no blobs"), "{error}");
            assert_eq!(error.code, ErrorCode::Unavailable, "its caller named nothing that is not there");
        }
    });
    assert_eq!(*blobs.0.lock().unwrap(), [1], "it was read once, and its byte only");
    assert_eq!(loaded.footprint().idle_instances, 0);
}

#[test]
fn a_start_that_its_caller_leaves_goes_on_with_the_next_one() {
    /// A store whose reads end on command.
    struct Slow(tokio::sync::Semaphore, AtomicU64);
    impl BlobStore for Slow {
        fn read<'a>(&'a self, _: &'a Digest, _: u64) -> BoxFuture<'a, Result<bytes::Bytes, Error>> {
            self.1.fetch_add(1, Ordering::Relaxed);
            Box::pin(async {
                let _told = self.0.acquire().await.unwrap();
                Err(Error::not_found("told to end"))
            })
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let blobs = Arc::new(Slow(tokio::sync::Semaphore::new(0), AtomicU64::new(0)));
    let package = Package { artifacts: vec![artifact("model", 1)], ..package() };
    let warm = Warm::new(Arc::clone(&blobs) as Arc<dyn BlobStore>, package, Duration::from_secs(1));
    let config = Config { instances: 4, ..Config::new(dir.path().to_owned()) };
    let loaded = loaded(&config, Instances::Warm(Box::new(warm)));
    run(async {
        let ask = |wait: Duration| {
            let deadline = Deadline::after(Instant::now(), wait);
            Arc::clone(&loaded).infer(Arc::default(), deadline)
        };
        for _ in 0..3 {
            let error = ask(Duration::from_millis(1)).await.unwrap_err();
            assert_eq!(error.code, ErrorCode::DeadlineExceeded, "{error}");
        }
        blobs.0.add_permits(1);
        let error = ask(Duration::from_secs(10)).await.unwrap_err();
        assert!(error.message.contains("told to end"), "{error}");
    });
    assert_eq!(blobs.1.load(Ordering::Relaxed), 1, "it was begun once");
}

#[test]
fn a_component_that_is_too_large_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Arc::new(Nothing::default());
    let config = Config { instances: 4, ..Config::new(dir.path().to_owned()) };
    let runtime = crate::Runtime::new(config, Arc::clone(&blobs) as Arc<dyn BlobStore>).unwrap();
    let memory = Arc::new(MemoryBudget::new(u64::MAX));
    let error = run(runtime.load(&package(), None, &memory)).map(drop).unwrap_err();
    assert_eq!((error.code, &*error.message), (ErrorCode::Unavailable, "component: no blobs"));
    assert_eq!(*blobs.0.lock().unwrap(), [256 << 20]);
}

/// An artifact and a parameter can have the same bytes. Their snapshots must still differ.
#[test]
fn whatever_decides_the_memory_decides_the_key() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { instances: 4, ..Config::new(dir.path().to_owned()) };
    let runtime = crate::Runtime::new(config, Arc::new(Nothing::default())).unwrap();
    let digest = artifact("model", 1).digest.to_string();
    let packages = [
        package(),
        Package { artifacts: vec![artifact("model", 1)], ..package() },
        Package { parameters: vec![("model".into(), digest)], ..package() },
        Package { artifacts: vec![artifact("model", 2)], ..package() },
        Package { capabilities: vec!["wasi:nn".into()], ..package() },
        Package { limits: Limits { memory_bytes: 1 << 20, ..Limits::DEFAULT }, ..package() },
        Package { component: Digest::from_bytes([1; 32]), ..package() },
    ];
    let keys: std::collections::HashSet<_> =
        packages.iter().map(|package| runtime.snapshot_key(package)).collect();
    assert_eq!(keys.len(), packages.len());
}
