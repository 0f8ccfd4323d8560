//! A plan of faults on one fake host: what fails, and where.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard},
    time::{Duration, Instant},
};

/// A held thread continues by itself after this, so that a test that forgets to release it fails instead of hanging.
const HOLD_MAX: Duration = Duration::from_secs(60);

/// A point in the fake at which a fault can be injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// [`crate::hypervisor::HostInfo::host`] and [`crate::hypervisor::HostInfo::process_owner`]
    Host,
    /// [`crate::hypervisor::Domains::vms`] and [`crate::hypervisor::Domains::vm`]
    Vms,
    /// [`crate::hypervisor::Domains::presence`]
    Presence,
    /// [`crate::hypervisor::Domains::watch`]
    Watch,
    /// [`crate::hypervisor::Power::start`]
    Start,
    /// [`crate::hypervisor::Power::shutdown`]
    Shutdown,
    /// [`crate::hypervisor::Power::resume`]
    Resume,
    /// [`crate::hypervisor::Power::see_running`]
    SeeRunning,
    /// [`crate::hypervisor::Migration::ensure_disks`]
    EnsureDisks,
    /// [`crate::hypervisor::Power::destroy`]
    Destroy,
    /// [`crate::hypervisor::Domains::undefine`]
    Undefine,
    /// [`crate::hypervisor::Domains::definition`]
    Definition,
    /// [`crate::hypervisor::Domains::define`]
    Define,
    /// [`crate::hypervisor::Domains::set_autostart`]
    SetAutostart,
    /// [`crate::hypervisor::Migration::migrate`], before anything else
    Migrate,
    /// [`crate::hypervisor::Migration::abort_migration`]
    Abort,
    /// [`crate::hypervisor::BlockCopy::copy_disk`]
    CopyDisk,
    /// Before the next part of a disk is copied. A cut ends the copy, like an I/O error on the new file.
    CopyPart,
    /// [`crate::hypervisor::BlockCopy::pivot_disk`], before anything else
    PivotDisk,
    /// [`crate::hypervisor::BlockCopy::pivot_disk`], when the VM already uses the new file
    PivotedDisk,
    /// Source: before a migrated disk is sent. A cut breaks its channel.
    MigratedDisk,
    /// Source: before this pass over memory, counted from 1. A cut breaks the memory channel.
    Pass(u32),
    /// Source: the vCPUs are stopped, the rest is not sent yet. A cut breaks the memory channel.
    Stopped,
    /// Source: everything is sent, Finish is not called yet. A cut breaks the RPC channel.
    Finish,
    /// Destination: Prepare was received. A cut breaks the RPC channel.
    Prepare,
    /// Destination: Finish was received, the copy is not taken over yet. A cut breaks the RPC channel.
    TakeOver,
    /// Destination: the copy is taken over, the reply to Finish is not sent yet. A cut breaks the RPC channel.
    FinishReply,
}

/// What happens to a thread at a [`Point`].
#[derive(Clone, Debug)]
enum Action {
    Fail(String),
    Cut,
    Hold(Arc<Gate>),
}

/// The effect of a fault.
#[derive(Clone, Debug)]
pub(super) enum Struck {
    /// The call fails with this reason.
    Failed(String),
    /// The channel in use breaks.
    Cut,
}

/// The plan of one host. Clones are the same plan; each entry strikes once, unless stated otherwise.
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Mutex<Vec<Entry>>>);

#[derive(Debug)]
struct Entry {
    point: Point,
    /// How many more times a thread may pass the point unharmed.
    spared: u32,
    /// Whether it strikes repeatedly.
    lasts: bool,
    action: Action,
}

impl Faults {
    /// The next call to reach `point` fails.
    pub fn fail(&self, point: Point, reason: &str) {
        self.fail_nth(point, 1, reason);
    }

    /// The `nth` call to reach `point` from now on fails, counted from 1.
    pub fn fail_nth(&self, point: Point, nth: u32, reason: &str) {
        self.add(point, nth - 1, Action::Fail(reason.to_owned()));
    }

    /// Every call that reaches `point` from now on fails, until [`Self::clear`].
    pub fn fail_always(&self, point: Point, reason: &str) {
        self.entries().push(Entry { point, spared: 0, lasts: true, action: Action::Fail(reason.to_owned()) });
    }

    /// The next time `point` is reached, the channel in use breaks. At a point without a channel, the call fails.
    pub fn cut(&self, point: Point) {
        self.add(point, 0, Action::Cut);
    }

    /// The next thread to reach `point` waits there until the returned hold is released or dropped.
    pub fn hold(&self, point: Point) -> Hold {
        self.hold_nth(point, 1)
    }

    /// The `nth` thread to reach `point` from now on, counted from 1, waits there until the returned hold is released
    /// or dropped.
    pub fn hold_nth(&self, point: Point, nth: u32) -> Hold {
        let gate = Arc::new(Gate::default());
        self.add(point, nth - 1, Action::Hold(Arc::clone(&gate)));
        Hold(gate)
    }

    /// Removes all faults that have not struck yet.
    pub fn clear(&self) {
        self.entries().clear();
    }

    /// Every thread that reaches `point` from now on waits there until the returned hold is released or dropped.
    pub fn hold_all(&self, point: Point) -> Hold {
        let gate = Arc::new(Gate::default());
        self.entries().push(Entry { point, spared: 0, lasts: true, action: Action::Hold(Arc::clone(&gate)) });
        Hold(gate)
    }

    fn add(&self, point: Point, spared: u32, action: Action) {
        self.entries().push(Entry { point, spared, lasts: false, action });
    }

    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.0.lock().expect("no thread panics while holding this lock")
    }

    /// Called by the fake at each point.
    pub(super) fn meet(&self, point: Point) -> Result<(), Struck> {
        let mut due = Vec::new();
        self.entries().retain_mut(|entry| {
            if entry.point != point {
                return true;
            }
            if entry.spared > 0 {
                entry.spared -= 1;
                return true;
            }
            due.push(entry.action.clone());
            entry.lasts
        });
        due.into_iter().try_for_each(|action| match action {
            Action::Fail(reason) => Err(Struck::Failed(reason)),
            Action::Cut => Err(Struck::Cut),
            Action::Hold(gate) => gate.wait(),
        })
    }
}

#[derive(Debug, Default)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct GateState {
    reached: bool,
    open: bool,
}

impl Gate {
    fn wait(&self) -> Result<(), Struck> {
        let mut state = self.state.lock().expect("no thread panics while holding this lock");
        state.reached = true;
        self.changed.notify_all();
        let (state, _) = self
            .changed
            .wait_timeout_while(state, HOLD_MAX, |state| !state.open)
            .expect("no thread panics while holding this lock");
        if state.open { Ok(()) } else { Err(Struck::Failed("it was held for too long".to_owned())) }
    }
}

/// Holds a thread of the fake at a point.
#[derive(Debug)]
pub struct Hold(Arc<Gate>);

impl Hold {
    /// Waits until a thread is held; false if none arrived within `deadline`.
    pub fn wait_reached(&self, deadline: Duration) -> bool {
        let end = Instant::now() + deadline;
        let mut state = self.0.state.lock().expect("no thread panics while holding this lock");
        while !state.reached {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.0.changed.wait_timeout(state, left).expect("no thread panics while holding this lock").0;
        }
        true
    }

    /// Releases the held thread, and those that would be held later.
    pub fn release(&self) {
        self.0.state.lock().expect("no thread panics while holding this lock").open = true;
        self.0.changed.notify_all();
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.release();
    }
}
