//! Jobs while they wait and while they run. What is kept of a job is its log; here is only what a restart may lose.
//!
//! ```text
//! enqueue ─▶ queue ─ a look: core::admission::admit ─▶ task: store.admit ─▶ saga::executor::drive ─▶ ended
//!              ▲                                                              │
//!              └──────────── a look after each end, limit and new job ────────┘
//! ```

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ferry_core::{
    admission::{Admission, Claim, Slot, Wait, Waiting, admit, share_a_place},
    api::server::{JobView, Place, WaitView},
    files::{DiskProgress, DiskStage},
    id::{HostId, JobId},
    job::{JobKind, Progress},
    memory::{Arrived, Need, left},
    migration::{LogEvent, Phase, newest_attempt, phase},
    units::ByteCount,
};
use tokio::sync::{Notify, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

use crate::{
    App,
    app::promised::memory_of,
    clock::now_ms,
    job_view::{Now, view, view_of_parent},
    saga::{
        executor::{Patience, Saga, drive},
        migrate::Migrate,
        move_offline::MoveOffline,
        move_storage::MoveStorage,
    },
    store::{JobRecord, LogEntry, LogRow, StoreError},
};

/// How long a job that waits keeps its slots: longer than an agent's restart takes.
const WAITS_WITH_SLOTS: Duration = Duration::from_secs(30);
/// How often a database that fails is tried again.
const KEEP_PAUSE_FIRST: Duration = Duration::from_millis(100);
const KEEP_PAUSE_MAX: Duration = Duration::from_secs(5);

/// What is known of a running job beyond its log, and how it is told to stop.
#[derive(Debug, Default)]
pub(crate) struct Running {
    now: Mutex<Now>,
    /// Somebody asked to cancel it.
    pub(crate) cancelled: CancellationToken,
    /// Somebody accepts what is: nothing more is to be done.
    dismissed: CancellationToken,
    /// Its task has ended.
    ended: CancellationToken,
    retry: Notify,
    changed: Notify,
    waiting: watch::Sender<bool>,
    /// Memory that was promised to it, and where.
    promised: Option<(HostId, Need)>,
    /// Its place among those that have begun: the earlier comes first.
    begun: u64,
}

impl Running {
    /// How far the memory is.
    pub(crate) fn progress(&self, progress: Progress) {
        self.now.lock().expect("nobody panics with it").progress = Some(progress);
        self.changed();
    }

    /// How far each disk is.
    pub(crate) fn disks(&self, disks: Vec<DiskProgress>) {
        self.now.lock().expect("nobody panics with it").disks = disks;
        self.changed();
    }

    /// How far it is with the memory that it was promised. Disks are copied to the process that receives the memory, too.
    pub(crate) fn arrived(&self) -> Arrived {
        let now = self.now.lock().expect("nobody panics with it");
        let memory = now.progress.as_ref().map_or(ByteCount(0), |progress| progress.memory_done);
        let flows = now.progress.as_ref().is_some_and(|progress| progress.memory_total.0 > 0);
        Arrived { memory, receives: flows || now.disks.iter().any(|disk| disk.stage != DiskStage::Waiting) }
    }

    /// Listeners will be told how the job stands; changes in quick succession are told as one.
    pub(crate) fn changed(&self) {
        self.changed.notify_one();
    }

    /// Changes what is known; listeners are told if it is something else than before.
    fn say<T: PartialEq>(&self, of: impl FnOnce(&mut Now) -> &mut T, value: T) -> bool {
        let mut now = self.now.lock().expect("nobody panics with it");
        let known = of(&mut now);
        let news = *known != value;
        if news {
            *known = value;
            self.changed.notify_one();
        }
        news
    }

    /// Says what the job waits for, or that it does not wait any more.
    pub(crate) fn wait_for(&self, what: Option<String>) {
        let waits = what.is_some();
        if self.say(|now| &mut now.waits_for, what.clone())
            && let Some(what) = what
        {
            tracing::warn!(what, "The job waits");
        }
        self.waiting.send_if_modified(|before| std::mem::replace(before, waits) != waits);
    }

    /// Says why what must be done has been tried in vain so far; `None`: it is done.
    pub(crate) fn in_vain(&self, why: Option<String>) {
        self.say(|now| &mut now.in_vain, why);
    }

    /// Asks the database until it answers. Meanwhile the job shows that it waits for it.
    pub(crate) async fn kept<T, F>(&self, attempt: impl Fn() -> F) -> T
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let mut pause = KEEP_PAUSE_FIRST;
        loop {
            let error = match attempt().await {
                Ok(kept) => {
                    self.say(|now| &mut now.unkept, None);
                    return kept;
                }
                Err(error) => error,
            };
            let why = error.chain();
            if self.say(|now| &mut now.unkept, Some(why.clone())) {
                tracing::error!(why, "The job waits for the database");
            }
            self.pause(pause).await;
            pause = (pause * 2).min(KEEP_PAUSE_MAX);
        }
    }

    /// Whether it waits for something that a host, the database or somebody must do, or has tried in vain so far.
    pub(crate) fn waits(&self) -> bool {
        let now = self.now.lock().expect("nobody panics with it");
        now.waits_for.is_some() || now.in_vain.is_some() || now.unkept.is_some()
    }

    /// Whether nobody drives the job any more: its task has ended, and the job has not.
    pub(crate) fn is_left(&self) -> bool {
        self.ended.is_cancelled()
    }

    /// What is tried again and again is tried now.
    pub(crate) fn retry(&self) {
        self.retry.notify_waiters();
    }

    /// Returns after `pause`, or when [`Self::retry`] is called meanwhile.
    pub(crate) async fn pause(&self, pause: Duration) {
        let _ = tokio::time::timeout(pause, self.retry.notified()).await;
    }

    /// Returns once it has waited for `patience` without a break.
    async fn has_waited(&self, patience: Duration) {
        let mut waiting = self.waiting.subscribe();
        loop {
            // The sender lives as long as what it is a part of.
            let _ = waiting.wait_for(|waits| *waits).await;
            if tokio::time::timeout(patience, waiting.wait_for(|waits| !*waits)).await.is_err() {
                return;
            }
        }
    }

    fn now(&self) -> Now {
        self.now.lock().expect("nobody panics with it").clone()
    }
}

