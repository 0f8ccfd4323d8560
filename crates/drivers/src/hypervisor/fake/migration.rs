//! Moves that leave a fake host, and the disks of VMs that arrived.

use std::{path::PathBuf, time::Duration};

use ferry_core::{
    id::VmId,
    units::ByteCount,
    vm::{FileRole, VmFile},
};

use super::{
    FakeHypervisor,
    faults::Point,
    host::{LOCKED, Outgoing, Process, failed, no_vm},
    source,
};
use crate::hypervisor::{DiskRefused, HypervisorError, MigrateRequest, Migration, MigrationStats};

impl Migration for FakeHypervisor {
    fn migrate(&self, request: &MigrateRequest) -> Result<(), HypervisorError> {
        drop(self.host.call(Point::Migrate, || format!("Could not migrate VM {}", request.vm))?);
        source::migrate(&self.host, request)
    }

    fn migration_stats(&self, vm: VmId) -> Result<Option<MigrationStats>, HypervisorError> {
        let state = self.host.call(Point::Vms, || format!("Could not read the migration of VM {vm}"))?;
        Ok(state.vms.get(&vm).and_then(|entry| entry.outgoing.as_ref()).map(|outgoing| outgoing.stats))
    }

    fn migrated_disk(&self, vm: VmId, _device: &str) -> Result<Option<(ByteCount, ByteCount)>, HypervisorError> {
        let what = || format!("Could not read how far the disks of VM {vm} are");
        let mut state = self.host.call(Point::Vms, what)?;
        let outgoing = state.vms.get_mut(&vm).and_then(|entry| entry.outgoing.as_ref());
        let total = |outgoing: &Outgoing| ByteCount(outgoing.disks.0 + outgoing.dirty_disks.0);
        Ok(outgoing.map(|outgoing| (outgoing.disks, total(outgoing))))
    }

    fn set_downtime_limit(&self, vm: VmId, limit: Duration) -> Result<(), HypervisorError> {
        let what = || format!("Could not set the downtime limit of VM {vm}");
        let mut state = self.host.call(Point::Vms, what)?;
        match no_vm(&mut state, vm)?.outgoing.as_mut() {
            None => failed(what(), "no migration job is running"),
            Some(outgoing) => {
                outgoing.downtime_limit = limit;
                Ok(())
            }
        }
    }

    fn completed_stats(&self, vm: VmId) -> Result<Option<MigrationStats>, HypervisorError> {
        let state = self.host.call(Point::Vms, || format!("Could not read the migration of VM {vm}"))?;
        Ok(state.vms.get(&vm).and_then(|entry| entry.completed))
    }

    fn abort_migration(&self, vm: VmId) -> Result<(), HypervisorError> {
        let what = || format!("Could not end the migration of VM {vm}");
        let mut state = self.host.call(Point::Abort, what)?;
        match state.vms.get_mut(&vm).and_then(|entry| entry.outgoing.as_mut()) {
            None => Ok(()),
            Some(outgoing) if outgoing.committed => failed(what(), "it is too late"),
            Some(outgoing) => {
                outgoing.abort = true;
                Ok(())
            }
        }
    }

    fn ensure_disks(&self, vm: VmId) -> Result<Vec<DiskRefused>, HypervisorError> {
        let what = || format!("Could not see whether VM {vm} has its disks");
        let mut state = self.host.call(Point::EnsureDisks, what)?;
        let entry = no_vm(&mut state, vm)?;
        if matches!(entry.process, Process::Off) {
            return failed(what(), "domain is not running");
        }
        let refused = |file: &VmFile<PathBuf>| DiskRefused {
            device: file.device.clone(),
            path: file.place.clone(),
            reason: LOCKED.to_owned(),
        };
        let disks = entry.facts.files.iter().filter(|file| file.role == FileRole::Disk).map(refused).collect();
        let is_locked = self.host.world.is_locked_for(vm, &self.host.name);
        Ok(if is_locked { disks } else { Vec::new() })
    }
}
