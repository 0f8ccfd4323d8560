//! Facts about files of VMs: the backing files of disks of VMs that are shut off, which image headers name and
//! definitions do not; and the path of each file with links and further mounts resolved.
//!
//! A file may be on a file server that is away, and a query of the host's state must not wait for that. So one thread
//! reads, and until it has, the previous result is reported.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, mpsc},
    thread,
    time::{Duration, Instant},
};

use ferry_core::{
    error::chain,
    vm::{VmFacts, VmFile, VmState},
};
use ferry_drivers::{hypervisor::images_to_ask, identity::Mounts, image, places::Places};
use tracing::{debug, warn};

use crate::lock::lock;

/// How long a refresh of the host's state waits for files.
const READ_WITHIN: Duration = Duration::from_millis(500);
/// Headers and links rarely change: a file is read again after this time.
const READ_EVERY: Duration = Duration::from_secs(30);

/// What was read so far.
#[derive(Clone, Default)]
pub(crate) struct Chains(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    known: BTreeMap<PathBuf, (Instant, Vec<PathBuf>)>,
    /// Paths with links resolved; `None` if that failed.
    canonical: BTreeMap<PathBuf, (Instant, Option<PathBuf>)>,
    /// Whether a thread is reading.
    reading: bool,
}

impl Chains {
    /// Adds the backing files of VMs that are shut off and the resolved paths of all files, as far as they are known.
    pub(crate) fn fill(&self, vms: &mut [VmFacts<PathBuf>], places: &Places) {
        let off = |vm: &&VmFacts<PathBuf>| vm.state == VmState::ShutOff;
        let images: BTreeSet<PathBuf> = vms.iter().filter(off).flat_map(|vm| images_to_ask(&vm.files)).collect();
        let named: BTreeSet<PathBuf> = {
            let state = self.locked();
            let named = vms.iter().flat_map(|vm| &vm.files).flat_map(VmFile::places);
            let below = images.iter().filter_map(|image| state.known.get(image)).flat_map(|(_, below)| below);
            let files = named.chain(below).map(PathBuf::as_path);
            files.chain(places.mounts()).filter(|path| path.is_absolute()).map(Path::to_owned).collect()
        };
        self.read(&images, &named);
        let mounts =
            Mounts::now().inspect_err(|error| warn!(error = %chain(&error), "What is mounted could not be read")).ok();
        let state = self.locked();
        let canonical = |path: &Path| state.canonical.get(path).and_then(|(_, canonical)| canonical.clone());
        let top = |mount: &Path| canonical(mount).unwrap_or_else(|| mount.to_owned());
        let shares: Vec<_> = places.mounts().map(|mount| (top(mount), mount)).collect();
        let real = |path: &PathBuf| {
            let real = mounts.as_ref()?.real(&shares, &canonical(path)?);
            (real != *path).then_some(real)
        };
        for vm in vms.iter_mut() {
            let asked = if vm.state == VmState::ShutOff { images_to_ask(&vm.files) } else { BTreeSet::new() };
            for file in &mut vm.files {
                if let Some((_, below)) = state.known.get(&file.place).filter(|_| asked.contains(&file.place)) {
                    file.has_backing |= !below.is_empty();
                    file.below.clone_from(below);
                }
                file.real = real(&file.place);
                file.real_below = file.below.iter().filter_map(real).collect();
            }
        }
    }

    /// Reads what is unknown or was read too long ago. Takes at most [`READ_WITHIN`].
    fn read(&self, images: &BTreeSet<PathBuf>, named: &BTreeSet<PathBuf>) {
        let (images, named) = {
            let mut state = self.locked();
            state.known.retain(|image, _| images.contains(image));
            state.canonical.retain(|path, _| named.contains(path));
            let is_old = |read_at: &Instant| read_at.elapsed() >= READ_EVERY;
            let unread = |image: &&PathBuf| state.known.get(*image).is_none_or(|(read_at, _)| is_old(read_at));
            let unfollowed = |path: &&PathBuf| state.canonical.get(*path).is_none_or(|(read_at, _)| is_old(read_at));
            let images: Vec<PathBuf> = images.iter().filter(unread).cloned().collect();
            let named: Vec<PathBuf> = named.iter().filter(unfollowed).cloned().collect();
            if (images.is_empty() && named.is_empty()) || state.reading {
                return;
            }
            state.reading = true;
            (images, named)
        };
        let (done, read) = mpsc::sync_channel(1);
        let this = self.clone();
        let reader = thread::Builder::new().name("chains".to_owned()).spawn(move || {
            for path in images {
                // Newly found backing files are followed at once.
                for below in this.read_one(path) {
                    this.follow(below);
                }
            }
            for path in named {
                this.follow(path);
            }
            this.locked().reading = false;
            let _ = done.send(());
        });
        match reader {
            Ok(_) => drop(read.recv_timeout(READ_WITHIN)),
            Err(_) => self.locked().reading = false,
        }
    }

