//! Disk images: made new, thin and empty, of exactly a disk's size; what lies below them.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, chown},
    path::{Component, Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use ferry_core::{units::ByteCount, vm::DiskFormat};
use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, RenameFlags, renameat2},
};

use crate::run::run;

/// QEMU's tool writes a few kilobytes; a file server may be slow.
const MAKE_WITHIN: Duration = Duration::from_secs(30);
/// How long a file may be busy after it was closed: closing a file is not waited for on a FUSE mount, and its file server
/// renames none that is open.
const BUSY_MAX: Duration = Duration::from_secs(5);
const BUSY_PAUSE: Duration = Duration::from_millis(20);
/// It reads tables, of large images some megabytes.
const MAP_WITHIN: Duration = Duration::from_secs(60);

/// Makes a new image that holds zeros and belongs to `owner` (user and group id). Ok promises that it was not there
/// before and is on disk.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`], with what is there untouched; any other, with nothing left.
pub fn create(path: &Path, format: DiskFormat, size: ByteCount, owner: (u32, u32)) -> io::Result<()> {
    // Read, too: smbnetfs does not set the length of a file that is only written (EIO after 4 s).
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
    let filled = fill(&file, path, format, size).and_then(|()| {
        // A file server may not let owners be changed; whether QEMU can write there is its own affair.
        match chown(path, Some(owner.0), Some(owner.1)) {
            Err(error) if error.kind() != io::ErrorKind::PermissionDenied && !is_unsupported(&error) => Err(error),
            _ => sync_name(path),
        }
    });
    if filled.is_err() {
        // It is ours: it was not there before.
        let _ = fs::remove_file(path);
    }
    filled
}

