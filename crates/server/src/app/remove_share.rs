//! Removes a share that no host has attached.

use ferry_core::{
    api::problem::Title,
    finding::{Action, Finding, FindingId, Message},
    location::Location,
    place::written,
};

use super::{App, show_shares};
use crate::{failure::Failure, preflight::places};

pub(crate) async fn remove_share(app: &App, reference: &str) -> Result<(), Failure> {
    let title = Title::RemoveShare { share: reference.to_owned() };
    let share = show_shares::find(app, &title, reference).await?;
    let view = show_shares::view(app, share.clone());
    if let Some(on) = view.hosts.first() {
        let finding = Finding::blocks(
            FindingId::ShareInUse,
            &share.name,
            Message::ShareAttachedOn { share: share.name.clone(), host: on.host.clone() },
            Action::DetachShareFirst { share: share.name.clone(), host: on.host.clone() },
        );
        return Err(Failure::found(title, finding));
    }
    let locations = app.store.storage_locations().await?;
    let on_it = |location: &&Location| matches!(location, Location::Share { share: on, .. } if *on == share.id);
    for host in app.inventory.hosts() {
        let Some(location) = locations.get(&host.record.id).into_iter().flatten().find(on_it) else { continue };
        let path = written(location, &places::known(std::slice::from_ref(&share)));
        let finding = Finding::blocks(
            FindingId::ShareInUse,
            &share.name,
            Message::PlaceIsStorage { path: path.clone(), host: host.name().to_owned() },
            Action::RemoveStorageFirst { host: host.name().to_owned(), path },
        );
        return Err(Failure::found(title, finding));
    }
    app.store.remove_share(share.id).await?;
    tracing::info!(share = share.name, "A share was removed");
    Ok(())
}
