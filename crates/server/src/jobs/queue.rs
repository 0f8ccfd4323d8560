//! Jobs that wait for their turn, and the slots of those that go on. Who may begin is decided by [`ferry_core::admission`].

use std::collections::BTreeMap;

use ferry_core::{
    admission::{Admission, Claim, Limits, Place, Slot, Wait, Waiting, admit, share_a_place},
    id::{HostId, JobId},
    job::JobKind,
};

use crate::store::JobRecord;

/// Jobs that wait, and the slots of those that go on.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    waiting: BTreeMap<JobId, (JobRecord, Waiting)>,
    holding: BTreeMap<JobId, Claim>,
    /// What each waiting job waits for, as of the last admission.
    waits: BTreeMap<JobId, Wait>,
}

impl Queue {
    /// A job waits for its turn.
    pub(crate) fn put(&mut self, record: JobRecord) {
        let waiting = Waiting { claim: claim(&record), passed: 0 };
        self.waiting.insert(record.id, (record, waiting));
    }

    /// A job does not wait any more.
    pub(crate) fn take_out(&mut self, job: JobId) {
        self.waiting.remove(&job);
    }

    /// A job goes on that has begun before: it has its slots.
    pub(crate) fn hold(&mut self, record: &JobRecord) {
        self.holding.insert(record.id, claim(record));
    }

    /// A job takes nothing of its hosts any more. Whether it did.
    pub(crate) fn give_back(&mut self, job: JobId) -> bool {
        self.holding.remove(&job).is_some()
    }

    /// What a waiting job waits for.
    pub(crate) fn wait_of(&self, job: JobId) -> Option<&Wait> {
        self.waits.get(&job)
    }

    /// How many jobs have each slot that somebody has.
    pub(crate) fn slots_used(&self) -> BTreeMap<Place, u32> {
        let mut used = BTreeMap::new();
        for place in self.holding.values().flat_map(|claim| &claim.places) {
            *used.entry(*place).or_default() += 1;
        }
        used
    }

    /// The jobs whose turn has come. They have their slots.
    pub(crate) fn admit(&mut self, limits: &BTreeMap<HostId, Limits>) -> Vec<JobRecord> {
        let running: Vec<Claim> = self.holding.values().cloned().collect();
        let waiting: Vec<Waiting> = self.waiting.values().map(|(_, waiting)| waiting.clone()).collect();
        let mut begun = Vec::new();
        self.waits.clear();
        for (job, admission) in admit(limits, &running, &waiting) {
            match admission {
                Admission::Waits(wait) => {
                    self.waits.insert(job, wait);
                }
                Admission::Begins => {
                    let Some((record, waiting)) = self.waiting.remove(&job) else { continue };
                    for (older, (_, passed)) in &mut self.waiting {
                        passed.passed += u32::from(*older < job && share_a_place(&passed.claim, &waiting.claim));
                    }
                    self.holding.insert(job, waiting.claim);
                    begun.push(record);
                }
            }
        }
        begun
    }
}

/// What a job takes of its hosts.
fn claim(record: &JobRecord) -> Claim {
    let (source, destination) = (record.job.source.id, record.job.destination.id);
    let slots: &[Slot] = match record.job.kind {
        JobKind::Live => &[Slot::Live],
        JobKind::LiveVsm => &[Slot::Live, Slot::Storage],
        JobKind::Offline | JobKind::Storage => &[Slot::Storage],
        JobKind::Several | JobKind::Drain => &[],
    };
    let hosts = [Some(source), Some(destination).filter(|destination| *destination != source)];
    let places = hosts.into_iter().flatten().flat_map(|host| slots.iter().map(move |slot| (host, *slot)));
    Claim { job: record.id, places: places.collect() }
}
