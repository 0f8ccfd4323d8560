//! libvirt's C interface, made safe. The only `unsafe` of the project's programs.
//!
//! Every pointer that libvirt hands out is owned by exactly one value here and freed when it is dropped; every string
//! is copied. Errors are libvirt's last error of the calling thread. Calls block; libvirt's objects may be used from
//! several threads at once.
#![allow(unsafe_code)]

use std::{
    ffi::{CStr, CString, c_char, c_int, c_uint, c_void},
    ptr,
    sync::{Arc, OnceLock},
    thread,
};

use ferry_core::{id::VmId, units::ByteCount};
use uuid::Uuid;

use crate::hypervisor::{DiskSize, MigrationStats, definition::Volume};

/// A connection whose daemon is silent for [`KEEPALIVE_COUNT`] times this is dead. Seconds.
const KEEPALIVE_SECONDS: c_int = 5;
const KEEPALIVE_COUNT: c_uint = 4;

/// What is copied again for each write of the guest to a disk that moves on its host: QEMU's own choice is 64 KiB, four
/// times as much. A power of two.
const COPY_GRANULARITY_BYTES: u32 = 16 << 10;

/// What libvirt says went wrong.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    code: c_uint,
    /// The connection itself broke while the call was under way.
    broken: bool,
    pub(super) message: String,
}

impl Fault {
    fn last() -> Self {
        // SAFETY: the pointer is NULL or points to this thread's last error, valid until this thread's next call.
        unsafe {
            let error = virt_sys::virGetLastError();
            if error.is_null() {
                return Self::own("libvirt gave no reason");
            }
            Self {
                code: (*error).code as c_uint,
                broken: (*error).domain as c_uint == virt_sys::VIR_FROM_RPC,
                message: text((*error).message).unwrap_or_default(),
            }
        }
    }

    fn own(message: &str) -> Self {
        Self { code: 0, broken: false, message: message.to_owned() }
    }

    #[cfg(test)]
    pub(super) fn test(code: c_uint, broken: bool) -> Self {
        Self { code, broken, message: "a test".to_owned() }
    }

    /// Whether it says nothing of the VM: the daemon went away meanwhile, or the VM was busy for too long.
    pub(super) fn passes(&self) -> bool {
        let codes = [
            virt_sys::VIR_ERR_RPC,
            virt_sys::VIR_ERR_NO_CONNECT,
            virt_sys::VIR_ERR_INVALID_CONN,
            virt_sys::VIR_ERR_OPERATION_TIMEOUT,
        ];
        self.broken || codes.contains(&self.code)
    }

    /// Whether the daemon went away meanwhile.
    pub(super) fn is_away(&self) -> bool {
        self.passes() && (self.broken || self.code != virt_sys::VIR_ERR_OPERATION_TIMEOUT)
    }

    /// Whether the VM is in no state for the question: it has no process.
    pub(super) fn is_invalid_now(&self) -> bool {
        self.code == virt_sys::VIR_ERR_OPERATION_INVALID
    }

    pub(super) fn is_no_domain(&self) -> bool {
        self.code == virt_sys::VIR_ERR_NO_DOMAIN
    }

    pub(super) fn is_aborted(&self) -> bool {
        self.code == virt_sys::VIR_ERR_OPERATION_ABORTED
    }
}

type Done<T> = Result<T, Fault>;

fn check(result: c_int) -> Done<c_int> {
    if result < 0 { Err(Fault::last()) } else { Ok(result) }
}

fn c_string(text: &str) -> Done<CString> {
    CString::new(text).map_err(|_| Fault::own("a text holds a NUL byte"))
}

/// Copies a C string; NULL gives `None`.
///
/// # Safety
/// `pointer` is NULL or points to a NUL-terminated string.
unsafe fn text(pointer: *const c_char) -> Option<String> {
    if pointer.is_null() {
        return None;
    }
    // SAFETY: as the caller promises.
    Some(unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned())
}

/// Copies and frees a C string that libvirt allocated with malloc.
fn take_text(pointer: *mut c_char) -> Done<String> {
    // SAFETY: libvirt returns NULL or a string that the caller frees.
    unsafe {
        let copy = text(pointer).ok_or_else(Fault::last)?;
        free(pointer.cast());
        Ok(copy)
    }
}

