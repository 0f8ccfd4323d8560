//! Room that is promised: to requests whose files are not written down yet, and to copies that go on.
//!
//! A claim stands from the check until the files are written down as a job's own. Of two requests that come at once, the
//! later sees the earlier's claim, so that no room is given away twice; nobody waits for anybody.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use ferry_core::{
    files::space::space_needed,
    id::{JobId, ShareId},
    location::Location,
    units::ByteCount,
};
use ferry_drivers::{file, within};

use crate::lock::lock;

/// Longest wait for the size of another job's file: its share may be dead, and this job's may not.
const SIZE_WAIT: Duration = Duration::from_secs(2);

/// What room is counted by: a share, or a file system of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Room {
    Share(ShareId),
    FileSystem(u64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Need {
    pub(super) needed: ByteCount,
    pub(super) free: ByteCount,
    pub(super) folder: String,
    /// The number of the file system that the folder is on.
    pub(super) device: u64,
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
    /// Of a file that will take about as much as `allocated`, and is at `path` on this host. Blocks for 2 s at most.
    pub(crate) fn new(job: JobId, to: &Location, path: &Path, allocated: ByteCount) -> Self {
        let path = path.to_owned();
        let sizes = within(SIZE_WAIT, move || Some((file::allocated(&path).ok()?, fs::metadata(&path).ok()?.len())));
        let taken = match sizes.flatten() {
            Some((taken, length)) if is_told(to, taken, length, allocated) => taken,
            _ => ByteCount(0),
        };
        let still = ByteCount(space_needed(allocated).0.saturating_sub(taken.0));
        Self { job, to: to.clone(), still }
    }

    /// Of a file that takes what was copied of its disk, wherever it is.
    pub(crate) fn copied(job: JobId, to: &Location, allocated: ByteCount, copied: ByteCount, total: ByteCount) -> Self {
        let left = match total.0 {
            0 => 1.0,
            total => 1.0 - copied.0.min(total) as f64 / total as f64,
        };
        let still = ByteCount((space_needed(allocated).0 as f64 * left).ceil() as u64);
        Self { job, to: to.clone(), still }
    }
}

/// Whether a file takes what its mount says. Many mounts of shares say a file's length, which a raw image has from the
/// outset; one that is still shorter than what goes into it grows by what it takes.
pub(super) fn is_told(to: &Location, taken: ByteCount, length: u64, allocated: ByteCount) -> bool {
    match to {
        Location::Local { .. } => true,
        Location::Share { .. } => taken.0 < length || length < allocated.0,
    }
}

/// What rooms requests have been promised whose files are not written down yet.
#[derive(Default)]
pub struct Claims(Mutex<ClaimTable>);

#[derive(Default)]
struct ClaimTable {
    begun: u64,
    /// By the order in which they came.
    open: BTreeMap<u64, Vec<(Room, JobId, ByteCount)>>,
}

impl Claims {
    /// For a request of a job; `None`: one that only asks.
    pub(crate) fn claim(self: &Arc<Self>, job: Option<JobId>) -> Arc<Claim> {
        let number = {
            let mut table = self.table();
            table.begun += 1;
            table.begun
        };
        Arc::new(Claim { claims: Arc::clone(self), number, job })
    }

    fn table(&self) -> MutexGuard<'_, ClaimTable> {
        lock(&self.0)
    }
}

/// What one request has been promised, until it is dropped: hold it until the files are in what the job has reserved.
pub(crate) struct Claim {
    claims: Arc<Claims>,
    number: u64,
    job: Option<JobId>,
}

impl Claim {
    /// Claims rooms, and tells what others claimed before.
    pub(super) fn put(&self, rooms: &BTreeMap<Room, Need>) -> Vec<(Room, JobId, ByteCount)> {
        let mut table = self.claims.table();
        if let Some(job) = self.job {
            let claimed = rooms.iter().map(|(room, need)| (*room, job, need.needed)).collect();
            table.open.insert(self.number, claimed);
        }
        let before = table.open.iter().filter(|(number, _)| **number != self.number).flat_map(|(_, claimed)| claimed);
        before.filter(|(_, job, _)| Some(*job) != self.job).copied().collect()
    }

    pub(super) fn withdraw(&self) {
        self.claims.table().open.remove(&self.number);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.withdraw();
    }
}
