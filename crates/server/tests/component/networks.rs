//! Migration networks: set for hosts, chosen for a move, shown before it and recorded after it; and moves that they prevent.

use ferry_core::{
    api::server::{HostView, MigrateVm, SetHost},
    finding::{Finding, FindingId},
    job::MoveKind,
    migration::Phase,
    network::{HostAddress, MigrationNetworks},
};
use ferry_testkit::logs::expects_warning;

use crate::{
    jobs::held_move,
    support::{Host, Lab, in_lab, refusal, wait_for},
};

fn networks(texts: &[&str]) -> MigrationNetworks {
    let all: Vec<_> = texts.iter().map(|text| text.parse().expect("a subnet")).collect();
    all.try_into().expect("few")
}

async fn set(lab: &Lab, host: &str, texts: &[&str]) -> HostView {
    let body = SetHost { migration_networks: Some(networks(texts)), ..SetHost::default() };
    lab.client.set_host(host, &body).await.expect("set")
}

/// Gives a host these addresses, and waits until the server knows them. All of 127.0.0.0/8 is this machine.
async fn give(lab: &Lab, host: &Host, addresses: &[&str]) {
    let one = |(number, text): (usize, &&str)| HostAddress {
        interface: format!("eth{number}"),
        address: text.parse().expect("an address"),
        prefix_bits: 24,
    };
    let addresses: Vec<_> = addresses.iter().enumerate().map(one).collect();
    host.hypervisor.set_addresses(addresses.clone());
    wait_for("the server knows the addresses", async || {
        let facts = lab.client.host(host.name).await.expect("known").facts;
        facts.is_some_and(|facts| facts.addresses.as_ref() == Some(&addresses))
    })
    .await;
}

fn to_kvm2() -> MigrateVm {
    MigrateVm { destination: "kvm2".into(), ..MigrateVm::default() }
}

fn network_finding(findings: &[Finding]) -> &Finding {
    findings.iter().find(|finding| finding.id == FindingId::HostNetwork).expect("found")
}

#[test]
fn a_move_travels_in_the_first_migration_network_of_both_hosts() {
    in_lab(async |lab| {
        let (kvm1, kvm2, _) = lab.two_hosts().await;
        give(lab, &kvm1, &["127.0.77.1", "127.0.78.1"]).await;
        give(lab, &kvm2, &["127.0.77.2", "127.0.78.2"]).await;
        assert_eq!(lab.client.try_migrate("web01", &to_kvm2()).await.expect("judged").route, None, "without lists");

        set(lab, "kvm1", &["127.0.99.0/24", "127.0.78.0/24", "127.0.77.0/24"]).await;
        lab.stop_server().await;
        lab.start_server().await;
        let shown = lab.client.host("kvm1").await.expect("shown").migration_networks;
        assert_eq!(shown, networks(&["127.0.99.0/24", "127.0.78.0/24", "127.0.77.0/24"]), "also after a restart");
        give(lab, &kvm2, &["127.0.77.2", "127.0.78.2"]).await;
        let tried = lab.client.try_migrate("web01", &to_kvm2()).await.expect("judged");
        let route = tried.route.expect("a route");
        assert_eq!(route.to_string(), "127.0.78.0/24 (127.0.78.1 → 127.0.78.2)");
        assert_eq!((tried.kind, tried.findings), (Some(MoveKind::Live), Vec::new()));
        let job = lab.client.migrate("web01", &to_kvm2()).await.expect("accepted");
        let job = lab.ends(&job, Phase::Succeeded).await;
        assert_eq!(job.route, Some(route), "what was tried is what was done");

        // The destination's list counts, too; and the way back has the other order.
        set(lab, "kvm1", &["127.0.77.0/24"]).await;
        set(lab, "kvm2", &["127.0.78.0/24", "127.0.77.0/24"]).await;
        let back = MigrateVm { destination: "kvm1".into(), ..MigrateVm::default() };
        let job = lab.client.migrate("web01", &back).await.expect("accepted");
        let job = lab.ends(&job, Phase::Succeeded).await;
        assert_eq!(job.route.expect("a route").to_string(), "127.0.77.0/24 (127.0.77.2 → 127.0.77.1)");
        let records = lab.client.audit(None, None).await.expect("answered").records;
        let used: Vec<String> = records.iter().map(|record| record.network.expect("one").to_string()).collect();
        assert_eq!(used, ["127.0.78.0/24", "127.0.77.0/24"]);

        assert!(set(lab, "kvm1", &[]).await.migration_networks.is_empty(), "an empty list takes it away");
        let limits = SetHost { live_limit: Some(3), ..SetHost::default() };
        let kept = lab.client.set_host("kvm2", &limits).await.expect("set").migration_networks;
        assert_eq!(kept, networks(&["127.0.78.0/24", "127.0.77.0/24"]), "what is not named stays");
    });
}

