//! Decides what happens to old and new disk files at the end of a move. A file that may hold unique data stays.

use std::fmt;

use crate::finding::{ByHand, Finding, FindingId, Fix, Message, Phrase};

/// What happens to a file at the end of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cleanup {
    /// It is removed.
    Remove,
    /// It stays, as intended.
    Keep,
    /// It stays and is reported to the administrator, because it may hold unique data.
    KeepAndReport,
}

/// Whether the guest may have written to a new file what no other file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestWrites {
    /// No: the VM has not run with it.
    Never,
    /// A pivot of the disk to it was requested. From then on it may hold writes that were acknowledged to the guest.
    Perhaps {
        /// The VM has a process on this host that uses the old file, and the VM is neither arriving nor being handed
        /// over.
        old_file_runs: bool,
    },
    /// Every disk of the move was pivoted.
    Surely,
}

/// Facts about a new file when its move is undone or forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewFile {
    /// This attempt made it, or was about to.
    pub made: bool,
    /// The file that has its name now is that file, or none has.
    pub is_it: bool,
    /// A reason not to remove what has its name, as a VM that names it.
    pub obstacle: Option<Obstacle>,
    /// What it may hold.
    pub guest_writes: GuestWrites,
}

/// Decides what happens to a new file when its move is undone or forgotten: whether this attempt may remove it. Once
/// the disk may have been pivoted, the absence of the file in all definitions here proves nothing: the VM may run on
/// another host, or may have ended without a persistent definition. Only a process that uses the old file proves that
/// the new one is not needed.
pub fn new_file(file: &NewFile) -> Cleanup {
    match file {
        NewFile { made: false, .. } | NewFile { obstacle: Some(_), .. } => Cleanup::Keep,
        NewFile { guest_writes: GuestWrites::Surely | GuestWrites::Perhaps { old_file_runs: false }, .. } => {
            Cleanup::KeepAndReport
        }
        NewFile { is_it: false, .. } => Cleanup::Keep,
        NewFile { .. } => Cleanup::Remove,
    }
}

/// A reason not to remove a file, whatever its role in the move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// A VM names it, or it lies below a VM's disk, by this or another name.
    InUse,
    /// It is a symbolic link: without it, its target would stay without a trace of the VM it belongs to.
    Link,
    /// It is a device, a folder or a socket, which Ferry did not create.
    Irregular,
}

impl Obstacle {
    /// The reason to show to users, after "stays: ".
    pub fn why(self) -> Message {
        match self {
            Self::InUse => Message::FileInUse,
            Self::Link => Message::FileIsLink,
            Self::Irregular => Message::FileIrregular,
        }
    }

    /// What the administrator should do.
    pub fn fix(self) -> ByHand {
        match self {
            Self::InUse => ByHand::RemoveWhenUnused,
            Self::Link => ByHand::RemoveLink,
            Self::Irregular => ByHand::RemoveUnlessDevice,
        }
    }
}

/// Reports that the old file of a disk stays.
pub fn old_file_kept(vm: &str, device: &str, file: impl fmt::Display, why: Message, fix: impl Into<Fix>) -> Finding {
    let (vm, device, why) = (vm.to_owned(), device.to_owned(), Phrase::from(why));
    let message = Message::OldFileStays { file: file.to_string(), device, vm, why };
    Finding::warns(FindingId::FileKept, file, message, fix)
}

/// Facts about an old file when its disk has moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OldFile {
    /// Whether the host has a persistent definition of the VM; `None`: it does not know the VM, or the VM arrives or
    /// leaves.
    pub persistent: Option<bool>,
    /// A reason not to remove it, whatever its role in the move.
    pub obstacle: Option<Obstacle>,
    /// The VM's process uses the new file, and its persistent definition names it.
    pub new_file_is_used: bool,
}

/// Why an old file stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OldFileStays {
    /// The VM is not on this host, or not completely: which file it starts from next is unknown.
    NotHere,
    /// This host has no persistent definition of the VM: its definition elsewhere still names the old file.
    Transient,
    /// It must not be removed, whatever its role in the move.
    Stands(Obstacle),
    /// The definition by which the VM starts next does not name the new file.
    NewFileUnused,
}

/// Decides whether an old file stays, and why; `None`: it is removed.
pub fn old_file(file: &OldFile) -> Option<OldFileStays> {
    match (file.persistent, file) {
        (None, _) => Some(OldFileStays::NotHere),
        (Some(false), _) => Some(OldFileStays::Transient),
        (Some(true), OldFile { obstacle: Some(obstacle), .. }) => Some(OldFileStays::Stands(*obstacle)),
        (Some(true), OldFile { new_file_is_used: false, .. }) => Some(OldFileStays::NewFileUnused),
        (Some(true), OldFile { .. }) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_file_goes_only_while_it_cannot_hold_what_no_other_holds() {
        use Cleanup::{Keep, KeepAndReport, Remove};
        use GuestWrites::{Never, Perhaps, Surely};
        let fresh = NewFile { made: true, is_it: true, obstacle: None, guest_writes: Never };
        let used = NewFile { obstacle: Some(Obstacle::InUse), ..fresh };
        let holds = |guest_writes| NewFile { guest_writes, ..fresh };
        let (gone, runs) = (Perhaps { old_file_runs: false }, Perhaps { old_file_runs: true });
        for (row, file, expected) in [
            ("a copy that was begun", fresh, Remove),
            ("of another attempt", NewFile { made: false, ..fresh }, Keep),
            ("another file has its name", NewFile { is_it: false, ..fresh }, Keep),
            ("named by a definition", used, Keep),
            ("a link has its name", NewFile { obstacle: Some(Obstacle::Link), ..fresh }, Keep),
            ("the VM went away after the switch-over was asked for", holds(gone), KeepAndReport),
            ("it went away, and the file seems to be another", NewFile { is_it: false, ..holds(gone) }, KeepAndReport),
            ("it was asked for and did not happen", holds(runs), Remove),
            ("it did not happen, and another file has its name", NewFile { is_it: false, ..holds(runs) }, Keep),
            ("it happened", NewFile { guest_writes: gone, ..used }, Keep),
            ("all moved", NewFile { guest_writes: Surely, ..used }, Keep),
            ("all moved, and the VM went away, or came back with the old", holds(Surely), KeepAndReport),
            ("all moved, by another attempt", NewFile { made: false, ..holds(Surely) }, Keep),
        ] {
            assert_eq!(new_file(&file), expected, "{row}");
        }
    }

    #[test]
    fn an_old_file_goes_only_when_every_definition_uses_the_new_one() {
        use OldFileStays::{NewFileUnused, NotHere, Stands, Transient};
        let moved = OldFile { persistent: Some(true), obstacle: None, new_file_is_used: true };
        for (file, stays) in [
            (moved, None),
            (OldFile { persistent: None, ..moved }, Some(NotHere)),
            (OldFile { persistent: Some(false), ..moved }, Some(Transient)),
            (OldFile { obstacle: Some(Obstacle::InUse), ..moved }, Some(Stands(Obstacle::InUse))),
            (OldFile { obstacle: Some(Obstacle::Link), ..moved }, Some(Stands(Obstacle::Link))),
            (OldFile { obstacle: Some(Obstacle::Irregular), ..moved }, Some(Stands(Obstacle::Irregular))),
            (OldFile { new_file_is_used: false, ..moved }, Some(NewFileUnused)),
        ] {
            assert_eq!(old_file(&file), stays, "{file:?}");
        }
    }
}
