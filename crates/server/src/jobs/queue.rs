//! Queued jobs, and the slots of running ones. [`ferry_core::admission`] decides which jobs may begin.

use std::collections::BTreeMap;

use ferry_core::{
    admission::{Admission, Claim, Limits, Place, Slot, Wait, Waiting, admit, share_a_place},
    id::{HostId, JobId},
    job::JobKind,
};

use crate::store::JobRecord;

/// Queued jobs, and the slots of running ones.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    waiting: BTreeMap<JobId, (JobRecord, Waiting)>,
    holding: BTreeMap<JobId, Claim>,
    /// What each queued job waits for, as of the last admission.
    waits: BTreeMap<JobId, Wait>,
}

impl Queue {
    /// Adds a job to the queue.
    pub(crate) fn put(&mut self, record: JobRecord) {
        let waiting = Waiting { claim: claim(&record), passed: 0 };
        self.waiting.insert(record.id, (record, waiting));
    }

    /// Removes a job from the queue.
    pub(crate) fn take_out(&mut self, job: JobId) {
        self.waiting.remove(&job);
    }

    /// Registers the slots of a job that began earlier and continues.
    pub(crate) fn hold(&mut self, record: &JobRecord) {
        self.holding.insert(record.id, claim(record));
    }

    /// Frees a job's slots. Returns whether it had any.
    pub(crate) fn give_back(&mut self, job: JobId) -> bool {
        self.holding.remove(&job).is_some()
    }

    /// What a queued job waits for.
    pub(crate) fn wait_of(&self, job: JobId) -> Option<&Wait> {
        self.waits.get(&job)
    }

    /// How many jobs hold each slot that is in use.
    pub(crate) fn slots_used(&self) -> BTreeMap<Place, u32> {
        let mut used = BTreeMap::new();
        for place in self.holding.values().flat_map(|claim| &claim.places) {
            *used.entry(*place).or_default() += 1;
        }
        used
    }

    /// Removes the jobs that may begin now from the queue and gives them their slots.
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

/// The slots that a job needs.
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
