//! The stage: a lab with Ferry and two guests, and its restoration for the next run.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use ferry_core::{
    api::server::{JobView, VmView},
    vm::DiskFormat,
};

use super::plan::{GUESTS, HOSTS};
use crate::{
    demo::start_ticker,
    fabric::FABRIC_IP,
    ferry::Ferry,
    guest::Ticker,
    host::Host,
    images::{Disk, Place},
    observe::Observer,
    run::{ProgramOutput, run_within, wait_for},
};

/// How long a guest may take to boot and be heard.
const BOOT_DEADLINE: Duration = Duration::from_secs(90);
/// A running guest is heard within this time.
const HEARD_DEADLINE: Duration = Duration::from_secs(5);
/// How long the inventory may take to be up to date.
const SEEN_DEADLINE: Duration = Duration::from_secs(30);
/// Time limit for a query to the server. The host of a killed server refuses the connection at once.
const ASK_DEADLINE: Duration = Duration::from_secs(10);
/// More jobs than a run starts.
const JOBS_LISTED: &str = "40";

/// A lab with Ferry and guests.
pub struct Stage {
    /// Ferry, and the lab it is in.
    pub ferry: Ferry,
    /// The guests; names and addresses are constant, but a guest that is started again has another UUID.
    pub guests: Vec<Ticker>,
    /// Whether their disks move.
    storage: bool,
}

/// Data on a disk that moves, so that a copy takes several seconds.
const DATA_MIB: u32 = 32;

impl Stage {
    /// Builds the lab and boots the guests.
    ///
    /// # Errors
    /// What failed, with its output.
    pub fn up(storage: bool) -> anyhow::Result<Self> {
        let mut ferry = Ferry::up(HOSTS)?;
        ferry.warnings.expect_any();
        let mut stage = Self { ferry, guests: Vec::new(), storage };
        for index in 0..GUESTS {
            stage.guests.push(guest(index, storage));
            stage.make_folders(index)?;
            start_ticker(&stage.ferry, &stage.guests[index], index % HOSTS)?;
        }
        Ok(stage)
    }

    /// The index of a host.
    ///
    /// # Errors
    /// There is no host of that name.
    pub fn host_index(&self, name: &str) -> anyhow::Result<usize> {
        self.hosts().iter().position(|host| host.name == name).with_context(|| format!("There is no host {name}"))
    }

    /// The hosts.
    pub fn hosts(&self) -> &[Host] {
        &self.ferry.lab.hosts
    }

    /// All jobs with a larger number than `after`, oldest first.
    ///
    /// # Errors
    /// The server does not answer in time.
    pub fn jobs_after(&self, after: u64) -> anyhow::Result<Vec<JobView>> {
        let output = run_within(self.ferry.command(&["--json", "job", "list", "--limit", JOBS_LISTED])?, ASK_DEADLINE)?;
        ensure!(output.ok(), "ferry job list: {}{}", output.out, output.err);
        let mut jobs: Vec<JobView> = serde_json::from_str(output.out.trim())?;
        jobs.retain(|job| job.id.0 > after);
        jobs.sort_by_key(|job| job.id.0);
        Ok(jobs)
    }

    /// Restarts a host that died in the run, with libvirt and its agent.
    ///
    /// # Errors
    /// What does not start.
    pub fn boot_again(&mut self, host: usize) -> anyhow::Result<()> {
        self.ferry.lab.boot_again(host)?;
        self.hosts()[host].set_link(true)?;
        // A real machine starts its services once its network is up.
        let connects = format!("exec 3<>/dev/tcp/{FABRIC_IP}/445");
        wait_for("the host reaches the file server", SEEN_DEADLINE, || {
            self.hosts()[host].try_run(&["timeout", "1", "bash", "-c", &connects]).ok().filter(ProgramOutput::ok)
        })?;
        // On a real host the share root is on a disk; libvirt ignores a configured shared file system whose folder does
        // not exist.
        std::fs::create_dir_all(self.hosts()[host].path(&self.hosts()[host].share_root.display().to_string()))?;
        self.hosts()[host].start_libvirt()?;
        self.start_agent(host)?;
        let host = &self.hosts()[host];
        let mount = self.ferry.mount_of(host)?.display().to_string();
        wait_for(&format!("the agent of {} mounts the share again", host.name), SEEN_DEADLINE, || {
            host.try_run(&["mountpoint", "-q", &mount]).ok().filter(ProgramOutput::ok)
        })?;
        Ok(())
    }

