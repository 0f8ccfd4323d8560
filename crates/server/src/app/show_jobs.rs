//! Jobs, newest first.

use ferry_core::{
    api::server::JobView,
    finding::{Finding, FindingId},
    id::JobId,
};

use crate::{App, failure::Failure, store::JobRecord};

/// Jobs that a list holds if nothing else was asked for, and at most.
const JOBS_USUAL: u32 = 50;
const JOBS_MAX: u32 = 500;

pub(crate) async fn list(app: &App, limit: Option<u32>) -> Result<Vec<JobView>, Failure> {
    let limit = limit.unwrap_or(JOBS_USUAL).min(JOBS_MAX);
    let mut views = Vec::new();
    for record in app.store.jobs(limit).await? {
        views.push(app.job_view(&record).await?);
    }
    Ok(views)
}

pub(crate) async fn one(app: &App, reference: &str) -> Result<JobView, Failure> {
    let record = find(app, &format!("Could not show job {reference}"), reference).await?;
    Ok(app.job_view(&record).await?)
}

pub(super) async fn find(app: &App, title: &str, reference: &str) -> Result<JobRecord, Failure> {
    let record = match reference.parse::<u64>() {
        // Numbers that the database cannot hold are of no job.
        Ok(number) if i64::try_from(number).is_ok() => app.store.job(JobId(number)).await?,
        _ => None,
    };
    record.ok_or_else(|| {
        let message = format!("No job has the number {reference}");
        let finding = Finding::blocks(FindingId::JobUnknown, reference, message, "List the jobs with `ferry job list`");
        Failure::found(title, finding)
    })
}
