//! Checks of the host that `ferry-agent setup` makes without changing anything: each problem comes with its fix.

use std::{
    ffi::OsStr,
    fs,
    net::{IpAddr, SocketAddr, TcpListener},
    path::Path,
    process::Command,
};

use ferry_core::release::{Release, SHARED_FILESYSTEMS_SINCE, knows_shared_filesystems};
use ferry_drivers::{
    hypervisor::{HostInfo, HypervisorHost},
    share::smb::{has_mount_cifs, kernel_has_cifs},
};

use crate::{check::Check, config::Config, confinement, damaged::damaged};

/// The oldest releases that Ferry was tested with, those of Debian 12.
const LIBVIRT_TRIED: Release = Release::new(9, 0);
const QEMU_TRIED: Release = Release::new(7, 2);

/// Programs that an agent runs, and the Debian packages that contain them.
const PROGRAMS: [(&str, &str); 2] = [("smbclient", "smbclient"), ("qemu-img", "qemu-utils")];

/// Limit of ports to test: as many as a host moves VMs at once, and more.
const PORTS_MAX: usize = 64;

/// What a connection must be able to buffer for 1 Gb/s at 100 ms, or 10 Gb/s at 10 ms: twice the bytes in transit.
const BUFFER_BYTES: u64 = 25_000_000;
/// The recommended value: the next power of two, as such limits are usually written.
const BUFFER_BYTES_NEEDED: u64 = 32 << 20;
/// Connections of a single move with one disk: memory and disk, at both ends of a host that sends and receives.
const CONNECTIONS_OF_A_MOVE: u64 = 4;
/// `tcp_mem` counts pages; larger pages only increase the limit.
const PAGE_BYTES: u64 = 4096;

/// The unit that runs an agent.
const UNIT: &str = "ferry-agent.service";

/// Runs all checks.
pub fn all(config: &Config, hypervisor: &dyn HostInfo) -> Vec<Check> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let mut checks = Vec::new();
    match hypervisor.host() {
        Ok(host) => {
            checks.extend(versions(&host));
            checks.extend(confinement::checks(config, &host));
        }
        Err(error) => {
            checks.push(Check::Missing(format!("{error}: install package libvirt-daemon-system and start libvirtd")))
        }
    }
    checks.push(kvm(Path::new("/dev/kvm")));
    checks.extend(PROGRAMS.map(|(name, package)| program(&path, name, package)));
    checks.extend(smb_client(kernel_has_cifs(), has_mount_cifs(), &path));
    checks.extend(memory(&text("/proc/meminfo")));
    checks.push(control_address(config.listen));
    checks.push(carrier_ports(config));
    let tcp = |name: &str| text(&format!("/proc/sys/net/ipv4/{name}"));
    checks.push(long_links(&tcp("tcp_rmem"), &tcp("tcp_wmem"), &tcp("tcp_mem")));
    checks.extend(unit(&systemd_shows(UNIT)));
    let damaged = damaged(config).into_iter();
    checks.extend(damaged.map(|finding| Check::Odd(format!("{}. {}", finding.message, finding.fix))));
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

/// Opens the device, which is what QEMU does first.
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

/// How shares can be mounted: by the kernel, if it has the client and mount has its helper.
fn smb_client(kernel: bool, helper: bool, path: &OsStr) -> Vec<Check> {
    match (kernel, helper) {
        (true, true) => vec![Check::Good("the kernel has the SMB client (cifs)".to_owned())],
        (true, false) => vec![Check::Missing(
            "the kernel has the SMB client (cifs), and mount has no helper for it: install package cifs-utils"
                .to_owned(),
        )],
        (false, _) => {
            let slow = "the kernel has no SMB client (cifs), nor a module of it; shares are mounted by smbnetfs, which is \
                        slow for small writes";
            vec![program(path, "smbnetfs", "smbnetfs"), Check::Odd(slow.to_owned())]
        }
    }
}

/// Whether Linux lets a connection grow enough to fill a long link: it does so automatically, up to these maxima.
fn long_links(rmem: &str, wmem: &str, mem: &str) -> Check {
    let number = |text: &str| text.split_whitespace().last().and_then(|word| word.parse::<u64>().ok());
    let (Some(rmem), Some(wmem)) = (number(rmem), number(wmem)) else {
        return Check::Odd("net.ipv4.tcp_rmem and tcp_wmem cannot be read".to_owned());
    };
    // Half of a buffer is window: the kernel needs the rest for its overhead.
    let reach = |rtt_ms: u64| rmem.min(wmem) / 2 * 1000 / rtt_ms / 1_000_000;
    let reached = format!("a connection carries {} MB/s at 10 ms, {} MB/s at 100 ms", reach(10), reach(100));
    let most = number(mem).map_or(u64::MAX, |pages| pages.saturating_mul(PAGE_BYTES));
    if rmem.min(wmem) >= BUFFER_BYTES && most >= CONNECTIONS_OF_A_MOVE * BUFFER_BYTES {
        return Check::Good(format!("TCP buffers are large enough for long links: {reached}"));
    }
    let mut lines = vec![
        format!("net.ipv4.tcp_rmem = 4096 131072 {BUFFER_BYTES_NEEDED}"),
        format!("net.ipv4.tcp_wmem = 4096 16384 {BUFFER_BYTES_NEEDED}"),
    ];
    if most < CONNECTIONS_OF_A_MOVE * BUFFER_BYTES {
        let pages = CONNECTIONS_OF_A_MOVE * BUFFER_BYTES_NEEDED / PAGE_BYTES;
        lines.push(format!("net.ipv4.tcp_mem = {} {} {pages}", pages / 2, pages / 4 * 3));
    }
    Check::Odd(format!(
        "TCP buffers are small for long links: {reached}. For 1 Gb/s at 100 ms, or 10 Gb/s at 10 ms, write into /etc/sysctl.d/60-ferry.conf and run `sysctl --system`: {}",
        lines.join("; ")
    ))
}

