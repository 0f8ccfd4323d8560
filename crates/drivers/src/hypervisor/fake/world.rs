//! The common record of all fake hosts: which of them ran a VM, in order, and which has its disks open.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
};

use ferry_core::id::VmId;

/// The record that fake hosts share. Clones are the same record.
#[derive(Clone, Debug, Default)]
pub struct World(Arc<Mutex<Record>>);

#[derive(Debug, Default)]
struct Record {
    moments: Vec<Moment>,
    locks_hold: bool,
    /// Hosts with a copy of a VM that has its disks open for writing, as QEMU has from arrival to hand-over.
    writers: BTreeMap<VmId, BTreeSet<String>>,
    /// Hosts on which VMs cannot get their disks.
    locked_out: BTreeSet<String>,
}

/// The moment when a VM's vCPUs began or ceased to run on a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The VM.
    pub vm: VmId,
    /// The host's name.
    pub host: String,
    /// Whether it runs there from then on.
    pub runs: bool,
}

impl World {
    /// A record without entries.
    pub fn new() -> Self {
        Self::default()
    }

    /// All entries of a VM, oldest first.
    pub fn history(&self, vm: VmId) -> Vec<Moment> {
        self.record().moments.iter().filter(|moment| moment.vm == vm).cloned().collect()
    }

    /// The hosts that run a VM now. A host that failed counts until it reports otherwise.
    pub fn running_on(&self, vm: VmId) -> BTreeSet<String> {
        let mut hosts = BTreeSet::new();
        for moment in self.history(vm) {
            apply(&mut hosts, &moment);
        }
        hosts
    }

    /// The largest number of hosts that ran a VM at the same time. More than one means a destroyed disk.
    pub fn most_at_once(&self, vm: VmId) -> usize {
        let mut hosts = BTreeSet::new();
        let mut most = 0;
        for moment in self.history(vm) {
            apply(&mut hosts, &moment);
            most = most.max(hosts.len());
        }
        most
    }

    /// Sets whether locks on the share are visible to other hosts. Initially they are not, as over a FUSE mount. If
    /// they are, a source whose reply to Finish was lost stays paused as long as the destination has the disks.
    pub fn set_locks_hold(&self, hold: bool) {
        self.record().locks_hold = hold;
    }

    /// On a locked-out host no VM gets its disks: another process has them there, or locks fail there.
    pub fn set_locked_out(&self, host: &str, locked_out: bool) {
        let mut record = self.record();
        if locked_out {
            record.locked_out.insert(host.to_owned());
        } else {
            record.locked_out.remove(host);
        }
    }

    pub(super) fn note(&self, vm: VmId, host: &str, runs: bool) {
        self.record().moments.push(Moment { vm, host: host.to_owned(), runs });
    }

    pub(super) fn note_writer(&self, vm: VmId, host: &str, writes: bool) {
        let mut record = self.record();
        let writes = writes && !record.locked_out.contains(host);
        let writers = record.writers.entry(vm).or_default();
        if writes {
            writers.insert(host.to_owned());
        } else {
            writers.remove(host);
        }
    }

    /// Whether a lock keeps `host` from running a VM.
    pub(super) fn is_locked_for(&self, vm: VmId, host: &str) -> bool {
        let record = self.record();
        let others = record.writers.get(&vm).is_some_and(|writers| writers.iter().any(|writer| writer != host));
        record.locked_out.contains(host) || (record.locks_hold && others)
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.0.lock().expect("no thread panics while holding this lock")
    }
}

fn apply(hosts: &mut BTreeSet<String>, moment: &Moment) {
    if moment.runs {
        hosts.insert(moment.host.clone());
    } else {
        hosts.remove(&moment.host);
    }
}
