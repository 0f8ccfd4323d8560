//! Disk images of guests: created for tests, and inspected from outside.

use std::{
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::Context as _;
use ferry_core::vm::DiskFormat;
use nix::unistd::{Whence, lseek};

use crate::run::checked;

/// Start of the data that are put into an image; the guest uses the part before it.
pub const DATA_START: u64 = 1 << 20;
const PAGE: usize = 4096;
const CHUNK: usize = 1 << 20;
/// Images of tests contain several hundred megabytes.
const CONVERT_WITHIN: Duration = Duration::from_secs(120);

/// Where a disk is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On the share.
    Share,
    /// On the host's own disk.
    Local,
}

/// A guest's disk to be created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its place.
    pub place: Place,
    /// Its format.
    pub format: DiskFormat,
    /// Its virtual size.
    pub size_mib: u32,
    /// Amount of incompressible data from [`DATA_START`] on; the guest does not touch them.
    pub data_mib: u32,
}

impl Disk {
    /// An empty disk of 64 MiB.
    pub fn new(place: Place, format: DiskFormat) -> Self {
        Self { place, format, size_mib: 64, data_mib: 0 }
    }

    /// Creates its file, replacing an existing one.
    ///
    /// # Errors
    /// It cannot be created.
    pub fn make(&self, path: &Path) -> anyhow::Result<()> {
        let raw = match self.format {
            DiskFormat::Raw => path.to_owned(),
            DiskFormat::Qcow2 => path.with_extension("making"),
        };
        let file = File::create(&raw).with_context(|| format!("Could not make {}", raw.display()))?;
        file.set_len(u64::from(self.size_mib) << 20)?;
        let mut chunk = vec![0; CHUNK];
        for index in 0..u64::from(self.data_mib) {
            let at = DATA_START + index * CHUNK as u64;
            fill(&mut chunk, at);
            file.write_all_at(&chunk, at)?;
        }
        if self.format == DiskFormat::Qcow2 {
            convert(&raw, DiskFormat::Raw, path, DiskFormat::Qcow2)?;
            fs::remove_file(&raw)?;
        }
        Ok(())
    }

    /// Creates its file with the content and the size of a raw image.
    ///
    /// # Errors
    /// It cannot be created.
    pub fn copy(&self, image: &Path, path: &Path) -> anyhow::Result<()> {
        convert(image, DiskFormat::Raw, path, self.format)
    }
}

/// The allocated size of a file. For a file on the share, pass the file in its backing folder, because the mount of a
/// share may report the length instead.
///
/// # Errors
/// It does not exist.
pub fn allocated(path: &Path) -> anyhow::Result<u64> {
    Ok(fs::metadata(path).with_context(|| format!("Could not look at {}", path.display()))?.blocks() * 512)
}

/// Bytes of an image's content in pages of 4 KiB that are not all zero.
///
/// # Errors
/// It cannot be read.
pub fn nonzero(path: &Path, format: DiskFormat) -> anyhow::Result<u64> {
    let file = content(path, format)?;
    let (mut bytes, mut chunk) = (0, vec![0; CHUNK]);
    let end = file.metadata()?.len();
    let mut at = 0;
    while let Some((from, to)) = data_from(&file, at, end)? {
        let mut position = from - from % PAGE as u64;
        while position < to {
            let length = CHUNK.min((to - position).next_multiple_of(PAGE as u64).min(end - position) as usize);
            file.read_exact_at(&mut chunk[..length], position)?;
            let pages = chunk[..length].chunks(PAGE).filter(|page| page.iter().any(|byte| *byte != 0));
            bytes += pages.count() as u64 * PAGE as u64;
            position += length as u64;
        }
        at = to.max(position);
    }
    Ok(bytes)
}

