//! Drives a job by its log. Generic and dull: only the log is stored, and [`next`] derives from it what to do.
//!
//! ```text
//! Intent ──▶ run ──▶ Succeeded ──▶ Intent of the next step …
//!              └──▶ Failed ──▶ undo newest first ──▶ Undone …        compensable steps and the pivot
//!              └──▶ again, with backoff; Failed is written once,     retriable steps, and every undo
//!                   so that the job shows as stuck, and again
//! ```
//! An intent is on disk before the first side effect of its step. So after a crash, only the newest intent without an
//! outcome is in doubt: `probe` tells whether its step was done; otherwise the step is run again.
//!
//! While the database cannot be read or written, nothing is done: writes wait until they succeed. See
//! [`Running::kept`].

use std::{future::Future, time::Duration};

use ferry_core::{
    backoff::Backoff,
    id::JobId,
    job_text::JobText,
    migration::{LogEvent, Phase, Step, StepClass, newest_attempt, phase},
};

use futures_util::future::BoxFuture;

use crate::{
    clock::now_ms,
    jobs::running::Running,
    store::{LogEntry, LogRow, Store, StoreError},
};

/// A step or its undo did not work: why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StepFailed(pub(crate) JobText);

/// Where the events of jobs are stored.
pub(crate) trait Log: Sync {
    /// The events of a job, oldest first.
    fn events(&self, job: JobId) -> impl Future<Output = Result<Vec<LogEvent>, StoreError>> + Send;
    /// Appends events. They are on disk when this returns.
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

/// The actions of a job's steps. Each may be repeated.
pub(crate) trait Saga: Send + Sync {
    /// The steps in order: the first is compensable, exactly one is the pivot, and the last ends the job.
    fn steps(&self) -> &[Step];
    /// Whether a step whose intent was written by an earlier run of the server has had all its effects.
    fn probe(&mut self, step: Step) -> impl Future<Output = bool> + Send;
    /// Runs the step. If the pivot returns an error, the source has the VM.
    fn run(&mut self, step: Step) -> impl Future<Output = Result<(), StepFailed>> + Send;
    /// Reverts the step's effects, even if only some or none of them exist.
    fn undo(&mut self, step: Step) -> impl Future<Output = Result<(), StepFailed>> + Send;
    /// The state of the job that is shown while it runs.
    fn running(&self) -> &Running;
    /// Returns after `pause`, or as soon as a user asks to try again now.
    fn pause(&self, pause: Duration) -> impl Future<Output = ()> + Send {
        self.running().pause(pause)
    }
}

/// The action that runs or undoes a step.
pub(super) type Act<S> = for<'a> fn(&'a mut S) -> BoxFuture<'a, Result<(), StepFailed>>;

/// One step of a saga: a row of its table.
pub(super) struct Entry<S> {
    step: Step,
    run: Act<S>,
    /// None: there is nothing to revert, or it is never reverted.
    undo: Option<Act<S>>,
}

impl<S> Entry<S> {
    /// A step that `undo` reverts.
    pub(super) const fn undone(step: Step, run: Act<S>, undo: Act<S>) -> Self {
        Self { step, run, undo: Some(undo) }
    }

    /// A step that changes nothing, or that is never reverted.
    pub(super) const fn kept(step: Step, run: Act<S>) -> Self {
        Self { step, run, undo: None }
    }

    /// The table's row for a step.
    pub(super) fn of<const LENGTH: usize>(table: [Self; LENGTH], step: Step) -> Self {
        let mut found = table.into_iter().filter(|entry| entry.step == step);
        found.next().expect("a saga is made only of a plan whose steps are in its table")
    }

    /// Whether a table has every step of a plan.
    pub(super) fn has_all<const LENGTH: usize>(table: &[Self; LENGTH], steps: &[Step]) -> bool {
        steps.iter().all(|step| table.iter().any(|entry| entry.step == *step))
    }

    pub(super) async fn run(&self, saga: &mut S) -> Result<(), StepFailed> {
        (self.run)(saga).await
    }

    pub(super) async fn undo(&self, saga: &mut S) -> Result<(), StepFailed> {
        match self.undo {
            Some(undo) => undo(saga).await,
            None => Ok(()),
        }
    }
}

/// How often and how fast a step that must succeed is tried.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RetryPolicy {
    /// The pauses after failures.
    pub(crate) backoff: Backoff,
    /// After this many failures the job shows as stuck; the tries continue.
    pub(crate) tries_before_stuck: u32,
}

impl RetryPolicy {
    /// A job shows as stuck after some 13 seconds: longer than a restart of an agent takes.
    pub(crate) const USUAL: Self =
        Self { backoff: Backoff::new(Duration::from_millis(100), Duration::from_secs(5)), tries_before_stuck: 8 };
}

