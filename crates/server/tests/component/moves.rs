//! Moves, from the REST API to the fake hypervisors.

use std::{collections::BTreeSet, sync::Arc};

use ferry_core::{
    api::server::{Event, JobView, MigrateVm, StepState},
    finding::FindingId,
    migration::{Phase, Step},
    vm::VmState,
};
use ferry_drivers::hypervisor::fake::{Hold, Point};
use ferry_testkit::logs::expects_warning;

use crate::support::{DEADLINE, in_lab, refusal, wait_for};

pub fn only(host: &str) -> BTreeSet<String> {
    BTreeSet::from([host.to_owned()])
}

/// Waits until the hold is reached, without blocking the runtime.
pub async fn reached(hold: &Arc<Hold>) {
    let waiting = hold.clone();
    let came = tokio::task::spawn_blocking(move || waiting.wait_reached(DEADLINE)).await;
    assert!(came.expect("it waits"), "nobody came");
}

#[test]
fn a_vm_moves_there_and_back_and_runs_once_at_any_time() {
    in_lab(async |lab| {
        let (_kvm1, _kvm2, vm) = lab.two_hosts().await;
        for (from, to) in [("kvm1", "kvm2"), ("kvm2", "kvm1"), ("kvm1", "kvm2")] {
            let job = lab.migrate("web01", to).await.expect("accepted");
            let job = lab.ends(&job, Phase::Succeeded).await;
            assert_eq!((job.source.as_str(), job.destination.as_str()), (from, to));
            assert!(job.steps.iter().all(|step| step.state == StepState::Done), "{:#?}", job.steps);
            assert_eq!(lab.running_on(vm), only(to));
            let vms = lab.client.vms().await.expect("answered");
            assert_eq!(vms.len(), 1, "one VM, at one place: {vms:#?}");
            assert_eq!((vms[0].host.as_str(), vms[0].job), (to, None));
            let figures = job.figures.expect("a move that succeeded has figures");
            assert!(figures.total_ms >= figures.migrate_ms && figures.wire.0 > 0, "{figures:?}");
            assert!(figures.accepted_to_migrate_ms > 0 && figures.downtime_ms > 0, "{figures:?}");
        }
    });
}

#[test]
fn a_dry_run_says_what_it_would_be_and_changes_nothing() {
    in_lab(async |lab| {
        let (_kvm1, _kvm2, vm) = lab.two_hosts().await;
        let body = MigrateVm { destination: "kvm2".into(), ..MigrateVm::default() };
        let candidate = lab.client.try_migrate("web01", &body).await.expect("judged");
        assert!(candidate.kind.is_some() && candidate.findings.is_empty(), "{candidate:?}");
        let candidates = lab.client.candidates("web01").await.expect("judged");
        let kinds: Vec<_> = candidates.iter().map(|one| (one.host.as_str(), one.kind.is_some())).collect();
        assert_eq!(kinds, [("kvm1", false), ("kvm2", true)]);
        assert_eq!(lab.client.jobs(None, None).await.expect("answered"), []);
        assert_eq!(lab.running_on(vm), only("kvm1"));
    });
}

#[test]
fn vm_stays_at_source_when_destination_refuses() {
    expects_warning("libvirt's migrate call failed");
    in_lab(async |lab| {
        let (kvm1, kvm2, vm) = lab.two_hosts().await;
        kvm2.hypervisor.faults().fail(Point::Prepare, "no room");
        let job = lab.migrate("web01", "kvm2").await.expect("accepted");
        let job = lab.ends(&job, Phase::Failed).await;
        assert!(job.summary.contains("web01 stays on kvm1") && job.summary.contains("no room"), "{}", job.summary);
        assert_eq!(lab.running_on(vm), only("kvm1"));
        assert_eq!(kvm1.orphans(), Vec::<String>::new());
        assert_eq!(kvm2.orphans(), Vec::<String>::new());
        let job = lab.migrate("web01", "kvm2").await.expect("a second try is accepted");
        lab.ends(&job, Phase::Succeeded).await;
        assert_eq!(lab.running_on(vm), only("kvm2"));
    });
}

