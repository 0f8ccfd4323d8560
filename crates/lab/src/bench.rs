//! Benchmarks: Ferry against what is there without it, in one lab, alternating, so that the machine's noise meets both.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use ferry_core::api::server::JobView;
use serde::Serialize;

use crate::{
    demo::start_ticker,
    ferry::Ferry,
    guest::Ticker,
    observe::{Observer, judge, now},
};

const BOOT_DEADLINE: Duration = Duration::from_secs(90);

/// One run of one side.
#[derive(Clone, Copy, Debug, Serialize)]
struct Run {
    total_ms: f64,
    gap_ms: f64,
    bytes: f64,
    /// Time that the machine's processors were busy meanwhile.
    cpu_ms: f64,
}

/// What a figure may be, and what it was.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// The value.
    pub value: f64,
    /// Its bound.
    pub bound: f64,
    /// Whether it is within.
    pub met: bool,
}

/// Runs `base`: the ticker of 512 MiB, Ferry against `virsh migrate --live --p2p`, on an unshaped link, which the
/// machine's processors fill, and at 1 Gb/s, where the link does.
///
/// # Errors
/// What failed; a figure that is not met is told, and is no error of the bench.
pub fn base(runs: usize, report: Option<&Path>) -> anyhow::Result<()> {
    let ferry = Ferry::up(2)?;
    for host in &ferry.lab.hosts {
        host.set_firewall(true)?;
    }
    let observer = Observer::start(&ferry.lab)?;
    let ticker = Ticker::new("ticker", 101);
    start_ticker(&ferry, &ticker, 0)?;
    observer.wait_on(&ticker.name, "kvm1", BOOT_DEADLINE)?;
    observer.wait_verified(&ticker.name, 0, BOOT_DEADLINE)?;
    let mut at = 0;
    let mut text = format!("{runs} runs each, alternating; median (least – most).\n");
    for (title, rate) in [("Unshaped link", None), ("1 Gb/s", Some("1gbit"))] {
        eprintln!("{title}");
        for host in &ferry.lab.hosts {
            host.set_link_rate(rate)?;
        }
        let measured = alternate(&ferry, &observer, &ticker, runs, &mut at)?;
        text += &format!("\n## {title}\n\n{}", table(&measured.plain, &measured.ours, &measured.figures()));
    }
    judge(&observer.heard(&ticker.name))?;
    println!("{text}");
    if let Some(path) = report {
        fs::write(path, format!("# `cargo xtask bench base`\n\n{text}")).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// Both sides' runs, and what only Ferry's have.
#[derive(Default)]
struct Measured {
    plain: Vec<Run>,
    ours: Vec<Run>,
    prepared: Vec<f64>,
    memory_kib: u64,
}

fn alternate(
    ferry: &Ferry,
    observer: &Observer,
    ticker: &Ticker,
    runs: usize,
    at: &mut usize,
) -> anyhow::Result<Measured> {
    let mut measured = Measured::default();
    for run in 1..=runs {
        // Who goes first changes, so that neither always has the warm direction.
        let order = if run % 2 == 1 { [true, false] } else { [false, true] };
        for ferry_turn in order {
            let (from, to) = (*at, 1 - *at);
            let (begun, busy) = (now(), busy_ms()?);
            let (total_ms, bytes) = if ferry_turn {
                let (total_ms, bytes, accepted_to_migrate, kib) = move_by_ferry(ferry, ticker, to)?;
                measured.prepared.push(accepted_to_migrate);
                measured.memory_kib = measured.memory_kib.max(kib);
                (total_ms, bytes)
            } else {
                move_by_virsh(ferry, ticker, from, to)?
            };
            let cpu_ms = busy_ms()? - busy;
            observer.wait_on(&ticker.name, &ferry.lab.hosts[to].name, Duration::from_secs(20))?;
            let around: Vec<_> = observer.heard(&ticker.name).into_iter().filter(|heard| heard.at >= begun).collect();
            let result = Run { total_ms, gap_ms: judge(&around)?.gap_ms as f64, bytes, cpu_ms };
            eprintln!(
                "run {run}: {:<5} {:>7.0} ms, guest silent {:>5.0} ms, {:>6.1} MiB, processors busy {:>5.0} ms",
                if ferry_turn { "ferry" } else { "virsh" },
                result.total_ms,
                result.gap_ms,
                result.bytes / f64::from(1 << 20),
                result.cpu_ms,
            );
            let side = if ferry_turn { &mut measured.ours } else { &mut measured.plain };
            side.push(result);
            *at = to;
        }
    }
    Ok(measured)
}

/// Time that the machine's processors were busy since it started, all together.
fn busy_ms() -> anyhow::Result<f64> {
    let text = fs::read_to_string("/proc/stat")?;
    let line = text.lines().next().context("/proc/stat is empty")?;
    let ticks: Vec<f64> = line.split_whitespace().skip(1).map_while(|word| word.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq: all but the two that are idle. A tick is 10 ms.
    let busy = ticks.iter().enumerate().filter(|(index, _)| ![3, 4].contains(index)).map(|(_, ticks)| ticks);
    Ok(busy.sum::<f64>() * 10.0)
}

fn move_by_ferry(ferry: &Ferry, ticker: &Ticker, to: usize) -> anyhow::Result<(f64, f64, f64, u64)> {
    let destination = &ferry.lab.hosts[to].name;
    let moving = ferry.command(&["--json", "vm", "migrate", &ticker.name, "--to", destination, "--wait"])?;
    let mut peak = 0;
    let job: JobView = std::thread::scope(|scope| {
        let run = scope.spawn(move || crate::run::run_within(moving, Duration::from_secs(300)));
        while !run.is_finished() {
            peak = peak.max(carrier_memory_kib());
            std::thread::sleep(Duration::from_millis(20));
        }
        let said = run.join().expect("no panic")?;
        ensure!(said.ok(), "ferry vm migrate: {}{}", said.out, said.err);
        Ok::<JobView, anyhow::Error>(serde_json::from_str(said.out.lines().last().unwrap_or_default())?)
    })?;
    let figures = job.figures.context("The job has no figures")?;
    Ok((figures.total_ms as f64, figures.wire.0 as f64, figures.accepted_to_migrate_ms as f64, peak))
}

/// The largest peak resident size among the carriers that run now.
fn carrier_memory_kib() -> u64 {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let carriers = entries.map(|entry| entry.path()).filter(|path| {
        let line = fs::read(path.join("cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        words.first().is_some_and(|program| program.ends_with(b"/ferry-agent")) && words.get(1) == Some(&&b"carry"[..])
    });
    let peak = |path: std::path::PathBuf| {
        let status = fs::read_to_string(path.join("status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    carriers.filter_map(peak).max().unwrap_or(0)
}

fn move_by_virsh(ferry: &Ferry, ticker: &Ticker, from: usize, to: usize) -> anyhow::Result<(f64, f64)> {
    let (source, destination) = (&ferry.lab.hosts[from], &ferry.lab.hosts[to]);
    let (here, there) = (ferry.mount_of(source)?, ferry.mount_of(destination)?);
    let translated = |flag: &[&str], name: &str| -> anyhow::Result<String> {
        let mut line = vec!["dumpxml", &ticker.name];
        line.extend(flag);
        let xml = source.virsh(&line)?.replace(&here.display().to_string(), &there.display().to_string());
        let path = format!("/run/{name}.xml");
        fs::write(source.path(&path), xml)?;
        Ok(path)
    };
    let (live, kept) = (translated(&["--migratable"], "live")?, translated(&["--inactive"], "kept")?);
    let before = port_bytes(ferry, from)?;
    let started = Instant::now();
    source.virsh(&[
        "migrate",
        "--live",
        "--p2p",
        "--persistent",
        "--undefinesource",
        "--unsafe",
        &ticker.name,
        &format!("qemu+tcp://{}/system", destination.ip),
        "--migrateuri",
        &format!("tcp://{}", destination.ip),
        "--xml",
        &live,
        "--persistent-xml",
        &kept,
    ])?;
    let total_ms = started.elapsed().as_secs_f64() * 1_000.0;
    Ok((total_ms, (port_bytes(ferry, from)? - before) as f64))
}

/// Bytes that a host sent.
fn port_bytes(ferry: &Ferry, host: usize) -> anyhow::Result<u64> {
    let text = ferry.lab.hosts[host].run(&["cat", "/sys/class/net/eth0/statistics/tx_bytes"])?;
    Ok(text.trim().parse()?)
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => values[count / 2],
        count => f64::midpoint(values[count / 2 - 1], values[count / 2]),
    }
}

impl Measured {
    fn figures(&self) -> Vec<Figure> {
        figures(&self.plain, &self.ours, &self.prepared, self.memory_kib)
    }
}

fn figures(plain: &[Run], ours: &[Run], prepared: &[f64], memory_kib: u64) -> Vec<Figure> {
    let total = |runs: &[Run]| median(runs.iter().map(|run| run.total_ms));
    let gap = |runs: &[Run]| median(runs.iter().map(|run| run.gap_ms));
    let figure =
        |name: &str, value: f64, bound: f64| Figure { name: name.to_owned(), value, bound, met: value <= bound };
    vec![
        figure("total time, ferry / virsh", total(ours) / total(plain), 1.15),
        figure("guest silent, ferry − 1.15 × virsh, ms", gap(ours) - 1.15 * gap(plain), 100.0),
        figure("accepted → migrate call, ms", median(prepared.iter().copied()), 150.0),
        figure("largest carrier, MiB", memory_kib as f64 / 1024.0, 64.0),
    ]
}

fn table(plain: &[Run], ours: &[Run], figures: &[Figure]) -> String {
    let range = |runs: &[Run], of: fn(&Run) -> f64| {
        let (least, most) =
            runs.iter().map(of).fold((f64::MAX, 0.0_f64), |(least, most), value| (least.min(value), most.max(value)));
        format!("{:.0} ({least:.0} – {most:.0})", median(runs.iter().map(of)))
    };
    let row = |name: &str, of: fn(&Run) -> f64| format!("| {name} | {} | {} |\n", range(plain, of), range(ours, of));
    let mut text = "| | virsh --live --p2p | ferry |\n|---|---|---|\n".to_owned();
    text += &row("total, ms", |run| run.total_ms);
    text += &row("guest silent, ms", |run| run.gap_ms);
    text += &row("bytes, MiB", |run| run.bytes / f64::from(1 << 20));
    text += &row("processors busy, ms", |run| run.cpu_ms);
    text += "\n| figure | measured | bound | |\n|---|---|---|---|\n";
    for figure in figures {
        let verdict = if figure.met { "met" } else { "**missed**" };
        text += &format!("| {} | {:.2} | {:.2} | {verdict} |\n", figure.name, figure.value, figure.bound);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missed_figure_is_told() {
        let run = |total_ms| Run { total_ms, gap_ms: 100.0, bytes: 1.0, cpu_ms: 1.0 };
        let figures = figures(&[run(100.0)], &[run(120.0)], &[10.0], 1024);
        assert_eq!(figures.iter().map(|figure| figure.met).collect::<Vec<_>>(), [false, true, true, true]);
        assert!(table(&[run(100.0)], &[run(120.0)], &figures).contains("**missed**"));
    }

    #[test]
    fn medians_are_medians() {
        assert_eq!((median([3.0, 1.0, 2.0]), median([1.0, 2.0])), (2.0, 1.5));
        assert!(median([]).is_nan());
    }
}
