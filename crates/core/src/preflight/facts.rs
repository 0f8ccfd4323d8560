//! Everything that preflight judges.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    files::DiskMove,
    host::HostFacts,
    id::{JobId, ShareId},
    location::Location,
    memory::Need,
    share::AttachedShare,
    share_source::ShareSource,
    vm::{VmFacts, VmFile},
};

/// Whether two hosts' mounts were shown to be of one share, by a file written on one side and read on the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShareIdentity {
    /// They are.
    Proven,
    /// The other side did not see the file, or saw another one.
    Different,
    /// It could not be tried, and why.
    NotProven(String),
    /// They are, but QEMU's locks do not work there: a VM that was handed over could not run. Says what went wrong.
    LocksFail(String),
}

/// A share, as findings name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedShare {
    /// Its name in Ferry.
    pub name: String,
    /// What stands behind it.
    pub source: ShareSource,
}

/// One host of a move.
#[derive(Clone, Copy, Debug)]
pub struct Side<'a> {
    /// Its name.
    pub name: &'a str,
    /// Whether its agent answered just now.
    pub reachable: bool,
    /// Whether nothing is to be placed there.
    pub maintenance: bool,
    /// What the agent said, if it ever did.
    pub facts: Option<&'a HostFacts>,
    /// Its VMs.
    pub vms: &'a [VmFacts],
    /// Its shares.
    pub shares: &'a [AttachedShare],
}

/// Everything that [`live`](super::live) judges.
#[derive(Clone, Debug)]
pub struct LiveFacts<'a> {
    /// The VM, as the source has it.
    pub vm: &'a VmFacts,
    /// Another job that moves it.
    pub busy: Option<JobId>,
    /// Where it is.
    pub source: Side<'a>,
    /// Where it shall go.
    pub destination: Side<'a>,
    /// Names of shares.
    pub shares: &'a BTreeMap<ShareId, NamedShare>,
    /// What was proven of the shares the VM uses. A share without an entry was not asked about (quick look).
    pub share_identity: &'a BTreeMap<ShareId, ShareIdentity>,
    /// Disks that move along: the destination need not reach the files that they use now.
    pub migrated_disks: &'a [DiskMove],
    /// Memory of the destination that other moves were promised.
    pub promised: &'a [Need],
    /// Somebody takes it that the destination's memory may not do.
    pub overcommit: bool,
}

impl Side<'_> {
    /// The share, if it is attached.
    pub(super) fn attached(&self, share: ShareId) -> Option<&AttachedShare> {
        self.shares.iter().find(|attached| attached.id == share)
    }

    /// The share that a file lies on, if it is attached and can be used.
    pub(super) fn usable(&self, place: &Location) -> Option<&AttachedShare> {
        self.attached(place.share()?).filter(|attached| attached.trouble.is_none())
    }
}

impl<'a> LiveFacts<'a> {
    /// Where a file goes that moves along.
    pub(super) fn moves_to(&self, file: &VmFile) -> Option<&'a Location> {
        self.migrated_disks.iter().find(|disk| disk.device == file.device).map(|disk| &disk.to)
    }

    /// The files that stay where they are.
    pub(super) fn files_that_stay(&self) -> impl Iterator<Item = &'a VmFile> {
        self.vm.files.iter().filter(|file| self.moves_to(file).is_none())
    }

    /// The shares that a file lies on that stays.
    pub(super) fn shares_that_stay(&self) -> BTreeSet<ShareId> {
        self.files_that_stay().flat_map(VmFile::places).filter_map(Location::share).collect()
    }

    /// The share's name, or its id if it was removed.
    pub(super) fn share_name(&self, share: ShareId) -> String {
        self.shares.get(&share).map_or_else(|| share.to_string(), |named| named.name.clone())
    }
}
