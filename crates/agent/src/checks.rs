//! What `ferry-agent setup` looks at on a host and does not change: each thing missing says how to mend it.

use std::{
    ffi::OsStr,
    fmt, fs,
    net::{IpAddr, SocketAddr, TcpListener},
    path::Path,
};

use ferry_core::release::{Release, SHARED_FILESYSTEMS_SINCE, knows_shared_filesystems};
use ferry_drivers::hypervisor::{Hypervisor, HypervisorHost};

use crate::config::Config;

/// The oldest releases that Ferry was tried with, those of Debian 12.
const LIBVIRT_TRIED: Release = Release::new(9, 0);
const QEMU_TRIED: Release = Release::new(7, 2);

/// Programs that an agent runs, and the Debian packages that hold them.
const PROGRAMS: [(&str, &str); 2] = [("smbclient", "smbclient"), ("qemu-img", "qemu-utils")];

/// Ports that are tried: as many as a host moves VMs at once, and more.
const PORTS_MAX: usize = 64;

/// One thing looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// It is as it should be.
    Good(String),
    /// It works, at a loss.
    Odd(String),
    /// Ferry does not work until it is mended.
    Missing(String),
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Good(text) => write!(f, "✓ {text}"),
            Self::Odd(text) => write!(f, "! {text}"),
            Self::Missing(text) => write!(f, "✗ {text}"),
        }
    }
}

/// Looks at everything.
pub fn all(config: &Config, hypervisor: &dyn Hypervisor) -> Vec<Check> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let mut checks = Vec::new();
    match hypervisor.host() {
        Ok(host) => checks.extend(versions(&host)),
        Err(error) => {
            checks.push(Check::Missing(format!("{error}: install package libvirt-daemon-system and start libvirtd")))
        }
    }
    checks.push(kvm(Path::new("/dev/kvm")));
    checks.extend(PROGRAMS.map(|(name, package)| program(&path, name, package)));
    checks.extend(smb_client(&text("/proc/filesystems"), &path));
    checks.extend(memory(&text("/proc/meminfo")));
    checks.push(control_address(config.listen));
    checks.push(carrier_ports(config));
    checks
}

fn versions(host: &HypervisorHost) -> [Check; 2] {
    let one = |name: &str, version: &str, oldest: Release| {
        if Release::of(version).is_none_or(|release| release < oldest) {
            return Check::Odd(format!(
                "{name} {version} is older than {oldest}, the oldest that Ferry was tried with: upgrade it"
            ));
        }
        if name == "libvirt" && !knows_shared_filesystems(version) {
            return Check::Odd(format!(
                "{name} {version} cannot be told which file systems are shared, {SHARED_FILESYSTEMS_SINCE} can: VMs whose \
                 files stay on a share move live from SMB shares with cache='none' on their disks, and from file systems \
                 that libvirt knows, as NFS"
            ));
        }
        Check::Good(format!("{name} {version}"))
    };
    [one("libvirt", &host.libvirt_version, LIBVIRT_TRIED), one("QEMU", &host.qemu_version, QEMU_TRIED)]
}

/// Opening it is what QEMU does first.
fn kvm(device: &Path) -> Check {
    match fs::OpenOptions::new().read(true).write(true).open(device) {
        Ok(_) => Check::Good(format!("{} can be opened", device.display())),
        Err(error) => Check::Odd(format!(
            "{} cannot be opened ({error}): VMs of type kvm do not start here; enable virtualisation in the firmware and load the module kvm_intel or kvm_amd",
            device.display()
        )),
    }
}

fn program(path: &OsStr, name: &str, package: &str) -> Check {
    if std::env::split_paths(path).any(|folder| folder.join(name).is_file()) {
        Check::Good(name.to_owned())
    } else {
        Check::Missing(format!("{name} is missing: install package {package}"))
    }
}

fn smb_client(filesystems: &str, path: &OsStr) -> Vec<Check> {
    if filesystems.lines().any(|line| line.trim_start() == "cifs") {
        return vec![Check::Good("the kernel has the SMB client (cifs)".to_owned())];
    }
    let slow = "the kernel has no SMB client (cifs); shares are mounted by smbnetfs, which is slow for small writes: \
                load the module cifs, if there is one";
    vec![program(path, "smbnetfs", "smbnetfs"), Check::Odd(slow.to_owned())]
}

