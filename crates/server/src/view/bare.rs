//! The parts of a view that all jobs have.

use ferry_core::{
    api::server::JobView,
    job_text::{JobText, english},
    migration::Phase,
};

use crate::store::JobRecord;

/// The parts of a view that all jobs have.
pub(super) fn bare(record: &JobRecord, phase: Phase, sentences: Vec<JobText>) -> JobView {
    let job = &record.job;
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
        summary: english(&sentences),
        sentences,
        by: job.by.clone(),
        accepted_at_ms: job.accepted_at_ms,
        ended_at_ms: None,
        steps: Vec::new(),
        progress: None,
        disks: Vec::new(),
        next: Vec::new(),
        figures: None,
        transfer: None,
        route: None,
        findings: job.findings.clone(),
        log: Vec::new(),
    }
}
