//! Follows a job until it ends: a bar on a terminal, lines elsewhere.

use std::{
    io::{self, IsTerminal as _},
    time::{Duration, Instant},
};

use ferry_client::server::ServerClient;
use ferry_core::{
    api::server::{Event, JobView},
    id::JobId,
    job::Progress,
    migration::Phase,
    storage::DiskProgress,
    units::ByteCount,
};
use indicatif::{ProgressBar, ProgressStyle};

use crate::{Failure, output::Output, render};

/// How often a line is written where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(2);
/// How long to wait for news before the job is asked for again: events may have been lost.
const NEWS_WAIT: Duration = Duration::from_secs(5);

/// Follows a job. `each` sees every change. Ok holds the job when it has ended.
///
/// # Errors
/// [`Failure::Interrupted`] on Ctrl-C; the job goes on.
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
    // After the subscription, so that no change falls in between.
    let mut view = client.job(job).await?;
    loop {
        shown.show(&view);
        each(&view);
        if view.phase.ended() || view.phase == Phase::Stuck {
            shown.end();
            return Ok(view);
        }
        view = match tokio::time::timeout(NEWS_WAIT, next_of(&mut events, job)).await {
            Ok(Ok(Some(news))) => news,
            // The stream ended or was too slow, or nothing came: ask.
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

struct Shown {
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
        Self { bar, output: *output, last_line: None, last_step: None }
    }

    fn show(&mut self, view: &JobView) {
        let (title, text, done) = now(view);
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

/// What goes on, more of it, and how much is done in thousandths.
fn now(view: &JobView) -> (String, String, u64) {
    if view.phase == Phase::Queued {
        return ("waits for its turn".to_owned(), first_sentence(&view.summary), 0);
    }
    if !view.children.is_empty() {
        let ended = view.children.iter().filter(|child| child.phase.ended()).count() as u64;
        let title = format!("{ended} of {} ended", view.children.len());
        return (title, first_sentence(&view.summary), ended * 1_000 / view.children.len() as u64);
    }
    let step = view.steps.iter().rev().find(|step| step.started_at_ms.is_some());
    let title = step.map_or_else(|| view.phase.title().to_owned(), |step| step.title.clone());
    if !view.disks.is_empty() {
        let sum = |of: fn(&DiskProgress) -> u64| view.disks.iter().map(of).sum::<u64>();
        let (copied, total) = (sum(|disk| disk.copied.0), sum(|disk| disk.total.0));
        let each: Vec<String> =
            view.disks.iter().map(|disk| format!("{} {}", disk.device, disk.stage.title())).collect();
        let text = format!("{} of {} · {}", ByteCount(copied), ByteCount(total), each.join(", "));
        return (title, text, copied.saturating_mul(1_000).checked_div(total).unwrap_or(0));
    }
    let done = view
        .progress
        .as_ref()
        .map_or(0, |progress| progress.memory_done.0.saturating_mul(1_000) / progress.memory_total.0.max(1));
    (title, view.progress.as_ref().map(line).unwrap_or_default(), done)
}

fn first_sentence(text: &str) -> String {
    text.split_once(". ").map_or(text, |(first, _)| first).trim_end_matches('.').to_owned()
}

fn line(progress: &Progress) -> String {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let left = progress.left_ms.map_or_else(|| "–".to_owned(), render::duration);
    format!(
        "{} of {} · {:.0} MiB/s · dirty {:.0} MiB/s · pass {} · {left} left",
        progress.memory_done,
        progress.memory_total,
        mib(progress.rate_bytes_per_s),
        mib(progress.dirty_bytes_per_s),
        progress.iteration
    )
}
