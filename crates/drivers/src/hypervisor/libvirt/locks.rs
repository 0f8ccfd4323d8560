//! Which of a VM's files its process has locked, according to the kernel's information about the process.
//!
//! QEMU (since 2.10, `block/file-posix.c`) locks bytes of an image: 100 + n for each operation n that it performs on
//! the image, 200 + n for each operation that it denies to others. It holds these locks from the moment it has the
//! image. QEMU itself is not queried, because libvirt then marks the VM as tainted.

use std::{
    fs,
    path::{Path, PathBuf},
};

use ferry_core::vm::{FileRole, VmFile};

/// It reads.
const READS: u64 = 100;
/// It writes.
const WRITES: u64 = 101;
/// It denies writing to others.
const NOBODY_WRITES: u64 = 201;

/// Whether the process in `pid_file` has locked each of a VM's images. Also false if that cannot be determined.
pub(super) fn has_all(pid_file: &Path, files: &[VmFile<PathBuf>]) -> bool {
    let Some(pid) = fs::read_to_string(pid_file).ok().and_then(|text| text.trim().parse::<u32>().ok()) else {
        return false;
    };
    let process = Path::new("/proc").join(pid.to_string());
    let opened = opened(&process);
    let mut images = files.iter().filter(|file| match file.role {
        FileRole::Disk | FileRole::Media | FileRole::Nvram => true,
        FileRole::Boot | FileRole::NotAFile => false,
    });
    images.all(|file| {
        let path = fs::canonicalize(&file.place).unwrap_or_else(|_| file.place.clone());
        let texts = opened.iter().filter(|(_, target)| *target == path);
        let infos = texts.filter_map(|(number, _)| fs::read_to_string(process.join("fdinfo").join(number)).ok());
        infos.into_iter().any(|info| needed(file).iter().all(|byte| is_locked(&info, *byte)))
    })
}

/// The open files of a process: descriptor numbers, and the files' paths.
fn opened(process: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    let one = |entry: fs::DirEntry| Some((entry.file_name().into_string().ok()?, fs::read_link(entry.path()).ok()?));
    entries.filter_map(one).collect()
}

/// The bytes that QEMU has locked when it has this image.
fn needed(file: &VmFile<PathBuf>) -> &'static [u64] {
    match (file.read_only, file.shareable || file.role == FileRole::Nvram) {
        (true, _) => &[READS],
        // Others may write as well: it writes, and denies nothing.
        (false, true) => &[WRITES],
        // Both are required: where locking fails halfway, the first lock may be left over (observed with the kernel's
        // cifs).
        (false, false) => &[WRITES, NOBODY_WRITES],
    }
}

/// Whether `/proc/PID/fdinfo/N` lists a lock that covers this byte. Fields: number, kind, advisory or mandatory,
/// access, process, file, first byte, last byte.
fn is_locked(info: &str, byte: u64) -> bool {
    let mut locks = info.lines().filter_map(|line| line.strip_prefix("lock:"));
    locks.any(|lock| {
        let words: Vec<&str> = lock.split_whitespace().collect();
        let [_, _, _, _, _, _, first, last] = words[..] else { return false };
        let last = if last == "EOF" { Some(u64::MAX) } else { last.parse().ok() };
        first.parse().is_ok_and(|first: u64| first <= byte) && last.is_some_and(|last| byte <= last)
    })
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use nix::{fcntl, libc};

    use super::*;
    use crate::hypervisor::fake::FakeGuest;

    #[test]
    fn a_lock_holds_the_bytes_that_it_names() {
        let info = "pos:\t0\nflags:\t02140002\nlock:\t1: OFDLCK ADVISORY  READ -1 fe:00:1028 100 101\n\
                    lock:\t2: OFDLCK ADVISORY  READ -1 fe:00:1028 203 EOF\nlock:\tnonsense\n";
        let held: Vec<u64> = (99..105).chain(199..206).filter(|byte| is_locked(info, *byte)).collect();
        assert_eq!(held, [100, 101, 203, 204, 205]);
        assert!(!is_locked("", 100));
    }

    /// Locks bytes of a file in the way QEMU does.
    fn lock(file: &File, first: u64, last: u64) {
        let lock = libc::flock {
            l_type: libc::F_RDLCK as _,
            l_whence: libc::SEEK_SET as _,
            l_start: first as _,
            l_len: (last - first + 1) as _,
            l_pid: 0,
        };
        fcntl::fcntl(file, fcntl::FcntlArg::F_OFD_SETLK(&lock)).expect("nobody else has it");
    }

    #[test]
    fn a_process_has_its_images_once_it_has_locked_each_for_what_it_does_with_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let pid_file = folder.path().join("db.pid");
        let guest = FakeGuest::new("db", &["vda", "vdb", "vdc", "vdd"].map(|name| folder.path().join(name)));
        let mut files = guest.facts.files;
        files[1].read_only = true;
        files[2].shareable = true;
        files[3].role = FileRole::Boot;
        let opened: Vec<File> = files.iter().map(|file| File::create_new(&file.place).expect("made")).collect();
        let reopened: Vec<File> = files.iter().map(|file| File::open(&file.place).expect("there")).collect();
        assert!(!has_all(&pid_file, &files), "its process is not known");
        fs::write(&pid_file, format!("{}\n", std::process::id())).expect("written");
        assert!(!has_all(&pid_file, &files), "nothing is locked");
        for (index, first, last) in [(0, READS, WRITES), (1, READS, READS), (2, READS, WRITES)] {
            lock(&reopened[index], first, last);
        }
        assert!(!has_all(&pid_file, &files), "others may write to the first, as far as its locks tell");
        lock(&reopened[0], NOBODY_WRITES, NOBODY_WRITES);
        assert!(has_all(&pid_file, &files));
        assert!(has_all(&pid_file, &[]), "it needs none");
        drop((opened, reopened));
        assert!(!has_all(&pid_file, &files), "they are closed");
    }
}
