//! How much space copies of disks take.

use super::DiskMove;
use crate::{
    finding::{Action, ByHand, Fix, Message},
    location::Location,
    units::ByteCount,
    vm::{DiskFormat, VmFile},
};

/// Bytes that must be free for a copy of `allocated`: 5 % more than that, and one mebibyte for the image's metadata.
pub fn space_needed(allocated: ByteCount) -> ByteCount {
    ByteCount(allocated.0.saturating_add(allocated.0 / 20).saturating_add(1 << 20))
}

/// Upper estimate of a copy's size: the allocated size of the disk's file and of those below it, at most the virtual
/// size; the whole virtual size if the copy may not be thin.
pub fn copy_takes(virtual_size: ByteCount, chain: ByteCount, is_thick: bool) -> ByteCount {
    if is_thick { virtual_size } else { chain.min(virtual_size) }
}

/// Whether a copy that the hypervisor makes from file to file may become thick.
pub fn is_thick<F>(file: &VmFile<F>, disk: &DiskMove) -> bool {
    why_copied_thick(file, disk.format, &disk.from, &disk.to).is_some()
}

/// Whether the file of a disk that arrives from another host may become thick.
pub fn arrives_thick(format: DiskFormat, to: &Location) -> bool {
    format == DiskFormat::Raw && matches!(to, Location::Share { .. })
}

/// Why the file of a disk that arrives from another host may become thick, and what helps. Ferry's carriers keep holes,
/// whatever the disk's settings are.
pub(super) fn why_arrives_thick(device: &str, format: DiskFormat, to: &Location) -> Option<(Message, Fix)> {
    arrives_thick(format, to).then(|| (Message::RawOnShare, choose_qcow2(device)))
}

/// Why a copy from file to file may become thick, and what helps. All cases were observed with QEMU 10.0, which copies
/// according to the disk's settings.
pub(super) fn why_copied_thick<F>(
    file: &VmFile<F>,
    format: DiskFormat,
    from: &Location,
    to: &Location,
) -> Option<(Message, Fix)> {
    // The holes of a file on a share are unknown: they are read as zeroes.
    let holes_are_known = matches!(from, Location::Local { .. });
    if let Some(why) = why_arrives_thick(&file.device, format, to) {
        Some(why)
    } else if !holes_are_known && !file.detects_zeroes {
        Some((Message::NoDetectZeroes, ByHand::SetUnmap.into()))
    } else if format == DiskFormat::Raw && !file.unmaps {
        Some((Message::NoDiscard, choose_qcow2(&file.device)))
    } else {
        None
    }
}

fn choose_qcow2(device: &str) -> Fix {
    Action::ChooseQcow2 { device: device.to_owned() }.into()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::{
        fixtures,
        id::{HostId, ShareId},
    };

    const HOST: HostId = HostId(Uuid::from_u128(1));
    const SHARE: ShareId = ShareId(Uuid::from_u128(2));

    fn local(path: &str) -> Location {
        Location::Local { host: HOST, path: path.into() }
    }

    fn share(path: &str) -> Location {
        Location::Share { share: SHARE, path: path.into() }
    }

    fn disk(device: &str, path: &str) -> VmFile {
        fixtures::disk(device, local(path))
    }

    #[test]
    fn a_copy_takes_its_chain_and_all_of_the_disk_where_it_is_thick() {
        let mib = ByteCount::mib;
        for (row, chain, thick, takes) in [
            ("thin", 10, false, 10),
            ("a chain that holds more than the disk", 130, false, 100),
            ("thick", 10, true, 100),
        ] {
            assert_eq!(copy_takes(mib(100), mib(chain), thick), mib(takes), "{row}");
        }
        let to = |to: Location| DiskMove {
            device: "vda".into(),
            from: local("/a/x.raw"),
            real: None,
            to,
            format: DiskFormat::Raw,
        };
        assert!(is_thick(&disk("vda", "/a/x.raw"), &to(share("x.raw"))));
        assert!(!is_thick(&disk("vda", "/a/x.raw"), &to(local("/n/x.raw"))));
        assert!(arrives_thick(DiskFormat::Raw, &share("x")) && !arrives_thick(DiskFormat::Qcow2, &share("x")));
    }

    #[test]
    fn a_copy_needs_a_little_more_than_it_takes() {
        assert_eq!(space_needed(ByteCount(0)), ByteCount::mib(1));
        assert_eq!(space_needed(ByteCount::mib(100)), ByteCount::mib(106));
        assert_eq!(space_needed(ByteCount(u64::MAX)), ByteCount(u64::MAX));
    }
}
