//! The channels of the destination: for each channel that the source opened, a local connection to libvirtd or QEMU.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use ferry_core::{api::agent::Stage, error::chain};
use ferry_drivers::hypervisor::rpc::{
    Gate, Refusal, Tap,
    message::{LengthError, Splitter},
};
use ferry_wire::{
    WireError,
    channel::Options,
    filter::{Direction, FilterError, Outputs, StreamFilter},
    meter::Meter,
    nbd,
    session::Connection,
    transport::local,
    window::WINDOW_BYTES_MIN,
};
use tokio::{net::UnixStream, sync::Notify};
use tracing::{error, info, warn};

use super::{exports::Files, state::Shared, takeover::relay};
use crate::{live::carrier::channel::channel_ended, lock::lock};

/// Interval at which incoming disk data are written out.
const WRITE_OUT_EVERY: Duration = Duration::from_secs(1);

/// Buffer for libvirt's replies to the source: a few of some hundred bytes each.
const REPLIES_BYTES: usize = 64 << 10;

/// Passes libvirt's calls through the gate to the local libvirtd, and its replies through the take-over to the source.
pub(super) async fn carry_rpc(peer: Connection, shared: Arc<Shared>) {
    let socket = shared.board.hypervisor.rpc_socket();
    let Some(local) = connect(socket).await else { return };
    let tap = Arc::new(Mutex::new(Tap::default()));
    let refused = Arc::new(Notify::new());
    let filter = RpcFilter {
        gate: Gate::new(shared.policy.clone()),
        tap: Arc::clone(&tap),
        replies: Splitter::default(),
        refused: Arc::clone(&refused),
    };
    let options = Options {
        filter: Some(Box::new(filter)),
        window_max: WINDOW_BYTES_MIN,
        ..Options::new(shared.downtime_limit, Arc::default())
    };
    let (reader, writer) = local.into_split();
    let (to_source, replies) = tokio::io::duplex(REPLIES_BYTES);
    let relay = async {
        match relay(reader, &refused, to_source, tap, &shared).await {
            // The other direction may still be running.
            Ok(()) => std::future::pending().await,
            Err(error) => Err(WireError::Local(error)),
        }
    };
    let carried = async {
        tokio::select! {
            outcome = peer.carry(replies, writer, options) => outcome,
            outcome = relay => outcome,
        }
    };
    until_cut("rpc", &shared, carried).await;
}

/// Passes calls of the source's libvirtd through the gate; refused calls get an error in libvirt's own format.
struct RpcFilter {
    gate: Gate,
    tap: Arc<Mutex<Tap>>,
    /// Splits libvirt's replies into messages, so that an answer of the gate is never inserted inside one.
    replies: Splitter,
    refused: Arc<Notify>,
}

impl RpcFilter {
    /// Answers a refused call, and passes the calls with which the source's libvirtd ends its connection.
    ///
    /// # Errors
    /// If the stream cannot be followed.
    fn answer(&mut self, refusal: Refusal, out: &mut Outputs) -> Result<(), FilterError> {
        let mut next = Some(refusal);
        while let Some(refusal) = next {
            error!(reason = chain(&refusal), "A call of the source's libvirtd is refused");
            if refusal.reply.is_empty() {
                return Err(refusal.into());
            }
            out.back.extend_from_slice(&refusal.reply);
            self.refused.notify_one();
            next = self.gate.pass(&[], &mut out.forward).err();
        }
        Ok(())
    }

    fn calls(&mut self, bytes: &[u8], out: &mut Outputs) -> Result<(), FilterError> {
        let before = out.forward.len();
        if let Err(refusal) = self.gate.pass(bytes, &mut out.forward) {
            self.answer(refusal, out)?;
        }
        // Recorded before libvirt receives the calls: its reply cannot come first.
        Ok(lock(&self.tap).calls(&out.forward[before..])?)
    }
}

