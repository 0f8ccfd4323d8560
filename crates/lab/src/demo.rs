//! The demo: a running VM moves between two real hosts, and the promises are proved from outside.

use std::{fs, io::Write as _, os::unix::fs::FileExt as _, time::Duration};

use anyhow::{Context as _, ensure};
use clap::ValueEnum;
use ferry_core::api::server::JobView;
use serde::Serialize;

use crate::{
    ferry::Ferry,
    guest::Ticker,
    observe::{Capture, Heard, Observer, judge},
    run::wait_for,
};

const BOOT_DEADLINE: Duration = Duration::from_secs(90);
const VERIFY_DEADLINE: Duration = Duration::from_secs(180);
const SECTOR: usize = 4096;

/// A fault to inject, to show that it would be detected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Sabotage {
    /// A flipped byte of the guest's memory.
    Page,
    /// A lost write on the guest's disk.
    Sector,
    /// A second copy of the VM.
    Split,
}

/// Measurements of a migration.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// The VM.
    pub vm: String,
    /// The kind of move.
    pub kind: String,
    /// The source host.
    pub source: String,
    /// The destination host.
    pub destination: String,
    /// From acceptance to the end. Milliseconds.
    pub total_ms: u64,
    /// From STOP at the source to RESUME at the destination. Milliseconds.
    pub downtime_ms: u64,
    /// The longest gap between the guest's heartbeats around the move, observed from outside. Milliseconds.
    pub guest_gap_ms: u64,
    /// Bytes on the wire.
    pub wire_bytes: u64,
    /// `ok`: no error was found.
    pub integrity: String,
    /// Pages that the guest compared after the move.
    pub pages_verified: u64,
    /// Sectors that the guest compared after the move.
    pub sectors_verified: u64,
    /// Allocated size of the disks' files before the move. Bytes; absent for a move that moves no files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allocated_source_bytes: Option<u64>,
    /// Allocated size of the copies. Bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allocated_destination_bytes: Option<u64>,
}

/// The output of a demo with `--json`.
#[derive(Serialize)]
pub(crate) struct Document<'a> {
    pub(crate) migrations: &'a [Measured],
}

/// Runs the demo.
///
/// # Errors
/// What could not be done, or which promise was broken.
pub fn run(json: bool, keep: bool, sabotage: Option<Sabotage>) -> anyhow::Result<()> {
    print_line("building two hosts with libvirt, QEMU, an agent each, a file server, and Ferry's server");
    let ferry = Ferry::up(2)?;
    let observer = Observer::start(&ferry.lab)?;
    let ticker = Ticker::new("ticker", 101);
    start_ticker(&ferry, &ticker, 0)?;
    observer.wait_on(&ticker.name, "kvm1", BOOT_DEADLINE)?;
    observer.wait_verified(&ticker.name, 0, VERIFY_DEADLINE)?;
    print_line("the guest runs on kvm1; it fills and dirties memory, writes its disk, and beats 100 times a second");
    let measured = measure(&ferry, &observer, &ticker, "kvm2", &[], sabotage)?;
    if !json {
        print_proof(&measured);
    }
    let document = Document { migrations: std::slice::from_ref(&measured) };
    if json {
        println!("{}", serde_json::to_string(&document)?);
    }
    if keep {
        print_use(&ferry)?;
        stay(ferry);
    }
    Ok(())
}

/// Creates a ticker's files on the share, and defines and starts it on a host.
///
/// # Errors
/// libvirt's message.
pub fn start_ticker(ferry: &Ferry, ticker: &Ticker, host: usize) -> anyhow::Result<()> {
    let host = &ferry.lab.hosts[host];
    let mount = ferry.mount_of(host)?;
    ticker.make_local_disks(host)?;
    let definition = ticker.prepare(&ferry.lab, &ferry.files.share, &mount)?;
    let name = format!("/run/{}.xml", ticker.name);
    fs::write(host.path(&name), definition)?;
    host.virsh(&["define", &name])?;
    host.virsh(&["start", &ticker.name])?;
    ferry.wait_listed(&ticker.name, &host.name)
}

