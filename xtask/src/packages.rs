//! Packages that must be installed besides a Rust toolchain.

use std::{
    fs,
    io::Write as _,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail, ensure};

use crate::sudo::as_root;

/// A Debian package, and its oldest usable version.
struct Package {
    name: &'static str,
    at_least: Option<&'static str>,
}

const fn any(name: &'static str) -> Package {
    Package { name, at_least: None }
}

const fn since(name: &'static str, version: &'static str) -> Package {
    Package { name, at_least: Some(version) }
}

/// For building: a linker, and libvirt's headers for the drivers.
const TO_BUILD: [Package; 4] = [any("gcc"), any("libc6-dev"), any("pkg-config"), since("libvirt-dev", "10.9")];

/// For tests without the lab: an NBD server and clients, and Python for the tests of the REST API.
const TO_TEST: [Package; 3] = [since("qemu-utils", "1:9.0"), any("libnbd-bin"), any("python3-venv")];

/// For building and inspecting packages.
const TO_PACKAGE: [Package; 5] = [any("binutils"), any("dpkg-dev"), any("groff-base"), any("rpm"), any("systemd")];

/// For the lab.
const TO_RUN: [Package; 24] = [
    since("qemu-system-x86", "1:9.0"),
    any("ovmf"),
    since("libvirt-daemon", "10.9"),
    since("libvirt-daemon-driver-qemu", "10.9"),
    // Further parts of a stock host: networks, storage pools, and other features of definitions.
    since("libvirt-daemon-driver-network", "10.9"),
    since("libvirt-daemon-driver-storage", "10.9"),
    since("libvirt-daemon-driver-nwfilter", "10.9"),
    since("libvirt-daemon-driver-nodedev", "10.9"),
    since("libvirt-daemon-driver-secret", "10.9"),
    since("libvirt-clients", "10.9"),
    since("samba", "2:4.20"),
    since("smbclient", "2:4.20"),
    any("smbnetfs"),
    any("iproute2"),
    any("nftables"),
    any("tcpdump"),
    any("procps"),
    any("util-linux"),
    any("mount"),
    any("e2fsprogs"),
    any("debootstrap"),
    any("mmdebstrap"),
    any("cpio"),
    any("xz-utils"),
];

/// The script by which Debian decides whether a package may start its services.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Installs missing packages for building.
pub(crate) fn ensure_for_build() -> anyhow::Result<()> {
    ensure(&TO_BUILD, "libvirt's headers must be installed to build Ferry")
}

/// Installs missing packages for building, and for tests without the lab.
pub(crate) fn ensure_for_tests() -> anyhow::Result<()> {
    let all: Vec<&Package> = TO_BUILD.iter().chain(&TO_TEST).chain(&TO_PACKAGE).collect();
    ensure_all(&all, "disks are tested with programs that speak NBD, packages with the tools that make them")
}

/// Installs missing packages for building Ferry and its packages.
pub(crate) fn ensure_for_packages() -> anyhow::Result<()> {
    let all: Vec<&Package> = TO_BUILD.iter().chain(&TO_PACKAGE).collect();
    ensure_all(&all, "packages are made with the tools of both formats")
}

/// Installs missing packages for building, testing and running the lab.
pub(crate) fn ensure_for_lab() -> anyhow::Result<()> {
    let all: Vec<&Package> = TO_BUILD.iter().chain(&TO_TEST).chain(&TO_PACKAGE).chain(&TO_RUN).collect();
    ensure_all(&all, "the lab needs packages, and makes network namespaces, mounts and virtual machines")
}

/// Installs the test runner if it is missing.
pub(crate) fn ensure_nextest() -> anyhow::Result<()> {
    ensure_subcommand("nextest", "the test runner")
}

/// Installs the fuzzer's driver if it is missing.
pub(crate) fn ensure_cargo_fuzz() -> anyhow::Result<()> {
    ensure_subcommand("fuzz", "the fuzzer's driver")
}

