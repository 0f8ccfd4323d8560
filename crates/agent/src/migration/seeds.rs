//! Copies of disks that were not finished, kept for the next attempt: it sends only what differs.
//!
//! ```text
//! undone ─▶ keep: file ─▶ file.ferry-seed, its blocks are hashed ─▶ a new move of the same disk ─▶ take: back to a file
//!                                └─ a day later, when room is needed, or when there are too many ─▶ removed
//! ```
//! A seed is a guess, never the truth: each block that the source names by its hash is read and compared when it is
//! used (`ferry_wire::nbd`), and everything else of the disk is sent.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ferry_core::{api::agent::DiskArrival, id::VmId, pin::Secret, units::ByteCount, vm::DiskFormat};
use ferry_drivers::image;
use ferry_wire::nbd::seed::{BLOCK_BYTES, SeedIndex, SeedKey};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::arrivals::Arrival;
use crate::{AgentError, config::Config, error::chain, files};

/// How long a seed is kept.
const KEPT_FOR: Duration = Duration::from_secs(24 * 60 * 60);
/// Seeds of one host.
const SEEDS_MAX: usize = 16;
/// A copy that holds less is made anew in no time.
const WORTH_KEEPING: ByteCount = ByteCount::mib(4);
/// Blocks of one seed: what lies behind is sent again. 64 GiB of data.
const BLOCKS_MAX: usize = 1 << 20;
/// Largest index of a seed, as it is stored and sent.
pub(super) const INDEX_BYTES_MAX: u64 = 64 << 20;
/// What is appended to the name of a file that is a seed.
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
    /// Of its hashes.
    key: Secret,
    /// Unix milliseconds.
    kept_at_ms: u64,
}

/// A seed that became the file of a disk which comes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sown {
    /// Of its hashes.
    pub key: Secret,
    /// Where its index is.
    pub index: PathBuf,
}

/// The seeds of a host.
pub struct Seeds {
    folder: PathBuf,
    /// Held by whoever changes something.
    turn: Arc<Mutex<()>>,
}