/// Whether two names are of one file.
///
/// # Errors
/// The file system's; a name that is not there is none of the other's.
pub fn is_same(one: &Path, other: &Path) -> io::Result<bool> {
    let identity = |path: &Path| match path.symlink_metadata() {
        Ok(found) => Ok(Some((found.dev(), found.ino()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    let (one, other) = (identity(one)?, identity(other)?);
    Ok(one.is_some() && one == other)
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

/// How a qcow2 image of this size is laid out. QEMU zeroes a whole copy before it fills it, and so makes every table that
/// describes it: 8 bytes for each cluster, 16 for one with subclusters, of which a write takes only those that it needs
/// (QEMU 5.2, libvirt 8.0 and newer). Seen of an empty image of 64 GiB after that: 8.2 MiB with clusters of 64 KiB, 3.5
/// with subclusters of 16 KiB in clusters of 512 KiB.
fn clusters(size: ByteCount) -> &'static str {
    if size <= ByteCount::gib(8) {
        "cluster_size=64k"
    } else if size <= ByteCount::gib(128) {
        "cluster_size=512k,extended_l2=on"
    } else {
        "cluster_size=2M,extended_l2=on"
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Unsupported) || error.raw_os_error() == Some(nix::libc::EOPNOTSUPP)
}

/// The file's name is on disk only when its folder is. Not every mount of a share can do that.
fn sync_name(path: &Path) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    match File::open(folder)?.sync_all() {
        Err(error) if error.raw_os_error() == Some(nix::libc::EINVAL) || is_unsupported(&error) => Ok(()),
        Err(error) if error.raw_os_error() == Some(nix::libc::ENOSYS) => Ok(()),
        other => other,
    }
}

/// A part of an image that holds data, as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where the guest sees it. Bytes.
    pub start: u64,
    /// How much it is. Bytes.
    pub length: u64,
    /// Where it lies in the file. Bytes.
    pub offset: u64,
}

/// Where the data of an image lie that nobody writes, and that is no overlay.
///
/// # Errors
/// When QEMU's tool is not there, does not end in time, or does not understand the image, as one with compressed parts.
pub fn extents(path: &Path, format: DiskFormat) -> io::Result<Vec<Extent>> {
    // `timeout` ends it: its output may be longer than what is kept of other programs.
    let within = MAP_WITHIN.as_secs().to_string();
    let tool = Command::new("timeout")
        .args([&within, "qemu-img", "map", "--output=human", "-f", format.name()])
        .arg(path)
        .stdin(Stdio::null())
        .output()?;
    if !tool.status.success() {
        return Err(io::Error::other(format!("qemu-img: {}", String::from_utf8_lossy(&tool.stderr).trim())));
    }
    // A line of titles; then of each part its place, its length, its place in the file, and the file.
    let text = String::from_utf8_lossy(&tool.stdout);
    let number = |word: Option<&str>| {
        let word = word?;
        word.strip_prefix("0x").map_or_else(|| word.parse().ok(), |hex| u64::from_str_radix(hex, 16).ok())
    };
    let extents = text.lines().skip(1).map(|line| {
        let mut words = line.split_whitespace();
        let (start, length) = (number(words.next())?, number(words.next())?);
        Some(Extent { start, length, offset: number(words.next())? })
    });
    extents.collect::<Option<_>>().ok_or_else(|| io::Error::other("qemu-img map printed something unknown"))
}

/// Of an image in QEMU's own format that much is read at first: its header, what extends it, and mostly its backing name.
const HEAD_BYTES: usize = 4096;
/// Longest name of what lies below an image, by its format.
const BACKING_NAME_MAX: usize = 1023;
/// Images below one another: more than anybody makes, and an end where they lie in a circle.
const CHAIN_MAX: usize = 256;

/// What the header of an image in QEMU's own format says (docs/interop/qcow2 of QEMU).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// What lies below it, as it is written there: a path, absolute or from the image's folder, or what QEMU calls a
    /// protocol.
    pub backing: Option<String>,
    /// The format of that, if it is told.
    pub backing_format: Option<String>,
    /// The file that holds its data, if that is not the image itself; empty if its name is not told.
    pub data_file: Option<String>,
    /// Snapshots inside of the image.
    pub snapshots: u32,
    /// What the guest sees.
    pub virtual_size: ByteCount,
}

/// Reads the header of an image; `None` if it is not of QEMU's own format.
///
/// # Errors
/// The file system's; [`io::ErrorKind::InvalidData`] for a header that is broken.
pub fn header(path: &Path) -> io::Result<Option<Header>> {
    // Not blocking: a path may be one of a pipe.
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

/// The header without the name of what lies below, and where that is. `None` if it is no header.
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
    // What extends the header: a type, a length, and so many bytes, filled up to eight; the type zero is the end.
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

/// The files that an image needs besides itself, as the headers say: those below it and those that hold data. An image
/// that is not there needs none.
///
/// # Errors
/// The file system's; [`io::ErrorKind::InvalidData`] for images that lie in a circle, or a broken header.
pub fn below(image: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut top = image.to_owned();
    for _ in 0..CHAIN_MAX {
        let header = match header(&top) {
            Ok(Some(header)) => header,
            Ok(None) => return Ok(found),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
            Err(error) => return Err(error),
        };
        found.extend(header.data_file.as_deref().and_then(|name| file_named(name, &top)));
        let Some(next) = header.backing.as_deref().and_then(|name| file_named(name, &top)) else { return Ok(found) };
        found.push(next.clone());
        if header.backing_format.as_deref() == Some("raw") {
            // Whatever a raw image begins with, it is the guest's.
            return Ok(found);
        }
        top = next;
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "images lie below one another in a circle"))
}

/// The file that the header of `image` means by a name; `None` if it means something else than a file.
fn file_named(name: &str, image: &Path) -> Option<PathBuf> {
    let name = match name.strip_prefix("json:") {
        Some(json) => in_json(json)?,
        None => name.strip_prefix("file:").unwrap_or(name).to_owned(),
    };
    let is_protocol = name.split('/').next().is_some_and(|first| first.contains(':'));
    if name.is_empty() || is_protocol {
        return None;
    }
    let joined = image.parent().unwrap_or(Path::new("/")).join(name);
    // Behind a link, `..` is not the folder before it in the path.
    if joined.components().any(|part| part == Component::ParentDir)
        && let (Some(Ok(folder)), Some(name)) = (joined.parent().map(Path::canonicalize), joined.file_name())
    {
        return Some(folder.join(name));
    }
    let mut plain = PathBuf::new();
    for part in joined.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => drop(plain.pop()),
            part => plain.push(part),
        }
    }
    Some(plain)
}

/// The file's name in what QEMU writes for an image that a path does not describe:
/// `{"driver":"qcow2","file":{"driver":"file","filename":"/x"}}`.
fn in_json(json: &str) -> Option<String> {
    let (_, rest) = json.split_once("filename\"")?;
    let mut letters = rest.trim_start().strip_prefix(':')?.trim_start().strip_prefix('"')?.chars();
    let mut name = String::new();
    loop {
        match letters.next()? {
            '"' => return Some(name),
            '\\' => name.push(letters.next()?),
            letter => name.push(letter),
        }
    }
}