    /// Restarts an agent that was killed.
    ///
    /// # Errors
    /// It does not listen in time.
    pub fn start_agent(&mut self, host: usize) -> anyhow::Result<()> {
        self.ferry.agents[host].program.kill();
        self.ferry.start_agent(host, &[])
    }

    /// Prepares the next run: guests that run nowhere are started again, and the inventory must show every guest on the
    /// host where it is heard, and on no other.
    ///
    /// # Errors
    /// What is not ready in time; then only a new stage helps.
    pub fn tidy(&mut self, observer: &Observer) -> anyhow::Result<()> {
        for index in 0..GUESTS {
            let name = &self.guests[index].name;
            // On a busy machine a guest may be silent for a moment.
            let heard = wait_for("it is heard", HEARD_DEADLINE, || (!observer.runs_on(name).is_empty()).then_some(()));
            if heard.is_err() {
                self.start_anew(index, observer)?;
            }
        }
        for guest in &self.guests {
            let one = || <[String; 1]>::try_from(observer.runs_on(&guest.name)).ok();
            let heard = wait_for(&format!("{} is heard from one host", guest.name), HEARD_DEADLINE, one)?;
            self.wait_seen(guest, &heard[0])?;
        }
        self.nothing_is_left()
    }

    fn start_anew(&mut self, index: usize, observer: &Observer) -> anyhow::Result<()> {
        let (name, old) = (self.guests[index].name.clone(), self.guests[index].uuid.to_string());
        for host in self.hosts() {
            // It is heard from nowhere, so its remains are not needed.
            let _ = host.virsh(&["destroy", &old]);
            let _ = host.virsh(&["undefine", &old]);
        }
        self.remove_files(&name)?;
        self.guests[index] = guest(index, self.storage);
        start_ticker(&self.ferry, &self.guests[index], index % HOSTS)?;
        observer.wait_on(&name, &self.hosts()[index % HOSTS].name, BOOT_DEADLINE)
    }

    fn make_folders(&self, index: usize) -> anyhow::Result<()> {
        let folder = local_folder(&self.guests[index].name);
        self.hosts().iter().try_for_each(|host| host.run(&["mkdir", "-p", &folder]).map(drop))
    }

    /// For a guest that is started again: its disks may be at any place that a move chose.
    fn remove_files(&self, name: &str) -> anyhow::Result<()> {
        let folder = local_folder(name);
        for host in self.hosts() {
            host.run(&["find", &folder, "-type", "f", "-delete"])?;
        }
        for file in self.disks_on_share(name) {
            std::fs::remove_file(file)?;
        }
        Ok(())
    }

