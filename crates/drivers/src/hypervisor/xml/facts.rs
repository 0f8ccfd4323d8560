//! Reads the facts in a definition.

use std::path::{Path, PathBuf};

use ferry_core::{
    id::VmId,
    units::ByteCount,
    vm::{DiskFeature, DiskFormat, Drive, FileRole, NotAFile, VmFacts, VmFile},
};
use roxmltree::{Document, Node};
use uuid::Uuid;

use super::node::{boot_role, child, children, own_text};
use crate::hypervisor::HypervisorError;

/// The facts in a definition. It does not contain state, persistence, autostart and snapshots.
pub fn parse(xml: &str) -> Result<VmFacts<PathBuf>, HypervisorError> {
    let nil = VmId(Uuid::nil());
    let bad = |vm, reason: String| HypervisorError::Definition { vm, reason };
    let document = Document::parse(xml).map_err(|error| bad(nil, error.to_string()))?;
    let domain = document.root_element();
    let text = |name| child(domain, name).and_then(|node| node.text()).map(str::trim);
    let id: VmId =
        text("uuid").and_then(|uuid| uuid.parse().ok()).ok_or_else(|| bad(nil, "it has no UUID".to_owned()))?;
    let name = text("name").ok_or_else(|| bad(id, "it has no name".to_owned()))?;
    let devices = children(domain, "devices").flat_map(|devices| devices.children().filter(Node::is_element));
    let devices: Vec<Node<'_, '_>> = devices.collect();
    let named = |tag: &'static str| devices.iter().copied().filter(move |node| node.has_tag_name(tag));
    let mut files: Vec<VmFile<PathBuf>> = named("disk").filter_map(disk).collect();
    files.extend(child(domain, "os").into_iter().flat_map(|os| os.children().filter_map(boot_file)));
    files.extend(named("filesystem").map(filesystem));
    files.extend(named("memory").filter_map(memory_file));
    let mut host_devices: Vec<String> = named("hostdev").map(host_device).collect();
    host_devices.extend(named("interface").filter_map(host_interface));
    host_devices.extend(named("tpm").filter_map(host_tpm));
    Ok(VmFacts {
        vcpus: text("vcpu").and_then(|count| count.parse().ok()).unwrap_or(1),
        memory: child(domain, "memory").and_then(memory).unwrap_or_default(),
        memory_now: child(domain, "currentMemory").and_then(memory),
        huge_page: child(domain, "memoryBacking").and_then(|backing| child(backing, "hugepages")).map(huge_page),
        host_devices,
        tpm: named("tpm").any(|tpm| host_tpm(tpm).is_none()),
        networks: named("interface").filter_map(network).collect(),
        machine: child(domain, "os").and_then(|os| child(os, "type")?.attribute("machine")).map(str::to_owned),
        emulated: domain.attribute("type") == Some("qemu"),
        ..VmFacts::new(id, name, files)
    })
}

/// The target of a disk's running copy, and whether the copy has caught up; `None` if the disk is not being copied.
pub fn mirror(xml: &str, device: &str) -> Option<(PathBuf, bool)> {
    let document = Document::parse(xml).ok()?;
    let is_it = |node: &Node<'_, '_>| {
        node.has_tag_name("disk")
            && child(*node, "target").is_some_and(|target| target.attribute("dev") == Some(device))
    };
    let mirror = child(document.descendants().find(is_it)?, "mirror")?;
    let file = child(mirror, "source").and_then(|source| source.attribute("file")).or(mirror.attribute("file"))?;
    Some((file.into(), mirror.attribute("ready") == Some("yes")))
}

