//! Trials of QEMU's locks on shares, one step per request of the server (`ferry_drivers::lock_trial`).
//!
//! What a step leaves open is closed by the next step, by the end of the trial, or after a minute: if the server dies
//! in the middle, no process remains.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, Weak},
    time::{Duration, Instant},
};

use ferry_core::{
    api::agent::LockStep,
    finding::{ByHand, Finding, FindingId, Message},
};
use ferry_drivers::lock_trial::{self, Holder, LockTrialError, Taker};

use crate::{AgentError, lock::lock, shares::remove_scratch};

/// Longest duration of a trial: five steps of at most some seconds each.
const TRIAL_MAX: Duration = Duration::from_secs(60);
/// Limit of simultaneous trials: one for each share and pair of hosts being tested.
const TRIALS_MAX: usize = 32;

/// The open ends of trials.
#[derive(Debug, Default)]
pub struct LockTrials {
    open: Mutex<BTreeMap<String, Open>>,
}

#[derive(Debug)]
struct Open {
    end: End,
    until: Instant,
}

#[derive(Debug)]
enum End {
    Source(Holder),
    Destination(Taker),
}

impl LockTrials {
    /// Performs one step of trial `name`, whose image is at `path`. Blocks for some seconds at most.
    ///
    /// # Errors
    /// `share.locks` if the locks do not work; if a step could not be performed, a fault.
    pub fn step(self: &Arc<Self>, name: &str, path: &Path, step: LockStep) -> Result<(), AgentError> {
        match step {
            LockStep::Hold => {
                let holder = Holder::start(path).map_err(failed)?;
                self.keep(name, End::Source(holder))
            }
            LockStep::Open => {
                let taker = Taker::open(path).map_err(failed)?;
                self.keep(name, End::Destination(taker))
            }
            LockStep::LetGo => match self.take(name) {
                Some(End::Source(holder)) => holder.let_go().map_err(failed),
                Some(End::Destination(_)) | None => Err(out_of_order()),
            },
            LockStep::Take => match self.take(name) {
                Some(End::Destination(taker)) => taker.take().map_err(failed),
                Some(End::Source(_)) | None => Err(out_of_order()),
            },
            LockStep::Check => lock_trial::check(path).map_err(failed),
        }
    }

    /// Ends a trial, whatever its result, and removes its image. Ok if there is none.
    ///
    /// # Errors
    /// If the image cannot be removed.
    pub fn end(&self, name: &str, path: &Path) -> Result<(), AgentError> {
        drop(self.take(name));
        remove_scratch(path)
    }

    fn keep(self: &Arc<Self>, name: &str, end: End) -> Result<(), AgentError> {
        let mut open = lock(&self.open);
        if open.len() >= TRIALS_MAX {
            return Err(AgentError::failed(format!("{TRIALS_MAX} trials of locks are under way")));
        }
        open.insert(name.to_owned(), Open { end, until: Instant::now() + TRIAL_MAX });
        drop(open);
        let trials = Arc::downgrade(self);
        std::thread::spawn(move || close_late(&trials));
        Ok(())
    }

    fn take(&self, name: &str) -> Option<End> {
        lock(&self.open).remove(name).map(|open| open.end)
    }
}

/// Closes trials that exceeded their time.
fn close_late(trials: &Weak<LockTrials>) {
    std::thread::sleep(TRIAL_MAX);
    if let Some(trials) = trials.upgrade() {
        let now = Instant::now();
        lock(&trials.open).retain(|_, open| open.until > now);
    }
}

fn failed(error: LockTrialError) -> AgentError {
    match error {
        LockTrialError::Fails(why) => AgentError::refused(
            409,
            Finding::blocks(FindingId::ShareLocks, "share", Message::Verbatim { text: why }, ByHand::LookAtShareMount),
        ),
        error @ LockTrialError::Host { .. } => AgentError::because("Locks could not be tried", error),
    }
}

fn out_of_order() -> AgentError {
    AgentError::refused(
        409,
        Finding::blocks(FindingId::RequestInvalid, "locks", Message::LocksOutOfOrder, ByHand::TryAgain),
    )
}
