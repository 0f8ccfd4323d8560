//! Migrations with libvirt, peer to peer through the session's sockets.

use std::{path::Path, time::Duration};

use ferry_core::{id::VmId, units::ByteCount};

use super::{
    Libvirt,
    faults::{asked, failed, none_if_gone, unreachable},
    ffi, locks, monitor,
};
use crate::hypervisor::{
    DISK_SOCKET, DiskRefused, HypervisorError, MEMORY_SOCKET, MigrateRequest, Migration, MigrationStats, RPC_SOCKET,
    xml::{
        edit::{self, Form},
        facts::parse,
    },
};

/// The folder where libvirt stores the process ids of its VMs, as `NAME.pid`.
const PROCESSES: &str = "/run/libvirt/qemu";

impl Migration for Libvirt {
    fn migrate(&self, request: &MigrateRequest) -> Result<(), HypervisorError> {
        let vm = request.vm;
        self.aborting().remove(&vm);
        let domain = self.need(vm)?;
        let what = format!("Could not migrate VM {vm}");
        let read = |form| self.text(&domain, form, &what);
        let translate = |xml: &str, form| edit::translate(xml, vm, &request.translate, &request.disks, form);
        let live = translate(&read(ffi::Xml::Migratable)?, Form::Live)?;
        let kept = match request.persistent {
            true => Some(translate(&read(ffi::Xml::Portable)?, Form::Kept)?),
            false => None,
        };
        let disks: Vec<&str> = request.disks.iter().map(|disk| disk.device.as_str()).collect();
        let socket = |name: &str| request.socket_dir.join(name).display().to_string();
        // Applies to the next migration; libvirt resets it afterwards.
        domain.set_downtime_limit(milliseconds(request.downtime_limit)).map_err(failed(&what))?;
        domain
            .migrate(&ffi::Migrate {
                connection_uri: &format!("qemu+unix:///system?socket={}", socket(RPC_SOCKET)),
                migrate_uri: &format!("unix://{}", socket(MEMORY_SOCKET)),
                disks_uri: &format!("unix://{}", socket(DISK_SOCKET)),
                disks: &disks,
                live_xml: &live,
                persistent_xml: kept.as_deref(),
                // libvirt counts in MiB/s, and zero would mean no limit.
                auto_converge: request.auto_converge,
                vouched: request.vouched,
                bandwidth_mib_per_s: request.bandwidth_bytes_per_s.map(|bytes| (bytes >> 20).max(1)),
            })
            .map_err(|fault| match self.aborting().remove(&vm) {
                true => HypervisorError::Aborted { what },
                false => failed(what)(fault),
            })
    }

    fn migration_stats(&self, vm: VmId) -> Result<Option<MigrationStats>, HypervisorError> {
        let Some(domain) = self.find(vm)? else { return Ok(None) };
        none_if_gone(domain.job_stats(false), || format!("Could not read the migration of VM {vm}"))
    }

    fn migrated_disk(&self, vm: VmId, device: &str) -> Result<Option<(ByteCount, ByteCount)>, HypervisorError> {
        let Some(domain) = self.find(vm)? else { return Ok(None) };
        let job = match domain.disk_job(device) {
            Err(fault) if fault.is_away() => return Err(unreachable(fault)),
            // During the hand-over of memory libvirt may refuse the query; the progress is then unknown.
            job => job.ok().flatten(),
        };
        Ok(job.map(|(cur, end)| (ByteCount(cur.min(end)), ByteCount(end))))
    }

    fn set_downtime_limit(&self, vm: VmId, limit: Duration) -> Result<(), HypervisorError> {
        let what = format!("Could not set the downtime limit of VM {vm}");
        self.need(vm)?.set_downtime_limit(milliseconds(limit)).map_err(failed(what))
    }

    fn completed_stats(&self, vm: VmId) -> Result<Option<MigrationStats>, HypervisorError> {
        let Some(domain) = self.find(vm)? else { return Ok(None) };
        none_if_gone(domain.job_stats(true), || format!("Could not read what the migration of VM {vm} took"))
    }

    fn abort_migration(&self, vm: VmId) -> Result<(), HypervisorError> {
        let Some(domain) = self.find(vm)? else { return Ok(()) };
        self.aborting().insert(vm);
        match domain.abort_job() {
            Ok(()) => Ok(()),
            Err(_) if domain.job_stats(false).is_ok_and(|job| job.is_none()) => Ok(()),
            Err(fault) => Err(failed(format!("Could not end the migration of VM {vm}"))(fault)),
        }
    }

    fn ensure_disks(&self, vm: VmId) -> Result<Vec<DiskRefused>, HypervisorError> {
        let what = format!("Could not see whether VM {vm} has its disks");
        let live = self.live()?;
        let domain = self.need(vm)?;
        let name = domain.name().map_err(asked(&what))?;
        let files = parse(&domain.xml(ffi::Xml::Live).map_err(asked(&what))?)?.files;
        if locks::has_all(&Path::new(PROCESSES).join(format!("{name}.pid")), &files) {
            return Ok(Vec::new());
        }
        // An older QEMU cannot answer, and the query would still mark the VM as tainted.
        if live.connection.hypervisor_version().map_err(asked(&what))? < monitor::SINCE {
            return Ok(Vec::new());
        }
        monitor::activate(&domain, &files, &what)
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
