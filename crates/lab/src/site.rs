//! One host with Ferry and a guest with moving disks: shared by tests of storage moves.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use ferry_core::{api::server::JobView, id::JobId};

use crate::{
    demo::start_ticker,
    ferry::{Ferry, start_server_with},
    guest::Ticker,
    host::Host,
    images::Disk,
    observe::{Observer, judge},
    run::wait_for,
};

/// The share, as a place.
pub const SHARE: &str = "\\\\fs1.ferry.lab\\vms\\";
/// The guest.
pub const VM: &str = "ticker";
const BOOT: Duration = Duration::from_secs(90);
const VERIFY: Duration = Duration::from_secs(120);
const END: Duration = Duration::from_secs(180);

/// A guest on the host kvm1, which writes each of its disks up to 300 times a second.
pub struct Site {
    /// Observes its heartbeats.
    pub observer: Observer,
    /// The lab with Ferry.
    pub ferry: Ferry,
}

impl Site {
    /// With a guest of these disks, whose sectors are `stride_kib` apart. The agent gets `failpoints`.
    ///
    /// # Errors
    /// What failed, with its output.
    pub fn up(disks: Vec<Disk>, stride_kib: u32, failpoints: &str) -> anyhow::Result<Self> {
        let mut ferry = Ferry::up_bare(1, &[("FAILPOINTS", failpoints)])?;
        ferry.enrol()?;
        ferry.add_share("vms")?;
        let observer = Observer::start(&ferry.lab)?;
        let ticker = Ticker {
            memory_mib: 128,
            pattern_mib: 12,
            dirty_mib_per_s: 1,
            writes_per_s: 300,
            stride_kib,
            disks,
            ..Ticker::new(VM, 101)
        };
        start_ticker(&ferry, &ticker, 0)?;
        let site = Self { observer, ferry };
        site.observer.wait_on(VM, "kvm1", BOOT)?;
        site.verify()?;
        Ok(site)
    }

    /// The host.
    pub fn host(&self) -> &Host {
        &self.ferry.lab.hosts[0]
    }

    /// The file that a disk uses, according to libvirt.
    ///
    /// # Errors
    /// It has no such disk.
    pub fn disk(&self, device: &str) -> anyhow::Result<String> {
        let list = self.host().virsh(&["domblklist", VM])?;
        let mut lines = list.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let found = lines.find_map(|line| (line.first() == Some(&device)).then(|| line.get(1).copied()).flatten());
        Ok(found.with_context(|| format!("No disk {device}: {list}"))?.to_owned())
    }

    /// The path, in the machine's view, of a host's file: for one on the share, that in its backing folder.
    pub fn real(&self, path: &str) -> PathBuf {
        match Path::new(path).strip_prefix(&self.host().share_root) {
            // The first component is the share's own folder below the root.
            Ok(below) => self.ferry.files.share.join(below.components().skip(1).collect::<PathBuf>()),
            Err(_) => self.host().file(path),
        }
    }

    /// Requests a move of disks; returns while it runs.
    ///
    /// # Errors
    /// The command line's message.
    pub fn start_move(&self, arguments: &[&str]) -> anyhow::Result<JobView> {
        let mut line = vec!["vm", "move-storage", VM];
        line.extend(arguments);
        self.ferry.json(&line)
    }

    /// The present state of a job.
    ///
    /// # Errors
    /// The command line's message.
    pub fn job(&self, id: JobId) -> anyhow::Result<JobView> {
        self.ferry.job(id)
    }

    /// Waits until a job satisfies `is`.
    ///
    /// # Errors
    /// It does not in time, or it ended before: its state.
    pub fn wait_job(&self, id: JobId, what: &str, is: impl Fn(&JobView) -> bool) -> anyhow::Result<JobView> {
        self.ferry.wait_job(id, what, END, is)
    }

    /// Waits until a job has ended.
    ///
    /// # Errors
    /// It does not in time.
    pub fn wait_ended(&self, id: JobId) -> anyhow::Result<JobView> {
        self.wait_job(id, "the job ends", |job| job.phase.ended())
    }

    /// Waits until the agent's journal of a move contains `stage`.
    ///
    /// # Errors
    /// It does not in time.
    pub fn wait_written(&self, id: JobId, stage: &str) -> anyhow::Result<()> {
        let path = self.host().path(&format!("/run/ferry-agent/storage/{id}.json"));
        wait_for(&format!("the agent wrote down that job {id} is {stage}"), END, || {
            let journal: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).ok()?).ok()?;
            (journal["stage"] == stage).then_some(())
        })
    }

    /// Waits until the guest has verified everything from now on, and judges its heartbeats so far: it runs on its host
    /// and no other, and it reads what it wrote.
    ///
    /// # Errors
    /// The broken promise.
    pub fn verify(&self) -> anyhow::Result<()> {
        self.observer.wait_on(VM, "kvm1", VERIFY)?;
        self.observer.wait_verified(VM, 1, VERIFY)?;
        judge(&self.observer.heard(VM)).map(drop)
    }

    /// Number of sectors that the guest has written to all disks, according to its last heartbeat.
    ///
    /// # Errors
    /// It was not heard.
    pub fn writes(&self) -> anyhow::Result<u64> {
        Ok(self.observer.heard(VM).last().context("not heard")?.beat.writes)
    }

    /// Kills the agent, and waits until it is gone.
    ///
    /// # Errors
    /// It cannot be killed.
    pub fn kill_agent(&mut self) -> anyhow::Result<()> {
        self.ferry.kill_agent(0)
    }

    /// Starts the agent again.
    ///
    /// # Errors
    /// It does not listen.
    pub fn start_agent(&mut self, failpoints: &str) -> anyhow::Result<()> {
        self.ferry.start_agent(0, &[("FAILPOINTS", failpoints)])?;
        Ok(())
    }

    /// Kills the server and starts it again.
    ///
    /// # Errors
    /// It does not listen.
    pub fn restart_server(&mut self, failpoints: &str) -> anyhow::Result<()> {
        self.ferry.server.kill();
        self.ferry.server = start_server_with(&self.ferry.lab, &[("FAILPOINTS", failpoints)])?;
        Ok(())
    }
}