/// Jobs that wait, and the slots of those that go on.
#[derive(Debug, Default)]
struct Queue {
    waiting: BTreeMap<JobId, (JobRecord, Waiting)>,
    holding: BTreeMap<JobId, Claim>,
    /// What each waiting job waits for, as of the last look.
    waits: BTreeMap<JobId, Wait>,
}

/// The jobs that have not ended.
#[derive(Debug)]
pub(crate) struct Jobs {
    running: Mutex<BTreeMap<JobId, Arc<Running>>>,
    queue: Mutex<Queue>,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// How many have begun.
    begun: AtomicU64,
}

/// What a job takes of its hosts.
fn claim(record: &JobRecord) -> Claim {
    let (source, destination) = (record.job.source.id, record.job.destination.id);
    let slots: &[Slot] = match record.job.kind {
        JobKind::Live => &[Slot::Live],
        JobKind::LiveVsm => &[Slot::Live, Slot::Storage],
        JobKind::Offline | JobKind::Storage => &[Slot::Storage],
        JobKind::Several | JobKind::Drain => &[],
    };
    let hosts = [Some(source), Some(destination).filter(|destination| *destination != source)];
    let places = hosts.into_iter().flatten().flat_map(|host| slots.iter().map(move |slot| (host, *slot)));
    Claim { job: record.id, places: places.collect() }
}

impl Jobs {
    pub(crate) fn new(tasks: TaskTracker, stop: CancellationToken) -> Self {
        Self { running: Mutex::default(), queue: Mutex::default(), tasks, stop, begun: AtomicU64::new(0) }
    }

    /// What is known of a job that runs.
    pub(crate) fn running(&self, job: JobId) -> Option<Arc<Running>> {
        self.running.lock().expect("nobody panics with it").get(&job).cloned()
    }

    /// Memory of a host that jobs were promised which began before this one, and that has not arrived there yet: of two
    /// that begin together, one comes first.
    pub(crate) fn promised_before(&self, job: JobId, host: HostId) -> Vec<Need> {
        let running = self.running.lock().expect("nobody panics with it");
        let own = running.get(&job).map_or(u64::MAX, |running| running.begun);
        let before = running.values().filter(|other| other.begun < own);
        let one = |other: &Arc<Running>| {
            let (at, need) = other.promised?;
            (at == host).then(|| left(need, other.arrived()))
        };
        before.filter_map(one).collect()
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("nobody panics with it")
    }

