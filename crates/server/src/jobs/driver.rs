//! Starts queued jobs, drives each in its own task, and publishes their state.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use ferry_core::{
    admission::{self, Slot},
    api::server::{Event, JobView, Place, WaitView},
    error::chain,
    id::{HostId, JobId},
    job::JobKind,
    job_text::JobText,
    migration::{LogEvent, Phase, newest_attempt, phase},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

use super::{
    queue::Queue,
    running::{Now, Running, RunningJobs},
};
use crate::{
    clock::now_ms,
    events::Events,
    inventory::Inventory,
    metrics::Metrics,
    plan::{memory_of, progress_of, steps_of},
    saga::{
        Context,
        executor::{RetryPolicy, Saga, drive},
        migrate::Migrate,
        move_offline::MoveOffline,
        move_storage::MoveStorage,
        orphans,
    },
    store::{JobRecord, LogRow, Store, StoreError},
    view::{view, view_of_parent},
};

/// The open jobs.
pub(crate) struct Jobs {
    context: Context,
    queue: Mutex<Queue>,
    events: Arc<Events>,
    metrics: Arc<Metrics>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Jobs {
    pub(crate) fn new(
        context: Context,
        events: Arc<Events>,
        metrics: Arc<Metrics>,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        Self { context, queue: Mutex::default(), events, metrics, tasks, stop }
    }

    fn store(&self) -> &Store {
        &self.context.preflight.store
    }

    fn inventory(&self) -> &Inventory {
        &self.context.preflight.inventory
    }

    /// The running jobs.
    pub(crate) fn running(&self) -> &RunningJobs {
        &self.context.running
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("nobody panics with it")
    }

    /// Resumes the open jobs of an earlier run of the server, and the clean-up after dismissed ones.
    ///
    /// # Errors
    /// Those of the database.
    pub(crate) async fn take_up(self: &Arc<Self>) -> Result<(), StoreError> {
        for (record, log) in self.store().open_jobs_with_logs().await? {
            let now = phase(&log);
            tracing::info!(
                job = record.id.0,
                vm = record.job.vm_name,
                phase = now.title(),
                "The job is taken up again"
            );
            if now == Phase::Queued {
                self.queue().put(record);
                continue;
            }
            if now != Phase::Stuck {
                self.queue().hold(&record);
            }
            self.start(record, Start::GoesOn);
        }
        self.admit();
        for record in orphans::left(self.store()).await? {
            self.remove_orphans(record);
        }
        Ok(())
    }

    /// Puts stored jobs into the queue; they may start at once.
    pub(crate) fn enqueue(self: &Arc<Self>, records: impl IntoIterator<Item = JobRecord>) {
        for record in records {
            self.queue().put(record);
        }
        self.admit();
    }

    /// How many jobs hold each slot that is in use.
    pub(crate) fn slots_used(&self) -> BTreeMap<admission::Place, u32> {
        self.queue().slots_used()
    }

    /// Removes a job from the queue.
    pub(crate) fn take_out(self: &Arc<Self>, job: JobId) {
        self.queue().take_out(job);
        self.admit();
    }

    /// Frees a job's slots.
    fn give_slots_back(self: &Arc<Self>, job: JobId) {
        let had = self.queue().give_back(job);
        if had {
            self.admit();
        }
    }

    /// Starts the jobs that may begin now.
    pub(crate) fn admit(self: &Arc<Self>) {
        let limits = self.inventory().limits();
        let begun = self.queue().admit(&limits);
        for record in begun {
            self.start(record, Start::Begins);
        }
    }

    /// Runs a job until it ends or the server stops. A stop is not an end: the next run of the server continues from
    /// the log.
    fn start(self: &Arc<Self>, record: JobRecord, start: Start) {
        let running = self.running().begin(record.id, memory_of(&record));
        let (jobs, stop) = (self.clone(), self.stop.clone());
        let span = tracing::info_span!("job", id = record.id.0, vm = record.job.vm_name);
        let task = async move {
            let (id, parent) = (record.id, record.job.parent);
            if let Some(parent) = parent {
                jobs.publish(parent).await;
            }
            let _ended = running.until_dropped();
            tokio::select! {
                () = stop.cancelled() => return,
                // The caller of the dismissal does the rest.
                () = running.is_dismissed() => return,
                () = jobs.keep_telling(id, &running) => {}
                () = jobs.free_when_it_waits(id, &running) => {}
                () = jobs.run(record, running.clone(), start) => {}
            }
            jobs.leave(id);
            if let Ok(Some(ended)) = jobs.show(id).await {
                jobs.metrics.job_ended(&ended);
            }
            jobs.publish(id).await;
            if let Some(parent) = parent {
                jobs.publish(parent).await;
            }
        };
        self.tasks.spawn(task.instrument(span));
    }

    /// Publishes the job's view whenever the job has changed. Never ends.
    async fn keep_telling(&self, job: JobId, running: &Running) {
        loop {
            self.publish(job).await;
            running.next_change().await;
        }
    }

    /// Frees the slots of a job that waits for a host without power or for a human, so that it does not block others.
    /// Never ends.
    async fn free_when_it_waits(self: &Arc<Self>, job: JobId, running: &Running) {
        running.needs_no_slots().await;
        self.give_slots_back(job);
        std::future::pending().await
    }

    async fn run(&self, record: JobRecord, running: Arc<Running>, start: Start) {
        let (id, kind, store) = (record.id, record.job.kind, self.store());
        if start == Start::Begins {
            running.kept(|| store.admit(id, now_ms())).await;
        }
        let log = LogRow::events(&running.kept(|| store.log(id)).await);
        // The job may have been cancelled while it waited.
        if phase(&log).ended() {
            return;
        }
        if newest_attempt(&log).iter().any(|event| matches!(event, LogEvent::CancelRequested { .. })) {
            running.cancelled.cancel();
        }
        let context = self.context.clone();
        match kind {
            JobKind::Storage => {
                self.drive_to_end(id, MoveStorage::new(context, record, running.clone()), &running).await;
            }
            JobKind::Offline => {
                self.drive_to_end(id, MoveOffline::new(context, record, running.clone()), &running).await;
            }
            JobKind::Live | JobKind::LiveVsm | JobKind::Several | JobKind::Drain => {
                self.drive_to_end(id, Migrate::new(context, record, running.clone()), &running).await;
            }
        }
    }

    /// Drives a job. A job that cannot be driven shows the reason until it is dismissed.
    async fn drive_to_end(&self, job: JobId, saga: Result<impl Saga, JobText>, running: &Running) {
        match saga {
            Ok(mut saga) => {
                let phase = drive(self.store(), job, &mut saga, RetryPolicy::USUAL).await;
                tracing::info!(phase = phase.title(), "The job has ended");
            }
            Err(why) => {
                running.wait_for(Some(JobText::CannotGoOn { job, why: why.into() }));
                running.stuck();
                std::future::pending().await
            }
        }
    }

    /// Forgets a job whose task has ended, and frees its slots.
    pub(crate) fn leave(self: &Arc<Self>, job: JobId) {
        self.running().end(job);
        self.give_slots_back(job);
    }

    /// Continues a job whose task [`Self::dismiss`] has ended, or that had no task.
    pub(crate) fn go_on(self: &Arc<Self>, record: JobRecord) {
        self.start(record, Start::GoesOn);
    }

    /// Ends a job's task, if there is one. When this returns, nothing writes to the job's log any more. The caller must
    /// then call [`Self::leave`] or [`Self::go_on`].
    pub(crate) async fn dismiss(&self, job: JobId) {
        if let Some(running) = self.running().get(job) {
            running.dismiss().await;
        }
    }

    /// Removes what a dismissed job left at its hosts, in a separate task, until it is done or the server stops.
    pub(crate) fn remove_orphans(&self, record: JobRecord) {
        let (context, stop) = (self.context.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = orphans::remove(&context, record) => {}
            }
        });
    }

    /// A job as people see it, without its log; `None`: it is not kept any more.
    pub(crate) async fn show(&self, job: JobId) -> Result<Option<JobView>, StoreError> {
        match self.store().job_with_log(job).await? {
            Some((record, log)) => Ok(Some(self.view_of(&record, &log).await?)),
            None => Ok(None),
        }
    }

    /// A stored job as people see it, without its log.
    pub(crate) async fn view_of(&self, record: &JobRecord, log: &[LogRow]) -> Result<JobView, StoreError> {
        if record.job.kind.is_parent() {
            let children = self.store().children(record.id).await?;
            let children: Vec<JobView> = children.iter().map(|(child, log)| self.view(child, log)).collect();
            return Ok(view_of_parent(record, &children));
        }
        Ok(self.view(record, log))
    }

    fn view(&self, record: &JobRecord, log: &[LogRow]) -> JobView {
        let mut now = Now { queued: self.wait_of(record.id), ..self.now(record.id) };
        if now.disks.is_empty() {
            now.disks = progress_of(record);
        }
        view(record, &steps_of(record), log, &now)
    }

    /// What is known of a job beyond its log and the queue.
    pub(crate) fn now(&self, job: JobId) -> Now {
        let left = || Now { is_left: true, ..Now::default() };
        self.running().get(job).map_or_else(left, |running| running.now())
    }

    /// What a queued job waits for, with host names.
    fn wait_of(&self, job: JobId) -> Option<WaitView> {
        let wait = self.queue().wait_of(job).cloned()?;
        let host =
            |id: HostId| self.inventory().by_id(id).map_or_else(|| id.to_string(), |host| host.name().to_owned());
        let place = |((id, slot), jobs): ((HostId, Slot), Vec<JobId>)| Place { host: host(id), slot, jobs };
        Some(WaitView { position: wait.position as u32, places: wait.places.into_iter().map(place).collect() })
    }

    /// Publishes a job's view to listeners.
    pub(crate) async fn publish(&self, job: JobId) {
        match self.show(job).await {
            Ok(Some(view)) => self.events.publish(&Event::Job(Box::new(view))),
            Ok(None) => {}
            Err(error) => tracing::warn!(error = %chain(&error), "A job could not be shown"),
        }
    }
}

/// How a job's task starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// The job was just admitted.
    Begins,
    /// The job was admitted earlier.
    GoesOn,
}
