//! VMs, as libvirt's domains.

use std::{
    ffi::{c_int, c_uint},
    ptr,
};

use ferry_core::{id::VmId, units::ByteCount};
use uuid::Uuid;

use super::{
    call::{Done, Fault, c_string, check, take_text, text},
    params::Params,
};
use crate::hypervisor::{DiskSize, MigrationStats};

/// Granularity of the copy of a disk that moves on its host: a guest write causes this much to be copied again. QEMU's
/// default is 64 KiB, four times as much. A power of two.
const COPY_GRANULARITY_BYTES: u32 = 16 << 10;

/// Why a domain is paused, as far as Ferry distinguishes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PausedReason {
    Migration,
    StartingUp,
    /// QEMU stopped it by itself: a disk had an I/O error, or libvirt does not know why. QEMU (10.0) reports such
    /// errors once a second at most, so if a VM stops again at once, libvirt learns only that it stopped.
    ByQemu,
    /// libvirt stopped it for an operation that failed, and could not resume it.
    NotRunAgain,
    Other,
}

/// Whether a domain has a process, and whether its vCPUs run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerState {
    Running,
    Paused(PausedReason),
    /// Its guest crashed, and its process is kept.
    Crashed,
    /// Its guest suspended it to memory.
    Suspended,
    Off,
}

/// Forms of a definition.
#[derive(Clone, Copy)]
pub enum Xml {
    Live,
    Migratable,
    Inactive,
    /// As [`Xml::Inactive`], without elements that libvirt adds by itself and that earlier releases do not know (the
    /// `itco` watchdog of q35, since 9.1): for other hosts.
    Portable,
    /// As [`Xml::Inactive`], without passwords.
    Public,
}

/// Arguments of a migration.
pub struct Migrate<'a> {
    pub connection_uri: &'a str,
    pub migrate_uri: &'a str,
    /// The URI for migrated disks, and the list of these disks.
    pub disks_uri: &'a str,
    pub disks: &'a [&'a str],
    pub live_xml: &'a str,
    pub persistent_xml: Option<&'a str>,
    pub bandwidth_mib_per_s: Option<u64>,
    pub auto_converge: bool,
    /// Disables libvirt's own check that the files are shared.
    pub vouched: bool,
}

/// A domain.
pub struct Domain(pub(super) virt_sys::virDomainPtr);

// SAFETY: libvirt's domain objects are thread-safe by its documentation.
unsafe impl Send for Domain {}

// SAFETY: as above.
unsafe impl Sync for Domain {}

impl Drop for Domain {
    fn drop(&mut self) {
        // SAFETY: the pointer is owned and not used again.
        unsafe { virt_sys::virDomainFree(self.0) };
    }
}

impl Clone for Domain {
    fn clone(&self) -> Self {
        // SAFETY: the domain is valid; the reference is released when the clone is dropped.
        unsafe { virt_sys::virDomainRef(self.0) };
        Self(self.0)
    }
}

impl Domain {
    pub fn id(&self) -> Done<VmId> {
        let mut bytes = [0; virt_sys::VIR_UUID_BUFLEN as usize];
        // SAFETY: the domain is valid, the buffer has the documented size.
        check(unsafe { virt_sys::virDomainGetUUID(self.0, bytes.as_mut_ptr()) })?;
        Ok(VmId(Uuid::from_bytes(bytes)))
    }

    pub fn name(&self) -> Done<String> {
        // SAFETY: the domain is valid; the string is its own and is copied.
        unsafe { text(virt_sys::virDomainGetName(self.0)) }.ok_or_else(Fault::last)
    }

    /// libvirt's number of its process, unique during the run of this libvirtd; `None` without a process.
    pub fn process(&self) -> Option<u32> {
        // SAFETY: the domain is valid; -1 (as unsigned) means that it has no process.
        Some(unsafe { virt_sys::virDomainGetID(self.0) }).filter(|id| *id != c_uint::MAX)
    }

