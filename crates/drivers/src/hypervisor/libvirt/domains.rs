//! libvirt's knowledge of its VMs.

use std::{collections::BTreeSet, path::PathBuf};

use ferry_core::{
    api::agent::Role,
    id::VmId,
    migration::Presence,
    vm::{VmFacts, VmFile},
};

use super::{
    Libvirt, definitions,
    faults::{failed, there, unreachable},
    ffi::{self, Connection, PausedReason, PowerState},
};
use crate::hypervisor::{
    DomainEvent, Domains, EventSink, HypervisorError, files_below, has_a_place, images_to_ask,
    rpc::definition::{DefinitionPolicy, check_definition},
    xml::edit::{Form, translate},
};

impl Domains for Libvirt {
    fn vms(&self) -> Result<Vec<VmFacts<PathBuf>>, HypervisorError> {
        let live = self.live()?;
        let domains = live.connection.domains().map_err(unreachable)?;
        self.definitions.read(&live.connection, domains)
    }

    fn vm(&self, vm: VmId) -> Result<Option<VmFacts<PathBuf>>, HypervisorError> {
        let live = self.live()?;
        Ok(self.find(vm)?.map(|domain| definitions::read_now(&live.connection, &domain)).transpose()?.flatten())
    }

    fn files_in_use(&self) -> Result<BTreeSet<PathBuf>, HypervisorError> {
        let (mut used, mut images) = (BTreeSet::new(), BTreeSet::new());
        let live = self.live()?;
        for domain in live.connection.domains().map_err(unreachable)? {
            let (running, kept) = definitions::files_now(&live.connection, &domain)?;
            running.iter().chain(&kept).try_for_each(has_a_place)?;
            used.extend(running.iter().chain(&kept).flat_map(VmFile::places).cloned());
            // The running definition lists the files below its disks; the persistent one does not.
            images.extend(images_to_ask(kept.iter().filter(|file| !running.iter().any(|own| own.place == file.place))));
        }
        used.extend(files_below(images)?);
        Ok(used)
    }

    fn presence(&self, vm: VmId, role: Role) -> Result<Presence, HypervisorError> {
        let Some(domain) = self.find(vm)? else { return Ok(Presence::Absent) };
        let Some(state) = there(domain.state())? else { return Ok(Presence::Absent) };
        Ok(match (state, role) {
            (PowerState::Running, _) => Presence::Running,
            (PowerState::Crashed | PowerState::Suspended, _) => Presence::Halted,
            (PowerState::Off, Role::Source) if there(domain.shut_itself_down())? == Some(true) => Presence::Ended,
            (PowerState::Off, _) => Presence::Off,
            (PowerState::Paused(PausedReason::Migration), Role::Source) => {
                // The order matters: a migration that ends between the two queries changes the state first.
                match there(domain.job_stats(false))?.flatten() {
                    Some(_) => Presence::HandedOver,
                    None if there(domain.state())? == Some(state) => Presence::Left,
                    None => return self.presence(vm, role),
                }
            }
            (PowerState::Paused(PausedReason::NotRunAgain), Role::Source) => Presence::Stopped,
            (
                PowerState::Paused(PausedReason::Other | PausedReason::ByQemu | PausedReason::StartingUp),
                Role::Source,
            ) => Presence::Paused,
            (PowerState::Paused(PausedReason::Migration | PausedReason::StartingUp), Role::Destination) => {
                Presence::Receiving
            }
            (
                PowerState::Paused(PausedReason::Other | PausedReason::ByQemu | PausedReason::NotRunAgain),
                Role::Destination,
            ) => Presence::Arrived,
        })
    }

