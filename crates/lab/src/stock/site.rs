//! Stock hosts with Ferry, installed as an administrator does it.

use std::{
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use ferry_core::api::server::JobView;
use uuid::Uuid;

use super::{
    guest_agent::GuestAgent,
    image::{self, Release},
    machine::Machine,
    modular,
};
use crate::{
    cache::{self, Boot},
    fabric::NETWORK,
    ferry::Ferry,
    guest::Ticker,
    host::MODULAR,
    observe::Observer,
    program::Programs,
    run::{DEADLINE, at_once, run, run_within},
    samba::{PASSWORD, USER},
};

/// Variable with the folder of Ferry's packages.
const PACKAGES: &str = "FERRY_LAB_PACKAGES";
/// Debian's own folder for images, on each machine's own disk.
pub const IMAGES: &str = "/var/lib/libvirt/images";
/// How long a guest may take to be heard: it boots on a processor that is emulated twice, in 100 to over 300 s.
pub const GUEST_BOOT: Duration = Duration::from_secs(900);
/// Time limit of a move.
pub const MOVE_WITHIN: Duration = Duration::from_secs(900);
/// How long a guest may take to verify everything.
const VERIFY_WITHIN: Duration = Duration::from_secs(900);
/// Base of the guests' UUIDs: a guest with a saved state has the same UUID each time.
const UUIDS: u128 = 0x3b9c_64e1_07d5_4f2a_8e63_c18d_72a4_5500;
/// Time limit for installing a package.
const INSTALL_WITHIN: Duration = Duration::from_secs(400);

/// Machines with agents, a file server, and Ferry's server and command line in the fabric.
pub struct StockSite {
    /// Observes the guests' heartbeats.
    pub observer: Observer,
    /// stock1, stock2, …
    pub machines: Vec<Machine>,
    /// Server, file server, command line.
    pub ferry: Ferry,
}

impl StockSite {
    /// Boots a machine of each release, installs Ferry there, and adds them as hosts.
    ///
    /// # Errors
    /// What failed, with its output.
    pub fn up(releases: &[Release]) -> anyhow::Result<Self> {
        let packages = packages()?;
        let mut site = Self::boot(releases)?;
        let agent = find(&packages, "ferry-agent_")?;
        let modular = std::env::var_os(MODULAR);
        let set_up = at_once(&site.machines, |machine| {
            let Some(folder) = &modular else { return install_agent(machine, &agent) };
            modular::install(machine, Path::new(folder))?;
            let token = install_agent(machine, &agent)?;
            machine.run("pgrep -x virtqemud && ! pgrep -x libvirtd").context("libvirtd runs")?;
            Ok(token)
        });
        for (index, token) in set_up.into_iter().enumerate() {
            let machine = &site.machines[index];
            let address = format!("{}:7421", machine.ip);
            let token = token.with_context(|| format!("Ferry is not installed on {}", machine.name))?;
            site.ferry.must(&["host", "add", &address, "--name", &machine.name, "--token", &token])?;
        }
        site.observer = Observer::start_at(&site.ferry.lab, site.ports())?;
        Ok(site)
    }

    /// Boots a machine of each release, without Ferry.
    ///
    /// # Errors
    /// What failed, with its output.
    pub fn boot(releases: &[Release]) -> anyhow::Result<Self> {
        for release in releases {
            // Built one after the other, and before any machine boots.
            image::image(*release)?;
        }
        let mut ferry = Ferry::up_empty()?;
        // Machines boot and agents start again meanwhile, at moments that no test chooses.
        ferry.warnings.expect_any();
        let numbered: Vec<(u8, Release)> = (1..).zip(releases.iter().copied()).collect();
        let started = at_once(&numbered, |(index, release)| {
            let mut machine = Machine::start(&ferry.lab, *index, *release)?;
            machine.wait_up().map(|()| machine)
        });
        let machines = started.into_iter().collect::<anyhow::Result<Vec<Machine>>>()?;
        let inventory: Vec<(&str, PathBuf)> =
            machines.iter().map(|machine| (machine.name.as_str(), machine.socket())).collect();
        fs::write(ferry.lab.folder.join(INVENTORY), serde_json::to_vec(&inventory)?)?;
        let observer = Observer::start_at(&ferry.lab, [])?;
        Ok(Self { observer, machines, ferry })
    }

    /// Keeps machines and servers when this owner ends.
    pub fn keep(self) {
        let Self { observer, machines, ferry } = self;
        drop(observer);
        machines.into_iter().for_each(std::mem::forget);
        let Ferry { server, lab, .. } = ferry;
        std::mem::forget(server);
        lab.keep();
    }

    fn ports(&self) -> Vec<(String, String)> {
        self.machines.iter().map(|machine| (machine.name.clone(), machine.port.clone())).collect()
    }

    /// Adds the file server's share as `name` and makes Ferry mount it on each machine.
    ///
    /// # Errors
    /// The command line's message.
    pub fn add_smb_share(&self, name: &str) -> anyhow::Result<()> {
        self.ferry.must(&["share", "add", name, &self.ferry.files.unc()])?;
        self.attach_smb_share(name, PASSWORD)
    }

    /// Makes Ferry mount the file server's share on each machine.
    ///
    /// # Errors
    /// The command line's message.
    pub fn attach_smb_share(&self, name: &str, password: &str) -> anyhow::Result<()> {
        let password = self.ferry.password_file(password)?;
        let machines: Vec<&Machine> = self.machines.iter().collect();
        self.attach(name, &machines, &["--user", USER, "--password-file", &password])
    }

    /// Makes Ferry mount a share on several machines at the same time.
    fn attach(&self, share: &str, machines: &[&Machine], how: &[&str]) -> anyhow::Result<()> {
        let attached = at_once(machines, |machine| {
            let line = [&["share", "attach", share, "--host", &machine.name], how].concat();
            self.ferry.must(&line)
        });
        attached.into_iter().try_for_each(|attached| attached.map(drop))
    }

    /// Makes a machine export a folder by NFS, adds it as a share, and makes Ferry mount it on others; returns its
    /// place.
    ///
    /// # Errors
    /// The message of the command line or the NFS server.
    pub fn add_nfs_share(&self, name: &str, server: usize, on: &[usize]) -> anyhow::Result<String> {
        let host = &self.machines[server];
        // As an administrator exports a folder to hosts whose root creates images and whose QEMU writes them.
        host.run(&format!(
            "mkdir -p /srv/{name} && chown 64055:64055 /srv/{name} && \
             echo '/srv/{name} {NETWORK}.0/24(rw,no_root_squash,no_subtree_check,fsid=1)' >>/etc/exports && \
             systemctl start nfs-server && exportfs -ra"
        ))?;
        let url = format!("nfs://{}.ferry.lab/srv/{name}", host.name);
        self.ferry.must(&["share", "add", name, &url])?;
        let machines: Vec<&Machine> = on.iter().map(|machine| &self.machines[*machine]).collect();
        self.attach(name, &machines, &[])?;
        Ok(url)
    }

    /// The path at which a machine has mounted the file server's share.
    ///
    /// # Errors
    /// It is not mounted.
    pub fn smb_mount(&self, machine: usize) -> anyhow::Result<PathBuf> {
        let output = self.machines[machine].run("findmnt -n -t cifs -o TARGET")?;
        Ok(output.lines().next().context("No share is mounted")?.trim().into())
    }

    /// Starts a guest on a machine, with its files on the file server's share; returns when it is heard and Ferry lists
    /// it. The guest continues from a state that was saved after it had booted and verified everything; if there is
    /// none, it is booted and saved.
    ///
    /// # Errors
    /// libvirt's message, or that the guest is not heard.
    pub fn start_guest(&self, ticker: &Ticker, machine: usize) -> anyhow::Result<()> {
        self.start_changed_guest(ticker, machine, |definition, _| Ok(definition))
    }

    /// As [`Self::start_guest`]. `change` edits its definition; its argument is the guest's folder on the machine.
    ///
    /// # Errors
    /// Those of [`Self::start_guest`] and of `change`.
    pub fn start_changed_guest(
        &self,
        ticker: &Ticker,
        machine: usize,
        change: impl FnOnce(String, &Path) -> anyhow::Result<String>,
    ) -> anyhow::Result<()> {
        let (host, name) = (&self.machines[machine], &ticker.name);
        let (share, mount) = (&self.ferry.files.share, self.smb_mount(machine)?);
        let (backing, folder) = (share.join(name), mount.join(name));
        let definition = ticker.prepare(&self.ferry.lab, share, &mount)?;
        let definition = change(definition, &folder)?;
        fs::write(host.folder.join(format!("{name}.xml")), &definition)?;
        host.run(&format!("virsh -q define /lab/{name}.xml"))?;
        let kept = KeptGuest::of(&cache::kept(
            &format!("stock-guest-{name}-{}-{}-{}", host.release.name(), ticker.pattern_mib, ticker.slower),
            &format!("the guest {name} as it has booted"),
            &kept_guest_recipe(host, &self.ferry.lab.boot, &any_folder(&definition, &folder))?,
            |place| KeptGuest::of(place).is_whole(),
            |work| {
                host.run(&format!("virsh -q start {name}"))?;
                self.observer.wait_on(name, &host.name, GUEST_BOOT)?;
                self.verify(name)?;
                host.run(&format!("virsh -q save {name} /lab/{name}.state"))?;
                let definition = host.run(&format!("virsh save-image-dumpxml /lab/{name}.state"))?;
                let kept = KeptGuest::of(work);
                fs::write(&kept.definition, any_folder(&definition, &folder))?;
                fs::copy(host.folder.join(format!("{name}.state")), &kept.state)?;
                copy_sparse(&backing.join(DISK), &kept.disk)
            },
        )?);
        copy_sparse(&kept.disk, &backing.join(DISK))?;
        fs::copy(&kept.state, host.folder.join(format!("{name}.state")))?;
        let definition = fs::read_to_string(&kept.definition)?.replace(ANY_FOLDER, &folder.display().to_string());
        fs::write(host.folder.join(format!("{name}.xml")), definition)?;
        host.run(&format!("virsh -q restore /lab/{name}.state --xml /lab/{name}.xml"))?;
        self.observer.wait_on(name, &host.name, GUEST_BOOT)?;
        self.ferry.wait_listed(name, &host.name)
    }

    /// Waits until a guest has verified everything, as fast as it can.
    ///
    /// # Errors
    /// It has not in time.
    pub fn verify(&self, name: &str) -> anyhow::Result<()> {
        // A restless guest leaves no processor time for verifying.
        self.observer.ask(&self.ferry.lab, name, "rest")?;
        self.observer.ask(&self.ferry.lab, name, "hasten")?;
        self.observer.wait_verified(name, 1, VERIFY_WITHIN)?;
        self.observer.ask(&self.ferry.lab, name, "rest")
    }

    /// Moves a guest's disks to a place, while it runs.
    ///
    /// # Errors
    /// The command line's message.
    pub fn move_storage(&self, name: &str, place: &str) -> anyhow::Result<JobView> {
        self.job(&["vm", "move-storage", name, "--to", place, "--wait"])
    }

    /// Moves a guest to a machine with Ferry's command line, and waits until it is heard only from there.
    ///
    /// # Errors
    /// The command line's message, or the guests that are heard.
    pub fn migrate(&self, name: &str, to: &str, how: &[&str]) -> anyhow::Result<JobView> {
        let mut words = vec!["vm", "migrate", name, "--to", to, "--wait"];
        words.extend(how);
        let job = self.job(&words)?;
        self.observer.wait_on(name, to, DEADLINE)?;
        Ok(job)
    }

    /// Runs a command that waits for its job; returns the job as printed at its end.
    ///
    /// # Errors
    /// The command line's message.
    pub fn job(&self, words: &[&str]) -> anyhow::Result<JobView> {
        let mut all = vec!["--json"];
        all.extend(words);
        let output = run_within(self.ferry.command(&all)?, MOVE_WITHIN)?;
        ensure!(output.ok(), "ferry {} ended with {:?}: {}{}", words.join(" "), output.code, output.out, output.err);
        serde_json::from_str(output.out.lines().last().unwrap_or_default())
            .with_context(|| format!("It said {}", output.out))
    }

    /// Checks that nothing was denied on any machine.
    ///
    /// # Errors
    /// The denials.
    pub fn nothing_denied(&self) -> anyhow::Result<()> {
        for machine in &self.machines {
            let denials = machine.denials()?;
            ensure!(denials.is_empty(), "{} denied:\n{}", machine.name, denials.join("\n"));
        }
        Ok(())
    }
}

/// A file for other processes' commands: the machines' names, and the sockets of their guest agents.
const INVENTORY: &str = "machines.json";

/// The machines of a lab that another process built: names and guest agents.
pub fn machines_of(folder: &Path) -> Vec<(String, GuestAgent)> {
    let text = fs::read(folder.join(INVENTORY)).unwrap_or_default();
    let machines: Vec<(String, PathBuf)> = serde_json::from_slice(&text).unwrap_or_default();
    machines.into_iter().map(|(name, socket)| (name, GuestAgent::new(&socket))).collect()
}

/// A guest's disk in its folder.
const DISK: &str = "disk.raw";
/// Placeholder for a guest's folder in a saved definition: shares are mounted at different paths.
const ANY_FOLDER: &str = "@folder@";

fn any_folder(definition: &str, folder: &Path) -> String {
    definition.replace(&folder.display().to_string(), ANY_FOLDER)
}

/// The saved state of a booted guest: libvirt's save file, with its definition and its disk.
struct KeptGuest {
    state: PathBuf,
    definition: PathBuf,
    disk: PathBuf,
}

impl KeptGuest {
    fn of(folder: &Path) -> Self {
        Self { state: folder.join("state"), definition: folder.join("definition.xml"), disk: folder.join(DISK) }
    }

    fn is_whole(&self) -> bool {
        [&self.state, &self.definition, &self.disk].iter().all(|path| path.is_file())
    }
}

/// Everything that the saved state of a guest depends on.
fn kept_guest_recipe(host: &Machine, boot: &Boot, definition: &str) -> anyhow::Result<String> {
    let mut hasher = DefaultHasher::new();
    // The initramfs is packed again for each lab, but from this program.
    for file in [&boot.kernel, &Programs::find()?.ticker] {
        fs::read(file)?.hash(&mut hasher);
    }
    let versions = host.run("dpkg-query -W libvirt-daemon qemu-system-x86")?;
    Ok(format!("{:x}\n{versions}{definition}", hasher.finish()))
}

fn copy_sparse(from: &Path, to: &Path) -> anyhow::Result<()> {
    run("cp", &["--sparse=always".as_ref(), from.as_os_str(), to.as_os_str()]).map(drop)
}

/// A guest for stock hosts: small and slow, because its processor is emulated by an emulated one. Its kernel zeroes
/// freed memory, so that little must be sent.
pub fn small_ticker(name: &str, address: u8) -> Ticker {
    let ticker = Ticker::new(name, address);
    let uuid = Uuid::from_u128(UUIDS + u128::from(address));
    Ticker {
        uuid,
        memory_mib: 128,
        pattern_mib: 4,
        dirty_mib_per_s: 1,
        slower: 12,
        writes_per_s: 10,
        kernel: "init_on_free=1",
        ..ticker
    }
}

/// Installs the agent from its package and sets it up; returns the enrolment token.
fn install_agent(machine: &Machine, package: &Path) -> anyhow::Result<String> {
    let path = machine.give(package)?;
    // The package's dependencies are installed: no other package is needed, and none could be downloaded.
    let output = machine.try_run(&format!("dpkg -i {path}"), INSTALL_WITHIN)?;
    ensure!(output.ok(), "dpkg -i {path} ended with {:?}: {}{}", output.code, output.out, output.err);
    let line = format!("ferry-agent setup --listen {}:7421 --yes", machine.ip);
    let output = machine.try_run(&line, INSTALL_WITHIN)?;
    ensure!(output.ok(), "{line} ended with {:?}: {}{}", output.code, output.out, output.err);
    let token = output.out.lines().last().context("ferry-agent setup printed no token")?.to_owned();
    // VMs move over a separate network.
    machine.run(&format!(
        "sed -i 's/^data_address = .*/data_address = \"{}\"/' /etc/ferry/agent.toml",
        machine.migration_ip
    ))?;
    machine.run("systemctl start ferry-agent && systemctl is-active ferry-agent")?;
    Ok(token)
}

/// The folder with Ferry's packages.
///
/// # Errors
/// The variable is not set.
pub fn packages() -> anyhow::Result<PathBuf> {
    let folder = std::env::var_os(PACKAGES).with_context(|| {
        format!("{PACKAGES} does not say where Ferry's packages are: `cargo xtask` builds them and says it")
    })?;
    Ok(PathBuf::from(folder))
}

/// The package whose file name begins with `prefix`.
///
/// # Errors
/// It does not exist.
pub fn find(folder: &Path, prefix: &str) -> anyhow::Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| format!("Could not read {}", folder.display()))?;
    let is = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.starts_with(prefix) && name.ends_with(".deb")
    };
    let found = entries.flatten().map(|entry| entry.path()).find(is);
    found.with_context(|| format!("{} holds no package {prefix}*.deb", folder.display()))
}
