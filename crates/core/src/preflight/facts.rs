//! The input of preflight.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    files::DiskMove,
    finding::Message,
    host::HostFacts,
    id::{JobId, ShareId},
    location::Location,
    memory::Need,
    network::MigrationNetworks,
    share::AttachedShare,
    share_source::ShareSource,
    vm::{VmFacts, VmFile},
};

/// Whether two hosts' mounts proved to be the same share: one host writes a file, the other must read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShareIdentity {
    /// They are the same.
    Proven,
    /// The other host did not see the file, or saw a different one.
    Different,
    /// The test was not possible, for this reason.
    NotProven(Message),
    /// They are the same, but QEMU's locks do not work there: a VM could not run after a hand-over. The text is the
    /// error.
    LocksFail(Message),
}

/// A share, as findings mention it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedShare {
    /// Its name in Ferry.
    pub name: String,
    /// Its source.
    pub source: ShareSource,
}

/// One of the two hosts of a move.
#[derive(Clone, Copy, Debug)]
pub struct Side<'a> {
    /// Its name.
    pub name: &'a str,
    /// Whether its agent answered just now.
    pub reachable: bool,
    /// Whether it is in maintenance: no VM is placed there.
    pub maintenance: bool,
    /// Its migration networks.
    pub networks: MigrationNetworks,
    /// The facts that its agent reported, if it ever did.
    pub facts: Option<&'a HostFacts>,
    /// Its VMs.
    pub vms: &'a [VmFacts],
    /// Its shares.
    pub shares: &'a [AttachedShare],
}

/// The input of [`live`](super::live).
#[derive(Clone, Debug)]
pub struct LiveFacts<'a> {
    /// The VM, as the source reports it.
    pub vm: &'a VmFacts,
    /// Another job that moves it.
    pub busy: Option<JobId>,
    /// Where it is.
    pub source: Side<'a>,
    /// Its requested destination.
    pub destination: Side<'a>,
    /// The shares' names.
    pub shares: &'a BTreeMap<ShareId, NamedShare>,
    /// The test results for the shares that the VM uses. A share without an entry was not tested (quick check).
    pub share_identity: &'a BTreeMap<ShareId, ShareIdentity>,
    /// Migrated disks: the destination need not reach the files that they use now.
    pub migrated_disks: &'a [DiskMove],
    /// Memory of the destination that is promised to other moves.
    pub promised: &'a [Need],
    /// The user accepts that the destination may have too little memory.
    pub overcommit: bool,
}

impl Side<'_> {
    /// The share, if it is attached.
    pub(super) fn attached(&self, share: ShareId) -> Option<&AttachedShare> {
        self.shares.iter().find(|attached| attached.id == share)
    }

    /// The share that a file lies on, if it is attached and usable.
    pub(super) fn usable(&self, place: &Location) -> Option<&AttachedShare> {
        self.attached(place.share()?).filter(|attached| attached.trouble.is_none())
    }
}

impl<'a> LiveFacts<'a> {
    /// The destination of a file, if it is migrated.
    pub(super) fn moves_to(&self, file: &VmFile) -> Option<&'a Location> {
        self.migrated_disks.iter().find(|disk| disk.device == file.device).map(|disk| &disk.to)
    }

    /// The files that stay where they are.
    pub(super) fn files_that_stay(&self) -> impl Iterator<Item = &'a VmFile> {
        self.vm.files.iter().filter(|file| self.moves_to(file).is_none())
    }

    /// The shares of files that stay where they are.
    pub(super) fn shares_that_stay(&self) -> BTreeSet<ShareId> {
        self.files_that_stay().flat_map(VmFile::places).filter_map(Location::share).collect()
    }

    /// The share's name, or its id if it was removed.
    pub(super) fn share_name(&self, share: ShareId) -> String {
        self.shares.get(&share).map_or_else(|| share.to_string(), |named| named.name.clone())
    }
}
