//! Sets how many moves a host may take part in at the same time. Takes effect at once: waiting jobs may start.

use std::sync::Arc;

use ferry_core::{
    admission::Limits,
    api::{
        problem::Title,
        server::{HostView, SetHost},
    },
    finding::{ByHand, Message},
};

use super::{App, invalid, show_hosts};
use crate::{failure::Failure, store::HostSettings};

pub(crate) async fn set_host(app: &Arc<App>, reference: &str, body: SetHost) -> Result<HostView, Failure> {
    let title = Title::SetLimits { host: reference.to_owned() };
    let host = app.inventory.find(reference).map_err(|finding| Failure::found(&title, finding))?;
    for (what, limit) in [("live_limit", body.live_limit), ("storage_limit", body.storage_limit)] {
        if limit.is_some_and(|limit| !(1..=Limits::MAX).contains(&limit)) {
            let message = Message::NotANumber { name: what.to_owned(), value: limit.unwrap_or_default().into() };
            return Err(invalid(&title, what, message, ByHand::GiveLimit { most: Limits::MAX }));
        }
    }
    let before = host.settings();
    let limits = Limits {
        live: body.live_limit.unwrap_or(before.limits.live),
        storage: body.storage_limit.unwrap_or(before.limits.storage),
    };
    let settings = HostSettings { limits, ..before };
    app.store.put_host_settings(host.record.id, settings).await?;
    app.inventory.set(&host, settings);
    tracing::info!(host = host.name(), live = limits.live, storage = limits.storage, "A host's limits were set");
    app.jobs.admit();
    show_hosts::shown(app, &host).await
}
