//! The hypervisor suite: always for the fake, and for libvirt if two hosts are given (`--run-ignored all`).
//!
//! `FERRY_CONFORMANCE_SOURCE` and `FERRY_CONFORMANCE_DESTINATION` are the roots of two hosts in this process's view,
//! that is, `/proc/PID/root` of a process in each. Each has libvirtd, QEMU and the folder `/srv/ferry/conformance`,
//! which is the same on both. Needs root. `FERRY_CONFORMANCE_MACHINE` is the machine type of the VMs, for hosts with
//! QEMUs of two releases.

use std::{
    any::Any,
    path::{Path, PathBuf},
};

use ferry_core::{
    api::agent::Role,
    id::VmId,
    vm::{FileRole, NotAFile},
};
use ferry_drivers::hypervisor::{
    conformance::{self, Side, Site},
    fake::{FakeGuest, FakeHypervisor, World},
};

#[test]
fn the_fake_passes_the_suite_and_never_runs_a_vm_twice() {
    let base = tempfile::tempdir().expect("a folder");
    let folder = |name: &str| {
        let path = base.path().join(name);
        std::fs::create_dir(&path).expect("created");
        path
    };
    let world = World::new();
    let source = FakeHypervisor::new("kvm1", folder("a"), &world).expect("listening");
    let destination = FakeHypervisor::new("kvm2", folder("b"), &world).expect("listening");
    let share = folder("share");
    std::os::unix::fs::symlink(&share, base.path().join("mount")).expect("linked");
    let folders = (share, base.path().join("mount"));
    let vms = std::cell::RefCell::new(Vec::new());
    let define = |role: Role, name: &str| -> VmId {
        let (host, folder) = match role {
            Role::Source => (&source, &folders.0),
            Role::Destination => (&destination, &folders.1),
        };
        let vm = host.define(FakeGuest::new(name, &[folder.join(format!("{name}.raw"))])).expect("defined");
        vms.borrow_mut().push(vm);
        vm
    };
    let define_volume = |name: &str, pool: &str| -> VmId {
        let (volume, file) = (format!("{pool}/{name}.raw"), folders.0.join(format!("{name}.raw")));
        let mut guest = FakeGuest::new(name, &[volume.clone().into()]);
        let disk = &mut guest.facts.files[0];
        (disk.role, disk.kind) = (FileRole::NotAFile, Some(NotAFile::Volume));
        std::fs::write(&file, []).expect("written");
        if pool == conformance::POOL {
            source.add_volume(volume, file);
        }
        let vm = source.define(guest).expect("defined");
        vms.borrow_mut().push(vm);
        vm
    };
    let restart = |role: Role| {
        let host = match role {
            Role::Source => &source,
            Role::Destination => &destination,
        };
        host.set_reachable(false);
        host.set_reachable(true);
    };
    let take_disk = |role: Role, _: &Path| -> Box<dyn Any> {
        let host = match role {
            Role::Source => "kvm1",
            Role::Destination => "kvm2",
        };
        world.set_locked_out(host, true);
        Box::new(Taken(world.clone(), host))
    };
    let see = Path::to_owned;
    conformance::run(&Site {
        source: Side { hypervisor: &source, see: &see },
        destination: Side { hypervisor: &destination, see: &see },
        define: &define,
        define_volume: &define_volume,
        folder: folders.clone(),
        take_disk: &take_disk,
        restart: &restart,
        run_dir: base.path().join("run"),
    });
    for vm in vms.into_inner() {
        assert!(world.most_at_once(vm) <= 1, "{:?}", world.history(vm));
    }
}

/// A fake host whose VMs cannot get their disks, until this is dropped.
struct Taken(World, &'static str);

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.set_locked_out(self.1, false);
    }
}

#[test]
#[ignore = "needs two hosts with libvirtd and QEMU: FERRY_CONFORMANCE_SOURCE and FERRY_CONFORMANCE_DESTINATION"]
fn libvirt_passes_the_suite() {
    let root = |side: &str| {
        let name = format!("FERRY_CONFORMANCE_{side}");
        PathBuf::from(std::env::var_os(&name).unwrap_or_else(|| panic!("{name} names no host")))
    };
    libvirt::run(&root("SOURCE"), &root("DESTINATION"));
}

mod libvirt {
    use std::{os::unix::fs::chown, process::Command};

    use ferry_drivers::hypervisor::{HostInfo as _, libvirt::Libvirt};
    use nix::{fcntl, libc};
    use uuid::Uuid;

    use super::*;

    const FOLDER: &str = "/srv/ferry/conformance";