fn disk(node: Node<'_, '_>) -> Option<VmFile<PathBuf>> {
    let device = node.attribute("device").unwrap_or("disk");
    // An empty drive has none.
    let source = child(node, "source")?;
    let driver = child(node, "driver");
    let setting = |name: &str| driver.and_then(|driver| driver.attribute(name));
    let is_file = node.attribute("type").unwrap_or("file") == "file";
    let drive = Drive::of(device);
    let kind = match (is_file, drive) {
        (true, _) => None,
        (false, Some(drive)) => Some(NotAFile::Medium(drive, kind_of(node, source))),
        (false, None) => Some(kind_of(node, source).into()),
    };
    let role = match (is_file, drive) {
        (false, _) => FileRole::NotAFile,
        (true, Some(_)) => FileRole::Media,
        (true, None) => FileRole::Disk,
    };
    let name = child(node, "target").and_then(|target| target.attribute("dev")).unwrap_or("disk");
    let place = if is_file { source.attribute("file")?.into() } else { name_of(source) };
    Some(VmFile {
        read_only: drive.is_some() || child(node, "readonly").is_some(),
        shareable: child(node, "shareable").is_some(),
        has_backing: child(node, "backingStore").is_some_and(|backing| child(backing, "source").is_some()),
        // Without a read policy, QEMU treats reads like writes.
        stops_on_error: setting("error_policy") == Some("stop")
            && setting("rerror_policy").is_none_or(|policy| policy == "stop"),
        format: setting("type").and_then(format),
        unmaps: setting("discard") == Some("unmap"),
        detects_zeroes: setting("detect_zeroes").is_some_and(|how| matches!(how, "on" | "unmap")),
        bypasses_cache: setting("cache").is_some_and(|mode| matches!(mode, "none" | "directsync")),
        below: below(node, source),
        features: features(node, source),
        kind,
        ..VmFile::new(role, name, place)
    })
}

/// The type of a disk that is not a file, with the protocol of a network disk.
fn kind_of(disk: Node<'_, '_>, source: Node<'_, '_>) -> String {
    match (disk.attribute("type").unwrap_or_default(), source.attribute("protocol")) {
        ("network", Some(protocol)) => format!("network {protocol}"),
        (kind, _) => kind.to_owned(),
    }
}

/// The name of a source that is not a file.
fn name_of(source: Node<'_, '_>) -> PathBuf {
    if let (Some(pool), Some(volume)) = (source.attribute("pool"), source.attribute("volume")) {
        return Path::new(pool).join(volume);
    }
    let host = child(source, "host");
    let own = ["dev", "name", "dir", "path", "file"].iter().find_map(|name| source.attribute(*name));
    let of_host = || host.and_then(|host| host.attribute("name").or(host.attribute("socket")));
    let address = || child(source, "address").map(|address| address.attributes().map(|part| part.value()).collect());
    let address = || address().map(|parts: Vec<&str>| parts.join(":"));
    own.or_else(of_host).map(str::to_owned).or_else(address).unwrap_or_else(|| "unknown".to_owned()).into()
}

/// Files that a disk needs besides its source: its backing chain, data files, and the target of a running copy.
fn below(disk: Node<'_, '_>, source: Node<'_, '_>) -> Vec<PathBuf> {
    let named = |node: Node<'_, '_>| {
        let in_mirror = node.ancestors().any(|ancestor| ancestor.has_tag_name("mirror"));
        let name = match node.tag_name().name() {
            "source" if node != source => {
                // The target of a copy to another host is a socket.
                let name = if in_mirror { None } else { node.attribute("name") };
                node.attribute("file").or(node.attribute("dev")).or(name)
            }
            "mirror" => node.attribute("file"),
            _ => None,
        };
        name.map(PathBuf::from)
    };
    let mut found: Vec<PathBuf> = Vec::new();
    for path in disk.descendants().filter_map(named) {
        if !found.contains(&path) {
            found.push(path);
        }
    }
    found
}

