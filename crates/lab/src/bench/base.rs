//! `base`: moves the 512 MiB ticker with Ferry and with `virsh migrate --live --p2p`: on an unshaped link, where the
//! machine's processors are the limit, and at 1 Gb/s, where the link is.

use std::{fs, time::Duration};

use anyhow::{Context as _, ensure};
use ferry_core::api::server::JobView;

use super::measure::{
    Figure, MIB, MOVE_DEADLINE, Run, Side, Sides, Watch, device_bytes, median, verdicts, virsh_migrate,
};
use crate::{
    demo::start_ticker,
    ferry::Ferry,
    guest::Ticker,
    observe::{Observer, judge},
    run::run_within,
};

const BOOT_DEADLINE: Duration = Duration::from_secs(90);

/// Measures, and returns the tables.
pub(super) fn run(runs: usize) -> anyhow::Result<String> {
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
    let mut text = String::new();
    for (title, rate) in [("Unshaped link", None), ("1 Gb/s", Some("1gbit"))] {
        eprintln!("{title}");
        for host in &ferry.lab.hosts {
            host.set_link_rate(rate)?;
        }
        text += &format!("\n## {title}\n\n{}", one_link(&ferry, &observer, &ticker, runs, &mut at)?);
    }
    judge(&observer.heard(&ticker.name))?;
    Ok(text)
}

fn one_link(
    ferry: &Ferry,
    observer: &Observer,
    ticker: &Ticker,
    runs: usize,
    at: &mut usize,
) -> anyhow::Result<String> {
    let (mut prepared, mut memory_kib) = (Vec::new(), 0);
    let sides = Sides::alternate(runs, |run, side| {
        let (from, to) = (*at, 1 - *at);
        let watch;
        let (total_ms, cpu_ms, bytes) = match side {
            Side::Ferry => {
                watch = Watch::begin(observer, &ticker.name)?;
                let (job, kib) = move_by_ferry(ferry, ticker, to)?;
                let (_, cpu_ms) = watch.end()?;
                let figures = job.figures.context("The job has no figures")?;
                prepared.push(figures.accepted_to_migrate_ms as f64);
                memory_kib = kib.max(memory_kib);
                (figures.total_ms as f64, cpu_ms, figures.wire.0 as f64)
            }
            Side::Virsh => {
                let address = &ferry.lab.hosts[to].ip;
                let ready = virsh_migrate(ferry, &ticker.name, (from, to), address, &["--unsafe"])?;
                let before = device_bytes(ferry, from, "eth0")?;
                watch = Watch::begin(observer, &ticker.name)?;
                ready.go()?;
                let (total_ms, cpu_ms) = watch.end()?;
                (total_ms, cpu_ms, (device_bytes(ferry, from, "eth0")? - before) as f64)
            }
        };
        observer.wait_on(&ticker.name, &ferry.lab.hosts[to].name, Duration::from_secs(20))?;
        let result = Run { total_ms, gap_ms: watch.gap_ms()?, bytes, cpu_ms };
        result.report(run, side);
        *at = to;
        Ok(result)
    })?;
    let table = sides.table(
        "virsh --live --p2p",
        &[
            ("total, ms", |run| run.total_ms),
            ("guest silent, ms", |run| run.gap_ms),
            ("bytes, MiB", |run| run.bytes / MIB),
            ("processors busy, ms", |run| run.cpu_ms),
        ],
    );
    let figures = [
        Figure::new("total time, ferry / virsh", sides.ratio(|run| run.total_ms), 1.15),
        sides.silence(|run| run.gap_ms),
        Figure::new("accepted → migrate call, ms", median(prepared), 150.0),
        Figure::new("largest carrier, MiB", memory_kib as f64 / 1024.0, 64.0),
    ];
    Ok(table + &verdicts(&figures))
}

/// Also returns the largest peak resident size of a carrier. KiB.
fn move_by_ferry(ferry: &Ferry, ticker: &Ticker, to: usize) -> anyhow::Result<(JobView, u64)> {
    let destination = &ferry.lab.hosts[to].name;
    let moving = ferry.command(&["--json", "vm", "migrate", &ticker.name, "--to", destination, "--wait"])?;
    let mut peak = 0;
    let job: JobView = std::thread::scope(|scope| {
        let run = scope.spawn(move || run_within(moving, MOVE_DEADLINE));
        while !run.is_finished() {
            peak = peak.max(carrier_memory_kib());
            std::thread::sleep(Duration::from_millis(20));
        }
        let output = run.join().expect("no thread panicked")?;
        ensure!(output.ok(), "ferry vm migrate: {}{}", output.out, output.err);
        Ok::<JobView, anyhow::Error>(serde_json::from_str(output.out.lines().last().unwrap_or_default())?)
    })?;
    Ok((job, peak))
}

/// The largest peak resident size of the carriers that run now.
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
