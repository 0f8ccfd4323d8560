//! Checks that there is enough space for new files, counted together per file system or share.
//!
//! ```text
//! Needs::add, for each file ─▶ Needs::are_met: claim ─▶ count earlier claims and running copies ─▶ yes or no
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use ferry_core::{
    files::space::space_needed,
    finding::{ByHand, FindingId, Message},
    id::JobId,
    location::Location,
    text::Jobs,
    units::ByteCount,
};
use ferry_drivers::{file, places::QemuUser};

use super::{
    claims::{Need, Room},
    host_storage::{HostStorage, outside},
};
use crate::{AgentError, refusal::refused};

/// Space that new files need, and what is free there.
#[derive(Default)]
pub(crate) struct Needs {
    rooms: BTreeMap<Room, Need>,
    /// Shares and folders that were found to be usable.
    usable: BTreeSet<String>,
}

impl Needs {
    /// Adds a file that will occupy about as much as `allocated`. Checks that the location is usable: its share is
    /// mounted and responds, and QEMU's user can write a file in its folder.
    ///
    /// # Errors
    /// If the location is outside of where files may be, does not respond, or cannot hold files of VMs.
    pub(crate) fn add(&mut self, storage: &HostStorage, to: &Location, allocated: ByteCount) -> Result<(), AgentError> {
        // If the share is not mounted, the folder is a local one below the mount point.
        if let Location::Share { share, .. } = to
            && self.usable.insert(share.to_string())
        {
            storage.shares.check(*share)?;
        }
        let (folder, name) = storage.roots.open_parent(to).map_err(|error| outside(&error))?;
        if self.usable.insert(folder.path().display().to_string()) {
            let conf = fs::read_to_string(&storage.qemu_conf).unwrap_or_default();
            let writable = storage.roots.check_writable(&to.parent(), QemuUser::of_conf(&conf));
            writable.map_err(|error| outside(&error))?;
        }
        if let Some((room, free)) = room_in(storage, to, folder.path())? {
            // The path as written names the file.
            let written = folder.written().strip_suffix(&name).unwrap_or(folder.written());
            let written = written.trim_end_matches(['/', '\\']).to_owned();
            let fault = |source| AgentError::File { path: folder.path().to_owned(), source };
            let device = folder.path().metadata().map_err(fault)?.dev();
            let need = Need { needed: ByteCount(0), free, folder: written, device };
            let entry = self.rooms.entry(room).or_insert(need);
            entry.needed = ByteCount(entry.needed.0.saturating_add(space_needed(allocated).0));
        }
        Ok(())
    }

    /// Checks that each location has enough space for all new files, in addition to running copies and other promises.
    /// Ok promises the space to the request until its claim is dropped.
    ///
    /// # Errors
    /// `file.space` for the first that has not.
    pub(crate) fn are_met(&self, storage: &HostStorage) -> Result<(), AgentError> {
        let met = self.against(&self.others(storage));
        if met.is_err() {
            storage.claim.withdraw();
        }
        met
    }

    /// How many bytes are missing, by the device number of the file system. Claims the space, as [`Self::are_met`]
    /// does.
    pub(crate) fn missing(&self, storage: &HostStorage) -> Vec<(u64, ByteCount)> {
        self.missing_with(&self.others(storage))
    }

    /// What others occupy, after this was claimed.
    fn others(&self, storage: &HostStorage) -> Vec<(Room, JobId, ByteCount)> {
        let claimed = storage.claim.put(&self.rooms);
        // After the claims: a request that drops its claim has its files among the reserved ones by then.
        let reserved: Vec<(Room, JobId, ByteCount)> = (storage.reserved)()
            .iter()
            .filter_map(|reserved| Some((room_of(storage, &reserved.to)?, reserved.job, reserved.remaining)))
            .collect();
        together(&claimed, &reserved)
    }

    fn missing_with(&self, others: &[(Room, JobId, ByteCount)]) -> Vec<(u64, ByteCount)> {
        let one = |(room, need): (&Room, &Need)| {
            let reserved = others.iter().filter(|(taken, ..)| taken == room).map(|(_, _, remaining)| remaining.0);
            let needed = reserved.fold(need.needed.0, u64::saturating_add);
            (need.device, ByteCount(needed.saturating_sub(need.free.0)))
        };
        self.rooms.iter().map(one).filter(|(_, bytes)| bytes.0 > 0).collect()
    }

