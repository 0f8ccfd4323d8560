//! Jobs: the queue, several at the same time, drains, and actions on a job that did not go well.

use std::sync::Arc;

use ferry_client::ClientError;
use ferry_core::{
    admission::{Limits, Slot},
    api::server::{DrainHost, JobView, MigrateMany, MigrateVm, SetHost},
    finding::{FindingId, Severity},
    id::JobId,
    job::JobKind,
    migration::Phase,
    units::ByteCount,
    vm::VmState,
};
use ferry_drivers::hypervisor::{
    Domains as _, Power as _,
    fake::{Hold, Point},
};
use ferry_testkit::logs::expects_warning;

use crate::{
    moves::{only, reached},
    rules::add_nvram,
    support::{Host, Lab, in_lab, refusal, wait_for},
};

/// Starts a move and holds it while its memory is being sent.
pub async fn held_move(lab: &Lab, from: &Host, vm: &str, to: &str) -> (JobView, Arc<Hold>) {
    let hold = Arc::new(from.hypervisor.faults().hold(Point::Pass(2)));
    let job = lab.migrate(vm, to).await.expect("accepted");
    reached(&hold).await;
    (job, hold)
}

/// Runs additional VMs on a host beside `web01`.
async fn run_more(lab: &Lab, host: &Host, names: &[&str]) {
    for name in names {
        lab.run(host, name, |_| {}).await;
    }
}

fn several(vms: &[&str], to: &str) -> MigrateMany {
    let how = MigrateVm { destination: to.into(), ..MigrateVm::default() };
    MigrateMany { vms: vms.iter().map(|vm| (*vm).to_owned()).collect(), how }
}

#[test]
fn a_third_move_waits_and_says_for_what_and_a_higher_limit_lets_it_go_at_once() {
    in_lab(async |lab| {
        let (kvm1, _kvm2, _) = lab.two_hosts().await;
        run_more(lab, &kvm1, &["db", "mail"]).await;
        let (first, hold_first) = held_move(lab, &kvm1, "web01", "kvm2").await;
        let (second, hold_second) = held_move(lab, &kvm1, "db", "kvm2").await;
        let third = lab.migrate("mail", "kvm2").await.expect("accepted");
        assert_eq!(third.phase, Phase::Queued);
        let waits = third.waits.clone().expect("it says for what");
        assert_eq!(waits.position, 1);
        let places: Vec<_> =
            waits.places.iter().map(|place| (place.host.as_str(), place.slot, place.jobs.clone())).collect();
        let both = vec![first.id, second.id];
        assert_eq!(places, [("kvm1", Slot::Live, both.clone()), ("kvm2", Slot::Live, both)]);
        assert!(third.summary.contains("waits for a live slot on kvm1"), "{}", third.summary);

        let host = lab.client.host("kvm2").await.expect("shown");
        let moves: Vec<_> = host.moves.iter().map(|each| (each.vm_name.as_str(), each.incoming)).collect();
        assert_eq!(moves, [("web01", true), ("db", true), ("mail", true)]);
        assert_eq!(host.moves.iter().filter(|each| each.phase == Phase::Queued).count(), 1);

        let three = SetHost { live_limit: Some(3), ..SetHost::default() };
        let limits = lab.client.set_host("kvm1", &three).await.expect("set").limits;
        assert_eq!(limits, Limits { live: 3, storage: 2 });
        let waits = lab.client.job(third.id).await.expect("known").waits.expect("it still waits");
        assert_eq!(waits.places.len(), 1, "for kvm2 only: {waits:?}");
        lab.client.set_host("kvm2", &three).await.expect("set");
        lab.ends(&third, Phase::Succeeded).await;
        assert_eq!(lab.client.job(first.id).await.expect("known").phase, Phase::Migrating, "the others go on");
        hold_first.release();
        hold_second.release();
        lab.ends(&first, Phase::Succeeded).await;
        lab.ends(&second, Phase::Succeeded).await;
        for bad in [0, Limits::MAX + 1] {
            let body = SetHost { live_limit: Some(bad), ..SetHost::default() };
            assert_eq!(refusal(lab.client.set_host("kvm1", &body).await), (400, vec![FindingId::RequestInvalid]));
        }
    });
}

