//! What the view of every job has.

use ferry_core::{
    api::server::{JobView, LogLine},
    migration::Phase,
};

use super::line::line;
use crate::store::{JobRecord, LogRow, NewJob};

/// Lines of the log that a view holds: the newest.
const LOG_LINES_MAX: usize = 1000;

/// What every job has.
pub(super) fn bare(record: &JobRecord, log: &[LogRow], phase: Phase, summary: String) -> JobView {
    let job = &record.job;
    let skipped = log.len().saturating_sub(LOG_LINES_MAX);
    JobView {
        id: record.id,
        kind: job.kind,
        parent: job.parent,
        children: Vec::new(),
        vm: None,
        vm_name: job.vm_name.clone(),
        source: job.source.name.clone(),
        destination: job.destination.name.clone(),
        attempt: 0,
        waits: None,
        phase,
        summary,
        by: job.by.clone(),
        accepted_at_ms: job.accepted_at_ms,
        ended_at_ms: None,
        steps: Vec::new(),
        progress: None,
        disks: Vec::new(),
        figures: None,
        findings: job.findings.clone(),
        log: log
            .iter()
            .skip(skipped)
            .map(|row| LogLine { at_ms: row.at_ms, message: by_name(job, &line(row, job)) })
            .collect(),
    }
}

/// A text of a job with its VM by its name: hosts know it by its UUID.
pub(super) fn by_name(job: &NewJob, text: &str) -> String {
    text.replace(&job.vm.to_string(), &job.vm_name)
}