unsafe extern "C" {
    fn free(pointer: *mut c_void);
}

/// libvirt prints errors to stderr unless told otherwise.
unsafe extern "C" fn be_silent(_data: *mut c_void, _error: virt_sys::virErrorPtr) {}

/// Starts the one event loop of this process; must come before the first connection is opened.
fn ensure_event_loop() -> Done<()> {
    static STARTED: OnceLock<Result<(), String>> = OnceLock::new();
    STARTED
        .get_or_init(|| {
            // SAFETY: the default implementation is registered once, before any connection exists.
            unsafe {
                virt_sys::virSetErrorFunc(ptr::null_mut(), Some(be_silent));
                if virt_sys::virEventRegisterDefaultImpl() < 0 {
                    return Err(Fault::last().message);
                }
            }
            let run = || {
                loop {
                    // SAFETY: only this thread runs the loop. An error of one round is not fatal for the next.
                    unsafe { virt_sys::virEventRunDefaultImpl() };
                }
            };
            match thread::Builder::new().name("libvirt-events".to_owned()).spawn(run) {
                Ok(_) => Ok(()),
                Err(error) => Err(error.to_string()),
            }
        })
        .clone()
        .map_err(|message| Fault { code: 0, broken: false, message })
}

/// A connection to libvirt.
pub(super) struct Connection(virt_sys::virConnectPtr);

// SAFETY: libvirt's connection objects are thread-safe by its documentation.
unsafe impl Send for Connection {}
// SAFETY: as above.
unsafe impl Sync for Connection {}

impl Drop for Connection {
    fn drop(&mut self) {
        // SAFETY: the pointer is owned and not used again.
        unsafe { virt_sys::virConnectClose(self.0) };
    }
}

/// What the node has.
pub(super) struct Node {
    pub(super) cpus: u32,
    pub(super) memory_kib: u64,
}

impl Connection {
    pub(super) fn open(uri: &str) -> Done<Self> {
        ensure_event_loop()?;
        let uri = c_string(uri)?;
        // SAFETY: the string lives through the call; the result is checked.
        unsafe {
            let pointer = virt_sys::virConnectOpen(uri.as_ptr());
            if pointer.is_null() {
                return Err(Fault::last());
            }
            let connection = Self(pointer);
            // In-process drivers have no keepalive; that they refuse is of no matter.
            virt_sys::virConnectSetKeepAlive(pointer, KEEPALIVE_SECONDS, KEEPALIVE_COUNT);
            Ok(connection)
        }
    }

    pub(super) fn is_alive(&self) -> bool {
        // SAFETY: the connection is open.
        unsafe { virt_sys::virConnectIsAlive(self.0) == 1 }
    }

    pub(super) fn domain(&self, uuid: &str) -> Done<Domain> {
        let uuid = c_string(uuid)?;
        // SAFETY: the connection is open, the string lives through the call.
        let pointer = unsafe { virt_sys::virDomainLookupByUUIDString(self.0, uuid.as_ptr()) };
        if pointer.is_null() { Err(Fault::last()) } else { Ok(Domain(pointer)) }
    }

    pub(super) fn define(&self, xml: &str) -> Done<Domain> {
        let xml = c_string(xml)?;
        let flags = virt_sys::VIR_DOMAIN_DEFINE_VALIDATE;
        // SAFETY: the connection is open, the string lives through the call.
        let pointer = unsafe { virt_sys::virDomainDefineXMLFlags(self.0, xml.as_ptr(), flags) };
        if pointer.is_null() { Err(Fault::last()) } else { Ok(Domain(pointer)) }
    }

    pub(super) fn domains(&self) -> Done<Vec<Domain>> {
        let mut list: *mut virt_sys::virDomainPtr = ptr::null_mut();
        // SAFETY: libvirt allocates an array of `count` domains; each is taken over, the array is freed.
        unsafe {
            let count = check(virt_sys::virConnectListAllDomains(self.0, &raw mut list, 0))?;
            let domains = (0..count as usize).map(|index| Domain(*list.add(index))).collect();
            free(list.cast());
            Ok(domains)
        }
    }

