//! Translates the paths, UNC paths and NFS paths that administrators write into locations on a host.

use ferry_client::ClientError;
use ferry_core::{
    api::{problem::Title, server::MoveDisk},
    files::plan::Requested,
    finding::{ByHand, Finding, FindingId, Message},
    location::Location,
    place::{KnownShare, Place, locate, reachable},
    share::AttachedShare,
};

use crate::{
    failure::Failure,
    inventory::{Host, Seen},
    store::{ShareRecord, Store},
};

/// The shares of the inventory, in the form that `core` needs.
pub(crate) fn known(shares: &[ShareRecord]) -> Vec<KnownShare<'_>> {
    shares.iter().map(|share| KnownShare { id: share.id, name: &share.name, source: &share.source }).collect()
}

/// The location that a text denotes on a host, whether or not the host can reach it.
pub(crate) fn meant(title: &Title, host: &Host, shares: &[ShareRecord], text: &str) -> Result<Location, Failure> {
    let place: Place =
        text.parse().map_err(|error: ferry_core::place::PlaceError| Failure::found(title, error.finding()))?;
    let found = locate(&place, host.record.id, &known(shares), attached(&host.seen()));
    found.map_err(|finding| Failure::found(title, finding))
}

/// Like [`meant`], but only for a share that the host has attached, or for the host itself.
pub(crate) fn within_reach(
    title: &Title,
    host: &Host,
    shares: &[ShareRecord],
    text: &str,
) -> Result<Location, Failure> {
    let location = meant(title, host, shares, text)?;
    let found = reachable(&location, host.name(), attached(&host.seen()), &known(shares));
    found.map(|()| location).map_err(|finding| Failure::found(title, finding))
}

/// The shares that a host has attached, according to its agent's last report.
pub(crate) fn attached(seen: &Seen) -> &[AttachedShare] {
    seen.observation.as_ref().map_or(&[], |observation| &observation.shares)
}

/// The failure of an agent's look at a place. An agent of an earlier version does not know the request.
pub(crate) fn not_listed(title: &Title, host: &str, error: &ClientError) -> Failure {
    let is_old = error.problem().is_some_and(|problem| {
        problem.status == 404 && problem.findings.iter().any(|finding| finding.id == FindingId::RequestInvalid)
    });
    if !is_old {
        return Failure::of_agent(title, host, error);
    }
    let finding = Finding::blocks(
        FindingId::HostVersion,
        host,
        Message::HostIsOldForPlaces { host: host.to_owned() },
        ByHand::UpgradeAgent { host: host.to_owned() },
    );
    Failure::found(title, finding)
}

/// The locations that a request's places and disks denote on the host that will hold the files.
pub(crate) async fn requested(
    store: &Store,
    title: &Title,
    host: &Host,
    all: Option<&String>,
    disks: &[MoveDisk],
) -> Result<Requested, Failure> {
    let shares = store.shares().await?;
    let place = |text: Option<&String>| -> Result<Option<Location>, Failure> {
        text.map(|text| within_reach(title, host, &shares, text)).transpose()
    };
    let named = disks.iter().map(|disk| Ok((disk.device.clone(), place(disk.to.as_ref())?, disk.format)));
    Ok(Requested { all: place(all)?, named: named.collect::<Result<_, Failure>>()? })
}

#[cfg(test)]
mod tests {
    use ferry_core::api::problem::Problem;

    use super::*;

    #[test]
    fn an_agent_of_an_earlier_version_is_told_from_a_missing_directory() {
        let answer = |id, message: &str| {
            let finding = Finding::of_text(id, "request", message, "Do");
            let error = ClientError::Refused(Box::new(Problem::refused(404, message, vec![finding])));
            let problem = not_listed(&Title::BrowseHost { host: "kvm1".into() }, "kvm1", &error).into_problem();
            (problem.status, problem.findings[0].id)
        };
        let no_route = answer(FindingId::RequestInvalid, "There is no such route");
        assert_eq!(no_route, (502, FindingId::HostVersion));
        assert_eq!(answer(FindingId::PlaceMissing, "/x is not there"), (404, FindingId::PlaceMissing));
    }
}
