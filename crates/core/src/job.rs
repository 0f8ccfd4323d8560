//! What every slow thing looks like while it goes on.

use serde::{Deserialize, Serialize};

use crate::units::ByteCount;

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum MoveKind {
    /// Memory and device state only; every file lies on shares that both hosts reach.
    Live,
    /// Files that the destination does not reach move along, before memory and device state.
    LiveVsm,
    /// The VM is shut off: files and definition.
    Offline,
}

impl MoveKind {
    /// For people.
    pub fn title(self) -> &'static str {
        match self {
            Self::Live => "Live",
            Self::LiveVsm => "Live (VSM)",
            Self::Offline => "Offline",
        }
    }
}

/// What a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    /// A live move of one VM.
    Live,
    /// A live move of one VM with files of its own.
    LiveVsm,
    /// A move of one VM that is shut off, with its files.
    Offline,
    /// A running VM's disks move to other files of its host.
    Storage,
    /// Several moves that were asked for together.
    Several,
    /// Every running VM of a host moves away.
    Drain,
}

impl JobKind {
    /// For people.
    pub fn title(self) -> &'static str {
        match self {
            Self::Live => MoveKind::Live.title(),
            Self::LiveVsm => MoveKind::LiveVsm.title(),
            Self::Offline => MoveKind::Offline.title(),
            Self::Storage => "Storage",
            Self::Several => "Several",
            Self::Drain => "Drain",
        }
    }

    /// Whether its work is done by jobs of its own.
    pub fn is_parent(self) -> bool {
        match self {
            Self::Live | Self::LiveVsm | Self::Offline | Self::Storage => false,
            Self::Several | Self::Drain => true,
        }
    }
}

/// What becomes of a live move whose guest writes faster than the memory can be sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum OnStall {
    /// The move ends at its time limit; the VM stays, never slowed.
    #[default]
    Abort,
    /// QEMU slows the guest's vCPUs more and more until it converges; the move ends at its time limit all the same.
    /// Not by default: a hand-over that fails may end the VM then (`docs/adr/0010`).
    Autoconverge,
    /// At its time limit the VM may stand still for longer than the downtime limit, but no longer than
    /// [`OnStall::PAUSE_MAX_MS`]; if that is not enough either, the move ends.
    Pause,
}

impl OnStall {
    /// The longest that a VM may stand still by [`OnStall::Pause`]. Milliseconds.
    pub const PAUSE_MAX_MS: u32 = 30_000;
}

/// How far a running move is. Bytes never go back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Progress {
    /// Guest memory to look at in the first pass.
    pub memory_total: ByteCount,
    /// Guest memory that is at the destination and was not written since.
    pub memory_done: ByteCount,
    /// Bytes that QEMU has sent (resent pages count again).
    pub sent: ByteCount,
    /// Bytes on the wire, as Ferry's carriers wrote them.
    pub wire: ByteCount,
    /// Bytes per second that QEMU sends now.
    pub rate_bytes_per_s: u64,
    /// Bytes per second that the guest dirties, as QEMU sees it.
    pub dirty_bytes_per_s: u64,
    /// Passes over memory so far, from 1.
    pub iteration: u32,
    /// Milliseconds since libvirt's migrate call.
    pub elapsed_ms: u64,
    /// Milliseconds that are expected to be left; `None` while it is not known or does not converge.
    pub left_ms: Option<u64>,
    /// Milliseconds for which the VM would stand still if it were switched over now: what is left of its memory and of disks
    /// that move along. `None` while it is not known.
    #[serde(default)]
    pub downtime_ms: Option<u64>,
}

/// What a finished move took, from events, not estimates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Figures {
    /// From acceptance to the last step's end. Milliseconds.
    pub total_ms: u64,
    /// From acceptance to libvirt's migrate call. Milliseconds.
    pub accepted_to_migrate_ms: u64,
    /// libvirt's migrate call. Milliseconds.
    pub migrate_ms: u64,
    /// From STOP at the source to RESUME at the destination, on the destination's clock. Milliseconds.
    pub downtime_ms: u64,
    /// QEMU's own figure, which ends before Resume. Milliseconds.
    pub qemu_downtime_ms: u64,
    /// Bytes that QEMU sent.
    pub sent: ByteCount,
    /// Bytes on the wire, both directions, headers included, TLS and TCP overhead not.
    pub wire: ByteCount,
    /// Of these, bytes of disks that moved along.
    #[serde(default)]
    pub disk_wire: ByteCount,
    /// Passes over memory.
    pub iterations: u32,
    /// What the files that were moved took before, as far as their file systems tell.
    #[serde(default)]
    pub allocated_source: ByteCount,
    /// What their copies take.
    #[serde(default)]
    pub allocated_destination: ByteCount,
}
