//! Who copies the files of a VM: the difference between the kinds of moves.

use crate::{
    id::HostId,
    location::Location,
    vm::{FileRole, VmFile},
};

/// Who copies the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Copier {
    /// QEMU, from file to file on one host, while the VM runs.
    Hypervisor,
    /// QEMU, through Ferry's carriers to host `there`, while the VM runs.
    Carrier { there: HostId },
    /// Ferry itself, to another host, while the VM is shut off.
    Ferry,
}

impl Copier {
    /// Whether a file moves that the request does not name.
    pub(super) fn moves_unnamed(self, file: &VmFile, is_reached: &dyn Fn(&Location) -> bool) -> bool {
        let is_reached = || file.places().all(is_reached);
        match (self, file.role) {
            (Self::Hypervisor, _) | (Self::Ferry, FileRole::NotAFile) => true,
            (Self::Carrier { .. }, FileRole::Disk) => !file.read_only && !is_reached(),
            (Self::Carrier { .. }, FileRole::Nvram) => !is_reached(),
            (Self::Carrier { .. }, FileRole::Media | FileRole::Boot | FileRole::NotAFile) => false,
            (Self::Ferry, FileRole::Disk | FileRole::Media | FileRole::Nvram | FileRole::Boot) => !is_reached(),
        }
    }

    /// The command line option that gives a destination for all files.
    pub(super) fn option(self) -> &'static str {
        match self {
            Self::Hypervisor => "--to",
            Self::Carrier { .. } | Self::Ferry => "--storage",
        }
    }
}
