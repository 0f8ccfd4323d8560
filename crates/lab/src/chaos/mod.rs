//! Chaos: repeated moves with a fault during each, judged from outside.
//!
//! ```text
//! plan (pure: seed, run) ─▶ round ─ moves, faults ─▶ stage (a lab with Ferry and guests)
//!                             └─ heartbeats, disk, jobs ─▶ judge (pure) ─▶ report
//! ```
//! Faults are failures of programs, hosts and links, and events outside of Ferry: an administrator's own `virsh`
//! commands (`admin.rs`), a guest that crashes, a clone that knows a disk by another name (`alias.rs`).
//!
//! Judged are, 90 s after the last fault or as soon as all is well: *lost*, no host runs a VM although a host that had
//! it is alive and nobody shut it off, or a file that a VM needs is gone; *split*, one VM is heard from two hosts;
//! *corrupt*, a page or an acknowledged sector is wrong; *stuck*, a job neither ended nor states what it waits for and
//! which command helps, or a guest is heard although its libvirt believes that it does not run.
//!
//! Limits of the lab: the share is a FUSE mount whose writes fail while the file server is down, so QEMU stops the
//! guest, and the agent of its host resumes it. Cutting a link affects only the two hosts' addresses; the file server
//! and Ferry's server stay reachable.

mod admin;
mod aim;
mod alias;
mod faults;
mod judge;
mod kind;
mod mover;
mod plan;
mod processes;
mod report;
mod round;
mod sabotage;
mod stage;

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context as _;

pub use self::{
    judge::{Broken, Case},
    kind::Kind,
    plan::{Moment, Plan},
    report::Report,
    sabotage::Sabotage,
};
use self::{
    plan::Move,
    round::{Deed, Outcome, play},
    stage::Stage,
};
use crate::lab::Lab;
use crate::program::Programs;

/// Largest number of runs in a campaign.
pub const RUNS_MAX: u64 = 1_000;
/// A campaign ends after this many failed runs in a row: then the machine or the harness is at fault.
const UNPLAYED_MAX: u32 = 3;
/// More of a job's log than a reader needs.
const LOG_BYTES_MAX: u64 = 16 << 20;

/// Options of a campaign.
#[derive(Clone, Debug)]
pub struct Options {
    /// Number of runs, 1 to [`RUNS_MAX`].
    pub runs: u64,
    /// Seed of the plans; `None` takes one from the clock.
    pub seed: Option<u64>,
    /// Kinds of faults, used in turn; empty: all kinds, at random.
    pub kinds: Vec<Kind>,
    /// Breaks a promise in the only run.
    pub sabotage: Option<Sabotage>,
    /// Whether disks move as well.
    pub storage: bool,
}

/// Runs a campaign. Broken promises are in its report, and not an error here.
///
/// # Errors
/// No stage can be built, or no run can be performed.
pub fn run(options: &Options) -> anyhow::Result<Report> {
    let unfit = options.kinds.iter().find(|kind| kind.needs_storage() && !options.storage);
    if let Some(kind) = unfit {
        anyhow::bail!("{kind} happens to disks that move: add --storage");
    }
    let seed = options.seed.unwrap_or_else(|| crate::observe::now().as_millis() as u64);
    let plans = (1..=options.runs).map(|number| {
        if options.sabotage.is_some() { plain(seed) } else { Plan::new(seed, number, &options.kinds, options.storage) }
    });
    let deed = options.sabotage.map_or(Deed::Fault, Deed::Sabotage);
    campaign(seed, plans, deed, options.storage)
}

/// Runs faults against moves of a guest with its disk.
///
/// # Errors
/// As [`run`].
pub fn run_with_disks(kinds: &[Kind], moment: Moment) -> anyhow::Result<Report> {
    let plans: Vec<Plan> = (1..).zip(kinds).map(|(number, kind)| Plan::with_disks(number, *kind, moment)).collect();
    let seed = plans.first().map_or(0, |plan| plan.seed);
    campaign(seed, plans.into_iter(), Deed::Fault, true)
}