    fn state_and_reason(&self) -> Done<(c_uint, c_uint)> {
        let (mut state, mut reason) = (0, 0);
        // SAFETY: the domain is valid, the numbers are ours.
        check(unsafe { virt_sys::virDomainGetState(self.0, &raw mut state, &raw mut reason, 0) })?;
        Ok((state as c_uint, reason as c_uint))
    }

    /// Whether it is off because its QEMU ended normally, that is, its guest shut down. Lost when libvirtd is
    /// restarted.
    pub fn shut_itself_down(&self) -> Done<bool> {
        let off = (virt_sys::VIR_DOMAIN_SHUTOFF, virt_sys::VIR_DOMAIN_SHUTOFF_SHUTDOWN);
        Ok(self.state_and_reason()? == off)
    }

    pub fn state(&self) -> Done<PowerState> {
        let (state, reason) = self.state_and_reason()?;
        Ok(match state {
            virt_sys::VIR_DOMAIN_RUNNING | virt_sys::VIR_DOMAIN_BLOCKED | virt_sys::VIR_DOMAIN_SHUTDOWN => {
                PowerState::Running
            }
            virt_sys::VIR_DOMAIN_PAUSED => PowerState::Paused(match reason {
                virt_sys::VIR_DOMAIN_PAUSED_MIGRATION => PausedReason::Migration,
                virt_sys::VIR_DOMAIN_PAUSED_STARTING_UP => PausedReason::StartingUp,
                virt_sys::VIR_DOMAIN_PAUSED_IOERROR | virt_sys::VIR_DOMAIN_PAUSED_UNKNOWN => PausedReason::ByQemu,
                virt_sys::VIR_DOMAIN_PAUSED_API_ERROR => PausedReason::NotRunAgain,
                _ => PausedReason::Other,
            }),
            // libvirt reports this only if the process is kept: a VM without a process is shut off, for whatever reason
            // it ended.
            virt_sys::VIR_DOMAIN_CRASHED => PowerState::Crashed,
            virt_sys::VIR_DOMAIN_PMSUSPENDED => PowerState::Suspended,
            virt_sys::VIR_DOMAIN_SHUTOFF => PowerState::Off,
            // Only a known shut-off state counts as shut off.
            _ => PowerState::Paused(PausedReason::Other),
        })
    }

    pub fn xml(&self, form: Xml) -> Done<String> {
        let flags = match form {
            Xml::Live => 0,
            Xml::Migratable => virt_sys::VIR_DOMAIN_XML_MIGRATABLE | virt_sys::VIR_DOMAIN_XML_SECURE,
            Xml::Inactive => virt_sys::VIR_DOMAIN_XML_INACTIVE | virt_sys::VIR_DOMAIN_XML_SECURE,
            Xml::Portable => {
                virt_sys::VIR_DOMAIN_XML_INACTIVE
                    | virt_sys::VIR_DOMAIN_XML_SECURE
                    | virt_sys::VIR_DOMAIN_XML_MIGRATABLE
            }
            Xml::Public => virt_sys::VIR_DOMAIN_XML_INACTIVE,
        };
        // SAFETY: the domain is valid; the string is ours.
        take_text(unsafe { virt_sys::virDomainGetXMLDesc(self.0, flags) })
    }

    /// Whether the VM has a saved state, from which its next start continues.
    pub fn saved(&self) -> Done<bool> {
        // SAFETY: the domain is valid.
        Ok(check(unsafe { virt_sys::virDomainHasManagedSaveImage(self.0, 0) })? == 1)
    }

    pub fn persistent(&self) -> Done<bool> {
        // SAFETY: the domain is valid.
        Ok(check(unsafe { virt_sys::virDomainIsPersistent(self.0) })? == 1)
    }

    pub fn autostart(&self) -> Done<bool> {
        let mut autostart = 0;
        // SAFETY: the domain is valid, the number is ours.
        check(unsafe { virt_sys::virDomainGetAutostart(self.0, &raw mut autostart) })?;
        Ok(autostart != 0)
    }

    pub fn set_autostart(&self, autostart: bool) -> Done<()> {
        // SAFETY: the domain is valid.
        check(unsafe { virt_sys::virDomainSetAutostart(self.0, c_int::from(autostart)) }).map(drop)
    }