    /// Takes up the jobs of an earlier life.
    pub(crate) fn take_up(&self, app: &Arc<App>, jobs: Vec<(JobRecord, Vec<LogEvent>)>) {
        for (record, log) in jobs {
            let now = phase(&log);
            tracing::info!(
                job = record.id.0,
                vm = record.job.vm_name,
                phase = now.title(),
                "The job is taken up again"
            );
            match now {
                Phase::Queued => self.put_into_queue(record),
                _ => {
                    if now != Phase::Stuck {
                        self.queue().holding.insert(record.id, claim(&record));
                    }
                    self.start(app, record, Start::GoesOn);
                }
            }
        }
        self.look(app);
    }

    /// Lets jobs that are stored wait for their turn, which may be now.
    pub(crate) fn enqueue(&self, app: &Arc<App>, records: impl IntoIterator<Item = JobRecord>) {
        for record in records {
            self.put_into_queue(record);
        }
        self.look(app);
    }

    fn put_into_queue(&self, record: JobRecord) {
        let waiting = Waiting { claim: claim(&record), passed: 0 };
        self.queue().waiting.insert(record.id, (record, waiting));
    }

    /// A job does not wait any more.
    pub(crate) fn take_out(&self, app: &Arc<App>, job: JobId) {
        self.queue().waiting.remove(&job);
        self.look(app);
    }

    /// A job takes nothing of its hosts any more.
    pub(crate) fn give_slots_back(&self, app: &Arc<App>, job: JobId) {
        if self.queue().holding.remove(&job).is_some() {
            self.look(app);
        }
    }

    /// Looks who may begin now.
    pub(crate) fn look(&self, app: &Arc<App>) {
        let limits = app.inventory.limits();
        let mut begun = Vec::new();
        {
            let mut queue = self.queue();
            let queue = &mut *queue;
            let running: Vec<Claim> = queue.holding.values().cloned().collect();
            let waiting: Vec<Waiting> = queue.waiting.values().map(|(_, waiting)| waiting.clone()).collect();
            queue.waits.clear();
            for (job, admission) in admit(&limits, &running, &waiting) {
                match admission {
                    Admission::Waits(wait) => {
                        queue.waits.insert(job, wait);
                    }
                    Admission::Begins => {
                        let Some((record, waiting)) = queue.waiting.remove(&job) else { continue };
                        for (older, (_, passed)) in &mut queue.waiting {
                            passed.passed += u32::from(*older < job && share_a_place(&passed.claim, &waiting.claim));
                        }
                        queue.holding.insert(job, waiting.claim);
                        begun.push(record);
                    }
                }
            }
        }
        for record in begun {
            self.start(app, record, Start::Begins);
        }
    }

    /// What a waiting job waits for, in names.
    pub(crate) fn wait_of(&self, app: &App, job: JobId) -> Option<WaitView> {
        let wait = self.queue().waits.get(&job).cloned()?;
        let place = |((host, slot), jobs): ((HostId, Slot), Vec<JobId>)| Place {
            host: app.inventory.by_id(host).map_or_else(|| host.to_string(), |host| host.name().to_owned()),
            slot,
            jobs,
        };
        Some(WaitView { position: wait.position as u32, places: wait.places.into_iter().map(place).collect() })
    }

    /// Runs a job until it ends or the server stops. Stopping is no end: the next life of the server goes on from the
    /// log.
    fn start(&self, app: &Arc<App>, record: JobRecord, start: Start) {
        let promised = memory_of(&record);
        let running = {
            // Whoever has a later place finds those before it.
            let mut all = self.running.lock().expect("nobody panics with it");
            let begun = self.begun.fetch_add(1, Ordering::Relaxed);
            let running = Arc::new(Running { promised, begun, ..Running::default() });
            all.insert(record.id, running.clone());
            running
        };
        let (app, stop) = (app.clone(), self.stop.clone());
        let span = tracing::info_span!("job", id = record.id.0, vm = record.job.vm_name);
        let task = async move {
            let (id, parent) = (record.id, record.job.parent);
            if let Some(parent) = parent {
                app.publish_job(parent).await;
            }
            let _ended = running.ended.clone().drop_guard();
            tokio::select! {
                () = stop.cancelled() => return,
                // Who gives it up sees to the rest.
                () = running.dismissed.cancelled() => return,
                () = keep_telling(&app, id, &running) => {}
                () = free_when_it_waits(&app, id, &running) => {}
                () = run(app.clone(), record, running.clone(), start) => {}
            }
            app.jobs.leave(&app, id);
            app.publish_job(id).await;
            if let Some(parent) = parent {
                app.publish_job(parent).await;
            }
        };
        self.tasks.spawn(task.instrument(span));
    }

