//! A migration as its log tells it: steps, events, the phase they fold to, and who has the VM.
//!
//! ```text
//! Preflight → Reserve → PrepareDestination → PrepareSource → Perform → Resume → Confirm → Release
//! compensable ×4 (undone newest first)                       pivot     retriable ×3 (repeated until done)
//!
//! Queued → Preparing → Migrating → Completing → Succeeded
//!              └───────────┴→ RollingBack → Cancelled | Failed      UndoFailed or a retriable step that fails → Stuck
//! ```
//!
//! The log is the only stored truth; [`phase`] is a fold over it. The point of no return lies inside
//! [`Step::Perform`]: the moment the Finish reply reaches the source's libvirtd, which then ends the source's copy.

use serde::{Deserialize, Serialize};

use crate::{job::JobKind, vm::VmState};

/// One step of a migration, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Facts of both hosts are collected and judged.
    Preflight,
    /// The VM is taken for this job, so that no other moves it.
    Reserve,
    /// The destination's carrier listens and knows the session.
    PrepareDestination,
    /// The source's carrier has connected; the VM is held against a second start; autostart is cleared.
    PrepareSource,
    /// libvirt moves memory and hands over. The point of no return lies in here.
    Perform,
    /// The destination's agent runs the VM there.
    Resume,
    /// The source's definition goes; autostart is set at the destination.
    Confirm,
    /// Carriers, sockets, holds and journals are cleaned.
    Release,
}

/// What may be done about a step that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepClass {
    /// Undone, newest first.
    Compensable,
    /// Holds the point of no return: who has the VM decides.
    Pivot,
    /// Repeated until done.
    Retriable,
}

impl Step {
    /// Every step, in order.
    pub const ALL: [Self; 8] = [
        Self::Preflight,
        Self::Reserve,
        Self::PrepareDestination,
        Self::PrepareSource,
        Self::Perform,
        Self::Resume,
        Self::Confirm,
        Self::Release,
    ];

    /// The steps of a job of a kind, in order; of one whose work is done by others, none.
    pub fn of(kind: JobKind) -> &'static [Self] {
        match kind {
            JobKind::Live | JobKind::LiveVsm => &Self::ALL,
            // Nothing runs, so nothing is resumed.
            JobKind::Offline => &[
                Self::Preflight,
                Self::Reserve,
                Self::PrepareDestination,
                Self::PrepareSource,
                Self::Perform,
                Self::Confirm,
                Self::Release,
            ],
            // Both ends are one host: there is no source to prepare, and the VM never stands still.
            JobKind::Storage => {
                &[Self::Preflight, Self::Reserve, Self::PrepareDestination, Self::Perform, Self::Confirm, Self::Release]
            }
            JobKind::Several | JobKind::Drain => &[],
        }
    }

    /// For people, in the present tense, as a step of a job of this kind.
    pub fn title_in(self, kind: JobKind) -> &'static str {
        match (kind, self) {
            (JobKind::Storage, Self::Preflight) => "Check the host",
            (JobKind::Storage, Self::PrepareDestination) => "Make the new files",
            (JobKind::Storage, Self::Perform) => "Copy and switch over",
            (JobKind::Storage, Self::Confirm) => "Remove the old files",
            (JobKind::Offline, Self::PrepareDestination) => "Make the new files",
            (JobKind::Offline, Self::PrepareSource) => "Hold the VM at the source",
            (JobKind::Offline, Self::Perform) => "Copy files, define at the destination",
            (JobKind::Offline, Self::Confirm) => "Remove definition and files at the source",
            (JobKind::LiveVsm, Self::PrepareDestination) => "Make the new files and prepare the destination",
            (JobKind::LiveVsm, Self::Perform) => "Copy disks, move memory and state",
            (JobKind::LiveVsm, Self::Confirm) => "Remove the old files and confirm",
            (_, step) => step.title(),
        }
    }

    /// What may be done when it fails.
    pub fn class(self) -> StepClass {
        match self {
            Self::Preflight | Self::Reserve | Self::PrepareDestination | Self::PrepareSource => StepClass::Compensable,
            Self::Perform => StepClass::Pivot,
            Self::Resume | Self::Confirm | Self::Release => StepClass::Retriable,
        }
    }

    /// For people, in the present tense.
    pub fn title(self) -> &'static str {
        match self {
            Self::Preflight => "Check both hosts",
            Self::Reserve => "Reserve the VM",
            Self::PrepareDestination => "Prepare the destination",
            Self::PrepareSource => "Prepare the source",
            Self::Perform => "Move memory and state",
            Self::Resume => "Resume at the destination",
            Self::Confirm => "Confirm at the source",
            Self::Release => "Clean up",
        }
    }
}

