//! What the tasks of the destination share.

use std::{
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::{Duration, Instant},
};

use ferry_drivers::hypervisor::rpc::GatePolicy;
use ferry_wire::{control::ControlSender, meter::Meter, nbd::Held, traffic::Traffic};
use tokio::sync::watch;

use crate::{files::new_file::IncomingDisk, live::carrier::board::Board};

pub(super) struct Shared {
    pub(super) board: Arc<Board>,
    pub(super) policy: GatePolicy,
    pub(super) downtime_limit: Duration,
    pub(super) meter: Arc<Meter>,
    pub(super) traffic: Arc<Traffic>,
    pub(super) stopped_at: Mutex<Option<Instant>>,
    pub(super) ran_at: Mutex<Option<Instant>>,
    pub(super) resuming: tokio::sync::Mutex<()>,
    /// Disks that come along, in the order in which their channels come.
    pub(super) incoming_disks: Vec<IncomingDisk>,
    /// What is known of their files, until it is used: once.
    pub(super) held: Mutex<Vec<Option<Held>>>,
    /// Whether what comes is written out already.
    pub(super) writes_out: AtomicBool,
    /// To the source.
    pub(super) control: Mutex<Option<ControlSender>>,
    /// Whether the channels are to end.
    pub(super) cut: watch::Sender<bool>,
}
