//! A disk whose writes fail as those of a broken one do: `EIO`, told when what was written is to be on the disk.
//!
//! ```text
//! ext4 without a journal ─ loop device ─ sparse file ─ tmpfs with little room
//! ```
//! The file system has room, and its disk takes no more blocks once the tmpfs is full. What has a place there already can
//! be read and written. With a journal the file system would stay unwritable after the first error.

use std::{
    fs,
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use nix::sched::{CloneFlags, unshare};

use crate::run::run;

/// The file system's size, and what its disk really has.
const SIZE: u64 = 256 << 20;
const ROOM: &str = "size=32m";

/// A disk that can be broken, and mended. Dropped in the thread that mounted it, it is gone; who has files of it open keeps
/// them.
pub struct BrokenDisk {
    ballast: PathBuf,
    mounts: [String; 2],
}

impl BrokenDisk {
    /// Mounts it at `at`, for the calling thread and what that starts from now on: in a mount namespace of their own, with
    /// which it goes.
    ///
    /// # Errors
    /// What failed, with what it said.
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

    /// From now on it takes no new blocks. What was written before is on it.
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

    /// It works again.
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
            // What cannot be unmounted goes with the thread; the lab's folder stays then.
            let _ = run("umount", &["-l", mount]);
        }
    }
}