    /// What a volume of a pool is. Looks at no file: a pool's file server may be away.
    pub(super) fn volume(&self, pool: &str, volume: &str) -> Done<Volume> {
        let (pool, volume) = (c_string(pool)?, c_string(volume)?);
        // SAFETY: the connection is open, both strings live through the calls; what is found is given back once it was
        // asked.
        let (definition, path) = unsafe {
            let pool = virt_sys::virStoragePoolLookupByName(self.0, pool.as_ptr());
            if pool.is_null() {
                return Err(Fault::last());
            }
            let found = virt_sys::virStorageVolLookupByName(pool, volume.as_ptr());
            let told = match found.is_null() {
                true => Err(Fault::last()),
                false => take_text(virt_sys::virStorageVolGetPath(found)).and_then(|path| {
                    let definition = take_text(virt_sys::virStoragePoolGetXMLDesc(pool, 0))?;
                    Ok((definition, path))
                }),
            };
            if !found.is_null() {
                virt_sys::virStorageVolFree(found);
            }
            virt_sys::virStoragePoolFree(pool);
            told?
        };
        Volume::of(&definition, path).ok_or_else(|| Fault::own("the pool's definition is odd"))
    }

    pub(super) fn capabilities(&self) -> Done<String> {
        // SAFETY: the connection is open; the string is ours.
        take_text(unsafe { virt_sys::virConnectGetCapabilities(self.0) })
    }

    pub(super) fn node(&self) -> Done<Node> {
        // SAFETY: an all-zero structure of numbers and bytes is valid; libvirt fills it.
        unsafe {
            let mut info: virt_sys::virNodeInfo = std::mem::zeroed();
            check(virt_sys::virNodeGetInfo(self.0, &raw mut info))?;
            Ok(Node { cpus: info.cpus, memory_kib: info.memory })
        }
    }

    pub(super) fn library_version(&self) -> Done<u64> {
        let mut version = 0;
        // SAFETY: the connection is open, the number is ours.
        check(unsafe { virt_sys::virConnectGetLibVersion(self.0, &raw mut version) })?;
        Ok(version)
    }

    pub(super) fn hypervisor_version(&self) -> Done<u64> {
        let mut version = 0;
        // SAFETY: the connection is open, the number is ours.
        check(unsafe { virt_sys::virConnectGetVersion(self.0, &raw mut version) })?;
        Ok(version)
    }
}

/// Why a domain is paused, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PausedReason {
    Migration,
    StartingUp,
    /// QEMU stopped it by itself: a disk could not be read or written, or libvirt does not know why. QEMU (10.0) tells of
    /// such errors once a second at most, so of a VM that stops again at once libvirt hears only that it stopped.
    ByQemu,
    /// libvirt stopped it for something that failed, and could not run it again.
    NotRunAgain,
    Other,
}

/// Whether a domain has a process, and whether its vCPUs run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PowerState {
    Running,
    Paused(PausedReason),
    /// Its guest crashed, and its process is kept.
    Crashed,
    /// Its guest suspended it to memory.
    Suspended,
    Off,
}

/// Which form of a definition.
#[derive(Clone, Copy)]
pub(super) enum Xml {
    Live,
    Migratable,
    Inactive,
    /// As [`Xml::Inactive`], without what libvirt adds by itself and earlier releases do not know (the `itco` watchdog of
    /// q35, since 9.1): for other hosts.
    Portable,
    /// As [`Xml::Inactive`], without passwords.
    Public,
}

/// Arguments of a migration.
pub(super) struct Migrate<'a> {
    pub(super) connection_uri: &'a str,
    pub(super) migrate_uri: &'a str,
    /// Where disks go that move along, and which these are.
    pub(super) disks_uri: &'a str,
    pub(super) disks: &'a [&'a str],
    pub(super) live_xml: &'a str,
    pub(super) persistent_xml: Option<&'a str>,
    pub(super) bandwidth_mib_per_s: Option<u64>,
    pub(super) auto_converge: bool,
    /// libvirt need not know itself that the files are shared.
    pub(super) vouched: bool,
}

/// A domain.
pub(super) struct Domain(virt_sys::virDomainPtr);

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
        // SAFETY: the domain is valid; the reference is given back when the clone is dropped.
        unsafe { virt_sys::virDomainRef(self.0) };
        Self(self.0)
    }
}

