//! The report of a campaign: one line per run, a table, and each broken promise with the place of its logs.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use ferry_core::migration::Phase;
use serde::Serialize;

use super::{
    judge::{self, Broken, Case},
    plan::Plan,
    round::{Deed, Outcome},
};

/// A guest that runs nowhere for a while breaks no promise, but users want to know of it.
const LONG_SILENCE: Duration = Duration::from_secs(5);

/// The result of a campaign.
#[derive(Debug)]
pub struct Report {
    seed: u64,
    runs: u64,
    rows: BTreeMap<String, Row>,
    found: Vec<Found>,
    unplayed: Vec<String>,
}

/// One kind of fault.
#[derive(Clone, Debug, Default)]
struct Row {
    runs: u64,
    /// Runs in which the fault had a target.
    hits: u64,
    /// Those of them in which the guest was silent for its hand-over.
    in_silence: u64,
    succeeded: u64,
    failed: u64,
    cancelled: u64,
    open: u64,
    refused: u64,
    excused: u64,
    broken: BTreeMap<Broken, u64>,
}

#[derive(Debug)]
struct Found {
    run: u64,
    plan: String,
    case: Case,
    summaries: Vec<String>,
    logs: Option<PathBuf>,
}

/// The last line, for programs.
#[derive(Serialize)]
struct Totals {
    runs: u64,
    lost: u64,
    split: u64,
    corrupt: u64,
    stuck: u64,
    seed: u64,
}

impl Report {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, runs: 0, rows: BTreeMap::new(), found: Vec::new(), unplayed: Vec::new() }
    }

    pub(super) fn add(&mut self, plan: &Plan, deed: Deed, outcome: &Outcome, logs: Option<PathBuf>) {
        self.runs += 1;
        let row = self.rows.entry(deed.title(plan)).or_default();
        row.runs += 1;
        row.hits += u64::from(outcome.hit.is_some());
        let inside = outcome.silence.is_some_and(|silence| silence.holds_moment());
        row.in_silence += u64::from(outcome.hit.is_some() && inside);
        row.refused += outcome.refused.len() as u64;
        row.excused += outcome.excused.len() as u64;
        for job in &outcome.jobs {
            let count = match job.phase {
                Phase::Succeeded => &mut row.succeeded,
                Phase::Failed => &mut row.failed,
                Phase::Cancelled => &mut row.cancelled,
                Phase::Queued
                | Phase::Preparing
                | Phase::Migrating
                | Phase::Completing
                | Phase::RollingBack
                | Phase::Stuck => &mut row.open,
            };
            *count += 1;
        }
        let summaries: Vec<String> =
            outcome.jobs.iter().map(|job| format!("job {} {}: {}", job.id, job.phase.title(), job.summary)).collect();
        for case in &outcome.cases {
            *row.broken.entry(case.broken).or_default() += 1;
            self.found.push(Found {
                run: plan.run,
                plan: deed.report(plan),
                case: case.clone(),
                summaries: summaries.clone(),
                logs: logs.clone(),
            });
        }
    }

    pub(super) fn add_unplayed(&mut self, plan: &Plan, why: &str, logs: PathBuf) {
        self.unplayed.push(format!("{plan}: {why}; logs in {}", logs.display()));
    }

    /// How often a promise was broken.
    pub fn count(&self, broken: Broken) -> u64 {
        self.found.iter().filter(|found| found.case.broken == broken).count() as u64
    }

    /// The number of faults that had a target.
    pub fn hits(&self) -> u64 {
        self.rows.values().map(|row| row.hits).sum()
    }

    /// Whether every run was performed and no promise was broken.
    pub fn is_good(&self) -> bool {
        self.found.is_empty() && self.unplayed.is_empty()
    }

    /// The report as one JSON object.
    ///
    /// # Panics
    /// Never: numbers can be serialised.
    pub fn json(&self) -> String {
        let totals = Totals {
            runs: self.runs,
            lost: self.count(Broken::Lost),
            split: self.count(Broken::Split),
            corrupt: self.count(Broken::Corrupt),
            stuck: self.count(Broken::Stuck),
            seed: self.seed,
        };
        serde_json::to_string(&totals).expect("numbers can be written")
    }

    /// A table of the kinds of faults with their results, then the same in words.
    pub fn table(&self) -> String {
        let mut text = "\nfault                         runs  hit  in silence  succeeded  failed  cancelled  open  refused     gone or off  lost  split  corrupt  stuck\n".to_owned();
        for (kind, row) in &self.rows {
            let broken = |broken| row.broken.get(&broken).copied().unwrap_or(0);
            text += &format!(
                "{kind:<29} {:>4} {:>4} {:>11} {:>10} {:>7} {:>10} {:>5} {:>8} {:>15} {:>5} {:>6} {:>8} {:>6}\n",
                row.runs,
                row.hits,
                row.in_silence,
                row.succeeded,
                row.failed,
                row.cancelled,
                row.open,
                row.refused,
                row.excused,
                broken(Broken::Lost),
                broken(Broken::Split),
                broken(Broken::Corrupt),
                broken(Broken::Stuck),
            );
        }
        let sum = |of: fn(&Row) -> u64| self.rows.values().map(of).sum::<u64>();
        text += &format!(
            "\n{} runs with seed {}: {} faults hit, {} of them while the guest was silent for its hand-over. \
             {} moves succeeded, {} failed, {} were cancelled, {} were still open, {} were refused. \
             {} guests went with the host that had them, or were shut off. \
             Lost: {}. Split: {}. Corrupt: {}. Stuck: {}.\n",
            self.runs,
            self.seed,
            sum(|row| row.hits),
            sum(|row| row.in_silence),
            sum(|row| row.succeeded),
            sum(|row| row.failed),
            sum(|row| row.cancelled),
            sum(|row| row.open),
            sum(|row| row.refused),
            sum(|row| row.excused),
            self.count(Broken::Lost),
            self.count(Broken::Split),
            self.count(Broken::Corrupt),
            self.count(Broken::Stuck),
        );
        text
    }

    /// All broken promises, with the plan, the jobs' summaries and the folder of the logs; and runs that could not be
    /// performed.
    pub fn findings(&self) -> String {
        let mut text = String::new();
        for Found { run, plan, case, summaries, logs } in &self.found {
            text += &format!("\n{} in run {run}: {}\n  plan  {plan}\n", case.broken, case.text);
            for summary in summaries {
                text += &format!("  {summary}\n");
            }
            if let Some(logs) = logs {
                text += &format!("  logs  {}\n", logs.display());
            }
        }
        for unplayed in &self.unplayed {
            text += &format!("\nnot played or not judged: {unplayed}\n");
        }
        text
    }
}