/// What happened to a migration. The only thing stored of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum LogEvent {
    /// The request was taken: the job waits for its turn. Again for another attempt.
    Accepted,
    /// Its turn came.
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
        /// What went wrong, and where the VM is.
        message: String,
    },
    /// Somebody wants the VM to stay.
    CancelRequested {
        /// Who.
        by: String,
    },
    /// The step's effects are gone.
    Undone {
        /// The step.
        step: Step,
    },
    /// The step's effects could not be taken back.
    UndoFailed {
        /// The step.
        step: Step,
        /// What went wrong, and what is left.
        message: String,
    },
    /// A complete copy was seen at the destination, and the source was not seen to run the VM. Whatever hosts say later, the
    /// copy may have been run by hand, and moved on to where nobody knows.
    Arrived,
    /// Somebody accepts what is: nothing more is done.
    Dismissed {
        /// Who.
        by: String,
        /// What hosts said of the VM then: both ends, and every other host that has it. Empty: they were not asked.
        #[serde(default)]
        told: Vec<Told>,
    },
}

/// What a host said of a VM when it was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Told {
    /// The host's name.
    pub host: String,
    /// What it has of the VM.
    pub has: Has,
}

/// What a host has of a VM, as far as it says.
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

/// Whether a job goes on to its end without anybody's doing. `in_vain`: it waits for something, what it does fails, or
/// nobody drives it. `ends`: what its hosts say of the VM, asked now. A job that does not may be dismissed.
pub fn ends_by_itself(phase: Phase, in_vain: bool, ends: &[Has]) -> bool {
    match phase {
        Phase::Queued | Phase::Succeeded | Phase::Cancelled | Phase::Failed => true,
        Phase::Stuck => false,
        // Without a VM there is nothing to move, to finish or to take back, whatever the job is about to do.
        Phase::Preparing | Phase::Migrating | Phase::Completing | Phase::RollingBack => {
            !in_vain && !ends.contains(&Has::NoAnswer) && ends.iter().any(|has| matches!(has, Has::It(_)))
        }
    }
}

/// Where a migration stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// It waits for its turn.
    Queued,
    /// Steps before the move.
    Preparing,
    /// The memory moves; it may be cancelled.
    Migrating,
    /// The VM is at the destination; what is left is done until it is done.
    Completing,
    /// Steps are being undone.
    RollingBack,
    /// The VM runs at the destination and nothing is left at the source.
    Succeeded,
    /// The VM runs at the source, by request.
    Cancelled,
    /// The VM runs at the source, because something went wrong.
    Failed,
    /// It waits for somebody's decision or for a host to come back.
    Stuck,
}

impl Phase {
    /// Whether nothing more will happen by itself.
    pub fn ended(self) -> bool {
        match self {
            Self::Succeeded | Self::Cancelled | Self::Failed => true,
            Self::Queued | Self::Preparing | Self::Migrating | Self::Completing | Self::RollingBack | Self::Stuck => {
                false
            }
        }
    }

    /// For people.
    pub fn title(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Preparing => "preparing",
            Self::Migrating => "migrating",
            Self::Completing => "completing",
            Self::RollingBack => "rolling back",
            Self::Succeeded => "succeeded",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
            Self::Stuck => "stuck",
        }
    }
}

