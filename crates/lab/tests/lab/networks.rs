//! Migration networks on real hosts with two networks each: where the bytes of a move really travel.

use std::time::Duration;

use ferry_core::{
    api::{
        problem::Problem,
        server::{Candidate, HostView, JobView},
    },
    finding::FindingId,
    migration::Phase,
};
use ferry_lab::{
    demo::start_ticker, ferry::Ferry, guest::Ticker, host::Host, observe::Observer, run::wait_for, warnings::MOVE_FAILS,
};

const BOOT: Duration = Duration::from_secs(90);
const SOON: Duration = Duration::from_secs(20);
const VERIFY: Duration = Duration::from_secs(120);

/// Waits until the server knows an address of the host.
fn wait_known(ferry: &Ferry, host: &Host, address: &str) {
    wait_for(&format!("{} reports {address}", host.name), SOON, || {
        let view: HostView = ferry.json(&["host", "show", &host.name]).ok()?;
        view.facts?.addresses?.iter().any(|known| known.address.to_string() == address).then_some(())
    })
    .expect("the agent reports it");
}

fn tried(ferry: &Ferry) -> Candidate {
    let tried: Vec<Candidate> = ferry.json(&["vm", "migrate", "ticker", "--to", "kvm2", "--dry-run"]).expect("judged");
    tried[0].clone()
}

#[test]
fn a_move_travels_in_its_migration_network_and_in_no_other() {
    let ticker = Ticker { memory_mib: 256, pattern_mib: 24, dirty_mib_per_s: 2, ..Ticker::new("ticker", 101) };
    let ferry = Ferry::up(2).expect("Ferry on two hosts");
    let observer = Observer::start(&ferry.lab).expect("observers");
    let [kvm1, kvm2] = &ferry.lab.hosts[..] else { panic!("two hosts") };
    for host in [kvm1, kvm2] {
        let address = host.join_second(&ferry.lab).expect("a second network");
        wait_known(&ferry, host, &address);
    }
    start_ticker(&ferry, &ticker, 0).expect("a guest");
    observer.wait_on("ticker", "kvm1", BOOT).expect("it boots");
    observer.wait_verified("ticker", 0, VERIFY).expect("verified");

    // A network that neither host is in: said beforehand, refused, and the VM is not touched.
    ferry.must(&["host", "set", "kvm1", "--migration-network", "10.99.0.0/24"]).expect("set");
    let refused = tried(&ferry);
    let found = refused.findings.iter().find(|finding| finding.id == FindingId::HostNetwork).expect("found");
    let message = found.message.to_string();
    for word in ["kvm1", "kvm2", "10.99.0.0/24", "10.77.0.1/24", "10.78.0.1/24", "10.77.0.2/24", "10.78.0.2/24"] {
        assert!(message.contains(word), "{word}: {message}");
    }
    assert!(refused.kind.is_none() && refused.route.is_none(), "{refused:#?}");
    let output = ferry.ferry(&["--json", "vm", "migrate", "ticker", "--to", "kvm2", "--wait"]).expect("run");
    let problem: Problem = serde_json::from_str(output.out.lines().last().unwrap_or_default()).expect("a problem");
    assert!(!output.ok() && problem.findings.iter().any(|finding| finding.id == FindingId::HostNetwork), "{problem:?}");
    observer.wait_on("ticker", "kvm1", SOON).expect("it runs on");

    // The second network, then the first: the second is used, although agents listen in the first.
    let networks = ["--migration-network", "10.78.0.0/24", "--migration-network", "10.77.0.0/24"];
    ferry.must(&[&["host", "set", "kvm1"][..], &networks].concat()).expect("set");
    let route = tried(&ferry).route.expect("a route");
    assert_eq!(route.to_string(), "10.78.0.0/24 (10.78.0.1 → 10.78.0.2)");

    // One that nothing answers in: the job says so, and the VM is not touched.
    ferry.warnings.expect_all(MOVE_FAILS);
    kvm2.run(&["nft", "add table inet shut; add chain inet shut in { type filter hook input priority 0; }; add rule inet shut in iif eth1 drop"]).expect("shut");
    let job: JobView = ferry.json(&["vm", "migrate", "ticker", "--to", "kvm2"]).expect("accepted");
    let job = ferry.wait_job(job.id, "the job ends", VERIFY, |job| job.phase.ended()).expect("ended");
    assert_eq!(job.phase, Phase::Failed, "{job:#?}");
    for word in ["kvm1 (10.78.0.1)", "kvm2 (10.78.0.2)", "10.78.0.0/24", "ping -I 10.78.0.1 10.78.0.2", "stays on kvm1"]
    {
        assert!(job.summary.contains(word), "{word}: {}", job.summary);
    }
    observer.wait_on("ticker", "kvm1", SOON).expect("it runs on");
    // As the fix says: the firewall lets it through.
    kvm2.run(&["nft", "delete table inet shut"]).expect("opened");

    let sent = |host: &Host| ["eth0", "eth1"].map(|interface| host.sent_bytes(interface).expect("counted"));
    let before = sent(kvm1);
    let job: JobView = ferry.json(&["vm", "migrate", "ticker", "--to", "kvm2", "--wait"]).expect("moved");
    let after = sent(kvm1);
    assert_eq!((job.phase, job.route), (Phase::Succeeded, Some(route)), "{job:#?}");
    let [first, second] = [after[0] - before[0], after[1] - before[1]];
    let wire = job.figures.expect("measured").wire.0;
    println!("on the wire {wire}, sent in the first network {first}, in the second {second}");
    assert!(wire > 24 << 20, "the pattern alone is 24 MiB: {wire}");
    assert!(second >= wire && first < wire / 4, "{first} and {second} of {wire}");
    observer.wait_on("ticker", "kvm2", SOON).expect("it runs there");

    // Without a list it travels where agents listen, as ever.
    ferry.must(&["host", "set", "kvm1", "--no-migration-network"]).expect("set");
    let before = sent(kvm2);
    let job: JobView = ferry.json(&["vm", "migrate", "ticker", "--to", "kvm1", "--wait"]).expect("moved");
    let after = sent(kvm2);
    assert_eq!((job.phase, job.route), (Phase::Succeeded, None), "{job:#?}");
    assert!(after[1] - before[1] < 1 << 20 && after[0] - before[0] > 24 << 20, "{before:?} {after:?}");
    observer.wait_verified("ticker", 1, VERIFY).expect("verified");
}
