//! Events of libvirt.

use std::{
    ffi::{c_char, c_int, c_uint, c_void},
    ptr,
    sync::Arc,
};

use super::{
    call::{Done, Fault, text},
    connection::Connection,
};

/// An event that a watch reports; domains are identified by UUID.
pub enum Event<'a> {
    StoppedForMigration(&'a str),
    Changed(&'a str),
    Closed,
}

type Relay = Box<dyn Fn(Event<'_>) + Send + Sync>;

/// A registration for lifecycle events and the connection's end; removed when dropped.
pub struct Watch {
    connection: Connection,
    /// Kept alive for the close callback, which borrows it.
    relay: Arc<Relay>,
    lifecycle: c_int,
}

impl Watch {
    pub fn start(connection: Connection, relay: Relay) -> Done<Self> {
        let relay = Arc::new(relay);
        let opaque = Arc::into_raw(Arc::clone(&relay)).cast_mut().cast::<c_void>();
        // SAFETY: libvirt keeps `opaque` until it calls `drop_relay`. The callback's type depends on the event, so
        // libvirt takes a generic one.
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
            // Borrowed instead of given away: a driver without a close event would never return it.
            let borrowed = Arc::as_ptr(&watch.relay).cast_mut().cast::<c_void>();
            let result = virt_sys::virConnectRegisterCloseCallback(watch.connection.0, Some(on_close), borrowed, None);
            if result < 0 { Err(Fault::last()) } else { Ok(watch) }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // SAFETY: both registrations are ours; removing one that does not exist is a harmless error. libvirt calls the
        // close callback under the lock that removing it takes, so nothing borrows the relay afterwards; it frees the
        // lifecycle callback's share once no callback runs any more.
        unsafe {
            virt_sys::virConnectUnregisterCloseCallback(self.connection.0, Some(on_close));
            virt_sys::virConnectDomainEventDeregisterAny(self.connection.0, self.lifecycle);
        }
    }
}

unsafe extern "C" fn drop_relay(opaque: *mut c_void) {
    // SAFETY: `opaque` came from `Arc::into_raw` in `Watch::start` and is returned once.
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
    use crate::hypervisor::libvirt::ffi::connection::tests::connection;

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
        // The relay's sender is dropped with it, so the channel ends.
        while received.recv_timeout(std::time::Duration::from_secs(10)).is_ok() {}
        assert!(matches!(received.try_recv(), Err(std::sync::mpsc::TryRecvError::Disconnected)));
    }
}
