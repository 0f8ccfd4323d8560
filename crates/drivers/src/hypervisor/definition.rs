//! Reading and editing libvirt's XML. Edits are splices into the text: what is not understood stays as it is.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use ferry_core::{
    id::VmId,
    units::ByteCount,
    vm::{DiskFormat, FileRole, VmFacts, VmFile, VmState},
};
use roxmltree::{Document, Node};
use uuid::Uuid;

use crate::hypervisor::{DiskAlong, HypervisorError, translated};

/// The host's UUID in libvirt's capabilities.
pub(super) fn host_uuid(capabilities: &str) -> Option<String> {
    let document = Document::parse(capabilities).ok()?;
    let host = child(document.root_element(), "host")?;
    child(host, "uuid")?.text().map(str::to_owned)
}

/// User and group ids that QEMU runs as by default, in libvirt's capabilities: `<baselabel type='qemu'>+64055:+104`.
pub(super) fn process_owner(capabilities: &str) -> Option<(u32, u32)> {
    let document = Document::parse(capabilities).ok()?;
    let host = child(document.root_element(), "host")?;
    let dac =
        children(host, "secmodel").find(|model| child(*model, "model").and_then(|name| name.text()) == Some("dac"))?;
    let (user, group) = child(dac, "baselabel")?.text()?.trim().split_once(':')?;
    let number = |text: &str| text.trim_start_matches('+').parse().ok();
    Some((number(user)?, number(group)?))
}

/// The facts that a definition holds. State, persistence, autostart and snapshots are not in it.
pub(super) fn parse(xml: &str) -> Result<VmFacts<PathBuf>, HypervisorError> {
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
    Ok(VmFacts {
        id,
        name: name.to_owned(),
        state: VmState::ShutOff,
        persistent: false,
        autostart: false,
        vcpus: text("vcpu").and_then(|count| count.parse().ok()).unwrap_or(1),
        memory: child(domain, "memory").and_then(memory).unwrap_or_default(),
        files,
        snapshots: 0,
        host_devices: named("hostdev").map(host_device).collect(),
        tpm: named("tpm").next().is_some(),
        networks: named("interface").filter_map(network).collect(),
    })
}

/// Where a disk is being copied to, and whether the copy has caught up; `None` if it is not being copied.
pub(super) fn mirror(xml: &str, device: &str) -> Option<(PathBuf, bool)> {
    let document = Document::parse(xml).ok()?;
    let is_it = |node: &Node<'_, '_>| {
        node.has_tag_name("disk")
            && child(*node, "target").is_some_and(|target| target.attribute("dev") == Some(device))
    };
    let mirror = child(document.descendants().find(is_it)?, "mirror")?;
    let file = child(mirror, "source").and_then(|source| source.attribute("file")).or(mirror.attribute("file"))?;
    Some((file.into(), mirror.attribute("ready") == Some("yes")))
}

/// What a disk is to be copied to, as libvirt takes it.
pub(super) fn copy_target(to: &Path, format: DiskFormat) -> Option<String> {
    let (path, format) = (escaped(to.to_str()?), format.name());
    Some(format!("<disk type='file'><source file='{path}'/><driver name='qemu' type='{format}'/></disk>"))
}

/// Whether what is written takes effect on a disk that moves along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// The definition by which the VM runs. QEMU gives back what is not used while the disk is copied, whatever is kept.
    Live,
    /// The definition that is kept: what the administrator said stays.
    Kept,
}

