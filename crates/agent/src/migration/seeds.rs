//! Copies of disks that were not finished, kept for the next attempt: it sends only what differs.
//!
//! ```text
//! undone ─▶ keep: file ─▶ VM-device-time.ferry-seed ─▶ a new attempt ─▶ take: back to a file ─▶ look: read and hashed
//!                           └─ a day later, when there are too many, or when room is needed ─▶ removed
//! ```
//! To keep and to take is to rename: nothing has to be done, or to be waited for, in between. What a file holds is read
//! by the carrier of the attempt that uses it, before anything is written to it (`look`).
//!
//! A seed is a guess, never the truth: each block that the source names by its hash is read and compared when it is
//! used (`ferry_wire::nbd`), and everything else of the disk is sent.

use std::{
    collections::HashSet,
    fs,
    io::{self, Read as _},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, Weak},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use ferry_core::{api::agent::DiskArrival, id::VmId, pin::Secret, units::ByteCount, vm::DiskFormat};
use ferry_drivers::{file, image};
use ferry_wire::nbd::seed::{BLOCK_BYTES, RUN_BLOCKS_MAX, SeedIndex, SeedKey};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tracing::{info, warn};

use super::arrivals::Arrival;
use crate::{AgentError, config::Config, error::chain, files};

/// How long a seed is kept.
const KEPT_FOR: Duration = Duration::from_secs(24 * 60 * 60);
/// Seeds of one host.
const SEEDS_MAX: usize = 16;
/// How often it is seen to it that seeds are neither too old nor too many; also when one was kept.
const SWEEP_EVERY: Duration = Duration::from_secs(60 * 60);
/// A copy that holds less is made anew in no time.
const WORTH_KEEPING: ByteCount = ByteCount::mib(4);
/// While a file is read, the source hears something so often at least: it waits for no dead end.
const TOLD_EVERY: Duration = Duration::from_secs(1);
/// How the name of a file ends that is a seed.
const ENDING: &str = "ferry-seed";

/// What is written down of a seed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Page {
    vm: VmId,
    device: String,
    format: DiskFormat,
    virtual_size: ByteCount,
    /// The file.
    path: PathBuf,
    /// Unix milliseconds.
    kept_at_ms: u64,
}

/// A seed that became the file of a disk which comes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sown {
    /// Of the hashes of this attempt.
    pub key: Secret,
}

/// The seeds of a host.
pub struct Seeds {
    folder: PathBuf,
    /// Pages of seeds that are being changed. Nobody waits for another: a share that does not answer holds up what is
    /// done with its own seeds.
    busy: Mutex<HashSet<PathBuf>>,
    kept: Arc<Notify>,
}

/// A seed that nobody else changes meanwhile.
struct Claim<'a> {
    busy: &'a Mutex<HashSet<PathBuf>>,
    page: PathBuf,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.busy.lock().expect("nobody panics while holding it").remove(&self.page);
    }
}