impl StreamFilter for RpcFilter {
    fn filter(&mut self, direction: Direction, bytes: &[u8], out: &mut Outputs) -> Result<(), FilterError> {
        match direction {
            Direction::Inbound => self.calls(bytes, out),
            Direction::Outbound => Ok(self.replies.push::<LengthError>(bytes, |message| {
                out.forward.extend_from_slice(message.bytes);
                Ok(())
            })?),
        }
    }
}

/// QEMU takes any connection for its main channel, so exactly one is made for each that the source's side opened.
pub(super) async fn carry_memory(index: u16, peer: Connection, shared: Arc<Shared>) {
    let Some(local) = connect(shared.board.hypervisor.reach(&shared.policy.memory_socket)).await else { return };
    info!(index, "Memory begins to arrive");
    local::widen(&local);
    let (reader, writer) = local.into_split();
    let options = bulk_options(&peer, &shared, &shared.meters.memory);
    until_cut("memory", &shared, peer.carry(reader, writer, options)).await;
}

/// QEMU's disk server accepts one connection for each channel.
pub(super) async fn carry_disk(index: u16, peer: Connection, shared: Arc<Shared>) {
    let Some(local) = connect(shared.board.hypervisor.reach(&shared.policy.disk_socket)).await else { return };
    info!(index, "A disk begins to arrive");
    local::widen(&local);
    if !shared.writes_out.swap(true, Ordering::SeqCst) {
        shared.board.spawn(write_out(Arc::clone(&shared)));
    }
    let (reader, writer) = local.into_split();
    let mut options = bulk_options(&peer, &shared, &shared.meters.disks);
    let spared = shared.meters.open_disk(index);
    let files = Files::new(Arc::clone(&shared));
    options.filter = Some(Box::new(nbd::destination(files, Arc::clone(&spared))));
    until_cut("disk", &shared, peer.carry(reader, writer, options)).await;
    shared.meters.end_disk(index);
    info!(
        index,
        zero_bytes = spared.elided_bytes(),
        held_bytes = spared.referenced_bytes(),
        mismatches = spared.mismatches(),
        "What was not written anew of a disk"
    );
}

/// Incoming disk data collect in this host's page cache. They are written out as they arrive, from the first byte: QEMU
/// flushes a disk before it reports it in sync, and again while the guest is paused, and then finds little to flush.
/// Ends before the guest is paused.
async fn write_out(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(WRITE_OUT_EVERY).await;
        let stopped = lock(&shared.stopped_at).is_some();
        if stopped || shared.board.known().stage != Stage::Performing {
            return;
        }
        let paths: Vec<PathBuf> =
            shared.incoming_disks.iter().map(|incoming_disk| incoming_disk.path.clone()).collect();
        // One file at a time. QEMU notices write errors too, and handles them.
        let written = tokio::task::spawn_blocking(move || {
            paths.iter().for_each(|path| drop(std::fs::File::open(path).and_then(|file| file.sync_data())));
        });
        let _ = written.await;
    }
}

/// Options for a memory or disk channel.
fn bulk_options(peer: &Connection, shared: &Shared, meter: &Arc<Meter>) -> Options {
    peer.widen();
    let traffic = Arc::clone(&shared.traffic);
    Options { traffic, ..Options::new(shared.downtime_limit, Arc::clone(meter)) }
}

/// Carries a channel until it ends, or all channels are cut.
async fn until_cut(name: &str, shared: &Shared, carried: impl Future<Output = Result<(), WireError>>) {
    let mut cut = shared.cut.subscribe();
    tokio::select! {
        outcome = carried => drop(channel_ended(name, outcome, &shared.board, false)),
        // The sender lives as long as the object that contains it.
        _ = cut.wait_for(|cut| *cut) => warn!(channel = name, "The channel was ended with the move"),
    }
}

async fn connect(socket: PathBuf) -> Option<UnixStream> {
    match UnixStream::connect(&socket).await {
        Ok(stream) => Some(stream),
        Err(error) => {
            error!(socket = %socket.display(), error = %chain(&error), "The local socket could not be reached");
            None
        }
    }
}