impl Domain {
    pub(super) fn id(&self) -> Done<VmId> {
        let mut bytes = [0; virt_sys::VIR_UUID_BUFLEN as usize];
        // SAFETY: the domain is valid, the buffer has the documented size.
        check(unsafe { virt_sys::virDomainGetUUID(self.0, bytes.as_mut_ptr()) })?;
        Ok(VmId(Uuid::from_bytes(bytes)))
    }

    pub(super) fn name(&self) -> Done<String> {
        // SAFETY: the domain is valid; the string is its own and is copied.
        unsafe { text(virt_sys::virDomainGetName(self.0)) }.ok_or_else(Fault::last)
    }

    /// libvirt's number of its process, which no other process of this libvirtd's life has; `None` without one.
    pub(super) fn process(&self) -> Option<u32> {
        // SAFETY: the domain is valid; -1 (as unsigned) says that it has no process.
        Some(unsafe { virt_sys::virDomainGetID(self.0) }).filter(|id| *id != c_uint::MAX)
    }

    fn state_and_reason(&self) -> Done<(c_uint, c_uint)> {
        let (mut state, mut reason) = (0, 0);
        // SAFETY: the domain is valid, the numbers are ours.
        check(unsafe { virt_sys::virDomainGetState(self.0, &raw mut state, &raw mut reason, 0) })?;
        Ok((state as c_uint, reason as c_uint))
    }

    /// Whether it is off since its QEMU ended in order: its guest shut down. Forgotten when libvirtd is restarted.
    pub(super) fn shut_itself_down(&self) -> Done<bool> {
        let off = (virt_sys::VIR_DOMAIN_SHUTOFF, virt_sys::VIR_DOMAIN_SHUTOFF_SHUTDOWN);
        Ok(self.state_and_reason()? == off)
    }

