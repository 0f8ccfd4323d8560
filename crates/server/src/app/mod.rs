//! The use cases of Ferry, one file each.

pub(crate) mod accept;
pub(crate) mod add_host;
pub(crate) mod add_share;
pub(crate) mod add_storage_location;
pub(crate) mod attach_share;
pub(crate) mod browse_host;
pub(crate) mod cancel_job;
pub(crate) mod detach_share;
pub(crate) mod drain_host;
pub(crate) mod migrate_many;
pub(crate) mod migrate_vm;
pub(crate) mod move_offline;
pub(crate) mod move_storage;
pub(crate) mod power_vm;
pub(crate) mod remove_host;
pub(crate) mod remove_share;
pub(crate) mod remove_storage_location;
pub(crate) mod repair_job;
pub(crate) mod set_host;
pub(crate) mod show_candidates;
pub(crate) mod show_hosts;
pub(crate) mod show_jobs;
pub(crate) mod show_metrics;
pub(crate) mod show_shares;
pub(crate) mod show_vms;

use std::sync::Arc;

use ferry_core::{
    api::problem::Title,
    finding::{ByHand, Finding, FindingId, Fix, Message},
};
use tokio_util::sync::CancellationToken;

use crate::{
    events::Events,
    failure::Failure,
    inventory::Inventory,
    jobs::driver::Jobs,
    metrics::Metrics,
    preflight::{Preflight, promised::Promised},
    store::{Store, StoreError},
};

/// What all use cases share.
pub(crate) struct App {
    pub(crate) store: Store,
    pub(crate) inventory: Arc<Inventory>,
    pub(crate) preflight: Arc<Preflight>,
    pub(crate) jobs: Arc<Jobs>,
    pub(crate) events: Arc<Events>,
    pub(crate) metrics: Arc<Metrics>,
    /// Cancelled when the server stops, which ends event streams.
    pub(crate) stop: CancellationToken,
}

impl App {
    /// Memory of hosts that was promised to open moves.
    async fn promised(&self) -> Result<Promised, StoreError> {
        Ok(self.jobs.running().promised(&self.store.open_jobs().await?))
    }
}

/// Longest name of a host or share.
const NAME_LENGTH_MAX: usize = 64;

/// Refuses invalid names: names appear in paths, tables and shell commands, and must not look like ids.
fn check_name(title: &Title, name: &str) -> Result<(), Failure> {
    let starts_well = name.starts_with(|first: char| first.is_ascii_alphanumeric());
    let holds_well = name.chars().all(|each| each.is_ascii_alphanumeric() || ['-', '_', '.'].contains(&each));
    if starts_well && holds_well && name.len() <= NAME_LENGTH_MAX && uuid::Uuid::parse_str(name).is_err() {
        return Ok(());
    }
    Err(invalid(
        title,
        name,
        Message::NotAName { name: name.to_owned() },
        ByHand::NameForm { most: NAME_LENGTH_MAX as u64 },
    ))
}

/// The refusal of a request that makes no sense.
fn invalid(title: &Title, object: &str, message: Message, fix: impl Into<Fix>) -> Failure {
    Failure::found(title, Finding::blocks(FindingId::RequestInvalid, object, message, fix))
}