    pub fn snapshots(&self) -> Done<u32> {
        // SAFETY: the domain is valid.
        let count = check(unsafe { virt_sys::virDomainSnapshotNum(self.0, 0) })?;
        Ok(count as u32)
    }

    /// The number of checkpoints; zero if libvirt's driver does not support them.
    pub fn checkpoints(&self) -> Done<u32> {
        // SAFETY: the domain is valid; without a list they are only counted.
        match check(unsafe { virt_sys::virDomainListAllCheckpoints(self.0, ptr::null_mut(), 0) }) {
            Ok(count) => Ok(count as u32),
            Err(fault) if fault.code == virt_sys::VIR_ERR_NO_SUPPORT => Ok(0),
            Err(fault) => Err(fault),
        }
    }

    /// The disks with I/O errors since the VM last ran, each with whether the cause was lack of space.
    pub fn disk_errors(&self) -> Done<Vec<(String, bool)>> {
        // SAFETY: the domain is valid; without a list the disks are only counted.
        let count = check(unsafe { virt_sys::virDomainGetDiskErrors(self.0, ptr::null_mut(), 0, 0) })?;
        let nothing = || virt_sys::virDomainDiskError { disk: ptr::null_mut(), error: 0 };
        let mut errors: Vec<_> = (0..count).map(|_| nothing()).collect();
        // SAFETY: the domain is valid, the list is ours and has the stated length.
        let filled =
            check(unsafe { virt_sys::virDomainGetDiskErrors(self.0, errors.as_mut_ptr(), errors.len() as c_uint, 0) })?;
        let answer = errors.iter().take(filled as usize).map(|error| {
            let is_full = error.error == virt_sys::VIR_DOMAIN_DISK_ERROR_NO_SPACE as c_int;
            Ok((take_text(error.disk)?, is_full))
        });
        answer.collect()
    }

    pub fn create(&self) -> Done<()> {
        // SAFETY: the domain is valid.
        check(unsafe { virt_sys::virDomainCreate(self.0) }).map(drop)
    }

    pub fn shutdown(&self) -> Done<()> {
        // SAFETY: the domain is valid.
        check(unsafe { virt_sys::virDomainShutdown(self.0) }).map(drop)
    }

    pub fn resume(&self) -> Done<()> {
        // SAFETY: the domain is valid.
        check(unsafe { virt_sys::virDomainResume(self.0) }).map(drop)
    }

    pub fn destroy(&self) -> Done<()> {
        // SAFETY: the domain is valid.
        check(unsafe { virt_sys::virDomainDestroy(self.0) }).map(drop)
    }

    pub fn undefine(&self) -> Done<()> {
        let flags = virt_sys::VIR_DOMAIN_UNDEFINE_KEEP_NVRAM;
        // SAFETY: the domain is valid.
        check(unsafe { virt_sys::virDomainUndefineFlags(self.0, flags) }).map(drop)
    }

    pub fn abort_job(&self) -> Done<()> {
        // SAFETY: the domain is valid.
        check(unsafe { virt_sys::virDomainAbortJob(self.0) }).map(drop)
    }

    pub fn set_downtime_limit(&self, limit_ms: u64) -> Done<()> {
        // SAFETY: the domain is valid.
        check(unsafe { virt_sys::virDomainMigrateSetMaxDowntime(self.0, limit_ms, 0) }).map(drop)
    }