    pub(super) fn run(source: &Path, destination: &Path) {
        let uri = |root: &Path| format!("qemu:///system?socket={}", root.join("run/libvirt/libvirt-sock").display());
        let (here, there) = (Libvirt::new(uri(source)), Libvirt::new(uri(destination)));
        virsh(source, &["pool-create-as", conformance::POOL, "dir", "--target", FOLDER]);
        let define = |role: Role, name: &str| match role {
            Role::Source => define(&here, source, name),
            Role::Destination => define(&there, destination, name),
        };
        let see = |root: &Path| {
            let root = root.to_owned();
            move |path: &Path| root.join(path.strip_prefix("/").expect("absolute"))
        };
        conformance::run(&Site {
            source: Side { hypervisor: &here, see: &see(source) },
            destination: Side { hypervisor: &there, see: &see(destination) },
            define: &define,
            define_volume: &|name, pool| define_volume(&here, source, name, pool),
            folder: (FOLDER.into(), FOLDER.into()),
            take_disk: &|role, path| match role {
                Role::Source => lock(&see(source)(path)),
                Role::Destination => lock(&see(destination)(path)),
            },
            restart: &|role| match role {
                Role::Source => restart(source),
                Role::Destination => restart(destination),
            },
            run_dir: "/run/ferry-conformance".into(),
        });
    }

    /// Locks a file like another QEMU that has it and denies writing to others, until the returned value is dropped.
    /// The present owner of the file is not affected.
    fn lock(path: &Path) -> Box<dyn Any> {
        const NOBODY_WRITES: libc::off_t = 201;
        let file = std::fs::File::open(path).expect("there");
        let lock = libc::flock {
            l_type: libc::F_RDLCK as _,
            l_whence: libc::SEEK_SET as _,
            l_start: NOBODY_WRITES,
            l_len: 1,
            l_pid: 0,
        };
        fcntl::fcntl(&file, fcntl::FcntlArg::F_OFD_SETLK(&lock)).expect("locked");
        Box::new(file)
    }

    /// Restarts libvirtd from inside the host. A libvirtd whose threads are busy gives them 30 s (libvirt,
    /// `virNetDaemonQuit`) and then ends.
    fn restart(root: &Path) {
        let process = root.components().nth(2).expect("/proc/PID/root").as_os_str();
        let script = "pid=$(cat /run/libvirtd.pid 2>/dev/null || cat /run/libvirt/libvirtd.pid); kill $pid; \
                      while kill -0 $pid 2>/dev/null; do sleep 0.05; done; libvirtd -d";
        let status =
            Command::new("nsenter").arg("-t").arg(process).args(["-a", "timeout", "60", "sh", "-c", script]).status();
        assert!(status.expect("nsenter is installed").success());
    }

    /// A VM without an operating system: its firmware finds no boot disk and idles.
    fn define(libvirt: &Libvirt, root: &Path, name: &str) -> VmId {
        let disk = format!("{FOLDER}/{name}.raw");
        make_disk(libvirt, root, &disk);
        define_with(root, name, "file", &format!("file='{disk}'"))
    }

    /// The same with a volume. A pool knows the content of its folder only after a refresh.
    fn define_volume(libvirt: &Libvirt, root: &Path, name: &str, pool: &str) -> VmId {
        make_disk(libvirt, root, &format!("{FOLDER}/{name}.raw"));
        virsh(root, &["pool-refresh", conformance::POOL]);
        define_with(root, name, "volume", &format!("pool='{pool}' volume='{name}.raw'"))
    }

    fn make_disk(libvirt: &Libvirt, root: &Path, disk: &str) {
        let seen = root.join(disk.trim_start_matches('/'));
        std::fs::File::create(&seen).and_then(|file| file.set_len(16 << 20)).expect("the common folder is writable");
        let (user, group) = libvirt.process_owner().expect("reachable");
        chown(&seen, Some(user), Some(group)).expect("permitted");
    }

    fn define_with(root: &Path, name: &str, kind: &str, source: &str) -> VmId {
        let vm = VmId(Uuid::new_v4());
        let machine = std::env::var("FERRY_CONFORMANCE_MACHINE").unwrap_or_else(|_| "q35".to_owned());
        let xml = format!(
            "<domain type='qemu'><name>{name}</name><uuid>{vm}</uuid><memory unit='MiB'>64</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64' machine='{machine}'>hvm</type></os><devices>\
             <disk type='{kind}' device='disk'><driver name='qemu' type='raw' cache='none' error_policy='stop'/>\
             <source {source}/><target dev='vda' bus='virtio'/></disk>\
             <controller type='usb' model='none'/><memballoon model='none'/></devices></domain>"
        );
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), xml).expect("written");
        virsh(root, &["define", &file.path().display().to_string()]);
        vm
    }

    fn virsh(root: &Path, arguments: &[&str]) {
        let socket = root.join("run/libvirt/libvirt-sock");
        let uri = format!("qemu:///system?socket={}", socket.display());
        let output = Command::new("virsh").args(["-c", &uri]).args(arguments).output().expect("virsh is installed");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