fn campaign(seed: u64, plans: impl Iterator<Item = Plan>, deed: Deed, storage: bool) -> anyhow::Result<Report> {
    print_line(&format!("seed {seed}: building hosts, Ferry and guests"));
    let mut report = Report::new(seed);
    let mut stage = Some(Stage::up(storage)?);
    let mut unplayed = 0;
    for plan in plans {
        let mut on = match stage.take() {
            Some(stage) => stage,
            None => Stage::up(storage).context("No new stage could be built")?,
        };
        let begun = Instant::now();
        match play(&mut on, &plan, deed) {
            Ok(outcome) => {
                unplayed = 0;
                let logs = if outcome.cases.is_empty() { None } else { Some(keep(&on, &plan, deed, &outcome)?) };
                print_line(&report::line(&plan, deed, &outcome, begun.elapsed()));
                report.add(&plan, deed, &outcome, logs);
                if outcome.untidy.is_none() {
                    stage = Some(on);
                }
            }
            Err(error) => {
                unplayed += 1;
                print_line(&format!("{plan}: could not be played or judged: {error:#}"));
                let logs = folder(&plan)?;
                keep_logs(&on.ferry.lab, &logs)?;
                report.add_unplayed(&plan, &format!("{error:#}"), logs);
                anyhow::ensure!(unplayed < UNPLAYED_MAX, "{unplayed} runs in a row could not be played: {error:#}");
            }
        }
    }
    Ok(report)
}

/// The plan for a sabotage: one slow move of the first guest.
fn plain(seed: u64) -> Plan {
    let one = Move { guest: 0, step: 1, delay_ms: 0, bandwidth_mib_per_s: Some(20), cancel_ms: None, files: None };
    Plan { seed, run: 1, moves: vec![one], kind: Kind::Server, moment: Moment::After(0), away_ms: 0 }
}

fn print_line(line: &str) {
    let _ = writeln!(std::io::stderr(), "· {line}");
}

/// Stores what is needed to understand a broken promise: logs, jobs, heartbeats.
fn keep(stage: &Stage, plan: &Plan, deed: Deed, outcome: &Outcome) -> anyhow::Result<PathBuf> {
    let folder = folder(plan)?;
    keep_logs(&stage.ferry.lab, &folder)?;
    fs::write(folder.join("jobs.json"), serde_json::to_vec_pretty(&outcome.jobs)?)?;
    let cases: String = outcome.cases.iter().map(|case| format!("{}: {}\n", case.broken, case.text)).collect();
    let hit = outcome.hit.as_deref().unwrap_or("nothing to hit");
    fs::write(folder.join("findings.txt"), format!("{}\n{hit}\n{cases}", deed.report(plan)))?;
    fs::write(folder.join("heartbeats.txt"), heartbeats(outcome))?;
    Ok(folder)
}

/// One line for each period in which a guest was heard from one host without interruption.
fn heartbeats(outcome: &Outcome) -> String {
    const PAUSE: Duration = Duration::from_millis(60);
    let mut text = String::new();
    for (guest, heard) in &outcome.heard {
        for stretch in heard.chunk_by(|one, next| one.host == next.host && next.at.saturating_sub(one.at) < PAUSE) {
            let [first, ..] = stretch else { continue };
            let last = stretch.last().unwrap_or(first);
            text += &format!(
                "{guest} on {} from {:.3} to {:.3}, beats {} to {}, {:?}\n",
                first.host,
                first.at.as_secs_f64(),
                last.at.as_secs_f64(),
                first.beat.count,
                last.beat.count,
                last.beat,
            );
        }
    }
    text
}

/// `target/chaos/seed-S-run-R`, empty.
fn folder(plan: &Plan) -> anyhow::Result<PathBuf> {
    let programs = Programs::find()?.folder;
    let target = programs.parent().context("A target folder has a parent")?;
    let folder = target.join(format!("chaos/seed-{}-run-{}", plan.seed, plan.run));
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

fn keep_logs(lab: &Lab, folder: &Path) -> anyhow::Result<()> {
    keep_some(&lab.folder, folder, |name| name.ends_with(".log"))?;
    for host in &lab.hosts {
        keep_some(&host.folder.join("var-log-libvirt"), &folder.join(&host.name), |_| true)?;
        keep_some(&host.folder.join("var-log-libvirt/qemu"), &folder.join(&host.name), |_| true)?;
        keep_some(&host.path("/run/ferry-agent/journal"), &folder.join(&host.name), |_| true)?;
    }
    keep_some(&lab.folder.join("samba-fs1/state"), &folder.join("samba"), |name| name == "log")
}

fn keep_some(from: &Path, to: &Path, keeps: impl Fn(&str) -> bool) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).into_iter().flatten().flatten() {
        let kept = entry.metadata().is_ok_and(|data| data.is_file() && data.len() <= LOG_BYTES_MAX);
        if kept && keeps(&entry.file_name().to_string_lossy()) {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}
