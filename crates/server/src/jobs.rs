//! Jobs that run in this life of the server: one task each, driven by the executor.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use ferry_core::{api::server::JobView, id::JobId, job::Progress};
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

use crate::{
    App,
    job_view::{Now, view},
    saga::{
        executor::{Patience, drive},
        migrate::Migrate,
    },
    store::{JobRecord, StoreError},
};

/// What is known of a running job beyond its log, and how it is told to stop.
#[derive(Debug, Default)]
pub(crate) struct Running {
    now: Mutex<Now>,
    /// Somebody asked to cancel it.
    pub(crate) cancelled: CancellationToken,
    changed: Notify,
}

impl Running {
    /// How far the memory is.
    pub(crate) fn progress(&self, progress: Progress) {
        self.now.lock().expect("nobody panics with it").progress = Some(progress);
        self.changed();
    }

    /// Listeners will be told how the job stands; changes in quick succession are told as one.
    pub(crate) fn changed(&self) {
        self.changed.notify_one();
    }

    /// Says what the job waits for, or that it does not wait any more.
    pub(crate) fn wait_for(&self, what: Option<String>) {
        let mut now = self.now.lock().expect("nobody panics with it");
        if now.waits_for != what {
            if let Some(what) = &what {
                tracing::warn!(what, "The job waits");
            }
            now.waits_for = what;
            self.changed.notify_one();
        }
    }

    fn now(&self) -> Now {
        self.now.lock().expect("nobody panics with it").clone()
    }
}

/// The jobs that run.
#[derive(Debug)]
pub(crate) struct Jobs {
    running: Mutex<BTreeMap<JobId, Arc<Running>>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Jobs {
    pub(crate) fn new(tasks: TaskTracker, stop: CancellationToken) -> Self {
        Self { running: Mutex::default(), tasks, stop }
    }

    /// What is known of a job that runs.
    pub(crate) fn running(&self, job: JobId) -> Option<Arc<Running>> {
        self.running.lock().expect("nobody panics with it").get(&job).cloned()
    }

    /// Runs a job, new or found in the database, until it ends or the server stops. Stopping is no end: the next
    /// life of the server goes on from the log.
    pub(crate) fn start(&self, app: &Arc<App>, record: JobRecord, cancelled: bool) {
        let running = Arc::new(Running::default());
        if cancelled {
            running.cancelled.cancel();
        }
        self.running.lock().expect("nobody panics with it").insert(record.id, running.clone());
        let (app, stop) = (app.clone(), self.stop.clone());
        let span = tracing::info_span!("job", id = record.id.0, vm = record.job.vm_name);
        let task = async move {
            let id = record.id;
            tokio::select! {
                () = stop.cancelled() => {}
                () = keep_telling(&app, id, &running) => {}
                () = run(app.clone(), record, running.clone()) => {
                    app.jobs.running.lock().expect("nobody panics with it").remove(&id);
                    app.publish_job(id).await;
                }
            }
        };
        self.tasks.spawn(task.instrument(span));
    }
}

/// Tells listeners how a job stands, whenever it has changed. Never ends.
async fn keep_telling(app: &App, job: JobId, running: &Running) {
    loop {
        app.publish_job(job).await;
        running.changed.notified().await;
    }
}

async fn run(app: Arc<App>, record: JobRecord, running: Arc<Running>) {
    let id = record.id;
    let saga = match Migrate::new(app.clone(), record, running) {
        Ok(saga) => saga,
        Err(error) => {
            tracing::error!(error, "The job cannot be taken up");
            return;
        }
    };
    match drive(&app.store, id, &saga, Patience::USUAL).await {
        Ok(phase) => tracing::info!(phase = phase.title(), "The job has ended"),
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, "The job cannot go on; it is taken up at the next start");
        }
    }
}

impl App {
    /// A job as people see it.
    pub(crate) async fn job_view(&self, record: &JobRecord) -> Result<JobView, StoreError> {
        let log = self.store.log(record.id).await?;
        let now = self.jobs.running(record.id).map(|running| running.now()).unwrap_or_default();
        Ok(view(record, &log, &now))
    }

    /// Tells listeners how a job stands.
    pub(crate) async fn publish_job(&self, job: JobId) {
        let shown = async {
            match self.store.job(job).await? {
                Some(record) => Ok(Some(self.job_view(&record).await?)),
                None => Ok::<_, StoreError>(None),
            }
        };
        match shown.await {
            Ok(Some(view)) => self.events.publish(&ferry_core::api::server::Event::Job(Box::new(view))),
            Ok(None) => {}
            Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "A job could not be shown"),
        }
    }
}
