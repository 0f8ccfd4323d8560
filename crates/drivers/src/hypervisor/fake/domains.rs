//! The fake daemon's knowledge of its VMs.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
};

use ferry_core::{
    api::agent::Role,
    id::VmId,
    migration::Presence,
    network::HostAddress,
    vm::{VmFacts, VmFile},
};

use super::{
    FakeHypervisor, RPC_SOCKET_NAME,
    faults::Point,
    guest::{self, FakeGuest},
    host::{Host, Process, Vm, failed, no_vm},
};
use crate::hypervisor::{
    DomainEvent, Domains, EventSink, HostInfo, HypervisorError, HypervisorHost, Sockets, files_below, has_a_place,
    images_to_ask,
    rpc::definition::{DefinitionPolicy, check_definition},
    xml::{
        edit::{Form, translate},
        facts::parse,
    },
};

impl HostInfo for FakeHypervisor {
    fn host(&self) -> Result<HypervisorHost, HypervisorError> {
        Ok(self.host.call(Point::Host, || "Could not read the host".to_owned())?.facts.clone())
    }

    fn addresses(&self) -> Vec<HostAddress> {
        self.host.state().addresses.clone()
    }

    fn process_owner(&self) -> Result<(u32, u32), HypervisorError> {
        // libvirt reports it together with the host.
        drop(self.host.call(Point::Host, || "Could not read who owns processes".to_owned())?);
        // Fake VMs are threads of this process.
        Ok((nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw()))
    }
}

impl Sockets for FakeHypervisor {
    fn rpc_socket(&self) -> PathBuf {
        self.host.dir.join(RPC_SOCKET_NAME)
    }

    fn reach(&self, socket: &Path) -> PathBuf {
        self.host.reach(socket)
    }
}

impl Domains for FakeHypervisor {
    fn vms(&self) -> Result<Vec<VmFacts<PathBuf>>, HypervisorError> {
        let state = self.host.call(Point::Vms, || "Could not list VMs".to_owned())?;
        state.vms.values().map(|vm| state.resolved(vm.facts())).collect()
    }

    fn vm(&self, vm: VmId) -> Result<Option<VmFacts<PathBuf>>, HypervisorError> {
        let state = self.host.call(Point::Vms, || format!("Could not read VM {vm}"))?;
        state.vms.get(&vm).map(|vm| state.resolved(vm.facts())).transpose()
    }

    fn files_in_use(&self) -> Result<BTreeSet<PathBuf>, HypervisorError> {
        let state = self.host.call(Point::Vms, || "Could not list the files of VMs".to_owned())?;
        let all = state.vms.values().map(|vm| &vm.facts).chain(state.edited.values());
        let all = all.map(|facts| state.resolved(facts.clone())).collect::<Result<Vec<_>, _>>()?;
        drop(state);
        let files: Vec<_> = all.into_iter().flat_map(|facts| facts.files).collect();
        files.iter().try_for_each(has_a_place)?;
        let mut used: BTreeSet<PathBuf> = files.iter().flat_map(VmFile::places).cloned().collect();
        used.extend(files_below(images_to_ask(&files))?);
        Ok(used)
    }

    fn presence(&self, vm: VmId, role: Role) -> Result<Presence, HypervisorError> {
        let state = self.host.call(Point::Presence, || format!("Could not read the state of VM {vm}"))?;
        let shut_down = state.vms.get(&vm).is_some_and(|entry| entry.shut_down);
        Ok(match state.vms.get(&vm).map(|entry| &entry.process) {
            None => Presence::Absent,
            Some(Process::Off) if shut_down && role == Role::Source => Presence::Ended,
            Some(Process::Off) => Presence::Off,
            Some(Process::Running(_)) => Presence::Running,
            Some(Process::Paused(_)) => Presence::Paused,
            Some(Process::Stopped(_)) => Presence::Stopped,
            Some(Process::HandedOver(_)) => Presence::HandedOver,
            Some(Process::Left(_)) => Presence::Left,
            Some(Process::Receiving(_) | Process::Received(_)) => Presence::Receiving,
            Some(Process::Arrived(_)) => Presence::Arrived,
            Some(Process::Crashed(_) | Process::Suspended(_)) => Presence::Halted,
        })
    }

