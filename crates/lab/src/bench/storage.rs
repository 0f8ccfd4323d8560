//! `storage`: moves disks of a running VM. On one host against `virsh blockcopy`; together with the VM to a host that
//! shares no storage, against `virsh migrate --copy-storage-all`; and again after an interrupted move.

use std::{fs, time::Duration};

use anyhow::{Context as _, ensure};
use ferry_core::{
    api::server::{JobView, StepView},
    migration::Phase,
    vm::DiskFormat,
};

use super::{
    measure::{Figure, MIB, Ready, Run, Side, Sides, Watch, device_bytes, job, median, range, verdicts},
    pair::{DEBIAN_BOOT_DEADLINE, Pair, SECONDS_30, VERIFY_DEADLINE, migrated_by_virsh, wait_known},
};
use crate::{
    guest::Ticker,
    host::Host,
    images::{self, Disk, Place},
    local,
    run::wait_for,
    site::{Site, VM},
};

const BOOT_DEADLINE: Duration = Duration::from_secs(90);
/// Incompressible data on a ticker's disk, which is twice as large. For moves on one host, enough that the half second
/// by which `virsh blockcopy --wait` may be late is negligible.
const COPIED_MIB: u32 = 1200;
const CUT_MIB: u32 = 400;
/// A move that will be interrupted is slowed, so that its progress can be observed.
const CUT_MIB_PER_S: &str = "48";

/// Measures, and returns the tables.
pub(super) fn run(runs: usize) -> anyhow::Result<String> {
    Ok(on_one_host(runs)? + &shared_nothing(runs)? + &after_a_cut(runs)?)
}

/// Prints the time that each step of a job took.
fn print_steps(job: &JobView) {
    let took = |step: &StepView| Some(format!("{} {} ms", step.title, step.ended_at_ms? - step.started_at_ms?));
    eprintln!("       {}", job.steps.iter().filter_map(took).collect::<Vec<_>>().join(", "));
}

/// A run that produced a file.
struct Moved {
    run: Run,
    /// Allocated size of the new file. Bytes.
    takes: f64,
    /// Non-zero pages of the old file. Bytes.
    held: f64,
}

impl Moved {
    fn report(&self, run: usize, side: Side) {
        self.run.report(run, side);
        eprintln!("       the new file takes {:.1} MiB; {:.1} are not zero", self.takes / MIB, self.held / MIB);
    }

    /// By how much the file's size exceeds 1.02 × its content. MiB.
    fn excess_mib(&self) -> f64 {
        (self.takes - 1.02 * self.held) / MIB
    }
}

/// A promise that only Ferry makes: thin copies.
fn thin(sides: &Sides<Moved>) -> Figure {
    let most = sides.ours.iter().map(Moved::excess_mib).fold(f64::MIN, f64::max);
    Figure::new("takes, ferry − 1.02 × not zero, MiB, the most of all", most, 1.0)
}

fn on_one_host(runs: usize) -> anyhow::Result<String> {
    eprintln!("One host");
    let site = Site::up(vec![disk(COPIED_MIB)], 4, "")?;
    let folders = ["a", "b"].map(|name| format!("{}/{name}", local::FOLDER));
    for folder in &folders {
        site.host().run(&["mkdir", "-p", folder])?;
    }
    write_everywhere(site.host())?;
    let sides = Sides::alternate(runs, |run, side| {
        let old = site.disk("vda")?;
        let folder = folders.iter().find(|folder| !old.starts_with(*folder)).context("Two folders are one")?;
        let held = images::nonzero(&site.real(&old), DiskFormat::Raw)? as f64;
        let new = format!("{folder}/disk.raw");
        let watch = Watch::begin(&site.observer, VM)?;
        match side {
            Side::Ferry => print_steps(&job(&site.ferry, &["vm", "move-storage", VM, "--to", folder])?),
            Side::Virsh => {
                let mut command = site.host().command("virsh");
                command.args(["-q", "-c", "qemu:///system", "blockcopy", VM, "vda", &new, "--format", "raw"]);
                command.args(["--wait", "--pivot", "--transient-job"]);
                Ready(command).go()?;
            }
        }
        let (total_ms, cpu_ms) = watch.end()?;
        ensure!(site.disk("vda")? == new, "The disk is {}, not {new}", site.disk("vda")?);
        if side == Side::Virsh {
            // The part that virsh leaves to the administrator: otherwise the next start would use the old file.
            site.host().run(&["rm", &old])?;
            let kept = site.host().virsh(&["dumpxml", VM, "--inactive"])?.replace(&old, &new);
            fs::write(site.host().path("/run/kept.xml"), kept)?;
            site.host().virsh(&["define", "/run/kept.xml"])?;
            wait_known(&site.ferry, VM, "kvm1", &new)?;
        }
        site.verify()?;
        let takes = images::allocated(&site.real(&new))? as f64;
        let moved = Moved { run: Run { total_ms, gap_ms: watch.gap_ms()?, bytes: 0.0, cpu_ms }, takes, held };
        moved.report(run, side);
        Ok(moved)
    })?;
    ensure!(
        images::holds_data(&site.real(&site.disk("vda")?), DiskFormat::Raw, COPIED_MIB)?,
        "The disk does not hold its data any more"
    );
    let table = sides.table(
        "virsh blockcopy --pivot",
        &[
            ("total, ms", |moved| moved.run.total_ms),
            ("guest silent, ms", |moved| moved.run.gap_ms),
            ("processors busy, ms", |moved| moved.run.cpu_ms),
            ("not zero, MiB", |moved| moved.held / MIB),
            ("new file takes, MiB", |moved| moved.takes / MIB),
        ],
    );
    let figures =
        [Figure::new("total time, ferry / virsh", sides.ratio(|moved| moved.run.total_ms), 1.05), thin(&sides)];
    Ok(format!("\n## On one host, raw, {COPIED_MIB} MiB of data in twice the size\n\n{table}{}", verdicts(&figures)))
}

