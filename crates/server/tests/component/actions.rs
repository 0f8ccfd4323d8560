//! What a job offers in each state is what can be done about it: each action that it offers works, each other is refused.

use std::sync::Arc;

use ferry_client::{ClientError, server::ServerClient};
use ferry_core::{
    api::server::{JobView, SetHost},
    finding::FindingId,
    id::JobId,
    migration::{JobAction, Phase},
};
use ferry_drivers::hypervisor::fake::{Hold, Point};
use ferry_testkit::logs::expects_warning;

use crate::{
    moves::reached,
    support::{Host, Lab, in_lab, refusal, wait_for},
};

use JobAction::{Cancel, Dismiss, Restart, Retry, Undo};

async fn ask(client: &ServerClient, action: JobAction, job: JobId) -> Result<JobView, ClientError> {
    match action {
        Cancel => client.cancel_job(job).await,
        Undo => client.undo_job(job).await,
        Retry => client.retry_job(job).await,
        Dismiss => client.dismiss_job(job).await,
        Restart => client.restart_job(job).await,
    }
}

/// Sees that each job offers these actions, and that every other is refused.
async fn offer(lab: &Lab, jobs: &[JobId], offered: &[JobAction]) {
    for job in jobs {
        let before = lab.wait_for_job(*job, |seen| seen.next == offered).await;
        for action in JobAction::ALL.into_iter().filter(|action| !offered.contains(action)) {
            let (status, findings) = refusal(ask(&lab.client, action, *job).await);
            assert_eq!(status, 409, "{action:?} {findings:?}");
            let expected = match (action, before.phase) {
                (Cancel | Undo | Retry | Dismiss, Phase::Succeeded | Phase::Cancelled | Phase::Failed) => {
                    FindingId::JobEnded
                }
                (Cancel | Undo, _) => FindingId::JobPastPivot,
                (Retry | Dismiss | Restart, _) => FindingId::JobOpen,
            };
            assert_eq!(findings, [expected], "{action:?}");
        }
        let after = lab.client.job(*job).await.expect("known");
        assert_eq!((after.phase, after.next.as_slice()), (before.phase, offered), "nothing has changed");
    }
}

/// Asks for one action of each job, then removes what holds the jobs up: each ends in its phase.
async fn work(lab: &Lab, asked: &[(JobId, JobAction, Phase)], mend: impl AsyncFnOnce()) {
    let mut answers = Vec::new();
    for (job, action, _) in asked.iter().copied() {
        let (client, lines) = (lab.client.clone(), lab.client.job(job).await.expect("known").log.len());
        let answer = tokio::spawn(async move { ask(&client, action, job).await });
        // A host may answer a cancel only when what holds it up is gone.
        let is_taken = async || answer.is_finished() || lab.client.job(job).await.expect("known").log.len() > lines;
        wait_for("the action is taken", is_taken).await;
        answers.push(answer);
    }
    mend().await;
    for (answer, (job, action, phase)) in answers.into_iter().zip(asked) {
        let view = answer.await.expect("no panic").unwrap_or_else(|error| panic!("{action:?} is offered: {error:?}"));
        assert_eq!(view.id, *job);
        lab.ends(&view, *phase).await;
    }
}

/// Begins moves of new VMs from `kvm1` to `kvm2`, and waits until each is held at a point there.
async fn held(lab: &Lab, kvm1: &Host, vms: &[&str], point: Point) -> (Vec<JobId>, Vec<Arc<Hold>>) {
    for host in ["kvm1", "kvm2"] {
        let limits = SetHost { live_limit: Some(8), ..SetHost::default() };
        lab.client.set_host(host, &limits).await.expect("set");
    }
    let (mut jobs, mut holds) = (Vec::new(), Vec::new());
    for vm in vms {
        lab.run(kvm1, vm, |guest| guest.facts.autostart = true).await;
        let hold = Arc::new(kvm1.hypervisor.faults().hold(point));
        jobs.push(lab.migrate(vm, "kvm2").await.expect("accepted").id);
        reached(&hold).await;
        holds.push(hold);
    }
    (jobs, holds)
}

