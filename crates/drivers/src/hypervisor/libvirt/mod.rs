//! The hypervisor driver for libvirt with QEMU: the connection, and one file for each of the driver's traits.

mod block_copy;
mod definitions;
mod domains;
mod faults;
mod ffi;
mod locks;
mod migration;
mod monitor;
mod power;

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, OnceLock},
};

use ferry_core::{id::VmId, units::ByteCount};

use self::{
    definitions::Definitions,
    faults::{failed, unreachable},
    ffi::{Connection, Domain},
};
use super::{HostInfo, HypervisorError, HypervisorHost, Sockets, xml::capabilities};

/// libvirt on this host, over one connection that is reopened when libvirtd was restarted.
pub struct Libvirt {
    uri: String,
    live: Mutex<Option<Arc<Live>>>,
    /// VMs whose migration was aborted. QEMU may report the channel that it then closes as the failure.
    aborting: Mutex<BTreeSet<VmId>>,
    definitions: Definitions,
}

/// A connection, and facts that do not change during its lifetime.
struct Live {
    connection: Arc<Connection>,
    /// Queried once, because libvirt may start every installed QEMU to probe it each time its capabilities are queried,
    /// if `/dev/kvm` exists and cannot be used (2 s observed).
    host: OnceLock<(HypervisorHost, (u32, u32))>,
}

impl Libvirt {
    /// Connects to `uri` (`qemu:///system`) at the first call.
    pub fn new(uri: impl Into<String>) -> Self {
        Self {
            uri: uri.into(),
            live: Mutex::new(None),
            aborting: Mutex::default(),
            definitions: Definitions::default(),
        }
    }

    fn live(&self) -> Result<Arc<Live>, HypervisorError> {
        let mut slot = self.live.lock().expect("no thread panics while holding this lock");
        if let Some(live) = slot.as_ref().filter(|live| live.connection.is_alive()) {
            return Ok(Arc::clone(live));
        }
        let connection = Arc::new(Connection::open(&self.uri).map_err(unreachable)?);
        let live = Arc::new(Live { connection, host: OnceLock::new() });
        *slot = Some(Arc::clone(&live));
        Ok(live)
    }

    /// The host, and the owner of its VMs' processes.
    fn host_and_owner(&self) -> Result<(HypervisorHost, (u32, u32)), HypervisorError> {
        let live = self.live()?;
        if let Some(known) = live.host.get() {
            return Ok(known.clone());
        }
        let capabilities = live.connection.capabilities().map_err(unreachable)?;
        let node = live.connection.node().map_err(unreachable)?;
        let missing = |what: &str| HypervisorError::Unreachable(format!("its capabilities do not say {what}"));
        let host = HypervisorHost {
            uuid: capabilities::host_uuid(&capabilities).ok_or_else(|| missing("the host's UUID"))?,
            cpus: node.cpus,
            memory_total: ByteCount::kib(node.memory_kib),
            libvirt_version: version(live.connection.library_version().map_err(unreachable)?),
            qemu_version: version(live.connection.hypervisor_version().map_err(unreachable)?),
            confined_by: capabilities::confined_by(&capabilities),
        };
        let owner = capabilities::process_owner(&capabilities).ok_or_else(|| missing("which user QEMU runs as"))?;
        Ok(live.host.get_or_init(|| (host, owner)).clone())
    }

    /// A definition for another host or for users: volumes of storage pools are replaced by their files.
    fn text(&self, domain: &Domain, form: ffi::Xml, what: &str) -> Result<String, HypervisorError> {
        definitions::text(&self.live()?.connection, domain, form).map_err(failed(what))
    }

    fn aborting(&self) -> MutexGuard<'_, BTreeSet<VmId>> {
        self.aborting.lock().expect("no thread panics while holding this lock")
    }

    fn find(&self, vm: VmId) -> Result<Option<Domain>, HypervisorError> {
        match self.live()?.connection.domain(&vm.to_string()) {
            Ok(domain) => Ok(Some(domain)),
            Err(fault) if fault.is_no_domain() => Ok(None),
            Err(fault) => Err(HypervisorError::Unreachable(fault.message)),
        }
    }

    fn need(&self, vm: VmId) -> Result<Domain, HypervisorError> {
        self.find(vm)?.ok_or(HypervisorError::NoVm(vm))
    }
}

impl HostInfo for Libvirt {
    fn host(&self) -> Result<HypervisorHost, HypervisorError> {
        Ok(self.host_and_owner()?.0)
    }

    fn process_owner(&self) -> Result<(u32, u32), HypervisorError> {
        Ok(self.host_and_owner()?.1)
    }
}

impl Sockets for Libvirt {
    fn rpc_socket(&self) -> PathBuf {
        // The URI may contain the socket's path.
        if let Some((_, socket)) = self.uri.split_once("socket=") {
            return PathBuf::from(socket.split('&').next().unwrap_or(socket));
        }
        // libvirtd and the modular virtqemud listen at different paths; if both exist, virtqemud serves QEMU.
        let modular = PathBuf::from("/run/libvirt/virtqemud-sock");
        if modular.exists() { modular } else { PathBuf::from("/run/libvirt/libvirt-sock") }
    }
}

/// Converts libvirt's version number: 1,000,000 × major + 1,000 × minor + release.
fn version(number: u64) -> String {
    format!("{}.{}.{}", number / 1_000_000, number / 1_000 % 1_000, number % 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_linked_that_libvirt_9_lacks() {
        // The program lists each library function it uses with the library's symbol version, such as LIBVIRT_5.6.0.
        let program = std::fs::read(std::env::current_exe().expect("a path")).expect("readable");
        let named = |at: usize| {
            let text = &program[at + "LIBVIRT_".len()..];
            let end = text.iter().position(|byte| *byte == 0)?;
            let mut numbers = std::str::from_utf8(&text[..end]).ok()?.split('.').map(str::parse::<u32>);
            Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
        };
        let found = program.windows("LIBVIRT_".len()).enumerate().filter(|(_, text)| text == b"LIBVIRT_");
        let versions: BTreeSet<_> = found.filter_map(|(at, _)| named(at)).collect();
        assert!(versions.len() > 5, "the driver is linked: {versions:?}");
        assert!(versions.iter().all(|version| *version <= (9, 0)), "{versions:?}");
    }
}
