//! Copies of a fake guest's disks. Time is virtual: each look at a copy is one part of it.

use std::{
    fs::File,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use super::{DiskCopy, DiskCopyRequest, DiskSize, DomainEvent, Host, HypervisorError, Point, Process, State, failed};
use super::{Struck, VmId, no_vm};
use crate::hypervisor::ByteCount;

/// Looks that a copy takes.
const PARTS: u64 = 4;

/// A copy that goes on.
pub(super) struct Copy {
    request: DiskCopyRequest,
    from: PathBuf,
    total: u64,
    copied: u64,
    ready: bool,
}

fn broken(what: String) -> impl FnOnce(std::io::Error) -> HypervisorError {
    move |error| HypervisorError::Failed { what, reason: error.to_string() }
}

/// The file of a disk.
fn disk<'a>(state: &'a mut State, vm: VmId, device: &str, what: &str) -> Result<&'a mut PathBuf, HypervisorError> {
    let files = &mut no_vm(state, vm)?.facts.files;
    let found = files.iter_mut().find(|file| file.device == device).map(|file| &mut file.place);
    found.ok_or_else(|| HypervisorError::Failed { what: what.to_owned(), reason: "invalid path".to_owned() })
}

pub(super) fn size(host: &Host, vm: VmId, device: &str) -> Result<DiskSize, HypervisorError> {
    let what = format!("Could not read the size of disk {device} of VM {vm}");
    let mut state = host.call(Point::Vms, || what.clone())?;
    let metadata = disk(&mut state, vm, device, &what)?.metadata().map_err(broken(what))?;
    Ok(DiskSize { virtual_size: ByteCount(metadata.len()), allocated: ByteCount(metadata.blocks() * 512) })
}

pub(super) fn begin(host: &Host, request: &DiskCopyRequest) -> Result<(), HypervisorError> {
    let DiskCopyRequest { vm, device, to, .. } = request;
    let what = format!("Could not copy disk {device} of VM {vm} to {}", to.display());
    let mut state = host.call(Point::CopyDisk, || what.clone())?;
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
    let copy = Copy { request: request.clone(), from, total, copied: 0, ready: false };
    entry.copies.insert(device.clone(), copy);
    Ok(())
}

pub(super) fn look(host: &Host, vm: VmId, device: &str) -> Result<Option<DiskCopy>, HypervisorError> {
    let what = || format!("Could not read the copy of disk {device} of VM {vm}");
    let there = no_vm(&mut *host.call(Point::Vms, what)?, vm)?.copies.contains_key(device);
    // Not under the lock: a part may be held back.
    let struck = if there { host.faults.meet(Point::CopyPart) } else { Ok(()) };
    let mut state = host.call(Point::Vms, what)?;
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

pub(super) fn pivot(host: &Host, vm: VmId, device: &str) -> Result<(), HypervisorError> {
    let what = format!("Could not switch disk {device} of VM {vm} to its copy");
    let mut state = host.call(Point::PivotDisk, || what.clone())?;
    let Some(copy) = no_vm(&mut state, vm)?.copies.get_mut(device).filter(|copy| copy.ready) else {
        return failed(what, "the copy is not ready for pivot yet");
    };
    // What the guest wrote since.
    copy.copied = 0;
    copy.all().map_err(broken(what.clone()))?;
    let request = copy.request.clone();
    *disk(&mut state, vm, device, &what)? = request.to;
    let entry = no_vm(&mut state, vm)?;
    entry.copies.remove(device);
    for file in entry.facts.files.iter_mut().filter(|file| file.device == device) {
        file.format = Some(request.format);
        // The copy holds the whole chain.
        file.has_backing = false;
        file.below.clear();
    }
    drop(state);
    host.notify(DomainEvent::Changed(vm));
    match host.faults.meet(Point::PivotedDisk) {
        Ok(()) => Ok(()),
        Err(Struck::Failed(reason)) => Err(HypervisorError::Failed { what, reason }),
        Err(Struck::Cut) => Err(HypervisorError::Unreachable("the connection broke".to_owned())),
    }
}

impl Copy {
    /// One part.
    fn step(&mut self) -> std::io::Result<()> {
        if self.ready {
            return Ok(());
        }
        self.part(self.total.div_ceil(PARTS).max(1))?;
        self.ready = self.copied == self.total;
        Ok(())
    }

    fn all(&mut self) -> std::io::Result<()> {
        self.part(self.total)
    }

    fn part(&mut self, bytes: u64) -> std::io::Result<()> {
        let (from, to) = (File::open(&self.from)?, File::options().write(true).open(&self.request.to)?);
        let end = (self.copied + bytes).min(self.total);
        let mut block = vec![0; 1 << 16];
        while self.copied < end {
            let wanted = block.len().min((end - self.copied) as usize);
            let block = &mut block[..wanted];
            from.read_exact_at(block, self.copied)?;
            // Thin stays thin.
            if block.iter().any(|byte| *byte != 0) {
                to.write_all_at(block, self.copied)?;
            }
            self.copied += wanted as u64;
        }
        Ok(())
    }
}
