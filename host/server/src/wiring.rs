//! The composition root: who is made from what, and in which order it ends.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hyper::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use modelhost_admin::{Admin, Intake};
use modelhost_core::artifact::Digest;
use modelhost_core::budget::ByteBudget;
use modelhost_core::deployment::Bounds;
use modelhost_core::error::Error;
use modelhost_core::model::{ModelName, ModelVersion};
use modelhost_core::ports::{BlobStore, Lifecycle, ModelRuntime, Observer};
use modelhost_registry::{Blobs, Catalog};
use modelhost_serving::Serving;
use modelhost_telemetry::{Clients, Metrics, Traces};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;

use crate::aside::{Aside, Key};
use crate::config::Config;
use crate::grpc::Services;
use crate::guard::{self, Allowed, Asked};
use crate::listen::{Listener, WIDE_AT_ONCE, bind};
use crate::public::Public;
use crate::watch::{Connections, Room, Shared};
use crate::{admin, data, system};

/// Connections on the admin port.
const ADMIN_CONNECTIONS: usize = 256;

/// Requests on the admin port at once.
const ADMIN_REQUESTS: usize = 1024;

/// What requests on the admin port take together while they wait for their client.
const ADMIN_WAITING_BYTES: u64 = 32 << 20;

/// A running host.
pub struct Server {
    address: SocketAddr,
    grpc_address: Option<SocketAddr>,
    admin_address: SocketAddr,
    public: Arc<Public>,
    grpc: Arc<Services>,
    catalog: Arc<Catalog>,
    stop: watch::Sender<bool>,
    listeners: Vec<JoinHandle<()>>,
    /// Makes room when bytes are short.
    _room: AbortOnDropHandle<()>,
    /// Held while this process uses the data folder.
    _lock: File,
}

impl Server {
    /// Opens the data folder, makes the engine, and serves. What policies pin is loaded in the background; whoever
    /// calls it before waits for that one load. Errors: invalid argument (settings), conflict (an address or the data
    /// folder is in use), internal.
    pub async fn start(config: Config) -> Result<Self, Error> {
        config.check()?;
        let loaded_versions = system::loaded_versions(&config)?;
        let lock = data::open(&config.data_dir)?;
        let blobs = Blobs::open(&config.data_dir.join("blobs"))?;
        let runtimes = store_runtimes(&blobs, &config.runtimes_dir())?;
        let bounds = Bounds::on_host(config.instances);
        let catalog = Arc::new(
            Catalog::open(&config.data_dir.join("catalogue.db"), &config.limits_cap(), &bounds).await?,
        );
        let mut keep = catalog.blobs().await?;
        keep.extend(runtimes.values());
        blobs.retain(&keep)?;

        catalog.set_deployments(config.deployments()?, drop).await?;

        let metrics = Arc::new(Metrics::default());
        let traces = config.otlp_endpoint.as_deref().map(Traces::export_to).transpose()?.unwrap_or_default();
        let engine: Arc<dyn ModelRuntime> =
            modelhost_engine::Runtime::new(config.engine()?, Arc::new(blobs.clone()) as Arc<dyn BlobStore>)?;
        let serving_config = modelhost_serving::Config {
            loaded_versions,
            load_deadline: Duration::from_millis(config.limits.load_deadline_ms),
            idle_instance: Duration::from_millis(config.idle_instance_ms),
            response_cache_bytes: config.response_cache_bytes,
            body_bytes: config.bodies_mib << 20,
            ..Default::default()
        };
        let observer = Arc::clone(&metrics) as Arc<dyn Observer>;
        let serving = Serving::new(serving_config, Arc::clone(&engine), observer);
        let watched = Arc::downgrade(&serving);
        metrics.watch(Box::new(move || {
            let serving = watched.upgrade();
            serving.map(|serving| (serving.deployments(), serving.usage())).unwrap_or_default()
        }));
        metrics.watch_gpus(Box::new(modelhost_nn::gpus));
        serving.publish(catalog.snapshot());

        let admin = Arc::new(Admin {
            catalog: Arc::clone(&catalog),
            blobs,
            runtime: engine,
            lifecycle: Arc::clone(&serving) as Arc<dyn Lifecycle>,
            runtimes,
            comparisons: comparisons(Arc::clone(&metrics)),
            limits_cap: config.limits_cap(),
            host_instances: config.instances,
            max_blob_bytes: config.max_blob_bytes,
            intake: Intake::new(Duration::from_millis(config.request_timeout_ms)),
            aside: aside(&serving, Duration::from_millis(config.request_timeout_ms)),
        });
        let public = Arc::new(Public {
            serving: Arc::clone(&serving),
            metrics,
            traces,
            access_log: config.access_log,
            default_model: config.default_model()?,
            max_body_bytes: config.max_body_bytes,
            max_stream_bytes: config.max_stream_bytes,
            request_timeout: Duration::from_millis(config.request_timeout_ms),
            patience: config.patience(),
            repository_control: config.repository_control,
            aside: Aside::new(Arc::clone(serving.bodies())),
            draining: AtomicBool::new(false),
        });
        let server = Self::listen(&config, public, admin, catalog, lock).await?;
        tokio::spawn(async move { serving.preload().await });
        Ok(server)
    }