/// A host's free memory in tenths, rounded down: other programs of this machine use and free memory in the meantime.
async fn parts_of_free_memory(lab: &Lab, host: &str, tenths: u64) -> ByteCount {
    let free = lab.client.host(host).await.expect("shown").facts.expect("known").memory_free;
    ByteCount(free.0 / 10 * tenths)
}

#[test]
fn memory_that_a_move_was_promised_is_not_promised_again_unless_somebody_takes_that() {
    in_lab(async |lab| {
        let (kvm1, _kvm2, _) = lab.two_hosts().await;
        let much = parts_of_free_memory(lab, "kvm2", 6).await;
        for name in ["db", "mail"] {
            lab.run(&kvm1, name, |guest| guest.facts.memory = much).await;
        }
        let (first, hold) = held_move(lab, &kvm1, "db", "kvm2").await;
        // Each fits alone, and the kernel does not show the first one's memory yet.
        let refused = lab.migrate("mail", "kvm2").await;
        let Err(ClientError::Refused(problem)) = refused else { panic!("{refused:?}") };
        let [finding] = &problem.findings[..] else { panic!("{problem:#?}") };
        assert_eq!(finding.id, FindingId::HostMemory);
        assert!(
            finding.message.to_string().contains("promised to other moves")
                && finding.fix.to_string().contains("`--overcommit`"),
            "{finding:?}"
        );
        let hosts = lab.client.candidates("mail").await.expect("listed");
        let there = hosts.iter().find(|candidate| candidate.host == "kvm2").expect("listed");
        assert_eq!(there.kind, None, "the quick look says the same: {there:?}");
        assert_eq!(refusal(lab.client.migrate_many(&several(&["web01", "mail"], "kvm2")).await).0, 409);

        let how = MigrateVm { destination: "kvm2".into(), overcommit: true, ..MigrateVm::default() };
        let second = lab.client.migrate("mail", &how).await.expect("somebody takes it");
        hold.release();
        lab.ends(&first, Phase::Succeeded).await;
        let done = lab.ends(&second, Phase::Succeeded).await;
        let kept: Vec<FindingId> = done.findings.iter().map(|finding| finding.id).collect();
        assert!(kept.contains(&FindingId::HostMemory), "the job remembers that it was known: {done:#?}");
        // No memory is promised any more.
        lab.run(&kvm1, "last", |guest| guest.facts.memory = much).await;
        let third = lab.migrate("last", "kvm2").await.expect("there is room");
        lab.ends(&third, Phase::Succeeded).await;
    });
}

#[test]
fn a_move_that_waits_is_cancelled_without_a_trace_and_restarted_as_a_second_attempt() {
    expects_warning("libvirt's migrate call failed");
    in_lab(async |lab| {
        let (kvm1, kvm2, _) = lab.two_hosts().await;
        run_more(lab, &kvm1, &["db"]).await;
        lab.client.set_host("kvm1", &SetHost { live_limit: Some(1), ..SetHost::default() }).await.expect("set");
        let (first, hold) = held_move(lab, &kvm1, "web01", "kvm2").await;
        let second = lab.migrate("db", "kvm2").await.expect("accepted");
        assert_eq!(refusal(lab.client.restart_job(second.id).await), (409, vec![FindingId::JobOpen]));
        let cancelled = lab.client.cancel_job(second.id).await.expect("not too late");
        assert_eq!((cancelled.phase, cancelled.attempt), (Phase::Cancelled, 0));
        assert!(cancelled.summary.contains("db stays on kvm1") && cancelled.summary.contains("`ferry job restart"));
        let again = lab.client.restart_job(second.id).await.expect("restarted");
        assert_eq!((again.id, again.phase), (second.id, Phase::Queued));
        assert_eq!(refusal(lab.migrate("db", "kvm2").await), (409, vec![FindingId::VmBusy]));
        hold.release();
        lab.ends(&first, Phase::Succeeded).await;
        lab.ends(&again, Phase::Succeeded).await;

        kvm1.hypervisor.faults().fail(Point::Prepare, "no room");
        let third = lab.migrate("db", "kvm1").await.expect("accepted");
        let failed = lab.ends(&third, Phase::Failed).await;
        assert!(failed.summary.contains("no room") && failed.summary.contains("`ferry job restart"), "{failed:#?}");
        let again = lab.client.restart_job(third.id).await.expect("restarted");
        let done = lab.ends(&again, Phase::Succeeded).await;
        assert_eq!(done.attempt, 2);
        assert!(done.log.iter().any(|line| line.message.contains("no room")), "the first attempt is remembered");
        assert!(done.steps.iter().all(|step| step.message.is_none()), "the steps are those of the second");
        assert_eq!((kvm1.orphans(), kvm2.orphans()), (Vec::new(), Vec::new()));
        assert_eq!(refusal(lab.client.restart_job(third.id).await), (409, vec![FindingId::JobOpen]));
    });
}

