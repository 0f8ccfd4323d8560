//! Removes a storage location from a host. The directory and its files stay, and the host need not answer.

use std::sync::Arc;

use ferry_core::{
    api::{problem::Title, server::HostView},
    finding::{Action, Finding, FindingId, Message},
    place::written,
};

use super::{App, show_hosts};
use crate::{failure::Failure, preflight::places};

pub(crate) async fn remove_storage_location(app: &Arc<App>, reference: &str, text: &str) -> Result<HostView, Failure> {
    let title = Title::RemoveStorage { host: reference.to_owned() };
    let host = app.inventory.find(reference).map_err(|finding| Failure::found(&title, finding))?;
    let shares = app.store.shares().await?;
    let location = places::meant(&title, &host, &shares, text)?;
    let path = written(&location, &places::known(&shares));
    if !app.store.remove_storage_location(host.record.id, &location).await? {
        let finding = Finding::blocks(
            FindingId::StorageUnknown,
            &path,
            Message::PlaceIsNoStorage { path: path.clone(), host: host.name().to_owned() },
            Action::ListStorage { host: host.name().to_owned() },
        );
        return Err(Failure::found(title, finding));
    }
    app.inventory.publish_change(&host);
    tracing::info!(host = host.name(), path, "A storage location was removed");
    show_hosts::shown(app, &host).await
}
