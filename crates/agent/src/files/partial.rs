//! Partial copies: unfinished copies of disks, and files that a VM left when it moved away, kept so that the next attempt,
//! or the VM's return, sends only what differs.
//!
//! ```text
//! undone ──────┬▶ keep: file ─▶ VM-device-time.ferry-seed ─▶ a new attempt ─▶ take: back to a file ─▶ read and hashed
//! moved away ──┘                  └─ a day or an hour later, when there are too many, or when room is needed ─▶ removed
//! ```
//! Keeping and taking are renames; nothing is done in between. The carrier of the attempt that uses the file reads its
//! content before anything is written to it (`live::carrier`).
//!
//! A partial copy is never trusted: each block that the source names by its hash is read and compared when it is used
//! (`ferry_wire::nbd`), and the rest of the disk is sent.

use std::{
    collections::HashSet,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, Weak},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ferry_core::{error::chain, id::VmId, units::ByteCount, vm::DiskFormat};
use ferry_drivers::{
    file,
    image::{self, Header},
};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tracing::{info, warn};

use super::new_file::{Lifecycle, Naming, NewFile, PartialKey};
use crate::{AgentError, config::Config, lock::lock, records};

/// How long an unfinished copy is kept.
const KEPT_FOR: Duration = Duration::from_secs(24 * 60 * 60);
/// Limit of partial copies per host.
const PARTIALS_MAX: usize = 16;
/// How often partial copies that are too old or too many are removed; also done when one is kept.
const SWEEP_EVERY: Duration = Duration::from_secs(10 * 60);
/// A copy with less data is quickly made again.
const WORTH_KEEPING: ByteCount = ByteCount::mib(4);
/// Extension of the name of a partial copy.
const ENDING: &str = "ferry-seed";

/// The record of a partial copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    vm: VmId,
    device: String,
    format: DiskFormat,
    virtual_size: ByteCount,
    /// The file.
    path: PathBuf,
    /// Unix milliseconds.
    kept_at_ms: u64,
    #[serde(default)]
    origin: Origin,
}

/// Where a partial copy comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Origin {
    /// A move was undone.
    #[default]
    Unfinished,
    /// Its VM moved away.
    Left,
}

/// The partial copies of a host.
pub struct PartialCopies {
    folder: PathBuf,
    /// How long files are kept that a VM left; zero: not at all.
    left_for: Duration,
    /// Records of partial copies that are being changed. Operations do not wait for each other: an unresponsive share
    /// affects only its own partial copies.
    busy: Mutex<HashSet<PathBuf>>,
    kept: Arc<Notify>,
}

/// Exclusive access to a partial copy.
struct Claim<'a> {
    busy: &'a Mutex<HashSet<PathBuf>>,
    record: PathBuf,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        lock(self.busy).remove(&self.record);
    }
}

impl PartialCopies {
    /// Finds the existing partial copies.
    ///
    /// # Errors
    /// If the folder cannot be created.
    pub fn load(config: &Config) -> Result<Self, AgentError> {
        let folder = config.partials_dir();
        records::ensure_private_dir(&folder)?;
        // Records are read on demand. Reading them here puts damaged ones aside, so that they are reported.
        records::read_all::<Record>(&folder, |_| true)?;
        Ok(Self { left_for: config.left_for(), ..Self::of(folder) })
    }

    fn of(folder: PathBuf) -> Self {
        Self { folder, left_for: Duration::from_secs(60 * 60), busy: Mutex::default(), kept: Arc::default() }
    }

    /// Keeps the file of a disk that did not arrive, if that is worthwhile; returns whether it did. Blocks. It must be
    /// known to be the attempt's own, and there must be no writer to it any more.
    pub(crate) fn keep(&self, vm: VmId, new_file: &NewFile<'_>) -> bool {
        self.keep_as(Origin::Unfinished, vm, new_file)
    }