#[test]
fn the_queue_outlives_the_server_in_its_order() {
    in_lab(async |lab| {
        let (kvm1, _kvm2, _) = lab.two_hosts().await;
        run_more(lab, &kvm1, &["db", "mail"]).await;
        lab.client.set_host("kvm1", &SetHost { live_limit: Some(1), ..SetHost::default() }).await.expect("set");
        let (first, hold) = held_move(lab, &kvm1, "web01", "kvm2").await;
        let second = lab.migrate("db", "kvm2").await.expect("accepted");
        let third = lab.migrate("mail", "kvm2").await.expect("accepted");
        lab.stop_server().await;
        lab.start_server().await;
        for (job, position) in [(&second, 1), (&third, 2)] {
            let waits = lab.wait_for_job(job.id, |job| job.waits.is_some()).await.waits.expect("it waits");
            assert_eq!(waits.position, position);
        }
        assert_eq!(lab.client.host("kvm1").await.expect("shown").limits.live, 1, "limits are kept");
        hold.release();
        let ends: Vec<u64> = {
            let mut ends = Vec::new();
            for job in [&first, &second, &third] {
                ends.push(lab.ends(job, Phase::Succeeded).await.ended_at_ms.expect("ended"));
            }
            ends
        };
        assert!(ends.is_sorted(), "{ends:?}");
    });
}

#[test]
fn several_vms_move_as_one_job_and_all_are_accepted_or_none() {
    in_lab(async |lab| {
        let (kvm1, kvm2, _) = lab.two_hosts().await;
        run_more(lab, &kvm1, &["db", "mail"]).await;
        lab.define(&kvm1, "off", |_| {}).await;
        let refused = lab.client.migrate_many(&several(&["web01", "off", "db"], "kvm2")).await;
        assert_eq!(refusal(refused), (409, vec![FindingId::VmNotRunning]));
        let twice = lab.client.migrate_many(&several(&["web01", "kvm1/web01"], "kvm2")).await;
        assert_eq!(refusal(twice), (400, vec![FindingId::RequestInvalid]));
        assert_eq!(lab.client.jobs(None, None).await.expect("answered"), []);

        let parent = lab.client.migrate_many(&several(&["web01", "db", "mail"], "kvm2")).await.expect("accepted");
        assert_eq!((parent.kind, parent.children.len(), parent.vm), (JobKind::Several, 3, None));
        let parent = lab.ends(&parent, Phase::Succeeded).await;
        assert!(parent.summary.starts_with("3 of 3 VMs moved"), "{}", parent.summary);
        assert!(parent.children.iter().all(|child| child.phase == Phase::Succeeded));
        for vm in ["web01", "db", "mail"] {
            assert_eq!(lab.client.vm(vm).await.expect("known").host, "kvm2");
        }
        assert_eq!(kvm2.orphans(), Vec::<String>::new());
        let child = lab.client.job(parent.children[1].id).await.expect("known");
        assert_eq!((child.parent, child.vm_name.as_str()), (Some(parent.id), "db"));
    });
}

