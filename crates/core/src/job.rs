//! Kinds, progress and measurements of jobs.

use serde::{Deserialize, Serialize};

use crate::{carried::Carried, units::ByteCount};

/// What a job moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum MoveKind {
    /// Memory and device state only; every file lies on shares that both hosts reach.
    Live,
    /// Files that the destination cannot reach are migrated before memory and device state.
    LiveVsm,
    /// The VM is shut off: its files and definition move.
    Offline,
}

impl MoveKind {
    /// The name to show to users.
    pub fn title(self) -> &'static str {
        match self {
            Self::Live => "Live",
            Self::LiveVsm => "Live (VSM)",
            Self::Offline => "Offline",
        }
    }
}

/// The kind of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    /// A live move of one VM.
    Live,
    /// A live move of one VM with migrated disks.
    LiveVsm,
    /// A move of one VM that is shut off, with its files.
    Offline,
    /// A running VM's disks move to other files of its host.
    Storage,
    /// Several moves that were requested together.
    Several,
    /// Every running VM of a host moves away.
    Drain,
}

impl JobKind {
    /// The name to show to users.
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

    /// Whether other jobs do its work.
    pub fn is_parent(self) -> bool {
        match self {
            Self::Live | Self::LiveVsm | Self::Offline | Self::Storage => false,
            Self::Several | Self::Drain => true,
        }
    }
}

/// What to do about a live move whose guest dirties memory faster than it can be sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum OnStall {
    /// The move ends at its time limit; the VM stays at the source and is never slowed.
    #[default]
    Abort,
    /// QEMU throttles the guest's vCPUs more and more until the move converges; the move still ends at its time limit.
    /// Not the default, because a failed hand-over may then end the VM (`docs/adr/0010`).
    Autoconverge,
    /// At its time limit the VM may be paused for longer than the downtime limit, up to [`OnStall::PAUSE_MAX_MS`]; if
    /// that does not suffice either, the move ends.
    Pause,
}

impl OnStall {
    /// The longest pause under [`OnStall::Pause`]. Milliseconds.
    pub const PAUSE_MAX_MS: u32 = 30_000;
}

/// Progress of a running move. Byte counts never decrease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Progress {
    /// Guest memory to examine in the first pass.
    pub memory_total: ByteCount,
    /// Guest memory that is at the destination and was not written since it was sent.
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
    /// Estimated milliseconds left; `None` while unknown, or while the move does not converge.
    pub left_ms: Option<u64>,
    /// Estimated downtime in milliseconds if the VM were switched over now: for the rest of its memory and of its
    /// migrated disks. `None` while unknown.
    #[serde(default)]
    pub downtime_ms: Option<u64>,
}

/// Measurements of a finished move, from events, not from estimates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Figures {
    /// From acceptance to the last step's end. Milliseconds.
    pub total_ms: u64,
    /// From acceptance to libvirt's migrate call. Milliseconds.
    pub accepted_to_migrate_ms: u64,
    /// Duration of libvirt's migrate call. Milliseconds.
    pub migrate_ms: u64,
    /// From STOP at the source to RESUME at the destination, on the destination's clock. Milliseconds.
    pub downtime_ms: u64,
    /// QEMU's own figure, which ends before Resume. Milliseconds.
    pub qemu_downtime_ms: u64,
    /// Bytes that QEMU sent.
    pub sent: ByteCount,
    /// Bytes on the wire, both directions, with Ferry's headers, without TLS and TCP overhead.
    pub wire: ByteCount,
    /// The part of `wire` that belongs to migrated disks.
    #[serde(default)]
    pub disk_wire: ByteCount,
    /// Passes over memory.
    pub iterations: u32,
    /// Space that the old files occupied before the move, as far as their file systems report.
    #[serde(default)]
    pub allocated_source: ByteCount,
    /// Space that the copies occupy.
    #[serde(default)]
    pub allocated_destination: ByteCount,
    /// What the channels of a live move carried, as far as both hosts know. Absent for other moves, and from agents of an
    /// earlier version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carried: Option<Carried>,
}
