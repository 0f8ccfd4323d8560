//! What the agent reports about its host.

use std::{fs, path::Path};

use ferry_core::{
    api::agent::API_VERSIONS,
    finding::{Command, Finding, FindingId, Message},
    host::{HostFacts, HugePages},
    release::knows_shared_filesystems,
    units::ByteCount,
};
use ferry_drivers::hypervisor::{HostInfo, HypervisorError, HypervisorHost};

use crate::{config::Config, confinement, damaged::damaged, hook, qemu_conf};

/// Queries the kernel and the hypervisor. Blocks.
///
/// # Errors
/// If libvirt does not answer.
pub fn facts(config: &Config, hypervisor: &dyn HostInfo) -> Result<HostFacts, HypervisorError> {
    let host = hypervisor.host()?;
    let libvirt_version = libvirt_version(&host);
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let findings = findings(config, &host, &libvirt_version);
    let meminfo = text("/proc/meminfo");
    let (memory_total, memory_free) = memory(&meminfo, host.memory_total);
    Ok(HostFacts {
        hostname: text("/proc/sys/kernel/hostname"),
        machine_id: fs::read_to_string(&config.machine_id).unwrap_or_default().trim().to_owned(),
        hypervisor_uuid: host.uuid,
        cpus: host.cpus,
        memory_total,
        memory_free,
        huge_pages: huge_pages(Path::new("/sys/kernel/mm/hugepages"), &meminfo),
        libvirt_version,
        qemu_version: host.qemu_version,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        api_versions: API_VERSIONS.to_vec(),
        addresses: Some(hypervisor.addresses()),
        findings,
    })
}

/// The version of this host's libvirt. A test may set a different one.
pub(crate) fn libvirt_version(host: &HypervisorHost) -> String {
    fail::fail_point!("libvirt-version", |version| version.unwrap_or_default());
    host.libvirt_version.clone()
}

/// Problems of the host's set-up. A libvirt that cannot be configured with shared file systems is judged by each move,
/// file by file: [`ferry_core::release`].
fn findings(config: &Config, host: &HypervisorHost, libvirt_version: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let conf = fs::read_to_string(&config.qemu_conf).unwrap_or_default();
    let root = config.share_root.display().to_string();
    if knows_shared_filesystems(libvirt_version) && !qemu_conf::knows_shared(&conf, &root) {
        findings.push(Finding::blocks(
            FindingId::HostSharedFilesystems,
            "host",
            Message::RootNotKnownShared { root, conf: config.qemu_conf.display().to_string() },
            Command::SetUpAgent,
        ));
    }
    if !hook::is_installed(config) {
        findings.push(Finding::blocks(
            FindingId::HostHook,
            "host",
            Message::HookMissing { folder: config.hooks_dir.display().to_string() },
            Command::SetUpAgent,
        ));
    }
    findings.extend(confinement::findings(config, host));
    findings.extend(damaged(config));
    findings
}

/// Total and available memory of the host, both from one read of `/proc/meminfo`: libvirt's size of the node (`node`)
/// may be less than what the kernel has available. `node` replaces values missing there.
fn memory(meminfo: &str, node: ByteCount) -> (ByteCount, ByteCount) {
    let total = line_of(meminfo, "MemTotal:").unwrap_or(node);
    (total, line_of(meminfo, "MemAvailable:").unwrap_or(total).min(total))
}

fn line_of(meminfo: &str, name: &str) -> Option<ByteCount> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok().map(ByteCount::kib)
}

/// Each size has a folder such as `hugepages-2048kB`. A kernel without huge pages has none.
fn huge_pages(folder: &Path, meminfo: &str) -> Vec<HugePages> {
    let usual = line_of(meminfo, "Hugepagesize:");
    let one = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let size = ByteCount::kib(name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?);
        let count =
            |file: &str| -> Option<u64> { fs::read_to_string(entry.path().join(file)).ok()?.trim().parse().ok() };
        let free = count("free_hugepages")?.saturating_sub(count("resv_hugepages").unwrap_or(0));
        Some(HugePages { size, free, usual: usual == Some(size) })
    };
    let mut pages: Vec<HugePages> = fs::read_dir(folder).into_iter().flatten().flatten().filter_map(one).collect();
    pages.sort_by_key(|pages| pages.size);
    pages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_libvirt_that_can_be_told_of_shared_file_systems_must_be() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut config = Config::new("127.0.0.1:1".parse().expect("an address"));
        config.qemu_conf = folder.path().join("qemu.conf");
        config.hooks_dir = folder.path().join("hooks");
        let host = HypervisorHost {
            uuid: String::new(),
            cpus: 1,
            memory_total: ByteCount(0),
            libvirt_version: String::new(),
            qemu_version: String::new(),
            confined_by: Vec::new(),
        };
        let found = |version| findings(&config, &host, version).iter().map(|finding| finding.id).collect::<Vec<_>>();
        assert_eq!(found("11.3.0"), [FindingId::HostSharedFilesystems, FindingId::HostHook]);
        assert_eq!(found("9.0.0"), [FindingId::HostHook]);
    }

    #[test]
    fn huge_pages_are_read_by_their_size() {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, free, promised) in
            [("hugepages-1048576kB", "3", "0"), ("hugepages-2048kB", "512", "12"), ("other", "9", "0")]
        {
            let place = folder.path().join(name);
            fs::create_dir(&place).expect("made");
            fs::write(place.join("free_hugepages"), format!("{free}\n")).expect("written");
            fs::write(place.join("resv_hugepages"), format!("{promised}\n")).expect("written");
        }
        let expected = [
            HugePages { size: ByteCount::mib(2), free: 500, usual: true },
            HugePages { size: ByteCount::gib(1), free: 3, usual: false },
        ];
        assert_eq!(huge_pages(folder.path(), "HugePages_Free: 515\nHugepagesize:       2048 kB\n"), expected);
        assert!(huge_pages(&folder.path().join("none"), "").is_empty());
    }

    #[test]
    fn no_more_memory_is_free_than_there_is() {
        let (node, kib) = (ByteCount::gib(7), ByteCount::kib);
        for (text, total, free) in [
            (
                "MemTotal:       24603356 kB\nMemFree: 1 kB\nMemAvailable:   23996548 kB\n",
                kib(24_603_356),
                kib(23_996_548),
            ),
            ("MemAvailable:   23996548 kB\n", node, node),
            ("MemAvailable:   1024 kB\n", node, kib(1024)),
            ("MemTotal:       2048 kB\n", kib(2048), kib(2048)),
            ("", node, node),
        ] {
            assert_eq!(memory(text, node), (total, free), "{text}");
        }
    }
}