#[test]
fn cancelling_several_moves_cancels_those_that_have_not_switched_over() {
    expects_warning("libvirt's migrate call failed");
    in_lab(async |lab| {
        let (kvm1, kvm2, _) = lab.two_hosts().await;
        run_more(lab, &kvm1, &["db", "mail"]).await;
        lab.client.set_host("kvm1", &SetHost { live_limit: Some(1), ..SetHost::default() }).await.expect("set");
        let hold = Arc::new(kvm1.hypervisor.faults().hold(Point::Pass(2)));
        let parent = lab.client.migrate_many(&several(&["web01", "db", "mail"], "kvm2")).await.expect("accepted");
        reached(&hold).await;
        let (client, id) = (lab.client.clone(), parent.id);
        let cancel = tokio::spawn(async move { client.cancel_job(id).await });
        let first = parent.children[0].id;
        wait_for("the cancel of the first is noted", async || {
            lab.client.job(first).await.expect("known").log.iter().any(|line| line.message.contains("cancel"))
        })
        .await;
        hold.release();
        cancel.await.expect("it ends").expect("not too late");
        let ended = lab.ends(&parent, Phase::Cancelled).await;
        assert_eq!(ended.children.iter().filter(|child| child.phase == Phase::Cancelled).count(), 3, "{ended:#?}");
        for vm in ["web01", "db", "mail"] {
            assert_eq!(lab.client.vm(vm).await.expect("known").host, "kvm1");
        }
        wait_for("nothing is left", async || kvm1.orphans().is_empty() && kvm2.orphans().is_empty()).await;
        assert!(ended.summary.contains(&format!("`ferry job restart {}`", parent.id)), "{}", ended.summary);
        assert_eq!(ended.summary.matches("ferry job").count(), 1, "of its parts each tells its own: {}", ended.summary);
        let again = lab.client.restart_job(parent.id).await.expect("restarted");
        assert!(lab.ends(&again, Phase::Succeeded).await.summary.starts_with("3 of 3"));
        assert_eq!(refusal(lab.client.cancel_job(parent.id).await), (409, vec![FindingId::JobEnded]));
    });
}

#[test]
fn a_drained_host_is_left_by_every_vm_that_can_and_gets_no_other_until_it_is_resumed() {
    in_lab(async |lab| {
        let (kvm1, _kvm2, _) = lab.two_hosts().await;
        let kvm3 = lab.host("kvm3").await;
        lab.add(&kvm3).await.expect("added");
        lab.attach(&kvm3).await.expect("attached");
        run_more(lab, &kvm1, &["db", "mail"]).await;
        let local = kvm1.on_host("cache.raw");
        lab.run(&kvm1, "cache", |guest| guest.facts.files[0].place = local.clone()).await;

        let job = lab.client.drain_host("kvm1", &DrainHost::default()).await.expect("accepted");
        assert_eq!((job.kind, job.children.len()), (JobKind::Drain, 3));
        let destinations: Vec<_> = job.children.iter().map(|child| child.destination.as_str()).collect();
        assert!(destinations.contains(&"kvm2") && destinations.contains(&"kvm3"), "they are spread: {destinations:?}");
        let job = lab.ends(&job, Phase::Failed).await;
        assert!(job.summary.starts_with("3 of 3 VMs moved. cache stays: "), "{}", job.summary);
        let [stays] = job.findings.as_slice() else { panic!("one finding: {:#?}", job.findings) };
        assert_eq!((stays.id, stays.object.as_str()), (FindingId::HostNone, "cache"));
        assert!(
            stays.message.to_string().contains("cache.raw") && stays.fix.to_string().contains("ferry host drain kvm1"),
            "{stays:?}"
        );

        assert!(lab.client.host("kvm1").await.expect("shown").maintenance);
        let (status, findings) = refusal(lab.migrate("web01", "kvm1").await);
        assert_eq!((status, findings), (409, vec![FindingId::HostMaintenance]));
        lab.stop_server().await;
        lab.start_server().await;
        assert!(lab.client.host("kvm1").await.expect("shown").maintenance, "also after a restart");
        assert!(!lab.client.resume_host("kvm1").await.expect("resumed").maintenance);
        wait_for("both hosts answer", async || {
            lab.client.hosts().await.is_ok_and(|hosts| hosts.iter().all(|host| host.reachable))
        })
        .await;
        let back = lab.migrate("web01", "kvm1").await.expect("accepted");
        lab.ends(&back, Phase::Succeeded).await;

        let there = DrainHost { destination: Some("kvm2".into()), ..DrainHost::default() };
        let job = lab.client.drain_host("kvm3", &there).await.expect("accepted");
        assert!(job.children.iter().all(|child| child.destination == "kvm2"));
        lab.ends(&job, Phase::Succeeded).await;
        assert_eq!(refusal(lab.client.drain_host("kvm2", &there).await), (400, vec![FindingId::RequestInvalid]));
    });
}