    pub fn migrate(&self, migrate: &Migrate<'_>) -> Done<()> {
        let mut params = Params::default();
        params.text(virt_sys::VIR_MIGRATE_PARAM_URI, migrate.migrate_uri)?;
        params.text(virt_sys::VIR_MIGRATE_PARAM_DEST_XML, migrate.live_xml)?;
        let mut flags = virt_sys::VIR_MIGRATE_LIVE | virt_sys::VIR_MIGRATE_PEER2PEER | virt_sys::VIR_MIGRATE_PAUSED;
        if let Some(xml) = migrate.persistent_xml {
            params.text(virt_sys::VIR_MIGRATE_PARAM_PERSIST_XML, xml)?;
            flags |= virt_sys::VIR_MIGRATE_PERSIST_DEST;
        }
        if !migrate.disks.is_empty() {
            params.text(virt_sys::VIR_MIGRATE_PARAM_DISKS_URI, migrate.disks_uri)?;
            for disk in migrate.disks {
                params.text(virt_sys::VIR_MIGRATE_PARAM_MIGRATE_DISKS, disk)?;
            }
            // Without synchronous writes: see docs/adr/0011.
            flags |= virt_sys::VIR_MIGRATE_NON_SHARED_DISK;
        }
        if migrate.vouched {
            flags |= virt_sys::VIR_MIGRATE_UNSAFE;
        }
        if migrate.auto_converge {
            flags |= virt_sys::VIR_MIGRATE_AUTO_CONVERGE;
        }
        if let Some(mib_per_s) = migrate.bandwidth_mib_per_s {
            params.number(virt_sys::VIR_MIGRATE_PARAM_BANDWIDTH, mib_per_s)?;
        }
        let uri = c_string(migrate.connection_uri)?;
        // SAFETY: the domain is valid; string and parameters live through the call.
        check(unsafe {
            virt_sys::virDomainMigrateToURI3(self.0, uri.as_ptr(), params.list, params.count as c_uint, flags)
        })
        .map(drop)
    }

    /// Sends a monitor command to QEMU and returns its answer, both in JSON; an error from QEMU is an answer as well.
    /// libvirt marks the VM as tainted.
    pub fn monitor(&self, command: &str) -> Done<String> {
        let command = c_string(command)?;
        let mut answer = ptr::null_mut();
        // SAFETY: the domain is valid, the string lives through the call; the answer is ours.
        check(unsafe { virt_sys::virDomainQemuMonitorCommand(self.0, command.as_ptr(), &raw mut answer, 0) })?;
        take_text(answer)
    }

    /// The sizes of a disk.
    pub fn disk_size(&self, device: &str) -> Done<DiskSize> {
        let device = c_string(device)?;
        // SAFETY: an all-zero structure of numbers is valid, and so are the domain and the string.
        unsafe {
            let mut info: virt_sys::virDomainBlockInfo = std::mem::zeroed();
            check(virt_sys::virDomainGetBlockInfo(self.0, device.as_ptr(), &raw mut info, 0))?;
            Ok(DiskSize { virtual_size: ByteCount(info.capacity), allocated: ByteCount(info.allocation) })
        }
    }

    /// Begins to copy a disk to the existing target that `target` describes.
    pub fn copy_disk(&self, device: &str, target: &str, bandwidth_bytes_per_s: Option<u64>) -> Done<()> {
        let (device, target) = (c_string(device)?, c_string(target)?);
        let mut params = Params::default();
        if let Some(bandwidth) = bandwidth_bytes_per_s {
            params.number(c"bandwidth", bandwidth)?;
        }
        params.count32(c"granularity", COPY_GRANULARITY_BYTES)?;
        // TRANSIENT_JOB: libvirt forgets the copy when the VM's process ends; without the flag, it refuses the copy for
        // persistent VMs. Without synchronous writes: see docs/adr/0011.
        let flags = virt_sys::VIR_DOMAIN_BLOCK_COPY_REUSE_EXT | virt_sys::VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB;
        // SAFETY: the domain, both strings and the list are valid.
        check(unsafe {
            virt_sys::virDomainBlockCopy(self.0, device.as_ptr(), target.as_ptr(), params.list, params.count, flags)
        })
        .map(drop)
    }

    /// Bytes done and bytes to do of a disk's block job; `None` if there is no job.
    pub fn disk_job(&self, device: &str) -> Done<Option<(u64, u64)>> {
        let device = c_string(device)?;
        // SAFETY: as for `disk_size`.
        unsafe {
            let mut info: virt_sys::virDomainBlockJobInfo = std::mem::zeroed();
            let found = check(virt_sys::virDomainGetBlockJobInfo(self.0, device.as_ptr(), &raw mut info, 0))?;
            Ok((found > 0).then_some((info.cur, info.end)))
        }
    }

