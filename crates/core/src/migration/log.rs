//! The log of a job, and what is folded from it: its phase and its newest attempt. The log is the only stored truth.

use serde::{Deserialize, Serialize};

use super::{
    phase::Phase,
    step::{Step, StepClass},
};
use crate::{
    job_text::{self, JobText},
    vm::VmState,
};

/// An event of a migration. Nothing else is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum LogEvent {
    /// The request was accepted: the job waits for slots. Repeated for each further attempt.
    Accepted,
    /// It was admitted: its slots are free.
    Admitted,
    /// An attempt began; attempts count from 1.
    AttemptStarted {
        /// Its number.
        attempt: u32,
    },
    /// Written before the first side effect of a step.
    Intent {
        /// The step.
        step: Step,
    },
    /// The step is done.
    Succeeded {
        /// The step.
        step: Step,
    },
    /// The step ended without success.
    Failed {
        /// The step.
        step: Step,
        /// What went wrong.
        #[serde(alias = "message", deserialize_with = "job_text::stored")]
        why: JobText,
    },
    /// Someone requested that the VM stay.
    CancelRequested {
        /// Who.
        by: String,
    },
    /// The step's effects were reverted.
    Undone {
        /// The step.
        step: Step,
    },
    /// The step's effects could not be reverted.
    UndoFailed {
        /// The step.
        step: Step,
        /// What went wrong.
        #[serde(alias = "message", deserialize_with = "job_text::stored")]
        why: JobText,
    },
    /// A complete copy was seen at the destination while the source was not seen to run the VM. Whatever hosts report
    /// later, the copy may have been run by hand, and moved on to an unknown place.
    Arrived,
    /// An administrator accepts the current state: nothing more is done.
    Dismissed {
        /// Who.
        by: String,
        /// What hosts then reported about the VM: both ends, and every other host that has it. Empty: they were not
        /// asked.
        #[serde(default, rename = "told")]
        answers: Vec<HostAnswer>,
    },
}

/// A host's report about a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct HostAnswer {
    /// The host's name.
    pub host: String,
    /// What the host has of the VM.
    pub has: Has,
}

/// What a host has of a VM, according to its report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Has {
    /// It knows the VM, in this state.
    It(VmState),
    /// It does not know the VM.
    Nothing,
    /// It does not answer.
    NoAnswer,
}

/// Whether a job reaches its end without intervention; if not, it may be dismissed. `in_vain`: it waits for something,
/// its operation keeps failing, or no task drives it. `sides`: what its hosts report about the VM, asked now.
pub fn ends_by_itself(phase: Phase, in_vain: bool, sides: &[Has]) -> bool {
    match phase {
        Phase::Queued | Phase::Succeeded | Phase::Cancelled | Phase::Failed => true,
        Phase::Stuck => false,
        // Without a VM there is nothing to move, finish or undo, whatever the job would do next.
        Phase::Preparing | Phase::Migrating | Phase::Completing | Phase::RollingBack => {
            !in_vain && !sides.contains(&Has::NoAnswer) && sides.iter().any(|has| matches!(has, Has::It(_)))
        }
    }
}

/// Folds a log to its phase. Every prefix of a legal log has one, so a crash leaves no other state behind.
pub fn phase(log: &[LogEvent]) -> Phase {
    let mut phase = Phase::Queued;
    let mut cancelled = false;
    let mut arrived = false;
    // Steps of this attempt that may have had effects: an intent counts, because a crash may have followed it.
    let mut to_undo: Vec<Step> = Vec::new();
    for event in log {
        phase = match event {
            LogEvent::Accepted => {
                (cancelled, arrived) = (false, false);
                to_undo.clear();
                Phase::Queued
            }
            LogEvent::Admitted | LogEvent::AttemptStarted { .. } => Phase::Preparing,
            LogEvent::Intent { step } => match step.class() {
                StepClass::Compensable => {
                    to_undo.push(*step);
                    Phase::Preparing
                }
                StepClass::Pivot => Phase::Migrating,
                StepClass::Retriable | StepClass::Last => Phase::Completing,
            },
            LogEvent::Succeeded { step } => match step.class() {
                StepClass::Compensable => Phase::Preparing,
                StepClass::Pivot => {
                    arrived = true;
                    Phase::Completing
                }
                StepClass::Retriable => Phase::Completing,
                StepClass::Last => Phase::Succeeded,
            },
            LogEvent::Failed { step, .. } => match step.class() {
                StepClass::Compensable | StepClass::Pivot => rolled_back_or(&to_undo, cancelled),
                StepClass::Retriable | StepClass::Last => Phase::Stuck,
            },
            LogEvent::CancelRequested { .. } => {
                let may = matches!(phase, Phase::Queued | Phase::Preparing | Phase::Migrating);
                cancelled |= may;
                if phase == Phase::Queued { Phase::Cancelled } else { phase }
            }
            LogEvent::Undone { step } => {
                to_undo.retain(|left| left != step);
                rolled_back_or(&to_undo, cancelled)
            }
            LogEvent::UndoFailed { .. } => Phase::Stuck,
            LogEvent::Arrived => phase,
            LogEvent::Dismissed { .. } if arrived => Phase::Succeeded,
            LogEvent::Dismissed { .. } => Phase::Failed,
        };
    }
    phase
}

