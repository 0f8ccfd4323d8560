//! What a host's release of libvirt or QEMU cannot do, and what Ferry uses instead.
//!
//! libvirt checks twice whether a VM's file is shared: before a live move, which it refuses if a file is not shared,
//! and after the VM's process has ended, when it changes the owner of every file that is not shared back to root,
//! although the other host now uses it. It recognises some file systems by their number in statfs(2), but neither SMB 2
//! and later (`virFileIsSharedFSType` of 9.0 and of 11.3; statfs reports `0xfe534d42`) nor any FUSE client of SMB.
//! Since [`SHARED_FILESYSTEMS_SINCE`] an administrator can configure it. Before that, Ferry relies on its own proof
//! that both hosts see one share, where file owners cannot be changed: then the second check does no harm.

use std::fmt;

use crate::{
    api::agent::Role,
    finding::{ByHand, Finding, FindingId, Message},
    share::FileSystem,
    vm::{FileRole, VmFile},
};

/// A release, identified by its first two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release {
    major: u32,
    minor: u32,
}

/// The first release of libvirt that is assumed to read `shared_filesystems` in qemu.conf: 9.0 does not, 11.3 does. An
/// earlier release that does would lose nothing, because Ferry's own proof works there as well.
pub const SHARED_FILESYSTEMS_SINCE: Release = Release::new(10, 9);

/// The first release of QEMU that is known to migrate VMs with emulated processors correctly. 7.2.22 loses pages: 5 of
/// 24 moves of an idle guest between two hosts with 7.2.22, and 4 of 30 from there to 10.0, ended in a crash of the
/// guest's kernel; 0 of 16 between two hosts with 10.0. It clears bits of its dirty bitmap without informing the
/// emulated processor's TLB, so later writes set no bits. Only memory whose size is no multiple of 256 KiB, which
/// libvirt does not create, is handled differently (0 of 24). The releases in between were not tested. Under KVM the
/// kernel keeps the bitmap.
pub const MOVES_EMULATED_SINCE: Release = Release::new(10, 0);

/// File systems that every libvirt since 9.0 recognises as shared by itself (`virFileIsSharedFS`). Later releases
/// recognise more.
const KNOWN_SHARED: [&str; 10] =
    ["nfs", "nfs4", "gfs2", "ocfs2", "afs", "ceph", "gpfs", "acfs", "fuse.glusterfs", "fuse.quobyte"];

impl Release {
    /// The release with these two numbers.
    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }

    /// The release in a version string (`11.3.0`); `None` if it does not begin with two numbers.
    pub fn of(version: &str) -> Option<Self> {
        let mut numbers = version.split('.').map(|number| number.parse().ok());
        Some(Self { major: numbers.next()??, minor: numbers.next()?? })
    }

    /// The QEMU release of a machine type such as `pc-q35-7.2`. `None` for a distribution's own types, and for types
    /// without a release.
    pub fn of_machine(machine: &str) -> Option<Self> {
        let (_, version) = machine.rsplit_once('-')?;
        if version.split('.').count() != 2 {
            return None;
        }
        Self::of(version)
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Whether this libvirt can be configured with a list of shared file systems. An unreadable version is taken for a new
/// one, which reports itself what it refuses.
pub fn knows_shared_filesystems(libvirt_version: &str) -> bool {
    Release::of(libvirt_version).is_none_or(|release| release >= SHARED_FILESYSTEMS_SINCE)
}

/// Whether libvirt itself treats every file on a file system of this type as shared.
pub fn is_known_as_shared(kind: &str) -> bool {
    KNOWN_SHARED.contains(&kind)
}

/// How a host's libvirt treats a file that a VM keeps using through a live move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// It treats the file as shared, or that makes no difference for this file.
    Known,
    /// It does not treat it as shared. That is harmless once both hosts proved to see one share.
    ToProve,
    /// It does not treat it as shared, and guest writes may exist only in the source's page cache.
    Cached,
    /// It does not treat it as shared, and would change its owner to root while the other host uses it.
    GivesBack,
}

/// How a host's libvirt treats each file that stays on a share. Each file comes with the file system it lies on; the
/// result has the same order.
pub fn trusts<F>(libvirt_version: &str, role: Role, files: &[(&VmFile<F>, Option<&FileSystem>)]) -> Vec<Trust> {
    let mut found: Vec<Trust> = files.iter().map(|(file, on)| trust(libvirt_version, role, file, *on)).collect();
    // libvirt's check can be disabled only for all disks at once, and with it the check of their cache mode.
    if found.contains(&Trust::ToProve) {
        for (trust, (file, _)) in found.iter_mut().zip(files) {
            if *trust == Trust::Known && is_written(file) && file.role == FileRole::Disk && !file.bypasses_cache {
                *trust = Trust::Cached;
            }
        }
    }
    found
}