/// The phase that a log folds to. Any prefix of a legal log has one: a crash leaves no other state behind.
pub fn phase(log: &[LogEvent]) -> Phase {
    let mut phase = Phase::Queued;
    let mut cancelled = false;
    let mut arrived = false;
    // Steps of this attempt whose effects may be there: an intent counts, since the crash may lie behind it.
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
                StepClass::Retriable => Phase::Completing,
            },
            LogEvent::Succeeded { step } => match (step.class(), step) {
                (StepClass::Compensable, _) => Phase::Preparing,
                (StepClass::Pivot, _) => {
                    arrived = true;
                    Phase::Completing
                }
                (StepClass::Retriable, Step::Release) => Phase::Succeeded,
                (StepClass::Retriable, _) => Phase::Completing,
            },
            LogEvent::Failed { step, .. } => match step.class() {
                StepClass::Compensable | StepClass::Pivot => rolled_back_or(&to_undo, cancelled),
                StepClass::Retriable => Phase::Stuck,
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

/// The events of the newest attempt: those since the job was accepted last.
pub fn newest_attempt(log: &[LogEvent]) -> &[LogEvent] {
    let start = log.iter().rposition(|event| *event == LogEvent::Accepted);
    &log[start.unwrap_or(0)..]
}

/// The number of the newest attempt that began; 0: none did.
pub fn attempt(log: &[LogEvent]) -> u32 {
    let numbers = log.iter().rev().filter_map(|event| match event {
        LogEvent::AttemptStarted { attempt } => Some(*attempt),
        _ => None,
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

/// What one host says of the VM, asked now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Presence {
    /// Its vCPUs run here.
    Running,
    /// It has a process here that was paused before or apart from the migration, or by an I/O error.
    Paused,
    /// Source: its process here was stopped for a hand-over that failed, and libvirt could not run it again: the other copy
    /// has its disks. Nobody but Ferry will. (libvirt: paused, API error; `qemuMigrationSrcRestoreDomainState`)
    Stopped,
    /// It ran here until its guest crashed or suspended itself: its process is here, and is nobody's to run.
    Halted,
    /// Source: its process here has sent everything and waits for the outcome (libvirt: paused, migration).
    HandedOver,
    /// Source: as handed over, but libvirt has no migration of it any more, since it was restarted meanwhile: it neither
    /// runs the copy nor ends it, whatever became of the other.
    Left,
    /// Destination: its process here is still receiving.
    Receiving,
    /// Destination: all state is here, the copy is paused until it is resumed.
    Arrived,
    /// Defined here, without a process. At the destination of a live move this proves that its copy was complete: libvirt
    /// keeps the definition only then.
    Off,
    /// Source: defined, without a process, and it is known that it ran on here after a hand-over that failed: its carrier has
    /// written that down, or libvirt says that its guest shut itself down here.
    Ended,
    /// Not known here.
    Absent,
    /// The host does not answer.
    Unknown,
}

/// Who has the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The source: what the destination holds may be destroyed.
    Source,
    /// The source, unless another host has it: it runs at neither, and may have been moved on by hand.
    SourceUnlessElsewhere,
    /// The destination: its copy is the VM and may be resumed, once no process is left at the source.
    Destination,
    /// Nobody that can be asked: neither end has it, and the destination had all of it once. Where it was taken to, only
    /// whoever took it knows. Nothing is removed, and no source is let go.
    Lost,
    /// Not known yet: wait and ask again, never guess.
    Undecided,
    /// Both run it: stop and call an administrator.
    SplitBrain,
}

/// Decides who has the VM from what both hosts say, never from which call failed.
///
/// `finish_delivered` is whether the Finish reply is known to have reached the source's libvirtd: that libvirtd
/// ends its copy then, and nothing else can make it run it again. `arrived` is whether a complete copy was ever seen at the
/// destination that Ferry has not ended itself ([`LogEvent::Arrived`]).
pub fn verdict(source: Presence, destination: Presence, finish_delivered: bool, arrived: bool) -> Verdict {
    use Presence::{
        Absent, Arrived, Ended, Halted, HandedOver, Left, Off, Paused, Receiving, Running, Stopped, Unknown,
    };
    match (source, destination) {
        (Running, Running) | (Running | Halted, Halted) => Verdict::SplitBrain,
        // Resume happens only after delivery, so a destination that runs is the VM, or that has run it.
        (
            Off | Ended | Absent | HandedOver | Left | Unknown | Paused | Stopped | Halted | Receiving | Arrived,
            Running,
        )
        | (Off | Ended | Absent | HandedOver | Left | Stopped | Unknown | Receiving | Arrived, Halted) => {
            Verdict::Destination
        }
        // A source that runs was never told to end: the destination holds at most a paused copy.
        (
            Running | Paused | Halted,
            Off | Ended | Absent | Receiving | Arrived | HandedOver | Left | Paused | Stopped | Unknown,
        ) => Verdict::Source,
        (Paused, Halted) => Verdict::Undecided,
        // Only the destination's copy can have run since, and it has, for somebody shut it off.
        (Stopped, Off | Ended) => Verdict::Destination,
        // libvirt has given the move up, and has tried to run this copy itself.
        (Stopped, Receiving | Arrived | Paused | HandedOver | Left | Stopped) => Verdict::Source,
        (Stopped, Absent) if !arrived => Verdict::Source,
        // Its guest ran on here until it ended, and has written to its disks: the other copy's memory is of before that.
        (Ended, Receiving | Arrived | Paused | HandedOver | Left | Stopped) if !finish_delivered => Verdict::Source,
        // Somebody ended the other copy by hand, who may have run it.
        (Ended, Off | Ended) if !finish_delivered => Verdict::Undecided,
        // The source's process is gone, or stands still until somebody else decides: with a complete copy at the
        // destination, that copy is the VM. It may have run and ended there since; the source's cannot have.
        (Off | Ended | Absent | Left, Arrived | Paused | Stopped | Off | Ended) => Verdict::Destination,
        // It was handed over and has ended since (the guest shut down, or its process died): what the destination has of
        // its definition and its disks is newer. Of files on a share both have the same.
        (Off | Ended | Absent | Left, Absent) if finish_delivered => Verdict::Destination,
        // All of it was there, and was taken away by hand.
        (Off | Absent | Left | Stopped, Absent) if arrived => Verdict::Lost,
        // Nothing runs at either (the guest shut down, or the source died first): the definition is at the source, or a
        // copy that stands still. It may also have been run at the destination by hand, and moved on.
        (Off | Ended | Absent | Left, Absent) => Verdict::SourceUnlessElsewhere,
        (Off | Ended | Absent, Receiving | HandedOver | Left) => Verdict::Source,
        // The source waits for a reply that cannot come any more: it is the only copy.
        (HandedOver, Absent) if !arrived => Verdict::Source,
        (HandedOver | Unknown, Arrived | Paused | Stopped | Off | Ended) if finish_delivered => Verdict::Destination,
        (HandedOver | Left, _) => Verdict::Undecided,
        (Unknown | Receiving | Arrived, _) | (Off | Ended | Absent | Stopped, Unknown | Absent) => Verdict::Undecided,
    }
}

/// Whether what the hosts say is to be remembered for as long as the attempt lasts, as [`LogEvent::Arrived`].
pub fn is_to_be_remembered(source: Presence, destination: Presence) -> bool {
    let complete = matches!(
        destination,
        Presence::Arrived | Presence::Running | Presence::Paused | Presence::Halted | Presence::Off
    );
    complete && source != Presence::Running
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
        log.push(LogEvent::Failed { step: Step::Perform, message: String::new() });
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

    const PRESENCES: [Presence; 12] = [
        Presence::Running,
        Presence::Paused,
        Presence::Stopped,
        Presence::Halted,
        Presence::HandedOver,
        Presence::Left,
        Presence::Off,
        Presence::Ended,
        Presence::Receiving,
        Presence::Arrived,
        Presence::Absent,
        Presence::Unknown,
    ];

    #[test]
    fn no_verdict_lets_a_second_copy_run() {
        for source in PRESENCES {
            for destination in PRESENCES {
                for (delivered, arrived) in [(false, false), (false, true), (true, false), (true, true)] {
                    let row = format!("{source:?} {destination:?} {delivered} {arrived}");
                    match verdict(source, destination, delivered, arrived) {
                        // Resuming the destination must be safe: the source cannot run, now or later.
                        Verdict::Destination => {
                            let gone =
                                matches!(source, Presence::Absent | Presence::Off | Presence::Ended | Presence::Left);
                            // It has run there since, and the other copy has not.
                            let old = source == Presence::Ended && !delivered;
                            let may_be_old = old && !matches!(destination, Presence::Running | Presence::Halted);
                            assert!(!may_be_old, "{row}");
                            let source_cannot_run = gone || delivered;
                            // What was shut off has run.
                            let has_run = matches!(
                                destination,
                                Presence::Running | Presence::Halted | Presence::Off | Presence::Ended
                            );
                            assert!(source != Presence::Running && (has_run || source_cannot_run), "{row}");
                        }
                        // Destroying the destination's copy must be safe: it never ran, and the source can.
                        Verdict::Source | Verdict::SourceUnlessElsewhere => {
                            let ran = matches!(destination, Presence::Running | Presence::Halted);
                            assert!(!ran && source != Presence::Unknown, "{row}");
                            // What was there and is not there any more is somewhere, unless the source has run on.
                            let ran_on = matches!(
                                source,
                                Presence::Running | Presence::Paused | Presence::Halted | Presence::Ended
                            );
                            assert!(ran_on || !arrived || destination != Presence::Absent, "{row}");
                        }
                        Verdict::SplitBrain => {
                            let ran = |presence| matches!(presence, Presence::Running | Presence::Halted);
                            assert!(ran(source) && ran(destination), "{row}");
                        }
                        Verdict::Lost => assert!(arrived && destination == Presence::Absent, "{row}"),
                        Verdict::Undecided => {}
                    }
                }
            }
        }
    }

    #[test]
    fn an_unreachable_source_decides_nothing_unless_delivery_is_known() {
        for arrived in [false, true] {
            assert_eq!(verdict(Presence::Unknown, Presence::Arrived, false, arrived), Verdict::Undecided);
            assert_eq!(verdict(Presence::Unknown, Presence::Arrived, true, arrived), Verdict::Destination);
            assert_eq!(verdict(Presence::HandedOver, Presence::Unknown, false, arrived), Verdict::Undecided);
        }
    }

    #[test]
    fn who_has_a_vm_without_a_process_depends_on_what_is_left_of_it() {
        use Presence::{
            Absent, Arrived, Ended, Halted, HandedOver, Left, Off, Paused, Receiving, Running, Stopped, Unknown,
        };
        use Verdict::{Destination, Source, SourceUnlessElsewhere, SplitBrain, Undecided};
        for (row, source, destination, delivered, expected) in [
            ("the guest shut down meanwhile", Off, Absent, false, SourceUnlessElsewhere),
            ("so did one without a definition", Absent, Absent, false, SourceUnlessElsewhere),
            ("it was handed over first, and ended there", Off, Absent, true, Destination),
            ("it ran and was shut off at the destination", Off, Off, false, Destination),
            ("the source comes back after that", Absent, Off, false, Destination),
            ("its guest crashed at the source", Halted, Arrived, false, Source),
            ("its guest crashed once it ran at the destination", HandedOver, Halted, false, Destination),
            ("so it did, and the source's process is gone", Off, Halted, false, Destination),
            ("it ran at both, and crashed at one", Running, Halted, true, SplitBrain),
            ("its guest crashed at the source, and it runs at the destination", Halted, Running, false, Destination),
            ("it came only halfway", Off, Receiving, true, Source),
            ("the source's libvirt goes on with it", HandedOver, Absent, true, Source),
            ("the source's libvirt has not said its last word", HandedOver, Off, false, Undecided),
            ("the source's libvirtd was restarted before Finish", Left, Absent, false, SourceUnlessElsewhere),
            ("it was restarted then, and libvirt still ends the other copy", Left, Receiving, false, Undecided),
            ("it was restarted after Finish", Left, Arrived, false, Destination),
            ("somebody ran and stopped the copy since", Left, Paused, false, Destination),
            ("somebody shut it off since", Left, Off, false, Destination),
            (
                "it was handed over and ended there, and libvirt did not end what is here",
                Left,
                Absent,
                true,
                Destination,
            ),
            ("libvirt could not run it again, and the other copy is gone", Stopped, Absent, false, Source),
            ("libvirt could not run it again, for the other copy has its disks", Stopped, Arrived, false, Source),
            ("the other copy was run by hand since", Stopped, Running, false, Destination),
            ("it was run by hand, and shut off", Stopped, Off, false, Destination),
            ("it ran on at the source, and ended there", Ended, Arrived, false, Source),
            ("so it did, and the other copy is gone", Ended, Absent, false, SourceUnlessElsewhere),
            ("so it did, and somebody ended the other copy, who may have run it", Ended, Off, false, Undecided),
            ("so it did, and somebody runs the other copy", Ended, Running, false, Destination),
            ("so it did, and the destination does not answer", Ended, Unknown, false, Undecided),
            ("it may be run by hand where nobody can be asked", Stopped, Unknown, false, Undecided),
        ] {
            assert_eq!(verdict(source, destination, delivered, false), expected, "{row}");
        }
    }

    #[test]
    fn what_was_complete_at_the_destination_and_is_not_there_any_more_is_not_the_sources() {
        use Presence::{
            Absent, Arrived, Ended, Halted, HandedOver, Left, Off, Paused, Receiving, Running, Stopped, Unknown,
        };
        use Verdict::{Destination, Lost, Source, SourceUnlessElsewhere, Undecided};
        for (row, source, destination, delivered, expected) in [
            ("it was run by hand and moved on to a host that Ferry does not know", Off, Absent, false, Lost),
            ("so it was, and its source has lost its definition", Absent, Absent, false, Lost),
            ("so it was, and libvirt left the source's copy", Left, Absent, false, Lost),
            ("so it was, and libvirt could not run the source's copy", Stopped, Absent, false, Lost),
            ("so it was, and the source's libvirt has not said its last word", HandedOver, Absent, false, Undecided),
            ("it was handed over first", Off, Absent, true, Destination),
            ("the source has run on", Running, Absent, false, Source),
            ("the source has run on, and is paused", Paused, Absent, false, Source),
            ("the source has run on, and shut itself down", Ended, Absent, false, SourceUnlessElsewhere),
            ("the source has run on, and its guest crashed", Halted, Absent, false, Source),
            ("it is there still", Off, Arrived, false, Destination),
            ("the source does not answer", Unknown, Absent, false, Undecided),
            ("the destination does not answer", Off, Unknown, false, Undecided),
        ] {
            assert_eq!(verdict(source, destination, delivered, true), expected, "{row}");
        }
        for source in PRESENCES {
            for destination in PRESENCES {
                let complete = matches!(destination, Arrived | Running | Paused | Halted | Off);
                let expected = complete && source != Running;
                assert_eq!(is_to_be_remembered(source, destination), expected, "{source:?} {destination:?}");
                assert!(!is_to_be_remembered(source, Receiving), "{source:?}");
            }
        }
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
        let dismissed = LogEvent::Dismissed { by: "admin".into(), told: Vec::new() };
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
        assert_eq!(read, LogEvent::Dismissed { by: "admin".into(), told: Vec::new() });
    }

    #[test]
    fn a_job_that_cannot_end_may_be_dismissed_and_no_other() {
        use Has::{It, NoAnswer, Nothing};
        let open = [Phase::Preparing, Phase::Migrating, Phase::Completing, Phase::RollingBack];
        for phase in open {
            for (row, in_vain, ends, expected) in [
                ("the VM is at the source", false, [It(VmState::Running), Nothing], true),
                ("the VM is at the destination", false, [Nothing, It(VmState::Paused)], true),
                ("it is at both while it moves", false, [It(VmState::Running), It(VmState::Incoming)], true),
                ("it fails, or waits", true, [It(VmState::Running), Nothing], false),
                ("the VM was destroyed and undefined by hand", false, [Nothing, Nothing], false),
                ("a host says nothing", false, [It(VmState::Running), NoAnswer], false),
                ("neither says anything", false, [NoAnswer, NoAnswer], false),
            ] {
                assert_eq!(ends_by_itself(phase, in_vain, &ends), expected, "{phase:?}: {row}");
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
            step.clone().prop_map(|step| LogEvent::Failed { step, message: String::new() }),
            Just(LogEvent::CancelRequested { by: String::new() }),
            step.clone().prop_map(|step| LogEvent::Undone { step }),
            step.prop_map(|step| LogEvent::UndoFailed { step, message: String::new() }),
            Just(LogEvent::Dismissed { by: String::new(), told: Vec::new() }),
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
