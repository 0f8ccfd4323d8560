//! Remembers released attempts of jobs of every kind, so that a late request for one of them does nothing. Survives
//! restarts of the agent.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Mutex, MutexGuard},
};

use ferry_core::{
    finding::{Action, FindingId, Message},
    id::{Generation, JobId},
};

use super::Attempt;
use crate::{
    AgentError,
    config::Config,
    lock::lock,
    records,
    refusal::{refused, stale},
};

/// How many jobs' last attempts are remembered: no request stays in transit for as long as that many jobs take.
const ENDED_MAX: usize = 256;

/// The last attempts of released jobs, and the kinds of the open ones.
pub(crate) struct Ended {
    path: PathBuf,
    attempts: Mutex<BTreeMap<JobId, Generation>>,
    open: Mutex<BTreeMap<JobId, &'static str>>,
}

impl Ended {
    /// Reads the stored attempts.
    ///
    /// # Errors
    /// If a damaged file cannot be put aside.
    pub(crate) fn load(config: &Config) -> Result<Self, AgentError> {
        let path = config.ended_path();
        let attempts = records::read_or_put_aside(&path)?.unwrap_or_default();
        Ok(Self { path, attempts: Mutex::new(attempts), open: Mutex::default() })
    }

    fn attempts(&self) -> MutexGuard<'_, BTreeMap<JobId, Generation>> {
        lock(&self.attempts)
    }

    /// Whether an attempt may be accepted, given the known open attempt of its job, if any.
    ///
    /// # Errors
    /// `request.stale`, `job.open`.
    pub(crate) fn admit(&self, asked: Attempt, known: Option<Attempt>) -> Result<(), AgentError> {
        let ended = self.attempts().get(&asked.job).copied();
        admit(asked, known, ended)?;
        match lock(&self.open).get(&asked.job) {
            // Job numbers started again. A request names the job but not its kind.
            Some(kind) if known.is_none() => Err(refused(
                FindingId::JobOpen,
                asked.job,
                Message::JobOfOtherKind { job: asked.job, kind: (*kind).to_owned() },
                Action::MoveAgainAnyhow,
            )),
            Some(_) | None => Ok(()),
        }
    }

    /// Registers an open job of this kind.
    pub(crate) fn opened(&self, job: JobId, kind: &'static str) {
        lock(&self.open).insert(job, kind);
    }

    /// Unregisters a job.
    pub(crate) fn closed(&self, job: JobId) {
        lock(&self.open).remove(&job);
    }

    /// Remembers a released attempt. Whether or not it was known here, a request for it may still be in transit.
    ///
    /// # Errors
    /// If it could not be stored on disk.
    pub(crate) fn remember(&self, job: JobId, generation: Generation) -> Result<(), AgentError> {
        let mut attempts = self.attempts();
        attempts.entry(job).and_modify(|known| *known = generation.max(*known)).or_insert(generation);
        // Generations are times; job numbers start again when the server's database was lost.
        while attempts.len() > ENDED_MAX
            && let Some((oldest, _)) = attempts.iter().min_by_key(|(_, generation)| **generation)
        {
            let oldest = *oldest;
            attempts.remove(&oldest);
        }
        records::write_json(&self.path, &*attempts)
    }
}

fn admit(asked: Attempt, known: Option<Attempt>, ended: Option<Generation>) -> Result<(), AgentError> {
    let Attempt { job, generation, vm } = asked;
    if let Some(ended) = ended.filter(|ended| *ended >= generation) {
        return Err(stale(job, generation, ended));
    }
    match known {
        // Job numbers started again. This host's part of the other VM may be its only copy.
        Some(Attempt { vm: other, .. }) if other != vm => Err(refused(
            FindingId::JobOpen,
            job,
            Message::JobOfOtherVm { job, other: other.to_string(), vm: vm.to_string() },
            Action::MoveAgain { vm: other.to_string() },
        )),
        Some(known) if known.generation > generation => Err(stale(job, generation, known.generation)),
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use ferry_core::id::VmId;
    use uuid::Uuid;

    use super::*;

    fn site() -> (tempfile::TempDir, Config) {
        let folder = tempfile::tempdir().expect("a folder");
        let mut config = Config::new("127.0.0.1:1".parse().expect("an address"));
        config.state_dir = folder.path().to_owned();
        (folder, config)
    }

    fn finding_of(answer: Result<(), AgentError>) -> Option<FindingId> {
        match answer {
            Ok(()) => None,
            Err(AgentError::Refused { finding, .. }) => Some(finding.id),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn an_attempt_is_taken_up_if_it_is_the_newest_and_of_the_same_vm() {
        let (one, other) = (VmId(Uuid::from_u128(1)), VmId(Uuid::from_u128(2)));
        let asked = Attempt { job: JobId(7), generation: Generation(5), vm: one };
        let stale = Some(FindingId::RequestStale);
        for (row, known, ended, expected) in [
            ("it is new", None, None, None),
            ("it is repeated", Some((5, one)), None, None),
            ("an older one was not released", Some((4, one)), None, None),
            ("a newer one goes on", Some((6, one)), None, stale),
            ("it was released", None, Some(5), stale),
            ("an older one was released", None, Some(4), None),
            ("the number was another VM's", Some((4, other)), None, Some(FindingId::JobOpen)),
        ] {
            let known = known.map(|(generation, vm)| Attempt { job: JobId(7), generation: Generation(generation), vm });
            assert_eq!(finding_of(admit(asked, known, ended.map(Generation))), expected, "{row}");
        }
    }

    #[test]
    fn what_was_released_is_known_after_a_restart_and_the_oldest_is_forgotten_first() {
        let (_folder, config) = site();
        let vm = VmId(Uuid::nil());
        let ended = Ended::load(&config).expect("empty");
        for number in 0..ENDED_MAX as u64 {
            ended.remember(JobId(1000 + number), Generation(number)).expect("kept");
        }
        // The database was lost: job numbers are low again, while times are not.
        ended.remember(JobId(1), Generation(10_000)).expect("kept");
        ended.remember(JobId(1), Generation(9_000)).expect("kept");
        let ended = Ended::load(&config).expect("read");
        let is_ended = |job, generation| {
            finding_of(ended.admit(Attempt { job: JobId(job), generation: Generation(generation), vm }, None)).is_some()
        };
        assert!(is_ended(1, 10_000) && !is_ended(1, 10_001));
        assert!(is_ended(1001, 1) && !is_ended(1000, 0));
    }
}