impl Seeds {
    /// Finds the seeds that were kept.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn load(config: &Config) -> Result<Self, AgentError> {
        let folder = config.seeds_dir();
        files::ensure_private_dir(&folder)?;
        // Pages are read when they are needed. Of a damaged one nobody would ever hear.
        files::read_pages::<Page>(&folder, |_| true)?;
        Ok(Self::of(folder))
    }

    fn of(folder: PathBuf) -> Self {
        Self { folder, busy: Mutex::default(), kept: Arc::default() }
    }

    /// Keeps the file of a disk that did not come, if that is worth it; whether it did. Blocks. Nobody may write to the
    /// file any more.
    pub(crate) fn keep(&self, vm: VmId, arrival: &Arrival) -> bool {
        if !arrival.made || file::allocated(&arrival.path).unwrap_or_default() < WORTH_KEEPING {
            return false;
        }
        let Some(_claim) = self.claim(vm, &arrival.device) else { return false };
        // A seed of the same disk is older.
        if self.page(vm, &arrival.device).is_some_and(|older| !self.remove(&older)) {
            return false;
        }
        let kept_at_ms = now_ms();
        let name = format!("{}-{kept_at_ms}.{ENDING}", name_of(vm, &arrival.device));
        let page = Page {
            vm,
            device: arrival.device.clone(),
            format: arrival.format,
            virtual_size: arrival.virtual_size,
            path: arrival.path.with_file_name(name),
            kept_at_ms,
        };
        // Written down first: a seed of which nobody knows would stay for ever.
        let kept = files::write_json(&self.page_path(vm, &arrival.device), &page).and_then(|()| {
            let renamed = file::rename_new(&arrival.path, &page.path);
            renamed.map_err(|source| AgentError::File { path: arrival.path.clone(), source })
        });
        if let Err(error) = kept {
            warn!(%vm, disk = arrival.device, error = %chain(&error), "an unfinished copy could not be kept");
            self.remove(&page);
            return false;
        }
        info!(%vm, disk = page.device, file = %page.path.display(), "an unfinished copy is kept for the next attempt");
        self.kept.notify_one();
        true
    }

    /// Makes the seed of a disk the file of a disk that comes: renamed to `path`, where nothing may be. `None` if there
    /// is none that fits; one of another format or size is removed. Blocks.
    pub(crate) fn take(&self, vm: VmId, wanted: &DiskArrival, path: &Path) -> Option<Sown> {
        let _claim = self.claim(vm, &wanted.device)?;
        let page = self.page(vm, &wanted.device)?;
        if !page.is_of(wanted) || !page.is_whole().unwrap_or_default() {
            self.remove(&page);
            return None;
        }
        // Not on another file system, and never over a file that is there: the seed stays then.
        if let Err(error) = file::rename_new(&page.path, path) {
            info!(%vm, disk = page.device, %error, "an unfinished copy is not used");
            return None;
        }
        if let Err(error) = files::remove(&self.page_path(vm, &wanted.device)) {
            // It names a file that is not there any more.
            warn!(%vm, disk = page.device, error = %chain(&error), "what was written down of a seed could not be removed");
        }
        Some(Sown { key: ferry_trust::random_secret() })
    }

    /// What the seed of a disk takes that would become the file at `path`, if there is one: so much less room is needed.
    pub(crate) fn held(&self, vm: VmId, wanted: &DiskArrival, path: &Path) -> ByteCount {
        let page = self.page(vm, &wanted.device).filter(|page| page.is_of(wanted));
        let device = path.parent().and_then(device_of);
        let page = page.filter(|page| device.is_some() && device_of(&page.path) == device);
        page.and_then(|page| file::allocated(&page.path).ok()).unwrap_or_default()
    }

    /// What seeds take on a file system, by its device number, but for those of one VM. Blocks.
    pub(crate) fn removable(&self, but: VmId, device: u64) -> ByteCount {
        ByteCount(self.removable_pages(but, device).iter().map(|(_, taken)| taken.0).sum())
    }

    /// Removes seeds on a file system, by its device number, but none of one VM, until so much is free again: the oldest
    /// first, no more than are needed, and none at all if all of them were not enough. What became free. Blocks.
    pub(crate) fn make_room(&self, but: VmId, device: u64, needed: ByteCount) -> ByteCount {
        let mut pages = self.removable_pages(but, device);
        if pages.iter().map(|(_, taken)| taken.0).sum::<u64>() < needed.0 {
            return ByteCount(0);
        }
        pages.sort_by_key(|(page, _)| page.kept_at_ms);
        let mut freed = ByteCount(0);
        for (page, taken) in pages {
            if freed >= needed {
                break;
            }
            if self.claim(page.vm, &page.device).is_some_and(|_claim| self.remove(&page)) {
                info!(vm = %page.vm, disk = page.device, "an unfinished copy is removed: room is needed");
                freed.0 += taken.0;
            }
        }
        freed
    }

    fn removable_pages(&self, but: VmId, device: u64) -> Vec<(Page, ByteCount)> {
        let others = self.pages().into_iter().filter(|page| page.vm != but);
        let one = |page: Page| {
            let metadata = fs::symlink_metadata(&page.path).ok().filter(|metadata| metadata.dev() == device)?;
            Some((page, ByteCount(metadata.blocks() * 512)))
        };
        others.filter_map(one).collect()
    }

    /// Removes what is too old, and the oldest beyond `most`.
    fn sweep(&self, most: usize) {
        let mut pages = self.pages();
        pages.sort_by_key(|page| std::cmp::Reverse(page.kept_at_ms));
        let oldest = now_ms().saturating_sub(KEPT_FOR.as_millis() as u64);
        for (place, page) in pages.iter().enumerate() {
            if (place >= most || page.kept_at_ms < oldest)
                && let Some(_claim) = self.claim(page.vm, &page.device)
                // It may have been taken, and another be kept, since it was looked at.
                && self.page(page.vm, &page.device).as_ref() == Some(page)
            {
                self.remove(page);
            }
        }
    }

    /// Whether all of it is gone.
    fn remove(&self, page: &Page) -> bool {
        for path in [&page.path, &self.page_path(page.vm, &page.device)] {
            if let Err(error) = file::remove(path)
                // A guess whose folder is gone is of no use.
                && error.kind() != io::ErrorKind::NotFound
            {
                warn!(file = %path.display(), %error, "a part of an unfinished copy could not be removed");
                return false;
            }
        }
        true
    }

    fn claim(&self, vm: VmId, device: &str) -> Option<Claim<'_>> {
        let page = self.page_path(vm, device);
        let is_free = self.busy.lock().expect("nobody panics while holding it").insert(page.clone());
        // No claim is made that is not given: its end would free the seed.
        if is_free { Some(Claim { busy: &self.busy, page }) } else { None }
    }

    fn pages(&self) -> Vec<Page> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let pages = entries.filter(|path| path.extension().is_some_and(|ending| ending == "json"));
        pages.filter_map(|path| files::read_json(&path).ok().flatten()).collect()
    }

    fn page(&self, vm: VmId, device: &str) -> Option<Page> {
        files::read_json(&self.page_path(vm, device)).ok().flatten()
    }

    fn page_path(&self, vm: VmId, device: &str) -> PathBuf {
        self.folder.join(format!("{}.json", name_of(vm, device)))
    }
}