    /// Ends a disk's block job. With `pivot`, the VM switches to the copy, and the call returns when the job has ended.
    /// Otherwise the VM stays on the old file, and the call returns when the end was requested; QEMU may be unable to
    /// end it while the new file's storage does not answer.
    pub fn end_disk_job(&self, device: &str, pivot: bool) -> Done<()> {
        let device = c_string(device)?;
        let flags = match pivot {
            true => virt_sys::VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT,
            false => virt_sys::VIR_DOMAIN_BLOCK_JOB_ABORT_ASYNC,
        };
        // SAFETY: the domain and the string are valid.
        check(unsafe { virt_sys::virDomainBlockJobAbort(self.0, device.as_ptr(), flags) }).map(drop)
    }

    /// Statistics of the running (or, if `completed`, the last) job; `None` if there is none.
    pub fn job_stats(&self, completed: bool) -> Done<Option<MigrationStats>> {
        let mut kind = 0;
        let mut params = Params::default();
        let flags = if completed {
            virt_sys::VIR_DOMAIN_JOB_STATS_COMPLETED | virt_sys::VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED
        } else {
            0
        };
        // SAFETY: the domain is valid; libvirt allocates the list, which `params` owns from then on.
        check(unsafe {
            virt_sys::virDomainGetJobStats(self.0, &raw mut kind, &raw mut params.list, &raw mut params.count, flags)
        })?;
        if kind as c_uint == virt_sys::VIR_DOMAIN_JOB_NONE {
            return Ok(None);
        }
        let page = params.get(c"memory_page_size").filter(|bytes| *bytes > 0).unwrap_or(4096);
        let bytes = |name| ByteCount(params.get(name).unwrap_or(0));
        Ok(Some(MigrationStats {
            memory_total: bytes(c"memory_total"),
            memory_remaining: bytes(c"memory_remaining"),
            memory_processed: bytes(c"memory_processed"),
            rate_bytes_per_s: params.get(c"memory_bps").unwrap_or(0),
            dirty_bytes_per_s: params.get(c"memory_dirty_rate").unwrap_or(0).saturating_mul(page),
            iteration: params.get(c"memory_iteration").unwrap_or(0) as u32,
            downtime_ms: params.get(c"downtime").unwrap_or(0),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::libvirt::ffi::connection::tests::connection;

    #[test]
    fn snapshots_and_checkpoints_are_counted() {
        let connection = connection();
        let domain = connection.domains().expect("listed").remove(0);
        assert_eq!((domain.snapshots().expect("counted"), domain.checkpoints().expect("counted")), (0, 0));
        let uuid = "0d7a4d0e-4f57-4f3e-9a80-0c6a4b6ad009";
        let kept = "<domain type='test'><name>kept</name><uuid>UUID</uuid><memory>1024</memory><os><type>hvm</type></os>\
                    </domain>";
        let kept = connection.define(&kept.replace("UUID", uuid)).expect("defined");
        // SAFETY: the domain is valid. This driver supports no flags for it.
        check(unsafe { virt_sys::virDomainUndefine(kept.0) }).expect("removed");
        // An error is not a count of zero.
        assert!(kept.snapshots().is_err_and(|fault| fault.is_no_domain()));
        assert!(kept.checkpoints().is_err_and(|fault| fault.is_no_domain()));
    }

    #[test]
    fn disks_that_failed_are_told_from_those_that_are_full() {
        let disks = ["vda", "vdb"].map(|name| {
            format!("<disk type='file'><source file='/tmp/{name}'/><target dev='{name}' bus='virtio'/></disk>")
        });
        let definition = format!(
            "<domain type='test'><name>disks</name><uuid>0d7a4d0e-4f57-4f3e-9a80-0c6a4b6ad010</uuid>\
             <memory>1024</memory><os><type>hvm</type></os><devices>{}</devices></domain>",
            disks.concat()
        );
        let domain = connection().define(&definition).expect("defined");
        domain.create().expect("started");
        // libvirt's test driver reports an error for every disk of a running VM, each of a different kind.
        let errors = domain.disk_errors().expect("told");
        assert_eq!(errors, [("vda".to_owned(), false), ("vdb".to_owned(), true)]);
    }
}
