//! Jobs, newest first.

use ferry_core::{
    api::{
        problem::Title,
        server::{AuditPage, AuditRecord, JobView, StepState},
    },
    files::{DiskMove, DiskStage},
    finding::{Action, Finding, FindingId, Message},
    id::JobId,
    job::JobKind,
    job_text::{JobText, Part},
    location::Location,
    migration::Step,
    transfer::Preset,
};

use super::App;
use crate::{
    failure::Failure,
    plan::Plan,
    store::{JobRecord, LogRow, ShareRecord},
    view::lines,
};

/// The default length of a job list.
const JOBS_USUAL: u32 = 50;
const JOBS_MAX: u32 = 500;
/// The most jobs that one answer of the audit covers.
const AUDIT_MAX: u32 = 200;

pub(crate) async fn list(app: &App, since_ms: Option<u64>, limit: Option<u32>) -> Result<Vec<JobView>, Failure> {
    let limit = limit.unwrap_or(JOBS_USUAL).min(JOBS_MAX);
    let mut views = Vec::new();
    for (record, log) in app.store.jobs(since_ms.unwrap_or(0), limit).await? {
        views.push(app.jobs.view_of(&record, &log).await?);
    }
    Ok(views)
}

/// The records of ended jobs, oldest first, starting after job `after`.
pub(crate) async fn audit(app: &App, since_ms: Option<u64>, after: Option<u64>) -> Result<AuditPage, Failure> {
    let after = JobId(after.unwrap_or(0).min(i64::MAX as u64));
    let jobs = app.store.jobs_after(after, since_ms.unwrap_or(0), AUDIT_MAX).await?;
    let next = if jobs.len() as u32 == AUDIT_MAX { jobs.last().map(|(last, _)| last.id) } else { None };
    let shares = app.store.shares().await?;
    let mut records = Vec::with_capacity(jobs.len());
    for (record, log) in jobs {
        let view = app.jobs.view_of(&record, &log).await?;
        records.extend(view.ended_at_ms.map(|ended_at_ms| audit_record(&record, view, ended_at_ms, &shares)));
    }
    Ok(AuditPage { records, next })
}

/// What a job changed, by its kind. Even a job that did not succeed may have moved disks.
fn changes(job: &JobView, record: &JobRecord, shares: &[ShareRecord]) -> Vec<JobText> {
    let vm = || job.vm_name.clone();
    let (source, destination) = (|| job.source.clone(), || job.destination.clone());
    let is_done = |step| job.steps.iter().any(|view| view.step == step && view.state == StepState::Done);
    let mut changes = Vec::new();
    match record.job.kind {
        JobKind::Several | JobKind::Drain => {}
        JobKind::Storage => {
            let requested = Plan::of(record).map(Plan::disks).unwrap_or_default();
            let moved = |disk: &&DiskMove| {
                job.disks.iter().any(|view| view.device == disk.device && view.stage == DiskStage::Moved)
            };
            changes.extend(requested.iter().filter(moved).map(|disk| {
                let (from, to) = (named(&disk.from, shares), named(&disk.to, shares));
                JobText::DiskMoved { disk: disk.device.clone(), vm: vm(), host: source(), from, to }
            }));
        }
        JobKind::Live | JobKind::LiveVsm | JobKind::Offline if is_done(Step::Perform) => {
            let (vm_name, from, to) = (vm(), source(), destination());
            changes.push(match record.job.kind == JobKind::Offline {
                true => JobText::VmMovedShutOff { vm: vm_name, source: from, destination: to },
                false => JobText::VmMovedRunning { vm: vm_name, source: from, destination: to },
            });
            changes.extend(job.disks.iter().map(|disk| JobText::FileMoved { file: disk.device.clone(), vm: vm() }));
            if Plan::of(record).is_ok_and(|plan| plan.is_persistent()) {
                changes.push(JobText::DefinitionAdded { vm: vm(), host: destination() });
                let removed = is_done(Step::Confirm).then(|| JobText::DefinitionRemoved { vm: vm(), host: source() });
                changes.extend(removed);
            }
        }
        JobKind::Live | JobKind::LiveVsm | JobKind::Offline => {}
    }
    changes
}

/// Where a file was or is.
fn named(location: &Location, shares: &[ShareRecord]) -> Part {
    Box::new(match location {
        Location::Local { path, .. } => JobText::AtPath { path: path.clone() },
        Location::Share { share, path } => match shares.iter().find(|known| known.id == *share) {
            Some(known) => JobText::OnShare { path: path.clone(), share: known.name.clone() },
            None => JobText::OnRemovedShare { path: path.clone() },
        },
    })
}

fn audit_record(record: &JobRecord, job: JobView, ended_at_ms: u64, shares: &[ShareRecord]) -> AuditRecord {
    let changes = changes(&job, record, shares);
    let plan = Plan::of(record).ok();
    let preset = plan.as_ref().and_then(Plan::transfer).map_or(Preset::Standard, |moved| moved.preset);
    AuditRecord {
        job: job.id,
        parent: job.parent,
        by: job.by,
        accepted_at_ms: job.accepted_at_ms,
        ended_at_ms,
        kind: job.kind,
        vm: job.vm,
        vm_name: job.vm_name,
        source: job.source,
        destination: job.destination,
        preset: preset.name().to_owned(),
        network: plan.and_then(|plan| plan.route()).map(|route| route.network),
        outcome: job.phase,
        attempts: job.attempt,
        wire: job.figures.map(|figures| figures.wire),
        downtime_ms: job.figures.map(|figures| figures.downtime_ms),
        changes,
        summary: job.summary,
        overcommit: Plan::overcommits(record),
    }
}

pub(crate) async fn one(app: &App, reference: &str) -> Result<JobView, Failure> {
    let (record, log) = find(app, &Title::ShowJob { job: reference.to_owned() }, reference).await?;
    with_log(app, &record, &log).await
}

async fn with_log(app: &App, record: &JobRecord, log: &[LogRow]) -> Result<JobView, Failure> {
    let plan = Plan::of(record).ok();
    let (transfer, route) = (plan.as_ref().and_then(Plan::transfer), plan.as_ref().and_then(Plan::route));
    Ok(JobView { log: lines(record, log), transfer, route, ..app.jobs.view_of(record, log).await? })
}

/// The current view of a job, after an action on it.
pub(super) async fn again(app: &App, title: &Title, job: JobId) -> Result<JobView, Failure> {
    let (record, log) = app.store.job_with_log(job).await?.ok_or_else(|| unknown(title, &job.to_string()))?;
    with_log(app, &record, &log).await
}

/// The job with this number, with its log.
pub(super) async fn find(app: &App, title: &Title, reference: &str) -> Result<(JobRecord, Vec<LogRow>), Failure> {
    let found = match reference.parse::<u64>() {
        // No job has a number that the database cannot hold.
        Ok(number) if i64::try_from(number).is_ok() => app.store.job_with_log(JobId(number)).await?,
        _ => None,
    };
    found.ok_or_else(|| unknown(title, reference))
}

fn unknown(title: &Title, reference: &str) -> Failure {
    let message = Message::JobUnknown { job: reference.to_owned() };
    let finding = Finding::blocks(FindingId::JobUnknown, reference, message, Action::ListJobs);
    Failure::found(title, finding)
}