fn features(disk: Node<'_, '_>, source: Node<'_, '_>) -> Vec<DiskFeature> {
    let mut found = Vec::new();
    let mut note = |is_so: bool, feature| {
        if is_so {
            found.push(feature);
        }
    };
    // Earlier definitions have it in the disk, later ones in its source or in one below.
    note(disk.descendants().any(|node| node.has_tag_name("encryption")), DiskFeature::Encrypted);
    note(child(disk, "transient").is_some(), DiskFeature::Transient);
    note(child(disk, "mirror").is_some(), DiskFeature::Copied);
    note(child(source, "slices").is_some(), DiskFeature::Sliced);
    note(child(source, "dataStore").or(child(disk, "dataStore")).is_some(), DiskFeature::DataFile);
    found
}

fn boot_file(node: Node<'_, '_>) -> Option<VmFile<PathBuf>> {
    let role = boot_role(node)?;
    let source = child(node, "source");
    let kind = node.attribute("type").filter(|kind| *kind != "file");
    let long_form = || source.and_then(|source| source.attribute("file"));
    let place = match (kind, source) {
        (Some(_), Some(source)) => name_of(source),
        _ => own_text(node).and_then(|text| text.text()).or_else(long_form)?.trim().into(),
    };
    let kind = kind.and_then(|_| source.map(|source| kind_of(node, source).into()));
    let seen = if kind.is_some() { FileRole::NotAFile } else { role };
    Some(VmFile {
        kind,
        read_only: role == FileRole::Boot,
        format: node.attribute("format").and_then(format),
        ..VmFile::new(seen, node.tag_name().name(), place)
    })
}

/// A folder of the host that the guest sees.
fn filesystem(node: Node<'_, '_>) -> VmFile<PathBuf> {
    let driver = child(node, "driver").and_then(|driver| driver.attribute("type")).unwrap_or("9p");
    let target = child(node, "target").and_then(|target| target.attribute("dir"));
    let place = child(node, "source").map_or_else(PathBuf::new, name_of);
    no_file(target.unwrap_or("filesystem"), place, NotAFile::Filesystem(driver.to_owned()))
}

/// Guest memory that is stored in a file.
fn memory_file(node: Node<'_, '_>) -> Option<VmFile<PathBuf>> {
    let path = child(child(node, "source")?, "path")?.text()?.trim().into();
    Some(no_file("nvdimm", path, NotAFile::Nvdimm))
}

/// A device that is neither a file nor a disk.
fn no_file(device: &str, place: PathBuf, kind: NotAFile) -> VmFile<PathBuf> {
    VmFile { kind: Some(kind), ..VmFile::new(FileRole::NotAFile, device, place) }
}

fn format(name: &str) -> Option<DiskFormat> {
    [DiskFormat::Raw, DiskFormat::Qcow2].into_iter().find(|format| format.name() == name)
}

fn memory(node: Node<'_, '_>) -> Option<ByteCount> {
    scaled(node.text()?.trim(), node.attribute("unit"))
}

fn scaled(count: &str, unit: Option<&str>) -> Option<ByteCount> {
    let count: u64 = count.parse().ok()?;
    // Units according to libvirt's documentation of "scaled integers".
    let scale: u64 = match unit.unwrap_or("KiB") {
        "b" | "bytes" => 1,
        "KB" => 1000,
        "k" | "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "M" | "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "G" | "GiB" => 1 << 30,
        "T" | "TiB" => 1 << 40,
        _ => return None,
    };
    count.checked_mul(scale).map(ByteCount)
}

/// The size of a VM's huge pages; zero: the host's default size.
fn huge_page(node: Node<'_, '_>) -> ByteCount {
    let page = child(node, "page");
    let size = page.and_then(|page| scaled(page.attribute("size")?, page.attribute("unit")));
    size.unwrap_or_default()
}

fn host_device(node: Node<'_, '_>) -> String {
    let kind = node.attribute("type").unwrap_or("device");
    let address = child(node, "source").and_then(|source| child(source, "address"));
    let parts: Vec<&str> =
        address.map(|address| address.attributes().map(|part| part.value()).collect()).unwrap_or_default();
    format!("{kind} {}", parts.join(":"))
}

