//! Follows a job until it ends: a bar on a terminal, lines elsewhere.

use std::{
    collections::{BTreeMap, VecDeque},
    io::{self, IsTerminal as _},
    time::{Duration, Instant},
};

use ferry_client::server::ServerClient;
use ferry_core::{
    api::server::{Event, JobView},
    files::{DiskProgress, DiskStage},
    id::JobId,
    job::Progress,
    migration::Phase,
};
use indicatif::{ProgressBar, ProgressStyle};

use crate::{
    Failure,
    output::{Output, step_title, summary},
    render,
};

/// How often a line is printed without a terminal.
const LINE_EVERY: Duration = Duration::from_secs(2);
/// How long to wait for an event before the job is queried again, because events may have been lost.
const NEWS_WAIT: Duration = Duration::from_secs(5);

/// Follows a job and passes every change to `each`. Ok contains the job once it has ended.
///
/// # Errors
/// [`Failure::Interrupted`] on Ctrl-C; the job continues.
pub(crate) async fn follow(
    client: &ServerClient,
    job: JobId,
    output: &Output,
    each: impl FnMut(&JobView),
) -> Result<JobView, Failure> {
    let following = follow_to_end(client, job, output, each);
    tokio::select! {
        ended = following => ended,
        _ = tokio::signal::ctrl_c() => Err(Failure::Interrupted(job)),
    }
}

async fn follow_to_end(
    client: &ServerClient,
    job: JobId,
    output: &Output,
    mut each: impl FnMut(&JobView),
) -> Result<JobView, Failure> {
    let mut shown = Shown::new(output);
    let mut events = client.events(None).await?;
    // After the subscription, so that no change is missed.
    let mut view = client.job(job).await?;
    loop {
        shown.show(&view);
        each(&view);
        if view.phase.ended() || view.phase == Phase::Stuck {
            shown.end();
            // Events come without the log, and without how and where bytes travel.
            let JobView { log, transfer, route, .. } = client.job(job).await?;
            return Ok(JobView { log, transfer, route, ..view });
        }
        view = match tokio::time::timeout(NEWS_WAIT, next_of(&mut events, job)).await {
            Ok(Ok(Some(news))) => news,
            // The stream ended or was too slow, or no event arrived: query the job.
            Ok(Ok(None)) | Ok(Err(_)) => {
                events = client.events(None).await?;
                client.job(job).await?
            }
            Err(_) => client.job(job).await?,
        };
    }
}

async fn next_of(events: &mut ferry_client::server::EventStream, job: JobId) -> Result<Option<JobView>, Failure> {
    loop {
        match events.next().await? {
            Some(Event::Job(view)) if view.id == job => return Ok(Some(*view)),
            Some(Event::Job(_) | Event::Host { .. }) => {}
            Some(Event::Reset) | None => return Ok(None),
        }
    }
}

/// The disks' transfer rates, from their progress over the last moments.
#[derive(Default)]
struct Rates(BTreeMap<String, VecDeque<(Duration, u64)>>);

/// A rate covers at most this time, and is not shown for less than [`RATE_MIN`].
const RATE_MAX: Duration = Duration::from_secs(10);
const RATE_MIN: Duration = Duration::from_secs(1);

impl Rates {
    /// Records the progress of disks at `at`.
    fn take(&mut self, disks: &[DiskProgress], at: Duration) {
        for disk in disks {
            let seen = self.0.entry(disk.device.clone()).or_default();
            seen.push_back((at, disk.copied.0));
            while seen.len() > 2 && at.saturating_sub(seen[1].0) >= RATE_MAX {
                seen.pop_front();
            }
        }
    }

    /// Bytes per second; `None` if unknown, or if nothing is transferred.
    fn of(&self, device: &str) -> Option<u64> {
        let seen = self.0.get(device)?;
        let ((began, from), (now, to)) = (seen.front()?, seen.back()?);
        let span = now.saturating_sub(*began);
        let rate = (to.saturating_sub(*from) as f64 / span.as_secs_f64().max(f64::MIN_POSITIVE)) as u64;
        Some(rate).filter(|rate| span >= RATE_MIN && *rate > 0)
    }
}

struct Shown {
    rates: Rates,
    began: Instant,
    bar: Option<ProgressBar>,
    output: Output,
    last_line: Option<Instant>,
    last_step: Option<String>,
}

