//! Checks of moves: collects hosts' current reports and stored data, and lets `ferry_core` judge them. Changes nothing.
//!
//! Runs before a job is accepted, and again when it starts, because a job may have waited.

pub(crate) mod identity;
pub(crate) mod live;
pub(crate) mod offline;
pub(crate) mod places;
pub(crate) mod promised;
pub(crate) mod storage;
pub(crate) mod users;

use std::{collections::BTreeMap, sync::Arc};

use ferry_client::ClientError;
use ferry_core::{
    api::server::Candidate,
    finding::{Action, Finding, FindingId, Message},
    id::{ShareId, VmId},
    preflight::{Assessment, NamedShare},
};

use crate::{
    failure::fault_finding,
    inventory::{Host, Inventory, Seen},
    store::{Store, StoreError},
};
use identity::IdentityCheck;

/// What every check needs.
pub(crate) struct Preflight {
    pub(crate) store: Store,
    pub(crate) inventory: Arc<Inventory>,
    pub(crate) identity: IdentityCheck,
}

impl Preflight {
    /// The shares of the inventory.
    async fn shares(&self) -> Result<BTreeMap<ShareId, NamedShare>, StoreError> {
        let shares = self.store.shares().await?;
        Ok(shares.into_iter().map(|share| (share.id, NamedShare { name: share.name, source: share.source })).collect())
    }
}

/// A host as a candidate for the destination of a VM, in the API's form.
fn candidate(host: &Host, assessed: Assessment) -> Candidate {
    let Assessment { kind, why, findings } = assessed;
    Candidate {
        host: host.name().to_owned(),
        kind,
        why: why.to_string(),
        sentence: Some(why),
        findings,
        transfer: None,
        route: None,
    }
}

/// The findings of a host that refused a request or did not answer.
fn findings_of(host: &Host, error: &ClientError) -> Vec<Finding> {
    match error.problem() {
        Some(problem) if !problem.findings.is_empty() => problem.findings.clone(),
        _ => vec![fault_finding(host.name(), error)],
    }
}

/// Whether a host answers and has the share attached.
fn uses(seen: &Seen, share: ShareId) -> bool {
    let mut shares = seen.observation.iter().flat_map(|observation| &observation.shares);
    seen.reachable && shares.any(|attached| attached.id == share && attached.trouble.is_none())
}

/// The finding that a VM cannot move because its host no longer has it, or does not answer.
fn gone(vm: VmId, source: &Host, at_source: &Seen) -> Finding {
    at_source.trouble.clone().unwrap_or_else(|| {
        Finding::blocks(
            FindingId::VmUnknown,
            vm,
            Message::VmGone { vm: vm.to_string(), host: source.name().to_owned() },
            Action::SeeWhere,
        )
    })
}
