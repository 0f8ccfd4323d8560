//! The storage demo: the disks of a running VM move between a host and the share, one of them alone, and together with
//! the VM to another host that does not reach them. The guest verifies every sector after each move.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use ferry_core::{
    api::server::{JobView, VmView},
    location::Location,
    vm::{DiskFormat, FileRole},
};

use crate::{
    demo::{Document, Measured, measure, print_line, start_ticker},
    ferry::Ferry,
    guest::Ticker,
    images::{self, Disk, Place},
    local,
    observe::{Heard, Observer, judge, now},
};

const BOOT_DEADLINE: Duration = Duration::from_secs(90);
const VERIFY_DEADLINE: Duration = Duration::from_secs(180);
const MOVE_DEADLINE: Duration = Duration::from_secs(300);
/// Allowance for a copy beyond its content: metadata of a qcow2 image, and of the file system.
const METADATA_BYTES: u64 = 1 << 20;

/// Runs the demo.
///
/// # Errors
/// What could not be done, or which promise was broken.
pub fn run(json: bool) -> anyhow::Result<()> {
    print_line(
        "building two hosts with libvirt, QEMU, an agent and a disk of their own each, a file server, and Ferry's server",
    );
    let ferry = Ferry::up(2)?;
    let observer = Observer::start(&ferry.lab)?;
    let disk = |format, data_mib| Disk { size_mib: 256, data_mib, ..Disk::new(Place::Local, format) };
    let ticker = Ticker {
        memory_mib: 256,
        pattern_mib: 32,
        writes_per_s: 200,
        disks: vec![disk(DiskFormat::Raw, 48), disk(DiskFormat::Qcow2, 16)],
        ..Ticker::new("ticker", 101)
    };
    start_ticker(&ferry, &ticker, 0)?;
    observer.wait_on(&ticker.name, "kvm1", BOOT_DEADLINE)?;
    observer.wait_verified(&ticker.name, 0, VERIFY_DEADLINE)?;
    print_line("the guest runs on kvm1 from two disks that only kvm1 has, vda raw and vdb qcow2, and writes both");
    let share = ferry.files.unc();
    let to_share = format!("vda={share},format=qcow2");
    let to_raw = format!("vda={},format=raw", local::FOLDER);
    let one = format!("vdb={share}");
    let both = format!("vdb={},format=raw", local::FOLDER);
    let mut measured = Vec::new();
    let mut on_host = |what: &str, how: &[&str]| -> anyhow::Result<()> {
        print_line(what);
        measured.push(move_storage(&ferry, &observer, &ticker.name, how)?);
        Ok(())
    };
    on_host("both disks move to the share, as qcow2", &["--to", &share, "--disk", &to_share])?;
    on_host("both come back to the host, vda as raw", &["--to", local::FOLDER, "--disk", &to_raw])?;
    on_host("vdb moves to the share alone", &["--disk", &one])?;
    print_line("the VM moves to kvm2: vda, which kvm2 does not reach, moves along; vdb, too, by request, as raw");
    measured.push(move_with_disks(&ferry, &observer, &ticker, "kvm2", &["--storage", local::FOLDER, "--disk", &both])?);
    if json {
        println!("{}", serde_json::to_string(&Document { migrations: &measured })?);
    } else {
        print_table(&measured);
    }
    Ok(())
}

/// The real files of a VM's disks, wherever they are.
fn disks(ferry: &Ferry, vm: &str) -> anyhow::Result<Vec<(std::path::PathBuf, DiskFormat)>> {
    let view: VmView = ferry.json(&["vm", "show", vm])?;
    let host = ferry.lab.host(&view.host);
    let files = view.facts.files.iter().filter(|file| file.role == FileRole::Disk);
    let one = |file: &ferry_core::vm::VmFile| {
        let path = match &file.place {
            Location::Share { path, .. } => ferry.files.share.join(path),
            Location::Local { path, .. } => host.file(path),
        };
        Ok((path, file.format.context("The definition says no format")?))
    };
    files.map(one).collect()
}

fn allocated(ferry: &Ferry, vm: &str) -> anyhow::Result<u64> {
    disks(ferry, vm)?.iter().map(|(path, _)| images::allocated(path)).sum()
}