    /// Keeps the file of a disk that moved away with its VM, if that is worthwhile; returns whether it did. Only images
    /// that stand alone are kept: an overlay is nothing without the file below it. Blocks. There must be no writer to the
    /// file any more.
    pub(crate) fn keep_left(&self, vm: VmId, device: &str, path: &Path) -> bool {
        let Ok(facts) = path.symlink_metadata() else { return false };
        if self.left_for.is_zero() || !facts.is_file() {
            return false;
        }
        let (format, virtual_size) = match image::header(path) {
            Ok(None) => (DiskFormat::Raw, ByteCount(facts.len())),
            Ok(Some(Header { backing: None, data_file: None, virtual_size, .. })) => (DiskFormat::Qcow2, virtual_size),
            Ok(Some(_)) | Err(_) => return false,
        };
        let lifecycle = Lifecycle::Planned;
        self.keep_as(
            Origin::Left,
            vm,
            &NewFile { device, path, format, virtual_size, naming: Naming::Final, lifecycle },
        )
    }

    fn keep_as(&self, origin: Origin, vm: VmId, new_file: &NewFile<'_>) -> bool {
        let NewFile { device, path, format, virtual_size, .. } = *new_file;
        if file::allocated(path).unwrap_or_default() < WORTH_KEEPING {
            return false;
        }
        let Some(_claim) = self.claim(vm, device) else { return false };
        // An older copy of the same disk exists.
        if self.record(vm, device).is_some_and(|older| !self.remove(&older)) {
            return false;
        }
        let kept_at_ms = now_ms();
        let kept = path.with_file_name(format!("{}-{kept_at_ms}.{ENDING}", name_of(vm, device)));
        let record = Record { vm, device: device.to_owned(), format, virtual_size, path: kept, kept_at_ms, origin };
        // The record is written first: a copy without one would stay for ever.
        let kept = records::write_json(&self.record_path(vm, device), &record).and_then(|()| {
            let renamed = file::rename_new(path, &record.path);
            renamed.map_err(|source| AgentError::File { path: path.to_owned(), source })
        });
        if let Err(error) = kept {
            warn!(disk = device, error = %chain(&error), "A partial copy could not be kept");
            self.remove(&record);
            return false;
        }
        let file = record.path.display();
        match origin {
            Origin::Unfinished => info!(disk = device, %file, "An unfinished copy is kept for the next attempt"),
            Origin::Left => info!(disk = device, %file, "The file that a VM left is kept for its return"),
        }
        self.kept.notify_one();
        true
    }

    /// Makes the partial copy of a disk its new file: renames it to that file's path, which must not exist. `None` if no
    /// copy fits; one of another format or size is removed. Blocks.
    pub(crate) fn reuse(&self, vm: VmId, requested: &NewFile<'_>) -> Option<PartialKey> {
        let device = requested.device;
        let _claim = self.claim(vm, device)?;
        let record = self.record(vm, device)?;
        if !record.is_of(requested) || !record.is_whole().unwrap_or_default() {
            self.remove(&record);
            return None;
        }
        // Fails across file systems and never replaces an existing file: the partial copy stays then.
        if let Err(error) = file::rename_new(&record.path, requested.path) {
            info!(disk = device, error = %chain(&error), "An unfinished copy is not used");
            return None;
        }
        if let Err(error) = records::remove(&self.record_path(vm, device)) {
            // The record names a file that no longer exists.
            warn!(disk = device, error = %chain(&error), "What was written down of a partial copy could not be removed");
        }
        Some(PartialKey { key: ferry_trust::random_secret() })
    }

    /// The space occupied by the partial copy that would become a new file, if there is one: that much less is needed.
    pub(crate) fn allocated(&self, vm: VmId, requested: &NewFile<'_>) -> ByteCount {
        let record = self.record(vm, requested.device).filter(|record| record.is_of(requested));
        let device = requested.path.parent().and_then(device_of);
        let record = record.filter(|record| device.is_some() && device_of(&record.path) == device);
        record.and_then(|record| file::allocated(&record.path).ok()).unwrap_or_default()
    }