    async fn listen(
        config: &Config,
        public: Arc<Public>,
        admin: Arc<Admin>,
        catalog: Arc<Catalog>,
        lock: File,
    ) -> Result<Self, Error> {
        let (stop, stopped) = watch::channel(false);
        let (mut connections, wide) = (Vec::new(), Arc::new(Semaphore::new(WIDE_AT_ONCE)));
        let waits = Arc::clone(public.serving.streams());
        let shared = Shared::new(waits, config.max_requests());
        let admin_waits = ByteBudget::new("the admin port", ADMIN_WAITING_BYTES);
        let admin_shared = Shared::new(Arc::clone(&admin_waits), ADMIN_REQUESTS);
        let mut listener = |port, socket, max_connections, shared: &Arc<Shared>| {
            let open = Connections::new(config.patience(), Arc::clone(shared));
            connections.push((port, Arc::clone(&open)));
            let drain_timeout = Duration::from_millis(config.drain_timeout_ms);
            Listener { socket, max_connections, connections: open, wide: Arc::clone(&wide), drain_timeout }
        };
        let (socket, admin_socket) = (bind(config.listen).await?, bind(config.admin_listen).await?);
        let local = |socket: &tokio::net::TcpListener| {
            socket.local_addr().map_err(|error| Error::internal(format!("a socket has no address: {error}")))
        };
        let (address, admin_address) = (local(&socket)?, local(&admin_socket)?);
        let grpc = Arc::new(Services::new(&public)?);
        grpc.set_serving(true).await;
        let handle = |allowed: Allowed| {
            let (handler, services, allowed) = (Arc::clone(&public), Arc::clone(&grpc), Arc::new(allowed));
            service_fn(move |request: Request<Incoming>| {
                let (handler, services) = (Arc::clone(&handler), Arc::clone(&services));
                let allowed = Arc::clone(&allowed);
                async move {
                    let checked = guard::check_public(Asked::by(&request), &allowed);
                    if Services::takes(&request) {
                        services.handle(request, checked).await
                    } else {
                        handler.handle(request, checked).await
                    }
                }
            })
        };
        let handle_admin = admin::service(admin, Arc::clone(&public), config.allowed(admin_address)?);
        let mut listeners = Vec::new();
        let mut grpc_address = None;
        if let Some(address) = config.grpc_listen {
            let socket = bind(address).await?;
            grpc_address = Some(local(&socket)?);
            let guarded = handle(config.allowed(address)?);
            let served =
                listener("grpc", socket, config.max_connections, &shared).serve(guarded, stopped.clone());
            listeners.push(tokio::spawn(served));
        }
        let guarded = handle(config.allowed(address)?);
        let served =
            listener("public", socket, config.max_connections, &shared).serve(guarded, stopped.clone());
        listeners.push(tokio::spawn(served));
        let served =
            listener("admin", admin_socket, ADMIN_CONNECTIONS, &admin_shared).serve(handle_admin, stopped);
        listeners.push(tokio::spawn(served));
        let room = Room {
            budgets: vec![Arc::clone(public.serving.bodies()), admin_waits],
            listeners: connections.iter().map(|(_, open)| Arc::clone(open)).collect(),
        };
        let room = AbortOnDropHandle::new(tokio::spawn(room.keep()));
        let serving = Arc::downgrade(&public.serving);
        public.metrics.watch_clients(Box::new(move || Clients {
            connections: connections.iter().map(|(port, open)| (*port, open.count())).collect(),
            held_bytes: serving.upgrade().map_or(0, |serving| serving.bodies().used()),
        }));
        Ok(Self {
            address,
            grpc_address,
            admin_address,
            public,
            grpc,
            catalog,
            stop,
            listeners,
            _room: room,
            _lock: lock,
        })
    }

    /// Where predictions are asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where gRPC is served besides [`Self::address`], if it is.
    pub fn grpc_address(&self) -> Option<SocketAddr> {
        self.grpc_address
    }

    /// Where operators work.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// Stops: no longer ready, no new connections, requests finish within the drain timeout, then the catalogue closes.
    pub async fn stop(self) {
        self.public.draining.store(true, Ordering::Relaxed);
        self.grpc.set_serving(false).await;
        self.stop.send_replace(true);
        for listener in self.listeners {
            if let Err(error) = listener.await {
                tracing::error!(%error, "a listener ended badly");
            }
        }
        self.catalog.close().await;
        let public = self.public;
        // The last spans go out with blocking I/O; a thread that cannot be had costs only them.
        drop(tokio::task::spawn_blocking(move || public.traces.flush()).await);
    }
}

/// Stores `NAME.wasm` of each shipped runtime, so that versions keep the one they were registered with.
fn store_runtimes(blobs: &Blobs, dir: &Path) -> Result<BTreeMap<String, Digest>, Error> {
    let mut runtimes = BTreeMap::new();
    let Ok(entries) = fs::read_dir(dir) else {
        tracing::warn!(dir = %dir.display(), "no folder of shipped runtimes: only packages with a component can be registered");
        return Ok(runtimes);
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        let is_wasm = path.extension().is_some_and(|extension| extension == "wasm");
        let Some(name) = path.file_stem().and_then(|stem| stem.to_str()).filter(|_| is_wasm) else {
            continue;
        };
        let content = fs::read(&path)
            .map_err(|error| Error::internal(format!("runtime {}: {error}", path.display())))?;
        runtimes.insert(name.to_owned(), blobs.put(&content)?);
    }
    Ok(runtimes)
}

/// Operators' lists have places of their own, which no caller of the public port takes.
fn aside(serving: &Serving, time: Duration) -> Box<modelhost_admin::MakeAside> {
    let aside = Arc::new(Aside::new(Arc::clone(serving.bodies())));
    Box::new(move |name, work| {
        let aside = Arc::clone(&aside);
        Box::pin(async move {
            let until = Instant::now() + time;
            let made = aside.make(Key { name, accepts: None }, until, move || Ok(work()?.into())).await?;
            Ok(made.bytes)
        })
    })
}

fn comparisons(metrics: Arc<Metrics>) -> Box<modelhost_admin::CountComparisons> {
    Box::new(move |model: &ModelName, served: ModelVersion, challenger: ModelVersion| {
        metrics.comparisons(model, served, challenger).to_vec()
    })
}
