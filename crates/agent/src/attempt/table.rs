//! The attempts of one kind that this host takes part in.

use std::{
    cmp::Ordering,
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use ferry_core::id::{Generation, JobId};

use super::{Attempt, ended::Ended};
use crate::{
    AgentError,
    lock::lock,
    refusal::{stale, unknown},
};

/// Limit of simultaneous attempts of one kind: bounds processes and threads, far above what slots allow.
const ATTEMPTS_MAX: usize = 64;

/// A table entry for an attempt: cheap to clone.
pub(crate) trait Entry: Clone {
    /// The attempt that it belongs to.
    fn attempt(&self) -> Attempt;
}

/// The newest attempt of each job.
pub(crate) struct Table<E> {
    /// The plural name of the attempts, for instance `storage moves`.
    kind: &'static str,
    entries: Mutex<BTreeMap<JobId, E>>,
    ended: Arc<Ended>,
}

/// What is known about the job of a requested attempt.
pub(crate) enum Known<E> {
    /// Nothing: the attempt is new.
    Nothing,
    /// The same attempt: the request was repeated.
    Same(E),
    /// An older attempt that was never released: it is undone first.
    Older(E),
}

impl<E: Entry> Table<E> {
    /// Creates the table from the stored entries.
    pub(crate) fn new(kind: &'static str, entries: impl IntoIterator<Item = E>, ended: Arc<Ended>) -> Self {
        let table = Self { kind, entries: Mutex::default(), ended };
        entries.into_iter().for_each(|entry| table.put(entry));
        table
    }

    /// All entries.
    pub(crate) fn all(&self) -> Vec<E> {
        lock(&self.entries).values().cloned().collect()
    }

    /// The entry of a job.
    pub(crate) fn get(&self, job: JobId) -> Option<E> {
        lock(&self.entries).get(&job).cloned()
    }

    /// Finds the attempt that a request is about.
    ///
    /// # Errors
    /// `request.stale` if a newer one is known; `job.unknown` (404) if this one is not.
    pub(crate) fn find(&self, job: JobId, generation: Generation) -> Result<E, AgentError> {
        let Some(known) = self.get(job) else { return Err(unknown(job, generation)) };
        let attempt = known.attempt();
        attempt.name_vm();
        match attempt.generation.cmp(&generation) {
            Ordering::Equal => Ok(known),
            Ordering::Greater => Err(stale(job, generation, attempt.generation)),
            Ordering::Less => Err(unknown(job, generation)),
        }
    }

    /// Whether an attempt may be accepted, and what is known about its job.
    ///
    /// # Errors
    /// `request.stale`, `job.open`; if it would exceed the limit of attempts.
    pub(crate) fn admit(&self, asked: Attempt) -> Result<Known<E>, AgentError> {
        asked.name_vm();
        let known = self.get(asked.job);
        self.ended.admit(asked, known.as_ref().map(Entry::attempt))?;
        match known {
            Some(known) if known.attempt().generation == asked.generation => Ok(Known::Same(known)),
            Some(older) => Ok(Known::Older(older)),
            None if lock(&self.entries).len() >= ATTEMPTS_MAX => {
                Err(AgentError::failed(format!("This host takes part in {ATTEMPTS_MAX} {} already", self.kind)))
            }
            None => Ok(Known::Nothing),
        }
    }

    /// Inserts an attempt, or replaces its entry.
    pub(crate) fn put(&self, entry: E) {
        let job = entry.attempt().job;
        self.ended.opened(job, self.kind);
        lock(&self.entries).insert(job, entry);
    }

    /// Forgets the attempt of a job.
    pub(crate) fn remove(&self, job: JobId) {
        lock(&self.entries).remove(&job);
        self.ended.closed(job);
    }

    /// Remembers that an attempt was released, known or not: a request for it may still be in transit.
    ///
    /// # Errors
    /// If it could not be stored on disk.
    pub(crate) fn end(&self, job: JobId, generation: Generation) -> Result<(), AgentError> {
        self.ended.remember(job, generation)
    }
}

#[cfg(test)]
mod tests {
    use ferry_core::{finding::FindingId, id::VmId};
    use uuid::Uuid;

    use super::*;
    use crate::config::Config;

    impl Entry for Attempt {
        fn attempt(&self) -> Attempt {
            *self
        }
    }

    fn attempt(job: u64, generation: u64) -> Attempt {
        Attempt { job: JobId(job), generation: Generation(generation), vm: VmId(Uuid::nil()) }
    }

    fn table() -> (tempfile::TempDir, Table<Attempt>) {
        let folder = tempfile::tempdir().expect("a folder");
        let mut config = Config::new("127.0.0.1:1".parse().expect("an address"));
        config.state_dir = folder.path().to_owned();
        let ended = Arc::new(Ended::load(&config).expect("empty"));
        (folder, Table::new("moves", [attempt(7, 5)], ended))
    }

    fn refusal<T>(answer: Result<T, AgentError>) -> Option<(u16, FindingId)> {
        match answer {
            Ok(_) => None,
            Err(AgentError::Refused { status, finding }) => Some((status, finding.id)),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn a_request_is_about_the_newest_attempt_or_none() {
        let (_folder, table) = table();
        for (row, job, generation, expected) in [
            ("it is known", 7, 5, None),
            ("a newer one is known", 7, 4, Some((409, FindingId::RequestStale))),
            ("only an older one is", 7, 6, Some((404, FindingId::JobUnknown))),
            ("nothing is", 8, 5, Some((404, FindingId::JobUnknown))),
        ] {
            assert_eq!(refusal(table.find(JobId(job), Generation(generation))), expected, "{row}");
        }
    }

    #[test]
    fn an_older_attempt_is_given_to_be_undone_and_a_released_one_is_not_taken_up() {
        let (_folder, table) = table();
        assert!(matches!(table.admit(attempt(7, 5)), Ok(Known::Same(_))));
        assert!(matches!(table.admit(attempt(7, 6)), Ok(Known::Older(older)) if older.generation == Generation(5)));
        assert!(matches!(table.admit(attempt(8, 1)), Ok(Known::Nothing)));
        assert_eq!(refusal(table.admit(attempt(7, 4))), Some((409, FindingId::RequestStale)));
        table.remove(JobId(7));
        table.end(JobId(7), Generation(5)).expect("kept");
        assert_eq!(refusal(table.admit(attempt(7, 5))), Some((409, FindingId::RequestStale)));
        assert!(matches!(table.admit(attempt(7, 6)), Ok(Known::Nothing)));
    }

    #[test]
    fn no_more_attempts_are_taken_up_than_the_host_can_bear() {
        let (_folder, table) = table();
        (0..ATTEMPTS_MAX as u64).for_each(|job| table.put(attempt(100 + job, 1)));
        assert!(table.admit(attempt(99, 1)).is_err());
        assert!(matches!(table.admit(attempt(100, 1)), Ok(Known::Same(_))), "one that is known goes on");
    }
}
