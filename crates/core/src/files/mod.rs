//! Files of VMs that move: which file goes where ([`plan`]), how a running move of disks continues ([`block_copy`]),
//! how much space copies take ([`space`]), and what happens to old and new files at the end ([`cleanup`]).

pub mod block_copy;
pub mod cleanup;
pub mod plan;
pub mod space;

use serde::{Deserialize, Serialize};

use crate::{
    finding::{Action, ByHand, Finding, FindingId, Message},
    location::Location,
    units::ByteCount,
    vm::{DiskFormat, FileRole, VmFile},
};

/// One disk and its destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct DiskMove {
    /// The disk's name in the definition, `vda`.
    pub device: String,
    /// The file it uses.
    pub from: Location,
    /// `from` with all links and nested mounts resolved, if that differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub real: Option<Location>,
    /// The file it will use; it must not exist before.
    pub to: Location,
    /// The format of the new file.
    pub format: DiskFormat,
}

impl DiskMove {
    /// Whether `file` is the one that this disk moves away from, by any of its names.
    pub fn leaves(&self, file: &VmFile) -> bool {
        let names = [Some(&file.place), file.real.as_ref()];
        names.into_iter().flatten().any(|name| *name == self.from || self.real.as_ref() == Some(name))
    }

    /// Whether `file` is the one that this disk moves away from, or needs that file below an overlay, by any of its
    /// names.
    pub fn is_needed_by(&self, file: &VmFile) -> bool {
        file.uses_either(&self.from, self.real.as_ref())
    }
}

/// How far the move of a disk has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum DiskStage {
    /// No data was copied yet.
    #[default]
    Waiting,
    /// It is being copied; the VM uses the old file.
    Copying,
    /// The copy is complete and every write goes to both files; the VM uses the old file.
    Ready,
    /// The VM uses the new file.
    Moved,
}

impl DiskStage {
    /// The name to show to users.
    pub fn title(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Copying => "copying",
            Self::Ready => "ready",
            Self::Moved => "moved",
        }
    }
}

/// The progress of a disk, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct DiskProgress {
    /// The disk's name in the definition.
    pub device: String,
    /// How far its move has come.
    pub stage: DiskStage,
    /// Bytes of the disk that were examined. Never decreases.
    pub copied: ByteCount,
    /// Bytes to examine: the virtual size, plus what the guest writes meanwhile.
    pub total: ByteCount,
    /// Space that the old file occupied before the move, as far as its file system reports.
    pub allocated_before: ByteCount,
    /// Space that the new file occupies once the disk is moved; zero before.
    pub allocated_after: ByteCount,
}

impl DiskProgress {
    /// Takes the progress that the hypervisor reports: `copied` of `total` bytes. Returns whether everything was
    /// examined. For a copy with nothing to examine, libvirt reports "1 of 1", which is no size of the disk.
    pub fn update(&mut self, copied: ByteCount, total: ByteCount) -> bool {
        if total.0 > 1 {
            self.total = self.total.max(total);
            self.copied = self.copied.max(copied).min(self.total);
        }
        total.0 > 0 && copied >= total
    }

    /// Merges what the other host, or a later report, knows of the same disk. Byte counts never decrease, and zero
    /// means unknown. The caller sets the stage, because each host knows only its own part.
    pub fn learn(&mut self, other: &Self) {
        self.copied = self.copied.max(other.copied);
        self.total = self.total.max(other.total);
        self.allocated_before = self.allocated_before.max(other.allocated_before);
        self.allocated_after = self.allocated_after.max(other.allocated_after);
    }
}

/// One file and its destination; copied byte by byte.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileMove {
    /// The device's name in the definition, or `nvram`, `kernel`, `initrd`, `dtb`.
    pub device: String,
    /// Its role in the VM.
    pub role: FileRole,
    /// Its present location.
    pub from: Location,
    /// `from` with all links and nested mounts resolved, if that differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub real: Option<Location>,
    /// Its new location. Nothing may exist there, except a disk shared between VMs that arrived with another of them.
    pub to: Location,
    /// Whether several VMs may use it at once (libvirt `<shareable/>`).
    #[serde(default)]
    pub shareable: bool,
    /// The old file stays, because another VM names it as well.
    #[serde(default)]
    pub kept: bool,
}

impl FileMove {
    /// Whether the old file is removed after the move. Media and boot files may serve other users that libvirt does not
    /// know of.
    pub fn is_removed(&self) -> bool {
        matches!(self.role, FileRole::Disk | FileRole::Nvram) && !self.kept
    }

    /// Whether `file` is this one, or needs it below an overlay, by any of its names.
    pub fn is_needed_by(&self, file: &VmFile) -> bool {
        file.uses_either(&self.from, self.real.as_ref())
    }
}

/// Another VM that names a moving file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OtherUser<'a> {
    /// Its name.
    pub vm: &'a str,
    /// The host that has it.
    pub host: &'a str,
    /// Whether it is shut off.
    pub is_shut_off: bool,
}

/// The finding for a move of VM `vm` to `destination` when another VM names one of its files. A shareable disk is
/// copied and kept for the other VM, which uses the copy once it moves as well; for any other file this is an error.
pub fn shared_with(vm: &str, file: &FileMove, other: OtherUser<'_>, destination: &str) -> Finding {
    let (device, OtherUser { vm: name, host, .. }) = (&file.device, other);
    let (named, host, of) = (name.to_owned(), host.to_owned(), vm.to_owned());
    if !file.shareable || file.role != FileRole::Disk {
        let message = Message::DiskOfOther { vm: named, host, device: device.clone() };
        return Finding::blocks(FindingId::DiskTwice, device, message, ByHand::OwnFiles);
    }
    if !other.is_shut_off {
        let message = Message::DiskOfOtherRuns { vm: named, host, device: device.clone(), of };
        let fix = Action::ShutDownOther { vm: name.to_owned() };
        return Finding::blocks(FindingId::DiskShareable, device, message, fix);
    }
    let message = Message::OldFileOfOther { vm: named.clone(), host, device: device.clone() };
    let fix = Action::MoveOther { vm: of, other: named, host: destination.to_owned() };
    Finding::warns(FindingId::DiskShareable, device, message, fix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_far_a_disk_is_never_goes_back_and_is_told_in_bytes_of_the_disk() {
        let mut disk = DiskProgress::default();
        for (copied, total, all, expected) in [
            (0, 0, false, (0, 0)),
            (1, 1, true, (0, 0)),
            (10, 100, false, (10, 100)),
            (5, 100, false, (10, 100)),
            (110, 120, false, (110, 120)),
            (100, 100, true, (110, 120)),
            (1, 1, true, (110, 120)),
            (120, 120, true, (120, 120)),
        ] {
            assert_eq!(disk.update(ByteCount(copied), ByteCount(total)), all, "{copied} of {total}");
            assert_eq!((disk.copied.0, disk.total.0), expected, "{copied} of {total}");
        }
    }
}
