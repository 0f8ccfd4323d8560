//! Shares as the inventory knows them.

use ferry_core::{
    api::{
        problem::Title,
        server::{ShareOnHost, ShareView},
    },
    finding::{Action, Finding, FindingId, Message},
};

use super::App;
use crate::{failure::Failure, store::ShareRecord};

pub(crate) async fn list(app: &App) -> Result<Vec<ShareView>, Failure> {
    Ok(app.store.shares().await?.into_iter().map(|share| view(app, share)).collect())
}

pub(crate) async fn one(app: &App, reference: &str) -> Result<ShareView, Failure> {
    let share = find(app, &Title::ShowShare { share: reference.to_owned() }, reference).await?;
    Ok(view(app, share))
}

/// The share with this name or id.
pub(super) async fn find(app: &App, title: &Title, reference: &str) -> Result<ShareRecord, Failure> {
    let id: Option<ferry_core::id::ShareId> = reference.parse().ok();
    let shares = app.store.shares().await?;
    shares.into_iter().find(|share| share.name == reference || Some(share.id) == id).ok_or_else(|| {
        let finding = Finding::blocks(
            FindingId::ShareUnknown,
            reference,
            Message::ShareUnknown { share: reference.to_owned() },
            Action::ListShares,
        );
        Failure::found(title, finding)
    })
}

pub(super) fn view(app: &App, share: ShareRecord) -> ShareView {
    let mut hosts = Vec::new();
    for (host, seen) in app.inventory.placed() {
        let attached = seen.observation.iter().flat_map(|observation| &observation.shares);
        hosts.extend(
            attached
                .filter(|attached| attached.id == share.id)
                .map(|attached| ShareOnHost { host: host.name().to_owned(), attached: attached.clone() }),
        );
    }
    ShareView { id: share.id, name: share.name, source: share.source, hosts }
}
