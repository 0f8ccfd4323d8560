//! Shows that two hosts' mounts are of one share: a file written on one side is read on the other.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use ferry_client::ClientError;
use ferry_core::{
    api::agent::ShareToken,
    id::{Incarnation, ShareId},
    preflight::Sameness,
};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::{failure::describe, inventory::Host};

/// A proof holds this long: from the check before a job is accepted to the check at its start.
const PROOF_AGE_MAX: Duration = Duration::from_secs(10);
/// A file system may show another host's new file late; after this it is not there.
const VISIBLE_WITHIN: Duration = Duration::from_secs(2);
/// How often a file that is not there yet is looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// The share and the agents' lives: a restarted agent may have mounted anew.
type Key = (ShareId, Option<Incarnation>, Option<Incarnation>);

/// Proofs of the last seconds.
#[derive(Debug)]
pub(crate) struct Proofs {
    proven: Mutex<BTreeMap<Key, Instant>>,
    tasks: TaskTracker,
}

impl Proofs {
    pub(crate) fn new(tasks: TaskTracker) -> Self {
        Self { proven: Mutex::default(), tasks }
    }

    /// As [`Self::prove`], but takes a proof of the last seconds.
    pub(crate) async fn recent(&self, share: ShareId, one: &Arc<Host>, other: &Arc<Host>) -> Sameness {
        let key = key(share, one, other);
        {
            let mut proven = self.proven.lock().expect("nobody panics with it");
            proven.retain(|_, at| at.elapsed() < PROOF_AGE_MAX);
            if proven.contains_key(&key) {
                return Sameness::Proven;
            }
        }
        self.prove(share, one, other).await
    }

    /// Writes a new file by one host and reads it by the other.
    pub(crate) async fn prove(&self, share: ShareId, one: &Arc<Host>, other: &Arc<Host>) -> Sameness {
        let name = Uuid::new_v4().simple().to_string();
        let token = ShareToken { content: Uuid::new_v4().simple().to_string() };
        if let Err(error) = one.agent.write_token(share, &name, &token).await {
            return Sameness::NotProven(describe(one.name(), &error));
        }
        let sameness = look_for(share, &name, &token, other).await;
        // Nobody waits for the removal: it is not part of the proof.
        let one_too = one.clone();
        self.tasks.spawn(async move {
            if let Err(error) = one_too.agent.remove_token(share, &name).await {
                tracing::info!(host = one_too.name(), share = %share, error = error.chain(), "A token file was left behind");
            }
        });
        if sameness == Sameness::Proven {
            self.proven.lock().expect("nobody panics with it").insert(key(share, one, other), Instant::now());
        }
        sameness
    }
}

async fn look_for(share: ShareId, name: &str, token: &ShareToken, host: &Host) -> Sameness {
    let end = Instant::now() + VISIBLE_WITHIN;
    loop {
        match host.agent.read_token(share, name).await {
            Ok(read) if read == *token => return Sameness::Proven,
            Ok(_) => return Sameness::Different,
            Err(ClientError::Refused(problem)) if problem.status == 404 => {
                if Instant::now() >= end {
                    return Sameness::Different;
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            Err(error) => return Sameness::NotProven(describe(host.name(), &error)),
        }
    }
}

fn key(share: ShareId, one: &Host, other: &Host) -> Key {
    let life = |host: &Host| host.seen().observation.map(|observation| observation.incarnation);
    let (one, other) = (life(one), life(other));
    (share, one.min(other), one.max(other))
}
