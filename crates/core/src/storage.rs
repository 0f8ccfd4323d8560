//! Moves of a running VM's disks on its host: what goes where, how far each disk is, and what comes next.
//!
//! ```text
//! each disk:  Waiting → Copying → Ready → Moved        every disk is ready before the first is switched over
//! ```
//! Which file a disk uses is asked of the hypervisor, never remembered: so a move that was ended anywhere, also between
//! two disks, is taken up where it is.

use serde::{Deserialize, Serialize};

use crate::{location::Location, units::ByteCount, vm::DiskFormat};

/// One disk and where it goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct DiskMove {
    /// The disk's name in the definition, `vda`.
    pub device: String,
    /// The file it uses.
    pub from: Location,
    /// The file it is to use; must not be there before.
    pub to: Location,
    /// How the new file is laid out.
    pub format: DiskFormat,
}

/// How far a disk is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum DiskStage {
    /// Nothing was copied yet.
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
    /// For people.
    pub fn title(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Copying => "copying",
            Self::Ready => "ready",
            Self::Moved => "moved",
        }
    }
}

/// How far a disk is, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct DiskProgress {
    /// The disk's name in the definition.
    pub device: String,
    /// How far it is.
    pub stage: DiskStage,
    /// Bytes of the disk that were looked at. Never goes back.
    pub copied: ByteCount,
    /// Bytes to look at: the virtual size, and what the guest writes meanwhile.
    pub total: ByteCount,
    /// What the old file took on its file system before, as far as that tells.
    pub allocated_before: ByteCount,
    /// What the new file takes, once the disk is moved; zero before.
    pub allocated_after: ByteCount,
}

/// What the hypervisor says of one disk now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskNow {
    /// It uses the old file and is not being copied.
    Old,
    /// It uses the old file and is being copied to the new one.
    Copying,
    /// As [`DiskNow::Copying`], and the copy is complete.
    Ready,
    /// It uses the new file.
    New,
    /// It uses the old file and is being copied, but not to the new one.
    CopiedElsewhere,
    /// It uses neither file, or is not there.
    Elsewhere,
}

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Begin to copy the disk of this index.
    Begin(usize),
    /// Look again later.
    Wait,
    /// Switch the disk of this index over to its copy.
    Pivot(usize),
    /// Every disk uses its new file.
    Done,
    /// It cannot go on.
    Fail(String),
}

/// Decides what comes next. `disks` are those of the move in order, each with whether its copy was begun by this attempt.
pub fn next(disks: &[(&str, bool, DiskNow)]) -> Next {
    let first = |wanted: DiskNow| disks.iter().position(|(_, _, now)| *now == wanted);
    for (device, begun, now) in disks {
        match (now, begun) {
            (DiskNow::Elsewhere, _) => {
                return Next::Fail(format!("disk {device} uses neither its old nor its new file"));
            }
            (DiskNow::CopiedElsewhere, _) => {
                return Next::Fail(format!("something else copies disk {device} to another file"));
            }
            (DiskNow::Old, true) => return Next::Fail(format!("the copy of disk {device} has ended")),
            (DiskNow::Old, false) | (DiskNow::Copying | DiskNow::Ready | DiskNow::New, _) => {}
        }
    }
    if let Some(index) = first(DiskNow::Old) {
        return Next::Begin(index);
    }
    match (first(DiskNow::Copying), first(DiskNow::Ready)) {
        (Some(_), _) => Next::Wait,
        (None, Some(index)) => Next::Pivot(index),
        (None, None) => Next::Done,
    }
}

/// Bytes that must be free for a copy of `allocated`: 5 % more than it takes, and a mebibyte for what describes it.
pub fn space_needed(allocated: ByteCount) -> ByteCount {
    ByteCount(allocated.0.saturating_add(allocated.0 / 20).saturating_add(1 << 20))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_disk_is_ready_before_the_first_is_switched_over() {
        use DiskNow::{CopiedElsewhere, Copying, Elsewhere, New, Old, Ready};
        let fails = |text: &str| Next::Fail(text.to_owned());
        for (disks, expected) in [
            (vec![(false, Old)], Next::Begin(0)),
            (vec![(true, Copying), (false, Old)], Next::Begin(1)),
            (vec![(true, Copying), (true, Copying)], Next::Wait),
            (vec![(true, Ready), (true, Copying)], Next::Wait),
            (vec![(true, Ready), (true, Ready)], Next::Pivot(0)),
            (vec![(true, New), (true, Ready)], Next::Pivot(1)),
            (vec![(true, New), (true, New)], Next::Done),
            // Taken up again: one was moved by an earlier attempt.
            (vec![(false, New), (false, Old)], Next::Begin(1)),
            (vec![(false, New), (true, Copying)], Next::Wait),
            (vec![(true, Ready), (true, Old)], fails("the copy of disk vdb has ended")),
            (vec![(true, New), (true, Old)], fails("the copy of disk vdb has ended")),
            (vec![(true, Ready), (true, CopiedElsewhere)], fails("something else copies disk vdb to another file")),
            (vec![(true, Elsewhere)], fails("disk vda uses neither its old nor its new file")),
        ] {
            let named: Vec<_> =
                ["vda", "vdb"].into_iter().zip(&disks).map(|(device, (begun, now))| (device, *begun, *now)).collect();
            assert_eq!(next(&named), expected, "{disks:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_is_switched_over_while_a_disk_is_not_ready(states in prop::collection::vec((any::<bool>(), 0..6u8), 1..6)) {
            let now = |number| match number {
                0 => DiskNow::Old,
                1 => DiskNow::Copying,
                2 => DiskNow::Ready,
                3 => DiskNow::New,
                4 => DiskNow::CopiedElsewhere,
                _ => DiskNow::Elsewhere,
            };
            let disks: Vec<_> = states.iter().map(|(begun, number)| ("vda", *begun, now(*number))).collect();
            let all = |wanted: &[DiskNow]| disks.iter().all(|(_, _, now)| wanted.contains(now));
            match next(&disks) {
                Next::Pivot(index) => {
                    prop_assert!(all(&[DiskNow::Ready, DiskNow::New]));
                    prop_assert_eq!(disks[index].2, DiskNow::Ready);
                }
                Next::Done => prop_assert!(all(&[DiskNow::New])),
                Next::Begin(index) => prop_assert_eq!((disks[index].1, disks[index].2), (false, DiskNow::Old)),
                Next::Wait => prop_assert!(all(&[DiskNow::Copying, DiskNow::Ready, DiskNow::New])),
                Next::Fail(_) => prop_assert!(!all(&[DiskNow::Copying, DiskNow::Ready, DiskNow::New])),
            }
        }
    }

    #[test]
    fn a_copy_needs_a_little_more_than_it_takes() {
        assert_eq!(space_needed(ByteCount(0)), ByteCount::mib(1));
        assert_eq!(space_needed(ByteCount::mib(100)), ByteCount::mib(106));
        assert_eq!(space_needed(ByteCount(u64::MAX)), ByteCount(u64::MAX));
    }
}
