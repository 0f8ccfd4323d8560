//! `link`: moves a ticker of 2 GiB over long links, with Ferry and with `virsh migrate --live --p2p`. Both use a
//! separate cable, the migration network; the paths to the share and to the server are short.

use std::{fs, time::Duration};

use anyhow::{Context as _, ensure};
use ferry_core::{api::server::Candidate, finding::any_blocks};

use super::measure::{Figure, MIB, Run, Side, Sides, Watch, device_bytes, job, median, verdicts, virsh_migrate};
use crate::{
    cable::{self, Cable},
    demo::start_ticker,
    ferry::{AGENT_CONFIG, Ferry},
    guest::Ticker,
    observe::{Observer, judge},
    run::wait_for,
};

const BOOT_DEADLINE: Duration = Duration::from_secs(180);
/// The values that `ferry-agent checks` recommends for hosts with long links, used for both sides.
const BUFFERS: [&str; 2] = ["net.ipv4.tcp_rmem=4096 131072 33554432", "net.ipv4.tcp_wmem=4096 16384 33554432"];
const GBIT: u64 = 1_000_000_000;

/// A link to measure.
struct Link {
    title: &'static str,
    /// One-way delay.
    delay: Duration,
    rate: Option<u64>,
}

const LINKS: [Link; 3] = [
    Link { title: "1 Gb/s, round trip 50 ms", delay: Duration::from_millis(25), rate: Some(GBIT) },
    Link { title: "1 Gb/s, round trip 10 ms", delay: Duration::from_millis(5), rate: Some(GBIT) },
    Link { title: "Unshaped, round trip 10 ms", delay: Duration::from_millis(5), rate: None },
];

/// Measurements of a move.
struct Moved {
    run: Run,
    /// Speed of the memory transfer. Bits per second.
    speed: f64,
}

/// Measures, and returns the tables.
pub(super) fn run(runs: usize) -> anyhow::Result<String> {
    let mut ferry = Ferry::up(2)?;
    let [one, other] = &ferry.lab.hosts[..] else { unreachable!("two were asked for") };
    let cable = Cable::lay([one, other])?;
    for (end, host) in ferry.lab.hosts.iter().enumerate() {
        host.set_firewall(true)?;
        for buffers in BUFFERS {
            host.run(&["sysctl", "-q", "-w", buffers])?;
        }
        let config = fs::read_to_string(host.path(AGENT_CONFIG))?;
        let here = |address: &str| format!("data_address = \"{address}\"");
        ensure!(config.contains(&here(&host.ip)), "The agent's configuration is another one: {config}");
        fs::write(host.path(AGENT_CONFIG), config.replace(&here(&host.ip), &here(&cable::address(end))))?;
    }
    for host in 0..ferry.lab.hosts.len() {
        ferry.kill_agent(host)?;
        ferry.start_agent(host, &[])?;
    }
    let observer = Observer::start(&ferry.lab)?;
    let ticker = Ticker { memory_mib: 2048, pattern_mib: 1536, ..Ticker::new("ticker", 101) };
    start_ticker(&ferry, &ticker, 0)?;
    observer.wait_on(&ticker.name, "kvm1", BOOT_DEADLINE)?;
    observer.wait_verified(&ticker.name, 0, BOOT_DEADLINE)?;
    let mut at = 0;
    let mut text = String::new();
    for link in LINKS {
        eprintln!("{}", link.title);
        cable.set(link.delay, link.rate);
        text += &format!("\n## {}\n\n{}", link.title, one_link(&ferry, &observer, &ticker, &link, runs, &mut at)?);
    }
    judge(&observer.heard(&ticker.name))?;
    Ok(text)
}

fn one_link(
    ferry: &Ferry,
    observer: &Observer,
    ticker: &Ticker,
    link: &Link,
    runs: usize,
    at: &mut usize,
) -> anyhow::Result<String> {
    let name = &ticker.name;
    let sides = Sides::alternate(runs, |run, side| {
        let (from, to) = (*at, 1 - *at);
        let destination = &ferry.lab.hosts[to].name;
        let before = device_bytes(ferry, from, cable::DEVICE)?;
        let (watch, memory_ms, (total_ms, cpu_ms)) = match side {
            Side::Ferry => {
                let watch = Watch::begin(observer, name)?;
                let job = job(ferry, &["vm", "migrate", name, "--to", destination])?;
                let ended = watch.end()?;
                let figures = job.figures.context("The job has no figures")?;
                (watch, figures.migrate_ms as f64, (figures.total_ms as f64, ended.1))
            }
            Side::Virsh => {
                let ready = virsh_migrate(ferry, name, (from, to), &cable::address(to), &["--unsafe"])?;
                let watch = Watch::begin(observer, name)?;
                ready.go()?;
                let ended = watch.end()?;
                (watch, ended.0, ended)
            }
        };
        let bytes = (device_bytes(ferry, from, cable::DEVICE)? - before) as f64;
        observer.wait_on(name, destination, Duration::from_secs(30))?;
        // When virsh returns, libvirt is still ending the source's copy, because its memory is large.
        let back = ["vm", "migrate", name, "--to", &ferry.lab.hosts[from].name, "--dry-run"];
        wait_for("nothing stands against the way back", Duration::from_secs(30), || {
            let tried: Vec<Candidate> = ferry.json(&back).ok()?;
            tried.iter().all(|candidate| !any_blocks(&candidate.findings)).then_some(())
        })?;
        let run_of = Run { total_ms, gap_ms: watch.gap_ms()?, bytes, cpu_ms };
        run_of.report(run, side);
        *at = to;
        Ok(Moved { run: run_of, speed: bytes * 8.0 / (memory_ms / 1000.0) })
    })?;
    let table = sides.table(
        "virsh --live --p2p",
        &[
            ("total, ms", |moved| moved.run.total_ms),
            ("libvirt's call: Mb/s", |moved| moved.speed / 1e6),
            ("guest silent, ms", |moved| moved.run.gap_ms),
            ("bytes, MiB", |moved| moved.run.bytes / MIB),
            ("processors busy, ms", |moved| moved.run.cpu_ms),
        ],
    );
    // The same bound as in `base`, where the link is the limit for both.
    let bound = if link.rate.is_some() { 1.15 } else { 1.0 };
    let mut figures = vec![Figure::new("total time, ferry / virsh", sides.ratio(|moved| moved.run.total_ms), bound)];
    if let Some(rate) = link.rate {
        let idle = 1.0 - median(sides.ours.iter().map(|moved| moved.speed)) / rate as f64;
        figures.push(Figure::new("part of the link that Ferry leaves idle", idle, 0.15));
    }
    Ok(table + &verdicts(&figures))
}
