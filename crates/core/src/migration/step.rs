//! The steps of jobs, and how a failed step is treated.

use serde::{Deserialize, Serialize};

use crate::job::JobKind;

/// One step of a job. The contents of its plan decide which steps it has, and in which order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Facts of both hosts are collected and judged.
    Preflight,
    /// The VM is reserved for this job, so that no other job moves it.
    Reserve,
    /// The destination's carrier listens and expects the session.
    PrepareDestination,
    /// The source's carrier has connected; the VM is held against a second start; autostart is cleared.
    PrepareSource,
    /// libvirt moves memory and hands over. Contains the point of no return.
    Perform,
    /// The destination's agent resumes the VM there.
    Resume,
    /// The source's definition is removed; autostart is set at the destination.
    Confirm,
    /// Carriers, sockets, holds and journals are removed.
    Release,
}

/// How a failed step is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepClass {
    /// Undone, newest first.
    Compensable,
    /// Contains the point of no return: the verdict on who has the VM decides.
    Pivot,
    /// Repeated until done.
    Retriable,
    /// As [`Self::Retriable`]; the job ends when this step is done.
    Last,
}

impl StepClass {
    /// Whether its failure comes before the switchover: all effects so far are undone.
    pub fn is_taken_back(self) -> bool {
        match self {
            Self::Compensable | Self::Pivot => true,
            Self::Retriable | Self::Last => false,
        }
    }
}

/// What a job's plan contains, as far as it decides the job's steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contents {
    /// The VM leaves its host, which takes part as a source of its own.
    pub changes_host: bool,
    /// The VM runs, and its memory moves.
    pub memory: bool,
}

/// The steps of a job, in order. The first is compensable, one is the pivot, and the last ends the job.
pub fn steps(plan: Contents) -> Vec<Step> {
    let is_needed = |step: &Step| match step {
        Step::PrepareSource => plan.changes_host,
        Step::Resume => plan.memory,
        Step::Preflight | Step::Reserve | Step::PrepareDestination | Step::Perform | Step::Confirm | Step::Release => {
            true
        }
    };
    Step::ALL.into_iter().filter(is_needed).collect()
}

impl Step {
    /// Every step, in the order in which jobs have them.
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

    /// The name to show to users, in the present tense, as a step of a job of this kind.
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

    /// How its failure is treated.
    pub fn class(self) -> StepClass {
        match self {
            Self::Preflight | Self::Reserve | Self::PrepareDestination | Self::PrepareSource => StepClass::Compensable,
            Self::Perform => StepClass::Pivot,
            Self::Resume | Self::Confirm => StepClass::Retriable,
            Self::Release => StepClass::Last,
        }
    }

    /// The name to show to users, in the present tense.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_plan_contains_decides_the_steps() {
        use Step::{Confirm, Perform, Preflight, PrepareDestination, PrepareSource, Release, Reserve};
        for (row, changes_host, memory, expected) in [
            ("a VM that runs changes its host", true, true, &Step::ALL[..]),
            (
                "a VM that is shut off changes its host",
                true,
                false,
                &[Preflight, Reserve, PrepareDestination, PrepareSource, Perform, Confirm, Release],
            ),
            (
                "disks move on one host",
                false,
                false,
                &[Preflight, Reserve, PrepareDestination, Perform, Confirm, Release],
            ),
        ] {
            assert_eq!(steps(Contents { changes_host, memory }), expected, "{row}");
        }
    }

    #[test]
    fn any_plan_can_be_undone_until_its_pivot_and_ends_with_its_last_step() {
        for (changes_host, memory) in [(false, false), (false, true), (true, false), (true, true)] {
            let classes: Vec<_> = steps(Contents { changes_host, memory }).into_iter().map(Step::class).collect();
            let pivot = classes.iter().position(|class| *class == StepClass::Pivot).expect("a pivot");
            let (before, after) = (&classes[..pivot], &classes[pivot + 1..classes.len() - 1]);
            assert!(!before.is_empty() && before.iter().all(|class| *class == StepClass::Compensable), "{classes:?}");
            assert!(after.iter().all(|class| *class == StepClass::Retriable), "{classes:?}");
            assert_eq!(classes.last(), Some(&StepClass::Last));
        }
    }
}
