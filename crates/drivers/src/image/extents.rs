//! Where the data of an image lie in its file.

use std::{
    io,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use ferry_core::vm::DiskFormat;
use serde::Deserialize;

/// The tool reads metadata tables, several megabytes for large images.
const MAP_WITHIN: Duration = Duration::from_secs(60);

/// A part of an image with data, stored unencoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Its offset in the virtual disk. Bytes.
    pub start: u64,
    /// Its length. Bytes.
    pub length: u64,
    /// Its offset in the file. Bytes.
    pub offset: u64,
}

/// An entry in the output of `qemu-img map --output=json` (docs/tools/qemu-img of QEMU), as far as it is used.
#[derive(Deserialize)]
struct Mapped {
    start: u64,
    length: u64,
    /// Its depth in the chain of images.
    depth: u32,
    /// Whether it reads as zeroes.
    zero: bool,
    data: bool,
    /// Reported since QEMU 8.2.
    #[serde(default)]
    compressed: bool,
    /// Absent if the data are not stored unencoded.
    offset: Option<u64>,
}

/// The allocated extents of a quiescent image without a backing file.
///
/// # Errors
/// QEMU's tool is not installed, does not end in time, or cannot map the image, for instance because of compressed
/// parts.
pub fn extents(path: &Path, format: DiskFormat) -> io::Result<Vec<Extent>> {
    // Killed by `timeout`, because `run` would cut its long output.
    let within = MAP_WITHIN.as_secs().to_string();
    let tool = Command::new("timeout")
        .args([&within, "qemu-img", "map", "--output=json", "-f", format.name()])
        .arg(path)
        .stdin(Stdio::null())
        .output()?;
    if !tool.status.success() {
        return Err(io::Error::other(format!("qemu-img: {}", String::from_utf8_lossy(&tool.stderr).trim())));
    }
    let unknown = |reason: String| io::Error::other(format!("the image could not be mapped: {reason}"));
    let map: Vec<Mapped> = serde_json::from_slice(&tool.stdout).map_err(|error| unknown(error.to_string()))?;
    stored(&map).ok_or_else(|| unknown("it holds external, encrypted or compressed parts".to_owned()))
}

/// The parts with data. `None` if one of them is not stored unencoded in this image.
fn stored(map: &[Mapped]) -> Option<Vec<Extent>> {
    let extent = |part: &Mapped| {
        let offset = part.offset.filter(|_| !part.compressed && part.depth == 0)?;
        Some((part.zero, Extent { start: part.start, length: part.length, offset }))
    };
    let extents: Option<Vec<_>> = map.iter().filter(|part| part.data).map(extent).collect();
    Some(extents?.into_iter().filter(|(reads_as_zeroes, _)| !reads_as_zeroes).map(|(_, extent)| extent).collect())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use ferry_core::units::ByteCount;

    use super::*;
    use crate::{
        image::{
            create,
            fixtures::{me, qemu_img},
        },
        run::run,
    };

    #[test]
    fn the_data_of_an_image_are_found_where_they_lie() {
        let folder = tempfile::tempdir().expect("a folder");
        for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
            let path = folder.path().join(format!("vda.{}", format.name()));
            create(&path, format, ByteCount::mib(64), me()).expect("made");
            assert_eq!(extents(&path, format).expect("read"), [], "{format:?}");
            let mut tool = Command::new("qemu-io");
            let written = tool.args(["-f", format.name(), "-c", "write -P 7 5M 128k", "-c", "write -P 8 20M 64k"]);
            assert!(run(written.arg(&path), MAP_WITHIN).expect("qemu-io is installed").is_ok());
            let found = extents(&path, format).expect("read");
            let places: Vec<_> = found.iter().map(|extent| (extent.start, extent.length)).collect();
            assert_eq!(places, [(5 << 20, 128 << 10), (20 << 20, 64 << 10)], "{format:?}");
            let file = fs::read(&path).expect("there");
            for (extent, byte) in found.iter().zip([7, 8]) {
                let data = &file[extent.offset as usize..][..extent.length as usize];
                assert!(data.iter().all(|found| *found == byte), "{format:?}: {extent:?}");
            }
        }
    }

    #[test]
    fn an_image_that_does_not_store_its_data_as_the_guest_sees_them_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name).display().to_string();
        create(Path::new(&path("vda.raw")), DiskFormat::Raw, ByteCount::mib(8), me()).expect("made");
        let mut tool = Command::new("qemu-io");
        let written = tool.args(["-f", "raw", "-c", "write -P 7 0 1M"]).arg(path("vda.raw"));
        assert!(run(written, MAP_WITHIN).expect("qemu-io is installed").is_ok());
        qemu_img(&["convert", "-c", "-f", "raw", "-O", "qcow2", &path("vda.raw"), &path("small.qcow2")]);
        assert!(extents(Path::new(&path("small.qcow2")), DiskFormat::Qcow2).is_err(), "compressed");
        qemu_img(&["create", "-q", "-f", "qcow2", "-F", "raw", "-b", &path("vda.raw"), &path("over.qcow2")]);
        assert!(extents(Path::new(&path("over.qcow2")), DiskFormat::Qcow2).is_err(), "in the image below");
    }
}
