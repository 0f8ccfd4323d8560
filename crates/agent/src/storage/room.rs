//! Whether there is room for new files: by file system or share, over all of them together.

use std::{collections::BTreeMap, os::unix::fs::MetadataExt as _, path::Path};

use ferry_core::{
    finding::FindingId,
    id::{JobId, ShareId},
    location::Location,
    storage::space_needed,
    units::ByteCount,
};
use ferry_drivers::image;

use super::{Reach, outside, refused};
use crate::AgentError;

/// What room is counted by: a share, or a file system of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Room {
    Share(ShareId),
    FileSystem(u64),
}

/// What new files need, and what is free there.
#[derive(Default)]
pub(crate) struct Needs(BTreeMap<Room, Need>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Need {
    needed: ByteCount,
    free: ByteCount,
    folder: String,
    /// The number of the file system that the folder is on.
    device: u64,
}

/// Room that a copy which goes on will still take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reserved {
    /// Whose it is.
    pub(crate) job: JobId,
    /// The new file.
    pub(crate) to: Location,
    /// What it still takes.
    pub(crate) still: ByteCount,
}

impl Reserved {
    /// Of a file that will take about as much as `allocated`, and is at `path` on this host.
    pub(crate) fn new(job: JobId, to: &Location, path: &Path, allocated: ByteCount) -> Self {
        let taken = image::allocated(path).unwrap_or_default();
        let still = ByteCount(space_needed(allocated).0.saturating_sub(taken.0));
        Self { job, to: to.clone(), still }
    }
}

impl Needs {
    /// Counts a file that will take about as much as `allocated`.
    ///
    /// # Errors
    /// When the place is outside of where files may be, or does not answer.
    pub(crate) fn add(&mut self, reach: &Reach, to: &Location, allocated: ByteCount) -> Result<(), AgentError> {
        let (folder, name) = reach.roots.open_parent(to).map_err(|error| outside(&error))?;
        if let Some((room, free)) = room_in(reach, to, folder.path())? {
            // What was written names the file.
            let written = folder.written().strip_suffix(&name).unwrap_or(folder.written());
            let written = written.trim_end_matches(['/', '\\']).to_owned();
            let fault = |source| AgentError::File { path: folder.path().to_owned(), source };
            let device = folder.path().metadata().map_err(fault)?.dev();
            let need = Need { needed: ByteCount(0), free, folder: written, device };
            let entry = self.0.entry(room).or_insert(need);
            entry.needed = ByteCount(entry.needed.0.saturating_add(space_needed(allocated).0));
        }
        Ok(())
    }

    /// Whether each place has room for all that goes there, beside what goes on there already.
    ///
    /// # Errors
    /// `file.space` for the first that has not.
    pub(crate) fn are_met(&self, reach: &Reach) -> Result<(), AgentError> {
        self.against(&others(reach))
    }

    /// How much room is missing, by the number of the file system.
    pub(crate) fn missing(&self, reach: &Reach) -> Vec<(u64, ByteCount)> {
        self.missing_beside(&others(reach))
    }

    fn missing_beside(&self, others: &[(Room, JobId, ByteCount)]) -> Vec<(u64, ByteCount)> {
        let one = |(room, need): (&Room, &Need)| {
            let reserved = others.iter().filter(|(taken, ..)| taken == room).map(|(_, _, still)| still.0);
            let needed = reserved.fold(need.needed.0, u64::saturating_add);
            (need.device, ByteCount(needed.saturating_sub(need.free.0)))
        };
        self.0.iter().map(one).filter(|(_, bytes)| bytes.0 > 0).collect()
    }

    fn against(&self, others: &[(Room, JobId, ByteCount)]) -> Result<(), AgentError> {
        for (room, Need { needed, free, folder, .. }) in &self.0 {
            let here = || others.iter().filter(|(taken, ..)| taken == room);
            let reserved: u64 = here().map(|(_, _, still)| still.0).fold(0, u64::saturating_add);
            if needed.0.saturating_add(reserved) <= free.0 {
                continue;
            }
            let mut jobs: Vec<String> =
                here().filter(|(_, _, still)| still.0 > 0).map(|(_, job, _)| format!("job {job}")).collect();
            jobs.dedup();
            let (whose, fix) = match jobs.is_empty() {
                true => (String::new(), "Make room there, or choose another place or fewer disks"),
                false => (
                    format!(", of which {} still takes {} MiB", jobs.join(" and "), reserved.div_ceil(1 << 20)),
                    "Wait for what goes on there, make room, or choose another place",
                ),
            };
            return Err(refused(
                FindingId::FileSpace,
                folder,
                format!(
                    "The copies need {} MiB, and {} MiB are free in {folder}{whose}",
                    needed.0.div_ceil(1 << 20),
                    free.0 >> 20
                ),
                fix,
            ));
        }
        Ok(())
    }
}