/// What systemd reports about a unit; empty where systemd does not run.
fn systemd_shows(unit: &str) -> String {
    let properties = "--property=LoadState,KillMode,RuntimeDirectory,RuntimeDirectoryPreserve";
    let shown = Command::new("systemctl").args(["show", properties, unit]).output();
    shown.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}

/// Whether carriers outlive the agent: by default systemd ends all processes of a unit with it. `None` without systemd.
fn unit(shown: &str) -> Option<Check> {
    let value = |name: &str| shown.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    let lost = |why: &str, line: &str| {
        Check::Missing(format!(
            "{why}, so a restart of {UNIT} ends moves: run `systemctl edit {UNIT}` and write {line} below [Service]"
        ))
    };
    let kill_mode = value("KillMode")?;
    let folder = value("RuntimeDirectory").unwrap_or_default();
    Some(match (value("LoadState")?, kill_mode) {
        ("loaded", "process" | "none") if !folder.is_empty() && value("RuntimeDirectoryPreserve") == Some("no") => {
            lost("systemd removes the folder of sockets with the agent", "RuntimeDirectoryPreserve=yes")
        }
        ("loaded", "process" | "none") => Check::Good(format!("moves go on while {UNIT} is restarted")),
        ("loaded", mode) => {
            lost(&format!("systemd ends carriers with the agent (KillMode={mode})"), "KillMode=process")
        }
        (_, _) => Check::Odd(format!(
            "there is no {UNIT}: whatever runs the agent must not end its carriers with it (in a unit: KillMode=process)"
        )),
    })
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
        assert!(matches!(smb_client(true, true, path)[..], [Check::Good(_)]));
        let [Check::Missing(text)] = &smb_client(true, false, path)[..] else { panic!("mount cannot do it") };
        assert!(text.contains("install package cifs-utils"));
        assert!(matches!(smb_client(false, true, path)[..], [Check::Missing(_), Check::Odd(_)]));
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
            confined_by: Vec::new(),
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
    fn what_long_links_reach_is_told_with_the_lines_to_write() {
        // Linux's defaults on a machine with 4 GiB.
        let found = long_links("4096\t131072\t6291456\n", "4096\t16384\t4194304\n", "46365\t61822\t92730\n");
        let Check::Odd(text) = found else { panic!("{found:?}") };
        for words in [
            "209 MB/s at 10 ms, 20 MB/s at 100 ms",
            "net.ipv4.tcp_rmem = 4096 131072 33554432",
            "net.ipv4.tcp_wmem = 4096 16384 33554432",
            "sysctl --system",
        ] {
            assert!(text.contains(words), "{text}");
        }
        assert!(!text.contains("tcp_mem"), "{text}");
        let large = "4096 131072 33554432";
        assert!(matches!(long_links(large, large, "46365 61822 92730"), Check::Good(_)));
        let Check::Odd(text) = long_links(large, large, "1 2 3") else { panic!("all of them share three pages") };
        assert!(text.contains("net.ipv4.tcp_mem = 16384 24576 32768"), "{text}");
        assert!(matches!(long_links("", "", ""), Check::Odd(_)));
    }

    #[test]
    fn a_unit_that_ends_carriers_is_told_with_the_line_to_write() {
        let shown = |load: &str, mode: &str, folder: &str, keep: &str| {
            unit(&format!(
                "LoadState={load}\nKillMode={mode}\nRuntimeDirectory={folder}\nRuntimeDirectoryPreserve={keep}\n"
            ))
        };
        for mode in ["control-group", "mixed"] {
            let Some(Check::Missing(text)) = shown("loaded", mode, "", "no") else { panic!("{mode} ends carriers") };
            assert!(text.contains(mode) && text.contains("KillMode=process"), "{text}");
        }
        let Some(Check::Missing(text)) = shown("loaded", "process", "ferry", "no") else { panic!("sockets go") };
        assert!(text.contains("RuntimeDirectoryPreserve=yes"), "{text}");
        assert!(matches!(shown("loaded", "process", "ferry", "yes"), Some(Check::Good(_))));
        assert!(matches!(shown("loaded", "process", "", "no"), Some(Check::Good(_))));
        assert!(matches!(shown("not-found", "control-group", "", "no"), Some(Check::Odd(_))));
        assert_eq!(unit(""), None);
    }

    #[test]
    fn memory_is_told() {
        let text = "MemTotal:       24603356 kB\nMemAvailable:   23996548 kB\n";
        assert_eq!(memory(text), Some(Check::Good("23434 MiB of 24026 MiB memory are available to VMs".to_owned())));
        assert_eq!(memory(""), None);
    }
}
