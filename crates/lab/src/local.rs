//! A host's own disk: a file system with a real limit, so that a full disk behaves as on a real host.
//!
//! The host's first process mounts an image in the lab's folder, in its mount namespace only, through a loop device
//! that the kernel releases with the last mount. It is mounted again when the host boots again.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::run::{run, wait_for};

/// The mount point: libvirt's own folder for images, which agents offer as a storage location.
pub const FOLDER: &str = "/var/lib/libvirt/images";
/// Its default size: enough for a Debian guest, and little on the machine, because the image is sparse.
pub const DEFAULT_MIB: u32 = 6144;
/// Its name among a host's private files.
const IMAGE: &str = "images.ext4";
/// How long the kernel may take to release a loop device.
const DETACH_WITHIN: Duration = Duration::from_secs(20);

/// Creates the image of a host.
pub(crate) fn make(folder: &Path, size_mib: u32) -> anyhow::Result<()> {
    let image = folder.join(IMAGE);
    fs::File::create(&image)?.set_len(u64::from(size_mib) << 20)?;
    // Blocks of one page whatever the size, and none reserved for root, so that free space is the same for all users.
    let options = "lazy_itable_init=1,lazy_journal_init=1,nodiscard";
    run("mkfs.ext4", &["-q", "-m", "0", "-b", "4096", "-E", options, &image.display().to_string()]).map(drop)
}

/// Mounts it in the mount namespace of the caller.
pub(crate) fn mount(folder: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(FOLDER)?;
    run("mount", &["-o", "loop,noinit_itable", &folder.join(IMAGE).display().to_string(), FOLDER]).map(drop)
}

/// Files below `folder` that are attached to loop devices of the machine.
pub fn attached(folder: &Path) -> Vec<PathBuf> {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let files = devices.filter_map(|device| fs::read_to_string(device.path().join("loop/backing_file")).ok());
    files.map(|file| PathBuf::from(file.trim_end())).filter(|file| file.starts_with(folder)).collect()
}

/// Waits until there are none: mounts end some time after the last process of their namespace.
pub(crate) fn wait_detached(folder: &Path) -> anyhow::Result<()> {
    wait_for("the loop devices of the lab are given back", DETACH_WITHIN, || attached(folder).is_empty().then_some(()))
}