/// One run as text.
pub(super) fn line(plan: &Plan, deed: Deed, outcome: &Outcome, took: Duration) -> String {
    let hit = outcome.hit.as_deref().unwrap_or("nothing to hit any more");
    let what = match deed {
        Deed::Fault => format!("{:<29} {:<17}", plan.kind, plan.moment),
        Deed::Sabotage(_) => deed.title(plan),
    };
    let mut jobs: Vec<String> =
        outcome.jobs.iter().map(|job| format!("job {} {} {}", job.id, job.vm_name, job.phase.title())).collect();
    jobs.extend(outcome.refused.iter().map(|output| format!("refused ({})", first_words(output))));
    let silence = outcome.silence.map(|silence| {
        let what = if silence.moved { "hand-over" } else { "silence" };
        format!(" at {:+} ms of a {what} of {} ms", silence.offset_ms, silence.length_ms)
    });
    let away = if plan.kind.is_healed() && deed == Deed::Fault {
        format!(" for {:.1} s", plan.away_ms as f64 / 1e3)
    } else {
        String::new()
    };
    let mut text = format!(
        "run {:>3} {what} {hit}{away}{}; {}; {:.1} s",
        plan.run,
        silence.unwrap_or_default(),
        jobs.join(", "),
        took.as_secs_f64()
    );
    for (guest, heard) in &outcome.heard {
        let silence = judge::longest_silence(heard);
        if silence > LONG_SILENCE {
            text += &format!("\n      {guest} ran nowhere for {:.1} s", silence.as_secs_f64());
        }
    }
    for excused in &outcome.excused {
        text += &format!("\n      gone or off: {excused}");
    }
    for case in &outcome.cases {
        text += &format!("\n      {}: {}", case.broken.to_string().to_uppercase(), case.text);
    }
    if let Some(untidy) = &outcome.untidy {
        text += &format!("\n      a new lab is built: {untidy}");
    }
    text
}

fn first_words(output: &str) -> String {
    output.chars().take(160).collect::<String>().replace('\n', " ")
}
