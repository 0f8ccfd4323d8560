//! Disks of stock hosts: Debian as its installer leaves it, built once from Debian's own packages and kept in the
//! cache.
//!
//! The lab adds QEMU's guest agent (for its own access to the machine), a unit that configures the network interfaces
//! for the lab, and an NFS server that tests may start. libvirt, AppArmor and systemd are as packaged. The system has
//! been started once, like every real host, so the results of a first start exist, such as AppArmor's compiled
//! profiles.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, ensure};
use uuid::Uuid;

use super::{
    emulator::{self, Image},
    guest_agent::GuestAgent,
};
use crate::{
    cache,
    program::Program,
    run::{checked, run, wait_for},
};

/// Packages that an administrator installs to run VMs, and those that the lab needs. The dependencies of Ferry's
/// packages are included, because a stock host has no network to download packages from.
const PACKAGES: &str = "systemd-sysv,systemd-timesyncd-,linux-image-amd64,initramfs-tools,libvirt-daemon-system,libvirt-clients,\
                        qemu-system-x86,qemu-utils,apparmor,apparmor-utils-,cifs-utils,smbclient,nfs-common,\
                        nfs-kernel-server,iproute2,iputils-ping,udev,dbus,kmod,procps,qemu-guest-agent";
/// Its virtual size; about a quarter is used.
const SIZE: &str = "5G";
/// Increased when the build below changes, so that a cached disk is built again.
const RECIPE: u32 = 2;
/// The modules in the initramfs: with all modules, a machine without KVM boots 20 s later.
const BOOT_MODULES: &str = "virtio_pci\nvirtio_blk\next4\n";
/// Mount options of the folder that a machine shares with the lab.
pub(super) const FOLDER_OPTIONS: &str = "trans=virtio,version=9p2000.L,msize=262144";
/// Runs the lab's script for this machine, before the network and libvirt are up.
fn unit() -> String {
    format!(
        "[Unit]\nDescription=Set up what the lab asks for\nDefaultDependencies=no\n\
                    After=local-fs.target systemd-udev-trigger.service\nWants=network-pre.target\n\
                    Before=network-pre.target sysinit.target\n\n\
                    [Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=mkdir -p /lab\n\
                    ExecStart=mount -t 9p -o {FOLDER_OPTIONS} lab /lab\n\
                    ExecStart=sh /lab/boot\n\n[Install]\nWantedBy=sysinit.target\n"
    )
}
/// Services for a Debian with a network and a terminal, which only cost time here.
const MASKED: [&str; 6] = [
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "e2scrub_all.timer",
    "man-db.timer",
    "serial-getty@ttyS0.service",
    "getty@tty1.service",
];
const BUILD_WITHIN: Duration = Duration::from_secs(900);
/// How long its guest agent may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// The Debian release of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// 12: libvirt 9.0, QEMU 7.2.
    Bookworm,
    /// 13: libvirt 11.3, QEMU 10.0.
    Trixie,
}

impl Release {
    /// Debian's code name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        }
    }
}

/// The image of a release, built if it does not exist: that takes about two minutes.
///
/// # Errors
/// It cannot be built. Building needs Debian's mirror once.
pub fn image(release: Release) -> anyhow::Result<Image> {
    let recipe = format!("{RECIPE} {} {SIZE} {PACKAGES}\n{BOOT_MODULES}{}{MASKED:?}\n", release.name(), unit());
    let (name, what) =
        (format!("stock-{}", release.name()), format!("the disk of a stock Debian host ({})", release.name()));
    let is_whole = |place: &Path| Image::of(place).is_whole();
    Ok(Image::of(&cache::kept(&name, &what, &recipe, is_whole, |work| build(work, release))?))
}

