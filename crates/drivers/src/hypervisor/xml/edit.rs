//! Rewrites definitions for another place. Edits are splices into the text, so unknown parts stay unchanged.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use ferry_core::{id::VmId, vm::DiskFormat};
use roxmltree::{Document, Node};

use super::node::{boot_role, child, children, own_text};
use crate::hypervisor::{HypervisorError, MigratedDisk};

/// The object behind a volume of a storage pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Volume {
    /// A file.
    File(PathBuf),
    /// A block device.
    Block(PathBuf),
    /// A folder.
    Folder(PathBuf),
    /// An object on the network, by its name there.
    Network(String),
}

impl Volume {
    /// A volume at `path` of the pool with this definition; `None` if the definition is invalid.
    pub fn of(pool: &str, path: String) -> Option<Self> {
        let document = Document::parse(pool).ok()?;
        Some(match document.root_element().attribute("type")? {
            "dir" | "fs" | "netfs" => Self::File(path.into()),
            "logical" | "disk" | "iscsi" | "scsi" | "mpath" | "zfs" => Self::Block(path.into()),
            // Its images are folders.
            "vstorage" => Self::Folder(path.into()),
            _ => Self::Network(path),
        })
    }
}

/// The definition with each volume that `place` knows replaced by the object behind it, otherwise unchanged: names of
/// pools mean nothing to another host. Network storage has no form of its own; it becomes what
/// [`parse`](super::facts::parse) reports it as.
pub fn resolved(xml: &str, mut place: impl FnMut(&str, &str) -> Option<Volume>) -> String {
    // Most definitions contain no volume; whether the text is a definition is checked by its reader.
    let document = match xml.contains("volume") {
        true => Document::parse(xml),
        false => return xml.to_owned(),
    };
    let Ok(document) = document else { return xml.to_owned() };
    let mut edits: Vec<(Range<usize>, String)> = Vec::new();
    for node in document.descendants().filter(|node| is_storage(*node) && node.attribute("type") == Some("volume")) {
        let Some(source) = child(node, "source") else { continue };
        let names = source.attribute("pool").zip(source.attribute("volume"));
        let Some(volume) = names.and_then(|(pool, volume)| place(pool, volume)) else { continue };
        edits.extend(named_by_itself(node, source, &volume).into_iter().flatten());
    }
    spliced(xml, edits)
}

/// Edits that replace a volume by the object behind it.
fn named_by_itself(node: Node<'_, '_>, source: Node<'_, '_>, volume: &Volume) -> Option<Vec<(Range<usize>, String)>> {
    let (kind, attribute, name) = match volume {
        Volume::File(path) => ("file", "file", path.to_str()?),
        Volume::Block(path) => ("block", "dev", path.to_str()?),
        Volume::Folder(path) => ("dir", "dir", path.to_str()?),
        Volume::Network(name) => ("network", "name", name.as_str()),
    };
    let mut edits = vec![(node.attribute_node("type")?.range_value(), kind.to_owned())];
    edits.push((source.attribute_node("pool")?.range(), format!("{attribute}='{}'", escaped(name))));
    // How libvirt reaches a volume in a pool of targets; other sources have no such attributes.
    let rest = ["volume", "mode"].into_iter().filter_map(|name| source.attribute_node(name));
    edits.extend(rest.map(|attribute| (attribute.range(), String::new())));
    Some(edits)
}

/// The target of a disk copy, as an XML element for libvirt.
pub fn copy_target(to: &Path, format: DiskFormat) -> Option<String> {
    let (path, format) = (escaped(to.to_str()?), format.name());
    Some(format!("<disk type='file'><source file='{path}'/><driver name='qemu' type='{format}'/></disk>"))
}

/// Which definition of a VM with migrated disks is rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The running definition. QEMU discards unused blocks while the disk is copied, whatever the persistent one says.
    Live,
    /// The persistent definition: the administrator's settings stay.
    Kept,
}