    fn watch(&self, sink: EventSink) -> Result<Box<dyn Send>, HypervisorError> {
        let mut state = self.host.call(Point::Watch, || "Could not watch".to_owned())?;
        state.watches_begun += 1;
        let number = state.watches_begun;
        state.watches.insert(number, Arc::new(sink));
        Ok(Box::new(WatchGuard { host: Arc::downgrade(&self.host), number }))
    }

    fn definition(&self, vm: VmId, paths: &[(PathBuf, PathBuf)]) -> Result<String, HypervisorError> {
        let what = || format!("Could not take the definition of VM {vm} along");
        let mut state = self.host.call(Point::Definition, what)?;
        let entry = no_vm(&mut state, vm)?;
        if !matches!(entry.process, Process::Off) {
            return failed(what(), "it is not shut off");
        }
        let xml = guest::definition_xml(&entry.facts);
        translate(&state.text(&xml), vm, paths, &[], Form::Kept)
    }

    fn kept_definition(&self, vm: VmId) -> Result<String, HypervisorError> {
        let mut state = self.host.call(Point::Vms, || format!("Could not read the definition of VM {vm}"))?;
        let facts = no_vm(&mut state, vm)?.facts.clone();
        let xml = guest::definition_xml(state.edited.get(&vm).unwrap_or(&facts));
        Ok(state.text(&xml))
    }

    fn define(&self, definition: &str, policy: &DefinitionPolicy) -> Result<(), HypervisorError> {
        let what = || format!("Could not define VM {}", policy.name);
        let mut state = self.host.call(Point::Define, what)?;
        let bad = |reason: String| HypervisorError::Definition { vm: policy.vm, reason };
        check_definition(definition, policy).map_err(|error| bad(error.to_string()))?;
        let facts = VmFacts { persistent: true, ..parse(definition)? };
        if state.vms.values().any(|other| other.facts.name == facts.name && other.facts.id != facts.id) {
            return failed(what(), "domain already exists with another UUID");
        }
        let guest = FakeGuest { facts: facts.clone(), ..FakeGuest::new(&facts.name, &[]) };
        state.vms.insert(policy.vm, Vm::off(guest));
        drop(state);
        self.host.notify(DomainEvent::Changed(policy.vm));
        Ok(())
    }

    fn undefine(&self, vm: VmId) -> Result<(), HypervisorError> {
        let mut state = self.host.call(Point::Undefine, || format!("Could not remove the definition of VM {vm}"))?;
        let Some(entry) = state.vms.get_mut(&vm).filter(|entry| entry.facts.persistent) else { return Ok(()) };
        entry.facts.persistent = false;
        entry.facts.autostart = false;
        if matches!(entry.process, Process::Off) {
            state.vms.remove(&vm);
        }
        drop(state);
        self.host.notify(DomainEvent::Changed(vm));
        Ok(())
    }

    fn set_autostart(&self, vm: VmId, autostart: bool) -> Result<(), HypervisorError> {
        let what = || format!("Could not set autostart of VM {vm}");
        let mut state = self.host.call(Point::SetAutostart, what)?;
        let entry = no_vm(&mut state, vm)?;
        if !entry.facts.persistent {
            return failed(what(), "cannot set autostart for transient domain");
        }
        entry.facts.autostart = autostart;
        Ok(())
    }
}

struct WatchGuard {
    host: Weak<Host>,
    number: u64,
}

impl Drop for WatchGuard {
    fn drop(&mut self) {
        if let Some(host) = self.host.upgrade() {
            // Without the lock, because the sink may hold the last handle of this host.
            let sink = host.state().watches.remove(&self.number);
            drop(sink);
        }
    }
}
