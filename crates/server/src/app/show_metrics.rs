//! Everything that Prometheus reads: current values, and counters.

use std::collections::BTreeMap;

use ferry_core::{
    admission::Slot,
    id::{HostId, JobId},
    metrics::Exposition,
    migration::{Phase, phase},
};

use super::App;
use crate::{
    clock::now_ms,
    metrics::{self, kind},
    store::StoreError,
};

/// The current metrics as text.
pub(crate) async fn show_metrics(app: &App) -> Result<String, StoreError> {
    let mut text = Exposition::default();
    text.gauge("ferry_build_info", "The server's version").sample(&[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    jobs(app, &mut text).await?;
    hosts(app, &mut text);
    app.metrics.write(&mut text);
    Ok(text.into_text())
}

async fn jobs(app: &App, text: &mut Exposition) -> Result<(), StoreError> {
    let now = now_ms();
    let mut open: BTreeMap<(&str, String), u32> = BTreeMap::new();
    let mut rates: BTreeMap<HostId, u64> = BTreeMap::new();
    let mut accepted = Vec::new();
    for (record, log) in app.store.open_jobs_with_logs().await? {
        let phase = phase(&log);
        *open.entry((kind(record.job.kind), metrics::phase(phase))).or_default() += 1;
        if phase == Phase::Queued {
            accepted.push(record.job.accepted_at_ms);
        }
        *rates.entry(record.job.source.id).or_default() += rate(app, record.id);
    }
    let mut family = text.gauge("ferry_jobs", "Jobs that have not ended, but those that are only parts of them");
    for ((kind, phase), count) in open {
        family.sample(&[("kind", kind), ("phase", &phase)], f64::from(count));
    }
    text.gauge("ferry_queue_length", "Jobs that wait for their turn").sample(&[], accepted.len() as f64);
    let age_ms = accepted.iter().min().map_or(0, |oldest| now.saturating_sub(*oldest));
    text.gauge("ferry_queue_age_seconds", "How long the job waits that has waited longest; 0: none does")
        .sample(&[], age_ms as f64 / 1000.0);
    let mut family = text.gauge("ferry_host_sending_bytes_per_second", "What VMs' memory leaves a host at now");
    for host in app.inventory.hosts() {
        let rate = rates.get(&host.record.id).copied().unwrap_or_default();
        family.sample(&[("host", host.name())], rate as f64);
    }
    Ok(())
}

/// Bytes per second that QEMU sends for a job.
fn rate(app: &App, job: JobId) -> u64 {
    let running = app.jobs.running().get(job);
    running.and_then(|running| running.now().progress).map_or(0, |progress| progress.rate_bytes_per_s)
}

fn hosts(app: &App, text: &mut Exposition) {
    let hosts = app.inventory.hosts();
    let mut family = text.gauge("ferry_host_reachable", "Whether a host's agent answered the last call");
    for host in &hosts {
        family.sample(&[("host", host.name())], f64::from(u8::from(host.seen().reachable)));
    }
    let now = now_ms();
    let mut family = text.gauge("ferry_host_answer_age_seconds", "How old the last answer of a host's agent is");
    for host in &hosts {
        if let Some(at_ms) = host.seen().seen_at_ms {
            family.sample(&[("host", host.name())], now.saturating_sub(at_ms) as f64 / 1000.0);
        }
    }
    let mut family = text.gauge("ferry_host_maintenance", "Whether a host is kept free of VMs");
    for host in &hosts {
        family.sample(&[("host", host.name())], f64::from(u8::from(host.settings().maintenance)));
    }
    let used = app.jobs.slots_used();
    let mut family = text.gauge("ferry_slots_used", "Moves that a host takes part in now, by slot");
    for host in &hosts {
        for slot in Slot::ALL {
            let used = used.get(&(host.record.id, slot)).copied().unwrap_or_default();
            family.sample(&[("host", host.name()), ("slot", slot.title())], f64::from(used));
        }
    }
    let mut family = text.gauge("ferry_slots_limit", "Moves that a host may take part in at once, by slot");
    for host in &hosts {
        for slot in Slot::ALL {
            let limit = host.settings().limits.of(slot);
            family.sample(&[("host", host.name()), ("slot", slot.title())], f64::from(limit));
        }
    }
}
