//! The conformance suite that every hypervisor driver must pass, as a list of claims. Panics at the first that fails.
//!
//! A [`Site`] is two hosts, connected by [`Carriers`]: threads that forward the session's sockets through the RPC gate,
//! and that can drop the reply to Finish, hold back the memory channel or cut it.

mod carriers;
mod copies;
mod moves;
mod site;
mod volumes;

use std::{path::PathBuf, sync::Arc};

use ferry_core::{
    api::agent::Role,
    id::VmId,
    migration::Presence,
    vm::{FileRole, VmState},
};
use uuid::Uuid;

use self::site::{Watched, wait_until};
pub use self::{
    carriers::{Carriers, Mishap},
    site::{POOL, Side, Site},
};
use super::{DomainEvent, HypervisorError, rpc::definition::DefinitionPolicy};

/// The definition of a VM that is shut off can be defined on another host.
fn a_definition_goes_to_another_host(site: &Site<'_>) {
    let (here, there) = (site.source.hypervisor, site.destination.hypervisor);
    let vm = (site.define)(Role::Source, "ferry-offline");
    let paths = [site.folder.clone()];
    let policy = DefinitionPolicy { vm, name: "ferry-offline".to_owned(), roots: vec![site.folder.1.clone()] };
    let elsewhere = [(PathBuf::from("/nowhere"), PathBuf::from("/nowhere"))];
    let refused = here.definition(vm, &elsewhere);
    assert!(matches!(refused, Err(HypervisorError::Definition { .. })), "{refused:?}");
    here.start(vm).expect("started");
    let refused = here.definition(vm, &paths);
    assert!(matches!(refused, Err(HypervisorError::Failed { .. })), "it runs: {refused:?}");
    here.destroy(vm).expect("ended");
    let definition = here.definition(vm, &paths).expect("it is shut off");
    for wrong in [
        DefinitionPolicy { vm: VmId(Uuid::new_v4()), ..policy.clone() },
        DefinitionPolicy { name: "other".to_owned(), ..policy.clone() },
        DefinitionPolicy { roots: vec![PathBuf::from("/nowhere")], ..policy.clone() },
    ] {
        let refused = there.define(&definition, &wrong);
        assert!(matches!(refused, Err(HypervisorError::Definition { .. })), "{refused:?}");
    }
    assert!(there.vm(vm).expect("reachable").is_none());
    there.define(&definition, &policy).expect("defined");
    there.define(&definition, &policy).expect("defined again");
    let (old, new) = [here, there].map(|host| host.vm(vm).expect("reachable").expect("defined")).into();
    assert_eq!((&new.name, new.state, new.persistent), (&old.name, VmState::ShutOff, true));
    assert_eq!((new.memory, new.vcpus), (old.memory, old.vcpus));
    let moved = old.files[0].place.strip_prefix(&site.folder.0).expect("in the folder");
    assert_eq!(new.files[0].place, site.folder.1.join(moved));
    for host in [here, there] {
        host.undefine(vm).expect("undefined");
        assert!(host.vm(vm).expect("reachable").is_none());
    }
}

/// Runs the whole suite. Leaves no VM behind if it succeeds.
pub fn run(site: &Site<'_>) {
    the_host_is_described(site);
    an_unknown_vm_is_told_from_a_fault(site);
    a_vm_is_listed_started_and_ended(site);
    autostart_is_set_and_cleared(site);
    a_definition_goes_to_another_host(site);
    a_dropped_watch_reports_nothing_more(site);
    a_restarted_daemon_is_reached_again_and_its_watches_say_that_it_was_lost(site);
    volumes::run(site);
    copies::run(site);
    moves::run(site);
}

fn the_host_is_described(site: &Site<'_>) {
    let hosts = [&site.source, &site.destination].map(|side| side.hypervisor.host().expect("reachable"));
    for (host, side) in hosts.iter().zip([&site.source, &site.destination]) {
        assert!(host.cpus > 0 && host.memory_total.0 > 0, "{host:?}");
        let libvirt_major: u32 = host.libvirt_version.split('.').next().expect("a part").parse().expect("a number");
        assert!(libvirt_major >= 8, "{host:?}");
        side.hypervisor.process_owner().expect("known");
    }
    assert_ne!(hosts[0].uuid, hosts[1].uuid);
}