/// The next action, according to the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Write the intent of a step and run it.
    Begin(Step),
    /// The step's intent is written, but not its outcome.
    Continue(Step),
    /// Undo a step.
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
                // If the cancellation came before the pivot's intent, the pivot is not run at all.
                pivoting |= step.class() == StepClass::Pivot && !cancelled;
            }
            LogEvent::Succeeded { step } => outcome = Some(*step),
            LogEvent::Failed { step, .. } => failed |= step.class().is_taken_back(),
            LogEvent::CancelRequested { .. } => cancelled = true,
            LogEvent::Undone { step } => {
                failed = true;
                open.retain(|left| left != step);
            }
        }
    }
    let first = *steps.first().expect("a job that is driven has steps");
    // Once the pivot has begun, only its own outcome decides whether the move can be undone.
    if failed || (cancelled && !pivoting) {
        let newest = open.iter().rev().find(|step| step.class() == StepClass::Compensable);
        // If no step needs an undo, the job ends by recording an undo of the first step.
        return Next::Undo(newest.copied().unwrap_or(first));
    }
    match (open.last(), outcome) {
        (None, _) => Next::Begin(first),
        (Some(last), Some(done)) if *last == done => following(steps, done).map_or(Next::End, Next::Begin),
        (Some(last), _) => Next::Continue(*last),
    }
}

/// The step after this one.
fn following(steps: &[Step], done: Step) -> Option<Step> {
    steps.iter().copied().skip_while(|step| *step != done).nth(1)
}

/// Drives a job until its log has ended. May be dropped at any point and called again: nothing is lost.
pub(crate) async fn drive(log: &impl Log, job: JobId, saga: &mut impl Saga, policy: RetryPolicy) -> Phase {
    // An intent without outcome that already exists was written by an earlier run of the server.
    let mut inherited = true;
    loop {
        let events = saga.running().kept(|| log.events(job)).await;
        match next(&events, saga.steps()) {
            Next::End => return phase(&events),
            Next::Begin(step) => append(log, job, saga, &[LogEvent::Intent { step }]).await,
            Next::Continue(step) => {
                stop_here(format!("saga-intent-{step:?}")).await;
                let done = inherited && saga.probe(step).await;
                if done || run(log, job, saga, step, policy).await {
                    stop_here(format!("saga-done-{step:?}")).await;
                    append_success(log, job, saga, step).await;
                }
            }
            Next::Undo(step) => {
                repeat(log, job, saga, policy, StepAction::Undo(step)).await;
                append(log, job, saga, &[LogEvent::Undone { step }]).await;
            }
        }
        inherited = false;
    }
}

/// Lets a test stop this job alone at a named point: the waiting thread must not be one of the runtime's workers.
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

/// Runs a step. Returns whether it succeeded; if not, the failure is in the log.
async fn run(log: &impl Log, job: JobId, saga: &mut impl Saga, step: Step, policy: RetryPolicy) -> bool {
    if !step.class().is_taken_back() {
        repeat(log, job, saga, policy, StepAction::Run(step)).await;
        return true;
    }
    let Err(StepFailed(why)) = saga.run(step).await else { return true };
    append(log, job, saga, &[LogEvent::Failed { step, why }]).await;
    false
}

/// The action that is repeated until it succeeds.
#[derive(Clone, Copy)]
enum StepAction {
    Run(Step),
    Undo(Step),
}

/// Repeats an action until it succeeds. Failures are shown from the first one on; the log records once that the job is
/// stuck.
async fn repeat(log: &impl Log, job: JobId, saga: &mut impl Saga, policy: RetryPolicy, action: StepAction) {
    let mut backoff = policy.backoff;
    let mut failures = 0;
    loop {
        let tried = match action {
            StepAction::Run(step) => saga.run(step).await,
            StepAction::Undo(step) => saga.undo(step).await,
        };
        let Err(StepFailed(why)) = tried else { break };
        failures += 1;
        saga.running().in_vain(Some(why.clone()));
        if failures == policy.tries_before_stuck {
            tracing::warn!(job = job.0, %why, "The job is stuck; it is tried on");
            let event = match action {
                StepAction::Run(step) => LogEvent::Failed { step, why },
                StepAction::Undo(step) => LogEvent::UndoFailed { step, why },
            };
            append(log, job, saga, &[event]).await;
            saga.running().stuck();
        }
        saga.pause(backoff.pause()).await;
    }
    saga.running().in_vain(None);
}

/// Records the success of a step together with the intent of the next one: one wait for the disk instead of two.
async fn append_success(log: &impl Log, job: JobId, saga: &mut impl Saga, step: Step) {
    let mut events = vec![LogEvent::Succeeded { step }];
    events.extend(following(saga.steps(), step).map(|step| LogEvent::Intent { step }));
    append(log, job, saga, &events).await;
}

/// Appends events. They are on disk when this returns. If the database failed after writing, a line is there twice,
/// which means the same as once.
async fn append(log: &impl Log, job: JobId, saga: &impl Saga, events: &[LogEvent]) {
    saga.running().kept(|| log.append(job, events)).await;
    saga.running().changed();
}