    fn against(&self, others: &[(Room, JobId, ByteCount)]) -> Result<(), AgentError> {
        for (room, Need { needed, free, folder, .. }) in &self.rooms {
            let here = || others.iter().filter(|(taken, ..)| taken == room);
            let reserved: u64 = here().map(|(_, _, remaining)| remaining.0).fold(0, u64::saturating_add);
            if needed.0.saturating_add(reserved) <= free.0 {
                continue;
            }
            let mut jobs: Vec<JobId> =
                here().filter(|(_, _, remaining)| remaining.0 > 0).map(|(_, job, _)| *job).collect();
            jobs.dedup();
            let (needed_mib, free_mib) = (needed.0.div_ceil(1 << 20), free.0 >> 20);
            let (folder_name, taken_mib) = (folder.to_string(), reserved.div_ceil(1 << 20));
            let (message, fix) = match jobs.is_empty() {
                true => (Message::NoSpace { needed_mib, free_mib, folder: folder_name }, ByHand::MakeRoom),
                false => (
                    Message::NoSpaceBeside { needed_mib, free_mib, folder: folder_name, jobs: Jobs(jobs), taken_mib },
                    ByHand::WaitOrMakeRoom,
                ),
            };
            return Err(refused(FindingId::FileSpace, folder, message, fix));
        }
        Ok(())
    }
}

/// What each job occupies per share or file system: what it was promised, or what its files will still occupy. A job
/// may have both for a moment.
fn together(
    claimed: &[(Room, JobId, ByteCount)],
    reserved: &[(Room, JobId, ByteCount)],
) -> Vec<(Room, JobId, ByteCount)> {
    let sums = |all: &[(Room, JobId, ByteCount)]| {
        let mut sums: BTreeMap<(Room, JobId), u64> = BTreeMap::new();
        for (room, job, bytes) in all {
            let sum = sums.entry((*room, *job)).or_default();
            *sum = sum.saturating_add(bytes.0);
        }
        sums
    };
    let mut all = sums(claimed);
    for (whose, bytes) in sums(reserved) {
        let known = all.entry(whose).or_default();
        *known = bytes.max(*known);
    }
    all.into_iter().map(|((room, job), bytes)| (room, job, ByteCount(bytes))).collect()
}

/// Where a file's space is counted. Does not touch the share: it may be dead.
fn room_of(storage: &HostStorage, to: &Location) -> Option<Room> {
    match to {
        Location::Share { share, .. } => Some(Room::Share(*share)),
        Location::Local { .. } => {
            let (folder, _) = storage.roots.open_parent(to).ok()?;
            Some(Room::FileSystem(file::free(folder.path()).ok()?.0))
        }
    }
}

