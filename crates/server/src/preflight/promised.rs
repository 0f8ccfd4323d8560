//! Memory of hosts that live moves were promised when they were accepted, and that has not arrived there yet.

use ferry_core::{
    id::{HostId, VmId},
    memory::Need,
};

/// What each accepted move was promised.
pub(crate) struct Promised(pub(crate) Vec<(VmId, HostId, Need)>);

impl Promised {
    /// At a host, to moves of other VMs.
    pub(crate) fn at(&self, host: HostId, vm: VmId) -> Vec<Need> {
        self.all_at(host, |of| of != vm)
    }

    /// At a host, to every move.
    pub(crate) fn all(&self, host: HostId) -> Vec<Need> {
        self.all_at(host, |_| true)
    }

    fn all_at(&self, host: HostId, is: impl Fn(VmId) -> bool) -> Vec<Need> {
        self.0.iter().filter(|(vm, at, _)| *at == host && is(*vm)).map(|(.., need)| *need).collect()
    }
}
