//! Files of VMs, according to definitions and images.

use std::{collections::BTreeSet, io, path::PathBuf, sync::mpsc, thread, time::Duration};

use ferry_core::vm::{DiskFormat, FileRole, NotAFile, VmFile};

use super::{HypervisorError, xml::facts};
use crate::image;

/// Time limit for reading the headers of images below others: their file server may be down.
const BELOW_WITHIN: Duration = Duration::from_secs(20);

/// Disk images whose headers must be read to find the files below them. Raw images have none below them, whatever their
/// content is. An overlay may also lie on a device.
pub fn images_to_ask<'a>(files: impl IntoIterator<Item = &'a VmFile<PathBuf>>) -> BTreeSet<PathBuf> {
    let may_have = |file: &&VmFile<PathBuf>| {
        let is_image = match file.role {
            FileRole::Disk => file.format != Some(DiskFormat::Raw),
            FileRole::NotAFile => file.kind == Some(NotAFile::Block) && file.format == Some(DiskFormat::Qcow2),
            FileRole::Media => file.format == Some(DiskFormat::Qcow2),
            FileRole::Nvram | FileRole::Boot => false,
        };
        is_image && file.below.is_empty()
    };
    files.into_iter().filter(may_have).map(|file| file.place.clone()).collect()
}

/// Refuses a disk whose file is unknown. Media are accepted: they are read-only, and Ferry removes none.
///
/// # Errors
/// [`HypervisorError::Failed`], naming the volume.
pub(crate) fn has_a_place(file: &VmFile<PathBuf>) -> Result<(), HypervisorError> {
    if file.kind != Some(NotAFile::Volume) {
        return Ok(());
    }
    Err(HypervisorError::Failed {
        what: "Could not list the files of VMs".to_owned(),
        reason: format!(
            "disk {} of one is volume {}, of which no storage pool says where it is: start the pool, or undefine the VM",
            file.device,
            file.place.display()
        ),
    })
}

/// The files below images, according to the images' headers. Takes at most [`BELOW_WITHIN`].
///
/// # Errors
/// [`HypervisorError::Failed`], naming the image.
pub(crate) fn files_below(images: BTreeSet<PathBuf>) -> Result<BTreeSet<PathBuf>, HypervisorError> {
    let what = || "Could not read what lies below the disks of VMs".to_owned();
    let failed = |reason: String| HypervisorError::Failed { what: what(), reason };
    if images.is_empty() {
        return Ok(BTreeSet::new());
    }
    let (answer, answered) = mpsc::sync_channel(1);
    let read = move || {
        let mut found = BTreeSet::new();
        for path in &images {
            match image::below(path) {
                Ok(below) => found.extend(below),
                Err(error) => {
                    let _ = answer.send(Err(format!("{}: {error}", path.display())));
                    return;
                }
            }
        }
        let _ = answer.send(Ok(found));
    };
    let started: io::Result<_> = thread::Builder::new().name("images-below".to_owned()).spawn(read);
    started.map_err(|error| failed(error.to_string()))?;
    match answered.recv_timeout(BELOW_WITHIN) {
        Ok(outcome) => outcome.map_err(failed),
        Err(_) => Err(failed("the file system of one of them does not answer".to_owned())),
    }
}

/// The files that a definition names, in its order.
///
/// # Errors
/// [`HypervisorError::Definition`] if the text is not a definition.
pub fn files_of(definition: &str) -> Result<Vec<VmFile<PathBuf>>, HypervisorError> {
    Ok(facts::parse(definition)?.files)
}
