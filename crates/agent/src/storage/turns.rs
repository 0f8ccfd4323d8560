//! Requests about one move take turns. Those about others do not wait: a file system that hangs holds up its own move.

use std::{
    collections::BTreeSet,
    sync::{Condvar, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use ferry_core::id::JobId;

use crate::{AgentError, lock::lock};

/// Longest wait for another request about the same move: longer than any takes whose file systems answer.
const TURN_WAIT: Duration = Duration::from_secs(30);

/// Whose requests are under way.
#[derive(Default)]
pub(super) struct Turns {
    taken: Mutex<BTreeSet<JobId>>,
    given_back: Condvar,
}

/// The right to change a move, until it is dropped.
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    job: JobId,
}

impl Turns {
    /// Waits until no other request changes the move.
    ///
    /// # Errors
    /// When another one has not ended after half a minute.
    pub(super) fn take(&self, job: JobId) -> Result<Turn<'_>, AgentError> {
        self.take_within(job, TURN_WAIT)
    }

    fn take_within(&self, job: JobId, wait: Duration) -> Result<Turn<'_>, AgentError> {
        let until = Instant::now() + wait;
        let mut taken = self.taken();
        while !taken.insert(job) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(AgentError::Carrier(format!(
                    "Another request about the storage move of job {job} does not end: a file system of its disks may not \
                     answer"
                )));
            }
            taken = self.given_back.wait_timeout(taken, left).expect("nobody panics while holding it").0;
        }
        Ok(Turn { turns: self, job })
    }

    fn taken(&self) -> MutexGuard<'_, BTreeSet<JobId>> {
        lock(&self.taken)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.taken().remove(&self.job);
        self.turns.given_back.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_waits_for_those_of_its_own_move_only() {
        let turns = Turns::default();
        let first = turns.take(JobId(1)).expect("free");
        drop(turns.take(JobId(2)).expect("another move"));
        assert!(turns.take_within(JobId(1), Duration::ZERO).is_err(), "it is under way");
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| turns.take(JobId(1)).map(drop));
            drop(first);
            waits.join().expect("no panic").expect("its turn");
        });
    }
}