    /// Bytes that partial copies occupy on a file system, by its device number, except those of one VM. Blocks.
    pub(crate) fn removable(&self, but: VmId, device: u64) -> ByteCount {
        ByteCount(self.removable_records(but, device).iter().map(|(_, taken)| taken.0).sum())
    }

    /// Removes partial copies on a file system, by its device number, except those of one VM, until `needed` bytes are
    /// freed: the oldest first, no more than necessary, and none if even all of them are not enough. Returns the bytes
    /// freed. Blocks.
    pub(crate) fn make_room(&self, but: VmId, device: u64, needed: ByteCount) -> ByteCount {
        let mut records = self.removable_records(but, device);
        if records.iter().map(|(_, taken)| taken.0).sum::<u64>() < needed.0 {
            return ByteCount(0);
        }
        records.sort_by_key(|(record, _)| record.kept_at_ms);
        let mut freed = ByteCount(0);
        for (record, taken) in records {
            if freed >= needed {
                break;
            }
            if self.claim(record.vm, &record.device).is_some_and(|_claim| self.remove(&record)) {
                info!(vm = %record.vm, disk = record.device, "An unfinished copy is removed: room is needed");
                freed.0 += taken.0;
            }
        }
        freed
    }

    fn removable_records(&self, but: VmId, device: u64) -> Vec<(Record, ByteCount)> {
        let others = self.records().into_iter().filter(|record| record.vm != but);
        let one = |record: Record| {
            let metadata = fs::symlink_metadata(&record.path).ok().filter(|metadata| metadata.dev() == device)?;
            Some((record, ByteCount(metadata.blocks() * 512)))
        };
        others.filter_map(one).collect()
    }

    /// Removes those that are too old, and the oldest beyond `most`.
    fn sweep(&self, most: usize) {
        let mut records = self.records();
        records.sort_by_key(|record| std::cmp::Reverse(record.kept_at_ms));
        let now = now_ms();
        for (place, record) in records.iter().enumerate() {
            let kept_for = match record.origin {
                Origin::Unfinished => KEPT_FOR,
                Origin::Left => self.left_for,
            };
            let is_old = now.saturating_sub(record.kept_at_ms) > kept_for.as_millis() as u64;
            if (place >= most || is_old)
                && let Some(_claim) = self.claim(record.vm, &record.device)
                // It may have been taken, and another kept, since it was read.
                && self.record(record.vm, &record.device).as_ref() == Some(record)
            {
                self.remove(record);
            }
        }
    }

    /// Removes a partial copy and its record; returns whether both are gone.
    fn remove(&self, record: &Record) -> bool {
        for path in [&record.path, &self.record_path(record.vm, &record.device)] {
            if let Err(error) = file::remove(path)
                // If the folder is gone, the copy is useless anyway.
                && error.kind() != io::ErrorKind::NotFound
            {
                warn!(file = %path.display(), error = %chain(&error), "A part of an unfinished copy could not be removed");
                return false;
            }
        }
        true
    }

    fn claim(&self, vm: VmId, device: &str) -> Option<Claim<'_>> {
        let record = self.record_path(vm, device);
        let is_free = lock(&self.busy).insert(record.clone());
        // Create a claim only if it is returned: dropping one would free the partial copy.
        if is_free { Some(Claim { busy: &self.busy, record }) } else { None }
    }

    fn records(&self) -> Vec<Record> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let records = entries.filter(|path| path.extension().is_some_and(|ending| ending == "json"));
        records.filter_map(|path| records::read_json(&path).ok().flatten()).collect()
    }

    fn record(&self, vm: VmId, device: &str) -> Option<Record> {
        records::read_json(&self.record_path(vm, device)).ok().flatten()
    }

    fn record_path(&self, vm: VmId, device: &str) -> PathBuf {
        self.folder.join(format!("{}.json", name_of(vm, device)))
    }
}

impl Record {
    fn is_of(&self, requested: &NewFile<'_>) -> bool {
        (self.format, self.virtual_size) == (requested.format, requested.virtual_size)
    }