#[test]
fn a_drain_takes_memory_that_may_not_do_only_if_somebody_wants_it_and_its_jobs_remember_that() {
    in_lab(async |lab| {
        let (kvm1, _kvm2, _) = lab.two_hosts().await;
        let much = parts_of_free_memory(lab, "kvm2", 6).await;
        let more = parts_of_free_memory(lab, "kvm2", 20).await;
        // The larger VM chooses first.
        let less = ByteCount(much.0 - (64 << 20));
        for (name, memory) in [("db", much), ("mail", less), ("large", more)] {
            lab.run(&kvm1, name, |guest| guest.facts.memory = memory).await;
        }
        // No host has pages of this size.
        lab.run(&kvm1, "huge", |guest| guest.facts.huge_page = Some(ByteCount::mib(3))).await;
        let names = |job: &JobView| {
            let mut names: Vec<_> = job.children.iter().map(|child| child.vm_name.clone()).collect();
            names.sort_unstable();
            names
        };

        let job = lab.client.drain_host("kvm1", &DrainHost::default()).await.expect("accepted");
        assert_eq!(names(&job), ["db", "web01"]);
        for stays in ["mail", "large"] {
            let finding = job.findings.iter().find(|finding| finding.object == stays).expect("told");
            assert!(
                finding.fix.to_string().contains("`--overcommit`")
                    || finding.fix.to_string().contains("kvm1 --overcommit`"),
                "{finding:?}"
            );
        }
        lab.ends(&job, Phase::Failed).await;

        let overcommit = DrainHost { overcommit: true, ..DrainHost::default() };
        let job = lab.client.drain_host("kvm1", &overcommit).await.expect("accepted");
        assert_eq!(names(&job), ["large", "mail"]);
        let [huge, memory] = &job.findings[..] else { panic!("{:#?}", job.findings) };
        assert_eq!((huge.object.as_str(), huge.severity), ("huge", Severity::Blocks));
        assert_eq!((memory.id, memory.severity), (FindingId::HostMemory, Severity::Warns), "{memory:?}");
        assert!(memory.message.to_string().contains("no room for 1 of them"), "{memory:?}");
        let job = lab.ends(&job, Phase::Failed).await;
        assert!(job.summary.starts_with("2 of 2 VMs moved.") && job.summary.contains("huge stays"), "{}", job.summary);
        assert!(job.summary.contains("taken by `--overcommit`"), "{}", job.summary);
        let large = job.children.iter().find(|child| child.vm_name == "large").expect("it went");
        let kept = lab.client.job(large.id).await.expect("known").findings;
        assert!(kept.iter().any(|finding| finding.id == FindingId::HostMemory), "the part remembers it: {kept:#?}");
        let records = lab.client.audit(None, None).await.expect("answered").records;
        let taken: Vec<bool> = records.iter().map(|record| record.overcommit).collect();
        assert_eq!(taken, [false, false, false, true, true, true], "{records:#?}");
    });
}

#[test]
fn a_drain_plans_what_moves_along_for_the_host_that_it_chose_and_asks_how_vms_are_now() {
    in_lab(async |lab| {
        let (kvm1, kvm2, web01) = lab.two_hosts().await;
        let variables = kvm1.on_host("nvram/uefi_VARS.fd");
        lab.run(&kvm1, "uefi", |guest| add_nvram(guest, &variables)).await;
        let local = kvm1.on_host("cache.raw");
        lab.run(&kvm1, "cache", |guest| guest.facts.files[0].place = local.clone()).await;
        // The VM was paused when it was last seen.
        kvm1.hypervisor.pause(web01);
        lab.wait_for_state("web01", VmState::Paused).await;
        kvm1.hypervisor.resume(web01).expect("resumed");

        let place = kvm2.on_host("drained").display().to_string();
        std::fs::create_dir_all(&place).expect("made");
        let drain = DrainHost { storage: Some(place), ..DrainHost::default() };
        let job = lab.client.drain_host("kvm1", &drain).await.expect("accepted");
        assert_eq!(job.findings, [], "each can go");
        let job = lab.ends(&job, Phase::Succeeded).await;
        assert!(job.summary.starts_with("3 of 3"), "{}", job.summary);
        for vm in ["web01", "uefi", "cache"] {
            assert_eq!(lab.client.vm(vm).await.expect("known").host, "kvm2");
        }
    });
}