#[test]
fn a_move_that_no_migration_network_carries_is_refused_until_its_fix_is_followed() {
    in_lab(async |lab| {
        let (kvm1, kvm2, vm) = lab.two_hosts().await;
        give(lab, &kvm1, &["127.0.77.1", "127.0.78.1"]).await;
        give(lab, &kvm2, &["127.0.77.2"]).await;
        set(lab, "kvm1", &["127.0.78.0/24"]).await;
        let tried = lab.client.try_migrate("web01", &to_kvm2()).await.expect("judged");
        let found = network_finding(&tried.findings);
        let message = found.message.to_string();
        for word in ["kvm1", "kvm2", "127.0.78.0/24", "127.0.77.1/24", "127.0.78.1/24", "127.0.77.2/24"] {
            assert!(message.contains(word), "{word}: {message}");
        }
        assert_eq!((tried.kind, tried.route), (None, None));
        let listed = lab.client.candidates("web01").await.expect("judged");
        let other = listed.iter().find(|candidate| candidate.host == "kvm2").expect("listed");
        assert_eq!(network_finding(&other.findings), found, "in the list of hosts, too");
        assert_eq!(refusal(lab.migrate("web01", "kvm2").await), (409, vec![FindingId::HostNetwork]));
        assert_eq!(lab.running_on(vm), ["kvm1".to_owned()].into());

        // What is seen of a host alone is said when it is shown, with a fix that helps.
        let of_kvm2 = async |texts: &[&str]| set(lab, "kvm2", texts).await.facts.expect("known").findings;
        let shown = of_kvm2(&["127.0.99.0/24"]).await;
        let alone = network_finding(&shown);
        assert!(alone.message.to_string().contains("127.0.77.2/24"), "{alone:?}");
        assert!(alone.fix.to_string().contains("ferry host set kvm2 --no-migration-network"), "{alone:?}");
        assert_eq!(of_kvm2(&["127.0.77.0/24"]).await, [], "another network");
        assert_eq!(of_kvm2(&[]).await, [], "none");

        // The fix of the move: another network, or none.
        let fix = found.fix.to_string();
        assert!(fix.contains("--migration-network SUBNET") && fix.contains("--no-migration-network"), "{fix}");
        set(lab, "kvm1", &["127.0.77.0/24"]).await;
        let tried = lab.client.try_migrate("web01", &to_kvm2()).await.expect("judged");
        assert_eq!((tried.kind, tried.findings), (Some(MoveKind::Live), Vec::new()));
        set(lab, "kvm1", &["127.0.78.0/24"]).await;
        set(lab, "kvm1", &[]).await;
        let job = lab.migrate("web01", "kvm2").await.expect("accepted");
        assert_eq!(lab.ends(&job, Phase::Succeeded).await.route, None);
    });
}

