//! The environment of the suite: two hosts, and helpers that wait for events on them.

use std::{
    any::Any,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex},
    time::{Duration, Instant},
};

use ferry_core::{api::agent::Role, id::VmId};

use crate::hypervisor::{DomainEvent, Hypervisor};

/// The longest wait of the suite; sufficient on a busy machine with emulated CPUs.
pub(super) const DEADLINE: Duration = Duration::from_secs(60);

/// One of the two hosts.
pub struct Side<'a> {
    /// Its driver.
    pub hypervisor: &'a dyn Hypervisor,
    /// Translates a path on that host to the path in this process's view.
    pub see: &'a dyn Fn(&Path) -> PathBuf,
}

/// The storage pool of a site's source.
pub const POOL: &str = "ferry-pool";

/// Two hosts that reach one folder, each under its own path.
pub struct Site<'a> {
    /// The host where VMs start.
    pub source: Side<'a>,
    /// The host they move to.
    pub destination: Side<'a>,
    /// Defines a stopped, persistent VM of that name on a host, with one disk `vda` in the common folder.
    pub define: &'a dyn Fn(Role, &str) -> VmId,
    /// As `define` at the source, with the disk as volume `NAME.raw` of a storage pool of that name. The source has one
    /// pool, [`POOL`], whose target is the common folder; the destination has none.
    pub define_volume: &'a dyn Fn(&str, &str) -> VmId,
    /// The common folder's path at the source and at the destination.
    pub folder: (PathBuf, PathBuf),
    /// Makes a disk's file unavailable to VMs on a host, until the returned value is dropped.
    pub take_disk: &'a dyn Fn(Role, &Path) -> Box<dyn Any>,
    /// Restarts a host's daemon; its VMs continue.
    pub restart: &'a dyn Fn(Role),
    /// A folder on both hosts in which session folders may be created.
    pub run_dir: PathBuf,
}

/// Recorded events of one host.
pub(super) struct Watched {
    pub(super) events: Arc<(Mutex<Vec<DomainEvent>>, Condvar)>,
    _guard: Box<dyn Send>,
}

impl Watched {
    pub(super) fn begin(hypervisor: &dyn Hypervisor) -> Self {
        let events = Arc::new((Mutex::new(Vec::new()), Condvar::new()));
        let sink = Arc::clone(&events);
        let guard = hypervisor
            .watch(Box::new(move |event| {
                sink.0.lock().expect("no thread panicked").push(event);
                sink.1.notify_all();
            }))
            .expect("watched");
        Self { events, _guard: guard }
    }

    pub(super) fn forget(&self) {
        self.events.0.lock().expect("no thread panicked").clear();
    }

    pub(super) fn wait(&self, what: &str, expected: impl Fn(DomainEvent) -> bool) {
        let events = self.events.0.lock().expect("no thread panicked");
        let (events, timeout) = self
            .events
            .1
            .wait_timeout_while(events, DEADLINE, |events| !events.iter().copied().any(&expected))
            .expect("no thread panicked");
        assert!(!timeout.timed_out(), "{what}; events: {events:?}");
    }
}

/// Polls until `condition` holds.
pub(super) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    const PAUSE: Duration = Duration::from_millis(5);
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "waited {DEADLINE:?} in vain: {what}");
        std::thread::sleep(PAUSE);
    }
}
