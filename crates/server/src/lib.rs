//! The control plane: REST API, jobs, inventory. It directs agents and never sees a guest's bytes.
//!
//! `http` receives a request, and `app` holds one file per use case. `preflight` checks the request, `plan` is the data
//! that is stored for it, and `jobs` queues and drives a `saga`, which spans several hosts. `view` shows the state of a
//! job. Only `store` is persistent: hosts' resources and VMs are asked of their agents (`inventory`) and never stored.
//! A file imports only from levels below its own:
//! `store < plan < inventory < preflight < jobs::running < view < saga < jobs::driver < app < http`.

mod app;
mod clock;
pub mod config;
mod events;
mod failure;
mod first_start;
mod http;
mod inventory;
mod jobs;
mod metrics;
mod plan;
mod preflight;
mod saga;
mod store;
mod view;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use axum_server::{
    Handle,
    tls_rustls::{RustlsAcceptor, RustlsConfig},
};
use ferry_core::{error::chain, pin::Pin};
use ferry_trust::Clients;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use app::App;
use config::Config;
use events::Events;
use inventory::Inventory;
use jobs::driver::Jobs;
use metrics::Metrics;
use preflight::{Preflight, identity::IdentityCheck};
use saga::Context as SagaContext;

pub use first_start::renew_token;
pub use http::openapi::openapi_document;

/// How long requests in progress may take when the server is stopped.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(5);
/// A client that opens a connection and sends nothing is disconnected after this time.
const FIRST_REQUEST_DEADLINE: Duration = Duration::from_secs(15);

/// How often expired jobs are removed.
const FORGET_EVERY: Duration = Duration::from_secs(3600);

/// A running server.
pub struct Server {
    app: Arc<App>,
    handle: Handle<SocketAddr>,
    tasks: TaskTracker,
    serving: tokio::task::JoinHandle<std::io::Result<()>>,
    address: SocketAddr,
    metrics_address: Option<SocketAddr>,
    pin: Pin,
    /// Keeps other servers off the state directory.
    _lock: std::fs::File,
}

impl Server {
    /// Opens the state directory, resumes unfinished jobs and begins to answer.
    ///
    /// # Errors
    /// If the state directory cannot be used, another server uses it, or the address cannot be listened on.
    pub async fn start(config: &Config) -> anyhow::Result<Self> {
        ferry_trust::install_provider();
        let state = first_start::open(config).await?;
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let events = Arc::new(Events::new());
        let epoch = state.store.next_epoch(clock::now_ms()).await?;
        let inventory = Arc::new(Inventory::new(state.agents_key, epoch, events.clone(), tasks.clone(), stop.clone()));
        let preflight = Arc::new(Preflight {
            store: state.store.clone(),
            inventory: inventory.clone(),
            identity: IdentityCheck::new(tasks.clone()),
        });
        let context = SagaContext { preflight: preflight.clone(), running: Arc::default() };
        let metrics = Arc::<Metrics>::default();
        let jobs = Jobs::new(context, events.clone(), metrics.clone(), tasks.clone(), stop.clone());
        let jobs = Arc::new(jobs);
        let app = Arc::new(App { store: state.store, inventory, preflight, jobs, events, metrics, stop });
        take_up(&app).await?;
        tasks.spawn(forget_old_jobs(app.clone(), Duration::from_secs(u64::from(config.retention_days) * 24 * 3600)));
        let tls = ferry_trust::server_config(&state.rest_key, Clients::Anonymous)?;
        let handle = Handle::new();
        let listener = tokio::net::TcpListener::bind(config.listen)
            .await
            .with_context(|| format!("Could not listen on {}", config.listen))?;
        let address = listener.local_addr()?;
        let server = axum_server::Server::<SocketAddr>::from_listener(listener)
            .acceptor(RustlsAcceptor::new(RustlsConfig::from_config(tls)))
            .first_request_timeout(FIRST_REQUEST_DEADLINE)
            .handle(handle.clone())
            .http1_only();
        let metrics_address = match config.metrics_listen {
            Some(listen) => Some(serve_metrics(&app, &tasks, listen).await?),
            None => None,
        };
        let serving = tokio::spawn(server.serve(http::router::router(app.clone()).into_make_service()));
        tracing::info!(%address, pin = %state.rest_key.pin(), "The server answers");
        Ok(Self { app, handle, tasks, serving, address, metrics_address, pin: state.rest_key.pin(), _lock: state.lock })
    }

    /// The address of the REST API.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address of the metrics, if they are on.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// The pin of its REST API.
    pub fn pin(&self) -> Pin {
        self.pin
    }

    /// Stops the server: lets requests finish, and leaves jobs to the next run.
    ///
    /// # Errors
    /// If serving ended with an error.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.app.stop.cancel();
        self.handle.graceful_shutdown(Some(SHUTDOWN_DEADLINE));
        self.tasks.close();
        let _ = tokio::time::timeout(SHUTDOWN_DEADLINE, self.tasks.wait()).await;
        let served = self.serving.await;
        self.app.store.close().await;
        tracing::info!("The server has stopped");
        Ok(served??)
    }
}

/// Begins to serve metrics at `listen`; returns the address.
async fn serve_metrics(app: &Arc<App>, tasks: &TaskTracker, listen: SocketAddr) -> anyhow::Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind(listen).await;
    let listener = listener.with_context(|| format!("Could not listen on {listen} for metrics"))?;
    let address = listener.local_addr()?;
    tasks.spawn(http::metrics::serve(app.clone(), listener));
    tracing::info!(%address, "The server tells its figures");
    Ok(address)
}

/// Loads the hosts, and resumes the unfinished jobs of earlier runs.
async fn take_up(app: &Arc<App>) -> anyhow::Result<()> {
    app.store.forget_unanswered().await?;
    for record in app.store.hosts().await? {
        let agent = app.inventory.agent(&record.address, record.pin)?;
        app.inventory.add(record, agent);
    }
    Ok(app.jobs.take_up().await?)
}

/// Removes expired jobs, so that the database does not grow for ever. Never ends by itself.
async fn forget_old_jobs(app: Arc<App>, kept: Duration) {
    loop {
        let before_ms = clock::now_ms().saturating_sub(kept.as_millis() as u64);
        match app.store.forget_jobs(before_ms).await {
            Ok(0) => {}
            Ok(jobs) => tracing::info!(jobs, "Jobs that ended long ago were forgotten"),
            Err(error) => tracing::warn!(error = %chain(&error), "Old jobs could not be forgotten"),
        }
        tokio::select! {
            () = app.stop.cancelled() => return,
            () = tokio::time::sleep(FORGET_EVERY) => {}
        }
    }
}