fn an_unknown_vm_is_told_from_a_fault(site: &Site<'_>) {
    let (here, vm) = (site.source.hypervisor, VmId(Uuid::new_v4()));
    assert!(here.vm(vm).expect("reachable").is_none());
    assert_eq!(here.presence(vm, Role::Source).expect("reachable"), Presence::Absent);
    for result in [here.start(vm), here.shutdown(vm), here.resume(vm), here.set_autostart(vm, true)] {
        assert!(matches!(result, Err(HypervisorError::NoVm(unknown)) if unknown == vm), "{result:?}");
    }
    let result = here.ensure_disks(vm);
    assert!(matches!(result, Err(HypervisorError::NoVm(unknown)) if unknown == vm), "{result:?}");
    let result = here.see_running(vm);
    assert!(matches!(result, Err(HypervisorError::NoVm(unknown)) if unknown == vm), "{result:?}");
    here.destroy(vm).expect("there is no process, as asked");
    here.undefine(vm).expect("there is no definition, as asked");
    here.abort_migration(vm).expect("there is no migration, as asked");
    assert_eq!(here.migration_stats(vm).expect("reachable"), None);
}

fn a_vm_is_listed_started_and_ended(site: &Site<'_>) {
    let here = site.source.hypervisor;
    let watch = Watched::begin(here);
    let vm = (site.define)(Role::Source, "ferry-listed");
    watch.wait("its definition is reported", |event| event == DomainEvent::Changed(vm));
    let facts = here.vm(vm).expect("reachable").expect("defined");
    assert_eq!((facts.id, facts.name.as_str(), facts.state), (vm, "ferry-listed", VmState::ShutOff));
    assert!(facts.persistent && !facts.autostart && facts.snapshots == 0, "{facts:?}");
    let [disk] = &facts.files[..] else { panic!("expected one file: {facts:?}") };
    assert_eq!((disk.role, disk.device.as_str()), (FileRole::Disk, "vda"));
    assert!(disk.place.starts_with(&site.folder.0), "{disk:?}");
    assert!(here.vms().expect("reachable").contains(&facts));
    assert_eq!(here.presence(vm, Role::Source).expect("reachable"), Presence::Off);

    assert!(matches!(here.shutdown(vm), Err(HypervisorError::Failed { .. })), "it does not run");
    watch.forget();
    here.start(vm).expect("started");
    watch.wait("its start is reported", |event| event == DomainEvent::Changed(vm));
    assert_eq!(here.presence(vm, Role::Source).expect("reachable"), Presence::Running);
    assert_eq!(here.vm(vm).expect("reachable").expect("there").state, VmState::Running);
    here.start(vm).expect("it runs, as asked");
    here.resume(vm).expect("it runs, as asked");
    assert!(!here.see_running(vm).expect("it is asked"), "nobody took it for another");
    here.abort_migration(vm).expect("there is no migration, as asked");

    watch.forget();
    here.destroy(vm).expect("ended");
    watch.wait("its end is reported", |event| event == DomainEvent::Changed(vm));
    assert_eq!(here.presence(vm, Role::Source).expect("reachable"), Presence::Off);
    here.destroy(vm).expect("there is no process, as asked");
    here.undefine(vm).expect("undefined");
    assert!(here.vm(vm).expect("reachable").is_none());
    here.undefine(vm).expect("there is no definition, as asked");
}

fn autostart_is_set_and_cleared(site: &Site<'_>) {
    let here = site.source.hypervisor;
    let vm = (site.define)(Role::Source, "ferry-autostart");
    for autostart in [true, true, false] {
        here.set_autostart(vm, autostart).expect("set");
        assert_eq!(here.vm(vm).expect("reachable").expect("there").autostart, autostart);
    }
    here.undefine(vm).expect("undefined");
}

fn a_dropped_watch_reports_nothing_more(site: &Site<'_>) {
    let here = site.source.hypervisor;
    let (dropped, kept) = (Watched::begin(here), Watched::begin(here));
    let events = Arc::clone(&dropped.events);
    drop(dropped);
    events.0.lock().expect("no thread panicked").clear();
    let vm = (site.define)(Role::Source, "ferry-watched");
    kept.wait("the other watch goes on", |event| event == DomainEvent::Changed(vm));
    assert!(events.0.lock().expect("no thread panicked").is_empty());
    here.undefine(vm).expect("undefined");
}

fn a_restarted_daemon_is_reached_again_and_its_watches_say_that_it_was_lost(site: &Site<'_>) {
    let here = site.source.hypervisor;
    let vm = (site.define)(Role::Source, "ferry-survivor");
    here.start(vm).expect("started");
    let watch = Watched::begin(here);
    (site.restart)(Role::Source);
    watch.wait("the loss is reported", |event| event == DomainEvent::ConnectionLost);
    wait_until("the daemon answers again", || here.presence(vm, Role::Source).is_ok());
    assert_eq!(here.presence(vm, Role::Source).expect("reachable"), Presence::Running);
    // A restarted libvirt reconnects to its VMs one after the other, and sends no event for one that ends meanwhile.
    here.resume(vm).expect("it runs, as asked");
    let watch = Watched::begin(here);
    here.destroy(vm).expect("ended");
    watch.wait("a new watch reports again", |event| event == DomainEvent::Changed(vm));
    here.undefine(vm).expect("undefined");
}
