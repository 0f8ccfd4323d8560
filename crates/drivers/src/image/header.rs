//! Reads the header of a qcow2 image.

use std::{
    fs::OpenOptions,
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
};

use ferry_core::units::ByteCount;

/// Bytes that are read first: the header, its extensions, and usually the backing file name.
const HEAD_BYTES: usize = 4096;
/// Longest backing file name that the format allows.
const BACKING_NAME_MAX: usize = 1023;

/// The header of a qcow2 image (docs/interop/qcow2 of QEMU).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The backing file as written in the header: a path, absolute or relative to the image's folder, or a QEMU
    /// protocol URI.
    pub backing: Option<String>,
    /// The format of the backing file, if stated.
    pub backing_format: Option<String>,
    /// The external data file, if there is one; empty if its name is not stated.
    pub data_file: Option<String>,
    /// The number of internal snapshots.
    pub snapshots: u32,
    /// The virtual size, which the guest sees.
    pub virtual_size: ByteCount,
}

/// Reads the header of an image; `None` if it is not a qcow2 image.
///
/// # Errors
/// The file system's errors; [`io::ErrorKind::InvalidData`] for a broken header.
pub fn header(path: &Path) -> io::Result<Option<Header>> {
    // Non-blocking, because the path may be a pipe.
    let file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)?;
    let mut head = vec![0; HEAD_BYTES];
    let mut length = 0;
    while length < head.len() {
        match file.read_at(&mut head[length..], length as u64)? {
            0 => break,
            read => length += read,
        }
    }
    head.truncate(length);
    let Some((mut header, name)) = parse_header(&head) else { return Ok(None) };
    if let Some((offset, length)) = name {
        if length > BACKING_NAME_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the image's header is broken"));
        }
        let mut name = vec![0; length];
        file.read_exact_at(&mut name, offset)?;
        header.backing = Some(String::from_utf8_lossy(&name).into_owned());
    }
    Ok(Some(header))
}

/// The header, and the position of the backing file name. `None` if it is not a valid header.
fn parse_header(head: &[u8]) -> Option<(Header, Option<(u64, usize)>)> {
    let four = |at: usize| Some(u32::from_be_bytes(head.get(at..at + 4)?.try_into().ok()?));
    let eight = |at: usize| Some(u64::from_be_bytes(head.get(at..at + 8)?.try_into().ok()?));
    if !head.starts_with(b"QFI\xfb") {
        return None;
    }
    let version = four(4)?;
    let (offset, length) = (eight(8)?, four(16)? as usize);
    let mut header = Header { virtual_size: ByteCount(eight(24)?), ..Header::default() };
    if version >= 2 {
        header.snapshots = four(60)?;
    }
    if version >= 3 && eight(72)? & 4 != 0 {
        header.data_file = Some(String::new());
    }
    // Header extensions: type, length, and as many bytes, padded to eight; type zero ends the list.
    let mut at = match version {
        0 | 1 => head.len(),
        2 => 72,
        _ => four(100)? as usize,
    };
    while let (Some(kind), Some(length)) = (four(at), four(at + 4)) {
        let Some(bytes) = head.get(at + 8..(at + 8).saturating_add(length as usize)).filter(|_| kind != 0) else {
            break;
        };
        let text = String::from_utf8_lossy(bytes).into_owned();
        match kind {
            0xe279_2aca => header.backing_format = Some(text),
            0x4441_5441 if header.data_file.is_some() => header.data_file = Some(text),
            _ => {}
        }
        at += 8 + (length as usize).next_multiple_of(8);
    }
    Some((header, (offset != 0).then_some((offset, length))))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use ferry_core::vm::DiskFormat;

    use super::*;
    use crate::image::{
        create,
        fixtures::{me, qemu_img},
    };

    #[test]
    fn snapshots_inside_of_an_image_are_counted() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("vda.qcow2");
        create(&path, DiskFormat::Qcow2, ByteCount::mib(8), me()).expect("made");
        let header_of = |path: &Path| header(path).expect("read").expect("an image");
        assert_eq!(header_of(&path), Header { virtual_size: ByteCount::mib(8), ..Header::default() });
        qemu_img(&["snapshot", "-c", "one", &path.display().to_string()]);
        assert_eq!(header_of(&path).snapshots, 1);
        let raw = folder.path().join("vda.raw");
        fs::write(&raw, "QFI").expect("written");
        assert_eq!(header(&raw).expect("read"), None);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic_the_reader(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let _ = parse_header(&bytes);
            let _ = parse_header(&[b"QFI\xfb\0\0\0\x03".as_slice(), &bytes].concat());
        }
    }
}