/// The definition with every file's path rewritten by `folders`, and disks that move along by what they become.
///
/// # Errors
/// [`HypervisorError::Definition`] naming the first file that lies in none of them.
pub(super) fn translate(
    xml: &str,
    vm: VmId,
    folders: &[(PathBuf, PathBuf)],
    along: &[DiskAlong],
    form: Form,
) -> Result<String, HypervisorError> {
    let bad = |reason: String| HypervisorError::Definition { vm, reason };
    let document = Document::parse(xml).map_err(|error| bad(error.to_string()))?;
    let mut edits: Vec<(Range<usize>, String)> = Vec::new();
    for node in document.descendants() {
        if let Some((disk, to)) = disk_along(node, along) {
            if node == disk {
                edits.extend(moved_along(disk, to, form).ok_or_else(|| bad(format!("disk {} is odd", to.device)))?);
            }
            continue;
        }
        let found = if node.has_tag_name("source") && is_disk_source(node) {
            node.attribute_node("file").map(|file| (file.range_value(), file.value()))
        } else if boot_role(node).is_some() {
            own_text(node).map(|text| (text.range(), text.text().unwrap_or_default()))
        } else {
            None
        };
        if let Some((range, path)) = found {
            let there = translated(path.trim().as_ref(), folders)
                .ok_or_else(|| bad(format!("its file {path} does not lie on a share that both hosts reach")))?;
            let there = there.to_str().ok_or_else(|| bad(format!("the path of its file {path} is not UTF-8")))?;
            edits.push((range, escaped(there)));
        }
    }
    let mut edited = xml.to_owned();
    edits.sort_by_key(|(range, _)| range.start);
    for (range, text) in edits.into_iter().rev() {
        edited.replace_range(range, &text);
    }
    Ok(edited)
}

/// The disk that moves along which an element is, or is a part of.
fn disk_along<'a, 'input, 'd>(
    node: Node<'a, 'input>,
    along: &'d [DiskAlong],
) -> Option<(Node<'a, 'input>, &'d DiskAlong)> {
    let disk = node.ancestors().find(|ancestor| ancestor.has_tag_name("disk"))?;
    let device = child(disk, "target")?.attribute("dev")?;
    Some((disk, along.iter().find(|along| along.device == device)?))
}

/// Edits that give a disk its new file, without what was below the old one.
fn moved_along(disk: Node<'_, '_>, to: &DiskAlong, form: Form) -> Option<Vec<(Range<usize>, String)>> {
    let source = child(disk, "source")?;
    let mut edits = vec![(source.attribute_node("file")?.range_value(), escaped(to.path.to_str()?))];
    let (format, unmap) = (to.format.name(), if form == Form::Live { " discard='unmap'" } else { "" });
    match child(disk, "driver") {
        Some(driver) => {
            let kind = driver.attribute_node("type")?;
            edits.push((kind.range_value(), format.to_owned()));
            match driver.attribute_node("discard") {
                Some(discard) if form == Form::Live => edits.push((discard.range_value(), "unmap".to_owned())),
                Some(_) => {}
                None => edits.push((kind.range().end..kind.range().end, unmap.to_owned())),
            }
        }
        None => {
            let here = source.range().start;
            edits.push((here..here, format!("<driver name='qemu' type='{format}'{unmap}/>")));
        }
    }
    edits.extend(children(disk, "backingStore").map(|below| (below.range(), "<backingStore/>".to_owned())));
    Some(edits)
}

/// The source of a disk, of a file in its backing chain or mirror, or of UEFI variables in the long form.
fn is_disk_source(node: Node<'_, '_>) -> bool {
    node.parent().is_some_and(|parent| {
        ["disk", "backingStore", "mirror", "dataStore", "nvram"].iter().any(|tag| parent.has_tag_name(*tag))
    })
}

/// What an element below `os` names: the file is its text.
fn boot_role(node: Node<'_, '_>) -> Option<FileRole> {
    let parent = node.parent()?;
    if !parent.has_tag_name("os") || !node.is_element() {
        return None;
    }
    match node.tag_name().name() {
        "nvram" => Some(FileRole::Nvram),
        "kernel" | "initrd" | "dtb" => Some(FileRole::Boot),
        _ => None,
    }
}

/// The text of an element that has any besides space.
fn own_text<'a, 'input>(node: Node<'a, 'input>) -> Option<Node<'a, 'input>> {
    node.children().find(|child| child.text().is_some_and(|text| child.is_text() && !text.trim().is_empty()))
}

