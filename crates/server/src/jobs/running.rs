//! Running jobs: their state beyond the log, and the signals that stop them.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ferry_core::{
    api::server::WaitView,
    backoff::Backoff,
    error::chain,
    files::{DiskProgress, DiskStage},
    id::{HostId, JobId},
    job::Progress,
    job_text::JobText,
    memory::{Arrived, Need, left},
    units::ByteCount,
};
use tokio::sync::{Notify, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    plan::memory_of,
    preflight::promised::Promised,
    store::{JobRecord, StoreError},
};

/// How long a waiting job keeps its slots: longer than a restart of an agent takes.
const WAITS_WITH_SLOTS: Duration = Duration::from_secs(30);
/// The pauses between tries while the database fails.
const KEEP: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));

/// The state of a running job beyond its log.
#[derive(Clone, Debug, Default)]
pub(crate) struct Now {
    /// Progress of the memory.
    pub(crate) progress: Option<Progress>,
    /// Progress of each disk.
    pub(crate) disks: Vec<DiskProgress>,
    /// What the job waits for, if its step does not make that obvious.
    pub(crate) waits_for: Option<JobText>,
    /// Why an action that must succeed has failed so far.
    pub(crate) in_vain: Option<JobText>,
    /// Why the database could not store something.
    pub(crate) unkept: Option<String>,
    /// What the job waits for in the queue.
    pub(crate) queued: Option<WaitView>,
    /// No task drives it.
    pub(crate) is_left: bool,
}

impl Now {
    /// Whether the job needs something from a host, the database or a person, keeps failing, or is not driven.
    pub(crate) fn waits(&self) -> bool {
        self.waits_for.is_some() || self.in_vain.is_some() || self.unkept.is_some() || self.is_left
    }
}

/// A running job: its state beyond the log, and the signals that stop it.
#[derive(Debug, Default)]
pub(crate) struct Running {
    now: Mutex<Now>,
    /// A user asked to cancel the job.
    pub(crate) cancelled: CancellationToken,
    /// A user dismissed the job: nothing more is to be done.
    dismissed: CancellationToken,
    /// The job's task has ended.
    ended: CancellationToken,
    /// An action that must succeed has failed often enough to show the job as stuck.
    stuck: CancellationToken,
    retry: Notify,
    changed: Notify,
    waiting: watch::Sender<bool>,
    /// The memory that was promised to it, and on which host.
    promised: Option<(HostId, Need)>,
    /// Its place in the order in which jobs began.
    begun: u64,
}

impl Running {
    /// Sets the progress of the memory.
    pub(crate) fn progress(&self, progress: Progress) {
        self.now.lock().expect("nobody panics with it").progress = Some(progress);
        self.changed();
    }

    /// Sets the progress of each disk.
    pub(crate) fn disks(&self, disks: Vec<DiskProgress>) {
        self.now.lock().expect("nobody panics with it").disks = disks;
        self.changed();
    }

    /// How much of the promised memory is already in use. Disks are received by the same process that receives the
    /// memory, so their copying counts as a sign of it.
    pub(crate) fn arrived(&self) -> Arrived {
        let now = self.now.lock().expect("nobody panics with it");
        let memory = now.progress.as_ref().map_or(ByteCount(0), |progress| progress.memory_done);
        let flows = now.progress.as_ref().is_some_and(|progress| progress.memory_total.0 > 0);
        Arrived { memory, receives: flows || now.disks.iter().any(|disk| disk.stage != DiskStage::Waiting) }
    }

    /// Signals that the job's view changed; changes in quick succession are published as one.
    pub(crate) fn changed(&self) {
        self.changed.notify_one();
    }

    /// Sets one value of the state. Returns whether it is new, in which case listeners are informed.
    fn publish<T: PartialEq>(&self, of: impl FnOnce(&mut Now) -> &mut T, value: T) -> bool {
        let mut now = self.now.lock().expect("nobody panics with it");
        let known = of(&mut now);
        let news = *known != value;
        if news {
            *known = value;
            self.changed.notify_one();
        }
        news
    }