/// Moves a running ticker with Ferry's command line and the further options `how`, and judges the observations from
/// outside.
///
/// # Errors
/// The broken promise.
pub fn measure(
    ferry: &Ferry,
    observer: &Observer,
    ticker: &Ticker,
    destination: &str,
    how: &[&str],
    sabotage: Option<Sabotage>,
) -> anyhow::Result<Measured> {
    let name = &ticker.name;
    let capture = Capture::start(&ferry.lab, ferry.lab.host(destination))?;
    let begun = crate::observe::now();
    let old_sector = sabotage.map(|_| read_sector(ferry, ticker)).transpose()?.unwrap_or_default();
    let mut words = vec!["--json", "vm", "migrate", name, "--to", destination, "--wait"];
    words.extend(how);
    let mut command = ferry.command(&words)?;
    command.stderr(std::process::Stdio::inherit());
    let output = crate::run::run_within(command, Duration::from_secs(300))?;
    ensure!(output.ok(), "ferry vm migrate ended with {:?}: {}{}", output.code, output.out, output.err);
    let job: JobView = serde_json::from_str(output.out.lines().last().unwrap_or_default())
        .with_context(|| format!("ferry vm migrate said {}", output.out))?;
    let figures = job.figures.context("The job has no figures")?;
    observer.wait_on(name, destination, Duration::from_secs(20))?;
    let moved = crate::observe::now();
    if let Some(sabotage) = sabotage {
        break_on_purpose(ferry, ticker, observer, sabotage, &old_sector)?;
    }
    observer.wait_verified(name, 1, VERIFY_DEADLINE)?;
    let heard: Vec<Heard> = observer.heard(name);
    let around: Vec<Heard> = heard.iter().filter(|heard| heard.at >= begun && heard.at <= moved).cloned().collect();
    let after: Vec<Heard> = heard.iter().filter(|heard| heard.at > moved).cloned().collect();
    judge(&heard)?;
    let (verified, gap) = (judge(&after)?, judge(&around)?.gap_ms);
    ensure!(observer.runs_on(name) == [destination], "{name} is heard from {:?}", observer.runs_on(name));
    let (captured, hits) = capture.so_far();
    ensure!(hits == 0, "{hits} packets between the hosts held the guest's memory as it is");
    ensure!(
        captured > figures.wire.0 / 20,
        "only {captured} bytes of {} between the hosts were captured: nothing can be said of them",
        figures.wire
    );
    Ok(Measured {
        vm: name.clone(),
        kind: job.kind.title().to_lowercase(),
        source: job.source.clone(),
        destination: job.destination.clone(),
        total_ms: figures.total_ms,
        downtime_ms: figures.downtime_ms,
        guest_gap_ms: gap,
        wire_bytes: figures.wire.0,
        integrity: "ok".to_owned(),
        pages_verified: verified.pages,
        sectors_verified: verified.sectors,
        allocated_source_bytes: None,
        allocated_destination_bytes: None,
    })
}

fn read_sector(ferry: &Ferry, ticker: &Ticker) -> anyhow::Result<Vec<u8>> {
    let disk = ferry.files.share.join(&ticker.name).join("disk.raw");
    let mut sector = vec![0; SECTOR];
    fs::File::open(disk)?.read_exact_at(&mut sector, 0)?;
    Ok(sector)
}

fn break_on_purpose(
    ferry: &Ferry,
    ticker: &Ticker,
    observer: &Observer,
    sabotage: Sabotage,
    old_sector: &[u8],
) -> anyhow::Result<()> {
    match sabotage {
        Sabotage::Page => observer.flip(&ferry.lab, ticker),
        Sabotage::Sector => {
            // Reverts an acknowledged write: the sector gets its previous content, which is complete and well-formed.
            wait_for("the guest wrote its first sector again", Duration::from_secs(60), || {
                (read_sector(ferry, ticker).ok()? != old_sector).then_some(())
            })?;
            let disk = ferry.files.share.join(&ticker.name).join("disk.raw");
            fs::OpenOptions::new().write(true).open(disk)?.write_all_at(old_sector, 0)?;
            Ok(())
        }
        Sabotage::Split => {
            let host = &ferry.lab.hosts[0];
            host.virsh(&["create", &format!("/run/{}.xml", ticker.name)])?;
            wait_for("the second copy is heard", BOOT_DEADLINE, || {
                let port = ferry.lab.hosts[0].name.clone();
                let observer = Observer::start(&ferry.lab).ok()?;
                wait_for("a beat", Duration::from_secs(2), || {
                    observer.runs_on(&ticker.name).contains(&port).then_some(())
                })
                .ok()
            })
        }
    }
}

pub(crate) fn print_line(line: &str) {
    let _ = writeln!(std::io::stderr(), "· {line}");
}

fn print_proof(measured: &Measured) {
    println!("\nProven from outside");
    println!("  {} is heard from {} alone, and its counter never went back", measured.vm, measured.destination);
    println!(
        "  the guest compared {} pages and {} sectors after the move, all as it wrote them",
        measured.pages_verified, measured.sectors_verified
    );
    println!("  a capture of the link holds nothing of the guest's memory as it is\n");
    println!("  total      {:>8} ms", measured.total_ms);
    println!(
        "  downtime   {:>8} ms  from STOP at {} to RESUME at {}",
        measured.downtime_ms, measured.source, measured.destination
    );
    println!("  silence    {:>8} ms  longest gap between two heartbeats around the move", measured.guest_gap_ms);
    println!("  wire       {:>8} KiB", measured.wire_bytes >> 10);
}

fn print_use(ferry: &Ferry) -> anyhow::Result<()> {
    let state = crate::ferry::server_state(&ferry.lab);
    let pin = fs::read_to_string(state.join("server.pin"))?;
    println!("\nThe lab stands in {}.", ferry.lab.folder.display());
    println!("  cargo xtask lab shell kvm1            a shell in a host");
    println!("  cargo xtask lab down                  takes it down");
    println!(
        "  ip netns exec {} env FERRY_SERVER=https://{}:7420 FERRY_PIN={} FERRY_TOKEN_FILE={} {} vm list",
        ferry.lab.namespace(),
        crate::fabric::FABRIC_IP,
        pin.trim(),
        state.join("admin.token").display(),
        ferry.lab.program("ferry").display()
    );
    Ok(())
}

/// Keeps agents, server and lab running.
fn stay(ferry: Ferry) {
    let Ferry { agents, server, lab, .. } = ferry;
    for agent in agents {
        std::mem::forget(agent.program);
    }
    std::mem::forget(server);
    lab.keep();
}
