//! A lab: the fabric namespace with its bridge, and the hosts on it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Mutex,
};

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    cache::{self, Boot},
    guard::{Guardian, Record, start_time},
    host::Host,
    local,
    run::{checked, run},
    samba::FileServer,
};

/// The lab's network; it exists in the lab's namespaces alone.
pub const NETWORK: &str = "10.77.0";
/// The fabric's address: file server and Ferry's server.
pub const FABRIC_IP: &str = "10.77.0.254";

/// Where the programs under test are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Programs {
    /// The folder of ferry, ferry-server, ferry-agent, ferry-lab.
    pub folder: PathBuf,
    /// The ticker.
    pub ticker: PathBuf,
}

impl Programs {
    /// Those that were built beside the running program.
    ///
    /// # Errors
    /// When one is missing: says how to build it.
    pub fn find() -> anyhow::Result<Self> {
        let folder = match std::env::var_os("FERRY_LAB_PROGRAMS") {
            Some(path) => PathBuf::from(path),
            None => {
                let here = std::env::current_exe()?;
                let folder = here.ancestors().skip(1).find(|path| path.join("ferry-agent").is_file());
                folder.context("The programs are not built; `cargo xtask` builds them")?.to_owned()
            }
        };
        let target = folder.parent().context("A target folder has a parent")?;
        let ticker = target.join("guest/x86_64-unknown-linux-gnu/release/ferry-ticker");
        let found = Self { folder, ticker };
        for name in ["ferry", "ferry-server", "ferry-agent", "ferry-lab"] {
            ensure!(found.folder.join(name).is_file(), "{name} is not built; `cargo xtask` builds it");
        }
        ensure!(found.ticker.is_file(), "The ticker is not built; `cargo xtask` builds it");
        Ok(found)
    }
}

/// A lab that stands until it is dropped.
pub struct Lab {
    /// Short, unlike that of any other lab.
    pub id: String,
    /// Everything the lab writes is in it.
    pub folder: PathBuf,
    /// Its hosts.
    pub hosts: Vec<Host>,
    /// The guests' kernel.
    pub boot: Boot,
    record: Mutex<Record>,
    guardian: Option<Guardian>,
}

impl Lab {
    /// Builds a lab with hosts kvm1, kvm2, … . libvirt is started by [`Host::start_libvirt`].
    ///
    /// # Errors
    /// What could not be made; what was made is taken down.
    pub fn up(host_count: usize) -> anyhow::Result<Self> {
        Self::up_with(host_count, local::DEFAULT_MIB)
    }

    /// As [`Self::up`], with hosts whose own disks have `local_mib`.
    ///
    /// # Errors
    /// What could not be made; what was made is taken down.
    pub fn up_with(host_count: usize, local_mib: u32) -> anyhow::Result<Self> {
        ensure!((1..=20).contains(&host_count), "A lab has 1 to 20 hosts");
        let mut lab = Self::up_empty()?;
        for index in 1..=host_count {
            let host = Host::up(&lab, index, local_mib)?;
            lab.hosts.push(host);
        }
        lab.write_inventory()?;
        Ok(lab)
    }

