//! A guest that moves between two hosts, and what virsh and the administrator do to move it with its disk.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use ferry_core::{
    api::server::{JobView, VmView},
    location::Location,
    vm::FileRole,
};

use super::measure::{Watch, job, virsh_migrate};
use crate::{
    demo::start_ticker,
    ferry::Ferry,
    guest::Ticker,
    local,
    observe::{Observer, judge},
    run::wait_for,
};

/// systemd starts about thirty services in software emulation.
pub(super) const DEBIAN_BOOT_DEADLINE: Duration = Duration::from_secs(300);
pub(super) const VERIFY_DEADLINE: Duration = Duration::from_secs(180);
pub(super) const SECONDS_30: Duration = Duration::from_secs(30);

/// A guest on one of two hosts.
pub(super) struct Pair {
    pub(super) observer: Observer,
    pub(super) guest: Ticker,
    /// The index of its host.
    pub(super) at: usize,
    pub(super) ferry: Ferry,
}

impl Pair {
    pub(super) fn up(guest: Ticker, boot: Duration) -> anyhow::Result<Self> {
        let ferry = Ferry::up(2)?;
        for host in &ferry.lab.hosts {
            host.set_firewall(true)?;
        }
        let observer = Observer::start(&ferry.lab)?;
        start_ticker(&ferry, &guest, 0)?;
        observer.wait_on(&guest.name, "kvm1", boot)?;
        observer.wait_verified(&guest.name, 1, VERIFY_DEADLINE)?;
        Ok(Self { observer, guest, at: 0, ferry })
    }

    pub(super) fn name(&self, host: usize) -> &str {
        &self.ferry.lab.hosts[host].name
    }

    /// The file of the guest's disk on its present host, according to libvirt.
    pub(super) fn disk(&self) -> anyhow::Result<String> {
        let list = self.ferry.lab.hosts[self.at].virsh(&["domblklist", &self.guest.name])?;
        let mut lines = list.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let found = lines.find_map(|line| (line.first() == Some(&"vda")).then(|| line.get(1).copied()).flatten());
        Ok(found.with_context(|| format!("No disk vda: {list}"))?.to_owned())
    }

    /// The path, in this process's view, of a file on the guest's host.
    pub(super) fn real(&self, path: &str) -> PathBuf {
        self.ferry.lab.hosts[self.at].file(path)
    }

    /// Waits until the guest runs only on `to`, libvirt and Ferry agree on that, and the guest has verified everything.
    pub(super) fn arrived(&mut self, to: usize) -> anyhow::Result<()> {
        self.at = to;
        let name = &self.guest.name;
        self.observer.wait_on(name, self.name(to), SECONDS_30)?;
        wait_known(&self.ferry, name, self.name(to), &self.disk()?)?;
        self.observer.wait_verified(name, 1, VERIFY_DEADLINE)?;
        judge(&self.observer.heard(name)).map(drop)
    }

    /// Returns the space of zeroes to the file system, so that a move does not pay for the previous one. The guest is
    /// paused meanwhile.
    pub(super) fn make_thin(&self, path: &str) -> anyhow::Result<()> {
        let (host, name) = (&self.ferry.lab.hosts[self.at], &self.guest.name);
        host.virsh(&["suspend", name])?;
        let dug = host.run(&["fallocate", "--dig-holes", path]);
        host.virsh(&["resume", name])?;
        dug.map(drop)
    }

    /// Creates an empty file of the disk's size on the host `to`, as libvirt's manual requires for a copy by virsh; thin,
    /// as an administrator creates it.
    pub(super) fn make_file_for(&self, disk: &str, to: usize) -> anyhow::Result<()> {
        let destination = &self.ferry.lab.hosts[to];
        let folder = Path::new(disk).parent().context("A file is in a folder")?.display().to_string();
        destination.run(&["mkdir", "-p", &folder])?;
        let size = fs::metadata(self.real(disk))?.len().to_string();
        destination.run(&["qemu-img", "create", "-q", "-f", "raw", disk, &size]).map(drop)
    }

    pub(super) fn migrate(&self, to: usize, more: &[&str]) -> anyhow::Result<JobView> {
        let mut line = vec!["vm", "migrate", &self.guest.name, "--to", self.name(to), "--storage", local::FOLDER];
        line.extend(more);
        job(&self.ferry, &line)
    }
}

/// Moves the guest with its disk by virsh.
pub(super) fn migrated_by_virsh<'a>(
    pair: &'a Pair,
    name: &'a str,
    from: usize,
    to: usize,
) -> anyhow::Result<(Watch<'a>, (f64, f64))> {
    let (source, destination, disk) = (&pair.ferry.lab.hosts[from], &pair.ferry.lab.hosts[to], pair.disk()?);
    pair.make_file_for(&disk, to)?;
    let address = &pair.ferry.lab.hosts[to].ip;
    let ready = virsh_migrate(&pair.ferry, name, (from, to), address, &["--copy-storage-all"])?;
    let watch = Watch::begin(&pair.observer, name)?;
    ready.go()?;
    let ended = watch.end()?;
    // Ferry does this as well, within its measured time.
    source.run(&["rm", &disk])?;
    let text = destination.virsh(&["domjobinfo", name, "--completed"])?;
    let words = ["File processed", "Memory processed", "Iteration"];
    let figures: Vec<_> = text.lines().filter(|line| words.iter().any(|word| line.contains(word))).collect();
    eprintln!("       {}", figures.join(", ").split_whitespace().collect::<Vec<_>>().join(" "));
    Ok((watch, ended))
}

/// Waits until Ferry knows that a VM is on a host, uses that file there, and is not moved by a job.
pub(super) fn wait_known(ferry: &Ferry, vm: &str, host: &str, file: &str) -> anyhow::Result<()> {
    wait_for(&format!("Ferry knows that {vm} uses {file} on {host}"), SECONDS_30, || {
        let view: VmView = ferry.json(&["vm", "show", vm]).ok()?;
        let uses =
            |place: &Location| matches!(place, Location::Local { path, .. } if Path::new(path) == Path::new(file));
        let known = view.facts.files.iter().any(|known| known.role == FileRole::Disk && uses(&known.place));
        (view.host == host && view.job.is_none() && known).then_some(())
    })
}
