//! Adds a storage location to a host, after its agent has checked that the directory can hold VM files.

use std::sync::Arc;

use ferry_core::{
    api::{problem::Title, server::HostView},
    finding::{Action, Finding, FindingId, Message},
    place::{STORAGE_LOCATIONS_MAX, written},
};

use super::{App, show_hosts};
use crate::{failure::Failure, preflight::places};

pub(crate) async fn add_storage_location(app: &Arc<App>, reference: &str, text: &str) -> Result<HostView, Failure> {
    let title = Title::AddStorage { host: reference.to_owned() };
    let host = app.inventory.find(reference).map_err(|finding| Failure::found(&title, finding))?;
    let shares = app.store.shares().await?;
    let location = places::within_reach(&title, &host, &shares, text)?;
    let checked = host.agent.check_directory(&location).await;
    checked.map_err(|error| places::not_listed(&title, host.name(), &error))?;
    let path = written(&location, &places::known(&shares));
    if !app.store.add_storage_location(host.record.id, &location).await? {
        let finding = Finding::blocks(
            FindingId::StorageTooMany,
            &path,
            Message::StorageFull { host: host.name().to_owned(), count: STORAGE_LOCATIONS_MAX as u64 },
            Action::RemoveStorage { host: host.name().to_owned() },
        );
        return Err(Failure::found(title, finding));
    }
    app.inventory.publish_change(&host);
    tracing::info!(host = host.name(), path, "A storage location was added");
    show_hosts::shown(app, &host).await
}
