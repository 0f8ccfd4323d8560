//! Proves that two hosts mounted the same share: a file that one of them wrote is read on the other. Also proves that
//! QEMU's locks allow a hand-over there: a scratch image is locked, unlocked and locked by the other host in the order
//! of a hand-over.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use ferry_client::ClientError;
use ferry_core::{
    api::agent::{LockStep, ShareToken},
    error::chain,
    finding::{FindingId, Message},
    id::{Incarnation, ShareId},
    preflight::ShareIdentity,
};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::{failure::answered, inventory::Host};

/// How long a proof is valid: from the check before a job is accepted to the check at its start.
const PROOF_AGE_MAX: Duration = Duration::from_secs(10);
/// How long a file system may take to show another host's new file. A file that is still missing then counts as absent.
const VISIBLE_WITHIN: Duration = Duration::from_secs(2);
/// How often a missing file is read again.
const POLL_EVERY: Duration = Duration::from_millis(100);

/// The share and the incarnations of both agents: a restarted agent may have mounted the share anew.
type Key = (ShareId, Option<Incarnation>, Option<Incarnation>);

/// The proofs so far.
#[derive(Debug)]
pub(crate) struct IdentityCheck {
    /// When mounts were last proven to be of the same share.
    proven: Mutex<BTreeMap<Key, Instant>>,
    /// Pairs of hosts, with a direction, between which QEMU's locks were proven to work. This proof runs programs on
    /// both hosts for some tenths of a second. It stays valid until the share is mounted anew: by a restarted agent, or
    /// when the share is attached.
    locks: Mutex<BTreeSet<Key>>,
    tasks: TaskTracker,
}

impl IdentityCheck {
    pub(crate) fn new(tasks: TaskTracker) -> Self {
        Self { proven: Mutex::default(), locks: Mutex::default(), tasks }
    }

    /// Discards the proofs about a share, because it is being attached anew.
    pub(crate) fn forget(&self, share: ShareId) {
        self.proven.lock().expect("nobody panics with it").retain(|(of, ..), _| *of != share);
        self.locks.lock().expect("nobody panics with it").retain(|(of, ..)| *of != share);
    }

    /// Like [`Self::prove`], but accepts a proof of the last few seconds.
    pub(crate) async fn recent(&self, share: ShareId, source: &Arc<Host>, destination: &Arc<Host>) -> ShareIdentity {
        let known = {
            let mut proven = self.proven.lock().expect("nobody panics with it");
            proven.retain(|_, at| at.elapsed() < PROOF_AGE_MAX);
            proven.contains_key(&unordered(key(share, source, destination)))
        };
        if known { self.locks(share, source, destination).await } else { self.prove(share, source, destination).await }
    }

    /// Writes a new file on one host and reads it on the other. Then tries QEMU's locks, unless they are known to work.
    pub(crate) async fn prove(&self, share: ShareId, source: &Arc<Host>, destination: &Arc<Host>) -> ShareIdentity {
        match self.same(share, source, destination).await {
            ShareIdentity::Proven => self.locks(share, source, destination).await,
            not @ (ShareIdentity::Different | ShareIdentity::NotProven(_) | ShareIdentity::LocksFail(_)) => not,
        }
    }

    /// Whether a VM can be handed over from the source to the destination on this share.
    async fn locks(&self, share: ShareId, source: &Arc<Host>, destination: &Arc<Host>) -> ShareIdentity {
        let key = key(share, source, destination);
        if self.locks.lock().expect("nobody panics with it").contains(&key) {
            return ShareIdentity::Proven;
        }
        let name = Uuid::new_v4().simple().to_string();
        let outcome = hand_over(share, &name, source, destination).await;
        for host in [source, destination] {
            let (host, name) = (Arc::clone(host), name.clone());
            // In the background: cleaning up is not part of the proof.
            self.tasks.spawn(async move {
                if let Err(error) = host.agent.end_lock_trial(share, &name).await {
                    tracing::info!(host = host.name(), share = %share, error = %chain(&error), "A trial of locks was left behind");
                }
            });
        }
        if outcome == ShareIdentity::Proven {
            self.locks.lock().expect("nobody panics with it").insert(key);
        }
        outcome
    }

    /// Writes a new file on one host and reads it on the other.
    async fn same(&self, share: ShareId, one: &Arc<Host>, other: &Arc<Host>) -> ShareIdentity {
        let name = Uuid::new_v4().simple().to_string();
        let token = ShareToken { content: Uuid::new_v4().simple().to_string() };
        if let Err(error) = one.agent.write_token(share, &name, &token).await {
            return ShareIdentity::NotProven(answered(one.name(), &error));
        }
        let identity = find_token(share, &name, &token, other).await;
        // In the background: the removal is not part of the proof.
        let one_too = one.clone();
        self.tasks.spawn(async move {
            if let Err(error) = one_too.agent.remove_token(share, &name).await {
                tracing::info!(host = one_too.name(), share = %share, error = %chain(&error), "A token file was left behind");
            }
        });
        if identity == ShareIdentity::Proven {
            self.proven
                .lock()
                .expect("nobody panics with it")
                .insert(unordered(key(share, one, other)), Instant::now());
        }
        identity
    }
}

async fn find_token(share: ShareId, name: &str, token: &ShareToken, host: &Host) -> ShareIdentity {
    let end = Instant::now() + VISIBLE_WITHIN;
    loop {
        match host.agent.read_token(share, name).await {
            Ok(read) if read == *token => return ShareIdentity::Proven,
            Ok(_) => return ShareIdentity::Different,
            Err(ClientError::Refused(problem)) if problem.status == 404 => {
                if Instant::now() >= end {
                    return ShareIdentity::Different;
                }
                tokio::time::sleep(POLL_EVERY).await;
            }
            Err(error) => return ShareIdentity::NotProven(answered(host.name(), &error)),
        }
    }
}

/// The steps of a hand-over, each done by the host whose QEMU would do it.
async fn hand_over(share: ShareId, name: &str, source: &Host, destination: &Host) -> ShareIdentity {
    let steps = [
        (source, LockStep::Hold),
        (destination, LockStep::Open),
        (source, LockStep::LetGo),
        (destination, LockStep::Take),
        (source, LockStep::Check),
    ];
    for (host, step) in steps {
        match host.agent.try_locks(share, name, step).await {
            Ok(()) => {}
            // An agent of an earlier version does not know these requests: moves are then allowed without the proof, as
            // before.
            Err(ClientError::Refused(problem)) if problem.status == 404 => return ShareIdentity::Proven,
            Err(ClientError::Refused(problem)) => {
                let locks = problem.findings.iter().find(|finding| finding.id == FindingId::ShareLocks);
                return match locks {
                    Some(finding) => ShareIdentity::LocksFail(Message::SaidBy {
                        message: finding.message.clone().into(),
                        host: host.name().to_owned(),
                    }),
                    None => ShareIdentity::NotProven(answered(host.name(), &ClientError::Refused(problem))),
                };
            }
            Err(error) => return ShareIdentity::NotProven(answered(host.name(), &error)),
        }
    }
    ShareIdentity::Proven
}

fn key(share: ShareId, source: &Host, destination: &Host) -> Key {
    let run = |host: &Host| host.seen().observation.map(|observation| observation.incarnation);
    (share, run(source), run(destination))
}

/// The same key for both directions.
fn unordered((share, one, other): Key) -> Key {
    (share, one.min(other), one.max(other))
}
