//! What lies below the disks of VMs that are shut off: their definitions do not tell, their images' headers do.
//!
//! A header may lie on a file server that is away, and whoever asks what the host has must not wait for that. So one
//! thread reads, and until it has, what was read last is told.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, mpsc},
    thread,
    time::{Duration, Instant},
};

use ferry_core::vm::{VmFacts, VmState};
use ferry_drivers::{hypervisor::images_to_ask, image};
use tracing::debug;

/// How long a look at the host waits for headers.
const READ_WITHIN: Duration = Duration::from_millis(500);
/// Headers change seldom: an image is read again after so long.
const READ_EVERY: Duration = Duration::from_secs(30);

/// What was read.
#[derive(Clone, Default)]
pub(crate) struct Chains(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    known: BTreeMap<PathBuf, (Instant, Vec<PathBuf>)>,
    /// Whether a thread reads.
    reading: bool,
}

impl Chains {
    /// Adds to VMs that are shut off what lies below their disks, as far as that is known.
    pub(crate) fn fill(&self, vms: &mut [VmFacts<PathBuf>]) {
        let off = |vm: &&VmFacts<PathBuf>| vm.state == VmState::ShutOff;
        let images: BTreeSet<PathBuf> = vms.iter().filter(off).flat_map(|vm| images_to_ask(&vm.files)).collect();
        self.read(&images);
        let state = self.locked();
        for vm in vms.iter_mut().filter(|vm| vm.state == VmState::ShutOff) {
            let asked = images_to_ask(&vm.files);
            for file in vm.files.iter_mut().filter(|file| asked.contains(&file.place)) {
                if let Some((_, below)) = state.known.get(&file.place) {
                    file.has_backing |= !below.is_empty();
                    file.below.clone_from(below);
                }
            }
        }
    }

    /// Reads what is not known, or was read too long ago. Takes [`READ_WITHIN`] at most.
    fn read(&self, images: &BTreeSet<PathBuf>) {
        let due: Vec<PathBuf> = {
            let mut state = self.locked();
            state.known.retain(|image, _| images.contains(image));
            let is_due =
                |image: &&PathBuf| state.known.get(*image).is_none_or(|(read_at, _)| read_at.elapsed() >= READ_EVERY);
            let due: Vec<_> = images.iter().filter(is_due).cloned().collect();
            if due.is_empty() || state.reading {
                return;
            }
            state.reading = true;
            due
        };
        let (done, read) = mpsc::sync_channel(1);
        let this = self.clone();
        let reader = thread::Builder::new().name("chains".to_owned()).spawn(move || {
            for path in due {
                this.read_one(path);
            }
            this.locked().reading = false;
            let _ = done.send(());
        });
        match reader {
            Ok(_) => drop(read.recv_timeout(READ_WITHIN)),
            Err(_) => self.locked().reading = false,
        }
    }

    fn read_one(&self, path: PathBuf) {
        let read = image::below(&path);
        let mut state = self.locked();
        match read {
            Ok(below) => drop(state.known.insert(path, (Instant::now(), below))),
            Err(error) => {
                debug!(image = %path.display(), %error, "what lies below it could not be read");
                let (read_at, _) = state.known.entry(path).or_insert_with(|| (Instant::now(), Vec::new()));
                *read_at = Instant::now();
            }
        }
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nobody panics while holding it")
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use ferry_core::vm::DiskFormat;
    use ferry_drivers::hypervisor::fake::FakeGuest;

    use super::*;

    #[test]
    fn an_overlay_of_a_vm_that_is_shut_off_tells_its_base() {
        let folder = tempfile::tempdir().expect("a folder");
        let (base, clone) = (folder.path().join("base.raw"), folder.path().join("clone.qcow2"));
        std::fs::write(&base, [0; 4096]).expect("written");
        let mut tool = Command::new("qemu-img");
        tool.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).arg(&base).arg(&clone);
        assert!(tool.status().expect("qemu-img is installed").success());
        let mut facts = FakeGuest::new("clone", &[clone.clone(), folder.path().join("none.qcow2"), base.clone()]).facts;
        for file in &mut facts.files[..2] {
            file.format = Some(DiskFormat::Qcow2);
        }
        let running = VmFacts { state: VmState::Running, ..facts.clone() };
        let mut vms = [facts, running];
        let chains = Chains::default();
        chains.fill(&mut vms);
        let below: Vec<_> = vms[0].files.iter().map(|file| (file.has_backing, file.below.clone())).collect();
        assert_eq!(below, [(true, vec![base]), (false, Vec::new()), (false, Vec::new())]);
        assert!(vms[1].files[0].below.is_empty(), "the definition by which it runs tells that");
        // What no VM names any more is not remembered.
        chains.fill(&mut []);
        assert!(chains.locked().known.is_empty());
    }
}
