//! Where the suite runs: two hosts, and waits for what happens on them.

use std::{
    any::Any,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex},
    time::{Duration, Instant},
};

use ferry_core::{api::agent::Role, id::VmId};

use crate::hypervisor::{DomainEvent, Hypervisor};

/// Nothing that the suite waits for takes longer on a busy machine with emulated CPUs.
pub(super) const DEADLINE: Duration = Duration::from_secs(60);

/// One of the two hosts.
pub struct Side<'a> {
    /// Its driver.
    pub hypervisor: &'a dyn Hypervisor,
    /// Where this process sees a path of that host.
    pub see: &'a dyn Fn(&Path) -> PathBuf,
}

/// The storage pool of a site's source.
pub const POOL: &str = "ferry-pool";

/// Two hosts that reach one folder, each under its own path.
pub struct Site<'a> {
    /// Where VMs begin.
    pub source: Side<'a>,
    /// Where they go.
    pub destination: Side<'a>,
    /// Defines a stopped, persistent VM of that name on a host, with one disk `vda` in the common folder.
    pub define: &'a dyn Fn(Role, &str) -> VmId,
    /// As `define` at the source, where the disk is volume `NAME.raw` of a storage pool of that name. The source has one
    /// pool, [`POOL`], whose target is the common folder; the destination has none.
    pub define_volume: &'a dyn Fn(&str, &str) -> VmId,
    /// The common folder, as the source and as the destination has it.
    pub folder: (PathBuf, PathBuf),
    /// Has something else on a host take a disk's file, so that no VM there gets it, until what this gives is dropped.
    pub take_disk: &'a dyn Fn(Role, &Path) -> Box<dyn Any>,
    /// Restarts a host's daemon; its VMs go on.
    pub restart: &'a dyn Fn(Role),
    /// A folder of both hosts in which folders of sessions may be made.
    pub run_dir: PathBuf,
}

/// Events of one host.
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
                sink.0.lock().expect("nobody panicked").push(event);
                sink.1.notify_all();
            }))
            .expect("watched");
        Self { events, _guard: guard }
    }

    pub(super) fn forget(&self) {
        self.events.0.lock().expect("nobody panicked").clear();
    }

    pub(super) fn wait(&self, what: &str, wanted: impl Fn(DomainEvent) -> bool) {
        let events = self.events.0.lock().expect("nobody panicked");
        let (events, timeout) = self
            .events
            .1
            .wait_timeout_while(events, DEADLINE, |events| !events.iter().copied().any(&wanted))
            .expect("nobody panicked");
        assert!(!timeout.timed_out(), "{what}; events: {events:?}");
    }
}

/// Asks again until `condition` holds.
pub(super) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    const PAUSE: Duration = Duration::from_millis(5);
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "waited {DEADLINE:?} in vain: {what}");
        std::thread::sleep(PAUSE);
    }
}