/// Checks that the copies are about as large as their content, measured on the files themselves.
fn ensure_thin(ferry: &Ferry, vm: &str) -> anyhow::Result<u64> {
    let mut sum = 0;
    for (path, format) in disks(ferry, vm)? {
        let (allocated, nonzero) = (images::allocated(&path)?, images::nonzero(&path, format)?);
        ensure!(
            allocated <= nonzero + nonzero / 50 + METADATA_BYTES,
            "{} takes {allocated} bytes for {nonzero} that are not zero",
            path.display()
        );
        sum += allocated;
    }
    Ok(sum)
}

fn move_storage(ferry: &Ferry, observer: &Observer, vm: &str, how: &[&str]) -> anyhow::Result<Measured> {
    let (begun, before) = (now(), allocated(ferry, vm)?);
    let mut words = vec!["--json", "vm", "move-storage", vm, "--wait"];
    words.extend(how);
    let mut command = ferry.command(&words)?;
    command.stderr(std::process::Stdio::inherit());
    let output = crate::run::run_within(command, MOVE_DEADLINE)?;
    ensure!(output.ok(), "ferry vm move-storage ended with {:?}: {}{}", output.code, output.out, output.err);
    let job: JobView = serde_json::from_str(output.out.lines().last().unwrap_or_default())?;
    let (figures, moved) = (job.figures.context("The job has no figures")?, now());
    observer.wait_verified(vm, 1, VERIFY_DEADLINE)?;
    let heard = observer.heard(vm);
    judge(&heard)?;
    let part =
        |is: &dyn Fn(&Heard) -> bool| judge(&heard.iter().filter(|heard| is(heard)).cloned().collect::<Vec<_>>());
    let around = part(&|heard| heard.at >= begun && heard.at <= moved)?;
    let verified = part(&|heard| heard.at > moved)?;
    Ok(Measured {
        vm: vm.to_owned(),
        kind: job.kind.title().to_lowercase(),
        source: job.source.clone(),
        destination: job.destination,
        total_ms: figures.total_ms,
        downtime_ms: 0,
        guest_gap_ms: around.gap_ms,
        wire_bytes: figures.wire.0,
        integrity: "ok".to_owned(),
        pages_verified: verified.pages,
        sectors_verified: verified.sectors,
        allocated_source_bytes: Some(before),
        allocated_destination_bytes: Some(ensure_thin(ferry, vm)?),
    })
}

fn move_with_disks(
    ferry: &Ferry,
    observer: &Observer,
    ticker: &Ticker,
    destination: &str,
    how: &[&str],
) -> anyhow::Result<Measured> {
    let before = allocated(ferry, &ticker.name)?;
    let measured = measure(ferry, observer, ticker, destination, how, None)?;
    let after = ensure_thin(ferry, &ticker.name)?;
    Ok(Measured { allocated_source_bytes: Some(before), allocated_destination_bytes: Some(after), ..measured })
}

fn print_table(measured: &[Measured]) {
    println!(
        "\nProven from outside: after each move the guest compared all that it had written, and the files are as thin as before\n"
    );
    println!(
        "  {:<11} {:<13} {:>9} {:>9} {:>9} {:>11} {:>11} {:>9} {:>8}",
        "kind", "from → to", "total", "downtime", "silence", "took", "takes", "sectors", "wire"
    );
    let mib = |bytes: Option<u64>| bytes.map_or(String::new(), |bytes| format!("{:.1} MiB", bytes as f64 / 1048576.0));
    for move_ in measured {
        let way = match move_.source == move_.destination {
            true => move_.source.clone(),
            false => format!("{} → {}", move_.source, move_.destination),
        };
        println!(
            "  {:<11} {way:<13} {:>6} ms {:>6} ms {:>6} ms {:>11} {:>11} {:>9} {:>8}",
            move_.kind,
            move_.total_ms,
            move_.downtime_ms,
            move_.guest_gap_ms,
            mib(move_.allocated_source_bytes),
            mib(move_.allocated_destination_bytes),
            move_.sectors_verified,
            mib(Some(move_.wire_bytes).filter(|bytes| *bytes > 0)),
        );
    }
}