#[test]
fn a_stuck_job_is_retried_or_dismissed_but_not_undone_after_the_switchover() {
    expects_warning(r#"A request failed title="Could not remove the definition of VM"#);
    expects_warning("The job is stuck; it is tried on");
    expects_warning("The job was dismissed");
    in_lab(async |lab| {
        let (mut kvm1, _kvm2, vm) = lab.two_hosts().await;
        let stuck = async |lab: &Lab, kvm1: &mut Host| -> JobId {
            let (job, hold) = held_move(lab, kvm1, "web01", "kvm2").await;
            assert_eq!(refusal(lab.client.dismiss_job(job.id).await), (409, vec![FindingId::JobOpen]));
            // Every attempt to remove the definition fails from now on.
            kvm1.hypervisor.faults().fail_always(Point::Undefine, "the disk is full");
            hold.release();
            let seen = lab.wait_for_job(job.id, |job| job.phase == Phase::Stuck).await;
            assert!(
                seen.summary.contains("has moved to kvm2") && seen.summary.contains("the disk is full"),
                "{}",
                seen.summary
            );
            let commands = [format!("`ferry job retry {}`", job.id), format!("`ferry job dismiss {}`", job.id)];
            assert!(commands.iter().all(|command| seen.summary.contains(command)), "{}", seen.summary);
            assert_eq!(refusal(lab.client.undo_job(job.id).await), (409, vec![FindingId::JobPastPivot]));
            assert_eq!(refusal(lab.client.cancel_job(job.id).await), (409, vec![FindingId::JobPastPivot]));
            job.id
        };
        let job = stuck(lab, &mut kvm1).await;
        kvm1.hypervisor.faults().clear();
        let asked = std::time::Instant::now();
        lab.client.retry_job(job).await.expect("asked");
        lab.wait_for_job(job, |job| job.phase == Phase::Succeeded).await;
        assert!(asked.elapsed() < std::time::Duration::from_secs(3), "not only after the next pause");
        assert_eq!(lab.running_on(vm), only("kvm2"));
        assert_eq!(kvm1.orphans(), Vec::<String>::new());

        let back = lab.migrate("web01", "kvm1").await.expect("accepted");
        lab.ends(&back, Phase::Succeeded).await;
        let job = stuck(lab, &mut kvm1).await;
        let dismissed = lab.client.dismiss_job(job).await.expect("dismissed");
        assert_eq!(dismissed.phase, Phase::Succeeded);
        assert!(dismissed.summary.contains("admin gave up"), "{}", dismissed.summary);
        assert_eq!(lab.running_on(vm), only("kvm2"));
        assert_eq!(refusal(lab.client.retry_job(job).await), (409, vec![FindingId::JobEnded]));
        lab.stop_server().await;
        lab.start_server().await;
        assert_eq!(lab.client.job(job).await.expect("known").phase, Phase::Succeeded, "nothing is taken up again");
    });
}

#[test]
fn a_job_whose_vm_was_removed_by_hand_can_be_dismissed_and_says_where_the_vm_is() {
    expects_warning("The job was dismissed");
    in_lab(async |lab| {
        let (kvm1, kvm2, _) = lab.two_hosts().await;
        let vm = lab.run(&kvm1, "db", |guest| guest.facts.autostart = true).await;
        let hold = Arc::new(kvm2.hypervisor.faults().hold(Point::SetAutostart));
        let job = lab.migrate("db", "kvm2").await.expect("accepted");
        reached(&hold).await;
        let seen = lab.wait_for_job(job.id, |job| job.phase == Phase::Completing).await;
        let (status, findings) = refusal(lab.client.dismiss_job(job.id).await);
        assert_eq!((status, findings), (409, vec![FindingId::JobOpen]), "it goes on: {}", seen.summary);

        kvm2.hypervisor.destroy(vm).expect("destroyed");
        kvm2.hypervisor.undefine(vm).expect("undefined");
        kvm1.hypervisor.undefine(vm).expect("undefined");
        wait_for("the server sees that it is gone", async || {
            lab.client.vms().await.expect("answered").iter().all(|shown| shown.facts.name != "db")
        })
        .await;
        let dismissed = lab.client.dismiss_job(job.id).await.expect("nothing can end it");
        assert_eq!(dismissed.phase, Phase::Succeeded);
        let answers = "VM db: is not known on kvm1, is not known on kvm2";
        assert!(dismissed.summary.contains(answers) && !dismissed.summary.contains("runs on"), "{}", dismissed.summary);
        assert!(dismissed.log.iter().any(|line| line.message.contains(answers)), "{:#?}", dismissed.log);
        hold.release();
    });
}

#[test]
fn a_job_that_fails_at_what_must_be_done_can_be_dismissed_before_it_is_stuck() {
    expects_warning(r#"A request failed title="Could not remove the definition of VM"#);
    expects_warning("The job was dismissed");
    in_lab(async |lab| {
        let (kvm1, _kvm2, vm) = lab.two_hosts().await;
        kvm1.hypervisor.faults().fail_always(Point::Undefine, "the disk is full");
        let job = lab.migrate("web01", "kvm2").await.expect("accepted");
        let waits = |job: &JobView| job.phase == Phase::Completing && job.summary.contains("Waits for: ");
        let seen = lab.wait_for_job(job.id, waits).await;
        let fix = format!("`ferry job dismiss {}`", job.id);
        assert!(seen.summary.contains("the disk is full") && seen.summary.contains(&fix), "{}", seen.summary);
        let dismissed = lab.client.dismiss_job(job.id).await.expect("dismissed");
        let answers = "VM web01: is shut off on kvm1, runs on kvm2";
        assert!(dismissed.summary.contains(answers), "{}", dismissed.summary);
        assert_eq!(lab.running_on(vm), only("kvm2"));
    });
}

#[test]
fn a_move_waits_for_a_database_that_cannot_be_written_and_then_goes_on() {
    expects_warning("The job waits for the database");
    expects_warning("The database failed");
    use sqlx::{Connection as _, Executor as _};
    in_lab(async |lab| {
        let (kvm1, _kvm2, vm) = lab.two_hosts().await;
        lab.run(&kvm1, "db", |_| {}).await;
        lab.client.set_host("kvm1", &SetHost { live_limit: Some(1), ..SetHost::default() }).await.expect("set");
        let (job, hold) = held_move(lab, &kvm1, "web01", "kvm2").await;
        let next = lab.migrate("db", "kvm2").await.expect("accepted");
        let database = lab.config().state_dir.join("ferry.db");
        let mut other = sqlx::SqliteConnection::connect(database.to_str().expect("text")).await.expect("opened");
        other.execute("BEGIN IMMEDIATE").await.expect("nobody writes for longer than a moment");
        hold.release();
        let waits = |job: &JobView| job.phase == Phase::Migrating && job.summary.contains("database");
        let seen = lab.wait_for_job(job.id, waits).await;
        assert!(!seen.summary.contains("not known yet which host has it"), "{}", seen.summary);
        lab.client.dismiss_job(job.id).await.expect_err("that cannot be written either");
        other.execute("ROLLBACK").await.expect("free again");
        lab.ends(&job, Phase::Succeeded).await;
        lab.ends(&next, Phase::Succeeded).await;
        assert_eq!(lab.running_on(vm), only("kvm2"));
    });
}

#[test]
fn what_could_not_be_taken_back_is_when_its_host_is_back() {
    expects_warning("The host's agent does not answer");
    expects_warning("The job is stuck; it is tried on");
    in_lab(async |lab| {
        let (kvm1, mut kvm2, vm) = lab.two_hosts().await;
        let (job, hold) = held_move(lab, &kvm1, "web01", "kvm2").await;
        let (client, id) = (lab.client.clone(), job.id);
        kvm2.stop().await;
        let abort = Arc::new(kvm1.hypervisor.faults().hold(Point::Abort));
        let cancel = tokio::spawn(async move { client.cancel_job(id).await });
        reached(&abort).await;
        abort.release();
        hold.release();
        let _ = cancel.await.expect("it ends");
        let seen = lab.wait_for_job(job.id, |job| job.phase == Phase::Stuck).await;
        assert!(seen.summary.contains("web01 stays on kvm1") && seen.summary.contains("kvm2"), "{}", seen.summary);
        assert_eq!(lab.running_on(vm), only("kvm1"));
        kvm2.start().await;
        let undone = lab.client.undo_job(job.id).await.expect("it is before the switchover");
        lab.ends(&undone, Phase::Cancelled).await;
        assert_eq!((kvm1.orphans(), kvm2.orphans()), (Vec::new(), Vec::new()));
    });
}

#[test]
fn each_job_that_ended_leaves_a_record() {
    expects_warning("libvirt's migrate call failed");
    in_lab(async |lab| {
        let (kvm1, _kvm2, vm) = lab.two_hosts().await;
        run_more(lab, &kvm1, &["db"]).await;
        let moved = lab.client.migrate_many(&several(&["web01", "db"], "kvm2")).await.expect("accepted");
        lab.ends(&moved, Phase::Succeeded).await;
        kvm1.hypervisor.faults().fail(Point::Prepare, "no room");
        let failed = lab.migrate("web01", "kvm1").await.expect("accepted");
        lab.ends(&failed, Phase::Failed).await;

        let page = lab.client.audit(None, None).await.expect("answered");
        assert_eq!(page.next, None);
        let jobs: Vec<_> = page.records.iter().map(|record| (record.job, record.outcome)).collect();
        let children: Vec<_> = moved.children.iter().map(|child| child.id).collect();
        let good = Phase::Succeeded;
        assert_eq!(jobs, [(moved.id, good), (children[0], good), (children[1], good), (failed.id, Phase::Failed)]);
        let record = &page.records[1];
        assert_eq!((record.by.as_str(), record.vm, record.parent), ("admin", Some(vm), Some(moved.id)));
        assert_eq!((record.source.as_str(), record.destination.as_str()), ("kvm1", "kvm2"));
        assert!(record.wire.is_some_and(|wire| wire.0 > 0) && record.downtime_ms.is_some(), "{record:?}");
        let changes = [
            "VM web01 moved from kvm1 to kvm2, running",
            "definition of VM web01 added on kvm2",
            "definition of VM web01 removed from kvm1",
        ];
        assert_eq!(record.changes.iter().map(ToString::to_string).collect::<Vec<_>>(), changes);
        let record = &page.records[3];
        assert!(record.changes.is_empty() && record.summary.contains("no room"), "{record:?}");
        assert!(!record.summary.contains(&vm.to_string()), "VMs are told by name: {record:?}");
        let after = lab.client.audit(None, Some(children[1])).await.expect("answered");
        assert_eq!(after.records.len(), 1);
        let later = record.accepted_at_ms;
        assert_eq!(lab.client.audit(Some(later), None).await.expect("answered").records.len(), 1);
        assert_eq!(lab.client.jobs(Some(later), None).await.expect("answered").len(), 1);
    });
}

#[test]
fn an_agent_hears_only_the_newest_life_of_its_server() {
    in_lab(async |lab| {
        let (kvm1, _kvm2, _) = lab.two_hosts().await;
        let key = ferry_trust::KeyPair::load_or_create(&lab.config().state_dir.join("agents.key")).expect("the key");
        let pin = kvm1.agent().key.pin();
        let of = |epoch| ferry_client::agent::AgentClient::in_epoch(&kvm1.address(), pin, &key, epoch).expect("usable");
        assert_eq!(refusal(of(1).host().await), (409, vec![FindingId::RequestStale]), "the server's own is a time");
        let unnumbered = ferry_client::agent::AgentClient::new(&kvm1.address(), pin, &key).expect("usable");
        unnumbered.host().await.expect("a server of the version before says no life");
        of(u64::MAX).host().await.expect("a newer life");
        lab.stop_server().await;
    });
}
