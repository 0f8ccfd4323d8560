//! Claims about copies of a running VM's disks.

use std::{
    fs,
    path::{Path, PathBuf},
};

use ferry_core::{api::agent::Role, id::VmId, migration::Presence, vm::DiskFormat};

use super::site::{Site, wait_until};
use crate::hypervisor::{DiskCopyRequest, Hypervisor, HypervisorError};

pub(super) fn run(site: &Site<'_>) {
    a_copied_disk_is_used_after_the_pivot_and_not_before(site);
    a_copy_that_is_abandoned_leaves_the_old_file_in_use(site);
    a_copy_outlives_a_restart_of_the_daemon(site);
    a_copy_ends_with_its_vm(site);
    a_copy_to_nowhere_is_refused(site);
}

/// A VM that runs at the source, and an empty file of its disk's size.
struct Copied<'a> {
    site: &'a Site<'a>,
    vm: VmId,
    old: PathBuf,
    new: PathBuf,
}

impl<'a> Copied<'a> {
    fn begin(site: &'a Site<'a>, name: &str) -> Self {
        let vm = (site.define)(Role::Source, name);
        site.source.hypervisor.start(vm).expect("started");
        let old = site.source.hypervisor.vm(vm).expect("reachable").expect("there").files[0].place.clone();
        let copied = Self { site, vm, old, new: site.folder.0.join(format!("{name}-copy.raw")) };
        let size = site.source.hypervisor.disk_size(vm, "vda").expect("known").virtual_size;
        assert_eq!(size.0, fs::metadata((site.source.see)(&copied.old)).expect("there").len());
        let file = fs::File::create((site.source.see)(&copied.new)).expect("made");
        file.set_len(size.0).expect("of the disk's size");
        copied
    }

    fn here(&self) -> &'a dyn Hypervisor {
        self.site.source.hypervisor
    }

    fn request(&self) -> DiskCopyRequest {
        DiskCopyRequest {
            vm: self.vm,
            device: "vda".to_owned(),
            to: self.new.clone(),
            format: DiskFormat::Raw,
            bandwidth_bytes_per_s: None,
        }
    }

    fn copy_until_ready(&self) {
        self.here().copy_disk(&self.request()).expect("begun");
        let mut seen = 0;
        wait_until("the copy is ready", || {
            let copy = self.here().disk_copy(self.vm, "vda").expect("reachable").expect("it goes on");
            assert_eq!(copy.to, self.new);
            assert!(copy.copied.0 >= seen && copy.copied <= copy.total, "{copy:?} after {seen}");
            seen = copy.copied.0;
            copy.ready
        });
        assert_eq!(self.in_use(), self.old, "until the pivot");
    }

    fn in_use(&self) -> PathBuf {
        self.here().vm(self.vm).expect("reachable").expect("there").files[0].place.clone()
    }

    fn is_copied(&self) -> bool {
        self.here().disk_copy(self.vm, "vda").expect("reachable").is_some()
    }

    fn bytes(&self, path: &Path) -> Vec<u8> {
        fs::read((self.site.source.see)(path)).expect("readable")
    }

    fn clean(self) {
        self.here().destroy(self.vm).expect("ended");
        self.here().undefine(self.vm).expect("undefined");
        fs::remove_file((self.site.source.see)(&self.new)).expect("removed");
    }
}

fn a_copied_disk_is_used_after_the_pivot_and_not_before(site: &Site<'_>) {
    let copied = Copied::begin(site, "ferry-copied");
    let (here, vm) = (copied.here(), copied.vm);
    assert!(matches!(here.pivot_disk(vm, "vda"), Err(HypervisorError::Failed { .. })), "there is no copy");
    copied.copy_until_ready();
    let again = here.copy_disk(&copied.request());
    assert!(matches!(again, Err(HypervisorError::Failed { .. })), "it is being copied: {again:?}");

    assert!(here.files_in_use().expect("told").contains(&copied.old));
    here.pivot_disk(vm, "vda").expect("switched");
    assert_eq!(copied.in_use(), copied.new);
    let used = here.files_in_use().expect("told");
    assert!(used.contains(&copied.new) && !used.contains(&copied.old), "{used:?}");
    assert!(!copied.is_copied());
    assert_eq!(here.presence(vm, Role::Source).expect("reachable"), Presence::Running);
    assert_eq!(copied.bytes(&copied.old), copied.bytes(&copied.new));

    here.destroy(vm).expect("ended");
    assert_eq!(copied.in_use(), copied.new, "at its next start, too");
    copied.clean();
}

fn a_copy_that_is_abandoned_leaves_the_old_file_in_use(site: &Site<'_>) {
    let copied = Copied::begin(site, "ferry-abandoned");
    copied.here().abandon_disk_copy(copied.vm, "vda").expect("there is none, as asked");
    copied.copy_until_ready();
    copied.here().abandon_disk_copy(copied.vm, "vda").expect("ended");
    assert!(!copied.is_copied());
    assert_eq!(copied.in_use(), copied.old);
    assert!(matches!(copied.here().pivot_disk(copied.vm, "vda"), Err(HypervisorError::Failed { .. })));
    copied.here().abandon_disk_copy(copied.vm, "vda").expect("there is none, as asked");
    copied.copy_until_ready();
    copied.here().abandon_disk_copy(copied.vm, "vda").expect("a second one is as good as the first");
    copied.clean();
}

fn a_copy_outlives_a_restart_of_the_daemon(site: &Site<'_>) {
    let copied = Copied::begin(site, "ferry-copied-on");
    copied.copy_until_ready();
    (site.restart)(Role::Source);
    wait_until("the daemon answers again", || {
        copied.here().disk_copy(copied.vm, "vda").is_ok_and(|copy| copy.is_some_and(|copy| copy.ready))
    });
    copied.here().pivot_disk(copied.vm, "vda").expect("switched");
    assert_eq!(copied.in_use(), copied.new);
    copied.clean();
}

fn a_copy_ends_with_its_vm(site: &Site<'_>) {
    let copied = Copied::begin(site, "ferry-uncopied");
    copied.copy_until_ready();
    copied.here().destroy(copied.vm).expect("ended");
    assert!(!copied.is_copied());
    assert_eq!(copied.in_use(), copied.old);
    copied.here().abandon_disk_copy(copied.vm, "vda").expect("there is none, as asked");
    copied.clean();
}

fn a_copy_to_nowhere_is_refused(site: &Site<'_>) {
    let copied = Copied::begin(site, "ferry-nowhere");
    let nowhere = DiskCopyRequest { to: site.folder.0.join("no-folder/vda.raw"), ..copied.request() };
    let result = copied.here().copy_disk(&nowhere);
    assert!(matches!(result, Err(HypervisorError::Failed { .. })), "{result:?}");
    let unknown = DiskCopyRequest { device: "vdz".to_owned(), ..copied.request() };
    let result = copied.here().copy_disk(&unknown);
    assert!(matches!(result, Err(HypervisorError::Failed { .. })), "{result:?}");
    assert!(matches!(copied.here().disk_size(copied.vm, "vdz"), Err(HypervisorError::Failed { .. })));
    assert!(!copied.is_copied());
    copied.clean();
}
