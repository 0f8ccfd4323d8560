//! A lab: its fabric, and the hosts on it.

use std::{
    fs,
    ops::Deref,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};
use uuid::Uuid;

use crate::{
    cache::{self, Boot},
    fabric::Fabric,
    guard::Guardian,
    host::Host,
    local,
    program::Programs,
    record::{RECORD, Record},
    samba::FileServer,
};

/// A lab that exists until it is dropped.
pub struct Lab {
    /// Its network.
    pub fabric: Fabric,
    /// Its hosts.
    pub hosts: Vec<Host>,
    /// The guests' kernel.
    pub boot: Boot,
    guardian: Option<Guardian>,
}

impl Lab {
    /// Builds a lab with hosts kvm1, kvm2, … . Start libvirt with [`Host::start_libvirt`].
    ///
    /// # Errors
    /// What could not be created; everything created before is taken down.
    pub fn up(host_count: usize) -> anyhow::Result<Self> {
        Self::up_with(host_count, local::DEFAULT_MIB)
    }

    /// As [`Self::up`], with local disks of `local_mib` on the hosts.
    ///
    /// # Errors
    /// What could not be created; everything created before is taken down.
    pub fn up_with(host_count: usize, local_mib: u32) -> anyhow::Result<Self> {
        ensure!((1..=20).contains(&host_count), "A lab has 1 to 20 hosts");
        let mut lab = Self::up_empty()?;
        for index in 1..=host_count {
            let host = Host::up(&lab.fabric, index, local_mib)?;
            lab.hosts.push(host);
        }
        lab.write_inventory()?;
        Ok(lab)
    }

    /// A lab without hosts: its fabric, and the programs under test.
    ///
    /// # Errors
    /// What could not be created; everything created before is taken down.
    pub fn up_empty() -> anyhow::Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "The lab makes network namespaces, which needs root");
        let programs = Programs::find()?;
        let id = Uuid::new_v4().simple().to_string()[..6].to_owned();
        let folder = std::env::temp_dir().join(format!("ferry-lab-{id}"));
        fs::create_dir(&folder).with_context(|| format!("Could not make {}", folder.display()))?;
        Record::default().write(&folder)?;
        let guardian = Guardian::start(&programs.folder.join("ferry-lab"), &folder)?;
        let boot = Boot { kernel: PathBuf::new(), initramfs: PathBuf::new() };
        let mut lab = Self { fabric: Fabric::new(id, folder), hosts: Vec::new(), boot, guardian: Some(guardian) };
        // QEMU's user must be able to read the kernel in it.
        nix::sys::stat::fchmodat(
            nix::fcntl::AT_FDCWD,
            &lab.folder,
            nix::sys::stat::Mode::from_bits_truncate(0o755),
            nix::sys::stat::FchmodatFlags::FollowSymlink,
        )?;
        // Programs are copied, so that a build in the meantime does not change what this lab tests.
        let bin = lab.folder.join("bin");
        fs::create_dir(&bin)?;
        for name in ["ferry", "ferry-server", "ferry-agent", "ferry-lab"] {
            fs::copy(programs.folder.join(name), bin.join(name))?;
        }
        lab.boot = cache::boot(&programs.ticker, &lab.folder)?;
        lab.fabric.make()?;
        Ok(lab)
    }

    /// The host of that name.
    ///
    /// # Panics
    /// There is no such host.
    pub fn host(&self, name: &str) -> &Host {
        self.hosts.iter().find(|host| host.name == name).expect("the lab has that host")
    }

    /// Starts a file server in the fabric.
    ///
    /// # Errors
    /// It does not answer in time.
    pub fn file_server(&self, name: &str, address: &str, options: &str) -> anyhow::Result<FileServer> {
        FileServer::start(&self.fabric, name, address, options)
    }

    /// Restarts a host whose first process was killed. Start libvirt with [`Host::start_libvirt`].
    ///
    /// # Errors
    /// Its first process does not start.
    pub fn boot_again(&mut self, host: usize) -> anyhow::Result<()> {
        self.hosts[host].init = self.hosts[host].boot_again(&self.fabric)?;
        self.write_inventory()
    }

    /// Keeps the lab when this owner ends.
    pub fn keep(mut self) {
        if let Some(guardian) = self.guardian.take() {
            guardian.keep();
        }
    }

    fn write_inventory(&self) -> anyhow::Result<()> {
        let hosts: Vec<(&str, i32)> = self.hosts.iter().map(|host| (host.name.as_str(), host.init)).collect();
        fs::write(self.folder.join("hosts.json"), serde_json::to_vec(&hosts)?)?;
        Ok(())
    }
}

impl Deref for Lab {
    type Target = Fabric;

    fn deref(&self) -> &Fabric {
        &self.fabric
    }
}

/// All labs on this machine.
pub fn standing() -> Vec<PathBuf> {
    let entries = fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ferry-lab-")))
        .filter(|path| path.join(RECORD).is_file())
        .collect()
}

/// A command inside a host of a lab that another process built.
///
/// # Errors
/// There is no such host.
pub fn in_host_of(folder: &Path, name: &str) -> anyhow::Result<Command> {
    let text = fs::read(folder.join("hosts.json")).context("The lab has no hosts yet")?;
    let hosts: Vec<(String, i32)> = serde_json::from_slice(&text)?;
    let (_, init) =
        hosts.iter().find(|(host, _)| host == name).with_context(|| format!("The lab has no host {name}"))?;
    Ok(crate::host::enter(*init))
}
