//! Drives a job by its log. Generic and dull: the log is the only stored truth, [`next`] says what it asks for.
//!
//! ```text
//! Intent ──▶ run ──▶ Succeeded ──▶ Intent of the next step …
//!              └──▶ Failed ──▶ undo newest first ──▶ Undone …        compensable steps and the pivot
//!              └──▶ again, with backoff; Failed is written once,     retriable steps, and every undo
//!                   so that the job shows as stuck, and again
//! ```
//! An intent is on the disk before the first side effect of its step, so after a crash the newest intent without an
//! outcome is the step to look at: `probe` says whether it was done, else it is run again.
//!
//! While the database cannot be written or read, nothing is done: what is to be written waits, and is written when it can
//! be. See [`Running::kept`].

use std::{future::Future, time::Duration};

use ferry_core::{
    backoff::Backoff,
    id::JobId,
    migration::{LogEvent, Phase, Step, StepClass, newest_attempt, phase},
};

use crate::{
    clock::now_ms,
    jobs::running::Running,
    store::{LogEntry, LogRow, Store, StoreError},
};

/// A step or its undo did not work: what was attempted, on what, and why. One sentence without a full stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StepFailed(pub(crate) String);

/// Where the events of jobs are kept.
pub(crate) trait Log: Sync {
    /// Those of a job, oldest first.
    fn events(&self, job: JobId) -> impl Future<Output = Result<Vec<LogEvent>, StoreError>> + Send;
    /// Adds to them. On the disk when it returns.
    fn append(&self, job: JobId, events: &[LogEvent]) -> impl Future<Output = Result<(), StoreError>> + Send;
}

impl Log for Store {
    async fn events(&self, job: JobId) -> Result<Vec<LogEvent>, StoreError> {
        Ok(LogRow::events(&self.log(job).await?))
    }

    async fn append(&self, job: JobId, events: &[LogEvent]) -> Result<(), StoreError> {
        let entries: Vec<LogEntry> = events.iter().cloned().map(LogEntry::Event).collect();
        Self::append(self, job, &entries, now_ms()).await
    }
}

/// What the steps of a job do. Each may be repeated.
pub(crate) trait Saga: Sync {
    /// Its steps, in order; the last is [`Step::Release`].
    fn steps(&self) -> &'static [Step];
    /// Whether all effects of a step, whose intent an earlier life of the server wrote, are there.
    fn probe(&self, step: Step) -> impl Future<Output = bool> + Send;
    /// Does the step. An error of the pivot promises that the source has the VM.
    fn run(&self, step: Step) -> impl Future<Output = Result<(), StepFailed>> + Send;
    /// Takes the step's effects back, also if only some or none of them are there.
    fn undo(&self, step: Step) -> impl Future<Output = Result<(), StepFailed>> + Send;
    /// What is shown of the job while it runs.
    fn running(&self) -> &Running;
    /// Returns after `pause`, or when somebody wants it to be tried now.
    fn pause(&self, pause: Duration) -> impl Future<Output = ()> + Send {
        self.running().pause(pause)
    }
}

/// How often a step that must be done is tried, and how fast.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Pauses after failures.
    pub(crate) backoff: Backoff,
    /// After this many failures the job shows as stuck; it is tried on.
    pub(crate) tries_before_stuck: u32,
}

impl Patience {
    /// Stuck is shown after some 13 seconds: longer than an agent's restart takes.
    pub(crate) const USUAL: Self =
        Self { backoff: Backoff::new(Duration::from_millis(100), Duration::from_secs(5)), tries_before_stuck: 8 };
}

/// What a log asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Write the intent of a step and run it.
    Begin(Step),
    /// The step's intent is written, its outcome is not.
    Continue(Step),
    /// Take a step back.
    Undo(Step),
    /// Nothing more.
    End,
}

fn next(log: &[LogEvent], steps: &[Step]) -> Next {
    if phase(log).ended() {
        return Next::End;
    }
    let (mut open, mut failed, mut cancelled, mut pivoting) = (Vec::new(), false, false, false);
    let mut outcome = None;
    for event in newest_attempt(log) {
        match event {
            LogEvent::Accepted
            | LogEvent::Admitted
            | LogEvent::AttemptStarted { .. }
            | LogEvent::UndoFailed { .. }
            | LogEvent::Arrived
            | LogEvent::Dismissed { .. } => {}
            LogEvent::Intent { step } => {
                open.push(*step);
                outcome = None;
                // A wish to cancel that came before the pivot's intent keeps the pivot from being run at all.
                pivoting |= step.class() == StepClass::Pivot && !cancelled;
            }
            LogEvent::Succeeded { step } => outcome = Some(*step),
            LogEvent::Failed { step, .. } => failed |= step.class() != StepClass::Retriable,
            LogEvent::CancelRequested { .. } => cancelled = true,
            LogEvent::Undone { step } => {
                failed = true;
                open.retain(|left| left != step);
            }
        }
    }
    // Once the pivot has begun, only its own outcome says whether the move can be taken back.
    if failed || (cancelled && !pivoting) {
        let newest = open.iter().rev().find(|step| step.class() == StepClass::Compensable);
        // With nothing to take back, saying so of the first step is what ends the job.
        return Next::Undo(newest.copied().unwrap_or(Step::Preflight));
    }
    match (open.last(), outcome) {
        (None, _) => Next::Begin(Step::Preflight),
        (Some(last), Some(done)) if *last == done => {
            steps.iter().find(|step| **step > done).map_or(Next::End, |step| Next::Begin(*step))
        }
        (Some(last), _) => Next::Continue(*last),
    }
}