    pub(super) fn state(&self) -> Done<PowerState> {
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
            // libvirt says so only of a process that is kept: one that ended is shut off, whatever ended it.
            virt_sys::VIR_DOMAIN_CRASHED => PowerState::Crashed,
            virt_sys::VIR_DOMAIN_PMSUSPENDED => PowerState::Suspended,
            virt_sys::VIR_DOMAIN_SHUTOFF => PowerState::Off,
            // What is not known to be shut off is not taken for it.
            _ => PowerState::Paused(PausedReason::Other),
        })
    }

    pub(super) fn xml(&self, form: Xml) -> Done<String> {
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

    /// Whether the VM was saved, so that its next start goes on where it was.
    pub(super) fn saved(&self) -> Done<bool> {
        // SAFETY: the domain is valid.
        Ok(check(unsafe { virt_sys::virDomainHasManagedSaveImage(self.0, 0) })? == 1)
    }

    pub(super) fn persistent(&self) -> Done<bool> {
        // SAFETY: the domain is valid.
        Ok(check(unsafe { virt_sys::virDomainIsPersistent(self.0) })? == 1)
    }

    pub(super) fn autostart(&self) -> Done<bool> {
        let mut autostart = 0;
        // SAFETY: the domain is valid, the number is ours.
        check(unsafe { virt_sys::virDomainGetAutostart(self.0, &raw mut autostart) })?;
        Ok(autostart != 0)
    }

    pub(super) fn set_autostart(&self, autostart: bool) -> Done<()> {
        // SAFETY: the domain is valid.
        check(unsafe { virt_sys::virDomainSetAutostart(self.0, c_int::from(autostart)) }).map(drop)
    }

    pub(super) fn snapshots(&self) -> Done<u32> {
        // SAFETY: the domain is valid.
        let count = check(unsafe { virt_sys::virDomainSnapshotNum(self.0, 0) })?;
        Ok(count as u32)
    }

    /// None where libvirt's driver knows no such thing.
    pub(super) fn checkpoints(&self) -> Done<u32> {
        // SAFETY: the domain is valid; without a list they are only counted.
        match check(unsafe { virt_sys::virDomainListAllCheckpoints(self.0, ptr::null_mut(), 0) }) {
            Ok(count) => Ok(count as u32),
            Err(fault) if fault.code == virt_sys::VIR_ERR_NO_SUPPORT => Ok(0),
            Err(fault) => Err(fault),
        }
    }

    /// The disks that could not be read or written since the VM ran last, each with whether for want of room.
    pub(super) fn disk_errors(&self) -> Done<Vec<(String, bool)>> {
        // SAFETY: the domain is valid; without a list the disks are only counted.
        let count = check(unsafe { virt_sys::virDomainGetDiskErrors(self.0, ptr::null_mut(), 0, 0) })?;
        let nothing = || virt_sys::virDomainDiskError { disk: ptr::null_mut(), error: 0 };
        let mut errors: Vec<_> = (0..count).map(|_| nothing()).collect();
        // SAFETY: the domain is valid, the list is ours and as long as is said.
        let filled =
            check(unsafe { virt_sys::virDomainGetDiskErrors(self.0, errors.as_mut_ptr(), errors.len() as c_uint, 0) })?;
        let told = errors.iter().take(filled as usize).map(|error| {
            let is_full = error.error == virt_sys::VIR_DOMAIN_DISK_ERROR_NO_SPACE as c_int;
            Ok((take_text(error.disk)?, is_full))
        });
        told.collect()
    }

    pub(super) fn create(&self) -> Done<()> {
        // SAFETY: the domain is valid.
        check(unsafe { virt_sys::virDomainCreate(self.0) }).map(drop)
    }

    pub(super) fn shutdown(&self) -> Done<()> {
        // SAFETY: the domain is valid.
        check(unsafe { virt_sys::virDomainShutdown(self.0) }).map(drop)
    }

    pub(super) fn resume(&self) -> Done<()> {
        // SAFETY: the domain is valid.
        check(unsafe { virt_sys::virDomainResume(self.0) }).map(drop)
    }

    pub(super) fn destroy(&self) -> Done<()> {
        // SAFETY: the domain is valid.
        check(unsafe { virt_sys::virDomainDestroy(self.0) }).map(drop)
    }

    pub(super) fn undefine(&self) -> Done<()> {
        let flags = virt_sys::VIR_DOMAIN_UNDEFINE_KEEP_NVRAM;
        // SAFETY: the domain is valid.
        check(unsafe { virt_sys::virDomainUndefineFlags(self.0, flags) }).map(drop)
    }

    pub(super) fn abort_job(&self) -> Done<()> {
        // SAFETY: the domain is valid.
        check(unsafe { virt_sys::virDomainAbortJob(self.0) }).map(drop)
    }

    pub(super) fn set_downtime_limit(&self, limit_ms: u64) -> Done<()> {
        // SAFETY: the domain is valid.
        check(unsafe { virt_sys::virDomainMigrateSetMaxDowntime(self.0, limit_ms, 0) }).map(drop)
    }

    pub(super) fn migrate(&self, migrate: &Migrate<'_>) -> Done<()> {
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

    /// QEMU's answer to a command, both in JSON; an error of QEMU's is an answer. libvirt marks the VM as tainted.
    pub(super) fn monitor(&self, command: &str) -> Done<String> {
        let command = c_string(command)?;
        let mut answer = ptr::null_mut();
        // SAFETY: the domain is valid, the string lives through the call; the answer is ours.
        check(unsafe { virt_sys::virDomainQemuMonitorCommand(self.0, command.as_ptr(), &raw mut answer, 0) })?;
        take_text(answer)
    }

    /// Sizes of a disk.
    pub(super) fn disk_size(&self, device: &str) -> Done<DiskSize> {
        let device = c_string(device)?;
        // SAFETY: an all-zero structure of numbers is valid; the domain and the string are, too.
        unsafe {
            let mut info: virt_sys::virDomainBlockInfo = std::mem::zeroed();
            check(virt_sys::virDomainGetBlockInfo(self.0, device.as_ptr(), &raw mut info, 0))?;
            Ok(DiskSize { virtual_size: ByteCount(info.capacity), allocated: ByteCount(info.allocation) })
        }
    }

    /// Begins to copy a disk to what `target` describes, which is there already.
    pub(super) fn copy_disk(&self, device: &str, target: &str, bandwidth_bytes_per_s: Option<u64>) -> Done<()> {
        let (device, target) = (c_string(device)?, c_string(target)?);
        let mut params = Params::default();
        if let Some(bandwidth) = bandwidth_bytes_per_s {
            params.number(c"bandwidth", bandwidth)?;
        }
        params.count32(c"granularity", COPY_GRANULARITY_BYTES)?;
        // TRANSIENT_JOB: libvirt forgets the copy with the VM's process; it refuses it for persistent VMs without.
        // Without synchronous writes: see docs/adr/0011.
        let flags = virt_sys::VIR_DOMAIN_BLOCK_COPY_REUSE_EXT | virt_sys::VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB;
        // SAFETY: the domain, both strings and the list are valid.
        check(unsafe {
            virt_sys::virDomainBlockCopy(self.0, device.as_ptr(), target.as_ptr(), params.list, params.count, flags)
        })
        .map(drop)
    }

    /// Bytes done and bytes to do of what a disk is busy with; `None` if with nothing.
    pub(super) fn disk_job(&self, device: &str) -> Done<Option<(u64, u64)>> {
        let device = c_string(device)?;
        // SAFETY: as for `disk_size`.
        unsafe {
            let mut info: virt_sys::virDomainBlockJobInfo = std::mem::zeroed();
            let found = check(virt_sys::virDomainGetBlockJobInfo(self.0, device.as_ptr(), &raw mut info, 0))?;
            Ok((found > 0).then_some((info.cur, info.end)))
        }
    }

    /// Ends what a disk is busy with: on the copy (`pivot`), and returns when it has ended; or on the old file, and returns
    /// when it was asked to. QEMU may not be able to end it while the new file's place does not answer.
    pub(super) fn end_disk_job(&self, device: &str, pivot: bool) -> Done<()> {
        let device = c_string(device)?;
        let flags = match pivot {
            true => virt_sys::VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT,
            false => virt_sys::VIR_DOMAIN_BLOCK_JOB_ABORT_ASYNC,
        };
        // SAFETY: the domain and the string are valid.
        check(unsafe { virt_sys::virDomainBlockJobAbort(self.0, device.as_ptr(), flags) }).map(drop)
    }

    /// Counts of the running (or, if `completed`, the last) job; `None` if there is none.
    pub(super) fn job_stats(&self, completed: bool) -> Done<Option<MigrationStats>> {
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

/// A list of typed parameters, freed when dropped.
struct Params {
    list: virt_sys::virTypedParameterPtr,
    count: c_int,
    room: c_int,
}

impl Default for Params {
    fn default() -> Self {
        Self { list: ptr::null_mut(), count: 0, room: 0 }
    }
}

impl Drop for Params {
    fn drop(&mut self) {
        // SAFETY: the list is NULL or owned, with `count` entries.
        unsafe { virt_sys::virTypedParamsFree(self.list, self.count) };
    }
}

impl Params {
    fn text(&mut self, name: &CStr, value: &str) -> Done<()> {
        let value = c_string(value)?;
        // SAFETY: libvirt grows the list and copies both strings.
        check(unsafe {
            virt_sys::virTypedParamsAddString(
                &raw mut self.list,
                &raw mut self.count,
                &raw mut self.room,
                name.as_ptr(),
                value.as_ptr(),
            )
        })
        .map(drop)
    }

    fn count32(&mut self, name: &CStr, value: u32) -> Done<()> {
        // SAFETY: libvirt grows the list and copies the name.
        check(unsafe {
            virt_sys::virTypedParamsAddUInt(
                &raw mut self.list,
                &raw mut self.count,
                &raw mut self.room,
                name.as_ptr(),
                value,
            )
        })
        .map(drop)
    }

    fn number(&mut self, name: &CStr, value: u64) -> Done<()> {
        // SAFETY: libvirt grows the list and copies the name.
        check(unsafe {
            virt_sys::virTypedParamsAddULLong(
                &raw mut self.list,
                &raw mut self.count,
                &raw mut self.room,
                name.as_ptr(),
                value,
            )
        })
        .map(drop)
    }

    /// A number of any of libvirt's integer types; `None` if it is not there.
    fn get(&self, name: &CStr) -> Option<u64> {
        // SAFETY: the list is valid with `count` entries; the entry's type says which field of its value is set.
        unsafe {
            let entry = virt_sys::virTypedParamsGet(self.list, self.count, name.as_ptr());
            if entry.is_null() {
                return None;
            }
            match (*entry).type_ as c_uint {
                virt_sys::VIR_TYPED_PARAM_ULLONG => Some((*entry).value.ul),
                virt_sys::VIR_TYPED_PARAM_UINT => Some(u64::from((*entry).value.ui)),
                virt_sys::VIR_TYPED_PARAM_LLONG => u64::try_from((*entry).value.l).ok(),
                virt_sys::VIR_TYPED_PARAM_INT => u64::try_from((*entry).value.i).ok(),
                _ => None,
            }
        }
    }
}

/// What a watch reports; domains by their UUID.
pub(super) enum Event<'a> {
    StoppedForMigration(&'a str),
    Changed(&'a str),
    Closed,
}

type Relay = Box<dyn Fn(Event<'_>) + Send + Sync>;

/// A registration for lifecycle events and the connection's end, ended when dropped.
pub(super) struct Watch {
    connection: Connection,
    /// Kept for the close callback, which borrows it.
    relay: Arc<Relay>,
    lifecycle: c_int,
}

impl Watch {
    pub(super) fn start(connection: Connection, relay: Relay) -> Done<Self> {
        let relay = Arc::new(relay);
        let opaque = Arc::into_raw(Arc::clone(&relay)).cast_mut().cast::<c_void>();
        // SAFETY: libvirt keeps `opaque` until it calls `drop_relay`. The callback type depends on the event, so
        // libvirt takes it as a generic one.
        unsafe {
            let callback: unsafe extern "C" fn(
                virt_sys::virConnectPtr,
                virt_sys::virDomainPtr,
                c_int,
                c_int,
                *mut c_void,
            ) = on_lifecycle;
            let generic = std::mem::transmute::<
                unsafe extern "C" fn(virt_sys::virConnectPtr, virt_sys::virDomainPtr, c_int, c_int, *mut c_void),
                unsafe extern "C" fn(virt_sys::virConnectPtr, virt_sys::virDomainPtr, *mut c_void),
            >(callback);
            let id = virt_sys::virConnectDomainEventRegisterAny(
                connection.0,
                ptr::null_mut(),
                virt_sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE as c_int,
                Some(generic),
                opaque,
                Some(drop_relay),
            );
            if id < 0 {
                let fault = Fault::last();
                drop_relay(opaque);
                return Err(fault);
            }
            let watch = Self { connection, relay, lifecycle: id };
            // Borrowed, not given away: a driver that knows no close event would never give it back.
            let borrowed = Arc::as_ptr(&watch.relay).cast_mut().cast::<c_void>();
            let result = virt_sys::virConnectRegisterCloseCallback(watch.connection.0, Some(on_close), borrowed, None);
            if result < 0 { Err(Fault::last()) } else { Ok(watch) }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // SAFETY: both registrations are ours; removing one that is not there is an error without effect. libvirt
        // calls the close callback under the lock that removing it takes, so nothing borrows the relay afterwards;
        // it frees the lifecycle callback's share when no callback runs any more.
        unsafe {
            virt_sys::virConnectUnregisterCloseCallback(self.connection.0, Some(on_close));
            virt_sys::virConnectDomainEventDeregisterAny(self.connection.0, self.lifecycle);
        }
    }
}

unsafe extern "C" fn drop_relay(opaque: *mut c_void) {
    // SAFETY: `opaque` came from `Arc::into_raw` in `Watch::start` and is handed back once.
    drop(unsafe { Arc::from_raw(opaque.cast_const().cast::<Relay>()) });
}

unsafe extern "C" fn on_lifecycle(
    _connection: virt_sys::virConnectPtr,
    domain: virt_sys::virDomainPtr,
    event: c_int,
    detail: c_int,
    opaque: *mut c_void,
) {
    // SAFETY: libvirt passes a valid domain and the relay that was registered; the buffer has the documented size.
    unsafe {
        let mut buffer = [0 as c_char; virt_sys::VIR_UUID_STRING_BUFLEN as usize];
        if virt_sys::virDomainGetUUIDString(domain, buffer.as_mut_ptr()) < 0 {
            return;
        }
        let Some(uuid) = text(buffer.as_ptr()) else { return };
        let stopped_for_migration = event as c_uint == virt_sys::VIR_DOMAIN_EVENT_SUSPENDED
            && detail as c_uint == virt_sys::VIR_DOMAIN_EVENT_SUSPENDED_MIGRATED;
        let relay = &*opaque.cast_const().cast::<Relay>();
        relay(if stopped_for_migration { Event::StoppedForMigration(&uuid) } else { Event::Changed(&uuid) });
    }
}

unsafe extern "C" fn on_close(_connection: virt_sys::virConnectPtr, _reason: c_int, opaque: *mut c_void) {
    // SAFETY: libvirt passes the relay that was registered.
    let relay = unsafe { &*opaque.cast_const().cast::<Relay>() };
    relay(Event::Closed);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// libvirt's own in-process driver: no daemon is needed.
    fn connection() -> Connection {
        Connection::open("test:///default").expect("the test driver is built in")
    }

    #[test]
    fn the_default_domain_is_listed_and_read() {
        let connection = connection();
        let domains = connection.domains().expect("listed");
        assert_eq!(domains.len(), 1);
        assert_eq!(domains[0].state().expect("known"), PowerState::Running);
        assert!(domains[0].xml(Xml::Live).expect("read").contains("<name>test</name>"));
        assert!(connection.is_alive());
        assert!(connection.library_version().expect("known") > 9_000_000);
    }

    #[test]
    fn snapshots_and_checkpoints_are_counted() {
        let connection = connection();
        let domain = connection.domains().expect("listed").remove(0);
        assert_eq!((domain.snapshots().expect("counted"), domain.checkpoints().expect("counted")), (0, 0));
        let uuid = "0d7a4d0e-4f57-4f3e-9a80-0c6a4b6ad009";
        let kept = "<domain type='test'><name>kept</name><uuid>UUID</uuid><memory>1024</memory><os><type>hvm</type></os>\
                    </domain>";
        let kept = connection.define(&kept.replace("UUID", uuid)).expect("defined");
        // SAFETY: the domain is valid. This driver knows no flags of it.
        check(unsafe { virt_sys::virDomainUndefine(kept.0) }).expect("removed");
        // What cannot be counted is not none.
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
        // libvirt's own driver for tests has every disk of a VM that runs fail, each in another way.
        let errors = domain.disk_errors().expect("told");
        assert_eq!(errors, [("vda".to_owned(), false), ("vdb".to_owned(), true)]);
    }

    #[test]
    fn an_unknown_domain_is_told_from_a_fault() {
        let fault = connection().domain("00000000-0000-4000-8000-000000000000").map(drop).expect_err("not there");
        assert!(fault.is_no_domain(), "{fault:?}");
        assert!(Connection::open("nonsense:///x").map(drop).is_err());
    }

    #[test]
    fn events_reach_the_relay_and_dropping_the_watch_frees_it() {
        let (sent, received) = std::sync::mpsc::channel();
        let watched = connection();
        let domain = watched.domains().expect("listed").remove(0);
        let relay = move |event: Event<'_>| {
            if let Event::StoppedForMigration(uuid) | Event::Changed(uuid) = event {
                let _ = sent.send(uuid.to_owned());
            }
        };
        let watch = Watch::start(watched, Box::new(relay)).expect("registered");
        domain.destroy().expect("stopped");
        let uuid = received.recv_timeout(std::time::Duration::from_secs(10)).expect("an event");
        assert_eq!(uuid.len(), 36);
        drop(domain);
        drop(watch);
        // The relay's sender goes with it, so the channel ends.
        while received.recv_timeout(std::time::Duration::from_secs(10)).is_ok() {}
        assert!(matches!(received.try_recv(), Err(std::sync::mpsc::TryRecvError::Disconnected)));
    }

    #[test]
    fn typed_parameters_are_read_whatever_their_integer_type() {
        // libvirt must be initialised before any of its functions is called.
        let _connection = connection();
        let mut params = Params::default();
        params.number(c"bytes", 7).expect("added");
        params.text(c"name", "x").expect("added");
        assert_eq!((params.get(c"bytes"), params.get(c"name"), params.get(c"none")), (Some(7), None, None));
    }
}
