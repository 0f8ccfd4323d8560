//! Hosts as the inventory knows them.

use std::collections::BTreeMap;

use ferry_core::{
    api::{
        problem::Title,
        server::{HostView, MoveOnHost, StorageLocation, VmRow},
    },
    id::HostId,
    location::Location,
    migration::{Phase, phase},
    place::{reachable, written},
    preflight::unusable_networks,
};

use super::App;
use crate::{
    failure::Failure,
    inventory::{Host, Seen},
    preflight::places,
    store::{JobRecord, ShareRecord},
};

pub(crate) async fn list(app: &App) -> Result<Vec<HostView>, Failure> {
    let stored = Stored::read(app).await?;
    Ok(app.inventory.hosts().iter().map(|host| view(host, &stored)).collect())
}

pub(crate) async fn one(app: &App, reference: &str) -> Result<HostView, Failure> {
    let found = app.inventory.find(reference);
    let host = found.map_err(|finding| Failure::found(Title::ShowHost { host: reference.to_owned() }, finding))?;
    shown(app, &host).await
}

/// The current view of a host.
pub(super) async fn shown(app: &App, host: &Host) -> Result<HostView, Failure> {
    Ok(view(host, &Stored::read(app).await?))
}

/// Stored data about hosts.
struct Stored {
    /// Every open move, oldest first.
    moves: Vec<(JobRecord, Phase)>,
    locations: BTreeMap<HostId, Vec<Location>>,
    shares: Vec<ShareRecord>,
}

impl Stored {
    async fn read(app: &App) -> Result<Self, Failure> {
        let open = app.store.open_jobs_with_logs().await?;
        Ok(Self {
            moves: open.into_iter().map(|(record, log)| (record, phase(&log))).collect(),
            locations: app.store.storage_locations().await?,
            shares: app.store.shares().await?,
        })
    }

    fn storage_locations(&self, host: &Host, seen: &Seen) -> Vec<StorageLocation> {
        let (shares, attached) = (places::known(&self.shares), places::attached(seen));
        let trouble = |location: &Location| match location {
            Location::Local { .. } => (None, None),
            Location::Share { share, .. } => match attached.iter().find(|each| each.id == *share) {
                Some(attached) => (attached.trouble.clone(), attached.finding.clone()),
                None => {
                    let finding = reachable(location, host.name(), attached, &shares).err();
                    (finding.as_ref().map(|finding| finding.message.to_string()), finding)
                }
            },
        };
        let view = |location: &Location| {
            let (trouble, finding) = trouble(location);
            StorageLocation { location: location.clone(), path: written(location, &shares), trouble, finding }
        };
        self.locations.get(&host.record.id).into_iter().flatten().map(view).collect()
    }
}

fn view(host: &Host, stored: &Stored) -> HostView {
    let seen = host.seen();
    let mut facts = seen.observation.as_ref().map(|observation| observation.host.clone());
    if let Some(facts) = &mut facts {
        if let Some(trouble) = seen.trouble.clone() {
            facts.findings.insert(0, trouble);
        }
        facts.findings.extend(unusable_networks(&seen.side(host)));
    }
    let row =
        |vm: &ferry_core::vm::VmFacts| VmRow { id: vm.id, name: vm.name.clone(), state: vm.state, memory: vm.memory };
    let settings = host.settings();
    let here = host.record.id;
    let on_host = |(record, phase): &(JobRecord, Phase)| {
        let (source, destination) = (&record.job.source, &record.job.destination);
        let incoming = destination.id == here;
        let other = if incoming { source } else { destination };
        (incoming || source.id == here).then(|| MoveOnHost {
            job: record.id,
            vm_name: record.job.vm_name.clone(),
            incoming,
            other: other.name.clone(),
            phase: *phase,
        })
    };
    HostView {
        limits: settings.limits,
        transfer: settings.transfer,
        migration_networks: settings.migration_networks,
        maintenance: settings.maintenance,
        moves: stored.moves.iter().filter_map(on_host).collect(),
        storage_locations: stored.storage_locations(host, &seen),
        id: host.record.id,
        name: host.record.name.clone(),
        address: host.record.address.clone(),
        pin: host.record.pin,
        reachable: seen.reachable,
        seen_at_ms: seen.seen_at_ms,
        facts,
        vms: seen.vms().iter().map(row).collect(),
        shares: seen.observation.map(|observation| observation.shares.clone()).unwrap_or_default(),
    }
}