impl Page {
    fn is_of(&self, wanted: &DiskArrival) -> bool {
        (self.format, self.virtual_size) == (wanted.format, wanted.virtual_size)
    }

    /// Whether the file is an image of the disk's size. A raw one that is shorter, as a file that was not copied to its
    /// end, gets its length.
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
                // QEMU's `docs/interop/qcow2`: `QFI\xfb`, and the virtual size as a big-endian number from byte 24 on.
                let mut head = [0; 32];
                fs::File::open(&self.path)?.read_exact(&mut head)?;
                Ok(head.starts_with(b"QFI\xfb") && head[24..] == self.virtual_size.0.to_be_bytes())
            }
        }
    }
}

/// Sees to it that seeds are neither too old nor too many, for as long as there is somebody to keep them.
pub(crate) async fn sweep_for_ever(seeds: Weak<Seeds>) {
    while let Some(here) = seeds.upgrade() {
        let kept = Arc::clone(&here.kept);
        // Not two at a time: a share that does not answer is waited for.
        if tokio::task::spawn_blocking(move || here.sweep(SEEDS_MAX)).await.is_err() {
            return;
        }
        let _ = tokio::time::timeout(SWEEP_EVERY, kept.notified()).await;
    }
}

/// What a file of this VM's disk is called, without what belongs to its kind.
fn name_of(vm: VmId, device: &str) -> String {
    // A device's name comes from a definition: only its letters and digits make a file's name.
    let device: String = device.chars().filter(char::is_ascii_alphanumeric).collect();
    format!("{vm}-{device}")
}

fn device_of(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|metadata| metadata.dev())
}