    /// Whether the file is an image of the disk's size. A shorter raw file, such as one not copied to its end, is
    /// extended to that size.
    fn is_whole(&self) -> io::Result<bool> {
        match self.format {
            DiskFormat::Raw => {
                let length = fs::symlink_metadata(&self.path)?.len();
                if length < self.virtual_size.0 {
                    fs::OpenOptions::new().read(true).write(true).open(&self.path)?.set_len(self.virtual_size.0)?;
                }
                Ok(length <= self.virtual_size.0)
            }
            DiskFormat::Qcow2 => {
                Ok(image::header(&self.path)?.is_some_and(|header| header.virtual_size == self.virtual_size))
            }
        }
    }
}

/// Periodically removes partial copies that are too old or too many, as long as the object exists.
pub(crate) async fn sweep_for_ever(partials: Weak<PartialCopies>) {
    while let Some(here) = partials.upgrade() {
        let kept = Arc::clone(&here.kept);
        // Never two at a time: an unresponsive share is waited for.
        if tokio::task::spawn_blocking(move || here.sweep(PARTIALS_MAX)).await.is_err() {
            return;
        }
        let _ = tokio::time::timeout(SWEEP_EVERY, kept.notified()).await;
    }
}

/// The file name for this VM's disk, without the extension of its kind.
fn name_of(vm: VmId, device: &str) -> String {
    // Device names come from a definition: only their letters and digits are used in file names.
    let device: String = device.chars().filter(char::is_ascii_alphanumeric).collect();
    format!("{vm}-{device}")
}