/// An interface that is a host device.
fn host_interface(node: Node<'_, '_>) -> Option<String> {
    let kind = node.attribute("type").filter(|kind| matches!(*kind, "hostdev" | "vdpa" | "vhostuser"))?;
    let source = child(node, "source").map(|source| name_of(source).display().to_string());
    Some(format!("interface {kind} {}", source.unwrap_or_default()))
}

/// A TPM that is not emulated.
fn host_tpm(node: Node<'_, '_>) -> Option<String> {
    let backend = child(node, "backend")?;
    let kind = backend.attribute("type").filter(|kind| *kind != "emulator")?;
    let device = child(backend, "device").and_then(|device| device.attribute("path"));
    Some(format!("tpm {}", device.unwrap_or(kind)))
}

fn network(node: Node<'_, '_>) -> Option<String> {
    let source = child(node, "source")?;
    // For a running network, libvirt also names its bridge.
    ["network", "bridge", "dev"].iter().find_map(|name| source.attribute(*name)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::xml::fixtures::{XML, vm};

    #[test]
    fn every_file_of_a_definition_is_found_with_its_role() {
        let facts = parse(XML).expect("parsed");
        assert_eq!((facts.id, facts.name.as_str(), facts.vcpus), (vm(), "web01", 2));
        assert_eq!(facts.memory, ByteCount::mib(512));
        let files: Vec<_> = facts
            .files
            .iter()
            .map(|file| (file.role, file.device.as_str(), file.place.to_str().expect("UTF-8")))
            .collect();
        assert_eq!(
            files,
            [
                (FileRole::Disk, "vda", "/srv/ferry/vms/web01/a&b.raw"),
                (FileRole::Media, "sda", "/iso/d.iso"),
                (FileRole::NotAFile, "vdb", "/dev/sdq"),
                (FileRole::Boot, "kernel", "/srv/ferry/vms/vmlinuz"),
                (FileRole::Nvram, "nvram", "/srv/ferry/vms/web01/vars.fd"),
            ]
        );
        assert!(facts.files[0].stops_on_error && !facts.files[2].stops_on_error && facts.files[2].shareable);
        assert!(facts.tpm && facts.networks == ["br0"] && facts.host_devices == ["pci 0x0000:0x01"]);
    }

    /// The only disk of a definition with this `<disk>`; its target is `vda`.
    fn one(disk: &str) -> VmFile<PathBuf> {
        let xml = format!(
            "<domain><name>a</name><uuid>{}</uuid><devices>{}</devices></domain>",
            vm(),
            disk.replace("</disk>", "<target dev='vda'/></disk>")
        );
        let mut files = parse(&xml).expect("parsed").files;
        assert_eq!(files.len(), 1, "{disk}");
        files.remove(0)
    }

    #[test]
    fn what_is_no_file_is_told_with_its_kind_and_name() {
        for (disk, kind, place, medium) in [
            ("<disk type='block'><source dev='/dev/sdq'/></disk>", "block", "/dev/sdq", false),
            (
                "<disk type='network'><source protocol='rbd' name='pool/img'><host name='mon'/></source></disk>",
                "network rbd",
                "pool/img",
                false,
            ),
            (
                "<disk type='network'><source protocol='iscsi' name='iqn.x/1'/></disk>",
                "network iscsi",
                "iqn.x/1",
                false,
            ),
            (
                "<disk type='network'><source protocol='nbd'><host name='h' port='1'/></source></disk>",
                "network nbd",
                "h",
                false,
            ),
            (
                "<disk type='network'><source protocol='nbd'><host transport='unix' socket='/s'/></source></disk>",
                "network nbd",
                "/s",
                false,
            ),
            ("<disk type='volume'><source pool='p' volume='v'/></disk>", "volume", "p/v", false),
            ("<disk type='dir'><source dir='/d'/></disk>", "dir", "/d", false),
            (
                "<disk type='nvme'><source type='pci'><address domain='0x0000' bus='0x01'/></source></disk>",
                "nvme",
                "0x0000:0x01",
                false,
            ),
            ("<disk type='vhostuser'><source type='unix' path='/sock'/></disk>", "vhostuser", "/sock", false),
            ("<disk type='block' device='cdrom'><source dev='/dev/sr0'/></disk>", "cdrom block", "/dev/sr0", true),
            (
                "<disk type='network' device='cdrom'><source protocol='https' name='d.iso'/></disk>",
                "cdrom network https",
                "d.iso",
                true,
            ),
        ] {
            let file = one(disk);
            assert_eq!((file.role, file.kind), (FileRole::NotAFile, Some(kind.to_owned().into())), "{disk}");
            let file = one(disk);
            assert_eq!((file.place, file.device.as_str()), (PathBuf::from(place), "vda"), "{disk}");
            let file = one(disk);
            assert_eq!(file.is_medium(), medium, "{disk}");
        }
        let floppy = one("<disk type='file' device='floppy'><source file='/f.img'/></disk>");
        assert_eq!((floppy.role, floppy.read_only, floppy.kind), (FileRole::Media, true, None));
    }

    #[test]
    fn how_a_disk_is_cached_and_the_machine_type_are_read() {
        for (driver, bypasses) in [
            ("<driver name='qemu' cache='none'/>", true),
            ("<driver name='qemu' cache='directsync'/>", true),
            ("<driver name='qemu' cache='writeback'/>", false),
            ("<driver name='qemu'/>", false),
            ("", false),
        ] {
            let file = one(&format!("<disk type='file'>{driver}<source file='/a'/></disk>"));
            assert_eq!(file.bypasses_cache, bypasses, "{driver}");
        }
        assert_eq!(parse(XML).expect("parsed").machine, None);
        let named = XML.replace("<type>hvm", "<type arch='x86_64' machine='pc-q35-10.0'>hvm");
        assert_eq!(parse(&named).expect("parsed").machine.as_deref(), Some("pc-q35-10.0"));
        assert!(parse(XML).expect("parsed").emulated);
        assert!(!parse(&XML.replace("<domain type='qemu'", "<domain type='kvm'")).expect("parsed").emulated);
    }

    #[test]
    fn what_a_copy_would_not_keep_is_seen() {
        for (inside, expected) in [
            (
                "<source file='/a'><encryption format='luks'><secret type='passphrase' uuid='x'/></encryption></source>",
                DiskFeature::Encrypted,
            ),
            ("<source file='/a'/><encryption format='luks'/>", DiskFeature::Encrypted),
            ("<source file='/a'/><transient/>", DiskFeature::Transient),
            (
                "<source file='/a'/><mirror type='network' job='copy'><source protocol='nbd' name='n'/></mirror>",
                DiskFeature::Copied,
            ),
            (
                "<source file='/a'><slices><slice type='storage' offset='0' size='1'/></slices></source>",
                DiskFeature::Sliced,
            ),
            (
                "<source file='/a'><dataStore type='file'><source file='/d'/></dataStore></source>",
                DiskFeature::DataFile,
            ),
        ] {
            let file = one(&format!("<disk type='file'>{inside}</disk>"));
            assert_eq!((file.role, file.features), (FileRole::Disk, vec![expected]), "{inside}");
        }
    }

    #[test]
    fn everything_that_a_disk_needs_is_seen() {
        let chain = "<backingStore type='file'><format type='qcow2'/><source file='/b'/>\
                     <backingStore type='block'><source dev='/dev/c'/><backingStore/></backingStore></backingStore>";
        for (inside, below) in [
            ("<source file='/a'/><backingStore/>".to_owned(), vec![]),
            (format!("<source file='/a'/>{chain}"), vec!["/b", "/dev/c"]),
            ("<source file='/a'><dataStore type='file'><source file='/d'/></dataStore></source>".into(), vec!["/d"]),
            ("<source file='/a'/><mirror type='file'><source file='/m'/></mirror>".into(), vec!["/m"]),
            ("<source file='/a'/><mirror type='file' file='/m'><source file='/m'/></mirror>".into(), vec!["/m"]),
            ("<source file='/a'/><mirror type='network'><source protocol='nbd' name='n'/></mirror>".into(), vec![]),
        ] {
            let file = one(&format!("<disk type='file'>{inside}</disk>"));
            assert_eq!(file.below, below.into_iter().map(PathBuf::from).collect::<Vec<_>>(), "{inside}");
        }
    }

    #[test]
    fn an_error_that_a_read_shows_to_the_guest_counts_as_one() {
        for (policies, stops) in [
            ("error_policy='stop'", true),
            ("error_policy='stop' rerror_policy='stop'", true),
            ("error_policy='stop' rerror_policy='report'", false),
            ("error_policy='report'", false),
            ("rerror_policy='stop'", false),
        ] {
            let file = one(&format!("<disk type='file'><driver name='qemu' {policies}/><source file='/a'/></disk>"));
            assert_eq!(file.stops_on_error, stops, "{policies}");
        }
    }

    #[test]
    fn what_guests_get_of_their_host_besides_disks_is_seen() {
        let devices = "<filesystem type='mount'><driver type='virtiofs'/><source dir='/home'/><target dir='share'/></filesystem>\
                       <memory model='nvdimm'><source><path>/pmem</path></source></memory><memory model='dimm'/>\
                       <interface type='vdpa'><source dev='/dev/vhost-vdpa-0'/></interface>\
                       <interface type='hostdev'><source><address type='pci' bus='0x02'/></source></interface>\
                       <interface type='bridge'><source bridge='br0'/></interface>\
                       <interface type='network'><source network='lan' portid='p' bridge='br1'/></interface>\
                       <tpm model='tpm-tis'><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>";
        let nvram = "<os><nvram type='block'><source dev='/dev/vars'/></nvram></os>";
        let xml = format!("<domain><name>a</name><uuid>{}</uuid>{nvram}<devices>{devices}</devices></domain>", vm());
        let facts = parse(&xml).expect("parsed");
        let files: Vec<_> = facts
            .files
            .iter()
            .map(|file| {
                (file.role, file.device.as_str(), file.kind.as_ref().expect("told").to_string(), file.place.to_str())
            })
            .collect();
        assert_eq!(
            files,
            [
                (FileRole::NotAFile, "nvram", "block".to_owned(), Some("/dev/vars")),
                (FileRole::NotAFile, "share", "filesystem virtiofs".to_owned(), Some("/home")),
                (FileRole::NotAFile, "nvdimm", "nvdimm".to_owned(), Some("/pmem")),
            ]
        );
        assert_eq!(
            facts.host_devices,
            ["interface vdpa /dev/vhost-vdpa-0", "interface hostdev pci:0x02", "tpm /dev/tpm0"]
        );
        assert!(!facts.tpm && ["br0", "lan"].iter().all(|name| facts.networks.contains(&(*name).to_owned())));
    }

    #[test]
    fn a_copy_of_a_disk_is_found_with_its_state() {
        let copied =
            |mirror: &str| XML.replace("<target dev='vda' bus='virtio'/>", &format!("{mirror}<target dev='vda'/>"));
        assert_eq!(mirror(XML, "vda"), None);
        let copying = copied("<mirror type='file' job='copy'><format type='raw'/><source file='/new/a.raw'/></mirror>");
        assert_eq!(mirror(&copying, "vda"), Some(("/new/a.raw".into(), false)));
        assert_eq!(mirror(&copying, "vdb"), None);
        let ready = copied("<mirror type='file' ready='yes'><source file='/new/a&amp;b.raw'/></mirror>");
        assert_eq!(mirror(&ready, "vda"), Some(("/new/a&b.raw".into(), true)));
        // During the pivot the copy is not reported as ready any more, and has not ended either.
        let switching = copied("<mirror type='file' ready='pivot'><source file='/new/a.raw'/></mirror>");
        assert_eq!(mirror(&switching, "vda"), Some(("/new/a.raw".into(), false)));
    }
}
