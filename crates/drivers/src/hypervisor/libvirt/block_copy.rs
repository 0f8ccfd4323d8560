//! Copies of disks by libvirt's block jobs.

use std::{
    thread,
    time::{Duration, Instant},
};

use ferry_core::{id::VmId, units::ByteCount};

use super::{
    Libvirt,
    faults::{asked, failed, there, unreachable},
    ffi::{Domain, PowerState, Xml},
};
use crate::hypervisor::{
    BlockCopy, DiskCopy, DiskCopyRequest, DiskSize, HypervisorError,
    xml::{edit::copy_target, facts::mirror},
};

/// How long QEMU may take to end the copy of a disk: it waits for writes in flight.
const ABANDON_WITHIN: Duration = Duration::from_secs(15);
const ABANDON_PAUSE: Duration = Duration::from_millis(20);

impl BlockCopy for Libvirt {
    fn disk_size(&self, vm: VmId, device: &str) -> Result<DiskSize, HypervisorError> {
        self.need(vm)?.disk_size(device).map_err(failed(format!("Could not read the size of disk {device} of VM {vm}")))
    }

    fn copy_disk(&self, request: &DiskCopyRequest) -> Result<(), HypervisorError> {
        let DiskCopyRequest { vm, device, to, format, bandwidth_bytes_per_s } = request;
        let target = copy_target(to, *format).ok_or_else(|| HypervisorError::Definition {
            vm: *vm,
            reason: format!("the path {} is not UTF-8", to.display()),
        })?;
        let what = format!("Could not copy disk {device} of VM {vm} to {}", to.display());
        self.need(*vm)?.copy_disk(device, &target, *bandwidth_bytes_per_s).map_err(asked(what))
    }

    fn disk_copy(&self, vm: VmId, device: &str) -> Result<Option<DiskCopy>, HypervisorError> {
        let domain = self.need(vm)?;
        if there(domain.state())?.is_none_or(|state| state == PowerState::Off) {
            return Ok(None);
        }
        // The order matters: a job that ends between the two queries has no mirror either.
        let (Some((cur, end)), Some(xml)) =
            (domain.disk_job(device).map_err(unreachable)?, there(domain.xml(Xml::Live))?)
        else {
            return Ok(None);
        };
        Ok(mirror(&xml, device).map(|(to, ready)| DiskCopy {
            to,
            copied: ByteCount(cur.min(end)),
            total: ByteCount(end),
            ready,
        }))
    }

    fn pivot_disk(&self, vm: VmId, device: &str) -> Result<(), HypervisorError> {
        let what = format!("Could not switch disk {device} of VM {vm} to its copy");
        self.need(vm)?.end_disk_job(device, true).map_err(failed(what))
    }

    fn abandon_disk_copy(&self, vm: VmId, device: &str) -> Result<(), HypervisorError> {
        let Some(domain) = self.find(vm)? else { return Ok(()) };
        let what = format!("Could not end the copy of disk {device} of VM {vm}");
        match domain.end_disk_job(device, false) {
            Ok(()) => wait_for_no_copy(&domain, device, &what),
            // libvirt has no error code of its own for "no job".
            Err(_) if matches!(domain.disk_job(device), Ok(None)) || matches!(domain.state(), Ok(PowerState::Off)) => {
                Ok(())
            }
            Err(fault) if fault.is_no_domain() => Ok(()),
            Err(fault) => Err(asked(what)(fault)),
        }
    }
}

/// Waits until a disk is no longer being copied.
fn wait_for_no_copy(domain: &Domain, device: &str, what: &str) -> Result<(), HypervisorError> {
    let until = Instant::now() + ABANDON_WITHIN;
    loop {
        let has_ended = match domain.disk_job(device) {
            Ok(Some(_)) => false,
            // The order matters: libvirt reports the copy until QEMU has closed the new file.
            Ok(None) => there(domain.xml(Xml::Live))?.is_none_or(|xml| mirror(&xml, device).is_none()),
            Err(fault) if fault.is_no_domain() => true,
            Err(_) if matches!(domain.state(), Ok(PowerState::Off)) => true,
            Err(fault) => return Err(asked(what)(fault)),
        };
        if has_ended {
            return Ok(());
        }
        if Instant::now() >= until {
            let reason = format!("QEMU did not end it within {} s", ABANDON_WITHIN.as_secs());
            return Err(HypervisorError::Failed { what: what.to_owned(), reason });
        }
        thread::sleep(ABANDON_PAUSE);
    }
}