fn disk(node: Node<'_, '_>) -> Option<VmFile<PathBuf>> {
    let kind = node.attribute("device").unwrap_or("disk");
    let source = child(node, "source");
    let driver = child(node, "driver");
    let is_file = node.attribute("type") == Some("file");
    let media = matches!(kind, "cdrom" | "floppy");
    let place = match (source, is_file) {
        (Some(source), true) => source.attribute("file")?.into(),
        (Some(source), false) => {
            let name = ["dev", "name", "volume", "dir"].iter().find_map(|name| source.attribute(*name));
            PathBuf::from(name.unwrap_or("unknown"))
        }
        // An empty drive.
        (None, _) => return None,
    };
    Some(VmFile {
        role: match (is_file, media) {
            (false, _) => FileRole::NotAFile,
            (true, true) => FileRole::Media,
            (true, false) => FileRole::Disk,
        },
        device: child(node, "target").and_then(|target| target.attribute("dev")).unwrap_or("disk").to_owned(),
        place,
        read_only: media || child(node, "readonly").is_some(),
        shareable: child(node, "shareable").is_some(),
        has_backing: child(node, "backingStore").is_some_and(|backing| child(backing, "source").is_some()),
        stops_on_error: driver.and_then(|driver| driver.attribute("error_policy")) == Some("stop"),
        format: driver.and_then(|driver| driver.attribute("type")).and_then(format),
        unmaps: driver.and_then(|driver| driver.attribute("discard")) == Some("unmap"),
        detects_zeroes: driver
            .and_then(|driver| driver.attribute("detect_zeroes"))
            .is_some_and(|how| matches!(how, "on" | "unmap")),
    })
}

fn boot_file(node: Node<'_, '_>) -> Option<VmFile<PathBuf>> {
    let role = boot_role(node)?;
    let long_form = child(node, "source").and_then(|source| source.attribute("file"));
    let path = own_text(node).and_then(|text| text.text()).or(long_form)?;
    Some(VmFile {
        role,
        device: node.tag_name().name().to_owned(),
        place: path.trim().into(),
        read_only: role == FileRole::Boot,
        shareable: false,
        has_backing: false,
        stops_on_error: true,
        format: None,
        unmaps: false,
        detects_zeroes: false,
    })
}

fn format(name: &str) -> Option<DiskFormat> {
    [DiskFormat::Raw, DiskFormat::Qcow2].into_iter().find(|format| format.name() == name)
}