#[test]
fn a_network_that_connects_nobody_fails_the_job_before_the_vm_is_touched() {
    in_lab(async |lab| {
        let (kvm1, kvm2, vm) = lab.two_hosts().await;
        // No host has this address.
        give(lab, &kvm1, &["198.51.100.1"]).await;
        give(lab, &kvm2, &["127.0.78.2"]).await;
        set(lab, "kvm1", &["0.0.0.0/0"]).await;
        let job = lab.migrate("web01", "kvm2").await.expect("accepted");
        let job = lab.ends(&job, Phase::Failed).await;
        for word in ["kvm1 (198.51.100.1)", "kvm2 (127.0.78.2)", "0.0.0.0/0", "ping -I 198.51.100.1 127.0.78.2"] {
            assert!(job.summary.contains(word), "{word}: {}", job.summary);
        }
        assert_eq!(lab.running_on(vm), ["kvm1".to_owned()].into());
        assert_eq!((kvm1.orphans(), kvm2.orphans()), (Vec::new(), Vec::new()));

        // The destination cannot listen there.
        give(lab, &kvm1, &["127.0.78.1"]).await;
        give(lab, &kvm2, &["198.51.100.2"]).await;
        expects_warning("A request failed");
        let job = lab.migrate("web01", "kvm2").await.expect("accepted");
        let job = lab.ends(&job, Phase::Failed).await;
        assert!(job.summary.contains("kvm2") && job.summary.contains("198.51.100.2"), "{}", job.summary);
        assert_eq!(lab.running_on(vm), ["kvm1".to_owned()].into());
        assert_eq!((kvm1.orphans(), kvm2.orphans()), (Vec::new(), Vec::new()));

        // As the fix says: `ping` is answered. The same job then goes on.
        give(lab, &kvm2, &["127.0.78.2"]).await;
        let job = lab.client.restart_job(job.id).await.expect("restarted");
        let job = lab.ends(&job, Phase::Succeeded).await;
        assert_eq!(job.route.expect("a route").to_string(), "0.0.0.0/0 (127.0.78.1 → 127.0.78.2)");
    });
}

#[test]
fn a_vm_that_is_shut_off_travels_in_the_same_networks() {
    in_lab(async |lab| {
        let (kvm1, kvm2, _) = lab.two_hosts().await;
        lab.define(&kvm1, "db", |guest| guest.facts.autostart = true).await;
        let offline = MigrateVm { offline: true, ..to_kvm2() };
        give(lab, &kvm1, &["127.0.77.1", "198.51.100.1"]).await;
        give(lab, &kvm2, &["127.0.77.2", "127.0.78.2"]).await;
        set(lab, "kvm2", &["127.0.99.0/24"]).await;
        let tried = lab.client.try_migrate("db", &offline).await.expect("judged");
        assert_eq!(network_finding(&tried.findings).object, "kvm2");
        assert_eq!(refusal(lab.client.migrate("db", &offline).await), (409, vec![FindingId::HostNetwork]));

        set(lab, "kvm2", &["127.0.77.0/24"]).await;
        give(lab, &kvm1, &["198.51.100.1"]).await;
        set(lab, "kvm2", &["0.0.0.0/0"]).await;
        let job = lab.client.migrate("db", &offline).await.expect("accepted");
        let job = lab.ends(&job, Phase::Failed).await;
        assert!(
            job.summary.contains("kvm1 (198.51.100.1)") && job.summary.contains("stays on kvm1"),
            "{}",
            job.summary
        );
        assert_eq!((kvm1.orphans(), kvm2.orphans()), (Vec::new(), Vec::new()));

        give(lab, &kvm1, &["127.0.77.1"]).await;
        let tried = lab.client.try_migrate("db", &offline).await.expect("judged");
        assert_eq!(tried.route.expect("a route").to_string(), "0.0.0.0/0 (127.0.77.1 → 127.0.77.2)");
        let job = lab.client.migrate("db", &offline).await.expect("accepted");
        assert_eq!(lab.ends(&job, Phase::Succeeded).await.route, tried.route);
    });
}

#[test]
fn a_job_that_waited_uses_the_networks_that_hosts_are_set_to_when_it_starts() {
    in_lab(async |lab| {
        let (kvm1, kvm2, vm) = lab.two_hosts().await;
        give(lab, &kvm1, &["127.0.77.1"]).await;
        give(lab, &kvm2, &["127.0.77.2"]).await;
        lab.run(&kvm1, "db", |_| {}).await;
        lab.client.set_host("kvm1", &SetHost { live_limit: Some(1), ..SetHost::default() }).await.expect("set");
        let (first, hold) = held_move(lab, &kvm1, "db", "kvm2").await;
        let waits = lab.migrate("web01", "kvm2").await.expect("accepted");
        lab.wait_for_job(waits.id, |view| view.phase == Phase::Queued).await;
        set(lab, "kvm1", &["127.0.99.0/24"]).await;
        hold.release();
        lab.ends(&first, Phase::Succeeded).await;
        let waits = lab.ends(&waits, Phase::Failed).await;
        assert!(waits.summary.contains("127.0.99.0/24") && waits.route.is_none(), "{waits:#?}");
        assert!(lab.running_on(vm).contains("kvm1"));
        assert_eq!((kvm1.orphans(), kvm2.orphans()), (Vec::new(), Vec::new()));
    });
}
