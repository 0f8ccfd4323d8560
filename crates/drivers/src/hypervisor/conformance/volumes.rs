//! Claims about disks that are volumes of storage pools.

use std::path::Path;

use ferry_core::{
    migration::Presence,
    vm::{FileRole, NotAFile},
};

use super::{
    carriers::Mishap,
    moves::Attempt,
    site::{POOL, Site},
};
use crate::hypervisor::files_of;

pub(super) fn run(site: &Site<'_>) {
    a_volume_is_told_as_the_file_that_it_is(site);
    a_volume_of_no_pool_is_told_as_such_and_nothing_is_removed_meanwhile(site);
    a_vm_of_a_volume_moves_to_a_host_without_the_pool(site);
}

fn a_volume_is_told_as_the_file_that_it_is(site: &Site<'_>) {
    let (here, name) = (site.source.hypervisor, "ferry-volume");
    let vm = (site.define_volume)(name, POOL);
    let file = site.folder.0.join(format!("{name}.raw"));
    let facts = here.vm(vm).expect("reachable").expect("defined");
    let [disk] = &facts.files[..] else { panic!("expected one file: {facts:?}") };
    assert_eq!((disk.role, disk.device.as_str(), &disk.place), (FileRole::Disk, "vda", &file));
    assert!(here.vms().expect("reachable").contains(&facts));
    assert!(here.files_in_use().expect("reachable").contains(&file));
    let kept = files_of(&here.kept_definition(vm).expect("kept")).expect("a definition");
    assert_eq!(kept[0].place, file);
    let definition = here.definition(vm, std::slice::from_ref(&site.folder)).expect("it is shut off");
    let there = files_of(&definition).expect("a definition");
    assert_eq!(there[0].place, site.folder.1.join(format!("{name}.raw")), "{definition}");
    here.undefine(vm).expect("undefined");
}

fn a_volume_of_no_pool_is_told_as_such_and_nothing_is_removed_meanwhile(site: &Site<'_>) {
    let (here, name) = (site.source.hypervisor, "ferry-lost-volume");
    let vm = (site.define_volume)(name, "ferry-no-pool");
    let facts = here.vm(vm).expect("reachable").expect("it is listed all the same");
    let disk = &facts.files[0];
    assert_eq!((disk.role, &disk.kind), (FileRole::NotAFile, &Some(NotAFile::Volume)));
    assert_eq!(disk.place, Path::new("ferry-no-pool").join(format!("{name}.raw")));
    let refused = here.files_in_use().expect_err("its file may be any");
    assert!(refused.to_string().contains("ferry-no-pool"), "{refused}");
    here.undefine(vm).expect("undefined");
    here.files_in_use().expect("nothing is unknown any more");
}

fn a_vm_of_a_volume_moves_to_a_host_without_the_pool(site: &Site<'_>) {
    let name = "ferry-volume-moved";
    let attempt = Attempt::begin_with(site, (site.define_volume)(name, POOL), name, Mishap::None, Vec::new());
    attempt.migrate().expect("moved");
    let (there, vm) = (site.destination.hypervisor, attempt.vm);
    assert_eq!(attempt.destination(), Presence::Arrived);
    there.resume(vm).expect("resumed");
    let file = site.folder.1.join(format!("{name}.raw"));
    let place = || there.vm(vm).expect("reachable").expect("there").files[0].place.clone();
    assert_eq!(place(), file, "running");
    there.destroy(vm).expect("ended");
    assert_eq!(place(), file, "kept");
    there.start(vm).expect("its definition needs no pool");
    attempt.clean();
}