/// Drives a job until its log has ended. May be dropped at any point and called again: nothing is lost.
pub(crate) async fn drive(log: &impl Log, job: JobId, saga: &impl Saga, patience: Patience) -> Phase {
    // An intent without outcome that is there already was written by an earlier life.
    let mut inherited = true;
    loop {
        let events = saga.running().kept(|| log.events(job)).await;
        match next(&events, saga.steps()) {
            Next::End => return phase(&events),
            Next::Begin(step) => append(log, job, saga, &[LogEvent::Intent { step }]).await,
            Next::Continue(step) => {
                stop_here(format!("saga-intent-{step:?}")).await;
                let done = inherited && saga.probe(step).await;
                if done || run(log, job, saga, step, patience).await {
                    stop_here(format!("saga-done-{step:?}")).await;
                    append_success(log, job, saga, step).await;
                }
            }
            Next::Undo(step) => undo(log, job, saga, step, patience).await,
        }
        inherited = false;
    }
}

/// Lets a test stop the job, and nothing but the job, at a named point: a thread that waits must not be one that the
/// runtime counts on.
#[cfg(feature = "failpoints")]
async fn stop_here(point: String) {
    if !fail::list().iter().any(|(name, _)| *name == point) {
        return;
    }
    let stopped = tokio::task::spawn_blocking(move || {
        fail::fail_point!(&point);
    });
    stopped.await.expect("the point does not panic");
}

#[cfg(not(feature = "failpoints"))]
async fn stop_here(_point: String) {}

/// Whether the step is done; if not, its failure is in the log.
async fn run(log: &impl Log, job: JobId, saga: &impl Saga, step: Step, patience: Patience) -> bool {
    match step.class() {
        StepClass::Compensable | StepClass::Pivot => {
            let Err(StepFailed(message)) = saga.run(step).await else { return true };
            append(log, job, saga, &[LogEvent::Failed { step, message }]).await;
            false
        }
        StepClass::Retriable => {
            let stuck = |message| LogEvent::Failed { step, message };
            repeat(log, job, saga, patience, || saga.run(step), stuck).await;
            true
        }
    }
}

async fn undo(log: &impl Log, job: JobId, saga: &impl Saga, step: Step, patience: Patience) {
    let stuck = |message| LogEvent::UndoFailed { step, message };
    repeat(log, job, saga, patience, || saga.undo(step), stuck).await;
    append(log, job, saga, &[LogEvent::Undone { step }]).await;
}

/// Tries until it is done. That it was tried in vain is shown from the first time on; the log says once that it is stuck.
async fn repeat<F: Future<Output = Result<(), StepFailed>>>(
    log: &impl Log,
    job: JobId,
    saga: &impl Saga,
    patience: Patience,
    attempt: impl Fn() -> F,
    stuck: impl Fn(String) -> LogEvent,
) {
    let mut backoff = patience.backoff;
    let mut failures = 0;
    while let Err(StepFailed(message)) = attempt().await {
        failures += 1;
        saga.running().in_vain(Some(message.clone()));
        if failures == patience.tries_before_stuck {
            tracing::warn!(job = job.0, message, "The job is stuck; it is tried on");
            append(log, job, saga, &[stuck(message)]).await;
            saga.running().stuck();
        }
        saga.pause(backoff.pause()).await;
    }
    saga.running().in_vain(None);
}

/// Writes that a step is done, together with the intent of the one after it: one wait for the disk, not two.
async fn append_success(log: &impl Log, job: JobId, saga: &impl Saga, step: Step) {
    let mut events = vec![LogEvent::Succeeded { step }];
    let following = saga.steps().iter().find(|other| **other > step);
    events.extend(following.map(|step| LogEvent::Intent { step: *step }));
    append(log, job, saga, &events).await;
}

/// On the disk when it returns. A line that is there twice, since the database failed after it had written it, says what
/// it says once.
async fn append(log: &impl Log, job: JobId, saga: &impl Saga, events: &[LogEvent]) {
    saga.running().kept(|| log.append(job, events)).await;
    saga.running().changed();
}
