//! A running move of disks on one host: decides what comes next.
//!
//! ```text
//! each disk:  Waiting → Copying → Ready → Moved        every disk is ready before the first is pivoted
//! ```
//! Ferry asks the hypervisor which file a disk uses and never remembers it. Therefore a move that ended at any point,
//! even between two disks, continues from the actual state.

/// The state of one disk, as the hypervisor reports it now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskNow {
    /// It uses the old file and is not being copied.
    Old,
    /// It uses the old file and is being copied to the new one.
    Copying,
    /// As [`DiskNow::Copying`], with a complete copy.
    Ready,
    /// It uses the new file.
    New,
    /// It uses the old file and is being copied, but not to the new one.
    CopiedElsewhere,
    /// It uses neither file, or does not exist.
    Elsewhere,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Begin to copy the disk with this index.
    Begin(usize),
    /// Poll again later.
    Wait,
    /// Pivot the disk with this index to its copy.
    Pivot(usize),
    /// Every disk uses its new file.
    Done,
    /// The move cannot continue.
    Fail(String),
}

/// Decides what comes next. `disks` are the move's disks in order, each with whether this attempt began its copy.
pub fn next(disks: &[(&str, bool, DiskNow)]) -> Next {
    let first = |state: DiskNow| disks.iter().position(|(_, _, now)| *now == state);
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

/// The read limit per second for each of several copies, so that together they stay below the cap.
pub fn share_of_cap(cap_bytes_per_s: u64, copies: usize) -> u64 {
    (cap_bytes_per_s / copies.max(1) as u64).max(1)
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
            // Resumed: an earlier attempt moved one of the disks.
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
            let all = |state: &[DiskNow]| disks.iter().all(|(_, _, now)| state.contains(now));
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
    fn a_cap_is_shared_by_the_copies_that_go_on_at_once() {
        assert_eq!([share_of_cap(90, 3), share_of_cap(90, 0), share_of_cap(1, 2)], [30, 90, 1]);
    }
}
