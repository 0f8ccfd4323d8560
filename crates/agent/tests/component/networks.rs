//! Live moves by a route: both ends use its addresses, and no other.

use ferry_core::{finding::FindingId, network::Route};
use ferry_drivers::hypervisor::HostInfo as _;
use ferry_testkit::logs::expects_warning;

use crate::{
    moves::disk_of_its_own,
    site::{Job, Site, refusal},
};

/// From this address to 127.0.78.2. All of 127.0.0.0/8 is this machine.
pub fn route(source: [u8; 4]) -> Route {
    let network = "127.0.78.0/24".parse().expect("a subnet");
    Route { network, source: source.into(), destination: [127, 0, 78, 2].into() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_carrier_listens_and_connects_at_the_addresses_of_the_route() {
    let site = Site::new().await;
    // A disk migrates, too.
    let (old, vda, migrated) = disk_of_its_own(&site);
    let vm = site.run_vm("web01", |guest| guest.facts.files[0].place = old);
    let (disks, migrated) = (vec![vda], vec![migrated]);
    let job = Job { disks, migrated, route: Some(route([127, 0, 78, 1])), ..Job::new(1, 1, vm, "web01", 0) };
    let ready = site.prepare_destination(&job).await.expect("the destination is ready");
    assert!(ready.carrier.starts_with("127.0.78.2:"), "{ready:?}");
    assert_eq!(site.prepare_destination(&job).await.expect("the same answer"), ready);
    site.prepare_source(&job, ready).await.expect("the source is ready");
    site.perform(&job).await;
    site.follow(&job).await;
    site.finish(&job, false).await;
    site.assert_settled(vm, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_does_not_reach_its_route_uses_no_other_and_changes_nothing() {
    let site = Site::new().await;
    let vm = site.run_vm("web01", |guest| guest.facts.autostart = true);
    // No host has this address.
    let job = Job { route: Some(route([198, 51, 100, 1])), ..Job::new(1, 1, vm, "web01", 0) };
    let ready = site.prepare_destination(&job).await.expect("the destination is ready");
    assert_eq!(refusal(site.prepare_source(&job, ready.clone()).await), (409, FindingId::HostNetwork));
    assert!(!site.hosts[0].holds(vm) && site.hosts[0].autostarts(vm), "nothing is changed");

    // An agent of an earlier version listens elsewhere.
    let elsewhere = Job { route: Some(route([127, 0, 78, 1])), ..Job::new(1, 1, vm, "web01", 0) };
    let elsewhere = Job { session: job.session, secret: job.secret, ..elsewhere };
    let port = ready.carrier.rsplit(':').next().expect("a port");
    let ready = ferry_core::api::agent::DestinationReady { carrier: format!("127.0.0.1:{port}"), ..ready.clone() };
    expects_warning("and not in the migration network");
    let failed = site.prepare_source(&elsewhere, ready).await.expect_err("refused");
    assert!(ferry_core::error::chain(&failed).contains("127.0.78.0/24"), "{failed:?}");
    assert!(!site.hosts[0].holds(vm), "nothing is changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_reports_its_addresses() {
    let site = Site::new().await;
    let known = site.hosts[0].hypervisor.addresses();
    let facts = site.hosts[0].client.host().await.expect("facts");
    assert_eq!(facts.addresses, Some(known));
}