/// The definition with every file's path rewritten by `folders`, and migrated disks replaced by their new files.
///
/// # Errors
/// [`HypervisorError::Definition`], naming the first file that lies in none of the folders.
pub fn translate(
    xml: &str,
    vm: VmId,
    folders: &[(PathBuf, PathBuf)],
    migrated: &[MigratedDisk],
    form: Form,
) -> Result<String, HypervisorError> {
    let bad = |reason: String| HypervisorError::Definition { vm, reason };
    let document = Document::parse(xml).map_err(|error| bad(error.to_string()))?;
    let mut edits: Vec<(Range<usize>, String)> = Vec::new();
    for node in document.descendants() {
        if let Some((disk, to)) = migrated_disk(node, migrated) {
            if node == disk {
                edits.extend(moved_disk(disk, to, form).ok_or_else(|| bad(format!("disk {} is odd", to.device)))?);
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
    Ok(spliced(xml, edits))
}

/// A path's counterpart at the destination, by the first entry that is the path or a folder containing it.
fn translated(path: &Path, folders: &[(PathBuf, PathBuf)]) -> Option<PathBuf> {
    let in_folder = |rest: &Path, there: &Path| match rest.as_os_str().is_empty() {
        true => there.to_owned(),
        false => there.join(rest),
    };
    folders.iter().find_map(|(here, there)| path.strip_prefix(here).ok().map(|rest| in_folder(rest, there)))
}

/// The text with each range replaced.
fn spliced(text: &str, mut edits: Vec<(Range<usize>, String)>) -> String {
    let mut edited = text.to_owned();
    edits.sort_by_key(|(range, _)| range.start);
    for (range, text) in edits.into_iter().rev() {
        edited.replace_range(range, &text);
    }
    edited
}

/// The migrated disk that an element is, or belongs to.
fn migrated_disk<'a, 'input, 'd>(
    node: Node<'a, 'input>,
    migrated: &'d [MigratedDisk],
) -> Option<(Node<'a, 'input>, &'d MigratedDisk)> {
    let disk = node.ancestors().find(|ancestor| ancestor.has_tag_name("disk"))?;
    let device = child(disk, "target")?.attribute("dev")?;
    Some((disk, migrated.iter().find(|migrated| migrated.device == device)?))
}

/// Edits that give a disk its new file and remove the chain below the old one.
fn moved_disk(disk: Node<'_, '_>, to: &MigratedDisk, form: Form) -> Option<Vec<(Range<usize>, String)>> {
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
    node.parent().is_some_and(is_storage)
}

/// Elements with a source: a disk, a file in its backing chain or mirror, or UEFI variables in the long form.
fn is_storage(node: Node<'_, '_>) -> bool {
    ["disk", "backingStore", "mirror", "dataStore", "nvram"].iter().any(|tag| node.has_tag_name(*tag))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('\'', "&apos;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use ferry_core::vm::{FileRole, NotAFile};
    use proptest::prelude::*;

    use super::*;
    use crate::hypervisor::xml::{
        facts::parse,
        fixtures::{XML, vm},
    };

    #[test]
    fn a_volume_is_told_and_named_by_what_its_pool_says_that_it_is() {
        let place = |pool: &str, volume: &str| {
            let path = PathBuf::from(format!("/pools/{pool}/{volume}"));
            match pool {
                "dir" => Some(Volume::File(path)),
                "vg" => Some(Volume::Block(path)),
                "fs" => Some(Volume::Folder(path)),
                "rbd" => Some(Volume::Network(format!("images/{volume}"))),
                _ => None,
            }
        };
        for (source, role, kind, path) in [
            ("pool='dir' volume='a&amp;b.raw' index='1'", FileRole::Disk, None, "/pools/dir/a&b.raw"),
            ("volume='a.raw' pool='dir'", FileRole::Disk, None, "/pools/dir/a.raw"),
            ("pool='vg' volume='lv' mode='host'", FileRole::NotAFile, Some(NotAFile::Block), "/pools/vg/lv"),
            ("pool='fs' volume='d'", FileRole::NotAFile, Some(NotAFile::Other("dir".into())), "/pools/fs/d"),
            ("pool='rbd' volume='img'", FileRole::NotAFile, Some(NotAFile::Network(None)), "images/img"),
            ("pool='gone' volume='v'", FileRole::NotAFile, Some(NotAFile::Volume), "gone/v"),
        ] {
            let xml = XML.replace(
                "<disk type='block' device='disk'><source dev='/dev/sdq'/>",
                &format!("<disk type='volume' device='disk'><source {source}/>"),
            );
            let resolved = resolved(&xml, place);
            let facts = parse(&resolved).expect("parsed");
            let file = facts.files.iter().find(|file| file.device == "vdb").expect("there");
            assert_eq!((file.role, file.kind.clone()), (role, kind.clone()), "{source}");
            assert_eq!((file.place.to_str(), file.shareable), (Some(path), true), "{source}");
            assert_eq!(resolved.contains("pool="), kind == Some(NotAFile::Volume), "{resolved}");
            assert_eq!(resolved.contains("index='1'/"), xml.contains("index='1'/"), "all else stays: {resolved}");
        }
        assert_eq!(resolved(XML, |_, _| panic!("it names no volume")), XML);
        assert_eq!(resolved("no definition of a volume", place), "no definition of a volume");
    }

    #[test]
    fn what_a_volume_is_says_the_type_of_its_pool() {
        let of = |kind: &str| Volume::of(&format!("<pool type='{kind}'><name>p</name></pool>"), "/p/v".into());
        assert_eq!(of("dir"), Some(Volume::File("/p/v".into())));
        assert_eq!(of("netfs"), Some(Volume::File("/p/v".into())));
        assert_eq!(of("logical"), Some(Volume::Block("/p/v".into())));
        assert_eq!(of("rbd"), Some(Volume::Network("/p/v".into())));
        assert_eq!(Volume::of("<pool/>", "/p/v".into()), None);
    }

    #[test]
    fn a_resolved_volume_goes_to_another_host_as_a_file() {
        let xml = XML.replace(
            "type='block' device='disk'><source dev='/dev/sdq'/>",
            "type='volume'><source pool='p' volume='v'/>",
        );
        let folders = [(PathBuf::from("/"), PathBuf::from("/new"))];
        let resolved = resolved(&xml, |pool, volume| Some(Volume::File(format!("/{pool}/{volume}").into())));
        let edited = translate(&resolved, vm(), &folders, &[], Form::Live).expect("all known");
        assert!(edited.contains("<disk type='file'><source file='/new/p/v' /><target dev='vdb'"), "{edited}");
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
        let migrated = |device: &str| {
            [MigratedDisk { device: device.into(), path: "/local/n'w.qcow2".into(), format: DiskFormat::Qcow2 }]
        };
        let chain = "<backingStore type='file'><format type='raw'/><source file='/nowhere/base.raw'/><backingStore/></backingStore>";
        let overlay =
            XML.replace("<target dev='vda' bus='virtio'/>", &format!("{chain}<target dev='vda' bus='virtio'/>"));
        let moved = |xml: &str, form| translate(xml, vm(), &folders, &migrated("vda"), form);
        let live = moved(&overlay, Form::Live).expect("what is below the disk is of no matter");
        let facts = parse(&live).expect("parsed");
        let disk = &facts.files[0];
        assert_eq!(disk.place, PathBuf::from("/local/n'w.qcow2"));
        assert_eq!((disk.format, disk.unmaps, disk.stops_on_error), (Some(DiskFormat::Qcow2), true, true));
        assert!(!disk.has_backing && !live.contains("base.raw"), "{live}");
        let kept = parse(&moved(&overlay, Form::Kept).expect("edited")).expect("parsed");
        assert_eq!((kept.files[0].format, kept.files[0].unmaps), (Some(DiskFormat::Qcow2), false));
        // The others are translated as usual.
        assert_eq!(facts.files[4].place, PathBuf::from("/mnt/other/web01/vars.fd"));
        let set = XML.replace(" cache='none'", " discard='ignore' cache='none'");
        assert!(parse(&moved(&set, Form::Live).expect("edited")).expect("parsed").files[0].unmaps);
        assert!(!parse(&moved(&set, Form::Kept).expect("edited")).expect("parsed").files[0].unmaps);
        let bare = XML.replace("<driver name='qemu' type='raw' cache='none' error_policy='stop'/>", "");
        let bare = parse(&moved(&bare, Form::Live).expect("edited")).expect("parsed");
        assert_eq!((bare.files[0].format, bare.files[0].unmaps), (Some(DiskFormat::Qcow2), true));
        // A disk that is not a file cannot be migrated.
        assert!(translate(XML, vm(), &folders, &migrated("vdb"), Form::Live).is_err());
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
        // A folder's name must match whole path components.
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
            let _ = resolved(&text, |_, _| None);
        }
    }
}
