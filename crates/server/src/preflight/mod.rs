//! What stands against a move: what hosts say now, and what is stored, judged by `ferry_core`. Changes nothing.
//!
//! Asked before a job is accepted, and again when its turn has come: a job may have waited.

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

/// What every check asks.
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

/// A host as the destination of a VM, as the API tells it.
fn candidate(host: &Host, assessed: Assessment) -> Candidate {
    let Assessment { kind, why, findings } = assessed;
    Candidate { host: host.name().to_owned(), kind, why: why.to_string(), findings }
}

/// What a host says against something.
fn told(host: &Host, error: &ClientError) -> Vec<Finding> {
    match error.problem() {
        Some(problem) if !problem.findings.is_empty() => problem.findings.clone(),
        _ => vec![fault_finding(host.name(), error)],
    }
}

/// Whether the share can be used on a host that answers.
fn uses(seen: &Seen, share: ShareId) -> bool {
    let mut shares = seen.observation.iter().flat_map(|observation| &observation.shares);
    seen.reachable && shares.any(|attached| attached.id == share && attached.trouble.is_none())
}

/// Why a VM is not moved from a host that has it no more, or does not answer.
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