    /// Forgets a job whose task has ended: it takes nothing of its hosts any more.
    pub(crate) fn leave(&self, app: &Arc<App>, job: JobId) {
        self.running.lock().expect("nobody panics with it").remove(&job);
        self.give_slots_back(app, job);
    }

    /// Goes on with a job whose task was ended by [`Self::dismiss`], or by nobody.
    pub(crate) fn go_on(&self, app: &Arc<App>, record: JobRecord) {
        self.start(app, record, Start::GoesOn);
    }

    /// Runs something beside the jobs, until it ends or the server stops.
    pub(crate) fn beside(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// Ends a job's task, if there is one. When it returns nothing writes to the job's log any more. [`Self::leave`] or
    /// [`Self::go_on`] comes next.
    pub(crate) async fn dismiss(&self, job: JobId) {
        if let Some(running) = self.running(job) {
            running.dismissed.cancel();
            running.ended.cancelled().await;
        }
    }
}

/// Tells listeners how a job stands, whenever it has changed. Never ends.
async fn keep_telling(app: &App, job: JobId, running: &Running) {
    loop {
        app.publish_job(job).await;
        running.changed.notified().await;
    }
}

/// A job that waits for a host without power, or for a human, does not keep others waiting. Never ends.
async fn free_when_it_waits(app: &Arc<App>, job: JobId, running: &Running) {
    running.has_waited(WAITS_WITH_SLOTS).await;
    app.jobs.give_slots_back(app, job);
    std::future::pending().await
}

/// How the task of a job starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// Its turn has come.
    Begins,
    /// It was begun before.
    GoesOn,
}

async fn run(app: Arc<App>, record: JobRecord, running: Arc<Running>, start: Start) {
    let (id, kind, store) = (record.id, record.job.kind, &app.store);
    if start == Start::Begins {
        running.kept(|| store.admit(id, now_ms())).await;
    }
    let log = events(&running.kept(|| store.log(id)).await);
    // It may have been cancelled while it waited.
    if phase(&log).ended() {
        return;
    }
    if newest_attempt(&log).iter().any(|event| matches!(event, LogEvent::CancelRequested { .. })) {
        running.cancelled.cancel();
    }
    match kind {
        JobKind::Storage => {
            drive_to_end(&app, id, MoveStorage::new(app.clone(), record, running.clone()), &running).await
        }
        JobKind::Offline => {
            drive_to_end(&app, id, MoveOffline::new(app.clone(), record, running.clone()), &running).await
        }
        JobKind::Live | JobKind::LiveVsm | JobKind::Several | JobKind::Drain => {
            drive_to_end(&app, id, Migrate::new(app.clone(), record, running.clone()), &running).await;
        }
    }
}

/// Drives a job; one that cannot be driven says why until it is dismissed.
async fn drive_to_end(app: &Arc<App>, job: JobId, saga: Result<impl Saga, String>, running: &Running) {
    match saga {
        Ok(saga) => {
            let phase = drive(&app.store, job, &saga, Patience::USUAL).await;
            tracing::info!(phase = phase.title(), "The job has ended");
        }
        Err(error) => {
            running.wait_for(Some(format!("Job {job} cannot go on: {error}")));
            app.jobs.give_slots_back(app, job);
            std::future::pending().await
        }
    }
}

/// The events of a log.
pub(crate) fn events(log: &[LogRow]) -> Vec<LogEvent> {
    let event = |row: &LogRow| match &row.entry {
        LogEntry::Event(event) => Some(event.clone()),
        LogEntry::Note(_) => None,
    };
    log.iter().filter_map(event).collect()
}

