//! Live moves between two agents: whoever fails, the VM runs on exactly one host.

use std::{path::PathBuf, sync::Arc, time::Duration};

use crate::site::{Job, Site, reached, refusal, wait_until};
use ferry_agent::{Agent, http::metrics, setup::release_hold};
use ferry_core::{
    api::agent::{ConfirmRequest, IncomingDisk, Report, Stage, Verb},
    error::chain,
    files::DiskMove,
    finding::FindingId,
    id::VmId,
    job::OnStall,
    location::Location,
    migration::{Presence, Verdict},
    units::ByteCount,
};
use ferry_drivers::hypervisor::{Domains as _, Migration as _, Power as _, fake::Point};
use ferry_testkit::{logs::expects_warning, metrics::Scraped};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// The guest dirties twice what is sent meanwhile.
const NEVER_CONVERGES: f64 = 2.0;

/// A disk of 1 MiB in a file of the first host: that file, and how it moves to the second.
pub fn disk_of_its_own(site: &Site) -> (PathBuf, IncomingDisk, DiskMove) {
    let folder = &site.hosts[0].config.storage_roots[0];
    let old = folder.join("old.raw");
    std::fs::create_dir_all(folder).expect("made");
    std::fs::write(&old, vec![7; 1 << 20]).expect("written");
    let (vda, _) = site.hosts[1].incoming_disk("vda");
    let host = (*site.hosts[0].agent.enrolment.watch_host().borrow()).expect("it is enrolled");
    let from = Location::Local { host, path: old.display().to_string() };
    let migrated = DiskMove { device: "vda".into(), from, real: None, to: vda.to.clone(), format: vda.format };
    (old, IncomingDisk { virtual_size: ByteCount::mib(1), ..vda }, migrated)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_vm_moves_there_and_back_and_its_autostart_follows() {
    let site = Site::new().await;
    let vm = site.run_vm("web01", |guest| guest.facts.autostart = true);
    for (number, from) in [(1, 0), (2, 1)] {
        let job = Job::new(number, 1, vm, "web01", from);
        site.prepare(&job).await;
        let (source, destination) = (&site.hosts[job.from], &site.hosts[job.to]);
        assert!(source.holds(vm) && !destination.holds(vm), "held where it leaves");
        assert!(!source.autostarts(vm));
        site.perform(&job).await;
        let (sent, received) = site.follow(&job).await;
        assert!(sent.finish_delivered && received.finish_delivered);
        assert_eq!((sent.error, received.error), (None, None));
        let facts = destination.hypervisor.vm(vm).expect("reachable").expect("there");
        assert_eq!(facts.files[0].place, destination.path("web01.raw"), "paths are the destination's");
        site.finish(&job, true).await;
        assert!(destination.autostarts(vm));
        site.assert_settled(vm, job.to);
    }
    assert_eq!(site.world.history(vm).len(), 5, "one start and two moves: {:?}", site.world.history(vm));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_the_version_before_moves_a_running_vm() {
    let site = Site::new().await;
    let vm = site.run_vm("web01", |_| {});
    let job = Job::new(1, 1, vm, "web01", 0);
    let (of, nothing) = ("migrations/1/1", serde_json::Value::Null);
    site.version_1(1, "PUT", &format!("vms/{vm}/arrivals/check"), json!([])).await;
    let body = json!(site.destination_body(&job));
    let ready = site.version_1(1, "PUT", &format!("{of}/destination"), body).await;
    let body = json!(site.source_body(&job, serde_json::from_value(ready).expect("ready")));
    let ready = site.version_1(0, "PUT", &format!("{of}/source"), body).await;
    assert_eq!(ready, json!({"autostart": false}));
    let begun = site.version_1(0, "PUT", &format!("{of}/perform"), nothing.clone()).await;
    assert_eq!((&begun["job"], &begun["generation"], &begun["role"]), (&json!(1), &json!(1), &json!("source")));
    site.version_1_until(0, of, "delivered").await;
    site.version_1_until(1, of, "resumed").await;
    for host in [1, 0] {
        let body = json!({"autostart": false, "keep_source": false});
        assert_eq!(site.version_1(host, "PUT", &format!("{of}/confirm"), body).await["stage"], "confirmed");
        site.version_1(host, "DELETE", of, nothing.clone()).await;
    }
    site.assert_settled(vm, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn figures_tell_what_the_move_took() {
    let site = Site::new().await;
    let vm = site.run_vm("web01", |_| {});
    let job = Job::new(1, 1, vm, "web01", 0);
    site.prepare(&job).await;
    // The guest stands still for so long at least.
    let stopped = Arc::new(site.hosts[0].hypervisor.faults().hold(Point::Stopped));
    site.perform(&job).await;
    reached(&stopped).await;
    let stood = std::time::Instant::now();
    assert_eq!(site.presences(&job), (Presence::HandedOver, Presence::Receiving));
    let before = site.hosts[0].client.report(job.attempt, 0, Duration::ZERO).await.expect("a report");
    assert_eq!(before.stage, Stage::Performing);
    stopped.release();
    site.follow(&job).await;
    let at_most = stood.elapsed().as_millis() as u64 + 2_000;
    site.finish(&job, false).await;
    let figures = {
        // The reports after the end hold all figures; they are gone with the release, so a second move tells them.
        let job = Job::new(2, 1, vm, "web01", 1);
        site.prepare(&job).await;
        site.perform(&job).await;
        site.follow(&job).await;
        let (source, destination) = (&site.hosts[1].client, &site.hosts[0].client);
        let received = destination
            .ask(job.attempt, Verb::Confirm(ConfirmRequest { autostart: false, keep_source: false }))
            .await
            .expect("confirmed");
        let sent = source
            .ask(job.attempt, Verb::Confirm(ConfirmRequest { autostart: false, keep_source: false }))
            .await
            .expect("confirmed");
        (sent.figures, received.figures)
    };
    assert!(figures.0.iterations >= 2 && figures.0.sent.0 >= 4 << 20, "{figures:?}");
    assert!(figures.0.wire.0 > figures.0.sent.0, "{figures:?}");
    assert!(figures.1.downtime_ms < at_most, "{figures:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_carriers_have_carried_is_told_to_prometheus_by_stage() {
    let site = Site::new().await;
    let (old, vda, migrated) = disk_of_its_own(&site);
    let vm = site.run_vm("web01", |guest| guest.facts.files[0].place = old);
    let job = Job { disks: vec![vda], migrated: vec![migrated], ..Job::new(1, 1, vm, "web01", 0) };
    site.prepare(&job).await;
    site.perform(&job).await;
    site.follow(&job).await;
    site.finish(&job, false).await;
    for (host, role) in [(0, "source"), (1, "destination")] {
        let metrics = scraped(&site.hosts[host].agent).await;
        let value = |channel: &str, stage: &str| {
            let labels = format!("role=\"{role}\",channel=\"{channel}\",stage=\"{stage}\"");
            metrics.value(&format!("ferry_agent_carried_bytes_total{{{labels}}}"))
        };
        for (channel, mib) in [("memory", 4), ("disk", 1)] {
            let (plain, wire) = (value(channel, "plain"), value(channel, "wire"));
            assert!(plain >= f64::from(mib << 20) && wire > plain, "{role} {channel}: {metrics:?}");
        }
        let changed = metrics.value(&format!("ferry_agent_changed_blocks_total{{role=\"{role}\"}}"));
        assert_eq!((metrics.value("ferry_agent_carriers"), changed), (0.0, 0.0), "{metrics:?}");
    }
    site.assert_settled(vm, 1);
}

/// What an agent tells Prometheus.
async fn scraped(agent: &Arc<Agent>) -> Scraped {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let mut stream = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("it listens");
    let serving = tokio::spawn(metrics::serve(Arc::clone(agent), listener));
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n\r\n").await.expect("asked");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answered");
    serving.abort();
    let (head, text) = answer.split_once("\r\n\r\n").expect("a head and a text");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    Scraped::read(text)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_vm_stays_at_the_source_when_the_finish_reply_is_lost() {
    expects_warning("libvirt's migrate call failed");
    let site = Site::new().await;
    let vm = site.run_vm("web01", |guest| guest.facts.autostart = true);
    let job = Job::new(1, 1, vm, "web01", 0);
    site.hosts[1].hypervisor.faults().cut(Point::FinishReply);
    site.prepare(&job).await;
    site.perform(&job).await;
    let (source, destination) = site.follow(&job).await;
    assert_eq!(source.stage, Stage::Failed);
    assert!(source.error.is_some_and(|error| error.contains("the VM runs at the source")));
    assert!(!source.finish_delivered && !destination.finish_delivered);
    assert_eq!(site.presences(&job), (Presence::Running, Presence::Arrived), "its copy stays paused");
    assert_eq!(site.verdict(&job).await, Verdict::Source);
    site.undo(&job).await;
    assert!(site.hosts[0].autostarts(vm));
    site.assert_settled(vm, 0);
    move_again(&site, 2, &job).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_whose_disks_the_destination_does_not_get_runs_on_at_the_source() {
    expects_warning("The VM is not taken over; the source keeps it");
    expects_warning("libvirt's migrate call failed");
    for locks_hold in [false, true] {
        let site = Site::new().await;
        let vm = site.run_vm("web01", |guest| guest.facts.autostart = true);
        let job = Job::new(1, 1, vm, "web01", 0);
        site.world.set_locks_hold(locks_hold);
        site.world.set_locked_out("two", true);
        site.prepare(&job).await;
        site.perform(&job).await;
        let (source, destination) = site.follow(&job).await;
        assert_eq!(source.stage, Stage::Failed);
        assert!(!source.finish_delivered && !destination.finish_delivered);
        let error = source.error.expect("it says why");
        let path = site.hosts[1].path("web01.raw").display().to_string();
        for words in ["vda", &path, "Failed to get \"write\" lock", "fuser", "the VM runs at the source"] {
            assert!(error.contains(words), "{words}: {error}");
        }
        assert_eq!(site.presences(&job), (Presence::Running, Presence::Absent), "its copy is gone");
        assert_eq!(site.verdict(&job).await, Verdict::Source);
        site.undo(&job).await;
        assert!(site.hosts[0].autostarts(vm));
        site.assert_settled(vm, 0);
        site.world.set_locked_out("two", false);
        move_again(&site, 2, &job).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_is_handed_over_when_it_cannot_be_seen_whether_its_disks_are_there() {
    expects_warning("It cannot be seen whether the VM has its disks here");
    let site = Site::new().await;
    let vm = site.run_vm("web01", |_| {});
    let job = Job::new(1, 1, vm, "web01", 0);
    site.hosts[1].hypervisor.faults().fail(Point::EnsureDisks, "libvirt is being restarted");
    site.prepare(&job).await;
    site.perform(&job).await;
    let (source, destination) = site.follow(&job).await;
    assert_eq!((source.stage, destination.stage), (Stage::Delivered, Stage::Resumed));
    site.finish(&job, false).await;
    site.assert_settled(vm, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_does_not_see_its_disks_in_time_leaves_the_vm_at_the_source() {
    expects_warning("The VM is not taken over; the source keeps it");
    expects_warning("libvirt's migrate call failed");
    let site = Site::new().await;
    let vm = site.run_vm("web01", |_| {});
    let job = Job::new(1, 1, vm, "web01", 0);
    let checking = site.hosts[1].hypervisor.faults().hold(Point::EnsureDisks);
    site.prepare(&job).await;
    site.perform(&job).await;
    let (source, _) = site.follow(&job).await;
    assert_eq!(source.stage, Stage::Failed);
    assert!(source.error.is_some_and(|error| error.contains("not seen to have its disks")));
    assert_eq!(site.presences(&job), (Presence::Running, Presence::Absent));
    checking.release();
    site.undo(&job).await;
    site.assert_settled(vm, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_dies_while_the_destination_looks_for_its_disks_the_vm_runs_on_at_the_source() {
    for locked_out in [false, true] {
        for point in [Point::EnsureDisks, Point::Destroy] {
            // A copy that has its disks is not destroyed before the undo.
            if point == Point::Destroy && !locked_out {
                continue;
            }
            for dying in [0, 1] {
                let mut site = Site::new().await;
                let vm = site.run_vm("web01", |_| {});
                let job = Job::new(1, 1, vm, "web01", 0);
                // Whatever the other copy has of the disks then.
                site.world.set_locks_hold(true);
                site.world.set_locked_out("two", locked_out);
                let held = Arc::new(site.hosts[1].hypervisor.faults().hold(point));
                site.prepare(&job).await;
                site.perform(&job).await;
                reached(&held).await;
                site.hosts[dying].kill_carriers();
                site.wait_stage(&job, 0, &[Stage::Failed]).await;
                wait_until("the source's libvirt has heard of it", || {
                    matches!(site.presences(&job).0, Presence::Running | Presence::Stopped)
                })
                .await;
                held.release();
                assert_eq!(site.verdict(&job).await, Verdict::Source, "{point:?} {dying}");
                site.undo(&job).await;
                wait_until("it runs at the source", || site.presences(&job).0 == Presence::Running).await;
                site.assert_settled(vm, 0);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_vm_stays_at_the_source_when_the_destination_refuses() {
    expects_warning("libvirt's migrate call failed");
    let site = Site::new().await;
    let vm = site.run_vm("web01", |_| {});
    let job = Job::new(1, 1, vm, "web01", 0);
    site.hosts[1].hypervisor.faults().fail(Point::Prepare, "no room");
    site.prepare(&job).await;
    site.perform(&job).await;
    let (source, _) = site.follow(&job).await;
    assert_eq!(source.stage, Stage::Failed);
    assert!(source.error.is_some_and(|error| error.contains("no room")));
    assert_eq!(site.verdict(&job).await, Verdict::Source);
    site.undo(&job).await;
    site.assert_settled(vm, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aborted_move_leaves_everything_as_it_was() {
    expects_warning("libvirt's migrate call failed");
    let site = Site::new().await;
    let vm = site.run_vm("web01", |guest| {
        guest.facts.autostart = true;
        guest.dirty_ratio = NEVER_CONVERGES;
    });
    let job = Job::new(1, 1, vm, "web01", 0);
    site.prepare(&job).await;
    site.perform(&job).await;
    wait_until("memory is passed over again", || {
        let stats = site.hosts[0].hypervisor.migration_stats(vm).expect("reachable");
        stats.is_some_and(|stats| stats.iteration > 1)
    })
    .await;
    let report = site.hosts[0].client.ask(job.attempt, Verb::Abort).await.expect("aborted");
    assert_eq!((report.stage, report.presence), (Stage::Aborted, Presence::Running));
    assert_eq!(site.hosts[0].hypervisor.migration_stats(vm).expect("reachable"), None);
    assert!(site.hosts[0].autostarts(vm) && !site.hosts[0].holds(vm));
    site.undo(&job).await;
    site.assert_settled(vm, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abort_before_the_move_began_keeps_it_from_beginning() {
    expects_warning(
        "The control connection from the source is gone; a complete copy stays paused here until it is known who has it",
    );
    let site = Site::new().await;
    let vm = site.run_vm("web01", |_| {});
    let job = Job::new(1, 1, vm, "web01", 0);
    site.prepare(&job).await;
    site.hosts[0].client.ask(job.attempt, Verb::Abort).await.expect("aborted");
    site.perform(&job).await;
    let (source, _) = site.follow(&job).await;
    assert_eq!((source.stage, source.presence), (Stage::Aborted, Presence::Running));
    site.undo(&job).await;
    site.assert_settled(vm, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_was_handed_over_cannot_be_aborted() {
    let site = Site::new().await;
    let vm = site.run_vm("web01", |_| {});
    let job = Job::new(1, 1, vm, "web01", 0);
    site.prepare(&job).await;
    site.perform(&job).await;
    site.follow(&job).await;
    for host in &site.hosts {
        assert_eq!(refusal(host.client.ask(job.attempt, Verb::Abort).await), (409, FindingId::JobPastPivot));
    }
    site.finish(&job, false).await;
    site.assert_settled(vm, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_takes_too_long_ends_with_the_vm_at_the_source() {
    expects_warning("The move is ended");
    expects_warning("libvirt's migrate call failed");
    let site = Site::new().await;
    let vm = site.run_vm("web01", |guest| guest.dirty_ratio = NEVER_CONVERGES);
    let job = Job { timeout_ms: 1, ..Job::new(1, 1, vm, "web01", 0) };
    site.prepare(&job).await;
    site.perform(&job).await;
    let (source, _) = site.follow(&job).await;
    assert_eq!((source.stage, source.presence), (Stage::Failed, Presence::Running));
    assert!(source.error.is_some_and(|error| error.contains("longer than its limit")));
    site.undo(&job).await;
    site.assert_settled(vm, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_writes_too_fast_is_slowed_or_may_stand_still_for_longer() {
    expects_warning("The move takes too long: the VM may stand still for longer");
    for (on_stall, timeout_ms) in [(OnStall::Autoconverge, 60_000), (OnStall::Pause, 1)] {
        let site = Site::new().await;
        let vm = site.run_vm("web01", |guest| guest.dirty_ratio = NEVER_CONVERGES);
        let job = Job { timeout_ms, on_stall, ..Job::new(1, 1, vm, "web01", 0) };
        site.prepare(&job).await;
        site.perform(&job).await;
        let (source, destination) = site.follow(&job).await;
        assert_eq!((source.stage, destination.stage), (Stage::Delivered, Stage::Resumed), "{on_stall:?}");
        site.finish(&job, false).await;
        site.assert_settled(vm, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_whose_disks_are_behind_is_not_handed_over_until_they_are_not() {
    expects_warning("The move is ended");
    expects_warning("libvirt's migrate call failed");
    // The move that is to run into its limit is observed before: on a busy machine that takes longer than a second.
    for (catches_up, timeout_ms) in [(false, 8_000), (true, 60_000)] {
        let site = Site::new().await;
        let source = &site.hosts[0].hypervisor;
        let (old, vda, migrated) = disk_of_its_own(&site);
        let vm = site.run_vm("web01", |guest| {
            guest.facts.files[0].place = old.clone();
            // Given many passes, one that writes no more than is sent would fit into any limit.
            let dirty_ratio = if catches_up { 1.0 } else { NEVER_CONVERGES };
            (guest.resident, guest.dirty_ratio) = (ByteCount::mib(16), dirty_ratio);
        });
        // All memory but what is sent in the first pass fits into this.
        let limit_ms = 9_000;
        let (disks, migrated) = (vec![vda], vec![migrated]);
        let job = Job { timeout_ms, disks, migrated, downtime_limit_ms: limit_ms, ..Job::new(1, 1, vm, "web01", 0) };
        let pass = Arc::new(source.faults().hold(Point::Pass(2)));
        site.prepare(&job).await;
        site.perform(&job).await;
        reached(&pass).await;
        source.write_to_disks(vm, ByteCount(1 << 50));
        wait_until("disks leave nothing to memory", || source.downtime_limit(vm) == Some(Duration::from_millis(1)))
            .await;
        let report = site.wait_report(&job, 0, |report| {
            report.progress.and_then(|progress| progress.downtime_ms).is_some_and(|ms| ms > 60_000)
        });
        assert_eq!(report.await.stage, Stage::Performing);
        if catches_up {
            source.write_to_disks(vm, ByteCount(0));
            let all = Some(Duration::from_millis(u64::from(limit_ms)));
            wait_until("disks leave all to memory", || source.downtime_limit(vm) == all).await;
        }
        pass.release();
        let (source, destination) = site.follow(&job).await;
        if catches_up {
            assert_eq!((source.stage, destination.stage), (Stage::Delivered, Stage::Resumed));
            site.finish(&job, false).await;
        } else {
            assert_eq!(source.stage, Stage::Failed);
            let error = source.error.expect("told");
            assert!(error.contains("writes to its disks") && error.contains("1.0 PiB"), "{error}");
            site.undo(&job).await;
        }
        site.assert_settled(vm, usize::from(catches_up));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_was_shut_down_during_its_move_has_its_autostart_again() {
    expects_warning("libvirt's migrate call failed");
    let site = Site::new().await;
    let vm = site.run_vm("web01", |guest| guest.facts.autostart = true);
    let job = Job::new(1, 1, vm, "web01", 0);
    let pass = Arc::new(site.hosts[0].hypervisor.faults().hold(Point::Pass(2)));
    site.prepare(&job).await;
    site.perform(&job).await;
    reached(&pass).await;
    site.hosts[0].hypervisor.destroy(vm).expect("it ends");
    pass.release();
    site.wait_stage(&job, 0, &[Stage::Failed]).await;
    assert_eq!(site.verdict(&job).await, Verdict::SourceUnlessElsewhere);
    site.undo(&job).await;
    assert!(site.hosts[0].autostarts(vm) && !site.hosts[0].holds(vm));
    assert!(!site.hosts[1].knows(vm));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_is_not_released_by_hand_while_libvirt_moves_the_vm() {
    let site = Site::new().await;
    let vm = site.run_vm("web01", |_| {});
    let job = Job::new(1, 1, vm, "web01", 0);
    let source = &site.hosts[0];
    let pass = Arc::new(source.hypervisor.faults().hold(Point::Pass(2)));
    site.prepare(&job).await;
    site.perform(&job).await;
    reached(&pass).await;
    let refused = release_hold(&source.config, &*source.hypervisor, "web01").expect_err("it moves").to_string();
    assert!(refused.contains("web01") && source.holds(vm), "{refused}");
    pass.release();
    site.follow(&job).await;
    site.finish(&job, false).await;
    site.assert_settled(vm, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_gate_refuses_fails_the_move_in_its_own_words() {
    expects_warning("A call of the source's libvirtd is refused");
    expects_warning("libvirt's migrate call failed");
    let site = Site::new().await;
    let vm = site.run_vm("web01", |_| {});
    // The destination is told of a VM of another name.
    let job = Job::new(1, 1, vm, "web02", 0);
    site.prepare(&job).await;
    site.perform(&job).await;
    let (source, _) = site.follow(&job).await;
    let error = source.error.expect("why");
    assert!(source.stage == Stage::Failed && error.contains("refused libvirt call"), "{:?}: {error}", source.stage);
    assert!(error.contains("web01"), "it says what is wrong: {error}");
    assert!(!error.contains("channel"), "nothing broke: {error}");
    site.undo(&job).await;
    site.assert_settled(vm, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_begun_is_done_also_when_whoever_asked_is_gone() {
    let site = Site::new().await;
    let vm = site.run_vm("web01", |_| {});
    let job = Job::new(1, 1, vm, "web01", 0);
    site.prepare(&job).await;
    site.perform(&job).await;
    site.follow(&job).await;
    let request = ConfirmRequest { autostart: false, keep_source: false };
    site.hosts[1].client.ask(job.attempt, Verb::Confirm(request)).await.expect("confirmed");
    let undefine = Arc::new(site.hosts[0].hypervisor.faults().hold(Point::Undefine));
    let asked = tokio::spawn({
        let (client, attempt) = (site.hosts[0].client.clone(), job.attempt);
        async move { client.ask(attempt, Verb::Confirm(request)).await }
    });
    reached(&undefine).await;
    asked.abort();
    assert!(asked.await.is_err(), "it has gone");
    // The agent has time to see that.
    for _ in 0..20 {
        site.hosts[0].client.report(job.attempt, 0, Duration::ZERO).await.expect("a report");
    }
    undefine.release();
    site.wait_stage(&job, 0, &[Stage::Confirmed]).await;
    site.finish(&job, false).await;
    site.assert_settled(vm, 1);
}

#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_cannot_be_made_ready_leaves_no_file_and_keeps_unfinished_copies() {
    expects_warning(r#"A request failed title="A test made it fail at agent-make-arrival"#);
    expects_warning(r#"A request failed title="The carrier could not make ready: it was made to fail"#);
    let site = Site::new().await;
    let host = &site.hosts[1];
    let vm = VmId(uuid::Uuid::from_u128(7));
    let (vda, first) = host.incoming_disk("vda");
    let (vdb, second) = host.incoming_disk("vdb");
    let folder = first.parent().expect("a folder").to_owned();
    let is_kept = || {
        let names = std::fs::read_dir(&folder).expect("there").map(|entry| entry.expect("read").path());
        names.into_iter().any(|path| path.extension().is_some_and(|ending| ending == "ferry-seed"))
    };
    let disks = vec![vda, vdb];
    let job = |number| Job { disks: disks.clone(), ..Job::new(number, 1, vm, "db", 0) };
    let taken_back = |what: &str| {
        assert!(is_kept() && !first.exists() && !second.exists(), "{what}");
        assert_eq!(host.orphans(), Vec::<std::path::PathBuf>::new(), "{what}");
    };
    site.prepare_destination(&job(1)).await.expect("ready");
    std::fs::write(&first, vec![7; 6 << 20]).expect("a part came");
    site.undo_destination_only(&job(1)).await;
    taken_back("the first attempt");
    for (number, point) in [(2, "agent-make-arrival"), (3, "carrier-after-prepare")] {
        // The second disk cannot be made; the carrier cannot begin.
        fail::cfg(point, if number == 2 { "1*off->1*return" } else { "1*return" }).expect("a failpoint");
        site.prepare_destination(&job(number)).await.expect_err("it was made to fail");
        fail::remove(point);
        taken_back(point);
    }
    site.prepare_destination(&job(4)).await.expect("ready");
    assert!(first.exists() && second.exists() && !is_kept());
    site.undo_destination_only(&job(4)).await;
    taken_back("at last");
}

#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn an_undo_removes_what_it_made_once_and_never_what_took_its_name() {
    expects_warning("A file stays: it is not the one that was made for the move");
    expects_warning(r#"A request failed title="A test made it fail at agent-undone"#);
    let site = Site::new().await;
    let host = &site.hosts[1];
    let vm = VmId(uuid::Uuid::from_u128(7));
    let (vda, first) = host.incoming_disk("vda");
    let (vdb, second) = host.incoming_disk("vdb");
    let job = Job { disks: vec![vda, vdb], ..Job::new(1, 1, vm, "db", 0) };
    site.prepare_destination(&job).await.expect("ready");
    std::fs::rename(&first, first.with_extension("aside")).expect("there");
    std::fs::write(&first, "precious").expect("written");
    // It takes everything back, and cannot say so.
    fail::cfg("agent-undone", "1*return").expect("a failpoint");
    host.client.ask(job.attempt, Verb::Abort).await.expect_err("it was made to fail");
    assert_eq!(std::fs::read(&first).expect("it stays"), b"precious");
    assert!(!second.exists());
    std::fs::write(&second, "precious, too").expect("written");
    site.undo_destination_only(&job).await;
    assert_eq!(std::fs::read(&first).expect("it stays"), b"precious");
    assert_eq!(std::fs::read(&second).expect("it stays"), b"precious, too");
    assert_eq!(host.orphans(), Vec::<std::path::PathBuf>::new());
}

#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_made_but_not_written_down_is_removed_all_the_same() {
    let mut site = Site::new().await;
    let vm = VmId(uuid::Uuid::from_u128(7));
    let (vda, first) = site.hosts[1].incoming_disk("vda");
    let job = Job { disks: vec![vda], ..Job::new(1, 1, vm, "db", 0) };
    site.prepare_destination(&job).await.expect("ready");
    // As if the agent had died between the file and the word of it.
    let record_path = site.hosts[1].config.journal_dir().join("1.json");
    let mut journal: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&record_path).expect("there")).expect("JSON");
    let incoming_disk = &mut journal["task"]["arrivals"][0];
    assert_eq!(incoming_disk["made"], true);
    (incoming_disk["made"], incoming_disk["mark"]) = (false.into(), "making".into());
    site.hosts[1].kill_carriers();
    std::fs::write(&record_path, journal.to_string()).expect("written");
    let key = &site.key;
    site.hosts[1].restart_agent(key).await;
    site.undo_destination_only(&job).await;
    assert!(!first.exists());
    assert_eq!(site.hosts[1].orphans(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn restarted_agents_find_the_move_again_and_finish_it() {
    let mut site = Site::new().await;
    let vm = site.run_vm("web01", |_| {});
    let job = Job::new(1, 1, vm, "web01", 0);
    let pass = Arc::new(site.hosts[0].hypervisor.faults().hold(Point::Pass(2)));
    site.prepare(&job).await;
    site.perform(&job).await;
    reached(&pass).await;
    for host in &mut site.hosts {
        host.restart_agent(&site.key).await;
        let report = host.client.report(job.attempt, 0, Duration::ZERO).await.expect("known again");
        assert_eq!(report.stage, Stage::Performing);
    }
    pass.release();
    site.follow(&job).await;
    site.finish(&job, false).await;
    site.assert_settled(vm, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_goes_on_at_the_source_when_either_carrier_dies() {
    for dying in [0, 1] {
        let mut site = Site::new().await;
        let vm = site.run_vm("web01", |guest| guest.facts.autostart = true);
        let job = Job::new(1, 1, vm, "web01", 0);
        let pass = Arc::new(site.hosts[0].hypervisor.faults().hold(Point::Pass(2)));
        site.prepare(&job).await;
        site.perform(&job).await;
        reached(&pass).await;
        site.hosts[dying].kill_carriers();
        pass.release();
        let source = site.wait_stage(&job, 0, &[Stage::Failed]).await;
        assert!(source.error.is_some(), "{source:?}");
        site.undo(&job).await;
        assert!(site.hosts[0].autostarts(vm));
        site.assert_settled(vm, 0);
        site.hosts[dying].restart_agent(&site.key).await;
        move_again(&site, 2, &job).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_whose_carrier_dies_before_the_hand_over_is_known_waits_for_the_verdict() {
    let mut site = Site::new().await;
    let vm = site.run_vm("web01", |_| {});
    let job = Job::new(1, 1, vm, "web01", 0);
    // The destination's carrier dies while it tries to resume, in vain.
    let resuming = Arc::new(site.hosts[1].hypervisor.faults().hold(Point::Resume));
    site.hosts[1].hypervisor.faults().fail(Point::Resume, "libvirt is being restarted");
    site.prepare(&job).await;
    site.perform(&job).await;
    reached(&resuming).await;
    site.wait_stage(&job, 0, &[Stage::Delivered]).await;
    site.hosts[1].kill_carriers();
    assert_eq!(site.presences(&job), (Presence::Off, Presence::Arrived));
    assert_eq!(site.verdict(&job).await, Verdict::Destination);
    assert_eq!(refusal(site.hosts[0].client.ask(job.attempt, Verb::Abort).await), (409, FindingId::JobPastPivot));
    resuming.release();
    let report = site.hosts[1].client.ask(job.attempt, Verb::Resume).await.expect("resumed by verdict");
    assert_eq!((report.stage, report.presence), (Stage::Resumed, Presence::Running));
    site.finish(&job, false).await;
    site.assert_settled(vm, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn why_a_vm_that_was_handed_over_does_not_run_is_told_until_it_does() {
    expects_warning("The VM could not be resumed; it is tried until it runs");
    let site = Site::new().await;
    let vm = site.run_vm("web01", |_| {});
    let job = Job::new(1, 1, vm, "web01", 0);
    let two = &site.hosts[1];
    two.hypervisor.faults().fail_always(Point::Resume, "its disk is not there");
    site.prepare(&job).await;
    site.perform(&job).await;
    let has_no_disk =
        |report: &Report| report.error.as_deref().is_some_and(|why| why.contains("its disk is not there"));
    let report = site.wait_report(&job, 1, has_no_disk).await;
    assert_eq!((report.stage, report.presence), (Stage::Delivered, Presence::Arrived));
    assert_eq!(
        refusal(two.client.ask(job.attempt, Verb::Abort).await),
        (409, FindingId::JobPastPivot),
        "it is the only copy"
    );
    two.hypervisor.faults().clear();
    let report = site.wait_stage(&job, 1, &[Stage::Resumed]).await;
    assert_eq!((report.error, report.presence), (None, Presence::Running));
    site.finish(&job, false).await;
    site.assert_settled(vm, 1);
}

/// A source whose libvirtd is restarted once the memory is sent: it knows of no migration then.
#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_libvirt_left_paused_runs_where_it_is_whole() {
    expects_warning("libvirt's migrate call failed");
    expects_warning("libvirt left the VM paused at the source; it is run as soon as its disks are free");
    for arrived in [false, true] {
        let site = Site::new().await;
        let vm = site.run_vm("web01", |guest| guest.facts.autostart = true);
        let job = Job::new(1, 1, vm, "web01", 0);
        let [one, two] = &site.hosts;
        one.hypervisor.forget_migrations();
        match arrived {
            false => one.hypervisor.faults().cut(Point::Finish),
            true => two.hypervisor.faults().cut(Point::FinishReply),
        }
        site.prepare(&job).await;
        site.perform(&job).await;
        site.wait_stage(&job, 0, &[Stage::Failed]).await;
        let there = if arrived { Presence::Arrived } else { Presence::Absent };
        wait_until("it is left", || site.presences(&job) == (Presence::Left, there)).await;
        if arrived {
            assert_eq!(site.verdict(&job).await, Verdict::Destination);
            one.client.ask(job.attempt, Verb::EndCopy).await.expect("what is left has the disks");
            assert_eq!(site.presences(&job), (Presence::Off, Presence::Arrived));
            two.client.ask(job.attempt, Verb::Resume).await.expect("it runs there");
            site.finish(&job, true).await;
            site.assert_settled(vm, 1);
        } else {
            assert_eq!(site.verdict(&job).await, Verdict::SourceUnlessElsewhere);
            one.client.ask(job.attempt, Verb::Abort).await.expect("ended");
            assert!(one.holds(vm) && !one.autostarts(vm), "the destination has not said that it will not run it");
            two.client.ask(job.attempt, Verb::Abort).await.expect("ended");
            for host in [one, two] {
                host.client.release(job.attempt).await.expect("released");
            }
            wait_until("it runs again", || site.presences(&job).0 == Presence::Running).await;
            assert!(one.autostarts(vm));
            site.assert_settled(vm, 0);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_was_complete_at_the_destination_is_not_taken_away_there_when_it_is_off() {
    expects_warning("libvirt's migrate call failed");
    let site = Site::new().await;
    let vm = site.run_vm("web01", |_| {});
    let job = Job::new(1, 1, vm, "web01", 0);
    let [one, two] = &site.hosts;
    one.hypervisor.forget_migrations();
    two.hypervisor.faults().cut(Point::FinishReply);
    site.prepare(&job).await;
    site.perform(&job).await;
    site.wait_stage(&job, 0, &[Stage::Failed]).await;
    // Somebody ran it, and shut it off, while nobody knew who has it.
    two.hypervisor.resume(vm).expect("run by hand");
    two.hypervisor.crash(vm);
    assert_eq!(site.presences(&job), (Presence::Left, Presence::Off));
    assert_eq!(site.verdict(&job).await, Verdict::Destination);
    assert_eq!(refusal(two.client.ask(job.attempt, Verb::Abort).await), (409, FindingId::JobUndecided));
    assert!(two.knows(vm));
    assert!(one.holds(vm));
    // What the refusal advises, where the source's disks are the newest: its definition goes, and then the move is undone.
    two.hypervisor.undefine(vm).expect("removed");
    two.client.ask(job.attempt, Verb::Abort).await.expect("nothing of it is here");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_old_once_the_vm_has_run_on_at_the_source_and_ended_there() {
    expects_warning("libvirt's migrate call failed");
    for shuts_down in [true, false] {
        let site = Site::new().await;
        let vm = site.run_vm("web01", |guest| guest.facts.autostart = true);
        let job = Job::new(1, 1, vm, "web01", 0);
        let [one, two] = &site.hosts;
        two.hypervisor.faults().cut(Point::FinishReply);
        site.prepare(&job).await;
        site.perform(&job).await;
        site.wait_stage(&job, 0, &[Stage::Failed]).await;
        assert_eq!(site.presences(&job), (Presence::Running, Presence::Arrived));
        match shuts_down {
            true => one.hypervisor.shutdown(vm).expect("its guest obeys"),
            // Its process is killed: libvirt does not say that its guest ended it.
            false => one.hypervisor.crash(vm),
        }
        let seen = one.client.report(job.attempt, 0, Duration::ZERO).await.expect("known");
        assert_eq!(seen.presence, Presence::Ended, "{shuts_down}");
        assert_eq!(site.verdict(&job).await, Verdict::Source, "its disks are newer than that copy's memory");
        site.undo(&job).await;
        assert!(!two.knows(vm) && !one.holds(vm) && one.autostarts(vm));
        one.hypervisor.start(vm).expect("it is the source's");
        site.assert_settled(vm, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_was_given_up_is_not_run() {
    expects_warning("libvirt's migrate call failed");
    let site = Site::new().await;
    let vm = site.run_vm("web01", |_| {});
    let job = Job::new(1, 1, vm, "web01", 0);
    site.hosts[1].hypervisor.faults().cut(Point::FinishReply);
    site.prepare(&job).await;
    site.perform(&job).await;
    site.follow(&job).await;
    site.hosts[1].client.ask(job.attempt, Verb::Abort).await.expect("destroyed");
    assert_eq!(refusal(site.hosts[1].client.ask(job.attempt, Verb::Resume).await), (409, FindingId::RequestStale));
    site.undo(&job).await;
    site.assert_settled(vm, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_that_begins_again_takes_nothing_from_the_vm_that_had_it() {
    expects_warning("The VM could not be resumed; it is tried until it runs");
    expects_warning(
        "The control connection from the source is gone; a complete copy stays paused here until it is known who has it",
    );
    let site = Site::new().await;
    let (one, other) = (site.run_vm("web01", |_| {}), site.run_vm("db", |_| {}));
    let first = Job::new(1, 1, one, "web01", 0);
    // Handed over, and paused at the destination: its only copy.
    site.hosts[1].hypervisor.faults().fail_always(Point::Resume, "no such luck");
    site.prepare(&first).await;
    site.perform(&first).await;
    site.wait_stage(&first, 0, &[Stage::Delivered]).await;
    // The server's database was lost; its first job is of another VM.
    let again = Job::new(1, 2, other, "db", 0);
    assert_eq!(refusal(site.prepare_destination(&again).await), (409, FindingId::JobOpen));
    assert_eq!(site.presences(&first).1, Presence::Arrived);
    // The same before the switchover, at the source.
    let back = Job::new(2, 1, other, "db", 0);
    site.prepare(&back).await;
    let taken = Job::new(2, 2, one, "web01", 0);
    let ready =
        site.prepare_destination(&Job::new(3, 1, VmId(uuid::Uuid::from_u128(9)), "x", 0)).await.expect("an answer");
    assert_eq!(refusal(site.prepare_source(&taken, ready).await), (409, FindingId::JobOpen));
    assert!(site.hosts[0].holds(other), "it is still being moved");
    site.hosts[1].hypervisor.faults().clear();
    site.hosts[1].client.ask(first.attempt, Verb::Resume).await.expect("resumed");
    site.finish(&first, false).await;
    site.undo(&back).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_overtakes_its_request_lets_it_do_nothing_also_after_a_restart() {
    let mut site = Site::new().await;
    let vm = site.run_vm("web01", |_| {});
    let job = Job::new(1, 1, vm, "web01", 0);
    site.hosts[1].client.release(job.attempt).await.expect("not known");
    let Site { hosts, key, .. } = &mut site;
    hosts[1].restart_agent(key).await;
    assert_eq!(refusal(site.prepare_destination(&job).await), (409, FindingId::RequestStale));
    assert_eq!(site.hosts[1].orphans(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_may_be_repeated_and_older_ones_are_refused() {
    let site = Site::new().await;
    let vm = site.run_vm("web01", |guest| guest.facts.autostart = true);
    let job = Job::new(1, 2, vm, "web01", 0);
    let ready = site.prepare_destination(&job).await.expect("ready");
    assert_eq!(site.prepare_destination(&job).await.expect("ready"), ready, "repeated");
    site.prepare_source(&job, ready.clone()).await.expect("ready");
    site.prepare_source(&job, ready.clone()).await.expect("repeated");
    let older = Job::new(1, 1, vm, "web01", 0);
    let stale = (409, FindingId::RequestStale);
    assert_eq!(refusal(site.prepare_destination(&older).await), stale);
    assert_eq!(refusal(site.prepare_source(&older, ready).await), stale);
    assert_eq!(refusal(site.hosts[0].client.ask(older.attempt, Verb::Perform).await), stale);
    assert!(site.hosts[0].holds(vm), "a stale request changes nothing");
    site.perform(&job).await;
    site.perform(&job).await;
    site.follow(&job).await;
    for host in &site.hosts {
        host.client
            .ask(job.attempt, Verb::Confirm(ConfirmRequest { autostart: true, keep_source: false }))
            .await
            .expect("confirmed");
    }
    site.finish(&job, true).await;
    site.hosts[0].client.release(job.attempt).await.expect("released twice");
    assert_eq!(refusal(site.prepare_destination(&job).await), stale, "what was released does not begin again");
    assert_eq!(
        refusal(site.hosts[0].client.report(job.attempt, 0, Duration::ZERO).await),
        (404, FindingId::JobUnknown)
    );
    site.assert_settled(vm, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_attempt_undoes_one_that_was_never_ended() {
    let site = Site::new().await;
    let vm = site.run_vm("web01", |guest| guest.facts.autostart = true);
    let forgotten = Job::new(1, 1, vm, "web01", 0);
    site.prepare(&forgotten).await;
    let job = Job::new(1, 2, vm, "web01", 0);
    site.prepare(&job).await;
    site.perform(&job).await;
    site.follow(&job).await;
    site.finish(&job, true).await;
    assert!(site.hosts[1].autostarts(vm));
    site.assert_settled(vm, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_cannot_reach_the_destination_changes_nothing() {
    expects_warning(r#"A request failed title="The carrier could not make ready: Could not reach the destin"#);
    let site = Site::new().await;
    let vm = site.run_vm("web01", |guest| guest.facts.autostart = true);
    let job = Job::new(1, 1, vm, "web01", 0);
    let mut ready = site.prepare_destination(&job).await.expect("ready");
    ready.carrier = "127.0.0.1:9".into();
    let error = site.prepare_source(&job, ready).await.expect_err("nobody listens there");
    assert!(error.problem().expect("a problem").title.contains("127.0.0.1:9"), "{}", chain(&error));
    assert!(site.hosts[0].autostarts(vm) && !site.hosts[0].holds(vm));
    site.undo_destination_only(&job).await;
    site.assert_settled(vm, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_has_the_vm_already_refuses_it() {
    let site = Site::new().await;
    let vm = site.run_vm("web01", |_| {});
    let mut twin = ferry_drivers::hypervisor::fake::FakeGuest::new("other", &[]);
    twin.facts.id = vm;
    site.hosts[1].hypervisor.define(twin).expect("defined");
    let job = Job::new(1, 1, vm, "web01", 0);
    assert_eq!(refusal(site.prepare_destination(&job).await), (409, FindingId::VmUuidTaken));
    assert!(site.hosts[1].knows(vm) && site.hosts[1].orphans().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_libvirt_is_not_vouched_for_where_it_would_give_files_away() {
    let site = Site::new().await;
    let vm = site.run_vm("web01", |guest| guest.facts.autostart = true);
    let job = Job::new(1, 1, vm, "web01", 0);
    // The test's folder is on a file system whose files have owners.
    site.hosts[0].hypervisor.set_host(|host| host.libvirt_version = "9.0.0".to_owned());
    let ready = site.prepare_destination(&job).await.expect("the destination is ready");
    assert_eq!(refusal(site.prepare_source(&job, ready).await), (409, FindingId::HostRelease));
    site.undo_destination_only(&job).await;
    assert!(site.hosts[0].autostarts(vm));
    site.assert_settled(vm, 0);
}

async fn move_again(site: &Site, number: u64, job: &Job) {
    let again = Job::new(number, 1, job.vm, &job.name, job.from);
    site.prepare(&again).await;
    site.perform(&again).await;
    site.follow(&again).await;
    site.finish(&again, true).await;
    site.assert_settled(job.vm, job.to);
}
