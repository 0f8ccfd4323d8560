//! What may be asked of a job next, decided from its log and from whether it waits.
//!
//! | the job | cancel | undo | retry | dismiss | restart |
//! |---|---|---|---|---|---|
//! | is queued, is prepared, or moves | yes | yes | if it waits | if it waits | |
//! | is being undone | | if it waits | if it waits | if it waits | |
//! | completes | | | if it waits | if it waits | |
//! | is stuck | | before the switchover | yes | yes | |
//! | failed, or was cancelled | | | | | yes |
//!
//! A queued job waits for nothing but its turn.

use serde::{Deserialize, Serialize};

use super::{
    log::{LogEvent, newest_attempt, phase},
    phase::Phase,
};

/// Something that may be asked of a job, as the command line's `ferry job` and the API's routes name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum JobAction {
    /// The job ends, and the VM stays where it is.
    Cancel,
    /// What the job has done so far is undone. Like a cancel; for a job that is being undone, the next try is made now.
    Undo,
    /// What failed is tried again now.
    Retry,
    /// The current state is accepted: nothing more is done.
    Dismiss,
    /// Another attempt.
    Restart,
}

impl JobAction {
    /// Every action.
    pub const ALL: [Self; 5] = [Self::Cancel, Self::Undo, Self::Retry, Self::Dismiss, Self::Restart];
}

/// How a request for an action is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// It is done now.
    Now,
    /// The job is being cancelled already: its host is asked again.
    Again,
    /// The job is being undone already: there is nothing to do.
    Already,
}

/// Why a request for an action is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The VM, or a disk of it, has switched over.
    TooLate,
    /// The job continues by itself.
    GoesOn,
    /// The job has ended.
    Ended,
    /// The job has not failed, and was not cancelled.
    NotFailed,
}

/// The answer to a request for `action` now. `waits`: the job waits for something that may never come, its step keeps
/// failing, or no task drives it. Hosts may know better: that it is too late for a cancel, or that a job whose VM is gone
/// cannot end by itself.
///
/// # Errors
/// Why it is refused.
pub fn answer(action: JobAction, log: &[LogEvent], waits: bool) -> Result<Accepted, Refused> {
    let phase = phase(log);
    let needs_help = phase == Phase::Stuck || (waits && phase != Phase::Queued);
    match (action, phase) {
        (JobAction::Restart, Phase::Failed | Phase::Cancelled) => Ok(Accepted::Now),
        (JobAction::Restart, _) => Err(Refused::NotFailed),
        (_, Phase::Succeeded | Phase::Failed | Phase::Cancelled) => Err(Refused::Ended),
        (JobAction::Retry | JobAction::Dismiss, _) if needs_help => Ok(Accepted::Now),
        (JobAction::Retry | JobAction::Dismiss, _) => Err(Refused::GoesOn),
        (JobAction::Cancel | JobAction::Undo, Phase::Queued | Phase::Preparing | Phase::Migrating) => {
            let is_asked = |event: &LogEvent| matches!(event, LogEvent::CancelRequested { .. });
            Ok(if newest_attempt(log).iter().any(is_asked) { Accepted::Again } else { Accepted::Now })
        }
        (JobAction::Cancel | JobAction::Undo, Phase::Completing) => Err(Refused::TooLate),
        (JobAction::Cancel | JobAction::Undo, Phase::Stuck) if !is_taken_back(newest_attempt(log)) => {
            Err(Refused::TooLate)
        }
        (JobAction::Undo, Phase::Stuck | Phase::RollingBack) if needs_help => Ok(Accepted::Now),
        (JobAction::Cancel | JobAction::Undo, Phase::Stuck | Phase::RollingBack) => Ok(Accepted::Already),
    }
}

/// Whether an attempt failed before the switchover, so that what it prepared is taken back.
pub fn is_taken_back(attempt: &[LogEvent]) -> bool {
    attempt.iter().any(|event| {
        matches!(event, LogEvent::Failed { step, .. } if step.class().is_taken_back())
            || matches!(event, LogEvent::Undone { .. } | LogEvent::UndoFailed { .. })
    })
}

