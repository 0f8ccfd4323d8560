//! A disk whose writes fail like those of a broken one: with `EIO`, reported when the data are flushed.
//!
//! ```text
//! ext4 without a journal ─ loop device ─ sparse file ─ small tmpfs
//! ```
//! The file system has free space, but its disk accepts no more blocks once the tmpfs is full. Blocks that exist
//! already can still be read and written. With a journal, the file system would stay unwritable after the first error.

use std::{
    fs,
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use nix::sched::{CloneFlags, unshare};

use crate::run::run;

/// The file system's nominal size, and the real capacity of its disk.
const SIZE: u64 = 256 << 20;
const ROOM: &str = "size=32m";

/// A disk that can be broken and repaired. It disappears when it is dropped in the thread that mounted it; processes
/// with open files on it keep them.
pub struct BrokenDisk {
    ballast: PathBuf,
    mounts: [String; 2],
}

impl BrokenDisk {
    /// Mounts it at `at`, for the calling thread and the processes it starts from now on: in a mount namespace of their
    /// own, with which the mount disappears.
    ///
    /// # Errors
    /// What failed, with its output.
    pub fn mount(at: &Path) -> anyhow::Result<Self> {
        unshare(CloneFlags::CLONE_NEWNS).context("No mount namespace")?;
        run("mount", &["--make-rslave", "/"])?;
        let below = at.with_extension("disk");
        let image = below.join("image").display().to_string();
        let (below_text, at_text) = (below.display().to_string(), at.display().to_string());
        fs::create_dir_all(&below)?;
        fs::create_dir_all(at)?;
        run("mount", &["-t", "tmpfs", "-o", ROOM, "tmpfs", &below_text])?;
        fs::File::create(&image)?.set_len(SIZE)?;
        run("mkfs.ext4", &["-q", "-O", "^has_journal", &image])?;
        run("mount", &["-o", "loop,noinit_itable", &image, &at_text])?;
        Ok(Self { ballast: below.join("ballast"), mounts: [at_text, below_text] })
    }

    /// From now on the disk accepts no new blocks. Earlier writes are on it.
    ///
    /// # Errors
    /// What failed.
    pub fn break_it(&self) -> anyhow::Result<()> {
        run::<&str>("sync", &[])?;
        let mut ballast = fs::File::create(&self.ballast)?;
        loop {
            match ballast.write_all(&[0; 4096]) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
                Err(error) => bail!("The disk could not be broken: {error}"),
            }
        }
    }

    /// Repairs the disk.
    ///
    /// # Errors
    /// What failed.
    pub fn mend(&self) -> anyhow::Result<()> {
        Ok(fs::remove_file(&self.ballast)?)
    }
}

impl Drop for BrokenDisk {
    fn drop(&mut self) {
        for mount in &self.mounts {
            // If this fails, the mount disappears with the thread; the lab's folder then stays.
            let _ = run("umount", &["-l", mount]);
        }
    }
}
