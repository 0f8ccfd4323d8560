//! What may be asked of a job next, by its log and by whether it gets on.
//!
//! | the job | cancel | retry | dismiss | restart |
//! |---|---|---|---|---|
//! | waits for its turn | yes | | | |
//! | is prepared, or moves | yes | if it waits for something | if it waits for something | |
//! | completes, or is taken back | | if it waits for something | if it waits for something | |
//! | is stuck | | yes | yes | |
//! | failed, or was cancelled | | | | yes |

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
    /// The VM stays where it is.
    Cancel,
    /// What is tried again and again is tried now.
    Retry,
    /// What is, is accepted; nothing more is done.
    Dismiss,
    /// Another attempt.
    Restart,
}

/// What becomes of a cancel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelAnswer {
    /// It begins; or one that began is repeated to the host.
    Begins,
    /// What was done is being taken back already.
    TakenBack,
    /// The VM, or a disk of it, has switched over.
    TooLate,
    /// The job has ended, in this phase.
    Ended(Phase),
}

/// What becomes of a cancel now. A host may know that it is too late for one that begins.
pub fn cancel(log: &[LogEvent]) -> CancelAnswer {
    match phase(log) {
        ended @ (Phase::Succeeded | Phase::Cancelled | Phase::Failed) => CancelAnswer::Ended(ended),
        Phase::RollingBack => CancelAnswer::TakenBack,
        Phase::Stuck if is_taken_back(newest_attempt(log)) => CancelAnswer::TakenBack,
        Phase::Completing | Phase::Stuck => CancelAnswer::TooLate,
        Phase::Queued | Phase::Preparing | Phase::Migrating => CancelAnswer::Begins,
    }
}

/// Whether an attempt failed before the switchover, so that what it prepared is taken back.
pub fn is_taken_back(attempt: &[LogEvent]) -> bool {
    attempt.iter().any(|event| {
        matches!(event, LogEvent::Failed { step, .. } if step.class().is_taken_back())
            || matches!(event, LogEvent::Undone { .. } | LogEvent::UndoFailed { .. })
    })
}

/// What may be asked of a job now. `waits`: it waits for something that may never come, or what it does fails.
pub fn next(log: &[LogEvent], waits: bool) -> Vec<JobAction> {
    let phase = phase(log);
    let is_cancelled = newest_attempt(log).iter().any(|event| matches!(event, LogEvent::CancelRequested { .. }));
    let cancel = (cancel(log) == CancelAnswer::Begins && !is_cancelled).then_some(JobAction::Cancel);
    let others: &[JobAction] = match phase {
        Phase::Failed | Phase::Cancelled => &[JobAction::Restart],
        Phase::Stuck => &[JobAction::Retry, JobAction::Dismiss],
        Phase::Preparing | Phase::Migrating | Phase::Completing | Phase::RollingBack if waits => {
            &[JobAction::Retry, JobAction::Dismiss]
        }
        Phase::Preparing | Phase::Migrating | Phase::Completing | Phase::RollingBack => &[],
        Phase::Queued | Phase::Succeeded => &[],
    };
    cancel.into_iter().chain(others.iter().copied()).collect()
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
        use JobAction::{Cancel, Dismiss, Restart, Retry};
        let failed = |step| {
            let mut log = steps(step);
            log.push(LogEvent::Failed { step, why: JobText::LogSaysWhy });
            log
        };
        let mut ended = failed(Step::Preflight);
        ended.push(LogEvent::Undone { step: Step::Preflight });
        let asked = {
            let mut log = steps(Step::Perform);
            log.push(LogEvent::CancelRequested { by: "admin".into() });
            log
        };
        for (row, log, waits, offered) in [
            ("queued", vec![LogEvent::Accepted], false, &[Cancel][..]),
            ("it moves", steps(Step::Perform), false, &[Cancel]),
            ("it moves, and a host does not answer", steps(Step::Perform), true, &[Cancel, Retry, Dismiss]),
            ("a cancel was asked for", asked, false, &[]),
            ("it completes", steps(Step::Confirm), false, &[]),
            ("it completes, and a host does not answer", steps(Step::Confirm), true, &[Retry, Dismiss]),
            ("failed at once, and nothing is left", ended, false, &[Restart]),
            ("it is taken back", failed(Step::Perform), false, &[]),
            ("it cannot be finished", failed(Step::Confirm), false, &[Retry, Dismiss]),
            (
                "done",
                {
                    let mut log = steps(Step::Release);
                    log.push(LogEvent::Succeeded { step: Step::Release });
                    log
                },
                false,
                &[],
            ),
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
            Just(LogEvent::Dismissed { by: "admin".into(), told: Vec::new() }),
        ]
    }

    proptest! {
        /// The use cases ask the same functions: what is offered is not refused for what the log says.
        #[test]
        fn what_is_offered_is_accepted(log in prop::collection::vec(any_event(), 0..30), waits: bool) {
            let phase = phase(&log);
            let running = [Has::It(VmState::Running), Has::Nothing];
            for action in next(&log, waits) {
                match action {
                    JobAction::Cancel => prop_assert_eq!(cancel(&log), CancelAnswer::Begins),
                    JobAction::Retry => prop_assert!(!phase.ended()),
                    JobAction::Dismiss => prop_assert!(!phase.ended() && !ends_by_itself(phase, waits, &running)),
                    JobAction::Restart => prop_assert!(matches!(phase, Phase::Failed | Phase::Cancelled)),
                }
            }
        }
    }
}
