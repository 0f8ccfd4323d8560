//! Adds a share to the inventory, without mounting it anywhere.

use ferry_core::{
    api::{
        problem::Title,
        server::{AddShare, ShareView},
    },
    finding::{ByHand, Finding, FindingId, Message},
    id::ShareId,
    share_source::{ShareSource, SourceError},
};
use uuid::Uuid;

use super::{App, check_name, show_shares};
use crate::{
    failure::Failure,
    store::{ShareRecord, StoreError},
};

pub(crate) async fn add_share(app: &App, body: &AddShare) -> Result<ShareView, Failure> {
    let title = Title::AddShare { share: body.name.clone() };
    check_name(&title, &body.name)?;
    let source: ShareSource =
        body.source.parse().map_err(|error: SourceError| Failure::found(&title, error.finding(&body.name)))?;
    for share in app.store.shares().await? {
        if share.name == body.name {
            return Err(twice(&title, &body.name, Message::ShareNameTaken { share: body.name.clone() }));
        }
        if share.source.same_as(&source) {
            return Err(twice(
                &title,
                &body.name,
                Message::ShareAddedBefore { share: source.to_string(), name: share.name },
            ));
        }
    }
    let share = ShareRecord { id: ShareId(Uuid::new_v4()), name: body.name.clone(), source };
    app.store.add_share(&share).await.map_err(|error| match error {
        StoreError::Duplicate => twice(&title, &body.name, Message::ShareAddedMeanwhile { share: body.name.clone() }),
        other @ (StoreError::Database(_) | StoreError::Content { .. } | StoreError::Newer { .. }) => {
            Failure::Store(other)
        }
    })?;
    tracing::info!(share = share.name, source = %share.source, "A share was added");
    Ok(show_shares::view(app, share))
}

fn twice(title: &Title, name: &str, message: Message) -> Failure {
    Failure::found(title, Finding::blocks(FindingId::ShareTwice, name, message, ByHand::UseShareOrRename))
}