fn memory(node: Node<'_, '_>) -> Option<ByteCount> {
    let count: u64 = node.text()?.trim().parse().ok()?;
    // Units as libvirt's documentation of "scaled integers" has them.
    let scale: u64 = match node.attribute("unit").unwrap_or("KiB") {
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

fn host_device(node: Node<'_, '_>) -> String {
    let kind = node.attribute("type").unwrap_or("device");
    let address = child(node, "source").and_then(|source| child(source, "address"));
    let parts: Vec<&str> =
        address.map(|address| address.attributes().map(|part| part.value()).collect()).unwrap_or_default();
    format!("{kind} {}", parts.join(":"))
}

fn network(node: Node<'_, '_>) -> Option<String> {
    let source = child(node, "source")?;
    ["bridge", "network", "dev"].iter().find_map(|name| source.attribute(*name)).map(str::to_owned)
}

fn child<'a, 'input>(node: Node<'a, 'input>, tag: &'static str) -> Option<Node<'a, 'input>> {
    children(node, tag).next()
}

fn children<'a, 'input: 'a>(node: Node<'a, 'input>, tag: &'static str) -> impl Iterator<Item = Node<'a, 'input>> {
    node.children().filter(move |child| child.has_tag_name(tag))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('\'', "&apos;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const XML: &str = r#"<domain type='qemu' id='3' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web01</name><uuid>0d7a4d0e-4f57-4f3e-9a80-0c6a4b6ad001</uuid>
  <metadata><x:odd xmlns:x='urn:x' keep='this'/></metadata>
  <memory unit='KiB'>524288</memory><vcpu placement='static'>2</vcpu>
  <os><type>hvm</type><kernel>/srv/ferry/vms/vmlinuz</kernel><nvram template='/usr/share/OVMF/VARS.fd'>/srv/ferry/vms/web01/vars.fd</nvram></os>
  <devices>
    <disk type='file' device='disk'><driver name='qemu' type='raw' cache='none' error_policy='stop'/>
      <source file='/srv/ferry/vms/web01/a&amp;b.raw' index='1'/><target dev='vda' bus='virtio'/></disk>
    <disk type='file' device='cdrom'><source file='/iso/d.iso'/><target dev='sda'/><readonly/></disk>
    <disk type='file' device='cdrom'><target dev='sdb'/><readonly/></disk>
    <disk type='block' device='disk'><source dev='/dev/sdq'/><target dev='vdb'/><shareable/></disk>
    <interface type='bridge'><source bridge='br0'/></interface>
    <hostdev mode='subsystem' type='pci'><source><address domain='0x0000' bus='0x01'/></source></hostdev>
    <tpm model='tpm-crb'><backend type='emulator'/></tpm>
    <serial type='file'><source path='/var/log/serial.log'/></serial>
  </devices></domain>"#;

    fn vm() -> VmId {
        "0d7a4d0e-4f57-4f3e-9a80-0c6a4b6ad001".parse().expect("a UUID")
    }

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
        // While it switches over the copy has not caught up with anything more, and has not ended either.
        let switching = copied("<mirror type='file' ready='pivot'><source file='/new/a.raw'/></mirror>");
        assert_eq!(mirror(&switching, "vda"), Some(("/new/a.raw".into(), false)));
    }

    #[test]
    fn translation_rewrites_file_paths_and_nothing_else() {
        let folders = [("/srv/ferry/vms".into(), "/mnt/other".into()), ("/iso".into(), "/iso2".into())];
        let edited = translate(XML, vm(), &folders, &[], Form::Live).expect("all known");
        let expected = XML
            .replace("/srv/ferry/vms/web01/vars.fd", "/mnt/other/web01/vars.fd")
            .replace("/srv/ferry/vms/vmlinuz", "/mnt/other/vmlinuz")
            .replace("/srv/ferry/vms/web01/a&amp;b.raw", "/mnt/other/web01/a&amp;b.raw")
            .replace("/iso/d.iso", "/iso2/d.iso");
        assert_eq!(edited, expected);
    }

    #[test]
    fn a_disk_that_moves_along_gets_its_new_file_and_loses_its_chain() {
        let folders = [("/srv/ferry/vms".into(), "/mnt/other".into()), ("/iso".into(), "/iso".into())];
        let along = |device: &str| {
            [DiskAlong { device: device.into(), path: "/local/n'w.qcow2".into(), format: DiskFormat::Qcow2 }]
        };
        let chain = "<backingStore type='file'><format type='raw'/><source file='/nowhere/base.raw'/><backingStore/></backingStore>";
        let overlay =
            XML.replace("<target dev='vda' bus='virtio'/>", &format!("{chain}<target dev='vda' bus='virtio'/>"));
        let moved = |xml: &str, form| translate(xml, vm(), &folders, &along("vda"), form);
        let live = moved(&overlay, Form::Live).expect("what is below the disk is of no matter");
        let facts = parse(&live).expect("parsed");
        let disk = &facts.files[0];
        assert_eq!(disk.place, PathBuf::from("/local/n'w.qcow2"));
        assert_eq!((disk.format, disk.unmaps, disk.stops_on_error), (Some(DiskFormat::Qcow2), true, true));
        assert!(!disk.has_backing && !live.contains("base.raw"), "{live}");
        let kept = parse(&moved(&overlay, Form::Kept).expect("edited")).expect("parsed");
        assert_eq!((kept.files[0].format, kept.files[0].unmaps), (Some(DiskFormat::Qcow2), false));
        // The others are translated as ever.
        assert_eq!(facts.files[4].place, PathBuf::from("/mnt/other/web01/vars.fd"));
        let set = XML.replace(" cache='none'", " discard='ignore' cache='none'");
        assert!(parse(&moved(&set, Form::Live).expect("edited")).expect("parsed").files[0].unmaps);
        assert!(!parse(&moved(&set, Form::Kept).expect("edited")).expect("parsed").files[0].unmaps);
        let bare = XML.replace("<driver name='qemu' type='raw' cache='none' error_policy='stop'/>", "");
        let bare = parse(&moved(&bare, Form::Live).expect("edited")).expect("parsed");
        assert_eq!((bare.files[0].format, bare.files[0].unmaps), (Some(DiskFormat::Qcow2), true));
        // What is no file cannot move along.
        assert!(translate(XML, vm(), &folders, &along("vdb"), Form::Live).is_err());
    }

    #[test]
    fn uefi_variables_in_the_long_form_are_read_and_translated() {
        let long = "<nvram type='file'>\n <source file='/srv/ferry/vms/web01/vars.fd'/>\n</nvram>";
        let start = XML.find("<nvram").expect("there");
        let end = XML.find("</nvram>").expect("there") + "</nvram>".len();
        let xml = [&XML[..start], long, &XML[end..]].concat();
        let facts = parse(&xml).expect("parsed");
        let file = facts.files.iter().find(|file| file.role == FileRole::Nvram).expect("found");
        assert_eq!(file.place, Path::new("/srv/ferry/vms/web01/vars.fd"));
        let edited = translate(&xml, vm(), &[("/".into(), "/new".into())], &[], Form::Live).expect("all known");
        assert!(edited.contains("<source file='/new/srv/ferry/vms/web01/vars.fd'/>"), "{edited}");
    }

    #[test]
    fn a_file_outside_every_folder_is_named() {
        let error = translate(XML, vm(), &[("/srv/ferry/vms".into(), "/x".into())], &[], Form::Live)
            .expect_err("the ISO is local");
        assert!(error.to_string().contains("/iso/d.iso"), "{error}");
        // A folder's name is not a prefix of a longer one.
        let error = translate(XML, vm(), &[("/srv/ferry/vm".into(), "/x".into())], &[], Form::Live)
            .expect_err("another folder");
        assert!(error.to_string().contains("vms/vmlinuz"), "{error}");
    }

    proptest! {
        #[test]
        fn a_translation_to_the_same_place_changes_nothing_but_the_form_of_escapes(name in "[a-z&<'\"]{1,12}") {
            let xml = XML.replace("a&amp;b", &escaped(&name));
            let same = [(PathBuf::from("/"), PathBuf::from("/"))];
            let edited = translate(&xml, vm(), &same, &[], Form::Live).expect("all below the root");
            prop_assert_eq!(&edited, &xml);
            let facts = parse(&edited).expect("parsed");
            let expected = format!("/srv/ferry/vms/web01/{name}.raw");
            prop_assert_eq!(facts.files[0].place.as_path(), Path::new(&expected));
        }

        #[test]
        fn no_text_panics_the_parser(text: String) {
            let _ = parse(&text);
            let _ = translate(&text, vm(), &[], &[], Form::Live);
        }
    }

    #[test]
    fn the_host_uuid_is_read_from_capabilities() {
        let xml = "<capabilities><host><uuid>abc</uuid></host><guest/></capabilities>";
        assert_eq!(host_uuid(xml).as_deref(), Some("abc"));
        assert_eq!(host_uuid("<capabilities/>"), None);
    }

    #[test]
    fn the_owner_of_processes_is_read_from_capabilities() {
        let xml = "<capabilities><host><secmodel><model>none</model></secmodel><secmodel><model>dac</model>\
                   <baselabel type='kvm'>+64055:+104</baselabel></secmodel></host></capabilities>";
        assert_eq!(process_owner(xml), Some((64055, 104)));
        assert_eq!(process_owner("<capabilities><host/></capabilities>"), None);
    }
}
