//! Ferry against the flag sets with which other programs call libvirt, on one link: each scenario moves the same Debian
//! guest of 1 GiB to and fro, by each contender in turn.

use std::{fmt::Write as _, path::Path};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::{
    measure::{MIB, MOVE_DEADLINE, Run, Watch, device_bytes, median, range, virsh_migrate_by},
    pair::{DEBIAN_BOOT_DEADLINE, Pair, SECONDS_30},
    plot,
};
use crate::{
    guest::Ticker,
    images::{Disk, Place},
    local,
    run::run_within,
};
use ferry_core::vm::DiskFormat;

const GUEST_MIB: u32 = 1024;
/// Every peer keeps the VM defined at the destination only, as Ferry does: the guest has to come back.
const KEPT: [&str; 2] = ["--persistent", "--undefinesource"];

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Scenario {
    pub(super) name: &'static str,
    title: &'static str,
    /// As `tc` writes it; `None`: as fast as the machine is.
    rate: Option<&'static str>,
    /// Whether the guest's disk moves with it.
    with_disk: bool,
    /// What Ferry is held to.
    bounds: &'static [Bound],
}

/// A limit of Ferry's median, as a multiple of another median.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Bound {
    of: Quantity,
    against: Against,
    most: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Quantity {
    Time,
    Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Against {
    /// The fastest peer of this scenario.
    BestPeer,
    /// `virsh migrate --live --p2p`.
    Plain,
}

const fn bound(of: Quantity, against: Against, most: f64) -> Bound {
    Bound { of, against, most }
}

/// All scenarios.
pub(super) const SCENARIOS: [Scenario; 5] = [
    Scenario {
        name: "live-200m",
        title: "Live, shared storage, 200 Mb/s",
        rate: Some("200mbit"),
        with_disk: false,
        bounds: &[bound(Quantity::Time, Against::BestPeer, 0.60), bound(Quantity::Bytes, Against::BestPeer, 0.60)],
    },
    Scenario {
        name: "live-1g",
        title: "Live, shared storage, 1 Gb/s",
        rate: Some("1gbit"),
        with_disk: false,
        bounds: &[bound(Quantity::Time, Against::Plain, 0.75), bound(Quantity::Time, Against::BestPeer, 1.10)],
    },
    Scenario {
        name: "live-unshaped",
        title: "Live, shared storage, unshaped link",
        rate: None,
        with_disk: false,
        bounds: &[bound(Quantity::Time, Against::BestPeer, 1.10)],
    },
    Scenario {
        name: "vsm-200m",
        title: "With its disk, nothing shared, 200 Mb/s",
        rate: Some("200mbit"),
        with_disk: true,
        bounds: &[bound(Quantity::Time, Against::BestPeer, 0.45), bound(Quantity::Bytes, Against::BestPeer, 0.42)],
    },
    Scenario {
        name: "vsm-1g",
        title: "With its disk, nothing shared, 1 Gb/s",
        rate: Some("1gbit"),
        with_disk: true,
        bounds: &[bound(Quantity::Time, Against::BestPeer, 0.60)],
    },
];

/// One way to move the guest.
#[derive(Clone, Copy, Debug)]
struct Contender {
    name: &'static str,
    how: How,
}

#[derive(Clone, Copy, Debug)]
enum How {
    /// `virsh migrate` with these options.
    Virsh(&'static [&'static str]),
    /// `ferry vm migrate` with this preset.
    Ferry(&'static str),
}

const PLAIN: &str = "virsh --live --p2p (Nova, Cockpit)";

/// Without disks.
const SHARED: [Contender; 8] = [
    Contender { name: "virsh --live", how: How::Virsh(&["--live"]) },
    Contender { name: PLAIN, how: How::Virsh(&["--live", "--p2p"]) },
    Contender {
        name: "KubeVirt: 8 connections",
        how: How::Virsh(&["--live", "--p2p", "--parallel", "--parallel-connections", "8"]),
    },
    Contender {
        name: "oVirt: auto-converge, 52 MiB/s",
        how: How::Virsh(&["--live", "--p2p", "--auto-converge", "--bandwidth", "52"]),
    },
    Contender { name: "CloudStack: xbzrle", how: How::Virsh(&["--live", "--compressed"]) },
    Contender {
        name: "libvirt's best: multifd zstd",
        how: How::Virsh(&["--live", "--p2p", "--parallel", "--comp-methods", "zstd"]),
    },
    Contender { name: "Ferry, standard", how: How::Ferry("standard") },
    Contender { name: FERRY, how: How::Ferry("compression") },
];

const FERRY: &str = "Ferry";

/// With the disk.
const WITH_DISK: [Contender; 7] = [
    Contender { name: "virsh --live", how: How::Virsh(&["--live", "--copy-storage-all"]) },
    Contender { name: "virsh --live --p2p (Cockpit)", how: How::Virsh(&["--live", "--p2p", "--copy-storage-all"]) },
    Contender {
        name: "Nova: copy-storage-inc",
        how: How::Virsh(&["--live", "--p2p", "--copy-storage-inc", "--migrate-disks", "vda"]),
    },
    Contender {
        name: "KubeVirt: 8 connections, detect zeroes",
        how: How::Virsh(&[
            "--live",
            "--p2p",
            "--parallel",
            "--parallel-connections",
            "8",
            "--copy-storage-inc",
            "--migrate-disks",
            "vda",
            "--migrate-disks-detect-zeroes",
            "vda",
        ]),
    },
    Contender {
        name: "libvirt's best: multifd zstd, detect zeroes",
        how: How::Virsh(&[
            "--live",
            "--p2p",
            "--parallel",
            "--comp-methods",
            "zstd",
            "--copy-storage-all",
            "--migrate-disks",
            "vda",
            "--migrate-disks-detect-zeroes",
            "vda",
        ]),
    },
    Contender { name: "Ferry, standard", how: How::Ferry("standard") },
    Contender { name: FERRY, how: How::Ferry("compression") },
];

/// The runs of one contender, or why it could not move the guest.
struct Outcome {
    contender: Contender,
    runs: Vec<Run>,
    failed: Option<String>,
}

impl Outcome {
    fn median(&self, of: fn(&Run) -> f64) -> f64 {
        median(self.runs.iter().map(of))
    }

    fn is_peer(&self) -> bool {
        matches!(self.contender.how, How::Virsh(_))
    }
}

/// The result of a scenario, as text, as data, and as a plot.
pub(super) struct Compared {
    pub(super) text: String,
    pub(super) json: Value,
    pub(super) svg: String,
}

/// Runs one scenario.
///
/// # Errors
/// The lab fails, or Ferry cannot move the guest. A peer that cannot is a row of the result.
pub(super) fn run(scenario: &Scenario, runs: usize) -> anyhow::Result<Compared> {
    let contenders: &[Contender] = if scenario.with_disk { &WITH_DISK } else { &SHARED };
    let place = if scenario.with_disk { Place::Local } else { Place::Share };
    let disks = vec![Disk::new(place, DiskFormat::Raw)];
    let guest = Ticker { memory_mib: GUEST_MIB, disks, ..Ticker::debian("debian", 103) };
    let mut pair = Pair::up(guest, DEBIAN_BOOT_DEADLINE)?;
    for host in &pair.ferry.lab.hosts {
        host.set_link_rate(scenario.rate)?;
    }
    eprintln!("{}", scenario.title);
    let start = |contender: &Contender| Outcome { contender: *contender, runs: Vec::new(), failed: None };
    let mut outcomes: Vec<Outcome> = contenders.iter().map(start).collect();
    for round in 0..runs {
        for turn in 0..outcomes.len() {
            // Each round begins with another one, so that no contender always follows the same one.
            let at = (turn + round) % contenders.len();
            let outcome = &mut outcomes[at];
            if outcome.failed.is_some() {
                continue;
            }
            match once(&mut pair, scenario, outcome.contender) {
                Ok(run) => {
                    report(round + 1, outcome.contender.name, &run);
                    outcome.runs.push(run);
                }
                Err(error) if outcome.is_peer() => {
                    let why = format!("{error:#}");
                    eprintln!("       {}: {why}", outcome.contender.name);
                    outcome.failed = Some(why.lines().next_back().unwrap_or_default().to_owned());
                    pair.arrived(pair.at).context("The guest did not outlive a peer's failure")?;
                }
                Err(error) => return Err(error.context(format!("{}, round {}", outcome.contender.name, round + 1))),
            }
        }
    }
    Ok(compared(scenario, &outcomes, runs))
}

fn report(round: usize, name: &str, run: &Run) {
    eprintln!(
        "round {round}: {name:<44} {:>7.0} ms, guest silent {:>5.0} ms, {:>6.1} MiB, processors busy {:>6.0} ms",
        run.total_ms,
        run.gap_ms,
        run.bytes / MIB,
        run.cpu_ms,
    );
}

/// Moves the guest to the other host. The measured time is that of the command which an administrator enters.
fn once(pair: &mut Pair, scenario: &Scenario, contender: Contender) -> anyhow::Result<Run> {
    let (from, to, name) = (pair.at, 1 - pair.at, pair.guest.name.clone());
    let old = if scenario.with_disk { Some(pair.disk()?) } else { None };
    let before = device_bytes(&pair.ferry, from, "eth0")?;
    let (begun, (total_ms, cpu_ms)) = {
        let (begun, command) = match contender.how {
            How::Virsh(flags) => {
                if let Some(disk) = &old {
                    pair.make_file_for(disk, to)?;
                }
                let more: &[&str] = if scenario.with_disk { &[] } else { &["--unsafe"] };
                let flags = [flags, &KEPT, more].concat();
                let address = pair.ferry.lab.hosts[to].ip.clone();
                let ready = virsh_migrate_by(&pair.ferry, &name, (from, to), &address, &flags)?;
                (Watch::begin(&pair.observer, &name)?, ready.0)
            }
            How::Ferry(preset) => {
                let mut line = vec!["vm", "migrate", &name, "--to", pair.name(to), "--performance", preset, "--wait"];
                line.extend(scenario.with_disk.then_some(["--storage", local::FOLDER]).into_iter().flatten());
                (Watch::begin(&pair.observer, &name)?, pair.ferry.command(&line)?)
            }
        };
        let output = run_within(command, MOVE_DEADLINE)?;
        let ended = begun.end()?;
        ensure!(output.ok(), "{}{}", output.out, output.err);
        (begun.gap_ms()?, ended)
    };
    pair.observer.wait_on(&name, pair.name(to), SECONDS_30)?;
    let bytes = (device_bytes(&pair.ferry, from, "eth0")? - before) as f64;
    if matches!(contender.how, How::Virsh(_))
        && let Some(disk) = &old
    {
        pair.ferry.lab.hosts[from].run(&["rm", disk])?;
        pair.at = to;
        pair.make_thin(&pair.disk()?)?;
    }
    pair.arrived(to)?;
    Ok(Run { total_ms, gap_ms: begun, bytes, cpu_ms })
}

fn compared(scenario: &Scenario, outcomes: &[Outcome], runs: usize) -> Compared {
    let time: fn(&Run) -> f64 = |run| run.total_ms;
    let bytes: fn(&Run) -> f64 = |run| run.bytes;
    let peers = || outcomes.iter().filter(|outcome| outcome.is_peer() && !outcome.runs.is_empty());
    let best = peers().map(|peer| peer.median(time)).fold(f64::INFINITY, f64::min);
    let fastest = peers().find(|peer| peer.median(time) <= best);
    let mut text = format!(
        "\n## {}: {}\n\n| | total, ms | × best peer | sent, MiB | guest silent, ms | processors busy, ms |\n\
         |---|---|---|---|---|---|\n",
        scenario.name, scenario.title
    );
    for outcome in outcomes {
        let name = outcome.contender.name;
        let row = match &outcome.failed {
            Some(why) => format!("| {name} | not possible: {why} | | | | |"),
            None => format!(
                "| {name} | {} | {:.2} | {} | {} | {} |",
                range(&outcome.runs, time),
                outcome.median(time) / best,
                range(&outcome.runs, |run| run.bytes / MIB),
                range(&outcome.runs, |run| run.gap_ms),
                range(&outcome.runs, |run| run.cpu_ms),
            ),
        };
        writeln!(text, "{row}").expect("memory takes it");
    }
    let ours = outcomes.iter().find(|outcome| outcome.contender.name == FERRY);
    let plain = outcomes.iter().find(|outcome| outcome.contender.name == PLAIN);
    let mut verdicts = Vec::new();
    for bound in scenario.bounds {
        let of = match bound.of {
            Quantity::Time => time,
            Quantity::Bytes => bytes,
        };
        let against = match bound.against {
            Against::BestPeer => fastest,
            Against::Plain => plain,
        };
        if let (Some(ours), Some(against)) = (ours, against) {
            verdicts.push((bound, against.contender.name, ours.median(of) / against.median(of)));
        }
    }
    text += "\n| figure | measured | bound | |\n|---|---|---|---|\n";
    for (bound, against, measured) in &verdicts {
        let what = match bound.of {
            Quantity::Time => "total time",
            Quantity::Bytes => "bytes",
        };
        let verdict = if *measured <= bound.most { "met" } else { "**missed**" };
        writeln!(text, "| {what}, Ferry / {against} | {measured:.2} | {:.2} | {verdict} |", bound.most)
            .expect("memory takes it");
    }
    Compared { svg: svg(scenario, outcomes, runs), json: as_json(scenario, outcomes, &verdicts), text }
}

fn svg(scenario: &Scenario, outcomes: &[Outcome], runs: usize) -> String {
    let bar = |outcome: &Outcome| plot::Bar {
        name: outcome.contender.name,
        values: outcome.runs.iter().map(|run| run.total_ms / 1000.0).collect(),
        is_ours: !outcome.is_peer(),
    };
    let title = format!("{}: seconds, median and range of {runs}", scenario.title);
    plot::bars(&title, &outcomes.iter().filter(|outcome| outcome.failed.is_none()).map(bar).collect::<Vec<_>>())
}

fn as_json(scenario: &Scenario, outcomes: &[Outcome], verdicts: &[(&Bound, &str, f64)]) -> Value {
    let one = |run: &Run| json!({"total_ms": run.total_ms, "silent_ms": run.gap_ms, "bytes": run.bytes, "busy_ms": run.cpu_ms});
    let row = |outcome: &Outcome| {
        json!({
            "name": outcome.contender.name,
            "failed": outcome.failed,
            "runs": outcome.runs.iter().map(one).collect::<Vec<_>>(),
        })
    };
    let verdict = |(bound, against, measured): &(&Bound, &str, f64)| {
        json!({
            "of": format!("{:?}", bound.of).to_lowercase(),
            "against": against,
            "measured": measured,
            "bound": bound.most,
            "met": *measured <= bound.most,
        })
    };
    json!({
        "scenario": scenario.name,
        "contenders": outcomes.iter().map(row).collect::<Vec<_>>(),
        "figures": verdicts.iter().map(verdict).collect::<Vec<_>>(),
    })
}

/// Where the plot of a scenario is written.
pub(super) fn plot_path(folder: &Path, scenario: &Scenario) -> std::path::PathBuf {
    folder.join(format!("{}.svg", scenario.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(name: &'static str, how: How, times: &[f64]) -> Outcome {
        let run = |time: &f64| Run { total_ms: *time, gap_ms: 300.0, bytes: time * 1e5, cpu_ms: 2000.0 };
        Outcome { contender: Contender { name, how }, runs: times.iter().map(run).collect(), failed: None }
    }

    #[test]
    fn ferry_is_held_against_the_fastest_peer_and_a_peer_that_fails_is_a_row() {
        let failed = Outcome { failed: Some("unsupported".to_owned()), ..outcome("fast", How::Virsh(&[]), &[]) };
        let outcomes = [
            outcome(PLAIN, How::Virsh(&[]), &[9000.0, 10_000.0, 11_000.0]),
            outcome("xbzrle", How::Virsh(&[]), &[12_000.0]),
            failed,
            outcome(FERRY, How::Ferry("compression"), &[5000.0]),
        ];
        let compared = compared(&SCENARIOS[0], &outcomes, 3);
        assert!(compared.text.contains("| fast | not possible: unsupported |"), "{}", compared.text);
        assert!(compared.text.contains("| Ferry | 5000 (5000 – 5000) | 0.50 |"), "{}", compared.text);
        let figures = compared.json["figures"].as_array().expect("they are told");
        assert_eq!(figures.len(), 2);
        assert!(figures.iter().all(|figure| figure["against"] == PLAIN && figure["measured"] == 0.5), "{figures:?}");
        assert!(compared.svg.contains("xbzrle") && !compared.svg.contains("fast"), "{}", compared.svg);
        let slow = [outcome(PLAIN, How::Virsh(&[]), &[1000.0]), outcome(FERRY, How::Ferry("compression"), &[700.0])];
        assert_eq!(super::compared(&SCENARIOS[0], &slow, 1).text.matches("**missed**").count(), 2);
    }
}