/// Whether an image contains all the data that were put into it at its creation.
///
/// # Errors
/// It cannot be read.
pub fn holds_data(path: &Path, format: DiskFormat, data_mib: u32) -> anyhow::Result<bool> {
    let mut file = content(path, format)?;
    file.seek(SeekFrom::Start(DATA_START))?;
    let (mut chunk, mut expected) = (vec![0; CHUNK], vec![0; CHUNK]);
    for index in 0..u64::from(data_mib) {
        file.read_exact(&mut chunk)?;
        fill(&mut expected, DATA_START + index * CHUNK as u64);
        if chunk != expected {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The first bytes of an image's content.
///
/// # Errors
/// They cannot be read.
pub fn head(path: &Path, format: DiskFormat, bytes: usize) -> anyhow::Result<Vec<u8>> {
    let mut head = vec![0; bytes];
    let read = content(path, format)?.read_exact_at(&mut head, 0);
    read.with_context(|| format!("Could not read {}", path.display()))?;
    Ok(head)
}

/// Fills with non-zero words that depend only on their position.
fn fill(chunk: &mut [u8], at: u64) {
    for (index, word) in chunk.chunks_exact_mut(8).enumerate() {
        let place = at / 8 + index as u64;
        let mixed = (place ^ place >> 29).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        word.copy_from_slice(&(mixed ^ mixed >> 32 | 1).to_le_bytes());
    }
}

/// The content of an image, as a sparse file.
fn content(path: &Path, format: DiskFormat) -> anyhow::Result<File> {
    if format == DiskFormat::Raw {
        return File::open(path).with_context(|| format!("Could not open {}", path.display()));
    }
    let raw = scratch(path);
    convert(path, format, &raw, DiskFormat::Raw)?;
    let file = File::open(&raw)?;
    fs::remove_file(&raw)?;
    Ok(file)
}

/// A file for the content of `path`; elsewhere, because the image's own file system may be full.
fn scratch(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    std::env::temp_dir().join(format!("ferry-content-{}-{name}", uuid::Uuid::new_v4().simple()))
}

fn convert(from: &Path, format: DiskFormat, to: &Path, to_format: DiskFormat) -> anyhow::Result<()> {
    let mut command = Command::new("qemu-img");
    // Shared, because a VM may use it.
    command.args(["convert", "-U", "-f", format.name(), "-O", to_format.name()]).arg(from).arg(to);
    checked(command, CONVERT_WITHIN).map(drop)
}

/// The next part of a sparse file that is not a hole.
fn data_from(file: &File, at: u64, end: u64) -> anyhow::Result<Option<(u64, u64)>> {
    if at >= end {
        return Ok(None);
    }
    let from = match lseek(file, at as i64, Whence::SeekData) {
        Ok(from) => from as u64,
        Err(nix::errno::Errno::ENXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let to = lseek(file, from as i64, Whence::SeekHole)? as u64;
    Ok(Some((from, to.min(end))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_hold_something_are_counted_and_no_others() {
        let path = scratch(Path::new("counted.raw"));
        let file = File::create_new(&path).expect("made");
        file.set_len(1 << 30).expect("long");
        file.write_all_at(&[7], 5000).expect("written");
        file.write_all_at(&vec![0; 3 * PAGE], 20 * PAGE as u64).expect("zeros are written");
        file.write_all_at(&[1; 2 * PAGE], (512 << 20) + 100).expect("written");
        let counted = nonzero(&path, DiskFormat::Raw);
        let takes = allocated(&path);
        fs::remove_file(&path).expect("removed");
        assert_eq!(counted.expect("counted"), 4 * PAGE as u64);
        assert!((4 * PAGE as u64..1 << 20).contains(&takes.expect("there")));
    }

    #[test]
    fn data_that_was_changed_is_told() {
        let path = scratch(Path::new("data.raw"));
        let disk = Disk { data_mib: 2, ..Disk::new(Place::Local, DiskFormat::Raw) };
        disk.make(&path).expect("made");
        assert!(holds_data(&path, DiskFormat::Raw, 2).expect("read"));
        assert_eq!(nonzero(&path, DiskFormat::Raw).expect("counted"), 2 << 20);
        let file = File::options().write(true).open(&path).expect("open");
        file.write_all_at(&[0], DATA_START + (1 << 20) + 8).expect("written");
        let holds = holds_data(&path, DiskFormat::Raw, 2);
        fs::remove_file(&path).expect("removed");
        assert!(!holds.expect("read"));
    }
}