/// The events of the newest attempt: those since the job was last accepted.
pub fn newest_attempt(log: &[LogEvent]) -> &[LogEvent] {
    let start = log.iter().rposition(|event| *event == LogEvent::Accepted);
    &log[start.unwrap_or(0)..]
}

/// The number of the newest attempt that began; 0: none.
pub fn attempt(log: &[LogEvent]) -> u32 {
    let numbers = log.iter().rev().filter_map(|event| {
        let LogEvent::AttemptStarted { attempt } = event else { return None };
        Some(*attempt)
    });
    numbers.max().unwrap_or(0)
}

fn rolled_back_or(to_undo: &[Step], cancelled: bool) -> Phase {
    match (to_undo.is_empty(), cancelled) {
        (false, _) => Phase::RollingBack,
        (true, true) => Phase::Cancelled,
        (true, false) => Phase::Failed,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn done(step: Step) -> [LogEvent; 2] {
        [LogEvent::Intent { step }, LogEvent::Succeeded { step }]
    }

    fn opening() -> Vec<LogEvent> {
        vec![LogEvent::Accepted, LogEvent::Admitted, LogEvent::AttemptStarted { attempt: 1 }]
    }

    #[test]
    fn a_plain_run_passes_through_the_phases_in_order() {
        let mut log = vec![LogEvent::Accepted];
        assert_eq!(phase(&log), Phase::Queued);
        log = opening();
        assert_eq!(phase(&log), Phase::Preparing);
        for step in Step::ALL {
            log.extend(done(step));
            let expected = match step {
                Step::Preflight | Step::Reserve | Step::PrepareDestination | Step::PrepareSource => Phase::Preparing,
                Step::Perform | Step::Resume | Step::Confirm => Phase::Completing,
                Step::Release => Phase::Succeeded,
            };
            assert_eq!(phase(&log), expected, "after {step:?}");
        }
    }

    #[test]
    fn a_failed_perform_rolls_back_every_step_and_fails() {
        let mut log = opening();
        let prepared = &Step::ALL[..4];
        log.extend(prepared.iter().flat_map(|step| done(*step)));
        log.push(LogEvent::Intent { step: Step::Perform });
        assert_eq!(phase(&log), Phase::Migrating);
        log.push(LogEvent::Failed { step: Step::Perform, why: JobText::LogSaysWhy });
        for step in prepared.iter().rev() {
            assert_eq!(phase(&log), Phase::RollingBack);
            log.push(LogEvent::Undone { step: *step });
        }
        assert_eq!(phase(&log), Phase::Failed);
    }

    #[test]
    fn a_cancel_after_the_pivot_changes_nothing() {
        let mut log = opening();
        log.extend(Step::ALL[..5].iter().flat_map(|step| done(*step)));
        log.push(LogEvent::CancelRequested { by: "admin".into() });
        assert_eq!(phase(&log), Phase::Completing);
        log.extend(Step::ALL[5..].iter().flat_map(|step| done(*step)));
        assert_eq!(phase(&log), Phase::Succeeded);
    }

    #[test]
    fn another_attempt_begins_with_a_clean_slate() {
        let mut log = opening();
        log.push(LogEvent::CancelRequested { by: "admin".into() });
        log.extend([LogEvent::Intent { step: Step::Preflight }, LogEvent::Undone { step: Step::Preflight }]);
        assert_eq!(phase(&log), Phase::Cancelled);
        log.push(LogEvent::Accepted);
        assert_eq!((phase(&log), attempt(&log), newest_attempt(&log).len()), (Phase::Queued, 1, 1));
        log.extend([LogEvent::Admitted, LogEvent::AttemptStarted { attempt: 2 }]);
        assert_eq!((phase(&log), attempt(&log)), (Phase::Preparing, 2));
        log.extend(Step::ALL.iter().flat_map(|step| done(*step)));
        assert_eq!(phase(&log), Phase::Succeeded);
    }

    #[test]
    fn a_dismissed_job_has_ended_where_the_vm_is() {
        let dismissed = LogEvent::Dismissed { by: "admin".into(), answers: Vec::new() };
        let mut log = opening();
        log.extend(Step::ALL[..4].iter().flat_map(|step| done(*step)));
        let before: Vec<_> = log.iter().cloned().chain([dismissed.clone()]).collect();
        assert_eq!(phase(&before), Phase::Failed);
        log.extend(done(Step::Perform));
        log.push(dismissed);
        assert_eq!(phase(&log), Phase::Succeeded);
    }

    #[test]
    fn a_dismissal_of_an_older_server_is_read() {
        let read: LogEvent = serde_json::from_str(r#"{"event":"dismissed","by":"admin"}"#).expect("read");
        assert_eq!(read, LogEvent::Dismissed { by: "admin".into(), answers: Vec::new() });
    }

    #[test]
    fn what_went_wrong_is_stored_as_data_and_that_of_an_older_server_is_read() {
        let old = r#"{"event":"failed","step":"perform","message":"Host kvm2 is away"}"#;
        let read: LogEvent = serde_json::from_str(old).expect("read");
        let why = JobText::Text { text: "Host kvm2 is away".into() };
        assert_eq!(read, LogEvent::Failed { step: Step::Perform, why });
        let new = LogEvent::UndoFailed { step: Step::Reserve, why: JobText::HasVm { host: "kvm2".into() } };
        let text = serde_json::to_string(&new).expect("JSON");
        assert!(text.ends_with(r#""why":{"args":{"host":"kvm2"},"key":"has-vm"}}"#), "no sentence: {text}");
        assert_eq!(serde_json::from_str::<LogEvent>(&text).expect("read"), new);
    }

    #[test]
    fn a_job_that_cannot_end_may_be_dismissed_and_no_other() {
        use Has::{It, NoAnswer, Nothing};
        let open = [Phase::Preparing, Phase::Migrating, Phase::Completing, Phase::RollingBack];
        for phase in open {
            for (row, in_vain, sides, expected) in [
                ("the VM is at the source", false, [It(VmState::Running), Nothing], true),
                ("the VM is at the destination", false, [Nothing, It(VmState::Paused)], true),
                ("it is at both while it moves", false, [It(VmState::Running), It(VmState::Incoming)], true),
                ("it fails, or waits", true, [It(VmState::Running), Nothing], false),
                ("the VM was destroyed and undefined by hand", false, [Nothing, Nothing], false),
                ("a host says nothing", false, [It(VmState::Running), NoAnswer], false),
                ("neither says anything", false, [NoAnswer, NoAnswer], false),
            ] {
                assert_eq!(ends_by_itself(phase, in_vain, &sides), expected, "{phase:?}: {row}");
            }
        }
        let here = [It(VmState::Running), Nothing];
        assert!(!ends_by_itself(Phase::Stuck, false, &here));
        for phase in [Phase::Queued, Phase::Succeeded, Phase::Cancelled, Phase::Failed] {
            assert!(ends_by_itself(phase, true, &[NoAnswer, NoAnswer]), "{phase:?}: cancelled, or over");
        }
    }

    fn any_event() -> impl Strategy<Value = LogEvent> {
        let step = (0..Step::ALL.len()).prop_map(|index| Step::ALL[index]);
        prop_oneof![
            Just(LogEvent::Accepted),
            Just(LogEvent::Admitted),
            (1..9u32).prop_map(|attempt| LogEvent::AttemptStarted { attempt }),
            step.clone().prop_map(|step| LogEvent::Intent { step }),
            step.clone().prop_map(|step| LogEvent::Succeeded { step }),
            step.clone().prop_map(|step| LogEvent::Failed { step, why: JobText::LogSaysWhy }),
            Just(LogEvent::CancelRequested { by: String::new() }),
            step.clone().prop_map(|step| LogEvent::Undone { step }),
            step.prop_map(|step| LogEvent::UndoFailed { step, why: JobText::LogSaysWhy }),
            Just(LogEvent::Dismissed { by: String::new(), answers: Vec::new() }),
            Just(LogEvent::Arrived),
        ]
    }

    proptest! {
        #[test]
        fn every_log_folds_to_a_phase(log in prop::collection::vec(any_event(), 0..40)) {
            let _ = phase(&log);
        }
    }
}
