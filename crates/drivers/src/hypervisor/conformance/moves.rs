//! Claims about moves.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use ferry_core::{
    api::agent::Role,
    id::VmId,
    migration::Presence,
    release::knows_shared_filesystems,
    units::ByteCount,
    vm::{DiskFormat, VmState},
};
use uuid::Uuid;

use super::{
    carriers::{Carriers, Mishap},
    site::{Site, Watched, wait_until},
};
use crate::{
    hypervisor::{DomainEvent, HypervisorError, MigrateRequest, MigratedDisk},
    image,
};

/// Content of the guests' disks.
const CONTENT: &[u8] = b"in the middle of the disk";

pub(super) fn run(site: &Site<'_>) {
    a_moved_vm_arrives_paused_and_runs_when_resumed(site);
    a_copy_that_does_not_get_its_disk_says_so_and_runs_once_it_does(site);
    a_move_without_definition_leaves_none_behind_at_the_destination(site);
    the_vm_stays_at_the_source_when_the_finish_reply_is_lost(site);
    an_aborted_move_leaves_the_vm_at_the_source(site);
    a_disk_moves_along_with_its_vm(site);
    a_disk_that_cannot_move_along_leaves_the_vm_at_the_source(site);
    a_move_whose_memory_channel_breaks_leaves_the_vm_at_the_source(site);
    the_vm_stays_when_the_destination_refuses_it(site);
    a_file_that_the_destination_does_not_reach_is_named_before_anything_happens(site);
    a_vm_that_does_not_run_is_not_moved(site);
}

/// One attempt to move a VM that runs at the source.
pub(super) struct Attempt<'a> {
    site: &'a Site<'a>,
    pub(super) vm: VmId,
    name: String,
    request: MigrateRequest,
    carriers: Carriers,
}

impl<'a> Attempt<'a> {
    fn begin(site: &'a Site<'a>, name: &str, mishap: Mishap) -> Self {
        Self::begin_with(site, (site.define)(Role::Source, name), name, mishap, Vec::new())
    }

    pub(super) fn begin_with(
        site: &'a Site<'a>,
        vm: VmId,
        name: &str,
        mishap: Mishap,
        disks: Vec<MigratedDisk>,
    ) -> Self {
        site.source.hypervisor.start(vm).expect("started");
        let session: String = Uuid::new_v4().simple().to_string().chars().take(8).collect();
        let socket_dir = site.run_dir.join(session);
        let carriers = Carriers::begin(site, (vm, name), &socket_dir, mishap, &disks);
        let request = MigrateRequest {
            vm,
            socket_dir,
            translate: vec![site.folder.clone()],
            persistent: true,
            downtime_limit: Duration::from_millis(300),
            bandwidth_bytes_per_s: None,
            auto_converge: true,
            disks,
            // Both hosts see the same folder, and its disks are not cached.
            vouched: !knows_shared_filesystems(&site.source.hypervisor.host().expect("reachable").libvirt_version),
        };
        Self { site, vm, name: name.to_owned(), request, carriers }
    }

    pub(super) fn migrate(&self) -> Result<(), HypervisorError> {
        self.site.source.hypervisor.migrate(&self.request)
    }

    fn source(&self) -> Presence {
        self.site.source.hypervisor.presence(self.vm, Role::Source).expect("reachable")
    }

    pub(super) fn destination(&self) -> Presence {
        self.site.destination.hypervisor.presence(self.vm, Role::Destination).expect("reachable")
    }

    /// A host answers queries for its VMs while one of them is arriving, although libvirt then withholds its
    /// definition.
    fn assert_both_hosts_tell_of_it_at_once(&self) {
        for (side, state) in [(&self.site.source, VmState::Running), (&self.site.destination, VmState::Incoming)] {
            let begun = Instant::now();
            let vms = side.hypervisor.vms().expect("reachable");
            let one = side.hypervisor.vm(self.vm).expect("reachable").expect("there");
            assert!(begun.elapsed() < Duration::from_secs(5), "it took {:?}", begun.elapsed());
            assert!(vms.iter().any(|facts| facts.id == self.vm && facts.state == state), "{vms:#?}");
            assert_eq!((one.state, one.name.as_str()), (state, self.name.as_str()));
        }
    }