impl Shown {
    fn new(output: &Output) -> Self {
        let bar = (io::stderr().is_terminal() && !output.json).then(|| {
            let style = ProgressStyle::with_template("{prefix:>24} [{bar:30}] {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar())
                .progress_chars("█▌ ");
            ProgressBar::new(1_000).with_style(style)
        });
        let (rates, began) = (Rates::default(), Instant::now());
        Self { rates, began, bar, output: *output, last_line: None, last_step: None }
    }

    fn show(&mut self, view: &JobView) {
        self.rates.take(&view.disks, self.began.elapsed());
        let (title, text, done) = now(view, &self.rates);
        if let Some(bar) = &self.bar {
            bar.set_prefix(title);
            bar.set_message(text);
            bar.set_position(done);
            return;
        }
        let new_step = self.last_step.as_ref() != Some(&title);
        let due = self.last_line.is_none_or(|at| at.elapsed() > LINE_EVERY);
        if !self.output.json && (new_step || (due && !text.is_empty())) {
            self.output.talk(format!("job {}: {title} {text}", view.id).trim_end());
            self.last_line = Some(Instant::now());
        }
        self.last_step = Some(title);
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// The current activity, its details, and the progress in thousandths.
fn now(view: &JobView, rates: &Rates) -> (String, String, u64) {
    let summary = summary(&view.sentences, &view.summary);
    if view.phase == Phase::Queued {
        return ("waits for its turn".to_owned(), first_sentence(&summary), 0);
    }
    if !view.children.is_empty() {
        let ended = view.children.iter().filter(|child| child.phase.ended()).count() as u64;
        let title = format!("{ended} of {} ended", view.children.len());
        return (title, first_sentence(&summary), ended * 1_000 / view.children.len() as u64);
    }
    let step = view.steps.iter().rev().find(|step| step.started_at_ms.is_some());
    let title = step.map_or_else(|| view.phase.title().to_owned(), |step| step_title(view.kind, step));
    // While disks are copied, nothing is known about the memory.
    let memory = view.progress.as_ref().filter(|progress| progress.memory_total.0 > 0);
    let mut parts: Vec<String> = view.disks.iter().map(|disk| disk_line(disk, rates)).collect();
    parts.extend(memory.map(|progress| match view.disks.is_empty() {
        true => line(progress),
        false => format!("memory {}", line(progress)),
    }));
    let sum = |of: fn(&DiskProgress) -> u64| view.disks.iter().map(of).sum::<u64>();
    let done = sum(|disk| disk.copied.0) + memory.map_or(0, |progress| progress.memory_done.0);
    let total = sum(|disk| disk.total.0) + memory.map_or(0, |progress| progress.memory_total.0);
    (title, parts.join(" · "), done.saturating_mul(1_000).checked_div(total).unwrap_or(0))
}

fn disk_line(disk: &DiskProgress, rates: &Rates) -> String {
    let DiskProgress { device, stage, copied, total, .. } = disk;
    match stage {
        DiskStage::Copying => {
            let rate = rates.of(device);
            let left = rate.map(|rate| total.0.saturating_sub(copied.0).saturating_mul(1_000) / rate);
            let rate = rate.map_or_else(|| "–".to_owned(), |rate| format!("{:.0} MiB/s", mib(rate)));
            let left = left.map_or_else(|| "–".to_owned(), render::duration);
            format!("{device} {copied} of {total}, {rate}, {left} left")
        }
        DiskStage::Waiting | DiskStage::Ready | DiskStage::Moved => format!("{device} {}", stage.title()),
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn first_sentence(text: &str) -> String {
    text.split_once(". ").map_or(text, |(first, _)| first).trim_end_matches('.').to_owned()
}

fn line(progress: &Progress) -> String {
    let left = progress.left_ms.map_or_else(|| "–".to_owned(), render::duration);
    let paused = progress.downtime_ms.map(render::duration);
    let paused = paused.map(|paused| format!(" · downtime now {paused}")).unwrap_or_default();
    format!(
        "{} of {} · {:.0} MiB/s · dirty {:.0} MiB/s · pass {} · {left} left{paused}",
        progress.memory_done,
        progress.memory_total,
        mib(progress.rate_bytes_per_s),
        mib(progress.dirty_bytes_per_s),
        progress.iteration
    )
}

#[cfg(test)]
mod tests {
    use ferry_core::{job::JobKind, units::ByteCount};

    use super::*;

    fn job() -> JobView {
        JobView {
            id: JobId(1),
            kind: JobKind::LiveVsm,
            parent: None,
            children: Vec::new(),
            vm: None,
            vm_name: "db".to_owned(),
            source: "kvm1".to_owned(),
            destination: "kvm2".to_owned(),
            attempt: 1,
            waits: None,
            phase: Phase::Migrating,
            summary: String::new(),
            by: "admin".to_owned(),
            accepted_at_ms: 0,
            ended_at_ms: None,
            steps: Vec::new(),
            progress: None,
            disks: Vec::new(),
            sentences: Vec::new(),
            next: Vec::new(),
            figures: None,
            transfer: None,
            route: None,
            findings: Vec::new(),
            log: Vec::new(),
        }
    }

    fn disk(device: &str, stage: DiskStage, copied: u64) -> DiskProgress {
        let (copied, total) = (ByteCount::mib(copied), ByteCount::mib(1024));
        DiskProgress { device: device.to_owned(), stage, copied, total, ..DiskProgress::default() }
    }

    #[test]
    fn disks_are_shown_with_rate_and_time_left_and_then_the_memory_beside_them() {
        let mut view = job();
        let mut rates = Rates::default();
        let memory = |done| Progress {
            memory_total: ByteCount::mib(1024),
            memory_done: ByteCount::mib(done),
            rate_bytes_per_s: 100 << 20,
            dirty_bytes_per_s: 3 << 20,
            iteration: 1,
            left_ms: Some(5_000),
            ..Progress::default()
        };
        let unknown = Progress { iteration: 1, ..Progress::default() };
        let vda = |stage, copied| disk("vda", stage, copied);
        let (waiting, ready) = (disk("vdb", DiskStage::Waiting, 0), disk("vdb", DiskStage::Ready, 1024));
        for (at_s, disks, progress, text, done) in [
            (
                0,
                vec![vda(DiskStage::Copying, 0), waiting.clone()],
                None,
                "vda 0 B of 1.0 GiB, –, – left · vdb waiting",
                0,
            ),
            (
                4,
                vec![vda(DiskStage::Copying, 512), waiting],
                Some(unknown),
                "vda 512.0 MiB of 1.0 GiB, 128 MiB/s, 4.0 s left · vdb waiting",
                250,
            ),
            (
                8,
                vec![vda(DiskStage::Ready, 1024), ready.clone()],
                Some(memory(0)),
                "vda ready · vdb ready · memory 0 B of 1.0 GiB · 100 MiB/s · dirty 3 MiB/s · pass 1 · 5.0 s left",
                666,
            ),
            (
                9,
                vec![vda(DiskStage::Ready, 1024), ready],
                Some(memory(512)),
                "vda ready · vdb ready · memory 512.0 MiB of 1.0 GiB · 100 MiB/s · dirty 3 MiB/s · pass 1 · 5.0 s left",
                833,
            ),
            (
                10,
                vec![],
                Some(Progress { downtime_ms: Some(1_500), ..memory(512) }),
                "512.0 MiB of 1.0 GiB · 100 MiB/s · dirty 3 MiB/s · pass 1 · 5.0 s left · downtime now 1.5 s",
                500,
            ),
        ] {
            (view.disks, view.progress) = (disks, progress);
            rates.take(&view.disks, Duration::from_secs(at_s));
            let (_, shown, thousandths) = now(&view, &rates);
            assert_eq!((shown.as_str(), thousandths), (text, done));
        }
    }

    #[test]
    fn a_rate_is_that_of_the_last_moments() {
        let mut rates = Rates::default();
        for second in 0..=60 {
            // Fast at first, then slow.
            let copied = if second <= 30 { second * 100 } else { 3_000 + (second - 30) * 10 };
            rates.take(&[disk("vda", DiskStage::Copying, copied)], Duration::from_secs(second));
        }
        assert_eq!(rates.of("vda"), Some(10 << 20));
        assert_eq!(rates.of("vdb"), None, "it was never seen");
        assert!(rates.0["vda"].len() <= 12, "what is old is forgotten");
    }
}
