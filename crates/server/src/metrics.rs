//! Counters for Prometheus. Current values are not counted here but read at each scrape ([`crate::app::show_metrics`]).
//! A restart resets the counters to zero, as Prometheus expects.

use ferry_core::{
    api::server::JobView,
    job::JobKind,
    metrics::{Counter, Exposition, Histogram},
    migration::Phase,
};

/// Buckets of downtimes in seconds, around the default limit of 0.3 s.
const DOWNTIMES_S: &[f64] = &[0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0];
/// Buckets of durations of whole jobs in seconds, from a small guest to a large one over a slow link.
const DURATIONS_S: &[f64] = &[1.0, 3.0, 10.0, 30.0, 60.0, 180.0, 600.0, 1800.0, 3600.0, 14400.0];

/// The counters of this run of the server.
pub(crate) struct Metrics {
    requests: Counter<3>,
    jobs_ended: Counter<2>,
    moved: Counter<1>,
    downtime: Histogram,
    duration: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            requests: Counter::new(["method", "route", "status"]),
            jobs_ended: Counter::new(["kind", "phase"]),
            moved: Counter::new(["stage"]),
            downtime: Histogram::new(DOWNTIMES_S),
            duration: Histogram::new(DURATIONS_S),
        }
    }
}

impl Metrics {
    /// Counts a request. `route` is one of the router's, or a word for none of them.
    pub(crate) fn request(&self, method: &str, route: &str, status: u16) {
        self.requests.add([method, route, &status.to_string()], 1);
    }

    /// Counts an ended job by its final view.
    pub(crate) fn job_ended(&self, job: &JobView) {
        if !job.phase.ended() {
            return;
        }
        self.jobs_ended.add([kind(job.kind), &phase(job.phase)], 1);
        let Some(figures) = job.figures.filter(|_| job.phase == Phase::Succeeded) else { return };
        self.moved.add(["qemu"], figures.sent.0);
        self.moved.add(["wire"], figures.wire.0);
        self.moved.add(["wire_of_disks"], figures.disk_wire.0);
        self.duration.observe(figures.total_ms as f64 / 1000.0);
        match job.kind {
            JobKind::Live | JobKind::LiveVsm => self.downtime.observe(figures.downtime_ms as f64 / 1000.0),
            // No VM ran, no VM was paused, or the parts are counted instead.
            JobKind::Offline | JobKind::Storage | JobKind::Several | JobKind::Drain => {}
        }
    }

    /// Appends all counters to `text`.
    pub(crate) fn write(&self, text: &mut Exposition) {
        self.requests.write(text, "ferry_http_requests_total", "Requests to the REST API that were answered");
        self.jobs_ended.write(text, "ferry_jobs_ended_total", "Jobs that were begun and have ended, by how");
        let help = "Bytes of moves that succeeded: sent by QEMU, on the wire, and of these those of disks";
        self.moved.write(text, "ferry_moved_bytes_total", help);
        text.histogram("ferry_downtime_seconds", "For how long VMs stood still in live moves", &self.downtime);
        text.histogram(
            "ferry_job_duration_seconds",
            "From acceptance to the end of jobs that succeeded",
            &self.duration,
        );
    }
}

/// A job kind as a label.
pub(crate) fn kind(kind: JobKind) -> &'static str {
    match kind {
        JobKind::Live => "live",
        JobKind::LiveVsm => "live_vsm",
        JobKind::Offline => "offline",
        JobKind::Storage => "storage",
        JobKind::Several => "several",
        JobKind::Drain => "drain",
    }
}

/// A phase as a label.
pub(crate) fn phase(phase: Phase) -> String {
    phase.title().replace(' ', "_")
}
