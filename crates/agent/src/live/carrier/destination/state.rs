//! State shared by the destination's tasks.

use std::{
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::{Duration, Instant},
};

use ferry_drivers::hypervisor::rpc::GatePolicy;
use ferry_wire::{control::ControlSender, nbd::ImageContent, traffic::Traffic};
use tokio::sync::watch;

use crate::{
    files::incoming::IncomingImage,
    live::carrier::{board::Board, meters::Meters},
};

pub(super) struct Shared {
    pub(super) board: Arc<Board>,
    pub(super) policy: GatePolicy,
    pub(super) downtime_limit: Duration,
    pub(super) meters: Meters,
    pub(super) traffic: Arc<Traffic>,
    pub(super) stopped_at: Mutex<Option<Instant>>,
    pub(super) ran_at: Mutex<Option<Instant>>,
    pub(super) resuming: tokio::sync::Mutex<()>,
    /// Incoming disks, in the order in which their channels open.
    pub(super) incoming_disks: Vec<IncomingImage>,
    /// What is known about their files, until it is taken: once.
    pub(super) contents: Mutex<Vec<Option<ImageContent>>>,
    /// Whether incoming data are already being written out.
    pub(super) writes_out: AtomicBool,
    /// Sends messages to the source.
    pub(super) control: Mutex<Option<ControlSender>>,
    /// Whether the channels must end.
    pub(super) cut: watch::Sender<bool>,
}
