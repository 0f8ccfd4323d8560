//! The parts of a view that all jobs have.

use ferry_core::{
    api::server::{JobView, LogLine},
    job_text::{JobText, english},
    migration::Phase,
};

use super::line::line;
use crate::store::{JobRecord, LogRow};

/// How many of the newest log lines a view holds.
const LOG_LINES_MAX: usize = 1000;

/// The parts of a view that all jobs have.
pub(super) fn bare(record: &JobRecord, log: &[LogRow], phase: Phase, says: Vec<JobText>) -> JobView {
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
        summary: english(&says),
        says,
        by: job.by.clone(),
        accepted_at_ms: job.accepted_at_ms,
        ended_at_ms: None,
        steps: Vec::new(),
        progress: None,
        disks: Vec::new(),
        next: Vec::new(),
        figures: None,
        findings: job.findings.clone(),
        log: log
            .iter()
            .skip(skipped)
            .map(|row| {
                let says = line(row, job);
                LogLine { at_ms: row.at_ms, message: says.to_string(), says: Some(says) }
            })
            .collect(),
    }
}
