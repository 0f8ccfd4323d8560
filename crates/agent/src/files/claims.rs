//! Space promised to requests whose files are not yet recorded, and to running copies.
//!
//! A claim lasts from the check until the files are recorded in the job's journal. Of two simultaneous requests, the
//! later sees the earlier's claim, so no space is promised twice, and neither waits for the other.

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

/// Longest wait for the size of another job's file: its share may be dead while this job's is not.
const SIZE_WAIT: Duration = Duration::from_secs(2);

/// The unit by which space is counted: a share, or a file system of this host.
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
    /// The device number of the folder's file system.
    pub(super) device: u64,
}

/// Space that a running copy will still occupy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reserved {
    /// The job that copies.
    pub(crate) job: JobId,
    /// The new file.
    pub(crate) to: Location,
    /// Bytes that it will still occupy.
    pub(crate) remaining: ByteCount,
}

impl Reserved {
    /// For a file at `path` on this host that will occupy about as much as `allocated`. Blocks for at most 2 s.
    pub(crate) fn new(job: JobId, to: &Location, path: &Path, allocated: ByteCount) -> Self {
        let path = path.to_owned();
        let sizes = within(SIZE_WAIT, move || Some((file::allocated(&path).ok()?, fs::metadata(&path).ok()?.len())));
        let taken = match sizes.flatten() {
            Some((taken, length)) if is_real(to, taken, length, allocated) => taken,
            Some(_) | None => ByteCount(0),
        };
        let remaining = ByteCount(space_needed(allocated).0.saturating_sub(taken.0));
        Self { job, to: to.clone(), remaining }
    }

    /// For a file on any host that occupies what was copied of its disk.
    pub(crate) fn copied(job: JobId, to: &Location, allocated: ByteCount, copied: ByteCount, total: ByteCount) -> Self {
        let left = match total.0 {
            0 => 1.0,
            total => 1.0 - copied.0.min(total) as f64 / total as f64,
        };
        let remaining = ByteCount((space_needed(allocated).0 as f64 * left).ceil() as u64);
        Self { job, to: to.clone(), remaining }
    }
}

/// Whether a file's reported allocation is real. Many mounts of shares report a file's length instead, which a raw
/// image has from the start; a file shorter than its future content does grow by what it occupies.
pub(super) fn is_real(to: &Location, taken: ByteCount, length: u64, allocated: ByteCount) -> bool {
    match to {
        Location::Local { .. } => true,
        Location::Share { .. } => taken.0 < length || length < allocated.0,
    }
}

/// Space promised to requests whose files are not yet recorded.
#[derive(Default)]
pub struct Claims(Mutex<ClaimTable>);

#[derive(Default)]
struct ClaimTable {
    begun: u64,
    /// In the order of the requests.
    open: BTreeMap<u64, Vec<(Room, JobId, ByteCount)>>,
}

impl Claims {
    /// A claim for a request of a job; `None` for a request that only checks.
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

/// Space promised to one request until this is dropped: hold it until the files are part of what the job has reserved.
pub(crate) struct Claim {
    claims: Arc<Claims>,
    number: u64,
    job: Option<JobId>,
}

impl Claim {
    /// Claims space, and returns what others claimed before.
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