    fn assert_it_stayed(&self) {
        assert_eq!(self.source(), Presence::Running);
        wait_until("the destination drops its copy", || self.destination() == Presence::Absent);
        let there = self.site.destination.hypervisor;
        wait_until("no definition is left at the destination", || there.vm(self.vm).expect("reachable").is_none());
        assert_eq!(self.site.source.hypervisor.migration_stats(self.vm).expect("reachable"), None);
    }

    pub(super) fn clean(self) {
        for side in [&self.site.source, &self.site.destination] {
            side.hypervisor.destroy(self.vm).expect("ended");
            side.hypervisor.undefine(self.vm).expect("undefined");
            assert!(side.hypervisor.vm(self.vm).expect("reachable").is_none());
        }
    }
}

fn a_moved_vm_arrives_paused_and_runs_when_resumed(site: &Site<'_>) {
    let watch = Watched::begin(site.source.hypervisor);
    let attempt = Attempt::begin(site, "ferry-moved", Mishap::None);
    let vm = attempt.vm;
    attempt.migrate().expect("moved");
    assert_eq!((attempt.source(), attempt.destination()), (Presence::Off, Presence::Arrived));
    watch.wait("that the vCPUs stop is reported", |event| event == DomainEvent::StoppedForMigration(vm));
    assert!(attempt.carriers.finish_delivered(), "the tap saw the reply to Finish pass");
    for side in [&site.source, &site.destination] {
        let stats = side.hypervisor.completed_stats(vm).expect("reachable").expect("both ends know what it took");
        assert!(stats.memory_total.0 > 0 && stats.memory_processed.0 > 0 && stats.iteration > 0, "{stats:?}");
    }

    let there = site.destination.hypervisor;
    assert_eq!(there.ensure_disks(vm).expect("it is asked"), [], "it has its disks");
    assert_eq!(attempt.destination(), Presence::Arrived, "and does not run yet");
    there.resume(vm).expect("resumed");
    assert_eq!(attempt.destination(), Presence::Running);
    let facts = there.vm(vm).expect("reachable").expect("there");
    assert!(facts.persistent && facts.state == VmState::Running, "{facts:?}");
    assert!(facts.files[0].place.starts_with(&site.folder.1), "{facts:?}");
    there.destroy(vm).expect("ended");
    let kept = there.vm(vm).expect("reachable").expect("its definition was kept");
    assert!(kept.files[0].place.starts_with(&site.folder.1), "{kept:?}");

    let left = site.source.hypervisor.vm(vm).expect("reachable").expect("the definition stays until it is removed");
    assert_eq!(left.state, VmState::ShutOff);
    attempt.clean();
}

fn a_copy_that_does_not_get_its_disk_says_so_and_runs_once_it_does(site: &Site<'_>) {
    let attempt = Attempt::begin(site, "ferry-taken-disk", Mishap::None);
    let disk = site.folder.1.join("ferry-taken-disk.raw");
    let taken = (site.take_disk)(Role::Destination, &disk);
    attempt.migrate().expect("libvirt does not mind");
    assert_eq!(attempt.destination(), Presence::Arrived);
    let there = site.destination.hypervisor;
    for _ in 0..2 {
        let refused = there.ensure_disks(attempt.vm).expect("it is asked");
        let [refused] = &refused[..] else { panic!("one disk: {refused:?}") };
        assert_eq!((refused.device.as_str(), &refused.path), ("vda", &disk));
        assert!(refused.reason.contains("lock"), "{refused:?}");
    }
    there.resume(attempt.vm).expect_err("it cannot run");
    drop(taken);
    assert_eq!(there.ensure_disks(attempt.vm).expect("it is asked"), []);
    there.resume(attempt.vm).expect("resumed");
    attempt.clean();
}