#[test]
fn vm_runs_at_source_when_the_finish_reply_is_lost() {
    expects_warning("libvirt's migrate call failed");
    in_lab(async |lab| {
        let (kvm1, kvm2, vm) = lab.two_hosts().await;
        kvm2.hypervisor.faults().cut(Point::FinishReply);
        let job = lab.migrate("web01", "kvm2").await.expect("accepted");
        lab.ends(&job, Phase::Failed).await;
        assert_eq!(lab.running_on(vm), only("kvm1"));
        assert!(lab.client.vm("kvm2/web01").await.is_err(), "nothing is left at the destination");
        assert_eq!((kvm1.orphans(), kvm2.orphans()), (Vec::new(), Vec::new()));
    });
}

#[test]
fn a_cancelled_move_leaves_the_vm_as_it_was() {
    expects_warning("libvirt's migrate call failed");
    in_lab(async |lab| {
        let (kvm1, kvm2, _) = lab.two_hosts().await;
        let vm = lab.run(&kvm1, "db", |guest| guest.facts.autostart = true).await;
        let hold = Arc::new(kvm1.hypervisor.faults().hold(Point::Pass(2)));
        let job = lab.migrate("db", "kvm2").await.expect("accepted");
        reached(&hold).await;
        lab.wait_for_job(job.id, |job| job.phase == Phase::Migrating).await;
        let (client, id) = (lab.client.clone(), job.id);
        let cancel = tokio::spawn(async move { client.cancel_job(id).await });
        let is_asked =
            async || lab.client.job(id).await.expect("known").log.iter().any(|line| line.message.contains("cancel"));
        wait_for("the cancel is noted", is_asked).await;
        hold.release();
        cancel.await.expect("it ends").expect("not too late");
        let job = lab.ends(&job, Phase::Cancelled).await;
        assert!(job.summary.contains("db stays on kvm1"), "{}", job.summary);
        assert_eq!(lab.running_on(vm), only("kvm1"));
        let is_back = async || lab.client.vm("db").await.is_ok_and(|vm| vm.facts.autostart);
        wait_for("autostart is back", is_back).await;
        assert_eq!((kvm1.orphans(), kvm2.orphans()), (Vec::new(), Vec::new()));
        assert_eq!(refusal(lab.client.cancel_job(id).await), (409, vec![FindingId::JobEnded]));
    });
}

#[test]
fn autostart_follows_the_vm() {
    in_lab(async |lab| {
        let (kvm1, _kvm2, _) = lab.two_hosts().await;
        lab.run(&kvm1, "db", |guest| guest.facts.autostart = true).await;
        let job = lab.migrate("db", "kvm2").await.expect("accepted");
        lab.ends(&job, Phase::Succeeded).await;
        let has_it = async || lab.client.vm("db").await.is_ok_and(|vm| vm.host == "kvm2" && vm.facts.autostart);
        wait_for("kvm2 starts it at boot", has_it).await;
    });
}

#[test]
fn while_a_vm_moves_nobody_else_touches_it() {
    in_lab(async |lab| {
        let (kvm1, _kvm2, _) = lab.two_hosts().await;
        let hold = Arc::new(kvm1.hypervisor.faults().hold(Point::Pass(1)));
        let job = lab.migrate("web01", "kvm2").await.expect("accepted");
        reached(&hold).await;
        let busy = (409, vec![FindingId::VmBusy]);
        assert_eq!(refusal(lab.migrate("web01", "kvm2").await), busy);
        assert_eq!(refusal(lab.client.shutdown_vm("web01").await), busy);
        assert_eq!(refusal(lab.client.remove_host("kvm2").await), (409, vec![FindingId::HostBusy]));
        assert_eq!(refusal(lab.client.detach_share("vms", "kvm2").await), (409, vec![FindingId::ShareInUse]));
        let shown = lab.client.vm("web01").await.expect("one VM of that name");
        assert_eq!((shown.host.as_str(), shown.job), ("kvm1", Some(job.id)));
        hold.release();
        lab.ends(&job, Phase::Succeeded).await;
    });
}

