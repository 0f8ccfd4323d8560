//! Kinds of faults, and their requirements.

use std::fmt;

use clap::ValueEnum;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Kind {
    /// Ferry's server is killed.
    Server,
    /// The source's agent is killed.
    SourceAgent,
    /// The destination's agent is killed.
    DestinationAgent,
    /// The source's carrier is killed.
    SourceCarrier,
    /// The destination's carrier is killed.
    DestinationCarrier,
    /// The source's libvirtd is killed.
    SourceLibvirtd,
    /// The destination's libvirtd is killed.
    DestinationLibvirtd,
    /// The receiving QEMU is killed while the VM is still heard from the source.
    DestinationQemu,
    /// The file server is killed.
    Smbd,
    /// Every process of the source is killed at once.
    SourceHost,
    /// Every process of the destination is killed at once.
    DestinationHost,
    /// The network between source and destination is cut.
    Link,
    /// The source's libvirtd is killed in the hand-over, before the destination's libvirtd, which is stopped, has
    /// finished it.
    SourceLibvirtdBeforeFinish,
    /// The source's libvirtd is killed in the hand-over, after the destination has finished it and before the reply
    /// arrives.
    SourceLibvirtdAfterFinish,
    /// An administrator resumes the VM at the source (`virsh resume`).
    AdminResumeSource,
    /// An administrator resumes the VM at the destination (`virsh resume`).
    AdminResumeDestination,
    /// An administrator ends the VM's process at the source (`virsh destroy`).
    AdminDestroySource,
    /// An administrator ends the VM's process at the destination (`virsh destroy`).
    AdminDestroyDestination,
    /// An administrator moves the VM on to a third host once it has arrived (`virsh migrate`).
    AdminMigrate,
    /// An administrator starts the VM at the source as soon as its process there has ended (`virsh start`): that must
    /// be vetoed.
    AdminStart,
    /// The guest crashes; its QEMU process stays.
    GuestCrash,
    /// A clone is defined whose backing file is the migrated disk, under another name.
    Alias,
}

impl Kind {
    /// All kinds that are possible in a run, with or without migrated disks.
    pub fn all(storage: bool) -> Vec<Self> {
        Self::value_variants().iter().copied().filter(|kind| storage || !kind.needs_storage()).collect()
    }

    /// Whether it has a target only if a disk moves.
    pub fn needs_storage(self) -> bool {
        self == Self::Alias
    }

    /// Whether source and destination must be different hosts.
    pub(super) fn needs_two_hosts(self) -> bool {
        match self {
            Self::SourceCarrier
            | Self::DestinationCarrier
            | Self::DestinationQemu
            | Self::Link
            | Self::SourceLibvirtdBeforeFinish
            | Self::SourceLibvirtdAfterFinish
            | Self::AdminResumeDestination
            | Self::AdminDestroyDestination
            | Self::AdminMigrate
            | Self::AdminStart => true,
            Self::Server
            | Self::SourceAgent
            | Self::DestinationAgent
            | Self::SourceLibvirtd
            | Self::DestinationLibvirtd
            | Self::Smbd
            | Self::SourceHost
            | Self::DestinationHost
            | Self::AdminResumeSource
            | Self::AdminDestroySource
            | Self::GuestCrash
            | Self::Alias => false,
        }
    }

    /// When it is possible.
    pub(super) fn comes(self) -> Comes {
        match self {
            // A receiving QEMU exists only before the hand-over, and a paused guest cannot crash.
            Self::DestinationQemu | Self::GuestCrash => Comes::Before,
            Self::SourceLibvirtdBeforeFinish | Self::SourceLibvirtdAfterFinish | Self::AdminStart => Comes::InHandOver,
            Self::AdminMigrate => Comes::Afterwards,
            Self::Alias => Comes::AtCopy,
            Self::Server
            | Self::SourceAgent
            | Self::DestinationAgent
            | Self::SourceCarrier
            | Self::DestinationCarrier
            | Self::SourceLibvirtd
            | Self::DestinationLibvirtd
            | Self::Smbd
            | Self::SourceHost
            | Self::DestinationHost
            | Self::Link
            | Self::AdminResumeSource
            | Self::AdminResumeDestination
            | Self::AdminDestroySource
            | Self::AdminDestroyDestination => Comes::Anytime,
        }
    }

    /// Whether it kills a whole host, which stays down until the run is judged.
    pub fn is_host(self) -> bool {
        matches!(self, Self::SourceHost | Self::DestinationHost)
    }

    /// Whether the harness restarts the target within the run. Ferry and libvirt handle carriers and QEMUs themselves.
    pub fn is_healed(self) -> bool {
        match self {
            Self::Server
            | Self::SourceAgent
            | Self::DestinationAgent
            | Self::SourceLibvirtd
            | Self::DestinationLibvirtd
            | Self::Smbd
            | Self::Link
            | Self::SourceLibvirtdBeforeFinish
            | Self::SourceLibvirtdAfterFinish => true,
            Self::SourceCarrier
            | Self::DestinationCarrier
            | Self::DestinationQemu
            | Self::SourceHost
            | Self::DestinationHost
            | Self::AdminResumeSource
            | Self::AdminResumeDestination
            | Self::AdminDestroySource
            | Self::AdminDestroyDestination
            | Self::AdminMigrate
            | Self::AdminStart
            | Self::GuestCrash
            | Self::Alias => false,
        }
    }

    /// Whether the VM must run again by itself within a time limit after the killed program was restarted.
    pub fn runs_again_soon(self) -> bool {
        matches!(self, Self::SourceLibvirtdBeforeFinish | Self::SourceLibvirtdAfterFinish)
    }
}

/// When a kind of fault is possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comes {
    /// At any moment; half of them are aimed at the hand-over.
    Anytime,
    /// Before the hand-over: the move is slowed.
    Before,
    /// Immediately after the guest was stopped for the hand-over.
    InHandOver,
    /// Once the guest is heard from the destination.
    Afterwards,
    /// While a disk is copied.
    AtCopy,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value().expect("no kind is hidden");
        f.pad(value.get_name())
    }
}