    fn follow(&self, path: PathBuf) {
        let canonical = path.canonicalize().ok();
        self.locked().canonical.insert(path, (Instant::now(), canonical));
    }

    /// The backing files of an image.
    fn read_one(&self, path: PathBuf) -> Vec<PathBuf> {
        let read = image::below(&path);
        let mut state = self.locked();
        match read {
            Ok(below) => {
                state.known.insert(path, (Instant::now(), below.clone()));
                below
            }
            Err(error) => {
                debug!(image = %path.display(), error = %chain(&error), "What lies below it could not be read");
                let (read_at, _) = state.known.entry(path).or_insert_with(|| (Instant::now(), Vec::new()));
                *read_at = Instant::now();
                Vec::new()
            }
        }
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use ferry_core::{
        id::{HostId, ShareId},
        vm::DiskFormat,
    };
    use ferry_drivers::hypervisor::fake::FakeGuest;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn an_overlay_of_a_vm_that_is_shut_off_tells_its_base() {
        let folder = tempfile::tempdir().expect("a folder");
        let top = folder.path().canonicalize().expect("there");
        let places = Places::new(HostId(Uuid::from_u128(1)), Vec::new());
        let (base, clone) = (top.join("base.raw"), top.join("clone.qcow2"));
        std::fs::write(&base, [0; 4096]).expect("written");
        let mut tool = Command::new("qemu-img");
        tool.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).arg(&base).arg(&clone);
        assert!(tool.status().expect("qemu-img is installed").success());
        let mut facts = FakeGuest::new("clone", &[clone.clone(), top.join("none.qcow2"), base.clone()]).facts;
        for file in &mut facts.files[..2] {
            file.format = Some(DiskFormat::Qcow2);
        }
        let running = VmFacts { state: VmState::Running, ..facts.clone() };
        let mut vms = [facts, running];
        let chains = Chains::default();
        chains.fill(&mut vms, &places);
        let below: Vec<_> = vms[0].files.iter().map(|file| (file.has_backing, file.below.clone())).collect();
        assert_eq!(below, [(true, vec![base]), (false, Vec::new()), (false, Vec::new())]);
        assert!(vms[1].files[0].below.is_empty(), "the definition by which it runs tells that");
        // Entries that no VM names any more are dropped.
        chains.fill(&mut [], &places);
        assert!(chains.locked().known.is_empty());
    }

    #[test]
    fn files_of_every_vm_are_told_by_what_they_really_are_also_those_below() {
        let folder = tempfile::tempdir().expect("a folder");
        let top = folder.path().canonicalize().expect("there");
        std::fs::create_dir(top.join("share")).expect("made");
        std::os::unix::fs::symlink("share", top.join("store")).expect("made");
        let share = ShareId(Uuid::from_u128(2));
        let places = Places::new(HostId(Uuid::from_u128(1)), vec![(share, top.join("share"))]);
        let (base, clone) = (top.join("store/base.raw"), top.join("store/clone.qcow2"));
        std::fs::write(&base, [0; 4096]).expect("written");
        let mut tool = Command::new("qemu-img");
        tool.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).arg(&base).arg(&clone);
        assert!(tool.status().expect("qemu-img is installed").success());
        let mut off = FakeGuest::new("clone", std::slice::from_ref(&clone)).facts;
        off.files[0].format = Some(DiskFormat::Qcow2);
        let plain = FakeGuest::new("plain", &[top.join("share/base.raw"), "pool/volume".into()]).facts;
        let mut vms = [off, VmFacts { state: VmState::Running, ..plain }];
        Chains::default().fill(&mut vms, &places);
        let file = &vms[0].files[0];
        assert_eq!(file.real, Some(top.join("share/clone.qcow2")));
        assert_eq!((&file.below, &file.real_below), (&vec![base], &vec![top.join("share/base.raw")]));
        assert!(vms[1].files.iter().all(|file| file.real.is_none()), "they have one name");
        assert!(vms[0].files[0].needs(&vms[1].files[0]));
    }
}