#[test]
fn of_two_moves_asked_for_at_once_one_is_accepted() {
    in_lab(async |lab| {
        let (kvm1, _kvm2, vm) = lab.two_hosts().await;
        let hold = Arc::new(kvm1.hypervisor.faults().hold(Point::Pass(1)));
        let answers = tokio::join!(lab.migrate("web01", "kvm2"), lab.migrate("web01", "kvm2"));
        let (job, other) = match answers {
            (Ok(job), other) | (other, Ok(job)) => (job, other),
            neither => panic!("{neither:#?}"),
        };
        assert_eq!(refusal(other), (409, vec![FindingId::VmBusy]));
        hold.release();
        lab.ends(&job, Phase::Succeeded).await;
        assert_eq!(lab.running_on(vm), only("kvm2"));
    });
}

#[test]
fn a_move_goes_on_while_the_server_is_restarted() {
    in_lab(async |lab| {
        let (kvm1, _kvm2, vm) = lab.two_hosts().await;
        let hold = Arc::new(kvm1.hypervisor.faults().hold(Point::Pass(2)));
        let job = lab.migrate("web01", "kvm2").await.expect("accepted");
        reached(&hold).await;
        lab.stop_server().await;
        lab.start_server().await;
        hold.release();
        let job = lab.ends(&job, Phase::Succeeded).await;
        assert!(job.figures.is_some());
        assert_eq!(lab.running_on(vm), only("kvm2"));
    });
}

#[test]
fn a_move_that_ended_while_the_server_was_away_is_finished_when_it_is_back() {
    in_lab(async |lab| {
        let (kvm1, kvm2, vm) = lab.two_hosts().await;
        let hold = Arc::new(kvm1.hypervisor.faults().hold(Point::Pass(2)));
        let job = lab.migrate("web01", "kvm2").await.expect("accepted");
        reached(&hold).await;
        lab.stop_server().await;
        hold.release();
        wait_for("kvm2 runs the VM", async || lab.world.running_on(vm) == only("kvm2")).await;
        lab.start_server().await;
        lab.ends(&job, Phase::Succeeded).await;
        assert_eq!(lab.running_on(vm), only("kvm2"));
        assert_eq!((kvm1.orphans(), kvm2.orphans()), (Vec::new(), Vec::new()));
    });
}

#[test]
fn a_move_goes_on_while_an_agent_is_restarted() {
    expects_warning("The host's agent does not answer");
    in_lab(async |lab| {
        let (mut kvm1, mut kvm2, vm) = lab.two_hosts().await;
        let hold = Arc::new(kvm1.hypervisor.faults().hold(Point::Pass(2)));
        let job = lab.migrate("web01", "kvm2").await.expect("accepted");
        reached(&hold).await;
        kvm1.stop().await;
        kvm2.stop().await;
        hold.release();
        wait_for("kvm2 runs the VM", async || lab.world.running_on(vm) == only("kvm2")).await;
        kvm2.start().await;
        kvm1.start().await;
        lab.ends(&job, Phase::Succeeded).await;
        assert_eq!(lab.running_on(vm), only("kvm2"));
    });
}