fn memory(meminfo: &str) -> Option<Check> {
    let mib = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib >> 10)
    };
    let (total, available) = (mib("MemTotal:")?, mib("MemAvailable:")?);
    Some(Check::Good(format!("{available} MiB of {total} MiB memory are available to VMs")))
}

fn control_address(listen: SocketAddr) -> Check {
    match TcpListener::bind(listen) {
        Ok(_) => Check::Good(format!("{listen} is free for the control API")),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            Check::Odd(format!("{listen} is in use: by the agent, if it runs already; else stop what listens there"))
        }
        Err(error) => Check::Missing(format!(
            "{listen} cannot be listened at ({error}): write an address of this host into the configuration as listen"
        )),
    }
}

fn carrier_ports(config: &Config) -> Check {
    let address: IpAddr = config.data_address;
    if let Err(error) = TcpListener::bind((address, 0)) {
        return Check::Missing(format!(
            "{address} cannot be listened at ({error}): write an address of this host into the configuration as data_address"
        ));
    }
    let ports: Vec<u16> = config.ports().into_iter().flatten().take(PORTS_MAX).collect();
    let free = ports.iter().filter(|port| TcpListener::bind((address, **port)).is_ok()).count();
    match free {
        0 => Check::Missing(format!(
            "none of the ports {} is free at {address}: write a free range into the configuration as data_ports",
            config.data_ports
        )),
        _ => Check::Good(format!(
            "{free} of {} ports from {} are free at {address}; other hosts' agents must reach them",
            ports.len(),
            config.data_ports
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_says_how_to_mend_it() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("smbclient"), "").expect("written");
        let path = folder.path().as_os_str();
        assert_eq!(program(path, "smbclient", "smbclient"), Check::Good("smbclient".to_owned()));
        let Check::Missing(text) = program(path, "qemu-img", "qemu-utils") else { panic!("it is not there") };
        assert!(text.contains("install package qemu-utils"));
        assert_eq!(smb_client("nodev\tsysfs\n\tcifs\n", path).len(), 1);
        assert!(matches!(smb_client("nodev\tsysfs\n", path)[..], [Check::Missing(_), Check::Odd(_)]));
        assert!(matches!(kvm(&folder.path().join("kvm")), Check::Odd(_)));
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        let host = |libvirt: &str, qemu: &str| HypervisorHost {
            uuid: String::new(),
            cpus: 1,
            memory_total: ferry_core::units::ByteCount(0),
            libvirt_version: libvirt.to_owned(),
            qemu_version: qemu.to_owned(),
        };
        assert!(versions(&host("11.3.0", "10.0.2")).iter().all(|check| matches!(check, Check::Good(_))));
        assert!(versions(&host("12.0.0", "10.10.0")).iter().all(|check| matches!(check, Check::Good(_))));
        let [libvirt, qemu] = versions(&host("9.0.0", "7.2.19"));
        let Check::Odd(text) = libvirt else { panic!("{libvirt:?}") };
        assert!(text.contains("10.9") && text.contains("cache='none'"), "{text}");
        assert!(matches!(qemu, Check::Good(_)));
        assert!(versions(&host("8.0.0", "6.2.0")).iter().all(|check| matches!(check, Check::Odd(_))));
    }

    #[test]
    fn an_address_of_another_host_is_told_from_one_that_is_in_use() {
        let elsewhere: SocketAddr = "192.0.2.1:7421".parse().expect("an address");
        assert!(matches!(control_address(elsewhere), Check::Missing(_)));
        let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = taken.local_addr().expect("bound");
        assert!(matches!(control_address(address), Check::Odd(_)));
        let ports = format!("{0}-{0}", address.port());
        let config = Config { data_ports: ports, ..Config::new(address) };
        assert!(matches!(carrier_ports(&config), Check::Missing(_)));
    }

    #[test]
    fn memory_is_told() {
        let text = "MemTotal:       24603356 kB\nMemAvailable:   23996548 kB\n";
        assert_eq!(memory(text), Some(Check::Good("23434 MiB of 24026 MiB memory are available to VMs".to_owned())));
        assert_eq!(memory(""), None);
    }
}
