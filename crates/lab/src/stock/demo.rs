//! The stock demo: running VMs move between freshly installed Debian systems with AppArmor enforcing: over the kernel's
//! SMB client, over NFS, without shared storage, and from Debian 12 to Debian 13.

use anyhow::Context as _;
use ferry_core::api::server::JobView;
use serde::Serialize;

use super::{
    image::Release::{Bookworm, Trixie},
    site::{IMAGES, StockSite, small_ticker},
};
use crate::{
    demo::{Measured, print_line},
    observe::{judge, now},
};

/// The guest.
const VM: &str = "ticker";

/// The output of the demo with `--json`.
#[derive(Serialize)]
struct Document {
    migrations: Vec<Measured>,
    /// Number of AppArmor denials on all machines: must be zero.
    denials: usize,
}

/// Runs the demo.
///
/// # Errors
/// What could not be done, or which promise was broken.
pub fn run(json: bool) -> anyhow::Result<()> {
    print_line("starting two stock Debian 13 systems and a Debian 12, and installing Ferry's packages there");
    let site = StockSite::up(&[Trixie, Trixie, Bookworm])?;
    site.add_smb_share("vms")?;
    let nfs = site.add_nfs_share("vault", 2, &[0, 1])?;
    print_line("starting a guest on stock3 (Debian 12), its disk on the SMB share");
    let ticker = small_ticker(VM, 101);
    site.start_guest(&ticker, 2)?;
    let mut proof = Proof { site: &site, migrations: Vec::new() };
    // QEMU 7.2 loses pages of an idle emulated guest (`ferry_core::release`): this one is kept busy until it verifies.
    site.observer.ask(&site.ferry.lab, VM, "restless")?;
    proof.migrate("from Debian 12 to Debian 13, over the kernel's SMB client", "stock1", &[])?;
    proof.migrate("over the kernel's SMB client", "stock2", &[])?;
    proof.site.move_storage(VM, &nfs)?;
    proof.migrate("over NFS", "stock1", &[])?;
    proof.migrate("with nothing shared", "stock2", &["--storage", IMAGES])?;
    let migrations = proof.migrations;
    site.nothing_denied()?;
    if json {
        println!("{}", serde_json::to_string(&Document { migrations, denials: 0 })?);
    } else {
        print_table(&migrations);
        println!("\nAppArmor denied nothing on any of the three.");
    }
    Ok(())
}

struct Proof<'a> {
    site: &'a StockSite,
    migrations: Vec<Measured>,
}

impl Proof<'_> {
    /// Moves the guest, and judges its heartbeats.
    fn migrate(&mut self, what: &str, to: &str, how: &[&str]) -> anyhow::Result<()> {
        print_line(&format!("it moves to {to} {what}"));
        let begun = now();
        let job = self.site.migrate(VM, to, how)?;
        let moved = now();
        if let Some(figures) = job.figures {
            let (prepared, memory) = (figures.accepted_to_migrate_ms, figures.migrate_ms);
            let after = figures.total_ms.saturating_sub(prepared + memory);
            print_line(&format!(
                "moved: {prepared} ms until libvirt's call, {memory} ms in it, {after} ms after; it verifies now"
            ));
        }
        self.site.verify(VM)?;
        let heard = self.site.observer.heard(VM);
        judge(&heard)?;
        let around: Vec<_> = heard.iter().filter(|heard| heard.at >= begun && heard.at <= moved).cloned().collect();
        let after: Vec<_> = heard.iter().filter(|heard| heard.at > moved).cloned().collect();
        let (verified, gap_ms) = (judge(&after)?, judge(&around)?.gap_ms);
        self.migrations.push(measured(&job, verified.pages, verified.sectors, gap_ms)?);
        Ok(())
    }
}

fn measured(job: &JobView, pages: u64, sectors: u64, gap_ms: u64) -> anyhow::Result<Measured> {
    let figures = job.figures.context("The job has no figures")?;
    Ok(Measured {
        vm: job.vm_name.clone(),
        kind: job.kind.title().to_lowercase(),
        source: job.source.clone(),
        destination: job.destination.clone(),
        total_ms: figures.total_ms,
        downtime_ms: figures.downtime_ms,
        guest_gap_ms: gap_ms,
        wire_bytes: figures.wire.0,
        integrity: "ok".to_owned(),
        pages_verified: pages,
        sectors_verified: sectors,
        allocated_source_bytes: None,
        allocated_destination_bytes: None,
    })
}

fn print_table(migrations: &[Measured]) {
    println!("\nProven from outside: each guest was heard from one host alone, and compared all that it had written");
    println!("  VM      FROM    TO      KIND         TOTAL ms  DOWNTIME ms  SILENCE ms  WIRE KiB  PAGES   SECTORS");
    for Measured {
        vm,
        source,
        destination,
        kind,
        total_ms,
        downtime_ms,
        guest_gap_ms,
        wire_bytes,
        pages_verified,
        sectors_verified,
        ..
    } in migrations
    {
        println!(
            "  {vm:<7} {source:<7} {destination:<7} {kind:<12} {total_ms:>8}  {downtime_ms:>11}  {guest_gap_ms:>10}  {:>8}  {pages_verified:>6}  {sectors_verified:>7}",
            wire_bytes >> 10
        );
    }
}