fn release(holds: &[Arc<Hold>]) {
    holds.iter().for_each(|hold| hold.release());
}

#[test]
fn a_job_that_is_queued() {
    in_lab(async |lab| {
        let (kvm1, _kvm2, _) = lab.two_hosts().await;
        let (_, holds) = held(lab, &kvm1, &["first"], Point::Pass(2)).await;
        lab.client.set_host("kvm1", &SetHost { live_limit: Some(1), ..SetHost::default() }).await.expect("set");
        let mut jobs = Vec::new();
        for vm in ["a", "b"] {
            lab.run(&kvm1, vm, |_| {}).await;
            jobs.push(lab.migrate(vm, "kvm2").await.expect("accepted").id);
        }
        offer(lab, &jobs, &[Cancel, Undo]).await;
        let asked = [(jobs[0], Cancel, Phase::Cancelled), (jobs[1], Undo, Phase::Cancelled)];
        work(lab, &asked, async || release(&holds)).await;
    });
}

#[test]
fn a_job_that_is_prepared_or_moves() {
    expects_warning(
        "The control connection from the source is gone; a complete copy stays paused here until it is known who has it",
    );
    for (point, phase) in [(Point::SetAutostart, Phase::Preparing), (Point::Pass(2), Phase::Migrating)] {
        in_lab(async |lab| {
            let (kvm1, _kvm2, _) = lab.two_hosts().await;
            let (jobs, holds) = held(lab, &kvm1, &["a", "b"], point).await;
            assert_eq!(lab.client.job(jobs[0]).await.expect("known").phase, phase);
            offer(lab, &jobs, &[Cancel, Undo]).await;
            let asked = [(jobs[0], Cancel, Phase::Cancelled), (jobs[1], Undo, Phase::Cancelled)];
            work(lab, &asked, async || release(&holds)).await;
        });
    }
}

#[test]
fn a_job_that_moves_and_waits_for_a_host() {
    expects_warning("The job was dismissed");
    in_lab(async |lab| {
        let (kvm1, mut kvm2, _) = lab.two_hosts().await;
        let (jobs, holds) = held(lab, &kvm1, &["a", "b", "c", "d"], Point::Pass(2)).await;
        kvm2.stop().await;
        offer(lab, &jobs, &[Cancel, Undo, Retry, Dismiss]).await;
        let asked = [
            (jobs[3], Dismiss, Phase::Failed),
            (jobs[0], Cancel, Phase::Cancelled),
            (jobs[1], Undo, Phase::Cancelled),
            (jobs[2], Retry, Phase::Succeeded),
        ];
        let mend = async || {
            kvm2.start().await;
            release(&holds);
        };
        work(lab, &asked, mend).await;
    });
}

#[test]
fn a_job_that_is_cancelled_just_now() {
    in_lab(async |lab| {
        let (kvm1, _kvm2, _) = lab.two_hosts().await;
        let (jobs, holds) = held(lab, &kvm1, &["a"], Point::Pass(2)).await;
        let abort = Arc::new(kvm1.hypervisor.faults().hold(Point::Abort));
        let mend = async || {
            reached(&abort).await;
            let seen = lab.wait_for_job(jobs[0], |seen| seen.next.is_empty()).await;
            assert_eq!(seen.phase, Phase::Migrating);
            for action in [Retry, Dismiss, Restart] {
                let answer = refusal(ask(&lab.client, action, jobs[0]).await);
                assert_eq!(answer, (409, vec![FindingId::JobOpen]), "{action:?}");
            }
            abort.release();
            release(&holds);
        };
        work(lab, &[(jobs[0], Cancel, Phase::Cancelled)], mend).await;
        let again = lab.client.job(jobs[0]).await.expect("known");
        assert_eq!(again.next, [Restart]);
    });
}