    fn watch(&self, sink: EventSink) -> Result<Box<dyn Send>, HypervisorError> {
        let relay = Box::new(move |event: ffi::Event<'_>| {
            let vm = |uuid: &str| uuid.parse().ok();
            let event = match event {
                ffi::Event::StoppedForMigration(uuid) => vm(uuid).map(DomainEvent::StoppedForMigration),
                ffi::Event::Changed(uuid) => vm(uuid).map(DomainEvent::Changed),
                ffi::Event::Closed => Some(DomainEvent::ConnectionLost),
            };
            event.into_iter().for_each(&sink);
        });
        // A separate connection, because libvirt keeps one close callback per connection.
        let watch = Connection::open(&self.uri)
            .and_then(|connection| ffi::Watch::start(connection, relay))
            .map_err(unreachable)?;
        Ok(Box::new(watch))
    }

    fn definition(&self, vm: VmId, paths: &[(PathBuf, PathBuf)]) -> Result<String, HypervisorError> {
        let what = format!("Could not take the definition of VM {vm} along");
        let refused = |reason: &str| Err(HypervisorError::Failed { what: what.clone(), reason: reason.to_owned() });
        let domain = self.need(vm)?;
        if domain.state().map_err(failed(&what))? != PowerState::Off {
            return refused("it is not shut off");
        }
        if domain.saved().map_err(failed(&what))? {
            return refused("its state was saved: start it, or remove that with `virsh managedsave-remove`");
        }
        let xml = self.text(&domain, ffi::Xml::Portable, &what)?;
        translate(&xml, vm, paths, &[], Form::Kept)
    }

    fn kept_definition(&self, vm: VmId) -> Result<String, HypervisorError> {
        let what = format!("Could not read the definition of VM {vm}");
        self.text(&self.need(vm)?, ffi::Xml::Public, &what)
    }

    fn define(&self, definition: &str, policy: &DefinitionPolicy) -> Result<(), HypervisorError> {
        let bad = |reason: String| HypervisorError::Definition { vm: policy.vm, reason };
        check_definition(definition, policy).map_err(|error| bad(error.to_string()))?;
        let defined = self.live()?.connection.define(definition);
        defined.map(drop).map_err(failed(format!("Could not define VM {}", policy.name)))
    }

    fn undefine(&self, vm: VmId) -> Result<(), HypervisorError> {
        let Some(domain) = self.find(vm)? else { return Ok(()) };
        match domain.undefine() {
            Ok(()) => Ok(()),
            Err(fault) if fault.is_no_domain() => Ok(()),
            // A transient VM has no definition to remove.
            Err(_) if domain.persistent().is_ok_and(|persistent| !persistent) => Ok(()),
            Err(fault) => Err(failed(format!("Could not remove the definition of VM {vm}"))(fault)),
        }
    }

    fn set_autostart(&self, vm: VmId, autostart: bool) -> Result<(), HypervisorError> {
        self.need(vm)?.set_autostart(autostart).map_err(failed(format!("Could not set autostart of VM {vm}")))
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, process::Command};

    use super::*;

    #[test]
    fn files_of_both_definitions_and_below_their_disks_are_in_use() {
        let folder = tempfile::tempdir().expect("a folder");
        let (base, top) = (folder.path().join("base.raw"), folder.path().join("top.qcow2"));
        std::fs::write(&base, [0; 4096]).expect("written");
        let mut tool = Command::new("qemu-img");
        tool.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).arg(&base).arg(&top);
        assert!(tool.status().expect("qemu-img is installed").success());
        // libvirt's built-in test driver: no daemon is needed.
        let libvirt = Libvirt::new("test:///default");
        let define = |disk: &Path, format: &str| {
            let xml = format!(
                "<domain type='test'><name>db</name><uuid>0d7a4d0e-4f57-4f3e-9a80-0c6a4b6ad008</uuid><memory>1024</memory>\
                 <os><type>hvm</type></os><devices><disk type='file' device='disk'><driver name='qemu' type='{format}'/>\
                 <source file='{}'/><target dev='vda'/></disk></devices></domain>",
                disk.display()
            );
            libvirt.live().expect("connected").connection.define(&xml).expect("defined")
        };
        define(Path::new("/running.raw"), "raw").create().expect("started");
        // A file that it uses only at its next start.
        define(&top, "qcow2");
        let used = libvirt.files_in_use().expect("told");
        for path in [Path::new("/running.raw"), &top, &base] {
            assert!(used.contains(path), "{}: {used:?}", path.display());
        }
        let mut broken = std::fs::read(&top).expect("readable");
        // The length field of its base's name.
        broken[16..20].fill(0xff);
        std::fs::write(&top, broken).expect("written");
        // An unreadable image is an error, not omitted.
        let error = libvirt.files_in_use().expect_err("a broken header");
        assert!(error.to_string().contains("top.qcow2"), "{error}");
    }
}
