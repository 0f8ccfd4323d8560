//! Copies of a fake guest's disks.

use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use ferry_core::{id::VmId, units::ByteCount};

use super::{
    FakeHypervisor,
    copies::Copy,
    faults::{Point, Struck},
    host::{Process, State, failed, no_vm},
};
use crate::hypervisor::{BlockCopy, DiskCopy, DiskCopyRequest, DiskSize, DomainEvent, HypervisorError};

fn broken(what: String) -> impl FnOnce(std::io::Error) -> HypervisorError {
    move |error| HypervisorError::Failed { what, reason: error.to_string() }
}

/// The file of a disk.
fn disk<'a>(state: &'a mut State, vm: VmId, device: &str, what: &str) -> Result<&'a mut PathBuf, HypervisorError> {
    let files = &mut no_vm(state, vm)?.facts.files;
    let found = files.iter_mut().find(|file| file.device == device).map(|file| &mut file.place);
    found.ok_or_else(|| HypervisorError::Failed { what: what.to_owned(), reason: "invalid path".to_owned() })
}

impl BlockCopy for FakeHypervisor {
    fn disk_size(&self, vm: VmId, device: &str) -> Result<DiskSize, HypervisorError> {
        let what = format!("Could not read the size of disk {device} of VM {vm}");
        let mut state = self.host.call(Point::Vms, || what.clone())?;
        let metadata = disk(&mut state, vm, device, &what)?.metadata().map_err(broken(what))?;
        Ok(DiskSize { virtual_size: ByteCount(metadata.len()), allocated: ByteCount(metadata.blocks() * 512) })
    }

    fn copy_disk(&self, request: &DiskCopyRequest) -> Result<(), HypervisorError> {
        let DiskCopyRequest { vm, device, to, .. } = request;
        let what = format!("Could not copy disk {device} of VM {vm} to {}", to.display());
        let mut state = self.host.call(Point::CopyDisk, || what.clone())?;
        let from = disk(&mut state, *vm, device, &what)?.clone();
        let entry = no_vm(&mut state, *vm)?;
        if !matches!(entry.process, Process::Running(_) | Process::Paused(_)) {
            return failed(what, "domain is not running");
        }
        if entry.copies.contains_key(device) {
            return failed(what, "disk is already active in a block job");
        }
        let length = |path: &Path| path.metadata().map(|metadata| metadata.len());
        let total = length(&from).map_err(broken(what.clone()))?;
        if length(to).map_err(broken(what.clone()))? != total {
            return failed(what, "the sizes differ");
        }
        let copy = Copy::begin(request.clone(), from, total);
        entry.copies.insert(device.clone(), copy);
        Ok(())
    }

    fn disk_copy(&self, vm: VmId, device: &str) -> Result<Option<DiskCopy>, HypervisorError> {
        let what = || format!("Could not read the copy of disk {device} of VM {vm}");
        let there = no_vm(&mut *self.host.call(Point::Vms, what)?, vm)?.copies.contains_key(device);
        // Without the lock, because a part may be held back.
        let struck = if there { self.host.faults.meet(Point::CopyPart) } else { Ok(()) };
        let mut state = self.host.call(Point::Vms, what)?;
        let copies = &mut no_vm(&mut state, vm)?.copies;
        if let Err(Struck::Failed(_) | Struck::Cut) = struck {
            copies.remove(device);
        }
        let Some(copy) = copies.get_mut(device) else { return Ok(None) };
        if copy.step().is_err() {
            copies.remove(device);
            return Ok(None);
        }
        Ok(Some(DiskCopy {
            to: copy.request.to.clone(),
            copied: ByteCount(copy.copied),
            total: ByteCount(copy.total),
            ready: copy.ready,
        }))
    }

    fn pivot_disk(&self, vm: VmId, device: &str) -> Result<(), HypervisorError> {
        let what = format!("Could not switch disk {device} of VM {vm} to its copy");
        let mut state = self.host.call(Point::PivotDisk, || what.clone())?;
        let Some(copy) = no_vm(&mut state, vm)?.copies.get_mut(device).filter(|copy| copy.ready) else {
            return failed(what, "the copy is not ready for pivot yet");
        };
        copy.once_more().map_err(broken(what.clone()))?;
        let request = copy.request.clone();
        *disk(&mut state, vm, device, &what)? = request.to;
        let entry = no_vm(&mut state, vm)?;
        entry.copies.remove(device);
        for file in entry.facts.files.iter_mut().filter(|file| file.device == device) {
            file.format = Some(request.format);
            // The copy contains the whole chain.
            file.has_backing = false;
            file.below.clear();
        }
        drop(state);
        self.host.notify(DomainEvent::Changed(vm));
        match self.host.faults.meet(Point::PivotedDisk) {
            Ok(()) => Ok(()),
            Err(Struck::Failed(reason)) => Err(HypervisorError::Failed { what, reason }),
            Err(Struck::Cut) => Err(HypervisorError::Unreachable("the connection broke".to_owned())),
        }
    }

    fn abandon_disk_copy(&self, vm: VmId, device: &str) -> Result<(), HypervisorError> {
        let mut state =
            self.host.call(Point::Abort, || format!("Could not end the copy of disk {device} of VM {vm}"))?;
        if let Some(entry) = state.vms.get_mut(&vm) {
            entry.copies.remove(device);
        }
        Ok(())
    }
}