impl Seeds {
    /// Finds the seeds that were kept, and removes those that are too old.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub fn load(config: &Config) -> Result<Self, AgentError> {
        let folder = config.state_dir.join("seeds");
        files::ensure_private_dir(&folder)?;
        let seeds = Self { folder, turn: Arc::default() };
        seeds.sweep(SEEDS_MAX);
        Ok(seeds)
    }

    /// Keeps the file of a disk that did not come, if that is worth it; whether it did. Blocks; its blocks are hashed
    /// afterwards, on a thread of their own. Nobody may write to the file any more.
    pub(crate) fn keep(&self, vm: VmId, arrival: &Arrival) -> bool {
        let _turn = self.turn.lock().expect("nobody panics while holding it");
        if !arrival.made || image::allocated(&arrival.path).unwrap_or_default() < WORTH_KEEPING {
            return false;
        }
        let mut path = arrival.path.clone().into_os_string();
        path.push(format!(".{ENDING}"));
        let page = Page {
            vm,
            device: arrival.device.clone(),
            format: arrival.format,
            virtual_size: arrival.virtual_size,
            path: path.into(),
            key: ferry_trust::random_secret(),
            kept_at_ms: now_ms(),
        };
        self.sweep(SEEDS_MAX - 1);
        // A seed of the same disk is older.
        if let Some(older) = self.page(vm, &arrival.device) {
            self.remove(&older);
        }
        let kept = files::write_json(&self.page_path(vm, &arrival.device), &page).and_then(|()| {
            let renamed = fs::rename(&arrival.path, &page.path);
            renamed.map_err(|source| AgentError::File { path: arrival.path.clone(), source })
        });
        if let Err(error) = kept {
            warn!(%vm, disk = arrival.device, error = %chain(&error), "an unfinished copy could not be kept");
            self.remove(&page);
            return false;
        }
        info!(%vm, disk = page.device, file = %page.path.display(), "an unfinished copy is kept for the next attempt");
        let (turn, index_path) = (Arc::clone(&self.turn), self.index_path(vm, &page.device));
        std::thread::spawn(move || {
            let made = index(&page).and_then(|index| {
                // The seed may have been taken or removed meanwhile.
                let _turn = turn.lock().expect("nobody panics while holding it");
                if page.path.exists() { write_index(&index_path, &index) } else { Ok(()) }
            });
            if let Err(error) = made {
                warn!(disk = page.device, %error, "an unfinished copy could not be read: the next attempt begins anew");
            }
        });
        true
    }

    /// Makes the seed of a disk the file of a disk that comes: renamed to `path`, where nothing may be. `None` if there
    /// is none that fits; one that does not is removed. Blocks.
    pub(crate) fn take(&self, vm: VmId, wanted: &DiskArrival, path: &Path) -> Option<Sown> {
        let _turn = self.turn.lock().expect("nobody panics while holding it");
        let page = self.page(vm, &wanted.device)?;
        let index = self.index_path(vm, &wanted.device);
        let fits = (page.format, page.virtual_size) == (wanted.format, wanted.virtual_size) && index.exists();
        // Not on another file system, and never over a file that is there.
        let taken = fits && !path.exists() && fs::rename(&page.path, path).is_ok();
        let sown = index.with_extension("sown");
        if taken && fs::rename(&index, &sown).is_ok() {
            let _ = files::remove(&self.page_path(vm, &wanted.device));
            return Some(Sown { key: page.key, index: sown });
        }
        if taken {
            // It is not known what the file holds: that is of no use, and not of this name.
            let _ = image::remove(path);
        }
        self.remove(&page);
        None
    }

    /// As [`Self::take`], for whoever finds out by itself what the file holds: whether it has. Blocks.
    pub(crate) fn take_file(&self, vm: VmId, wanted: &DiskArrival, path: &Path) -> bool {
        let _turn = self.turn.lock().expect("nobody panics while holding it");
        let Some(page) = self.page(vm, &wanted.device) else { return false };
        let fits = (page.format, page.virtual_size) == (wanted.format, wanted.virtual_size);
        let taken = fits && !path.exists() && fs::rename(&page.path, path).is_ok();
        // Its page and its index go, and its file if it was not taken.
        self.remove(&page);
        taken
    }

    /// What the seed of a disk takes, if there is one: so much less room is needed for the disk.
    pub(crate) fn held(&self, vm: VmId, wanted: &DiskArrival) -> ByteCount {
        let page = self.page(vm, &wanted.device).filter(|page| page.virtual_size == wanted.virtual_size);
        page.and_then(|page| image::allocated(&page.path).ok()).unwrap_or_default()
    }

    /// Removes every seed: room is needed. Whether there were any.
    pub(super) fn make_room(&self) -> bool {
        let _turn = self.turn.lock().expect("nobody panics while holding it");
        let pages = self.pages();
        pages.iter().for_each(|page| self.remove(page));
        !pages.is_empty()
    }

    /// Removes what is too old, and the oldest beyond `most`.
    fn sweep(&self, most: usize) {
        let mut pages = self.pages();
        pages.sort_by_key(|page| std::cmp::Reverse(page.kept_at_ms));
        let oldest = now_ms().saturating_sub(KEPT_FOR.as_millis() as u64);
        for (place, page) in pages.iter().enumerate() {
            if place >= most || page.kept_at_ms < oldest {
                self.remove(page);
            }
        }
    }

    fn remove(&self, page: &Page) {
        let paths = [page.path.clone(), self.index_path(page.vm, &page.device), self.page_path(page.vm, &page.device)];
        for path in paths {
            if let Err(error) = image::remove(&path) {
                warn!(file = %path.display(), %error, "a part of an unfinished copy could not be removed");
                return;
            }
        }
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
        // A device's name comes from a definition: only its letters and digits make a file's name.
        let device: String = device.chars().filter(char::is_ascii_alphanumeric).collect();
        self.folder.join(format!("{vm}-{device}.json"))
    }

    fn index_path(&self, vm: VmId, device: &str) -> PathBuf {
        self.page_path(vm, device).with_extension("index")
    }
}

/// What a file holds. Reads all of its data.
fn index(page: &Page) -> std::io::Result<SeedIndex> {
    let mut index = SeedIndex::new(SeedKey(page.key.0));
    let file = fs::File::open(&page.path)?;
    let mut block = vec![0; BLOCK_BYTES as usize];
    for extent in image::extents(&page.path, page.format)? {
        let mut at = extent.start.next_multiple_of(BLOCK_BYTES);
        while at + BLOCK_BYTES <= extent.start + extent.length && index.blocks() < BLOCKS_MAX {
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut block, extent.offset + (at - extent.start))?;
            index.insert(at / BLOCK_BYTES, &block);
            at += BLOCK_BYTES;
        }
    }
    Ok(index)
}