    /// A lab without hosts: its fabric, and the programs under test.
    ///
    /// # Errors
    /// What could not be made; what was made is taken down.
    pub fn up_empty() -> anyhow::Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "The lab makes network namespaces, which needs root");
        let programs = Programs::find()?;
        let id = Uuid::new_v4().simple().to_string()[..6].to_owned();
        let folder = std::env::temp_dir().join(format!("ferry-lab-{id}"));
        fs::create_dir(&folder).with_context(|| format!("Could not make {}", folder.display()))?;
        Record::default().write(&folder)?;
        let guardian = Guardian::start(&programs.folder.join("ferry-lab"), &folder)?;
        let boot = Boot { kernel: PathBuf::new(), initramfs: PathBuf::new() };
        let mut lab = Self { id, folder, hosts: Vec::new(), boot, record: Mutex::default(), guardian: Some(guardian) };
        // QEMU's user reads the kernel below it.
        nix::sys::stat::fchmodat(
            nix::fcntl::AT_FDCWD,
            &lab.folder,
            nix::sys::stat::Mode::from_bits_truncate(0o755),
            nix::sys::stat::FchmodatFlags::FollowSymlink,
        )?;
        // Programs are copied: a build in the meantime does not change what this lab tests.
        let bin = lab.folder.join("bin");
        fs::create_dir(&bin)?;
        for name in ["ferry", "ferry-server", "ferry-agent", "ferry-lab"] {
            fs::copy(programs.folder.join(name), bin.join(name))?;
        }
        lab.boot = cache::boot(&programs.ticker, &lab.folder)?;
        lab.make_fabric()?;
        Ok(lab)
    }

    /// The host of that name.
    ///
    /// # Panics
    /// When there is none.
    pub fn host(&self, name: &str) -> &Host {
        self.hosts.iter().find(|host| host.name == name).expect("the lab has that host")
    }

    /// The fabric's network namespace.
    pub fn fabric(&self) -> String {
        format!("fl{}", self.id)
    }

    /// Where a program under test was copied to.
    pub fn program(&self, name: &str) -> PathBuf {
        self.folder.join("bin").join(name)
    }

    /// A command that runs in the fabric.
    pub fn in_fabric(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.fabric()]).arg(program);
        command
    }

    /// Starts a file server in the fabric.
    ///
    /// # Errors
    /// When it does not answer in time.
    pub fn file_server(&self, name: &str, address: &str, options: &str) -> anyhow::Result<FileServer> {
        FileServer::start(self, name, address, options)
    }

    /// Boots a host again whose first process was killed. libvirt is started by [`Host::start_libvirt`].
    ///
    /// # Errors
    /// When its first process does not come up.
    pub fn boot_again(&mut self, host: usize) -> anyhow::Result<()> {
        self.hosts[host].init = self.hosts[host].boot_again(self)?;
        self.write_inventory()
    }

    /// Lets the lab stand after this owner.
    pub fn keep(mut self) {
        if let Some(guardian) = self.guardian.take() {
            guardian.keep();
        }
    }

    pub(crate) fn note_namespace(&self, name: &str) -> anyhow::Result<()> {
        let mut record = self.record.lock().expect("no panic");
        record.namespaces.push(name.to_owned());
        record.write(&self.folder)
    }

    pub(crate) fn note_process(&self, pid: i32) -> anyhow::Result<()> {
        let started = start_time(pid).context("A process ended at once")?;
        let mut record = self.record.lock().expect("no panic");
        record.processes.push((pid, started));
        record.write(&self.folder)
    }

    fn make_fabric(&self) -> anyhow::Result<()> {
        let fabric = self.fabric();
        self.note_namespace(&fabric)?;
        run("ip", &["netns", "add", &fabric])?;
        let ip = |arguments: &[&str]| {
            let mut command = Command::new("ip");
            command.args(["-n", &fabric]).args(arguments);
            checked(command, crate::run::DEADLINE).map(drop)
        };
        ip(&["link", "set", "lo", "up"])?;
        ip(&["link", "add", "br0", "address", "02:77:00:00:00:fe", "type", "bridge", "forward_delay", "0"])?;
        ip(&["addr", "add", &format!("{FABRIC_IP}/24"), "dev", "br0"])?;
        ip(&["link", "set", "br0", "up"])
    }

    fn write_inventory(&self) -> anyhow::Result<()> {
        let hosts: Vec<(&str, i32)> = self.hosts.iter().map(|host| (host.name.as_str(), host.init)).collect();
        fs::write(self.folder.join("hosts.json"), serde_json::to_vec(&hosts)?)?;
        Ok(())
    }
}

/// Every lab that stands on this machine.
pub fn standing() -> Vec<PathBuf> {
    let entries = fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ferry-lab-")))
        .filter(|path| path.join(crate::guard::RECORD).is_file())
        .collect()
}

/// A command inside a host of a lab that another process built.
///
/// # Errors
/// When there is no such host.
pub fn in_host_of(folder: &Path, name: &str) -> anyhow::Result<Command> {
    let text = fs::read(folder.join("hosts.json")).context("The lab has no hosts yet")?;
    let hosts: Vec<(String, i32)> = serde_json::from_slice(&text)?;
    let (_, init) =
        hosts.iter().find(|(host, _)| host == name).with_context(|| format!("The lab has no host {name}"))?;
    Ok(crate::host::enter(*init))
}

/// A program of the lab that runs until it is dropped or killed.
pub struct Program {
    child: Child,
    /// Where it logs.
    pub log: PathBuf,
    name: String,
}

impl Program {
    /// Starts it; what it writes goes to `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(name: &str, mut command: Command, log: &Path) -> anyhow::Result<Self> {
        let file = fs::OpenOptions::new().create(true).append(true).open(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("Could not start {name}"))?;
        Ok(Self { child, log: log.to_owned(), name: name.to_owned() })
    }

    /// What it wrote so far.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Ends it at once, as `kill -9` does.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let said = self.said();
            let tail: Vec<&str> = said.lines().rev().take(40).collect();
            eprintln!("--- last lines of {} ---", self.name);
            for line in tail.iter().rev() {
                eprintln!("{line}");
            }
        }
    }
}