#[test]
fn a_job_that_completes() {
    in_lab(async |lab| {
        let (kvm1, kvm2, _) = lab.two_hosts().await;
        lab.run(&kvm1, "a", |guest| guest.facts.autostart = true).await;
        let hold = Arc::new(kvm2.hypervisor.faults().hold(Point::SetAutostart));
        let job = lab.migrate("a", "kvm2").await.expect("accepted");
        reached(&hold).await;
        assert_eq!(lab.client.job(job.id).await.expect("known").phase, Phase::Completing);
        offer(lab, &[job.id], &[]).await;
        hold.release();
        lab.ends(&job, Phase::Succeeded).await;
        offer(lab, &[job.id], &[]).await;
    });
}

#[test]
fn a_job_that_cannot_complete() {
    expects_warning(r#"A request failed title="Could not remove the definition of VM"#);
    expects_warning("The job is stuck; it is tried on");
    expects_warning("The job was dismissed");
    in_lab(async |lab| {
        let (kvm1, _kvm2, _) = lab.two_hosts().await;
        let (jobs, holds) = held(lab, &kvm1, &["a", "b"], Point::Pass(2)).await;
        kvm1.hypervisor.faults().fail_always(Point::Undefine, "the disk is full");
        release(&holds);
        offer(lab, &jobs, &[Retry, Dismiss]).await;
        for job in &jobs {
            lab.wait_for_job(*job, |seen| seen.phase == Phase::Stuck).await;
        }
        offer(lab, &jobs, &[Retry, Dismiss]).await;
        work(lab, &[(jobs[1], Dismiss, Phase::Succeeded)], async || kvm1.hypervisor.faults().clear()).await;
        work(lab, &[(jobs[0], Retry, Phase::Succeeded)], async || {}).await;
    });
}

#[test]
fn a_job_that_cannot_be_undone() {
    expects_warning("The host's agent does not answer");
    expects_warning("The job is stuck; it is tried on");
    expects_warning("The job was dismissed");
    in_lab(async |lab| {
        let (kvm1, mut kvm2, _) = lab.two_hosts().await;
        let (jobs, holds) = held(lab, &kvm1, &["a", "b", "c"], Point::Pass(2)).await;
        kvm2.stop().await;
        let cancels = jobs.iter().map(|job| {
            let (client, job) = (lab.client.clone(), *job);
            tokio::spawn(async move { client.cancel_job(job).await })
        });
        let cancels: Vec<_> = cancels.collect();
        for job in &jobs {
            lab.wait_for_job(*job, |seen| seen.log.iter().any(|line| line.message.contains("asked to cancel"))).await;
        }
        release(&holds);
        for cancel in cancels {
            let _ = cancel.await.expect("it ends");
        }
        for phase in [Phase::RollingBack, Phase::Stuck] {
            for job in &jobs {
                lab.wait_for_job(*job, |seen| seen.phase == phase).await;
            }
            for job in &jobs {
                lab.wait_for_job(*job, |seen| seen.next == [Undo, Retry, Dismiss]).await;
                let answer = refusal(lab.client.restart_job(*job).await);
                assert_eq!(answer, (409, vec![FindingId::JobOpen]), "{phase:?}");
                lab.client.cancel_job(*job).await.expect("it is being undone already");
            }
        }
        let asked =
            [(jobs[2], Dismiss, Phase::Failed), (jobs[0], Undo, Phase::Cancelled), (jobs[1], Retry, Phase::Cancelled)];
        work(lab, &asked, async || kvm2.start().await).await;
    });
}

#[test]
fn a_job_that_ended_without_success() {
    expects_warning("libvirt's migrate call failed");
    in_lab(async |lab| {
        let (kvm1, kvm2, _) = lab.two_hosts().await;
        kvm2.hypervisor.faults().fail(Point::Prepare, "no room");
        let failed = lab.migrate("web01", "kvm2").await.expect("accepted");
        lab.ends(&failed, Phase::Failed).await;
        let (jobs, holds) = held(lab, &kvm1, &["a"], Point::Pass(2)).await;
        work(lab, &[(jobs[0], Cancel, Phase::Cancelled)], async || release(&holds)).await;
        let jobs = [failed.id, jobs[0]];
        offer(lab, &jobs, &[Restart]).await;
        for job in jobs {
            let view = lab.client.restart_job(job).await.expect("it is offered");
            lab.ends(&view, Phase::Succeeded).await;
        }
    });
}