/// Reads what an image holds that nobody writes meanwhile: tells first where its data lie, from where to where, then the
/// bytes of its index ([`SeedIndex::encode`]) piece by piece, until `tell` says that nobody listens. Blocks for as long as
/// reading takes.
///
/// # Errors
/// When it cannot be read. What was told until then is right.
pub(super) fn look(
    path: &Path,
    format: DiskFormat,
    key: SeedKey,
    found: impl FnOnce(Vec<(u64, u64)>),
    mut tell: impl FnMut(Vec<u8>) -> bool,
) -> io::Result<()> {
    let extents = image::extents(path, format)?;
    let file = fs::File::open(path)?;
    found(extents.iter().map(|extent| (extent.start, extent.start + extent.length)).collect());
    let mut is_heard = tell(SeedIndex::new(key).encode());
    let (mut index, mut blocks, mut told_at) = (SeedIndex::new(key), 0, Instant::now());
    // A block is what all parts of it hold that touch it, and zeroes between them.
    let (mut number, mut block) = (None, vec![0; BLOCK_BYTES as usize]);
    for extent in &extents {
        let (mut at, end) = (extent.start, extent.start + extent.length);
        while at < end && is_heard {
            let here = at / BLOCK_BYTES;
            if number != Some(here) {
                if let Some(number) = number.replace(here) {
                    index.insert(number, &block);
                    blocks += 1;
                }
                if blocks >= RUN_BLOCKS_MAX || (blocks > 0 && told_at.elapsed() >= TOLD_EVERY) {
                    is_heard = tell(index.runs());
                    (index, blocks, told_at) = (SeedIndex::new(key), 0, Instant::now());
                }
                block.fill(0);
            }
            let part_end = end.min((here + 1) * BLOCK_BYTES);
            let part = &mut block[(at % BLOCK_BYTES) as usize..][..(part_end - at) as usize];
            file.read_exact_at(part, extent.offset + (at - extent.start))?;
            at = part_end;
        }
    }
    if let Some(number) = number {
        index.insert(number, &block);
        tell(index.runs());
    }
    Ok(())
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use ferry_core::{id::HostId, location::Location};
    use uuid::Uuid;

    use super::*;
    use crate::migration::mark::Mark;

    const KEY: SeedKey = SeedKey([4; 32]);

    fn vm(number: u128) -> VmId {
        VmId(Uuid::from_u128(number))
    }

    fn arrival(path: PathBuf, format: DiskFormat, size: ByteCount) -> Arrival {
        let owner = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        image::create(&path, format, size, owner).expect("made");
        Arrival {
            device: "vda".into(),
            path,
            format,
            virtual_size: size,
            made: true,
            mark: Mark::default(),
            sown: None,
        }
    }

    /// A raw one of 64 MiB that holds six.
    fn filled(path: PathBuf) -> Arrival {
        let arrival = arrival(path, DiskFormat::Raw, ByteCount::mib(64));
        let file = fs::File::options().write(true).open(&arrival.path).expect("there");
        file.write_all_at(&vec![7; 6 << 20], 1 << 20).expect("written");
        arrival
    }

    fn wanted(arrival: &Arrival) -> DiskArrival {
        DiskArrival {
            device: arrival.device.clone(),
            to: Location::Local { host: HostId(Uuid::nil()), path: String::new() },
            format: arrival.format,
            virtual_size: arrival.virtual_size,
            allocated: ByteCount::mib(8),
        }
    }

    fn looked(path: &Path, format: DiskFormat) -> (Vec<(u64, u64)>, SeedIndex) {
        let (mut data, mut bytes) = (Vec::new(), Vec::new());
        let tell = |piece: Vec<u8>| {
            bytes.extend(piece);
            true
        };
        look(path, format, KEY, |found| data = found, tell).expect("read");
        (data, SeedIndex::decode(&bytes).expect("whole"))
    }

    /// What is in the folder, but for what is called so.
    fn others(folder: &Path, known: &str) -> Vec<String> {
        let names = fs::read_dir(folder).expect("there").flatten().map(|entry| entry.file_name());
        names.map(|name| name.to_string_lossy().into_owned()).filter(|name| name != known).collect()
    }

    #[test]
    fn an_unfinished_copy_becomes_the_file_of_the_next_attempt_at_once_also_after_a_restart() {
        let (folder, pages) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let disk = filled(folder.path().join("disk.raw"));
        assert!(Seeds::of(pages.path().to_owned()).keep(vm(7), &disk));
        assert!(!disk.path.exists(), "its name is free");
        let kept = others(folder.path(), "");
        assert!(kept.len() == 1 && kept[0].starts_with(&vm(7).to_string()) && kept[0].ends_with(ENDING), "{kept:?}");
        let (seeds, elsewhere) = (Seeds::of(pages.path().to_owned()), folder.path().join("other.raw"));
        assert!(seeds.held(vm(7), &wanted(&disk), &elsewhere) >= ByteCount::mib(6));
        assert_eq!(seeds.held(vm(7), &wanted(&disk), Path::new("/proc/disk.raw")), ByteCount(0), "not from here");
        let larger = DiskArrival { virtual_size: ByteCount::mib(65), ..wanted(&disk) };
        assert_eq!(seeds.held(vm(7), &larger, &elsewhere), ByteCount(0));
        assert!(seeds.take(vm(8), &wanted(&disk), &elsewhere).is_none(), "another VM's");
        assert!(seeds.take(vm(7), &wanted(&disk), &elsewhere).is_some());
        let (data, index) = looked(&elsewhere, DiskFormat::Raw);
        assert_eq!((data, index.blocks() as u64), (vec![(1 << 20, 7 << 20)], (6 << 20) / BLOCK_BYTES));
        assert_eq!(seeds.take(vm(7), &wanted(&disk), &elsewhere), None, "it is taken once");
        assert_eq!((others(folder.path(), "other.raw"), others(pages.path(), "")), (vec![], vec![]));
        // And again: nothing was written down of what it holds that could be another's.
        assert!(seeds.keep(vm(7), &Arrival { path: elsewhere.clone(), ..disk.clone() }));
        assert!(seeds.take(vm(7), &wanted(&disk), &disk.path).is_some());
    }

    #[test]
    fn blocks_with_holes_inside_are_known() {
        let folder = tempfile::tempdir().expect("a folder");
        let plain = folder.path().join("plain.raw");
        fs::File::create(&plain).expect("made").set_len(9 << 30).expect("sparse");
        // From 8 GiB on, parts of a cluster of qcow2 are 16 KiB.
        let images = [(DiskFormat::Raw, "disk.raw"), (DiskFormat::Qcow2, "disk.qcow2")];
        let images = images.map(|(format, name)| arrival(folder.path().join(name), format, ByteCount::gib(9)));
        let writes = ["write -P 3 1M 16k", "write -P 4 1072k 16k", "write -P 5 3M 512k", "write -P 6 5120k 4k"];
        for (path, format) in images.iter().map(|image| (&image.path, image.format)).chain([(&plain, DiskFormat::Raw)])
        {
            let mut tool = Command::new("qemu-io");
            for write in writes {
                tool.args(["-c", write]);
            }
            let done = tool.args(["-f", format.name()]).arg(path).output().expect("qemu-io is installed");
            assert!(done.status.success(), "{done:?}");
        }
        let (mut expected, content) = (SeedIndex::new(KEY), fs::File::open(&plain).expect("there"));
        let mut bytes = vec![0; BLOCK_BYTES as usize];
        for block in 0..(6 << 20) / BLOCK_BYTES {
            content.read_exact_at(&mut bytes, block * BLOCK_BYTES).expect("read");
            expected.insert(block, &bytes);
        }
        assert_eq!(expected.blocks(), 10);
        for image in images {
            let (data, index) = looked(&image.path, image.format);
            assert_eq!(index, expected, "{:?}", image.format);
            assert!(data.iter().map(|(start, end)| end - start).sum::<u64>() < 1 << 20, "{data:?}");
        }
    }

    #[test]
    fn a_file_is_read_for_as_long_as_somebody_listens() {
        let folder = tempfile::tempdir().expect("a folder");
        let disk = arrival(folder.path().join("disk.raw"), DiskFormat::Raw, ByteCount::mib(256));
        let file = fs::File::options().write(true).open(&disk.path).expect("there");
        file.write_all_at(&vec![7; 200 << 20], 0).expect("written");
        let mut pieces = 0;
        let tell = |piece: Vec<u8>| {
            assert!(piece.len() <= 12 + 16 * RUN_BLOCKS_MAX);
            pieces += 1;
            pieces < 2
        };
        look(&disk.path, disk.format, KEY, |_| {}, tell).expect("read");
        assert!(pieces <= 3, "{pieces} pieces");
        assert_eq!(looked(&disk.path, disk.format).1.blocks(), 3200);
    }

    #[test]
    fn what_is_of_no_use_is_not_kept_and_what_does_not_fit_is_removed() {
        let (folder, pages) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let seeds = Seeds::of(pages.path().to_owned());
        let empty = arrival(folder.path().join("empty.raw"), DiskFormat::Raw, ByteCount::mib(64));
        assert!(!seeds.keep(vm(9), &empty), "it holds nothing");
        let one = filled(folder.path().join("one.raw"));
        assert!(!seeds.keep(vm(9), &Arrival { made: false, ..one.clone() }), "it is not ours");
        assert!(seeds.keep(vm(9), &one));
        let larger = DiskArrival { virtual_size: ByteCount::mib(65), ..wanted(&one) };
        assert_eq!(seeds.take(vm(9), &larger, &one.path), None);
        assert_eq!(seeds.pages(), []);
        // Nor what is not what was written down.
        assert!(seeds.keep(vm(9), &filled(folder.path().join("two.raw"))));
        let kept = seeds.pages()[0].path.clone();
        fs::File::options().write(true).open(&kept).expect("there").set_len(65 << 20).expect("longer");
        assert_eq!(seeds.take(vm(9), &wanted(&one), &one.path), None);
        assert!(!kept.exists() && !one.path.exists());
        // A raw file that was not copied to its end gets its length.
        assert!(seeds.keep(vm(9), &filled(folder.path().join("three.raw"))));
        let kept = seeds.pages()[0].path.clone();
        fs::File::options().write(true).open(&kept).expect("there").set_len(9 << 20).expect("shorter");
        assert!(seeds.take(vm(9), &wanted(&one), &one.path).is_some());
        assert_eq!(fs::metadata(&one.path).expect("there").len(), 64 << 20);
        let disk = arrival(folder.path().join("disk.qcow2"), DiskFormat::Qcow2, ByteCount::mib(64));
        let page = Page {
            vm: vm(9),
            device: "vda".into(),
            format: disk.format,
            virtual_size: disk.virtual_size,
            path: disk.path,
            kept_at_ms: 1,
        };
        assert!(page.is_whole().expect("read"));
        assert!(!Page { virtual_size: ByteCount::mib(65), ..page }.is_whole().expect("read"));
    }

    #[test]
    fn nothing_is_renamed_over_a_file_and_the_seed_stays_then() {
        let (folder, pages) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let seeds = Seeds::of(pages.path().to_owned());
        let disk = filled(folder.path().join("disk.raw"));
        assert!(seeds.keep(vm(9), &disk));
        fs::write(&disk.path, "precious").expect("written");
        assert_eq!(seeds.take(vm(9), &wanted(&disk), &disk.path), None);
        assert_eq!(fs::read(&disk.path).expect("there"), b"precious");
        let nowhere = Path::new("/proc/disk.raw");
        assert_eq!(seeds.take(vm(9), &wanted(&disk), nowhere), None);
        let free = folder.path().join("free.raw");
        assert!(seeds.take(vm(9), &wanted(&disk), &free).is_some(), "it stayed");
        let error = file::rename_new(&free, &disk.path).expect_err("it is there");
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        // The name of a file that is kept is that of no other, whatever lies around.
        let mut occupied = disk.path.clone().into_os_string();
        occupied.push(format!(".{ENDING}"));
        fs::write(&occupied, "precious").expect("written");
        assert!(seeds.keep(vm(9), &Arrival { path: free, ..disk }));
        assert_eq!(fs::read(&occupied).expect("there"), b"precious");
    }

    #[test]
    fn one_who_is_busy_with_a_seed_keeps_nobody_from_the_others() {
        let (folder, pages) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let seeds = Seeds::of(pages.path().to_owned());
        for number in [1, 2] {
            assert!(seeds.keep(vm(number), &filled(folder.path().join(format!("{number}.raw")))));
        }
        let (mut one, free) = (filled(folder.path().join("one.raw")), folder.path().join("free.raw"));
        let claim = seeds.claim(vm(1), "vda").expect("free");
        assert_eq!(seeds.take(vm(1), &wanted(&one), &free), None);
        seeds.sweep(0);
        assert_eq!(seeds.pages().len(), 1, "the other one is removed");
        drop(claim);
        assert!(seeds.take(vm(1), &wanted(&one), &free).is_some());
        one.device = "vdb".into();
        assert!(seeds.keep(vm(1), &one), "another disk");
    }

    fn put(seeds: &Seeds, number: u64, path: PathBuf, kept_at_ms: u64) {
        let (vm, device) = (vm(u128::from(number)), "vda".to_owned());
        let (format, virtual_size) = (DiskFormat::Raw, ByteCount::mib(1));
        let page = Page { vm, device, format, virtual_size, path, kept_at_ms };
        files::write_json(&seeds.page_path(page.vm, "vda"), &page).expect("written");
    }

    #[test]
    fn room_is_made_where_it_is_needed_by_the_oldest_and_only_if_that_is_enough() {
        let (folder, pages) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let seeds = Seeds::of(pages.path().to_owned());
        let here = device_of(folder.path()).expect("there");
        let path = |number: u64| folder.path().join(format!("{number}.{ENDING}"));
        let now = now_ms();
        for number in 1..=4 {
            fs::write(path(number), vec![1; 1 << 20]).expect("written");
            // The oldest has the largest number.
            put(&seeds, number, path(number), now - number);
        }
        // One that cannot be removed, and is the oldest of all.
        fs::create_dir(path(5)).expect("made");
        fs::write(path(5).join("inside"), "x").expect("written");
        put(&seeds, 5, path(5), 7);
        let left = || (1..=4).filter(|number| path(*number).exists()).collect::<Vec<_>>();
        let all = seeds.removable(vm(9), here);
        assert!(all >= ByteCount::mib(4), "{all}");
        assert!(seeds.removable(vm(4), here) < all, "its own does not count");
        assert_eq!(seeds.removable(vm(9), here + 1), ByteCount(0), "another file system");
        for (but, device, needed) in [(9, here + 1, 1), (9, here, all.0 + 1)] {
            assert_eq!(seeds.make_room(vm(but), device, ByteCount(needed)), ByteCount(0));
            assert_eq!(left(), [1, 2, 3, 4], "nothing is removed in vain");
        }
        let freed = seeds.make_room(vm(4), here, ByteCount((1 << 20) + 1));
        assert!(freed >= ByteCount::mib(2), "{freed}");
        assert_eq!(left(), [1, 4], "the oldest, but neither the VM's own nor more than are needed");
        assert!(path(5).exists());
        assert!(seeds.make_room(vm(9), here, ByteCount(1)) >= ByteCount::mib(1), "what cannot be removed is no end");
        assert_eq!(left(), [1]);
    }

    #[test]
    fn old_ones_and_too_many_are_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let seeds = Seeds::of(folder.path().to_owned());
        for number in 0..20_u64 {
            let path = folder.path().join(format!("{number}.{ENDING}"));
            fs::write(&path, "x").expect("written");
            put(&seeds, number, path, if number < 2 { 5 } else { now_ms() - number });
        }
        seeds.sweep(SEEDS_MAX);
        let left = seeds.pages();
        assert_eq!(left.len(), SEEDS_MAX);
        assert!(left.iter().all(|page| page.kept_at_ms > 5 && page.path.exists()));
    }

    #[tokio::test]
    async fn seeds_are_looked_after_by_themselves_for_as_long_as_somebody_keeps_them() {
        let folder = tempfile::tempdir().expect("a folder");
        let seeds = Arc::new(Seeds::of(folder.path().to_owned()));
        put(&seeds, 1, folder.path().join(format!("1.{ENDING}")), 5);
        let task = tokio::spawn(sweep_for_ever(Arc::downgrade(&seeds)));
        let swept = async {
            while !seeds.pages().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), swept).await.expect("swept at once");
        let kept = Arc::clone(&seeds.kept);
        drop(seeds);
        kept.notify_one();
        tokio::time::timeout(Duration::from_secs(20), task).await.expect("it ends").expect("it ends well");
    }
}
