//! Memory of hosts that was promised to live moves when they were accepted, and that they have not filled yet.

use ferry_core::{
    id::{HostId, VmId},
    memory::Need,
};

/// The promises to accepted moves.
pub(crate) struct Promised(pub(crate) Vec<(VmId, HostId, Need)>);

impl Promised {
    /// The promises of a host to moves of other VMs.
    pub(crate) fn at(&self, host: HostId, vm: VmId) -> Vec<Need> {
        self.all_at(host, |of| of != vm)
    }

    /// The promises of a host to all moves.
    pub(crate) fn all(&self, host: HostId) -> Vec<Need> {
        self.all_at(host, |_| true)
    }

    fn all_at(&self, host: HostId, is: impl Fn(VmId) -> bool) -> Vec<Need> {
        self.0.iter().filter(|(vm, at, _)| *at == host && is(*vm)).map(|(.., need)| *need).collect()
    }
}
