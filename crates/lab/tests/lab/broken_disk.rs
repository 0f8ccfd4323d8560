//! A server whose database is on a failing disk.

use std::time::Duration;

use ferry_core::{api::server::JobView, migration::Phase};
use ferry_lab::{
    broken_disk::BrokenDisk,
    demo::start_ticker,
    ferry::{Ferry, server_state, start_server},
    guest::Ticker,
    observe::{Observer, judge},
    run::wait_for,
    warnings::AGENT_DIES,
};

const BOOT: Duration = Duration::from_secs(150);
const VERIFY: Duration = Duration::from_secs(180);
const SECONDS_20: Duration = Duration::from_secs(20);
const MINUTES_2: Duration = Duration::from_secs(120);

#[test]
fn a_move_waits_for_a_database_whose_disk_fails_and_then_goes_on() {
    let mut ferry = Ferry::up_bare(2, &[]).expect("hosts");
    ferry.warnings.expect_all(AGENT_DIES);
    ferry.warnings.expect_all(&["The job waits for the database", "The database failed"]);
    // No client knows the server yet: it starts again on the other disk.
    ferry.server.kill();
    let state = server_state(&ferry.lab);
    std::fs::remove_dir_all(&state).expect("removed");
    let disk = BrokenDisk::mount(&state).expect("a disk");
    ferry.server = start_server(&ferry.lab).expect("the server starts");
    ferry.enrol().expect("enrolled");
    ferry.add_share("vms").expect("a share");
    let observer = Observer::start(&ferry.lab).expect("observers");
    let ticker = Ticker { memory_mib: 128, pattern_mib: 12, dirty_mib_per_s: 1, ..Ticker::new("ticker", 101) };
    start_ticker(&ferry, &ticker, 0).expect("a guest");
    observer.wait_on("ticker", "kvm1", BOOT).expect("it boots");

    // So slow that the disk fails before the memory is sent.
    ferry.lab.hosts[0].set_link_rate(Some("20mbit")).expect("shaped");
    let job: JobView = ferry.json(&["vm", "migrate", "ticker", "--to", "kvm2"]).expect("accepted");
    wait_for("memory is on its way", MINUTES_2, || {
        ferry.job(job.id).ok()?.progress.filter(|progress| progress.sent.0 > 1 << 20)
    })
    .expect("it moves");
    disk.break_it().expect("broken");
    ferry.lab.hosts[0].set_link_rate(None).expect("unshaped");
    let waits = |job: &JobView| job.summary.contains("Waits for the server's database");
    let seen = ferry.wait_job(job.id, "it waits for the database", MINUTES_2, waits).expect("told");
    assert!(seen.summary.contains("disk I/O error"), "{}", seen.summary);
    let refused = ferry.ferry(&["vm", "migrate", "ticker", "--to", "kvm1"]).expect("answered");
    assert!(!refused.ok(), "what cannot be written down is not begun: {}", refused.out);
    assert!(waits(&ferry.job(job.id).expect("known")), "it waits as long as that is so");

    disk.mend().expect("mended");
    let ended = ferry.wait_job(job.id, "it ends", MINUTES_2, |job| job.phase.ended()).expect("ended");
    assert_eq!(ended.phase, Phase::Succeeded, "{ended:?}");
    observer.wait_on("ticker", "kvm2", SECONDS_20).expect("it runs there alone");
    observer.wait_verified("ticker", 1, VERIFY).expect("verified");
    judge(&observer.heard("ticker")).expect("no promise is broken");
}