#[test]
fn a_source_that_cannot_be_cleaned_is_cleaned_later() {
    expects_warning(r#"A request failed title="Could not remove the definition of VM"#);
    in_lab(async |lab| {
        let (kvm1, _kvm2, vm) = lab.two_hosts().await;
        for nth in 1..=3 {
            kvm1.hypervisor.faults().fail_nth(Point::Undefine, nth, "libvirt is busy");
        }
        let job = lab.migrate("web01", "kvm2").await.expect("accepted");
        lab.ends(&job, Phase::Succeeded).await;
        assert_eq!(lab.running_on(vm), only("kvm2"));
        assert!(lab.client.vm("kvm1/web01").await.is_err());
    });
}

#[test]
fn after_the_switchover_a_cancel_is_refused() {
    in_lab(async |lab| {
        let (kvm1, _kvm2, vm) = lab.two_hosts().await;
        let hold = Arc::new(kvm1.hypervisor.faults().hold(Point::Undefine));
        let job = lab.migrate("web01", "kvm2").await.expect("accepted");
        reached(&hold).await;
        assert_eq!(refusal(lab.client.cancel_job(job.id).await), (409, vec![FindingId::JobPastPivot]));
        hold.release();
        lab.ends(&job, Phase::Succeeded).await;
        assert_eq!(lab.running_on(vm), only("kvm2"));
    });
}

#[test]
fn who_has_the_vm_is_never_guessed_but_waited_for() {
    expects_warning("The host's agent does not answer");
    expects_warning("libvirt's migrate call failed");
    in_lab(async |lab| {
        let (mut kvm1, kvm2, vm) = lab.two_hosts().await;
        let hold = Arc::new(kvm1.hypervisor.faults().hold(Point::Pass(2)));
        kvm2.hypervisor.faults().cut(Point::FinishReply);
        let job = lab.migrate("web01", "kvm2").await.expect("accepted");
        reached(&hold).await;
        kvm1.stop().await;
        hold.release();
        // The hand-over fails, and only kvm1 could report that its copy continues to run.
        let waits = |job: &JobView| job.phase == Phase::Migrating && job.summary.contains("Waits for: ");
        let job = lab.wait_for_job(job.id, waits).await;
        assert!(job.summary.contains("kvm1"), "{}", job.summary);
        kvm1.start().await;
        lab.ends(&job, Phase::Failed).await;
        assert_eq!(lab.running_on(vm), only("kvm1"));
        assert_eq!((kvm1.orphans(), kvm2.orphans()), (Vec::new(), Vec::new()));
    });
}

#[test]
fn a_server_that_is_restarted_in_any_step_finishes_the_move() {
    in_lab(async |lab| {
        let (kvm1, kvm2, vm) = lab.two_hosts().await;
        for (turn, step) in Step::ALL.into_iter().enumerate() {
            let to = if turn % 2 == 0 { "kvm2" } else { "kvm1" };
            let job = lab.migrate("web01", to).await.expect("accepted");
            let began = |job: &JobView| job.steps[step as usize].started_at_ms.is_some();
            lab.wait_for_job(job.id, began).await;
            lab.stop_server().await;
            lab.start_server().await;
            let job = lab.ends(&job, Phase::Succeeded).await;
            assert_eq!(lab.running_on(vm), only(to), "{step:?} {job:#?}");
            assert_eq!((kvm1.orphans(), kvm2.orphans()), (Vec::new(), Vec::new()), "{step:?}");
            wait_for("both hosts answer", async || {
                lab.client.hosts().await.is_ok_and(|hosts| hosts.iter().all(|host| host.reachable))
            })
            .await;
        }
    });
}

#[test]
fn an_open_event_stream_does_not_hold_up_the_servers_end() {
    in_lab(async |lab| {
        let mut events = lab.client.events(None).await.expect("listening");
        let begun = std::time::Instant::now();
        lab.stop_server().await;
        assert!(begun.elapsed() < std::time::Duration::from_secs(4), "{:?}", begun.elapsed());
        assert!(matches!(events.next().await, Ok(None) | Err(_)));
    });
}

#[test]
fn listeners_hear_of_a_job_from_its_acceptance_to_its_end_and_can_come_back() {
    in_lab(async |lab| {
        let (_kvm1, _kvm2, _) = lab.two_hosts().await;
        let mut events = lab.client.events(None).await.expect("listening");
        let job = lab.migrate("web01", "kvm2").await.expect("accepted");
        let mut first = None;
        let heard = tokio::time::timeout(DEADLINE, async {
            loop {
                match events.next().await.expect("the stream goes on") {
                    Some(Event::Job(view)) if view.id == job.id => {
                        first = first.or(events.last());
                        if view.phase.ended() {
                            return view;
                        }
                    }
                    Some(_) => {}
                    None => panic!("the stream ended"),
                }
            }
        });
        let last = heard.await.expect("the job ends");
        assert_eq!(last.phase, Phase::Succeeded);
        let resume = last.steps.iter().find(|step| step.step == Step::Resume).expect("it has one");
        assert_eq!(resume.state, StepState::Done);
        drop(events);
        let mut again = lab.client.events(first).await.expect("listening");
        assert!(matches!(again.next().await, Ok(Some(_))), "what came after the first is still there");
        let mut foreign = lab.client.events(Some(3)).await.expect("listening");
        assert_eq!(foreign.next().await.expect("an event"), Some(Event::Reset));
    });
}

#[test]
fn a_vm_that_runs_twice_is_said_to() {
    expects_warning("The VM runs on several hosts at once");
    in_lab(async |lab| {
        let (_kvm1, kvm2, vm) = lab.two_hosts().await;
        // Somebody starts a copy by hand, past every check.
        lab.define(&kvm2, "web01", |guest| guest.facts.id = vm).await;
        use ferry_drivers::hypervisor::Power as _;
        kvm2.hypervisor.start(vm).expect("started");
        let is_reported = async || {
            let shown = lab.client.vms().await.expect("answered");
            shown.iter().any(|vm| vm.findings.iter().any(|finding| finding.id == FindingId::VmRunsTwice))
        };
        wait_for("it is said", is_reported).await;
        assert_eq!(refusal(lab.migrate("web01", "kvm2").await), (409, vec![FindingId::VmRunsTwice]));
        kvm2.hypervisor.destroy(vm).expect("destroyed");
        lab.wait_for_state("kvm2/web01", VmState::ShutOff).await;
        let shown = lab.client.vm("kvm1/web01").await.expect("answered");
        assert_eq!(shown.findings, []);
    });
}

/// Points at which an agent can be made to fail, and whether a failure there ends the move.
#[cfg(feature = "failpoints")]
const AGENT_POINTS: [(&str, bool); 8] = [
    ("agent-prepare-destination", true),
    ("agent-prepared-destination", true),
    ("agent-prepare-source", true),
    ("agent-prepared-source", true),
    ("agent-perform", true),
    ("agent-confirm", false),
    ("agent-confirmed", false),
    ("agent-released", false),
];

#[cfg(feature = "failpoints")]
#[test]
fn an_agent_that_fails_anywhere_once_leaves_the_vm_in_one_place_and_nothing_behind() {
    expects_warning(r#"A request failed title="A test made it fail at"#);
    expects_warning(
        "The control connection from the source is gone; a complete copy stays paused here until it is known who has it",
    );
    in_lab(async |lab| {
        let (kvm1, kvm2, vm) = lab.two_hosts().await;
        for (point, ends_the_move) in AGENT_POINTS {
            let from = lab.client.vm("web01").await.expect("known").host;
            let to = if from == "kvm1" { "kvm2" } else { "kvm1" };
            fail::cfg(point, "1*return").expect("a failpoint");
            let job = lab.migrate("web01", to).await.expect("accepted");
            let ended = lab.wait_for_job(job.id, |view| view.phase.ended()).await;
            let expected = if ends_the_move { Phase::Failed } else { Phase::Succeeded };
            assert_eq!(ended.phase, expected, "{point}: {ended:#?}");
            fail::remove(point);
            assert_eq!(lab.running_on(vm), only(if ends_the_move { &from } else { to }), "{point}");
            assert_eq!((kvm1.orphans(), kvm2.orphans()), (Vec::new(), Vec::new()), "{point}");
        }
        // The undo fails once as well, and is repeated.
        for point in ["agent-abort", "agent-undone", "agent-release", "agent-released"] {
            let from = lab.client.vm("web01").await.expect("known").host;
            let to = if from == "kvm1" { "kvm2" } else { "kvm1" };
            fail::cfg("agent-prepared-source", "1*return").expect("a failpoint");
            fail::cfg(point, "1*return").expect("a failpoint");
            let job = lab.migrate("web01", to).await.expect("accepted");
            lab.ends(&job, Phase::Failed).await;
            assert_eq!(lab.running_on(vm), only(&from), "{point}");
            assert_eq!((kvm1.orphans(), kvm2.orphans()), (Vec::new(), Vec::new()), "{point}");
        }
    });
}
