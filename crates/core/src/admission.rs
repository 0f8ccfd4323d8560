//! Which waiting jobs may begin: slots per host, in order, with no head-of-line blocking across hosts.
//!
//! ```text
//! waiting, oldest first ─▶ is every slot it needs free at both hosts? ─▶ begins
//!                               └─ no ─▶ waits, and reports the slots and the jobs that occupy them
//! ```
//! A later job may pass one that waits for another host. Once a job was passed [`PASSES_MAX`] times, the slots it needs
//! are reserved for it, so that it does not wait forever.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::{HostId, JobId};

/// What a move occupies at a host for as long as it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Slot {
    /// The host sends or receives a VM's memory.
    Live,
    /// The host reads or writes disk copies.
    Storage,
}

impl Slot {
    /// All kinds.
    pub const ALL: [Self; 2] = [Self::Live, Self::Storage];

    /// The name to show to users.
    pub fn title(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Storage => "storage",
        }
    }
}

/// How many moves a host takes part in at the same time, incoming and outgoing counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Limits {
    /// Live moves, 1 to 64.
    pub live: u32,
    /// Storage moves, 1 to 64.
    pub storage: u32,
}

impl Limits {
    /// The upper bound of both limits.
    pub const MAX: u32 = 64;

    /// The limit for one kind of slot.
    pub fn of(&self, slot: Slot) -> u32 {
        match slot {
            Slot::Live => self.live,
            Slot::Storage => self.storage,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { live: 2, storage: 2 }
    }
}

/// A slot of a host.
pub type Place = (HostId, Slot);

/// The slots that a job needs: one of each entry, all at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The job. A smaller number means an older job.
    pub job: JobId,
    /// Its slots, without duplicates.
    pub places: Vec<Place>,
}

/// How often later jobs that share a host with a waiting job may begin before it.
pub const PASSES_MAX: u32 = 16;

/// A job in the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The slots it needs.
    pub claim: Claim,
    /// How many later jobs that share a place with it began before it.
    pub passed: u32,
}

/// The decision on a waiting job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It begins.
    Begins,
    /// It waits.
    Waits(Wait),
}

/// The reason why a job waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// Its place in the queue, from 1.
    pub position: usize,
    /// The slots that are not free, each with the jobs that occupy it or have it reserved.
    pub places: Vec<(Place, Vec<JobId>)>,
}

/// Decides on every waiting job, oldest first. Hosts that `limits` does not list have the default limits.
pub fn admit(limits: &BTreeMap<HostId, Limits>, running: &[Claim], waiting: &[Waiting]) -> Vec<(JobId, Admission)> {
    let limit = |place: &Place| limits.get(&place.0).copied().unwrap_or_default().of(place.1) as usize;
    let mut holders: BTreeMap<Place, Vec<JobId>> = BTreeMap::new();
    for claim in running {
        for place in &claim.places {
            holders.entry(*place).or_default().push(claim.job);
        }
    }
    let mut queue: Vec<&Waiting> = waiting.iter().collect();
    queue.sort_by_key(|waiting| waiting.claim.job);
    let mut decisions = Vec::with_capacity(queue.len());
    let mut position = 0;
    for Waiting { claim, passed } in queue {
        let full = |place: &&Place| holders.get(place).is_some_and(|holders| holders.len() >= limit(place));
        let places: Vec<_> = claim.places.iter().filter(full).map(|place| (*place, holders[place].clone())).collect();
        let begins = places.is_empty();
        if begins || *passed >= PASSES_MAX {
            for place in &claim.places {
                holders.entry(*place).or_default().push(claim.job);
            }
        }
        let admission = if begins {
            Admission::Begins
        } else {
            position += 1;
            Admission::Waits(Wait { position, places })
        };
        decisions.push((claim.job, admission));
    }
    decisions
}

