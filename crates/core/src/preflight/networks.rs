//! Whether a migration network connects the two hosts of a move.

use super::facts::{LiveFacts, Side};
use crate::{
    finding::{Action, ByHand, Finding, FindingId, Message},
    network::{End, HostAddress, NoRoute, Route, Subnet, route},
};

/// The route of a move between these hosts; `None` if they have no migration networks, or if [`super::live`] and
/// [`super::offline`] say why there is none.
pub fn route_between(source: &Side<'_>, destination: &Side<'_>) -> Option<Route> {
    let found = route(end(source, addresses(source)?), end(destination, addresses(destination)?));
    found.unwrap_or_default()
}

/// Why no move of this host can travel in its migration networks; `None` if it has none, or one of them may do.
pub fn unusable_networks(side: &Side<'_>) -> Option<Finding> {
    if side.networks.is_empty() {
        return None;
    }
    let Some(addresses) = addresses(side) else { return too_old(side) };
    let has_one = |network: Subnet| addresses.iter().any(|address| network.contains(address.address));
    if side.networks.iter().any(has_one) {
        return None;
    }
    let host = side.name.to_owned();
    let message = Message::NoAddressInNetworks {
        host: host.clone(),
        networks: side.networks.iter().collect(),
        addresses: addresses.iter().collect(),
    };
    Some(Finding::blocks(FindingId::HostNetwork, side.name, message, Action::SetNetworksOfHost { host }))
}

/// The findings about the migration networks of both hosts.
pub(super) fn findings(facts: &LiveFacts<'_>) -> Vec<Finding> {
    let (source, destination) = (&facts.source, &facts.destination);
    if source.networks.is_empty() && destination.networks.is_empty() {
        return Vec::new();
    }
    let mut findings: Vec<Finding> = [source, destination].into_iter().filter_map(too_old).collect();
    if let (Some(here), Some(there)) = (addresses(source), addresses(destination))
        && route(end(source, here), end(destination, there)) == Err(NoRoute)
    {
        findings.push(not_connected((source, here), (destination, there)));
    }
    findings
}

/// An agent that reports no addresses would use another network.
fn too_old(side: &Side<'_>) -> Option<Finding> {
    let is_old = side.facts.is_some_and(|facts| facts.addresses.is_none());
    is_old.then(|| {
        let host = side.name.to_owned();
        let message = Message::HostIsOldForNetworks { host: host.clone() };
        Finding::blocks(FindingId::HostNetwork, side.name, message, ByHand::UpgradeAgent { host })
    })
}

fn not_connected(
    (source, here): (&Side<'_>, &[HostAddress]),
    (destination, there): (&Side<'_>, &[HostAddress]),
) -> Finding {
    let seen = |side: &Side<'_>, addresses: &[HostAddress]| Message::InNetworks {
        host: side.name.to_owned(),
        networks: side.networks.iter().collect(),
        addresses: addresses.iter().collect(),
    };
    let message = Message::NoMigrationNetwork {
        source: source.name.to_owned(),
        destination: destination.name.to_owned(),
        here: seen(source, here).into(),
        there: seen(destination, there).into(),
    };
    let (source, destination) = (source.name.to_owned(), destination.name.to_owned());
    Finding::blocks(
        FindingId::HostNetwork,
        &destination,
        message,
        Action::SetMigrationNetworks { source, destination: destination.clone() },
    )
}

fn addresses<'a>(side: &Side<'a>) -> Option<&'a [HostAddress]> {
    side.facts?.addresses.as_deref()
}

fn end<'a>(side: &Side<'_>, addresses: &'a [HostAddress]) -> End<'a> {
    End { networks: side.networks, addresses }
}