fn ensure_subcommand(name: &str, what: &str) -> anyhow::Result<()> {
    let found = Command::new("cargo").args([name, "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if found.is_ok_and(|status| status.success()) {
        return Ok(());
    }
    let package = format!("cargo-{name}");
    eprintln!("installing {package}, {what}");
    let status = Command::new("cargo").args(["install", "--locked", "--quiet", &package]).status()?;
    ensure!(status.success(), "{package} could not be installed");
    Ok(())
}

fn ensure(packages: &[Package], why: &str) -> anyhow::Result<()> {
    ensure_all(&packages.iter().collect::<Vec<_>>(), why)
}

fn ensure_all(packages: &[&Package], why: &str) -> anyhow::Result<()> {
    let missing: Vec<&Package> = packages.iter().copied().filter(|package| !is_good(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    eprintln!("installing {}", names.join(" "));
    if Command::new("apt-get").arg("--version").stdout(Stdio::null()).status().is_err() {
        bail!("This is not Debian: install {} (or what your system calls them) yourself", names.join(" "));
    }
    let mut update = as_root("apt-get", why)?;
    update.args(["-q", "update"]).stdout(Stdio::null());
    ensure!(update.status()?.success(), "apt-get update failed");
    let suite = if missing.iter().all(|package| is_offered(package)) { None } else { Some(backports(why)?) };
    install(&names, suite.as_deref(), why)?;
    let remaining: Vec<&str> = missing.iter().filter(|package| !is_good(package)).map(|package| package.name).collect();
    ensure!(remaining.is_empty(), "{} could not be installed in a version that is new enough", remaining.join(" "));
    Ok(())
}

fn install(names: &[&str], suite: Option<&str>, why: &str) -> anyhow::Result<()> {
    let quiet = Quiet::begin(why)?;
    let mut command = as_root("apt-get", why)?;
    command.args(["-q", "-y", "-o", "Dpkg::Use-Pty=0", "--no-install-recommends", "install"]);
    if let Some(suite) = suite {
        command.args(["-t", suite]);
    }
    let log = tempfile_path();
    let file = fs::File::create(&log)?;
    command.args(names).env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
    let status = command.stdout(file.try_clone()?).stderr(file).status()?;
    quiet.end()?;
    if !status.success() {
        let output = fs::read_to_string(&log).unwrap_or_default();
        bail!("apt-get install {} failed:\n{output}", names.join(" "));
    }
    fs::remove_file(log)?;
    Ok(())
}

fn tempfile_path() -> std::path::PathBuf {
    std::env::temp_dir().join(format!("ferry-install-{}.log", std::process::id()))
}

/// Prevents services of newly installed packages (libvirt, Samba) from starting on this machine: the lab runs its own.
struct Quiet {
    made: bool,
    why: String,
}

impl Quiet {
    fn begin(why: &str) -> anyhow::Result<Self> {
        let made = !fs::exists(POLICY)?;
        if made {
            let mut child = as_root("tee", why)?.arg(POLICY).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
            child.stdin.take().context("a pipe was asked for")?.write_all(b"#!/bin/sh\nexit 101\n")?;
            child.wait()?;
            as_root("chmod", why)?.args(["755", POLICY]).status()?;
        }
        Ok(Self { made, why: why.to_owned() })
    }

    fn end(self) -> anyhow::Result<()> {
        if self.made {
            as_root("rm", &self.why)?.args(["-f", POLICY]).status()?;
        }
        Ok(())
    }
}

/// Whether a sufficiently new version of a package is installed.
fn is_good(package: &Package) -> bool {
    let output = Command::new("dpkg-query")
        .args(["-W", "-f", "${db:Status-Status} ${Version}", package.name])
        .stderr(Stdio::null())
        .output();
    let Ok(output) = output else { return false };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let Some(version) = text.strip_prefix("installed ") else { return false };
    is_new_enough(package, version)
}

/// Whether apt would install a sufficiently new version.
fn is_offered(package: &Package) -> bool {
    let Ok(output) = Command::new("apt-cache").args(["policy", package.name]).output() else { return false };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
    version.is_some_and(|version| version != "(none)" && is_new_enough(package, version))
}

fn is_new_enough(package: &Package, version: &str) -> bool {
    let Some(at_least) = package.at_least else { return true };
    let compared = Command::new("dpkg").args(["--compare-versions", version, "ge", at_least]).status();
    compared.is_ok_and(|status| status.success())
}

/// The name of the backports suite, which is enabled if necessary.
fn backports(why: &str) -> anyhow::Result<String> {
    let release = fs::read_to_string("/etc/os-release").context("Could not read /etc/os-release")?;
    let name = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .context("/etc/os-release names no release: install a newer libvirt and QEMU yourself")?
        .trim_matches('"');
    let suite = format!("{name}-backports");
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", "$(RELEASE) $(REPO_URI)", "Created-By: Packages"])
        .output()
        .context("Could not run apt-get indextargets")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let targets: Vec<(&str, &str)> = text.lines().filter_map(|line| line.trim().split_once(' ')).collect();
    if targets.iter().any(|(release, _)| *release == suite) {
        return Ok(suite);
    }
    // The mirror of the release itself, so that the administrator's choice is kept.
    let (_, mirror) = targets
        .iter()
        .find(|(release, _)| *release == name)
        .with_context(|| format!("apt knows no source of {name}: enable {suite} yourself"))?;
    eprintln!("enabling {suite}: libvirt and QEMU of {name} are too old");
    let file = "/etc/apt/sources.list.d/ferry-backports.list";
    let mut child = as_root("tee", why)?.arg(file).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    child.stdin.take().context("a pipe was asked for")?.write_all(format!("deb {mirror} {suite} main\n").as_bytes())?;
    ensure!(child.wait()?.success(), "{file} could not be written");
    let mut update = as_root("apt-get", why)?;
    ensure!(update.args(["-q", "update"]).stdout(Stdio::null()).status()?.success(), "apt-get update failed");
    Ok(suite)
}