fn a_move_without_definition_leaves_none_behind_at_the_destination(site: &Site<'_>) {
    let mut attempt = Attempt::begin(site, "ferry-transient", Mishap::None);
    attempt.request.persistent = false;
    attempt.migrate().expect("moved");
    let there = site.destination.hypervisor;
    assert!(!there.vm(attempt.vm).expect("reachable").expect("there").persistent);
    there.destroy(attempt.vm).expect("ended");
    wait_until("a transient VM is gone with its process", || there.vm(attempt.vm).expect("reachable").is_none());
    attempt.clean();
}

fn the_vm_stays_at_the_source_when_the_finish_reply_is_lost(site: &Site<'_>) {
    let attempt = Attempt::begin(site, "ferry-unheard", Mishap::LoseFinishReply);
    attempt.migrate().expect_err("the reply was lost");
    // libvirt resumes the source's copy, unless the file server's locks show that the other copy has the disk: then it
    // stays stopped until that copy is gone and it is resumed explicitly. An old libvirt (9.0) reports it as paused for
    // a migration that no longer exists.
    let old = attempt.request.vouched;
    let may_be =
        |presence| matches!(presence, Presence::Running | Presence::Stopped) || old && presence == Presence::Left;
    assert!(may_be(attempt.source()), "{:?}", attempt.source());
    assert_eq!(attempt.destination(), Presence::Arrived);
    assert!(!attempt.carriers.finish_delivered());
    site.destination.hypervisor.destroy(attempt.vm).expect("the paused copy is dropped");
    site.destination.hypervisor.undefine(attempt.vm).expect("and what was kept of it");
    site.source.hypervisor.resume(attempt.vm).expect("nothing stands in its way");
    attempt.assert_it_stayed();
    attempt.clean();
}

fn an_aborted_move_leaves_the_vm_at_the_source(site: &Site<'_>) {
    let attempt = Attempt::begin(site, "ferry-aborted", Mishap::HoldMemory);
    let here = site.source.hypervisor;
    let request = &attempt.request;
    thread::scope(|scope| {
        let migration = scope.spawn(move || here.migrate(request));
        wait_until("memory begins to flow", || attempt.carriers.memory_began());
        wait_until("the migration counts", || here.migration_stats(attempt.vm).expect("reachable").is_some());
        assert_eq!(attempt.source(), Presence::Running);
        assert_eq!(attempt.destination(), Presence::Receiving);
        attempt.assert_both_hosts_tell_of_it_at_once();
        here.abort_migration(attempt.vm).expect("aborted");
        attempt.carriers.release_memory();
        let result = migration.join().expect("no thread panicked");
        assert!(matches!(result, Err(HypervisorError::Aborted { .. })), "{result:?}");
    });
    attempt.assert_it_stayed();
    attempt.clean();
}

/// A VM with data on its disk, and a new file for the disk at the destination.
fn with_a_disk_to_move<'a>(
    site: &'a Site<'a>,
    name: &str,
    length_there: impl Fn(u64) -> u64,
) -> (Attempt<'a>, [PathBuf; 2]) {
    let vm = (site.define)(Role::Source, name);
    let facts = site.source.hypervisor.vm(vm).expect("reachable").expect("defined");
    let old = (site.source.see)(&facts.files[0].place);
    let file = File::options().write(true).open(&old).expect("there");
    let length = file.metadata().expect("there").len().max(1 << 20);
    file.set_len(length).expect("there is room");
    file.write_all_at(CONTENT, length / 2).expect("written");
    let path = site.folder.1.join(format!("{name}-new.raw"));
    let new = (site.destination.see)(&path);
    let owner = site.destination.hypervisor.process_owner().expect("reachable");
    image::create(&new, DiskFormat::Raw, ByteCount(length_there(length)), owner).expect("made");
    let disks = vec![MigratedDisk { device: facts.files[0].device.clone(), path, format: DiskFormat::Raw }];
    (Attempt::begin_with(site, vm, name, Mishap::None, disks), [old, new])
}

