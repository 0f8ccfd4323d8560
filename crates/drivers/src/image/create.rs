//! New disk images: thin and empty, with exactly a disk's size.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{OpenOptionsExt as _, chown},
    path::Path,
    process::Command,
    time::Duration,
};

use ferry_core::{units::ByteCount, vm::DiskFormat};

use crate::{
    file::{is_unsupported, sync_name},
    run::run,
};

/// QEMU's tool writes only a few kilobytes, but a file server may be slow.
const MAKE_WITHIN: Duration = Duration::from_secs(30);

/// Creates a new image full of zeroes that belongs to `owner` (user and group id). Ok promises that it did not exist
/// before and is on disk.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`], with the existing file untouched; after any other error, no file is left.
pub fn create(path: &Path, format: DiskFormat, size: ByteCount, owner: (u32, u32)) -> io::Result<()> {
    // Also opened for reading: smbnetfs does not set the length of a file that is opened write-only (EIO after 4 s).
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
    let filled = fill(&file, path, format, size).and_then(|()| {
        // A file server may refuse to change owners; whether QEMU can write there is checked elsewhere.
        match chown(path, Some(owner.0), Some(owner.1)) {
            Err(error) if error.kind() != io::ErrorKind::PermissionDenied && !is_unsupported(&error) => Err(error),
            _ => sync_name(path),
        }
    });
    if filled.is_err() {
        // This call has just created it.
        let _ = fs::remove_file(path);
    }
    filled
}

fn fill(file: &File, path: &Path, format: DiskFormat, size: ByteCount) -> io::Result<()> {
    match format {
        DiskFormat::Raw => {
            file.set_len(size.0)?;
            file.sync_all()
        }
        DiskFormat::Qcow2 => {
            let mut tool = Command::new("qemu-img");
            tool.args(["create", "-q", "-f", "qcow2", "-o", clusters(size)]).arg(path).arg(size.0.to_string());
            let outcome = run(&mut tool, MAKE_WITHIN).map_err(|error| {
                let missing = error.kind() == io::ErrorKind::NotFound;
                if missing { io::Error::other("qemu-img is not installed on the host") } else { error }
            })?;
            if !outcome.is_ok() {
                return Err(io::Error::other(format!("qemu-img: {}", outcome.reason())));
            }
            File::open(path)?.sync_all()
        }
    }
}

/// The cluster layout of a qcow2 image of this size. QEMU zeroes the whole copy before filling it, and thereby
/// allocates all metadata tables: 8 bytes per cluster, 16 per cluster with subclusters. A write then allocates only the
/// subclusters that it needs (QEMU 5.2, libvirt 8.0 and newer). Measured with an empty image of 64 GiB: 8.2 MiB with
/// clusters of 64 KiB, 3.5 MiB with subclusters of 16 KiB in clusters of 512 KiB.
fn clusters(size: ByteCount) -> &'static str {
    if size <= ByteCount::gib(8) {
        "cluster_size=64k"
    } else if size <= ByteCount::gib(128) {
        "cluster_size=512k,extended_l2=on"
    } else {
        "cluster_size=2M,extended_l2=on"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        file::{allocated, free, remove},
        image::fixtures::me,
    };

    #[test]
    fn a_new_image_is_thin_and_of_the_disks_size() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("vda.raw");
        create(&path, DiskFormat::Raw, ByteCount::gib(64), me()).expect("made");
        assert_eq!(fs::metadata(&path).expect("there").len(), 64 << 30);
        assert!(allocated(&path).expect("there").0 < 1 << 20);
        let (_, free) = free(folder.path()).expect("asked");
        assert!(free.is_some_and(|free| free.0 > 0));
    }

    #[test]
    fn what_describes_a_large_image_takes_little_also_when_all_of_it_was_zeroed() {
        let folder = tempfile::tempdir().expect("a folder");
        for (size, bound) in [(8, 5 << 18), (64, 15 << 18), (1024, 15 << 20)] {
            let path = folder.path().join(format!("{size}.qcow2"));
            create(&path, DiskFormat::Qcow2, ByteCount::gib(size), me()).expect("made");
            let mut tool = Command::new("qemu-io");
            for at in 0..size {
                tool.args(["-c", &format!("write -zu {at}G 1G")]);
            }
            assert!(run(tool.arg(&path), MAKE_WITHIN).expect("qemu-io is installed").is_ok());
            let takes = allocated(&path).expect("there").0;
            assert!(takes <= bound, "{size} GiB take {takes} bytes");
        }
    }

    #[test]
    fn what_is_there_is_never_overwritten() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("vda.raw");
        fs::write(&path, "precious").expect("written");
        for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
            let error = create(&path, format, ByteCount::mib(1), me()).expect_err("it is there");
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        }
        assert_eq!(fs::read(&path).expect("there"), b"precious");
        let nowhere = folder.path().join("no-folder/vda.raw");
        assert_eq!(
            create(&nowhere, DiskFormat::Raw, ByteCount::mib(1), me()).expect_err("no folder").kind(),
            io::ErrorKind::NotFound
        );
        remove(&path).expect("removed");
        remove(&path).expect("gone, as asked");
        let error = remove(&nowhere).expect_err("whether it is there is not known");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