/// Where a new file's space is counted, and what is free there; `None` if that cannot be determined.
fn room_in(storage: &HostStorage, to: &Location, folder: &Path) -> Result<Option<(Room, ByteCount)>, AgentError> {
    match to {
        Location::Share { share, .. } => {
            Ok(storage.shares.space(*share)?.map(|space| (Room::Share(*share), space.free)))
        }
        Location::Local { .. } => {
            let fault = |source| AgentError::File { path: folder.to_owned(), source };
            let (device, free) = file::free(folder).map_err(fault)?;
            Ok(free.map(|free| (Room::FileSystem(device), free)))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ferry_core::id::ShareId;

    use super::*;
    use crate::files::claims::{Claims, Reserved, is_real};

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
        Needs { rooms: rooms.iter().map(one).collect(), ..Needs::default() }
    }

    #[test]
    fn of_two_requests_at_once_the_later_sees_the_earlier() {
        let claims = Arc::new(Claims::default());
        let (first, asks) = (claims.claim(Some(JobId(1))), claims.claim(None));
        let second = claims.claim(Some(JobId(2)));
        let of = |job: u64, mib: u64| (Room::FileSystem(1), JobId(job), ByteCount(mib * MIB));
        let need = needs(&[(1, 60, 100)]);
        assert_eq!(asks.put(&need.rooms), []);
        assert_eq!(first.put(&need.rooms), [], "who only asks claims nothing");
        assert_eq!(second.put(&need.rooms), [of(1, 60)]);
        assert!(need.against(&second.put(&need.rooms)).is_err());
        second.withdraw();
        assert_eq!(asks.put(&need.rooms), [of(1, 60)]);
        assert_eq!(claims.claim(Some(JobId(1))).put(&need.rooms), [], "a job does not stand in its own way");
        drop(first);
        assert_eq!(second.put(&need.rooms), []);
        // For a moment a job has both; they are not added up.
        assert_eq!(together(&[of(1, 60)], &[of(1, 20), of(1, 30), of(2, 5)]), [of(1, 60), of(2, 5)]);
    }

    #[test]
    fn what_a_mount_says_of_a_file_counts_only_where_it_can_be_so() {
        let share = Location::Share { share: ShareId(uuid::Uuid::nil()), path: "vda.raw".into() };
        let local = Location::Local { host: ferry_core::id::HostId(uuid::Uuid::nil()), path: "/vda.raw".into() };
        let mib = |count: u64| ByteCount(count * MIB);
        for (to, taken, length, allocated, real) in [
            (&local, 64, 64, 8, true),
            (&share, 64, 64, 8, false),
            (&share, 64, 64, 64, false),
            (&share, 2, 64, 8, true),
            // A growing image.
            (&share, 2, 2, 8, true),
        ] {
            assert_eq!(is_real(to, mib(taken), length * MIB, mib(allocated)), real, "{to:?} {taken} {length}");
        }
        let remaining = |copied, total| Reserved::copied(JobId(1), &share, mib(100), mib(copied), mib(total)).remaining;
        assert_eq!(remaining(0, 0), space_needed(mib(100)), "nothing is known yet");
        assert_eq!(remaining(200, 200), ByteCount(0));
        assert!(remaining(100, 200) > mib(50) && remaining(100, 200) < mib(60));
    }

    #[test]
    fn what_fits_alone_and_not_beside_what_goes_on_is_refused_with_whose_it_is() {
        let other =
            |device: u64, job: u64, remaining: u64| (Room::FileSystem(device), JobId(job), ByteCount(remaining * MIB));
        for (row, rooms, others, expected) in [
            ("alone", &[(1, 60, 100)][..], &[][..], None),
            ("too much alone", &[(1, 101, 100)], &[], Some("101 MiB, and 100 MiB are free in /folder1")),
            ("beside a little", &[(1, 60, 100)], &[other(1, 7, 40)], None),
            ("beside too much", &[(1, 60, 100)], &[other(1, 7, 41)], Some("job 7 will use 41 MiB")),
            ("elsewhere", &[(1, 60, 100)], &[other(2, 7, 99)], None),
            ("several", &[(1, 60, 100)], &[other(1, 7, 30), other(1, 8, 30)], Some("job 7 and job 8 will use 60 MiB")),
            ("the second of two places", &[(1, 1, 9), (2, 9, 9)], &[other(2, 3, 1)], Some("/folder2, of which job 3")),
            ("done already", &[(1, 100, 100)], &[other(1, 7, 0)], None),
        ] {
            let outcome = needs(rooms).against(others).map_err(|error| error.to_string());
            match expected {
                None => assert_eq!(outcome, Ok(()), "{row}"),
                Some(text) => assert!(outcome.as_ref().is_err_and(|error| error.contains(text)), "{row}: {outcome:?}"),
            }
        }
    }

    #[test]
    fn what_is_missing_is_told_for_each_file_system() {
        let other = |device: u64, remaining: u64| (Room::FileSystem(device), JobId(7), ByteCount(remaining * MIB));
        let needs = needs(&[(1, 60, 100), (2, 60, 50), (3, 60, 60)]);
        assert_eq!(needs.missing_with(&[]), [(2, ByteCount::mib(10))]);
        let others = [other(1, 41), other(2, 1), other(3, 0), other(4, 9)];
        assert_eq!(needs.missing_with(&others), [(1, ByteCount::mib(1)), (2, ByteCount::mib(11))]);
    }
}