fn a_disk_moves_along_with_its_vm(site: &Site<'_>) {
    let (attempt, [old, new]) = with_a_disk_to_move(site, "ferry-along", |length| length);
    attempt.migrate().expect("moved");
    assert_eq!((attempt.source(), attempt.destination()), (Presence::Off, Presence::Arrived));
    let there = site.destination.hypervisor;
    there.resume(attempt.vm).expect("resumed");
    let used = there.files_in_use().expect("reachable");
    assert!(used.contains(&attempt.request.disks[0].path), "{used:?}");
    assert_eq!(fs::read(&new).expect("there"), fs::read(&old).expect("the old file stays"));
    there.destroy(attempt.vm).expect("ended");
    let kept = there.vm(attempt.vm).expect("reachable").expect("its definition was kept");
    assert_eq!(kept.files[0].place, attempt.request.disks[0].path);
    fs::remove_file(&new).expect("there");
    attempt.clean();
}

fn a_disk_that_cannot_move_along_leaves_the_vm_at_the_source(site: &Site<'_>) {
    let (attempt, [_, new]) = with_a_disk_to_move(site, "ferry-not-along", |length| length / 2);
    let result = attempt.migrate();
    assert!(matches!(result, Err(HypervisorError::Failed { .. })), "{result:?}");
    attempt.assert_it_stayed();
    fs::remove_file(&new).expect("there");
    attempt.clean();
}

fn a_move_whose_memory_channel_breaks_leaves_the_vm_at_the_source(site: &Site<'_>) {
    let attempt = Attempt::begin(site, "ferry-cut", Mishap::CutMemory);
    let result = attempt.migrate();
    assert!(matches!(result, Err(HypervisorError::Failed { .. })), "{result:?}");
    attempt.assert_it_stayed();
    attempt.clean();
}

fn the_vm_stays_when_the_destination_refuses_it(site: &Site<'_>) {
    let other = (site.define)(Role::Destination, "ferry-taken");
    let attempt = Attempt::begin(site, "ferry-taken", Mishap::None);
    let result = attempt.migrate();
    assert!(
        matches!(&result, Err(HypervisorError::Failed { reason, .. }) if reason.contains("ferry-taken")),
        "{result:?}"
    );
    attempt.assert_it_stayed();
    attempt.clean();
    site.destination.hypervisor.undefine(other).expect("undefined");
}

fn a_file_that_the_destination_does_not_reach_is_named_before_anything_happens(site: &Site<'_>) {
    let mut attempt = Attempt::begin(site, "ferry-local", Mishap::None);
    attempt.request.translate = vec![(PathBuf::from("/elsewhere"), PathBuf::from("/elsewhere"))];
    let result = attempt.migrate();
    let disk = site.source.hypervisor.vm(attempt.vm).expect("reachable").expect("there").files[0].place.clone();
    let disk = disk.display().to_string();
    assert!(
        matches!(&result, Err(HypervisorError::Definition { reason, .. }) if reason.contains(&disk)),
        "{disk}: {result:?}"
    );
    assert!(!attempt.carriers.rpc_began(), "the destination was not asked");
    attempt.assert_it_stayed();
    attempt.clean();
}

fn a_vm_that_does_not_run_is_not_moved(site: &Site<'_>) {
    let attempt = Attempt::begin(site, "ferry-off", Mishap::None);
    site.source.hypervisor.destroy(attempt.vm).expect("ended");
    let result = attempt.migrate();
    assert!(matches!(result, Err(HypervisorError::Failed { .. })), "{result:?}");
    assert_eq!((attempt.source(), attempt.destination()), (Presence::Off, Presence::Absent));
    attempt.clean();
}
