//! Connections to libvirt, and queries about the host.

use std::{
    ffi::{c_int, c_uint, c_void},
    ptr,
    sync::OnceLock,
    thread,
};

use super::{
    call::{Done, Fault, c_string, check, free, take_text},
    domain::Domain,
};
use crate::hypervisor::xml::edit::Volume;

/// A connection is dead if its daemon is silent for [`KEEPALIVE_COUNT`] times this. Seconds.
const KEEPALIVE_SECONDS: c_int = 5;
const KEEPALIVE_COUNT: c_uint = 4;

/// Without an error callback libvirt prints errors to stderr.
unsafe extern "C" fn be_silent(_data: *mut c_void, _error: virt_sys::virErrorPtr) {}

/// Starts the one event loop of this process; must run before the first connection is opened.
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
                    // SAFETY: only this thread runs the loop. An error in one round does not affect the next.
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
pub struct Connection(pub(super) virt_sys::virConnectPtr);

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

/// Resources of the node.
pub struct Node {
    pub cpus: u32,
    pub memory_kib: u64,
}

impl Connection {
    pub fn open(uri: &str) -> Done<Self> {
        ensure_event_loop()?;
        let uri = c_string(uri)?;
        // SAFETY: the string lives through the call; the result is checked.
        unsafe {
            let pointer = virt_sys::virConnectOpen(uri.as_ptr());
            if pointer.is_null() {
                return Err(Fault::last());
            }
            let connection = Self(pointer);
            // In-process drivers have no keepalive; their refusal is harmless.
            virt_sys::virConnectSetKeepAlive(pointer, KEEPALIVE_SECONDS, KEEPALIVE_COUNT);
            Ok(connection)
        }
    }

    pub fn is_alive(&self) -> bool {
        // SAFETY: the connection is open.
        unsafe { virt_sys::virConnectIsAlive(self.0) == 1 }
    }

    pub fn domain(&self, uuid: &str) -> Done<Domain> {
        let uuid = c_string(uuid)?;
        // SAFETY: the connection is open, the string lives through the call.
        let pointer = unsafe { virt_sys::virDomainLookupByUUIDString(self.0, uuid.as_ptr()) };
        if pointer.is_null() { Err(Fault::last()) } else { Ok(Domain(pointer)) }
    }

    pub fn define(&self, xml: &str) -> Done<Domain> {
        let xml = c_string(xml)?;
        let flags = virt_sys::VIR_DOMAIN_DEFINE_VALIDATE;
        // SAFETY: the connection is open, the string lives through the call.
        let pointer = unsafe { virt_sys::virDomainDefineXMLFlags(self.0, xml.as_ptr(), flags) };
        if pointer.is_null() { Err(Fault::last()) } else { Ok(Domain(pointer)) }
    }

    pub fn domains(&self) -> Done<Vec<Domain>> {
        let mut list: *mut virt_sys::virDomainPtr = ptr::null_mut();
        // SAFETY: libvirt allocates an array of `count` domains; each is taken over, the array is freed.
        unsafe {
            let count = check(virt_sys::virConnectListAllDomains(self.0, &raw mut list, 0))?;
            let domains = (0..count as usize).map(|index| Domain(*list.add(index))).collect();
            free(list.cast());
            Ok(domains)
        }
    }

    /// What a volume of a pool is. Accesses no file, because a pool's file server may be down.
    pub fn volume(&self, pool: &str, volume: &str) -> Done<Volume> {
        let (pool, volume) = (c_string(pool)?, c_string(volume)?);
        // SAFETY: the connection is open, both strings live through the calls; the objects found are freed after the
        // queries.
        let (definition, path) = unsafe {
            let pool = virt_sys::virStoragePoolLookupByName(self.0, pool.as_ptr());
            if pool.is_null() {
                return Err(Fault::last());
            }
            let found = virt_sys::virStorageVolLookupByName(pool, volume.as_ptr());
            let answer = match found.is_null() {
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
            answer?
        };
        Volume::of(&definition, path).ok_or_else(|| Fault::own("the pool's definition is odd"))
    }

    pub fn capabilities(&self) -> Done<String> {
        // SAFETY: the connection is open; the string is ours.
        take_text(unsafe { virt_sys::virConnectGetCapabilities(self.0) })
    }

    pub fn node(&self) -> Done<Node> {
        // SAFETY: an all-zero structure of numbers and bytes is valid; libvirt fills it.
        unsafe {
            let mut info: virt_sys::virNodeInfo = std::mem::zeroed();
            check(virt_sys::virNodeGetInfo(self.0, &raw mut info))?;
            Ok(Node { cpus: info.cpus, memory_kib: info.memory })
        }
    }

    pub fn library_version(&self) -> Done<u64> {
        let mut version = 0;
        // SAFETY: the connection is open, the number is ours.
        check(unsafe { virt_sys::virConnectGetLibVersion(self.0, &raw mut version) })?;
        Ok(version)
    }

    pub fn hypervisor_version(&self) -> Done<u64> {
        let mut version = 0;
        // SAFETY: the connection is open, the number is ours.
        check(unsafe { virt_sys::virConnectGetVersion(self.0, &raw mut version) })?;
        Ok(version)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::hypervisor::libvirt::ffi::{PowerState, Xml};

    /// libvirt's built-in test driver: no daemon is needed.
    pub fn connection() -> Connection {
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
    fn an_unknown_domain_is_told_from_a_fault() {
        let fault = connection().domain("00000000-0000-4000-8000-000000000000").map(drop).expect_err("not there");
        assert!(fault.is_no_domain(), "{fault:?}");
        assert!(Connection::open("nonsense:///x").map(drop).is_err());
    }
}