/// Removes a regular file; Ok if there is none in its folder.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] for a link, a device or anything else that is no regular file, with what is there
/// untouched; the file system's; [`io::ErrorKind::NotFound`] if the folder is not there: what it lies on may be mounted again later,
/// with the file.
pub fn remove(path: &Path) -> io::Result<()> {
    if path.symlink_metadata().is_ok_and(|facts| !facts.is_file()) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file, and is not removed"));
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && path.parent().is_some_and(Path::is_dir) => Ok(()),
        other => other,
    }
}

/// Gives a file a name that no other has. Ok promises that the name is on disk. May be repeated after a crash in between.
/// Takes a few seconds at most where something still has it open.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`], with both files untouched; the file system's.
pub fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    let until = Instant::now() + BUSY_MAX;
    loop {
        match try_rename_new(from, to) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < until => {
                thread::sleep(BUSY_PAUSE);
            }
            outcome => return outcome,
        }
    }
}

fn try_rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
        Ok(()) => sync_name(to),
        // Not every file system knows how, as most mounts of shares.
        Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => rename_new_by_hand(from, to),
        // It was being renamed when the host ended.
        Err(Errno::EEXIST) if is_same(from, to)? => fs::remove_file(from).and_then(|()| sync_name(to)),
        Err(error) => Err(error.into()),
    }
}

/// As [`rename_new`], by what every file system knows: where it has no hard links either, somebody may make a file of
/// that name between a look and the renaming.
fn rename_new_by_hand(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        Ok(()) => fs::remove_file(from)?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && is_same(from, to)? => fs::remove_file(from)?,
        Err(error) if matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound) => {
            return Err(error);
        }
        Err(_) if to.symlink_metadata().is_ok() => return Err(io::ErrorKind::AlreadyExists.into()),
        Err(_) => fs::rename(from, to)?,
    }
    sync_name(to)
}

/// What a file takes on its file system, as far as that tells: a mount of a share may say the file's length.
///
/// # Errors
/// The file system's.
pub fn allocated(path: &Path) -> io::Result<ByteCount> {
    Ok(ByteCount(fs::metadata(path)?.blocks() * 512))
}