/// The actions that are done now if they are asked for: see [`answer`].
pub fn next(log: &[LogEvent], waits: bool) -> Vec<JobAction> {
    JobAction::ALL.into_iter().filter(|action| answer(*action, log, waits) == Ok(Accepted::Now)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        job_text::JobText,
        migration::{Has, Step, ends_by_itself},
        vm::VmState,
    };

    fn steps(last: Step) -> Vec<LogEvent> {
        let mut log = vec![LogEvent::Accepted, LogEvent::Admitted, LogEvent::AttemptStarted { attempt: 1 }];
        for step in Step::ALL {
            log.push(LogEvent::Intent { step });
            if step == last {
                return log;
            }
            log.push(LogEvent::Succeeded { step });
        }
        log
    }

    #[test]
    fn a_job_offers_what_its_phase_allows() {
        use JobAction::{Cancel, Dismiss, Restart, Retry, Undo};
        let with = |mut log: Vec<LogEvent>, event| {
            log.push(event);
            log
        };
        let why = || JobText::LogSaysWhy;
        let failed = |step| with(steps(step), LogEvent::Failed { step, why: why() });
        let ended = with(failed(Step::Preflight), LogEvent::Undone { step: Step::Preflight });
        let asked = || with(steps(Step::Perform), LogEvent::CancelRequested { by: "admin".into() });
        let not_undone = with(failed(Step::Perform), LogEvent::UndoFailed { step: Step::Reserve, why: why() });
        let done = with(steps(Step::Release), LogEvent::Succeeded { step: Step::Release });
        let queued = || vec![LogEvent::Accepted];
        for (row, log, waits, offered) in [
            ("queued", queued(), false, &[Cancel, Undo][..]),
            ("queued, and no task drives it", queued(), true, &[Cancel, Undo]),
            ("it moves", steps(Step::Perform), false, &[Cancel, Undo]),
            ("it moves, and a host does not answer", steps(Step::Perform), true, &[Cancel, Undo, Retry, Dismiss]),
            ("a cancel was asked for", asked(), false, &[]),
            ("a cancel was asked for, and a host does not answer", asked(), true, &[Retry, Dismiss]),
            ("it completes", steps(Step::Confirm), false, &[]),
            ("it completes, and a host does not answer", steps(Step::Confirm), true, &[Retry, Dismiss]),
            ("failed at once, and nothing is left", ended, false, &[Restart]),
            ("it is undone", failed(Step::Perform), false, &[]),
            ("it is undone, and a host does not answer", failed(Step::Perform), true, &[Undo, Retry, Dismiss]),
            ("it cannot be undone", not_undone, false, &[Undo, Retry, Dismiss]),
            ("it cannot be finished", failed(Step::Confirm), false, &[Retry, Dismiss]),
            ("done", done, true, &[]),
        ] {
            assert_eq!(next(&log, waits), offered, "{row}: {:?}", phase(&log));
        }
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop::sample::select(Step::ALL.to_vec())
    }

    fn any_event() -> impl Strategy<Value = LogEvent> {
        prop_oneof![
            Just(LogEvent::Accepted),
            Just(LogEvent::Admitted),
            Just(LogEvent::AttemptStarted { attempt: 1 }),
            any_step().prop_map(|step| LogEvent::Intent { step }),
            any_step().prop_map(|step| LogEvent::Succeeded { step }),
            any_step().prop_map(|step| LogEvent::Failed { step, why: JobText::LogSaysWhy }),
            Just(LogEvent::CancelRequested { by: "admin".into() }),
            any_step().prop_map(|step| LogEvent::Undone { step }),
            any_step().prop_map(|step| LogEvent::UndoFailed { step, why: JobText::LogSaysWhy }),
            Just(LogEvent::Arrived),
            Just(LogEvent::Dismissed { by: "admin".into(), answers: Vec::new() }),
        ]
    }

    proptest! {
        #[test]
        fn a_job_that_is_offered_to_be_dismissed_does_not_end_by_itself(
            log in prop::collection::vec(any_event(), 0..30),
            waits: bool,
        ) {
            let running = [Has::It(VmState::Running), Has::Nothing];
            if answer(JobAction::Dismiss, &log, waits).is_ok() {
                prop_assert!(!ends_by_itself(phase(&log), waits, &running));
            }
        }
    }
}
