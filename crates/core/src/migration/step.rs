//! The steps that jobs are made of, and what may be done about one that failed.

use serde::{Deserialize, Serialize};

use crate::job::JobKind;

/// One step of a job. Which steps a job has, and in which order, its plan says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
    /// As [`Self::Retriable`]; the job has ended when it is done.
    Last,
}

impl StepClass {
    /// Whether a failure of it comes before the switchover: what was done is taken back.
    pub fn is_taken_back(self) -> bool {
        match self {
            Self::Compensable | Self::Pivot => true,
            Self::Retriable | Self::Last => false,
        }
    }
}

impl Step {
    /// Every step, in the order of a live move.
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
            Self::Resume | Self::Confirm => StepClass::Retriable,
            Self::Release => StepClass::Last,
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
