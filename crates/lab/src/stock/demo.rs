//! The stock demo: running VMs move between Debian systems as they are installed, with AppArmor enforcing: over the
//! kernel's SMB client, over NFS, with nothing shared, and from Debian 12 to Debian 13.

use anyhow::Context as _;
use ferry_core::api::server::JobView;
use serde::Serialize;

use super::{
    image::Release::{Bookworm, Trixie},
    site::{IMAGES, StockSite, VERIFY_WITHIN, small_ticker},
};
use crate::{
    demo::{Measured, say},
    observe::{judge, now},
};

/// What the demo prints with `--json`.
#[derive(Serialize)]
struct Document {
    migrations: Vec<Measured>,
    /// Lines of AppArmor's denials on all machines: none.
    denials: usize,
}

/// Runs the demo.
///
/// # Errors
/// What could not be done, or which promise was broken.
pub fn run(json: bool) -> anyhow::Result<()> {
    say("booting two stock Debian 13 systems and a Debian 12, and installing Ferry's packages there");
    let site = StockSite::up(&[Trixie, Trixie, Bookworm])?;
    site.add_smb_share("vms")?;
    let nfs = site.add_nfs_share("vault", 2, &[0, 1])?;
    say("booting a guest on stock1 (Debian 13) and one on stock3 (Debian 12), their disks on the SMB share");
    let (young, old) = (small_ticker("young", 101), small_ticker("old", 102));
    site.start_tickers(&[(&young, 0), (&old, 2)])?;
    let mut proof = Proof { site: &site, migrations: Vec::new() };
    proof.migrate("over the kernel's SMB client", "young", "stock2", &[])?;
    proof.site.move_storage("young", &nfs)?;
    proof.migrate("over NFS", "young", "stock1", &[])?;
    proof.migrate("with nothing shared", "young", "stock2", &["--storage", IMAGES])?;
    // QEMU 7.2 forgets pages of an emulated guest that rests (`ferry_core::release`): this one does not any more.
    old.ask(&site.ferry.lab, "restless")?;
    proof.migrate("from Debian 12 to Debian 13", "old", "stock1", &[])?;
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
    /// Moves a guest, and judges what was heard of it.
    fn migrate(&mut self, what: &str, vm: &str, to: &str, how: &[&str]) -> anyhow::Result<()> {
        say(&format!("{vm} moves to {to} {what}"));
        let begun = now();
        let job = self.site.migrate(vm, to, how)?;
        let moved = now();
        self.site.observer.wait_verified(vm, 1, VERIFY_WITHIN)?;
        let heard = self.site.observer.heard(vm);
        judge(&heard)?;
        let around: Vec<_> = heard.iter().filter(|heard| heard.at >= begun && heard.at <= moved).cloned().collect();
        let after: Vec<_> = heard.iter().filter(|heard| heard.at > moved).cloned().collect();
        let (life, gap_ms) = (judge(&after)?, judge(&around)?.gap_ms);
        self.migrations.push(measured(&job, life.pages, life.sectors, gap_ms)?);
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