/// Writes a host's own disk once, except for the space that the guest may need: the machine's file system allocates
/// blocks at their first write, which takes several times as long as rewriting them.
fn write_everywhere(host: &Host) -> anyhow::Result<()> {
    let folder = local::FOLDER;
    let line = format!(
        "mib=$(( $(stat -f -c '%a * %S' {folder}) / 1048576 - 256 )) && \
         dd if=/dev/zero of={folder}/filler bs=1M count=$mib conv=fsync status=none && rm {folder}/filler"
    );
    let mut command = host.command("sh");
    command.args(["-c", &line]);
    Ready(command).go().map(drop)
}

fn disk(data_mib: u32) -> Disk {
    Disk { size_mib: 2 * data_mib, data_mib, ..Disk::new(Place::Local, DiskFormat::Raw) }
}

fn shared_nothing(runs: usize) -> anyhow::Result<String> {
    let disk = Disk::new(Place::Local, DiskFormat::Raw);
    let guest = Ticker { disks: vec![disk], ..Ticker::debian("debian", 103) };
    let mut pair = Pair::up(guest, DEBIAN_BOOT_DEADLINE)?;
    let mut text = String::new();
    for (title, rate) in [("1 Gb/s", "1gbit"), ("200 Mb/s", "200mbit")] {
        eprintln!("Shared nothing, {title}");
        for host in &pair.ferry.lab.hosts {
            host.set_link_rate(Some(rate))?;
        }
        let sides = Sides::alternate(runs, |run, side| {
            let moved = shared_nothing_once(&mut pair, side)?;
            moved.report(run, side);
            Ok(moved)
        })?;
        let table = sides.table(
            "virsh --copy-storage-all",
            &[
                ("total, ms", |moved| moved.run.total_ms),
                ("guest silent, ms", |moved| moved.run.gap_ms),
                ("bytes sent, MiB", |moved| moved.run.bytes / MIB),
                ("processors busy, ms", |moved| moved.run.cpu_ms),
                ("not zero, MiB", |moved| moved.held / MIB),
                ("new file takes, MiB", |moved| moved.takes / MIB),
            ],
        );
        let figures = [
            Figure::new("total time, ferry / virsh", sides.ratio(|moved| moved.run.total_ms), 1.05),
            sides.silence(|moved| moved.run.gap_ms),
            thin(&sides),
        ];
        text +=
            &format!("\n## Debian with its disk of 4 GiB, shared nothing, {title}\n\n{table}{}", verdicts(&figures));
    }
    Ok(text)
}

fn shared_nothing_once(pair: &mut Pair, side: Side) -> anyhow::Result<Moved> {
    let (from, to, name) = (pair.at, 1 - pair.at, pair.guest.name.clone());
    let old = pair.real(&pair.disk()?);
    let held = images::nonzero(&old, DiskFormat::Raw)? as f64;
    let before = device_bytes(&pair.ferry, from, "eth0")?;
    let run = {
        let (watch, (total_ms, cpu_ms)) = match side {
            Side::Ferry => migrated_by_ferry(pair, &name, to)?,
            Side::Virsh => migrated_by_virsh(pair, &name, from, to)?,
        };
        pair.observer.wait_on(&name, pair.name(to), SECONDS_30)?;
        let bytes = (device_bytes(&pair.ferry, from, "eth0")? - before) as f64;
        Run { total_ms, gap_ms: watch.gap_ms()?, bytes, cpu_ms }
    };
    pair.at = to;
    let new = pair.disk()?;
    let takes = images::allocated(&pair.real(&new))? as f64;
    if side == Side::Virsh {
        pair.make_thin(&new)?;
    }
    pair.arrived(to)?;
    Ok(Moved { run, takes, held })
}