    /// Sets what the job waits for; `None`: it does not wait.
    pub(crate) fn wait_for(&self, what: Option<JobText>) {
        let waits = what.is_some();
        if self.publish(|now| &mut now.waits_for, what.clone())
            && let Some(what) = what
        {
            // The job shows this while it waits. It is no warning, because the wait may end by itself.
            tracing::info!(%what, "The job waits");
        }
        self.waiting.send_if_modified(|before| std::mem::replace(before, waits) != waits);
    }

    /// Sets why an action that must succeed has failed so far; `None`: it succeeded.
    pub(crate) fn in_vain(&self, why: Option<JobText>) {
        self.publish(|now| &mut now.in_vain, why);
    }

    /// Repeats a database access until it succeeds. In the meantime the job shows that it waits for the database.
    pub(crate) async fn kept<T, F>(&self, attempt: impl Fn() -> F) -> T
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let mut backoff = KEEP;
        loop {
            let error = match attempt().await {
                Ok(kept) => {
                    self.publish(|now| &mut now.unkept, None);
                    return kept;
                }
                Err(error) => error,
            };
            let why = chain(&error);
            if self.publish(|now| &mut now.unkept, Some(why.clone())) {
                tracing::error!(why, "The job waits for the database");
            }
            self.pause(backoff.pause()).await;
        }
    }

    /// Ends the current pause, so that a failing action is repeated now.
    pub(crate) fn retry(&self) {
        self.retry.notify_waiters();
    }

    /// Returns after `pause`, or as soon as [`Self::retry`] is called.
    pub(crate) async fn pause(&self, pause: Duration) {
        let _ = tokio::time::timeout(pause, self.retry.notified()).await;
    }

    /// Returns once the job has waited for `limit` without a break.
    async fn has_waited(&self, limit: Duration) {
        let mut waiting = self.waiting.subscribe();
        loop {
            // The sender lives as long as `self`.
            let _ = waiting.wait_for(|waits| *waits).await;
            if tokio::time::timeout(limit, waiting.wait_for(|waits| !*waits)).await.is_err() {
                return;
            }
        }
    }

    /// Shows the job as stuck and lets go of its slots: it transfers nothing, and must not block other jobs.
    pub(crate) fn stuck(&self) {
        self.stuck.cancel();
    }

    /// Returns once the job no longer needs its slots: it is stuck, or has waited for long.
    pub(crate) async fn needs_no_slots(&self) {
        tokio::select! {
            () = self.stuck.cancelled() => {}
            () = self.has_waited(WAITS_WITH_SLOTS) => {}
        }
    }

    /// Ends the job's task and waits for its end.
    pub(crate) async fn dismiss(&self) {
        self.dismissed.cancel();
        self.ended.cancelled().await;
    }

    /// Returns once the job is dismissed.
    pub(crate) async fn is_dismissed(&self) {
        self.dismissed.cancelled().await;
    }

    /// A guard whose drop marks the job's task as ended.
    pub(crate) fn until_dropped(&self) -> DropGuard {
        self.ended.clone().drop_guard()
    }

    /// Returns at the next change.
    pub(crate) async fn next_change(&self) {
        self.changed.notified().await;
    }

    pub(crate) fn now(&self) -> Now {
        let is_left = self.ended.is_cancelled();
        Now { is_left, ..self.now.lock().expect("nobody panics with it").clone() }
    }
}

/// The running jobs, with the state that a restart may lose.
#[derive(Debug, Default)]
pub(crate) struct RunningJobs {
    jobs: Mutex<BTreeMap<JobId, Arc<Running>>>,
    /// How many jobs have begun.
    begun: AtomicU64,
}

impl RunningJobs {
    /// Registers a job that begins to run, after all others in the order.
    pub(crate) fn begin(&self, job: JobId, promised: Option<(HostId, Need)>) -> Arc<Running> {
        // Taken first, so that a job with a later place always finds those before it.
        let mut all = self.jobs.lock().expect("nobody panics with it");
        let begun = self.begun.fetch_add(1, Ordering::Relaxed);
        let running = Arc::new(Running { promised, begun, ..Running::default() });
        all.insert(job, running.clone());
        running
    }