/// Creates the files of an [`Image`] in `work`.
fn build(work: &Path, release: Release) -> anyhow::Result<()> {
    let root = work.join("root");
    let early = format!(
        "mkdir -p \"$1/etc/initramfs-tools/conf.d\" \"$1/usr/share/initramfs-tools/modules.d\"; \
         echo MODULES=list >\"$1/etc/initramfs-tools/conf.d/lab\"; \
         printf '{}' >\"$1/usr/share/initramfs-tools/modules.d/lab\"",
        BOOT_MODULES.replace('\n', "\\n")
    );
    // In a mount namespace of its own, so that mounts of the packages' scripts disappear with it in any case.
    let mut command = Command::new("unshare");
    command.args(["--mount", "mmdebstrap", "--quiet", "--mode=root", "--variant=apt"]);
    command.args(apt_options()?.iter().map(|option| format!("--aptopt={option}")));
    command.args(["--aptopt=Acquire::Languages \"none\"", "--dpkgopt=path-exclude=/usr/share/doc/*"]);
    command.arg(format!("--essential-hook={early}")).arg(format!("--include={PACKAGES}"));
    command.arg(release.name()).arg(&root).arg(cache::mirror()?);
    checked(command, BUILD_WITHIN)?;
    for line in fs::read_to_string("/proc/self/mountinfo")?.lines() {
        ensure!(!line.contains(&*root.to_string_lossy()), "Something is still mounted: {line}");
    }
    furnish(&root)?;
    let image = Image::of(work);
    for (prefix, place) in [("vmlinuz-", &image.kernel), ("initrd.img-", &image.initrd)] {
        let boot = fs::read_dir(root.join("boot"))?.flatten().map(|entry| entry.path());
        let found = boot.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)));
        let source = found.max().with_context(|| format!("{} has no {prefix}", release.name()))?;
        fs::copy(source, place)?;
    }
    let options = "lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0";
    let (root_text, disk_text) = (root.display().to_string(), image.disk.display().to_string());
    let mut command = Command::new("mke2fs");
    command.args(["-q", "-t", "ext4", "-m", "0", "-L", "root", "-E", options, "-d", &root_text, &disk_text, SIZE]);
    checked(command, BUILD_WITHIN)?;
    fs::remove_dir_all(&root)?;
    start_once(&image, work)
}

/// Starts the system, waits for all its services, removes its identity, and shuts it down.
fn start_once(image: &Image, work: &Path) -> anyhow::Result<()> {
    let place = work.join("first");
    let (folder, socket) = (place.join("lab"), place.join("agent.sock"));
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("boot"), "")?;
    // Killed together with the building process, however that ends.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", emulator::EMULATOR]).args(emulator::emulated(
        image,
        "first",
        Uuid::new_v4(),
        &folder,
        &socket,
    ));
    command.arg("-drive").arg(format!("file={},if=virtio,format=raw,cache=unsafe,discard=unmap", image.disk.display()));
    let mut program = Program::start("a new stock host", command, &place.join("log"))?;
    let agent = GuestAgent::new(&socket);
    wait_for("the new system has started", emulator::BOOT_WITHIN, || {
        (!program.runs() || agent.answers(ANSWER_WITHIN)).then_some(())
    })?;
    ensure!(program.runs(), "The new system does not run: {}", program.output());
    let started = agent.run("systemctl is-system-running --wait", emulator::BOOT_WITHIN)?;
    ensure!(started.out.contains("running"), "The new system is {}", started.out.trim());
    let forget = "rm -rf /var/log/journal /var/lib/systemd/random-seed && \
                  : >/etc/machine-id && sync";
    let forgot = agent.run(forget, emulator::LINE_WITHIN)?;
    ensure!(forgot.ok(), "The new system: {}{}", forgot.out, forgot.err);
    // Its agent may end before it answers.
    let _ = agent.run("systemctl --no-block poweroff", emulator::LINE_WITHIN);
    wait_for("the new system is shut down", emulator::LINE_WITHIN, || (!program.runs()).then_some(()))?;
    fs::remove_dir_all(&place)?;
    Ok(())
}

/// Writes the lab's files into a system before it becomes a disk.
fn furnish(root: &Path) -> anyhow::Result<()> {
    fs::write(root.join("etc/fstab"), "LABEL=root / ext4 defaults,noatime 0 0\n")?;
    // Each machine creates its own at its first boot.
    fs::write(root.join("etc/machine-id"), "")?;
    let _ = fs::remove_file(root.join("etc/hostname"));
    let units = root.join("etc/systemd/system");
    fs::write(units.join("lab.service"), unit())?;
    fs::create_dir_all(units.join("sysinit.target.wants"))?;
    std::os::unix::fs::symlink("../lab.service", units.join("sysinit.target.wants/lab.service"))?;
    for unit in MASKED {
        let place = units.join(unit);
        if !place.exists() {
            std::os::unix::fs::symlink("/dev/null", place).with_context(|| format!("Could not mask {unit}"))?;
        }
    }
    // Tests start it when needed: most hosts serve nothing.
    for unit in ["multi-user.target.wants/nfs-server.service", "multi-user.target.wants/nfs-blkmap.service"] {
        let _ = fs::remove_file(units.join(unit));
    }
    Ok(())
}

/// The settings with which this machine's apt fetches packages (proxies, checks); the new system needs them as well.
fn apt_options() -> anyhow::Result<Vec<String>> {
    let output = run("apt-config", &["dump", "--no-empty"])?;
    let fetches = ["Acquire::Check-", "Acquire::http", "Acquire::https", "Acquire::Retries"];
    let lines = output.lines().filter(|line| fetches.iter().any(|start| line.starts_with(start)));
    Ok(lines.map(|line| line.trim_end_matches(';').to_owned()).collect())
}
