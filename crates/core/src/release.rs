//! What a host's release of libvirt or QEMU cannot do, and what stands in for it.
//!
//! libvirt asks twice whether a VM's file is shared: before a live move, which it refuses if one is not, and after the
//! VM's process has ended, when it gives back to root every file that is not, though the other host uses it now. It
//! knows some file systems by their number in statfs(2); SMB 2 and later is none of them (`virFileIsSharedFSType` of 9.0
//! and of 11.3; statfs says `0xfe534d42`), nor is any FUSE client of SMB. Since [`SHARED_FILESYSTEMS_SINCE`] an
//! administrator can tell it. Before, Ferry's own proof that both hosts see one share stands in, where nobody can give
//! files away: then the second question is of no matter.

use std::fmt;

use crate::{
    api::agent::Role,
    finding::{Finding, FindingId},
    share::FileSystem,
    vm::{FileRole, VmFile},
};

/// A release, by its first two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release {
    major: u32,
    minor: u32,
}

/// The first release of libvirt that is known to read `shared_filesystems` in qemu.conf: 9.0 does not, 11.3 does. One
/// that did earlier loses nothing: what stands in for it works there, too.
pub const SHARED_FILESYSTEMS_SINCE: Release = Release::new(10, 9);

/// The first release of QEMU that is known to move VMs whole whose processors it emulates. 7.2.22 loses pages (5 of 24 moves of
/// an idle guest between two of it, and 4 of 30 to 10.0, ended in a crash of the guest's kernel; 0 of 16 between two of 10.0):
/// it clears bits of its dirty bitmap without telling the emulated processor's TLB, whose later writes then set none. Only
/// memory whose size is no multiple of 256 KiB, which libvirt does not make, goes another way (0 of 24). Releases between
/// were not tried. Under KVM the kernel keeps the bitmap.
pub const MOVES_EMULATED_SINCE: Release = Release::new(10, 0);

/// File systems that libvirt knows to be shared by itself, in each release since 9.0 (`virFileIsSharedFS`). Later ones know
/// more.
const KNOWN_SHARED: [&str; 10] =
    ["nfs", "nfs4", "gfs2", "ocfs2", "afs", "ceph", "gpfs", "acfs", "fuse.glusterfs", "fuse.quobyte"];

impl Release {
    /// The release with these two numbers.
    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }

    /// The release that a version names (`11.3.0`); `None` if it does not begin with two numbers.
    pub fn of(version: &str) -> Option<Self> {
        let mut numbers = version.split('.').map(|number| number.parse().ok());
        Some(Self { major: numbers.next()??, minor: numbers.next()?? })
    }

    /// The release of QEMU that a machine type is of: `pc-q35-7.2`. `None` of a distribution's own types, and of those
    /// that are of no release.
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

/// Whether a libvirt can be told which file systems are shared. One whose version cannot be read is taken for a new one:
/// it says itself what it refuses.
pub fn knows_shared_filesystems(libvirt_version: &str) -> bool {
    Release::of(libvirt_version).is_none_or(|release| release >= SHARED_FILESYSTEMS_SINCE)
}

/// Whether libvirt itself takes every file on a file system of this type for shared.
pub fn is_known_as_shared(kind: &str) -> bool {
    KNOWN_SHARED.contains(&kind)
}

/// What a host's libvirt makes of a file that a VM goes on using through a live move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// It knows that the file is shared, or it does not matter for this one.
    Known,
    /// It does not know. Once both hosts were shown to see one share, it need not.
    ToProve,
    /// It does not know, and the guest's writes may be in the source's page cache only.
    Cached,
    /// It does not know, and would give the file back to root while the other host uses it.
    GivesBack,
}

/// How far a host's libvirt can be trusted with files that stay on shares, each with what it lies on there, in their
/// order.
pub fn trusts<F>(libvirt_version: &str, role: Role, files: &[(&VmFile<F>, Option<&FileSystem>)]) -> Vec<Trust> {
    let mut found: Vec<Trust> = files.iter().map(|(file, on)| trust(libvirt_version, role, file, *on)).collect();
    // libvirt is told once for all disks that it need not look: then it does not look at how they are cached either.
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
        // Only a source asks before the move, and of disks only.
        (Role::Source, FileRole::Disk) if !file.bypasses_cache => Trust::Cached,
        (Role::Source, FileRole::Disk) => Trust::ToProve,
        (Role::Source | Role::Destination, _) => Trust::Known,
    }
}

/// Whether the guest writes it: nothing else is asked about or given back.
fn is_written<F>(file: &VmFile<F>) -> bool {
    match file.role {
        FileRole::Disk => !file.read_only,
        FileRole::Nvram => true,
        FileRole::Media | FileRole::Boot | FileRole::NotAFile => false,
    }
}

/// The finding of a file with which a host's libvirt cannot be trusted; `None` if it can.
pub fn distrusted<F>(
    trust: Trust,
    (host, libvirt_version): (&str, &str),
    (vm_name, file): (&str, &VmFile<F>),
    on: Option<&FileSystem>,
) -> Option<Finding> {
    let device = &file.device;
    let kind = on.map_or("of unknown type", |on| on.kind.as_str());
    let does_not_know = format!(
        "libvirt {libvirt_version} on {host} cannot be told that the file system of {device} ({kind}) is shared"
    );
    let upgrade = format!("upgrade libvirt on {host} to {SHARED_FILESYSTEMS_SINCE} or later");
    let blocks =
        |message, fix| Some(Finding::blocks(FindingId::HostRelease, format!("{vm_name} {device}"), message, fix));
    match trust {
        Trust::Known | Trust::ToProve => None,
        Trust::Cached => blocks(
            format!(
                "{does_not_know}, and disk {device} of VM {vm_name} goes through the host's page cache: without both it \
                 does not move"
            ),
            format!(
                "Set cache='none' in the disk's <driver>, then shut VM {vm_name} down and start it again; or {upgrade}"
            ),
        ),
        Trust::GivesBack => blocks(
            format!("{does_not_know}, and it would give the file to root while VM {vm_name} uses it on the other host"),
            format!("Put the file on an SMB share or on NFS, let it move along with `--storage PLACE`, or {upgrade}"),
        ),
    }
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
        // It knows SMB 1 by its number, and nobody mounts that any more.
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
                finding.message.contains("libvirt 9.0.0 on kvm1") && finding.message.contains("ext4"),
                "{finding:?}"
            );
            assert!(finding.fix.contains("10.9 or later") && finding.fix.contains(way), "{finding:?}");
        }
    }
}
