//! Sets how many moves a host may take part in at the same time, and how and where their bytes travel. Takes effect at
//! once: waiting jobs may start. Moves that were accepted keep the limits and the preset that they got; in which network
//! their bytes travel is decided when they start.

use std::sync::Arc;

use ferry_core::{
    admission::Limits,
    api::{
        problem::Title,
        server::{HostView, SetHost},
    },
    finding::{ByHand, Message},
    transfer::{HostTransfer, RateLimits},
    units::ByteCount,
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
    let rate = |what: &str, requested: Option<u64>, before: Option<ByteCount>| match requested {
        None => Ok(before),
        Some(0) => Ok(None),
        Some(rate) if ByteCount(rate) >= RateLimits::LEAST => Ok(Some(ByteCount(rate))),
        Some(value) => {
            let message = Message::NotANumber { name: what.to_owned(), value };
            Err(invalid(&title, what, message, ByHand::GiveBandwidth { least: RateLimits::LEAST.0 }))
        }
    };
    let before = host.settings();
    let limits = Limits {
        live: body.live_limit.unwrap_or(before.limits.live),
        storage: body.storage_limit.unwrap_or(before.limits.storage),
    };
    let rates = before.transfer.limits;
    let transfer = HostTransfer {
        preset: body.performance.unwrap_or(before.transfer.preset),
        limits: RateLimits {
            memory: rate("memory_bandwidth_bytes_per_s", body.memory_bandwidth_bytes_per_s, rates.memory)?,
            storage: rate("storage_bandwidth_bytes_per_s", body.storage_bandwidth_bytes_per_s, rates.storage)?,
        },
    };
    let migration_networks = body.migration_networks.unwrap_or(before.migration_networks);
    let settings = HostSettings { limits, transfer, migration_networks, ..before };
    app.store.put_host_settings(host.record.id, settings).await?;
    app.inventory.set(&host, settings);
    tracing::info!(
        host = host.name(),
        live = limits.live,
        storage = limits.storage,
        performance = %transfer.preset,
        networks = %migration_networks,
        "A host's limits were set"
    );
    app.jobs.admit();
    show_hosts::shown(app, &host).await
}
