//! The control plane: REST API, jobs, inventory. It tells agents what to do and never sees a guest's bytes.
//!
//! `http` takes a request, `app` holds one file per use case, `saga` what spans several hosts; `store` is the only
//! thing that is kept. What hosts have and do is asked of their agents and never stored.

mod app;
mod clock;
pub mod config;
mod events;
mod failure;
mod first_start;
mod http;
mod inventory;
mod job_view;
mod jobs;
mod saga;
mod sameness;
mod store;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use axum_server::{
    Handle,
    tls_rustls::{RustlsAcceptor, RustlsConfig},
};
use ferry_core::{migration::LogEvent, pin::Pin};
use ferry_trust::Clients;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use config::Config;
use events::Events;
use inventory::Inventory;
use jobs::Jobs;
use sameness::Proofs;
use store::{LogEntry, Store};

pub use first_start::renew_token;
pub use http::openapi_document;

/// Requests that are being answered when the server is told to stop get this long.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(5);
/// A client that opens a connection and sends nothing is cut off.
const FIRST_REQUEST_DEADLINE: Duration = Duration::from_secs(15);

/// Everything that requests and jobs share.
pub(crate) struct App {
    pub(crate) store: Store,
    pub(crate) inventory: Arc<Inventory>,
    pub(crate) jobs: Jobs,
    pub(crate) proofs: Proofs,
    pub(crate) events: Arc<Events>,
    /// Cancelled when the server stops: ends event streams.
    pub(crate) stop: CancellationToken,
}

/// A server that answers.
pub struct Server {
    app: Arc<App>,
    handle: Handle<SocketAddr>,
    tasks: TaskTracker,
    serving: tokio::task::JoinHandle<std::io::Result<()>>,
    address: SocketAddr,
    pin: Pin,
    /// Keeps other servers off the state directory.
    _lock: std::fs::File,
}

impl Server {
    /// Opens the state, takes up unfinished jobs and begins to answer.
    ///
    /// # Errors
    /// When the state cannot be used, another server uses it, or the address cannot be listened on.
    pub async fn start(config: &Config) -> anyhow::Result<Self> {
        ferry_trust::install_provider();
        let state = first_start::open(config).await?;
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let events = Arc::new(Events::new());
        let inventory = Arc::new(Inventory::new(state.agents_key, events.clone(), tasks.clone(), stop.clone()));
        let app = Arc::new(App {
            store: state.store,
            inventory,
            jobs: Jobs::new(tasks.clone(), stop.clone()),
            proofs: Proofs::new(tasks.clone()),
            events,
            stop,
        });
        take_up(&app).await?;
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
        let serving = tokio::spawn(server.serve(http::router(app.clone()).into_make_service()));
        tracing::info!(%address, pin = %state.rest_key.pin(), "The server answers");
        Ok(Self { app, handle, tasks, serving, address, pin: state.rest_key.pin(), _lock: state.lock })
    }

    /// Where it answers.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The key of its REST API.
    pub fn pin(&self) -> Pin {
        self.pin
    }

    /// Stops: lets requests end, leaves jobs as they are for the next life.
    ///
    /// # Errors
    /// When serving had ended by an error.
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

/// Hosts and unfinished jobs of earlier lives.
async fn take_up(app: &Arc<App>) -> anyhow::Result<()> {
    app.store.forget_unanswered().await?;
    for record in app.store.hosts().await? {
        let agent = app.inventory.agent(&record.address, record.pin)?;
        app.inventory.add(record, agent);
    }
    for record in app.store.open_jobs().await? {
        let log = app.store.log(record.id).await?;
        let cancelled = log.iter().any(|row| matches!(row.entry, LogEntry::Event(LogEvent::CancelRequested { .. })));
        tracing::info!(job = record.id.0, vm = record.job.vm_name, "The job is taken up again");
        app.jobs.start(app, record, cancelled);
    }
    Ok(())
}
