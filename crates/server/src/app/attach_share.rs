//! Attaches a share to a host, and checks that it is the same share that other hosts have under this name.

use std::sync::Arc;

use ferry_client::ClientError;
use ferry_core::{
    api::{
        agent::AttachRequest,
        problem::Title,
        server::{AttachShare, ShareView},
    },
    error::chain,
    finding::{ByHand, Finding, FindingId, Message},
    preflight::{ShareIdentity, not_same},
    share_source::ShareSource,
};

use super::{App, show_shares};
use crate::{failure::Failure, inventory::Host, store::ShareRecord};

pub(crate) async fn attach_share(
    app: &Arc<App>,
    share: &str,
    host: &str,
    body: AttachShare,
) -> Result<ShareView, Failure> {
    let title = Title::AttachShare { share: share.to_owned(), host: host.to_owned() };
    let share = show_shares::find(app, &title, share).await?;
    let host = app.inventory.find(host).map_err(|finding| Failure::found(&title, finding))?;
    let was_attached = host.seen().has_share(share.id);
    let request = AttachRequest { source: share.source.clone(), credentials: body.credentials, at: body.at };
    let attached = host.agent.attach_share(share.id, &request).await;
    attached.map_err(|error| not_attached(&title, host.name(), &share.source, &error))?;
    app.preflight.identity.forget(share.id);
    host.wait_until(|seen| seen.has_share(share.id)).await;
    if let Some(other) = differing(app, &share, &host).await {
        // A share that was attached before this request stays attached: a VM may use it.
        if !was_attached && let Err(error) = host.agent.detach_share(share.id).await {
            tracing::warn!(host = host.name(), share = share.name, error = %chain(&error), "A share stays attached");
        }
        host.wait_until(|seen| was_attached || !seen.has_share(share.id)).await;
        return Err(Failure::found(title, not_same(&share.name, host.name(), other.name())));
    }
    tracing::info!(host = host.name(), share = share.name, "A share was attached");
    Ok(show_shares::view(app, share))
}

/// The failure of an agent to attach a share. An agent of an earlier version supports SMB shares only.
fn not_attached(title: &Title, host: &str, source: &ShareSource, error: &ClientError) -> Failure {
    let not_understood = error.problem().is_some_and(|problem| {
        problem.status == 400 && problem.findings.iter().any(|finding| finding.id == FindingId::RequestInvalid)
    });
    if !not_understood || matches!(source, ShareSource::Smb(_)) {
        return Failure::of_agent(title, host, error);
    }
    let finding = Finding::blocks(
        FindingId::HostVersion,
        host,
        Message::HostIsOldForShares { host: host.to_owned() },
        ByHand::UpgradeAgent { host: host.to_owned() },
    );
    Failure::found(title, finding)
}

/// Another host whose mount is proven to be of a different share.
async fn differing(app: &App, share: &ShareRecord, host: &Arc<Host>) -> Option<Arc<Host>> {
    for other in app.inventory.hosts() {
        if other.record.id == host.record.id || !other.seen().reachable || !other.seen().has_share(share.id) {
            continue;
        }
        match app.preflight.identity.prove(share.id, host, &other).await {
            // One proof is enough: all others were compared when they were attached.
            ShareIdentity::Proven => return None,
            // It is the same share. Locks are needed only by moves: each move reports the problem when it is requested,
            // and it may be solved by then.
            ShareIdentity::LocksFail(why) => {
                tracing::warn!(
                    share = share.name,
                    %why,
                    "QEMU's locks do not work on a share: no VM can be moved on it"
                );
                return None;
            }
            ShareIdentity::Different => return Some(other),
            // The check before a move tries again, and refuses the move if there is still no proof.
            ShareIdentity::NotProven(why) => {
                tracing::info!(share = share.name, %why, "Whether the share is the same could not be shown yet");
            }
        }
    }
    None
}