/// What other jobs' copies will still take, and of which room.
fn others(reach: &Reach) -> Vec<(Room, JobId, ByteCount)> {
    let room_of = |reserved: &Reserved| {
        let (folder, _) = reach.roots.open_parent(&reserved.to).ok()?;
        Some(room_in(reach, &reserved.to, folder.path()).ok()??.0)
    };
    reach.reserved.iter().filter_map(|reserved| Some((room_of(reserved)?, reserved.job, reserved.still))).collect()
}

/// Whose room a new file takes, and what is free there; `None` if nobody tells.
fn room_in(reach: &Reach, to: &Location, folder: &Path) -> Result<Option<(Room, ByteCount)>, AgentError> {
    match to {
        Location::Share { share, .. } => Ok(reach.shares.space(*share)?.map(|space| (Room::Share(*share), space.free))),
        Location::Local { .. } => {
            let fault = |source| AgentError::File { path: folder.to_owned(), source };
            let (device, free) = image::free(folder).map_err(fault)?;
            Ok(free.map(|free| (Room::FileSystem(device), free)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn needs(rooms: &[(u64, u64, u64)]) -> Needs {
        let one = |(device, needed, free): &(u64, u64, u64)| {
            let need = Need {
                needed: ByteCount(needed * MIB),
                free: ByteCount(free * MIB),
                folder: format!("/folder{device}"),
                device: *device,
            };
            (Room::FileSystem(*device), need)
        };
        Needs(rooms.iter().map(one).collect())
    }

    #[test]
    fn what_fits_alone_and_not_beside_what_goes_on_is_refused_with_whose_it_is() {
        let other = |device: u64, job: u64, still: u64| (Room::FileSystem(device), JobId(job), ByteCount(still * MIB));
        for (row, rooms, others, expected) in [
            ("alone", &[(1, 60, 100)][..], &[][..], None),
            ("too much alone", &[(1, 101, 100)], &[], Some("101 MiB, and 100 MiB are free in /folder1")),
            ("beside a little", &[(1, 60, 100)], &[other(1, 7, 40)], None),
            ("beside too much", &[(1, 60, 100)], &[other(1, 7, 41)], Some("job 7 still takes 41 MiB")),
            ("elsewhere", &[(1, 60, 100)], &[other(2, 7, 99)], None),
            (
                "several",
                &[(1, 60, 100)],
                &[other(1, 7, 30), other(1, 8, 30)],
                Some("job 7 and job 8 still takes 60 MiB"),
            ),
            ("the second of two places", &[(1, 1, 9), (2, 9, 9)], &[other(2, 3, 1)], Some("/folder2, of which job 3")),
            ("done already", &[(1, 100, 100)], &[other(1, 7, 0)], None),
        ] {
            let outcome = needs(rooms).against(others).map_err(|error| error.to_string());
            match expected {
                None => assert_eq!(outcome, Ok(()), "{row}"),
                Some(text) => assert!(outcome.as_ref().is_err_and(|said| said.contains(text)), "{row}: {outcome:?}"),
            }
        }
    }

    #[test]
    fn what_is_missing_is_told_for_each_file_system() {
        let other = |device: u64, still: u64| (Room::FileSystem(device), JobId(7), ByteCount(still * MIB));
        let needs = needs(&[(1, 60, 100), (2, 60, 50), (3, 60, 60)]);
        assert_eq!(needs.missing_beside(&[]), [(2, ByteCount::mib(10))]);
        let beside = [other(1, 41), other(2, 1), other(3, 0), other(4, 9)];
        assert_eq!(needs.missing_beside(&beside), [(1, ByteCount::mib(1)), (2, ByteCount::mib(11))]);
    }
}