impl App {
    /// A job as people see it; `None`: it is not kept any more.
    pub(crate) async fn job_view(&self, job: JobId) -> Result<Option<JobView>, StoreError> {
        match self.store.job_with_log(job).await? {
            Some((record, log)) => Ok(Some(self.view_of(&record, &log).await?)),
            None => Ok(None),
        }
    }

    /// A stored job as people see it.
    pub(crate) async fn view_of(&self, record: &JobRecord, log: &[LogRow]) -> Result<JobView, StoreError> {
        if record.job.kind.is_parent() {
            let children = self.store.children(record.id).await?;
            let children: Vec<JobView> = children.iter().map(|(child, log)| self.view(child, log)).collect();
            return Ok(view_of_parent(record, log, &children));
        }
        Ok(self.view(record, log))
    }

    fn view(&self, record: &JobRecord, log: &[LogRow]) -> JobView {
        let now = self.jobs.running(record.id).map(|running| running.now()).unwrap_or_default();
        let waits = self.jobs.wait_of(self, record.id);
        view(record, log, &Now { waits, ..now })
    }

    /// Tells listeners how a job stands.
    pub(crate) async fn publish_job(&self, job: JobId) {
        match self.job_view(job).await {
            Ok(Some(view)) => self.events.publish(&ferry_core::api::server::Event::Job(Box::new(view))),
            Ok(None) => {}
            Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "A job could not be shown"),
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_a_wait_without_a_break_counts() {
        let running = Arc::new(Running::default());
        let patience = Duration::from_secs(30);
        let waits = |what: &str| running.wait_for(Some(what.to_owned()));
        let begun = tokio::time::Instant::now();
        let waited = tokio::spawn({
            let running = running.clone();
            async move { running.has_waited(patience).await }
        });
        for _ in 0..3 {
            waits("an agent");
            tokio::time::sleep(patience - Duration::from_secs(1)).await;
            running.wait_for(None);
            tokio::time::sleep(patience * 2).await;
            assert!(!waited.is_finished());
        }
        let waits_from = begun.elapsed();
        waits("an agent");
        tokio::time::sleep(Duration::from_secs(10)).await;
        waits("the same for another reason");
        waited.await.expect("it has waited");
        assert_eq!(begun.elapsed() - waits_from, patience);
    }

    #[test]
    fn of_two_jobs_that_begin_together_the_first_has_the_memory() {
        let jobs = Jobs::new(TaskTracker::new(), CancellationToken::new());
        let (host, other) = (HostId(Uuid::from_u128(1)), HostId(Uuid::from_u128(2)));
        let need = |mib| Need { page: None, bytes: ByteCount::mib(mib) };
        // The later number began first.
        for (begun, job, at, mib) in [(0, 9, host, 100), (1, 4, host, 20), (2, 5, other, 3), (3, 6, host, 7)] {
            let running = Arc::new(Running { begun, promised: Some((at, need(mib))), ..Running::default() });
            jobs.running.lock().expect("nobody panics").insert(JobId(job), running);
        }
        for (job, at, expected) in [
            (9, host, vec![]),
            (4, host, vec![need(100)]),
            (6, host, vec![need(20), need(100)]),
            (6, other, vec![need(3)]),
        ] {
            assert_eq!(jobs.promised_before(JobId(job), at), expected, "{job}");
        }
        let progress = Progress { memory_done: ByteCount::mib(60), ..Progress::default() };
        jobs.running(JobId(9)).expect("it runs").progress(progress);
        assert_eq!(jobs.promised_before(JobId(4), host), [need(40)], "what has arrived is not promised any more");
        let huge = Need { page: Some(ByteCount::mib(2)), bytes: ByteCount::mib(50) };
        let running = Arc::new(Running { begun: 4, promised: Some((other, huge)), ..Running::default() });
        jobs.running.lock().expect("nobody panics").insert(JobId(7), running.clone());
        for (stage, expected) in [(DiskStage::Waiting, 50), (DiskStage::Copying, 0)] {
            running.disks(vec![DiskProgress { stage, ..DiskProgress::default() }]);
            let left = Need { bytes: ByteCount::mib(expected), ..huge };
            assert_eq!(jobs.promised_before(JobId(8), other), [need(3), left], "{stage:?}");
        }
    }
}