fn migrated_by_ferry<'a>(pair: &'a Pair, name: &'a str, to: usize) -> anyhow::Result<(Watch<'a>, (f64, f64))> {
    let watch = Watch::begin(&pair.observer, name)?;
    let job = pair.migrate(to, &[])?;
    let ended = watch.end()?;
    print_steps(&job);
    if let Some(sent) = job.figures {
        let (disk, all) = (sent.disk_wire.0 as f64 / MIB, sent.wire.0 as f64 / MIB);
        eprintln!("       disk {disk:.1} MiB of {all:.1}, {} passes over memory", sent.iterations);
    }
    Ok((watch, ended))
}

/// An interrupted move, the next move, and a complete one back.
struct Again {
    /// Data that the first move copied before it was interrupted. Bytes.
    copied: f64,
    /// Bytes of the disk that the next move sent.
    retry: f64,
    retry_ms: f64,
    /// Bytes of the disk that a complete move sends.
    whole: f64,
    whole_ms: f64,
}

fn after_a_cut(runs: usize) -> anyhow::Result<String> {
    eprintln!("Again after a cut");
    let guest = Ticker {
        memory_mib: 128,
        pattern_mib: 12,
        writes_per_s: 200,
        disks: vec![disk(CUT_MIB)],
        ..Ticker::new("ticker", 101)
    };
    let mut pair = Pair::up(guest, BOOT_DEADLINE)?;
    let mut all = Vec::new();
    for run in 1..=runs {
        let again = again_once(&mut pair).with_context(|| format!("Run {run} of a move that is cut off"))?;
        eprintln!(
            "run {run}: cut off at {:.0} MiB; the retry sent {:.1} MiB in {:.0} ms, a whole move {:.1} in {:.0} ms",
            again.copied / MIB,
            again.retry / MIB,
            again.retry_ms,
            again.whole / MIB,
            again.whole_ms
        );
        all.push(again);
    }
    let mut text = format!(
        "\n## Again after a cut at 80 %, {CUT_MIB} MiB of data\n\n| | a whole move | the retry |\n|---|---|---|\n"
    );
    let mut row = |name: &str, whole: fn(&Again) -> f64, retry: fn(&Again) -> f64| {
        text += &format!("| {name} | {} | {} |\n", range(&all, whole), range(&all, retry));
    };
    row("bytes of the disk sent, MiB", |again| again.whole / MIB, |again| again.retry / MIB);
    row("total, ms", |again| again.whole_ms, |again| again.retry_ms);
    text += &format!("\nCopied before the cut: {} MiB.\n", range(&all, |again| again.copied / MIB));
    let ratio = median(all.iter().map(|again| again.retry / again.whole));
    Ok(text + &verdicts(&[Figure::new("bytes of the disk, retry / whole move", ratio, 0.30)]))
}

fn again_once(pair: &mut Pair) -> anyhow::Result<Again> {
    let to = 1 - pair.at;
    let (name, destination) = (pair.guest.name.clone(), pair.name(to).to_owned());
    let line = ["vm", "migrate", &name, "--to", &destination, "--storage", local::FOLDER, "--bandwidth", CUT_MIB_PER_S];
    let id = pair.ferry.json::<JobView>(&line)?.id.to_string();
    let show = || pair.ferry.json::<JobView>(&["job", "show", &id]);
    // The data are at the front of the disk; the holes behind them are examined almost instantly.
    let enough = u64::from(CUT_MIB) * (1 << 20) * 8 / 10;
    let copied = wait_for("80 % of the data are copied", SECONDS_30, || {
        let copied = show().ok()?.disks.first()?.copied.0;
        (copied >= enough).then_some(copied)
    })?;
    pair.ferry.must(&["job", "cancel", &id])?;
    let ended = wait_for("the job ends", VERIFY_DEADLINE, || show().ok().filter(|job| job.phase.ended()))?;
    ensure!(ended.phase == Phase::Cancelled, "It was not cut off: {}", ended.summary);
    pair.observer.wait_on(&name, pair.name(pair.at), SECONDS_30)?;
    let (retry, retry_ms) = sent_by_move(pair, to)?;
    let (whole, whole_ms) = sent_by_move(pair, 1 - to)?;
    Ok(Again { copied: copied as f64, retry, retry_ms, whole, whole_ms })
}

/// Moves the guest; returns the bytes sent of its disk, and the duration of the job in milliseconds.
fn sent_by_move(pair: &mut Pair, to: usize) -> anyhow::Result<(f64, f64)> {
    let figures = pair.migrate(to, &[])?.figures.context("The job has no figures")?;
    pair.arrived(to)?;
    let file = pair.real(&pair.disk()?);
    ensure!(
        images::holds_data(&file, DiskFormat::Raw, CUT_MIB)?,
        "{} does not hold the data of the disk",
        file.display()
    );
    Ok((figures.disk_wire.0 as f64, figures.total_ms as f64))
}