    fn disks_on_share(&self, name: &str) -> Vec<PathBuf> {
        let files = std::fs::read_dir(self.ferry.files.share.join(name)).into_iter().flatten().flatten();
        let is_disk = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "raw" || ending == "qcow2");
        files.map(|entry| entry.path()).filter(is_disk).collect()
    }

    /// The disk of a guest on a host, as named by the host's libvirt.
    ///
    /// # Errors
    /// libvirt does not report it.
    pub fn disk_path_of(&self, name: &str, host: &str) -> anyhow::Result<String> {
        let host = self.ferry.lab.host(host);
        let list = host.virsh(&["domblklist", name])?;
        let path = list.lines().find_map(|line| line.trim_start().strip_prefix("vda")).map(str::trim);
        Ok(path.with_context(|| format!("{name} has no disk on {}: {list}", host.name))?.to_owned())
    }

    /// The real path and the format of a guest's disk on a host, according to libvirt.
    ///
    /// # Errors
    /// libvirt does not report it.
    pub fn disk_of(&self, name: &str, host: &str) -> anyhow::Result<(PathBuf, DiskFormat)> {
        let path = self.disk_path_of(name, host)?;
        let format = if path.ends_with(".qcow2") { DiskFormat::Qcow2 } else { DiskFormat::Raw };
        Ok((self.file_of(self.ferry.lab.host(host), &path), format))
    }

    /// The real path of a host's file, which may be on the share.
    pub fn file_of(&self, host: &Host, path: &str) -> PathBuf {
        let mount = self.ferry.mount_of(host).ok();
        let inside = mount.and_then(|mount| Path::new(path).strip_prefix(mount).ok().map(Path::to_owned));
        inside.map_or_else(|| host.file(path), |inside| self.ferry.files.share.join(inside))
    }

    /// Each guest has exactly one disk: all other files of moves are gone.
    fn no_file_is_left(&self) -> anyhow::Result<()> {
        for guest in &self.guests {
            let mut found: Vec<String> =
                self.disks_on_share(&guest.name).iter().map(|path| format!("share {}", path.display())).collect();
            for host in self.hosts() {
                // The partial copy of an interrupted move is kept for a day.
                let line = ["find", &local_folder(&guest.name), "-type", "f", "!", "-name", "*.ferry-*"];
                let list = host.run(&line)?;
                found.extend(list.lines().map(|path| format!("{} {path}", host.name)));
            }
            ensure!(found.len() == 1, "{} has {} disks: {}", guest.name, found.len(), found.join(", "));
        }
        Ok(())
    }

    /// How much of each guest's disk must be unchanged.
    pub fn data_mib(&self) -> u32 {
        if self.storage { DATA_MIB } else { 0 }
    }

    fn wait_seen(&self, guest: &Ticker, host: &str) -> anyhow::Result<()> {
        let mut last = String::new();
        wait_for("the inventory shows it", SEEN_DEADLINE, || {
            let vms: Vec<VmView> = self.ferry.json(&["vm", "list"]).ok()?;
            let rows: Vec<&VmView> = vms.iter().filter(|vm| vm.facts.name == guest.name).collect();
            let is_there = rows.len() == 1 && rows[0].host == host && rows[0].job.is_none();
            last = format!("{:?}", rows.iter().map(|row| (&row.host, row.facts.state, row.job)).collect::<Vec<_>>());
            is_there.then_some(())
        })
        .with_context(|| format!("{} is heard from {host}, and the inventory shows {last}", guest.name))
    }

    /// When all jobs have ended, no process or file of a move may be left.
    fn nothing_is_left(&self) -> anyhow::Result<()> {
        if self.storage {
            self.no_file_is_left()?;
        }
        for host in self.hosts() {
            for folder in ["/run/ferry/m", "/run/ferry-agent/holds"] {
                let left = host.path(folder).read_dir().map(Iterator::count).unwrap_or(0);
                ensure!(left == 0, "{left} file(s) of ended moves are left in {folder} of {}", host.name);
            }
        }
        Ok(())
    }
}

/// A guest's folder on a host's own disk.
pub fn local_folder(guest: &str) -> String {
    format!("{}/{guest}", crate::local::FOLDER)
}

fn guest(index: usize, storage: bool) -> Ticker {
    let name = format!("chaos{}", index + 1);
    let address = 101 + index as u8;
    Ticker {
        memory_mib: 192,
        pattern_mib: 16,
        dirty_mib_per_s: 4,
        // The whole disk is verified within about two seconds.
        writes_per_s: 150,
        stays_after_crash: true,
        disks: vec![Disk { data_mib: if storage { DATA_MIB } else { 0 }, ..Disk::new(Place::Share, DiskFormat::Raw) }],
        ..Ticker::new(&name, address)
    }
}