fn trust<F>(libvirt_version: &str, role: Role, file: &VmFile<F>, on: Option<&FileSystem>) -> Trust {
    let knows = on.is_some_and(|on| is_known_as_shared(&on.kind));
    if !is_written(file) || knows || knows_shared_filesystems(libvirt_version) {
        return Trust::Known;
    }
    if !on.is_some_and(|on| on.fixed_owner) {
        return Trust::GivesBack;
    }
    match (role, file.role) {
        // Only a source checks before the move, and only disks.
        (Role::Source, FileRole::Disk) if !file.bypasses_cache => Trust::Cached,
        (Role::Source, FileRole::Disk) => Trust::ToProve,
        (Role::Source | Role::Destination, _) => Trust::Known,
    }
}

/// Whether the guest writes it: libvirt checks no other files, nor changes their owners.
fn is_written<F>(file: &VmFile<F>) -> bool {
    match file.role {
        FileRole::Disk => !file.read_only,
        FileRole::Nvram => true,
        FileRole::Media | FileRole::Boot | FileRole::NotAFile => false,
    }
}

/// The finding for a file that a host's libvirt does not treat as needed; `None` if there is no problem.
pub fn distrusted<F>(
    trust: Trust,
    (host, libvirt_version): (&str, &str),
    (vm_name, file): (&str, &VmFile<F>),
    on: Option<&FileSystem>,
) -> Option<Finding> {
    let (vm, device) = (vm_name.to_owned(), file.device.clone());
    let (host, since) = (host.to_owned(), SHARED_FILESYSTEMS_SINCE.to_string());
    let cannot_be_told = || Message::LibvirtCannotBeTold {
        libvirt: libvirt_version.to_owned(),
        host: host.clone(),
        device: device.clone(),
        kind: on.map_or(Message::OfUnknownType, |on| Message::Verbatim { text: on.kind.clone() }).into(),
    };
    let (message, fix) = match trust {
        Trust::Known | Trust::ToProve => return None,
        Trust::Cached => (
            Message::LibvirtCached { told: cannot_be_told().into(), vm: vm.clone(), device: device.clone() },
            ByHand::SetCacheNone { vm, host: host.clone(), since },
        ),
        Trust::GivesBack => (
            Message::LibvirtGivesBack { told: cannot_be_told().into(), vm },
            ByHand::PutOnSmbOrNfs { host: host.clone(), since },
        ),
    };
    Some(Finding::blocks(FindingId::HostRelease, format!("{vm_name} {device}"), message, fix))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{finding::Severity, fixtures};

    fn disk() -> VmFile<()> {
        fixtures::disk("vda", ())
    }

    fn fs(kind: &str, fixed_owner: bool) -> Option<FileSystem> {
        Some(FileSystem { kind: kind.to_owned(), fixed_owner })
    }

    #[test]
    fn releases_are_compared_as_numbers() {
        assert!(Release::of("10.10.0") > Release::of("10.9.0") && Release::of("9.0.0") < Release::of("10.0.0"));
        for text in ["", "11", "x.y", "11.x"] {
            assert_eq!(Release::of(text), None, "{text}");
        }
        for (machine, release) in [
            ("pc-q35-10.0", Some(Release::new(10, 0))),
            ("pc-i440fx-7.2", Some(Release::new(7, 2))),
            ("virt-9.1", Some(Release::new(9, 1))),
            ("q35", None),
            ("microvm", None),
            ("pc-q35-rhel9.6.0", None),
            ("pc-q35-noble", None),
            ("s390-ccw-virtio-9.1", Some(Release::new(9, 1))),
        ] {
            assert_eq!(Release::of_machine(machine), release, "{machine}");
        }
    }

    #[test]
    fn file_systems_that_libvirt_knows_as_shared_are_told_from_others() {
        for kind in ["nfs4", "ceph", "gfs2", "ocfs2", "gpfs", "fuse.glusterfs"] {
            assert!(is_known_as_shared(kind), "{kind}");
        }
        // It knows SMB 1 by its number, but SMB 1 is no longer in use.
        for kind in ["cifs", "smb3", "ext4", "tmpfs", "fuse", "fuse.sshfs", "fuse.smbnetfs", "9p", ""] {
            assert!(!is_known_as_shared(kind), "{kind}");
        }
    }

    #[test]
    fn a_libvirt_is_trusted_with_what_it_knows_and_else_ferry_vouches_or_it_is_refused() {
        let (cached, read_only) = (VmFile { bypasses_cache: false, ..disk() }, VmFile { read_only: true, ..disk() });
        let nvram = VmFile { role: FileRole::Nvram, bypasses_cache: false, ..disk() };
        let medium = VmFile { role: FileRole::Media, read_only: true, ..disk() };
        let (cifs, smbnetfs, ext4) = (fs("cifs", true), fs("fuse.smbnetfs", true), fs("ext4", false));
        for (row, libvirt, file, on, source, destination) in [
            ("new", "11.3.0", &cached, &ext4, Trust::Known, Trust::Known),
            ("the first that knows", "10.9.0", &cached, &ext4, Trust::Known, Trust::Known),
            ("the last that does not", "10.8.0", &disk(), &cifs, Trust::ToProve, Trust::Known),
            ("Debian 12", "9.0.0", &disk(), &cifs, Trust::ToProve, Trust::Known),
            ("Debian 12, FUSE", "9.0.0", &disk(), &smbnetfs, Trust::ToProve, Trust::Known),
            ("Debian 12, cached", "9.0.0", &cached, &cifs, Trust::Cached, Trust::Known),
            ("Debian 12, read only", "9.0.0", &read_only, &cifs, Trust::Known, Trust::Known),
            ("Debian 12, NVRAM", "9.0.0", &nvram, &cifs, Trust::Known, Trust::Known),
            ("Debian 12, medium", "9.0.0", &medium, &ext4, Trust::Known, Trust::Known),
            ("Debian 12, NFS", "9.0.0", &cached, &fs("nfs4", false), Trust::Known, Trust::Known),
            ("Debian 12, CephFS", "9.0.0", &cached, &fs("ceph", false), Trust::Known, Trust::Known),
            ("Debian 12, GlusterFS", "9.0.0", &cached, &fs("fuse.glusterfs", false), Trust::Known, Trust::Known),
            ("Debian 12, any path", "9.0.0", &disk(), &ext4, Trust::GivesBack, Trust::GivesBack),
            ("Debian 12, NVRAM on any path", "9.0.0", &nvram, &ext4, Trust::GivesBack, Trust::GivesBack),
            ("Debian 12, cifs with owners", "9.0.0", &disk(), &fs("cifs", false), Trust::GivesBack, Trust::GivesBack),
            ("not looked at", "9.0.0", &disk(), &None, Trust::GivesBack, Trust::GivesBack),
            ("no version", "", &disk(), &None, Trust::Known, Trust::Known),
        ] {
            let found = [Role::Source, Role::Destination].map(|role| trust(libvirt, role, file, on.as_ref()));
            assert_eq!(found, [source, destination], "{row}");
        }
    }

    #[test]
    fn where_ferry_vouches_for_one_disk_no_other_is_cached() {
        let (on_cifs, on_nfs) = (fs("cifs", true), fs("nfs4", false));
        let cached = VmFile { bypasses_cache: false, ..disk() };
        let read_only = VmFile { read_only: true, ..cached.clone() };
        let plain = disk();
        let files = [(&plain, on_cifs.as_ref()), (&cached, on_nfs.as_ref()), (&read_only, on_nfs.as_ref())];
        assert_eq!(trusts("9.0.0", Role::Source, &files), [Trust::ToProve, Trust::Cached, Trust::Known]);
        assert_eq!(trusts("9.0.0", Role::Source, &files[1..]), [Trust::Known; 2]);
        assert_eq!(trusts("9.0.0", Role::Destination, &files), [Trust::Known; 3]);
        assert_eq!(trusts("11.3.0", Role::Source, &files), [Trust::Known; 3]);
    }

    #[test]
    fn what_is_refused_names_the_release_and_another_way() {
        let refused = |trust| distrusted(trust, ("kvm1", "9.0.0"), ("web01", &disk()), fs("ext4", false).as_ref());
        assert_eq!((refused(Trust::Known), refused(Trust::ToProve)), (None, None));
        for (trust, way) in [(Trust::Cached, "cache='none'"), (Trust::GivesBack, "--storage PLACE")] {
            let finding = refused(trust).expect("refused");
            assert_eq!((finding.id, finding.severity), (FindingId::HostRelease, Severity::Blocks));
            assert_eq!(finding.object, "web01 vda");
            assert!(
                finding.message.to_string().contains("libvirt 9.0.0 on kvm1")
                    && finding.message.to_string().contains("ext4"),
                "{finding:?}"
            );
            assert!(
                finding.fix.to_string().contains("10.9 or later") && finding.fix.to_string().contains(way),
                "{finding:?}"
            );
        }
    }
}