/// Which file system a folder is on, and how much is free there for those who are not root; `None` if it does not tell,
/// as some mounts of shares.
///
/// # Errors
/// The file system's.
pub fn free(folder: &Path) -> io::Result<(u64, Option<ByteCount>)> {
    let device = fs::metadata(folder)?.dev();
    let stat = nix::sys::statvfs::statvfs(folder)?;
    let known = stat.blocks() > 0;
    Ok((device, known.then(|| ByteCount(stat.blocks_available() as u64 * stat.fragment_size() as u64))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn me() -> (u32, u32) {
        (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw())
    }

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
    fn the_data_of_an_image_are_found_where_they_lie() {
        let folder = tempfile::tempdir().expect("a folder");
        for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
            let path = folder.path().join(format!("vda.{}", format.name()));
            create(&path, format, ByteCount::mib(64), me()).expect("made");
            assert_eq!(extents(&path, format).expect("read"), [], "{format:?}");
            let mut tool = Command::new("qemu-io");
            let written = tool.args(["-f", format.name(), "-c", "write -P 7 5M 128k", "-c", "write -P 8 20M 64k"]);
            assert!(run(written.arg(&path), MAKE_WITHIN).expect("qemu-io is installed").is_ok());
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

    fn qemu_img(arguments: &[&str]) {
        let mut tool = Command::new("qemu-img");
        let outcome = run(tool.args(arguments), MAKE_WITHIN).expect("qemu-img is installed");
        assert!(outcome.is_ok(), "{arguments:?}: {}", outcome.reason());
    }

    #[test]
    fn what_lies_below_an_image_is_found_by_the_headers() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("d")).expect("made");
        let path = |name: &str| folder.path().join(name);
        let text = |name: &str| path(name).display().to_string();
        let make = |name: &str, base: &str, format: &str| {
            qemu_img(&["create", "-q", "-f", "qcow2", "-F", format, "-b", base, &text(name)]);
        };
        qemu_img(&["create", "-q", "-f", "qcow2", &text("base.qcow2"), "8M"]);
        make("d/middle.qcow2", "../base.qcow2", "qcow2");
        make("top.qcow2", &text("d/middle.qcow2"), "qcow2");
        assert_eq!(below(&path("top.qcow2")).expect("read"), [path("d/middle.qcow2"), path("base.qcow2")]);
        assert_eq!(below(&path("base.qcow2")).expect("read"), Vec::<PathBuf>::new());
        assert_eq!(below(&path("none.qcow2")).expect("it is not there"), Vec::<PathBuf>::new());

        // What a raw image begins with is the guest's: it may look like a header.
        make("over-raw.qcow2", &text("top.qcow2"), "raw");
        assert_eq!(below(&path("over-raw.qcow2")).expect("read"), [path("top.qcow2")]);
        let json = format!(
            "json:{{\"driver\":\"qcow2\",\"file\":{{\"driver\":\"file\",\"filename\":\"{}\"}}}}",
            text("base.qcow2")
        );
        make("json.qcow2", &json, "qcow2");
        assert_eq!(below(&path("json.qcow2")).expect("read"), [path("base.qcow2")]);

        let data = format!("data_file={}", text("data.raw"));
        qemu_img(&["create", "-q", "-f", "qcow2", "-o", &data, &text("with-data.qcow2"), "8M"]);
        assert_eq!(below(&path("with-data.qcow2")).expect("read"), [path("data.raw")]);
        // A circle has an end.
        qemu_img(&["rebase", "-q", "-u", "-F", "qcow2", "-b", &text("top.qcow2"), &text("base.qcow2")]);
        assert_eq!(below(&path("top.qcow2")).expect_err("a circle").kind(), io::ErrorKind::InvalidData);
    }

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

    #[test]
    fn a_name_in_a_header_that_means_no_file_is_none() {
        let image = Path::new("/a/b/top.qcow2");
        for (name, expected) in [
            ("base.raw", Some("/a/b/base.raw")),
            ("../x/./base.raw", Some("/a/x/base.raw")),
            ("/c/base.raw", Some("/c/base.raw")),
            ("file:/c/base.raw", Some("/c/base.raw")),
            ("./odd:name", Some("/a/b/odd:name")),
            ("nbd://host/x", None),
            ("rbd:pool/x", None),
            ("", None),
            ("json:{\"driver\":\"nbd\"}", None),
            ("json:{\"file.filename\": \"/c/a\\\"b\"}", Some("/c/a\"b")),
        ] {
            assert_eq!(file_named(name, image), expected.map(PathBuf::from), "{name}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic_the_reader(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let _ = parse_header(&bytes);
            let _ = parse_header(&[b"QFI\xfb\0\0\0\x03".as_slice(), &bytes].concat());
        }
    }

    #[test]
    fn a_file_gets_a_name_that_is_free_and_no_other() {
        let folder = tempfile::tempdir().expect("a folder");
        let (from, to) = (folder.path().join("part"), folder.path().join("vda.raw"));
        for rename in [rename_new, rename_new_by_hand] {
            fs::write(&from, "new").expect("written");
            fs::write(&to, "precious").expect("written");
            assert_eq!(rename(&from, &to).expect_err("it is there").kind(), io::ErrorKind::AlreadyExists);
            assert_eq!(
                (fs::read(&from).expect("there"), fs::read(&to).expect("there")),
                (b"new".into(), b"precious".into())
            );
            fs::remove_file(&to).expect("removed");
            // Ended between the two names' changes.
            fs::hard_link(&from, &to).expect("linked");
            rename(&from, &to).expect("renamed");
            assert!(!from.exists());
            assert_eq!(rename(&from, &to).expect_err("gone").kind(), io::ErrorKind::NotFound);
            assert_eq!(fs::read(&to).expect("there"), b"new");
            fs::remove_file(&to).expect("removed");
            fs::write(&from, "new").expect("written");
            rename(&from, &to).expect("renamed");
            assert!(!from.exists() && to.exists());
            fs::remove_file(&to).expect("removed");
        }
    }

    #[test]
    fn an_image_gets_its_name_only_where_nothing_has_it() {
        type Named = fn(&Path, &Path) -> io::Result<()>;
        for named in [rename_new as Named, rename_new_by_hand as Named] {
            let folder = tempfile::tempdir().expect("a folder");
            let (made, path) = (folder.path().join("made"), folder.path().join("vda.raw"));
            fs::write(&made, "new").expect("written");
            fs::write(&path, "precious").expect("written");
            assert_eq!(named(&made, &path).expect_err("it is there").kind(), io::ErrorKind::AlreadyExists);
            assert_eq!(fs::read(&path).expect("there"), b"precious");
            assert!(!is_same(&made, &path).expect("looked at"));
            fs::remove_file(&path).expect("removed");
            named(&made, &path).expect("named");
            assert_eq!(fs::read(&path).expect("there"), b"new");
            assert!(!made.exists() && !is_same(&made, &path).expect("looked at"));
            fs::hard_link(&path, &made).expect("linked");
            assert!(is_same(&made, &path).expect("looked at"));
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
