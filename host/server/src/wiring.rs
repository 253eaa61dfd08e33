//! The composition root: who is made from what, and in which order it ends.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::Request;
use hyper::body::{Body, Incoming};
use hyper::service::{Service, service_fn};
use hyper_util::service::TowerToHyperService;
use modelhost_admin::Admin;
use modelhost_core::artifact::Digest;
use modelhost_core::deployment::Bounds;
use modelhost_core::error::{Error, ErrorCode};
use modelhost_core::model::{ModelName, ModelVersion};
use modelhost_core::ports::{BlobStore, Lifecycle, ModelRuntime, Observer};
use modelhost_registry::{Blobs, Catalog};
use modelhost_serving::Serving;
use modelhost_telemetry::{Metrics, Traces};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::body::{Lent, drain};
use crate::config::Config;
use crate::grpc::Services;
use crate::handlers::Public;
use crate::http::{Listener, bind};
use crate::system;

/// Connections on the admin port.
const ADMIN_CONNECTIONS: usize = 256;

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
    /// Held while this process uses the data folder.
    _lock: File,
}

impl Server {
    /// Opens the data folder, makes the engine, and serves. What policies pin is loaded in the background; whoever
    /// calls it before waits for that one load. Errors: invalid argument (settings), conflict (an address or the data folder is
    /// in use), internal.
    pub async fn start(config: Config) -> Result<Self, Error> {
        config.check()?;
        let loaded_versions = system::loaded_versions(&config)?;
        let lock = lock_data_dir(&config.data_dir)?;
        let blobs = Blobs::open(&config.data_dir.join("blobs"))?;
        let runtimes = store_runtimes(&blobs, &config.runtimes_dir())?;
        let bounds = Bounds::on_host(config.instances);
        let catalog = Arc::new(
            Catalog::open(&config.data_dir.join("catalogue.db"), &config.limits_cap(), &bounds).await?,
        );
        let mut keep = catalog.blobs();
        keep.extend(runtimes.values());
        blobs.retain(&keep)?;

        catalog.set_deployments(config.deployments()?, drop).await?;

        let metrics = Arc::new(Metrics::default());
        let traces = config.otlp_endpoint.as_deref().map(Traces::export_to).transpose()?.unwrap_or_default();
        let engine: Arc<dyn ModelRuntime> =
            modelhost_engine::Runtime::new(config.engine()?, Arc::new(blobs.clone()) as Arc<dyn BlobStore>)?;
        let serving_config = modelhost_serving::Config {
            loaded_versions,
            idle_instance: Duration::from_millis(config.idle_instance_ms),
            response_cache_bytes: config.response_cache_bytes,
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
            repository_control: config.repository_control,
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
        let listener = |socket, max_connections| Listener {
            socket,
            max_connections,
            header_timeout: Duration::from_millis(config.header_timeout_ms),
            drain_timeout: Duration::from_millis(config.drain_timeout_ms),
        };
        let (socket, admin_socket) = (bind(config.listen).await?, bind(config.admin_listen).await?);
        let local = |socket: &tokio::net::TcpListener| {
            socket.local_addr().map_err(|error| Error::internal(format!("a socket has no address: {error}")))
        };
        let (address, admin_address) = (local(&socket)?, local(&admin_socket)?);
        let grpc = Arc::new(Services::new(&public)?);
        grpc.set_serving(true).await;
        let (handler, services) = (Arc::clone(&public), Arc::clone(&grpc));
        let handle = service_fn(move |request| {
            let (handler, services) = (Arc::clone(&handler), Arc::clone(&services));
            async move {
                if Services::takes(&request) {
                    services.handle(request).await
                } else {
                    handler.handle(request).await
                }
            }
        });
        let admin_routes = TowerToHyperService::new(modelhost_admin::router(admin));
        let handle_admin = service_fn(move |request: Request<Incoming>| {
            let (head, body) = request.into_parts();
            let (body, mut left) = Lent::new(body);
            let answer = admin_routes.call(Request::from_parts(head, body));
            async move {
                let response = answer.await;
                if let Ok(body) = left.try_recv()
                    && !body.is_end_stream()
                {
                    drain(body).await;
                }
                response
            }
        });
        let mut listeners = Vec::new();
        let mut grpc_address = None;
        if let Some(address) = config.grpc_listen {
            let socket = bind(address).await?;
            grpc_address = Some(local(&socket)?);
            let served = listener(socket, config.max_connections).serve(handle.clone(), stopped.clone());
            listeners.push(tokio::spawn(served));
        }
        listeners.push(tokio::spawn(listener(socket, config.max_connections).serve(handle, stopped.clone())));
        listeners.push(tokio::spawn(listener(admin_socket, ADMIN_CONNECTIONS).serve(handle_admin, stopped)));
        Ok(Self { address, grpc_address, admin_address, public, grpc, catalog, stop, listeners, _lock: lock })
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

/// Makes the folder and makes sure that this process alone uses it.
fn lock_data_dir(dir: &Path) -> Result<File, Error> {
    let open = || -> std::io::Result<File> {
        fs::create_dir_all(dir)?;
        File::options().create(true).truncate(false).write(true).open(dir.join("lock"))
    };
    let file = open().map_err(|error| Error::internal(format!("data folder {}: {error}", dir.display())))?;
    file.try_lock().map_err(|error| {
        Error::new(
            ErrorCode::Conflict,
            format!("data folder {} is used by another host: {error}", dir.display()),
        )
    })?;
    Ok(file)
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

fn comparisons(metrics: Arc<Metrics>) -> Box<modelhost_admin::CountComparisons> {
    Box::new(move |model: &ModelName, served: ModelVersion, challenger: ModelVersion| {
        metrics.comparisons(model, served, challenger).to_vec()
    })
}
