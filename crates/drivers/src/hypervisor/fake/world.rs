//! What happened on all fake hosts together: which of them ran a VM, in order.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard},
};

use ferry_core::id::VmId;

/// The record that fake hosts share. Clones are the same record.
#[derive(Clone, Debug, Default)]
pub struct World(Arc<Mutex<Vec<Moment>>>);

/// A VM's vCPUs began or ceased to run somewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The VM.
    pub vm: VmId,
    /// The host's name.
    pub host: String,
    /// Whether it runs there from now on.
    pub runs: bool,
}

impl World {
    /// A record without entries.
    pub fn new() -> Self {
        Self::default()
    }

    /// Every entry of a VM, oldest first.
    pub fn history(&self, vm: VmId) -> Vec<Moment> {
        self.moments().iter().filter(|moment| moment.vm == vm).cloned().collect()
    }

    /// The hosts that run a VM now. One that fell over with its VM counts until it says otherwise.
    pub fn running_on(&self, vm: VmId) -> BTreeSet<String> {
        let mut hosts = BTreeSet::new();
        for moment in self.history(vm) {
            apply(&mut hosts, &moment);
        }
        hosts
    }

    /// The largest number of hosts that ever ran a VM at one time. More than one is a destroyed disk.
    pub fn most_at_once(&self, vm: VmId) -> usize {
        let mut hosts = BTreeSet::new();
        let mut most = 0;
        for moment in self.history(vm) {
            apply(&mut hosts, &moment);
            most = most.max(hosts.len());
        }
        most
    }

    pub(super) fn note(&self, vm: VmId, host: &str, runs: bool) {
        self.moments().push(Moment { vm, host: host.to_owned(), runs });
    }

    fn moments(&self) -> MutexGuard<'_, Vec<Moment>> {
        self.0.lock().expect("nobody panics while holding it")
    }
}

fn apply(hosts: &mut BTreeSet<String>, moment: &Moment) {
    if moment.runs {
        hosts.insert(moment.host.clone());
    } else {
        hosts.remove(&moment.host);
    }
}