/// Whether two jobs need a slot of the same kind at the same host.
pub fn share_a_place(one: &Claim, other: &Claim) -> bool {
    one.places.iter().any(|place| other.places.contains(place))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn host(number: u8) -> HostId {
        HostId(Uuid::from_u128(u128::from(number)))
    }

    fn live(job: u64, from: u8, to: u8) -> Claim {
        Claim { job: JobId(job), places: vec![(host(from), Slot::Live), (host(to), Slot::Live)] }
    }

    fn fresh(claim: Claim) -> Waiting {
        Waiting { claim, passed: 0 }
    }

    fn begun(decisions: &[(JobId, Admission)]) -> Vec<u64> {
        decisions.iter().filter(|(_, admission)| *admission == Admission::Begins).map(|(job, _)| job.0).collect()
    }

    #[test]
    fn two_at_once_and_the_third_says_whom_it_waits_for() {
        let waiting = [live(1, 1, 2), live(2, 3, 2), live(3, 4, 2)].map(fresh);
        let decisions = admit(&BTreeMap::new(), &[], &waiting);
        assert_eq!(begun(&decisions), [1, 2]);
        let wait = Wait { position: 1, places: vec![((host(2), Slot::Live), vec![JobId(1), JobId(2)])] };
        assert_eq!(decisions[2].1, Admission::Waits(wait));
    }

    #[test]
    fn incoming_and_outgoing_count_alike() {
        let running = [live(1, 1, 2), live(2, 3, 1)];
        let decisions = admit(&BTreeMap::new(), &running, &[fresh(live(3, 1, 4)), fresh(live(4, 3, 4))]);
        assert_eq!(begun(&decisions), [4], "kvm1 is full with one out and one in");
    }

    #[test]
    fn a_job_for_busy_hosts_does_not_hold_back_one_for_free_hosts() {
        let running = [live(1, 1, 2), live(2, 1, 2)];
        let decisions = admit(&BTreeMap::new(), &running, &[fresh(live(3, 1, 2)), fresh(live(4, 3, 4))]);
        assert_eq!(begun(&decisions), [4]);
    }

    #[test]
    fn live_and_storage_are_independent() {
        let storage = |job, at| fresh(Claim { job: JobId(job), places: vec![(host(at), Slot::Storage)] });
        let running = [live(1, 1, 2), live(2, 1, 2)];
        let decisions = admit(&BTreeMap::new(), &running, &[storage(3, 1), storage(4, 1), storage(5, 1)]);
        assert_eq!(begun(&decisions), [3, 4]);
    }

    #[test]
    fn a_job_that_was_passed_often_keeps_its_places_free() {
        let limits = BTreeMap::from([(host(1), Limits { live: 1, storage: 1 })]);
        let running = [live(1, 1, 5)];
        let (old, late) = (live(2, 1, 2), live(9, 3, 2));
        let second = live(8, 4, 2);
        let patient = [fresh(old.clone()), fresh(second.clone()), fresh(late.clone())];
        assert_eq!(begun(&admit(&limits, &running, &patient)), [8, 9]);
        let passed = [Waiting { claim: old, passed: PASSES_MAX }, fresh(second), fresh(late)];
        assert_eq!(begun(&admit(&limits, &running, &passed)), [8], "one of host 2's slots is kept for job 2");
    }

    fn any_claim(job: u64) -> impl Strategy<Value = Claim> {
        (0..4u8, 0..4u8, 0..3u8).prop_filter_map("two hosts", move |(from, to, kind)| {
            let slots: &[Slot] = match kind {
                0 => &[Slot::Live],
                1 => &[Slot::Storage],
                _ => &Slot::ALL,
            };
            let both = [host(from), host(to)];
            (from != to).then(|| Claim {
                job: JobId(job),
                places: both.into_iter().flat_map(|host| slots.iter().map(move |slot| (host, *slot))).collect(),
            })
        })
    }

    fn any_queue() -> impl Strategy<Value = Vec<Waiting>> {
        prop::collection::vec(0..20u32, 0..24).prop_flat_map(|passed| {
            let jobs: Vec<_> = passed
                .into_iter()
                .enumerate()
                .map(|(index, passed)| any_claim(index as u64 + 1).prop_map(move |claim| Waiting { claim, passed }))
                .collect();
            jobs
        })
    }

    proptest! {
        #[test]
        fn no_limit_is_ever_exceeded_and_nobody_waits_for_nothing(
            queue in any_queue(), live in 1..4u32, storage in 1..4u32
        ) {
            let limits: BTreeMap<_, _> = (0..4).map(|number| (host(number), Limits { live, storage })).collect();
            let decisions = admit(&limits, &[], &queue);
            prop_assert_eq!(decisions.len(), queue.len());
            let mut taken: BTreeMap<Place, u32> = BTreeMap::new();
            let claim_of = |job: &JobId| &queue.iter().find(|waiting| waiting.claim.job == *job).expect("known").claim;
            for (job, _) in decisions.iter().filter(|(_, admission)| *admission == Admission::Begins) {
                for place in &claim_of(job).places {
                    *taken.entry(*place).or_default() += 1;
                }
            }
            for ((host, slot), count) in &taken {
                prop_assert!(*count <= limits[host].of(*slot));
            }
            for (job, admission) in &decisions {
                if let Admission::Waits(wait) = admission {
                    prop_assert!(!wait.places.is_empty());
                    // It waits only for jobs that run or are older.
                    prop_assert!(wait.places.iter().all(|(_, jobs)| jobs.iter().all(|other| other < job)));
                }
            }
        }

        #[test]
        fn every_job_gets_its_turn(queue in any_queue()) {
            // Each job that began has ended by the next round; later jobs keep arriving.
            let mut waiting = queue.clone();
            let mut views = 0;
            let mut newest = 100;
            while waiting.iter().any(|waiting| waiting.claim.job.0 < 100) {
                let decisions = admit(&BTreeMap::new(), &[], &waiting);
                let begun: Vec<JobId> = begun(&decisions).into_iter().map(JobId).collect();
                prop_assert!(!begun.is_empty());
                waiting.retain(|waiting| !begun.contains(&waiting.claim.job));
                newest += 1;
                waiting.push(fresh(live(newest, (newest % 4) as u8, ((newest + 1) % 4) as u8)));
                views += 1;
                prop_assert!(views <= queue.len() + 1, "the oldest begins at each look");
            }
        }
    }
}