fn write_index(path: &Path, index: &SeedIndex) -> std::io::Result<()> {
    let making = path.with_extension("making");
    let mut file = fs::File::create(&making)?;
    file.write_all(&index.encode())?;
    fs::rename(&making, path)
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::FileExt as _, time::Instant};

    use ferry_core::{id::HostId, location::Location};
    use uuid::Uuid;

    use super::*;

    fn seeds(folder: &Path) -> Seeds {
        Seeds { folder: folder.to_owned(), turn: Arc::default() }
    }

    fn arrival(path: PathBuf, format: DiskFormat) -> Arrival {
        let owner = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        image::create(&path, format, ByteCount::mib(64), owner).expect("made");
        Arrival { device: "vda".into(), path, format, virtual_size: ByteCount::mib(64), made: true, sown: None }
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

    fn wait_for_index(seeds: &Seeds, vm: VmId) {
        let until = Instant::now() + Duration::from_secs(20);
        while !seeds.index_path(vm, "vda").exists() {
            assert!(Instant::now() < until, "it is not hashed in time");
            std::thread::yield_now();
        }
    }

    #[test]
    fn an_unfinished_copy_becomes_the_file_of_the_next_attempt_with_what_it_holds() {
        let folder = tempfile::tempdir().expect("a folder");
        let (seeds, vm) = (seeds(folder.path()), VmId(Uuid::from_u128(7)));
        let arrival = arrival(folder.path().join("disk.raw"), DiskFormat::Raw);
        let file = fs::File::options().write(true).open(&arrival.path).expect("there");
        file.write_all_at(&vec![7; 6 << 20], 1 << 20).expect("written");
        assert!(seeds.keep(vm, &arrival));
        assert!(!arrival.path.exists(), "its name is free");
        wait_for_index(&seeds, vm);
        assert!(seeds.held(vm, &wanted(&arrival)) >= ByteCount::mib(6));
        let elsewhere = folder.path().join("other.raw");
        let sown = seeds.take(vm, &wanted(&arrival), &elsewhere).expect("it fits");
        let index = SeedIndex::decode(&fs::read(&sown.index).expect("there")).expect("whole");
        assert_eq!(index.blocks() as u64, (6 << 20) / BLOCK_BYTES);
        assert_eq!(fs::read(&elsewhere).expect("there")[1 << 20], 7);
        assert_eq!(seeds.take(vm, &wanted(&arrival), &elsewhere), None, "it is taken once");
    }

    #[test]
    fn an_overlay_format_is_read_by_what_its_tables_say() {
        let folder = tempfile::tempdir().expect("a folder");
        let (seeds, vm) = (seeds(folder.path()), VmId(Uuid::from_u128(8)));
        let arrival = arrival(folder.path().join("disk.qcow2"), DiskFormat::Qcow2);
        let write = format!("write -P 9 5M {}", 6 << 20);
        let mut tool = std::process::Command::new("qemu-io");
        let done = tool.args(["-f", "qcow2", "-c", &write]).arg(&arrival.path).output().expect("qemu-io is installed");
        assert!(done.status.success(), "{done:?}");
        assert!(seeds.keep(vm, &arrival));
        wait_for_index(&seeds, vm);
        let sown = seeds.take(vm, &wanted(&arrival), &arrival.path).expect("it fits");
        let index = SeedIndex::decode(&fs::read(&sown.index).expect("there")).expect("whole");
        assert_eq!(index.blocks() as u64, (6 << 20) / BLOCK_BYTES);
    }

    #[test]
    fn what_is_of_no_use_is_not_kept_and_what_does_not_fit_is_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let (seeds, vm) = (seeds(folder.path()), VmId(Uuid::from_u128(9)));
        let empty = arrival(folder.path().join("empty.raw"), DiskFormat::Raw);
        assert!(!seeds.keep(vm, &empty), "it holds nothing");
        let filled = |name: &str| {
            let arrival = arrival(folder.path().join(name), DiskFormat::Raw);
            let file = fs::File::options().write(true).open(&arrival.path).expect("there");
            file.write_all_at(&vec![7; 6 << 20], 0).expect("written");
            arrival
        };
        let one = filled("one.raw");
        assert!(!seeds.keep(vm, &Arrival { made: false, ..one.clone() }), "it is not ours");
        assert!(seeds.keep(vm, &one));
        wait_for_index(&seeds, vm);
        let larger = DiskArrival { virtual_size: ByteCount::mib(65), ..wanted(&one) };
        assert_eq!(seeds.take(vm, &larger, &one.path), None);
        assert_eq!(seeds.pages(), []);
        assert!(seeds.keep(vm, &filled("two.raw")));
        assert!(seeds.make_room() && !seeds.make_room());
        let left = fs::read_dir(folder.path()).expect("there").flatten();
        let left: Vec<_> = left.map(|entry| entry.file_name()).filter(|name| name != "empty.raw").collect();
        assert!(left.iter().all(|name| !name.to_string_lossy().ends_with(ENDING)), "{left:?}");
    }

    #[test]
    fn old_ones_and_too_many_are_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let seeds = seeds(folder.path());
        for number in 0..20_u64 {
            let path = folder.path().join(format!("{number}.{ENDING}"));
            fs::write(&path, "x").expect("written");
            let page = Page {
                vm: VmId(Uuid::from_u128(u128::from(number))),
                device: "vda".into(),
                format: DiskFormat::Raw,
                virtual_size: ByteCount::mib(1),
                path,
                key: ferry_trust::random_secret(),
                kept_at_ms: if number < 2 { 5 } else { now_ms() - number },
            };
            files::write_json(&seeds.page_path(page.vm, "vda"), &page).expect("written");
        }
        seeds.sweep(SEEDS_MAX);
        let left = seeds.pages();
        assert_eq!(left.len(), SEEDS_MAX);
        assert!(left.iter().all(|page| page.kept_at_ms > 5 && page.path.exists()));
    }
}
