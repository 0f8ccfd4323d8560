//! Installs the Debian packages that are missing, saying which.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail, ensure};

/// What a build needs.
const BUILD: &[&str] = &["gcc", "pkg-config", "libvirt-dev"];
/// What the component tests need: real programs, no root.
const TEST: &[&str] = &["smbclient", "samba", "smbnetfs"];
/// What the lab needs.
const LAB: &[&str] = &[
    "qemu-system-x86",
    "qemu-utils",
    "libvirt-daemon",
    "libvirt-daemon-driver-qemu",
    "libvirt-clients",
    "samba",
    "smbclient",
    "smbnetfs",
    "iproute2",
    "nftables",
    "tcpdump",
    "cpio",
    "xz-utils",
    "procps",
    "util-linux",
];
/// On Debian 12 these are too old in the main suite: libvirt 11 and QEMU 10 are in its backports.
const FROM_BACKPORTS: &[&str] = &[
    "libvirt-dev",
    "qemu-system-x86",
    "qemu-utils",
    "libvirt-daemon",
    "libvirt-daemon-driver-qemu",
    "libvirt-clients",
    "samba",
    "smbclient",
];
const BACKPORTS_LIST: &str = "/etc/apt/sources.list.d/ferry-backports.list";

/// What a step needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// To build.
    Build,
    /// To test without root.
    Test,
    /// To build real hosts.
    Lab,
}

/// Whether this process is root.
pub fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    line.and_then(|ids| ids.split_whitespace().nth(1)) == Some("0")
}

/// A command as root: itself, or by sudo.
pub fn as_root(program: &str) -> Command {
    if is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.arg(program);
    command
}

/// Installs what is missing for `needs`.
///
/// # Errors
/// When a package cannot be installed, or this is no Debian.
pub fn ensure_packages(needs: &[Need]) -> anyhow::Result<()> {
    let mut missing: Vec<&str> = Vec::new();
    for need in needs {
        let packages = match need {
            Need::Build => BUILD,
            Need::Test => TEST,
            Need::Lab => LAB,
        };
        missing.extend(packages.iter().filter(|package| !is_installed(package)));
    }
    missing.sort_unstable();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    ensure!(
        Path::new("/etc/debian_version").exists(),
        "These packages are missing, and only Debian's are known here: {}",
        missing.join(", ")
    );
    eprintln!("installing {}", missing.join(" "));
    if !is_root() {
        eprintln!("sudo is needed to install them");
    }
    let bookworm = fs::read_to_string("/etc/os-release")?.contains("VERSION_CODENAME=bookworm");
    if bookworm && !has_backports() {
        eprintln!("enabling the backports suite of Debian 12, in {BACKPORTS_LIST}");
        let script = format!("echo '{}' > {BACKPORTS_LIST}", backports_line()?);
        succeed(as_root("sh").arg("-c").arg(script))?;
    }
    succeed(as_root("apt-get").args(["-q", "-q", "update"]))?;
    let (newer, plain): (Vec<&str>, Vec<&str>) =
        missing.into_iter().partition(|package| bookworm && FROM_BACKPORTS.contains(package));
    for (packages, suite) in [(newer, Some("bookworm-backports")), (plain, None)] {
        if packages.is_empty() {
            continue;
        }
        let mut command = as_root("env");
        command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y", "--no-install-recommends", "install"]);
        if let Some(suite) = suite {
            command.args(["-t", suite]);
        }
        succeed(command.args(packages).stdout(Stdio::null()))?;
    }
    Ok(())
}

/// Installs cargo-nextest if it is missing.
///
/// # Errors
/// When it cannot be built.
pub fn ensure_nextest() -> anyhow::Result<()> {
    let there =
        Command::new("cargo").args(["nextest", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if there.is_ok_and(|status| status.success()) {
        return Ok(());
    }
    eprintln!("installing cargo-nextest");
    succeed(Command::new("cargo").args(["install", "--locked", "cargo-nextest"]))
}

/// Runs a command that must end well.
///
/// # Errors
/// With the command.
pub fn succeed(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("Could not run {command:?}"))?;
    if status.success() { Ok(()) } else { bail!("{command:?} ended with {status}") }
}

fn is_installed(package: &str) -> bool {
    let said = Command::new("dpkg-query").args(["-W", "-f=${Status}", package]).stderr(Stdio::null()).output();
    said.is_ok_and(|said| said.stdout.starts_with(b"install ok installed"))
}

fn has_backports() -> bool {
    let said = Command::new("apt-cache").arg("policy").output();
    said.is_ok_and(|said| String::from_utf8_lossy(&said.stdout).contains("bookworm-backports"))
}

/// The mirror that the machine uses already, with the backports suite.
fn backports_line() -> anyhow::Result<String> {
    let said = Command::new("apt-get").args(["indextargets", "--format", "$(SITE) $(RELEASE)"]).output()?;
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    let site = text
        .lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(site, release)| *release == "bookworm" && !site.contains("security"))
        .map(|(site, _)| site)
        .context("apt knows no mirror of Debian 12")?;
    Ok(format!("deb {site} bookworm-backports main"))
}