    /// Removes a job that no longer runs.
    pub(crate) fn end(&self, job: JobId) {
        self.jobs.lock().expect("nobody panics with it").remove(&job);
    }

    /// The state of a running job.
    pub(crate) fn get(&self, job: JobId) -> Option<Arc<Running>> {
        self.jobs.lock().expect("nobody panics with it").get(&job).cloned()
    }

    /// Memory that was promised to open moves, minus what they already use.
    pub(crate) fn promised(&self, open: &[JobRecord]) -> Promised {
        let one = |record: &JobRecord| {
            let (host, need) = memory_of(record)?;
            let arrived = self.get(record.id).map(|running| running.arrived()).unwrap_or_default();
            Some((record.job.vm, host, left(need, arrived)))
        };
        Promised(open.iter().filter_map(one).collect())
    }

    /// Memory of a host that was promised to jobs which began before this one, minus what they already use. So if two
    /// jobs begin at the same time, one of them comes first.
    pub(crate) fn promised_before(&self, job: JobId, host: HostId) -> Vec<Need> {
        let running = self.jobs.lock().expect("nobody panics with it");
        let own = running.get(&job).map_or(u64::MAX, |running| running.begun);
        let before = running.values().filter(|other| other.begun < own);
        let one = |other: &Arc<Running>| {
            let (at, need) = other.promised?;
            (at == host).then(|| left(need, other.arrived()))
        };
        before.filter_map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_a_wait_without_a_break_counts() {
        let running = Arc::new(Running::default());
        let limit = Duration::from_secs(30);
        let waits = |what: &str| running.wait_for(Some(JobText::Text { text: what.to_owned() }));
        let begun = tokio::time::Instant::now();
        let waited = tokio::spawn({
            let running = running.clone();
            async move { running.has_waited(limit).await }
        });
        for _ in 0..3 {
            waits("an agent");
            tokio::time::sleep(limit - Duration::from_secs(1)).await;
            running.wait_for(None);
            tokio::time::sleep(limit * 2).await;
            assert!(!waited.is_finished());
        }
        let waits_from = begun.elapsed();
        waits("an agent");
        tokio::time::sleep(Duration::from_secs(10)).await;
        waits("the same for another reason");
        waited.await.expect("it has waited");
        assert_eq!(begun.elapsed() - waits_from, limit);
    }

    #[test]
    fn of_two_jobs_that_begin_together_the_first_has_the_memory() {
        let jobs = RunningJobs::default();
        let (host, other) = (HostId(Uuid::from_u128(1)), HostId(Uuid::from_u128(2)));
        let need = |mib| Need { page: None, bytes: ByteCount::mib(mib) };
        // The job with the later number began first.
        for (begun, job, at, mib) in [(0, 9, host, 100), (1, 4, host, 20), (2, 5, other, 3), (3, 6, host, 7)] {
            let running = Arc::new(Running { begun, promised: Some((at, need(mib))), ..Running::default() });
            jobs.jobs.lock().expect("nobody panics").insert(JobId(job), running);
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
        jobs.get(JobId(9)).expect("it runs").progress(progress);
        assert_eq!(jobs.promised_before(JobId(4), host), [need(40)], "what has arrived is not promised any more");
        let huge = Need { page: Some(ByteCount::mib(2)), bytes: ByteCount::mib(50) };
        let running = Arc::new(Running { begun: 4, promised: Some((other, huge)), ..Running::default() });
        jobs.jobs.lock().expect("nobody panics").insert(JobId(7), running.clone());
        for (stage, expected) in [(DiskStage::Waiting, 50), (DiskStage::Copying, 0)] {
            running.disks(vec![DiskProgress { stage, ..DiskProgress::default() }]);
            let left = Need { bytes: ByteCount::mib(expected), ..huge };
            assert_eq!(jobs.promised_before(JobId(8), other), [need(3), left], "{stage:?}");
        }
    }
}