fn device_of(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|metadata| metadata.dev())
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use uuid::Uuid;

    use super::*;

    fn vm(number: u128) -> VmId {
        VmId(Uuid::from_u128(number))
    }

    fn new_file(path: &Path, format: DiskFormat, virtual_size: ByteCount) -> NewFile<'_> {
        let owner = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        image::create(path, format, virtual_size, owner).expect("made");
        NewFile { device: "vda", path, format, virtual_size, naming: Naming::Final, lifecycle: Lifecycle::Planned }
    }

    /// A raw file of 64 MiB that holds 6 MiB of data.
    fn filled(path: &Path) -> NewFile<'_> {
        let new_file = new_file(path, DiskFormat::Raw, ByteCount::mib(64));
        let file = fs::File::options().write(true).open(path).expect("there");
        file.write_all_at(&vec![7; 6 << 20], 1 << 20).expect("written");
        new_file
    }

    /// Content of the folder except files with this name.
    fn others(folder: &Path, known: &str) -> Vec<String> {
        let names = fs::read_dir(folder).expect("there").flatten().map(|entry| entry.file_name());
        names.map(|name| name.to_string_lossy().into_owned()).filter(|name| name != known).collect()
    }

    #[test]
    fn an_unfinished_copy_becomes_the_file_of_the_next_attempt_at_once_also_after_a_restart() {
        let (folder, records) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let path = folder.path().join("disk.raw");
        let disk = filled(&path);
        assert!(PartialCopies::of(records.path().to_owned()).keep(vm(7), &disk));
        assert!(!disk.path.exists(), "its name is free");
        let kept = others(folder.path(), "");
        assert!(kept.len() == 1 && kept[0].starts_with(&vm(7).to_string()) && kept[0].ends_with(ENDING), "{kept:?}");
        let (partials, elsewhere) = (PartialCopies::of(records.path().to_owned()), folder.path().join("other.raw"));
        let other = NewFile { path: &elsewhere, ..disk };
        assert!(partials.allocated(vm(7), &other) >= ByteCount::mib(6));
        let nowhere = NewFile { path: Path::new("/proc/disk.raw"), ..disk };
        assert_eq!(partials.allocated(vm(7), &nowhere), ByteCount(0), "not from here");
        let larger = NewFile { virtual_size: ByteCount::mib(65), ..other };
        assert_eq!(partials.allocated(vm(7), &larger), ByteCount(0));
        assert!(partials.reuse(vm(8), &other).is_none(), "another VM's");
        assert!(partials.reuse(vm(7), &other).is_some());
        let extents = image::extents(&elsewhere, DiskFormat::Raw).expect("read");
        let data: Vec<_> = extents.iter().map(|extent| (extent.start, extent.start + extent.length)).collect();
        assert_eq!(data, [(1 << 20, 7 << 20)]);
        let mut held = vec![0; 6 << 20];
        fs::File::open(&elsewhere).expect("there").read_exact_at(&mut held, 1 << 20).expect("read");
        assert!(held.iter().all(|byte| *byte == 7), "with all it held");
        assert_eq!(partials.reuse(vm(7), &other), None, "it is taken once");
        assert_eq!((others(folder.path(), "other.raw"), others(records.path(), "")), (vec![], vec![]));
        // Again: the record holds nothing that could name another VM's file.
        assert!(partials.keep(vm(7), &other));
        assert!(partials.reuse(vm(7), &disk).is_some());
    }

    #[test]
    fn what_is_of_no_use_is_not_kept_and_what_does_not_fit_is_removed() {
        let (folder, records) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let partials = PartialCopies::of(records.path().to_owned());
        let [empty, first, second, third, qcow2] =
            ["empty.raw", "one.raw", "two.raw", "three.raw", "disk.qcow2"].map(|name| folder.path().join(name));
        assert!(!partials.keep(vm(9), &new_file(&empty, DiskFormat::Raw, ByteCount::mib(64))), "it holds nothing");
        let one = filled(&first);
        assert!(partials.keep(vm(9), &one));
        assert_eq!(partials.reuse(vm(9), &NewFile { virtual_size: ByteCount::mib(65), ..one }), None);
        assert_eq!(partials.records(), []);
        // A file that does not match its record is not taken.
        assert!(partials.keep(vm(9), &filled(&second)));
        let kept = partials.records()[0].path.clone();
        fs::File::options().write(true).open(&kept).expect("there").set_len(65 << 20).expect("longer");
        assert_eq!(partials.reuse(vm(9), &one), None);
        assert!(!kept.exists() && !first.exists());
        // A raw file that was not copied to its end is extended to its size.
        assert!(partials.keep(vm(9), &filled(&third)));
        let kept = partials.records()[0].path.clone();
        fs::File::options().write(true).open(&kept).expect("there").set_len(9 << 20).expect("shorter");
        assert!(partials.reuse(vm(9), &one).is_some());
        assert_eq!(fs::metadata(&first).expect("there").len(), 64 << 20);
        let NewFile { format, virtual_size, .. } = new_file(&qcow2, DiskFormat::Qcow2, ByteCount::mib(64));
        let record = Record {
            vm: vm(9),
            device: "vda".into(),
            format,
            virtual_size,
            path: qcow2,
            kept_at_ms: 1,
            origin: Origin::Unfinished,
        };
        assert!(record.is_whole().expect("read"));
        assert!(!Record { virtual_size: ByteCount::mib(65), ..record }.is_whole().expect("read"));
    }

    #[test]
    fn nothing_is_renamed_over_a_file_and_the_seed_stays_then() {
        let (folder, records) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let partials = PartialCopies::of(records.path().to_owned());
        let path = folder.path().join("disk.raw");
        let disk = filled(&path);
        assert!(partials.keep(vm(9), &disk));
        fs::write(disk.path, "precious").expect("written");
        assert_eq!(partials.reuse(vm(9), &disk), None);
        assert_eq!(fs::read(disk.path).expect("there"), b"precious");
        assert_eq!(partials.reuse(vm(9), &NewFile { path: Path::new("/proc/disk.raw"), ..disk }), None);
        let free = folder.path().join("free.raw");
        let elsewhere = NewFile { path: &free, ..disk };
        assert!(partials.reuse(vm(9), &elsewhere).is_some(), "it stayed");
        let error = file::rename_new(&free, disk.path).expect_err("it is there");
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        // The name of a kept file is unique, whatever else is in the folder.
        let mut occupied = path.clone().into_os_string();
        occupied.push(format!(".{ENDING}"));
        fs::write(&occupied, "precious").expect("written");
        assert!(partials.keep(vm(9), &elsewhere));
        assert_eq!(fs::read(&occupied).expect("there"), b"precious");
    }

    #[test]
    fn one_who_is_busy_with_a_seed_keeps_nobody_from_the_others() {
        let (folder, records) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let partials = PartialCopies::of(records.path().to_owned());
        for number in [1, 2] {
            assert!(partials.keep(vm(number), &filled(&folder.path().join(format!("{number}.raw")))));
        }
        let (path, free) = (folder.path().join("one.raw"), folder.path().join("free.raw"));
        let one = filled(&path);
        let elsewhere = NewFile { path: &free, ..one };
        let claim = partials.claim(vm(1), "vda").expect("free");
        assert_eq!(partials.reuse(vm(1), &elsewhere), None);
        partials.sweep(0);
        assert_eq!(partials.records().len(), 1, "the other one is removed");
        drop(claim);
        assert!(partials.reuse(vm(1), &elsewhere).is_some());
        assert!(partials.keep(vm(1), &NewFile { device: "vdb", ..one }), "another disk");
    }

    fn put(partials: &PartialCopies, number: u64, path: PathBuf, kept_at_ms: u64) {
        put_as(Origin::Unfinished, partials, number, path, kept_at_ms);
    }

    fn put_as(origin: Origin, partials: &PartialCopies, number: u64, path: PathBuf, kept_at_ms: u64) {
        let (vm, device) = (vm(u128::from(number)), "vda".to_owned());
        let (format, virtual_size) = (DiskFormat::Raw, ByteCount::mib(1));
        let record = Record { vm, device, format, virtual_size, path, kept_at_ms, origin };
        records::write_json(&partials.record_path(record.vm, "vda"), &record).expect("written");
    }

    #[test]
    fn room_is_made_where_it_is_needed_by_the_oldest_and_only_if_that_is_enough() {
        let (folder, records) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let partials = PartialCopies::of(records.path().to_owned());
        let here = device_of(folder.path()).expect("there");
        let path = |number: u64| folder.path().join(format!("{number}.{ENDING}"));
        let now = now_ms();
        for number in 1..=4 {
            fs::write(path(number), vec![1; 1 << 20]).expect("written");
            // The oldest has the largest number.
            put(&partials, number, path(number), now - number);
        }
        // One that cannot be removed and is the oldest.
        fs::create_dir(path(5)).expect("made");
        fs::write(path(5).join("inside"), "x").expect("written");
        put(&partials, 5, path(5), 7);
        let left = || (1..=4).filter(|number| path(*number).exists()).collect::<Vec<_>>();
        let all = partials.removable(vm(9), here);
        assert!(all >= ByteCount::mib(4), "{all}");
        assert!(partials.removable(vm(4), here) < all, "its own does not count");
        assert_eq!(partials.removable(vm(9), here + 1), ByteCount(0), "another file system");
        for (but, device, needed) in [(9, here + 1, 1), (9, here, all.0 + 1)] {
            assert_eq!(partials.make_room(vm(but), device, ByteCount(needed)), ByteCount(0));
            assert_eq!(left(), [1, 2, 3, 4], "nothing is removed in vain");
        }
        let freed = partials.make_room(vm(4), here, ByteCount((1 << 20) + 1));
        assert!(freed >= ByteCount::mib(2), "{freed}");
        assert_eq!(left(), [1, 4], "the oldest, but neither the VM's own nor more than are needed");
        assert!(path(5).exists());
        assert!(partials.make_room(vm(9), here, ByteCount(1)) >= ByteCount::mib(1), "what cannot be removed is no end");
        assert_eq!(left(), [1]);
    }

    #[test]
    fn the_file_that_a_vm_left_becomes_its_new_file_when_it_returns() {
        let (folder, records) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let partials = PartialCopies::of(records.path().to_owned());
        let paths = ["disk.raw", "disk.qcow2", "link.raw", "overlay.qcow2"].map(|name| folder.path().join(name));
        let [raw, qcow2, link, overlay] = &paths;
        let disk = filled(raw);
        std::os::unix::fs::symlink(raw, link).expect("linked");
        assert!(!partials.keep_left(vm(7), "vda", link), "only the name would be moved");
        let run = |line: &[&str]| {
            assert!(std::process::Command::new("qemu-img").args(line).output().expect("run").status.success())
        };
        let text = |path: &PathBuf| path.to_str().expect("plain").to_owned();
        run(&["create", "-q", "-f", "qcow2", "-b", &text(raw), "-F", "raw", &text(overlay)]);
        assert!(!partials.keep_left(vm(7), "vda", overlay), "it is nothing without the file below it");
        assert!(!partials.keep_left(vm(7), "vda", &folder.path().join("none")));
        let none = PartialCopies { left_for: Duration::ZERO, ..PartialCopies::of(records.path().to_owned()) };
        assert!(!none.keep_left(vm(7), "vda", raw), "the administrator wants none");
        assert!(raw.exists() && partials.records().is_empty());

        assert!(partials.keep_left(vm(7), "vda", raw) && !raw.exists());
        assert!(partials.reuse(vm(7), &disk).is_some() && raw.exists(), "as it was");
        run(&["convert", "-q", "-O", "qcow2", &text(raw), &text(qcow2)]);
        assert!(partials.keep_left(vm(7), "vda", qcow2));
        let back = NewFile { path: qcow2, format: DiskFormat::Qcow2, ..disk };
        assert!(partials.reuse(vm(7), &back).is_some() && qcow2.exists());
    }

    #[test]
    fn what_a_vm_left_is_kept_for_as_long_as_was_set_and_an_unfinished_copy_for_a_day() {
        const HOUR_MS: u64 = 60 * 60 * 1000;
        let folder = tempfile::tempdir().expect("a folder");
        let partials = PartialCopies::of(folder.path().to_owned());
        let cases = [(Origin::Left, 1, false), (Origin::Unfinished, 1, true), (Origin::Unfinished, 24, false)];
        for (number, (origin, hours, _)) in (0..).zip(cases) {
            let path = folder.path().join(format!("{number}.{ENDING}"));
            fs::write(&path, "x").expect("written");
            put_as(origin, &partials, number, path, now_ms() - hours * HOUR_MS - 1000);
        }
        partials.sweep(PARTIALS_MAX);
        for (number, (origin, hours, stays)) in (0..).zip(cases) {
            let path: PathBuf = folder.path().join(format!("{number}.{ENDING}"));
            assert_eq!(path.exists(), stays, "{origin:?} after {hours} h");
        }
    }

    #[test]
    fn old_ones_and_too_many_are_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let partials = PartialCopies::of(folder.path().to_owned());
        for number in 0..20_u64 {
            let path = folder.path().join(format!("{number}.{ENDING}"));
            fs::write(&path, "x").expect("written");
            put(&partials, number, path, if number < 2 { 5 } else { now_ms() - number });
        }
        partials.sweep(PARTIALS_MAX);
        let left = partials.records();
        assert_eq!(left.len(), PARTIALS_MAX);
        assert!(left.iter().all(|record| record.kept_at_ms > 5 && record.path.exists()));
    }

    #[tokio::test]
    async fn seeds_are_looked_after_by_themselves_for_as_long_as_somebody_keeps_them() {
        let folder = tempfile::tempdir().expect("a folder");
        let partials = Arc::new(PartialCopies::of(folder.path().to_owned()));
        put(&partials, 1, folder.path().join(format!("1.{ENDING}")), 5);
        let task = tokio::spawn(sweep_for_ever(Arc::downgrade(&partials)));
        let swept = async {
            while !partials.records().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), swept).await.expect("swept at once");
        let kept = Arc::clone(&partials.kept);
        drop(partials);
        kept.notify_one();
        tokio::time::timeout(Duration::from_secs(20), task).await.expect("it ends").expect("it ends well");
    }
}
