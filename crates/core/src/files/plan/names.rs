//! Names of new files.

use crate::{
    finding::{ByHand, Finding, FindingId, Message},
    location::Location,
    vm::{DiskFormat, VmFile},
};

/// The folder in which libvirt itself stores UEFI variables; it exists on every host.
pub const NVRAM_FOLDER: &str = "/var/lib/libvirt/qemu/nvram";
/// File name extensions that mark a path as an image, not a folder.
const ENDINGS: [&str; 3] = [".raw", ".img", ".qcow2"];

/// Whether a path means an image, not a folder.
pub fn is_file(path: &str) -> bool {
    ENDINGS.iter().any(|ending| path.ends_with(ending))
}

/// Whether a path means a file of UEFI variables, not a folder.
pub(super) fn is_nvram(path: &str) -> bool {
    is_file(path) || path.ends_with(".fd")
}

/// Whether a path is a file of UEFI variables in libvirt's own folder.
pub fn is_libvirts_nvram(path: &str) -> bool {
    let name = path.strip_prefix(NVRAM_FOLDER).and_then(|rest| rest.strip_prefix('/'));
    name.is_some_and(|name| !name.is_empty() && name != ".." && !name.contains('/'))
}

/// The format that a file's name implies.
pub(super) fn format_of(place: &Location) -> Option<DiskFormat> {
    match place.path().rsplit_once('.')?.1 {
        "raw" => Some(DiskFormat::Raw),
        "qcow2" => Some(DiskFormat::Qcow2),
        _ => None,
    }
}

/// The finding for a file whose name implies another format than it would have.
pub(super) fn misnamed(device: &str, place: &Location, format: DiskFormat) -> Option<Finding> {
    let told = format_of(place).filter(|told| *told != format)?;
    let (format, told) = (format.name().to_owned(), told.name().to_owned());
    let message = Message::DiskMisnamed { device: device.to_owned(), format: format.clone(), told };
    Some(Finding::blocks(FindingId::FilePlace, device, message, ByHand::NameItOrFolder { format }))
}

/// A file in a folder, named like the old one: a new image gets the extension of its format, any other file keeps its
/// whole name. If that name is taken, the device name is appended until the name is free.
pub(super) fn in_folder(
    folder: &Location,
    file: &VmFile,
    format: Option<DiskFormat>,
    is_taken: impl Fn(&Location) -> bool,
) -> Location {
    let device = &file.device;
    let old = file.place.file_name().unwrap_or(device);
    let mut stem = match format {
        Some(_) => ENDINGS.iter().find_map(|ending| old.strip_suffix(ending)).unwrap_or(old).to_owned(),
        None => old.to_owned(),
    };
    loop {
        let place = match format {
            Some(format) => folder.join(&format!("{stem}.{}", format.name())),
            None => folder.join(&stem),
        };
        if !is_taken(&place) {
            return place;
        }
        stem = if format.is_some() { format!("{stem}-{device}") } else { format!("{device}-{stem}") };
    }
}
