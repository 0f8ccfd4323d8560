//! The channels of the destination: what the source opened is opened here, to libvirtd or to QEMU.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use ferry_core::api::agent::Stage;
use ferry_drivers::hypervisor::rpc::{Gate, Refusal, Tap};
use ferry_wire::{
    WireError,
    channel::{Inspect, Options, carry},
    nbd::{self, NbdMeter},
    session::{Connection, widen, widen_local},
    window::WINDOW_BYTES_MIN,
};
use tokio::{net::UnixStream, sync::mpsc};
use tracing::{error, info, warn};

use super::{Shared, exports::Files, takeover::relay};
use crate::{error::chain, live::carrier::channel::channel_ended, lock::lock};

/// How often what the guest writes meanwhile is written out.
const WRITE_OUT_EVERY: Duration = Duration::from_secs(1);

/// Refused calls that wait to be answered. libvirt asks one thing after the other.
const REFUSALS_MAX: usize = 4;

/// libvirt's replies that wait for the source: a few of some hundred bytes.
const REPLIES_BYTES: usize = 64 << 10;

/// libvirt's calls, through the gate, to the local libvirtd, and its replies, past the take-over, to the source.
pub(super) async fn carry_rpc(peer: Connection, shared: Arc<Shared>) {
    let socket = shared.board.hypervisor.rpc_socket();
    let Some(local) = connect(socket).await else { return };
    let tap = Arc::new(Mutex::new(Tap::default()));
    let (refuse, refusals) = mpsc::channel(REFUSALS_MAX);
    let gate = GateKeeper { gate: Gate::new(shared.bound.clone()), tap: Arc::clone(&tap), refuse };
    let options = Options {
        inbound: Some(Box::new(gate)),
        window_max: WINDOW_BYTES_MIN,
        ..Options::new(shared.downtime_limit, Arc::default())
    };
    let (reader, writer) = local.into_split();
    let (to_source, replies) = tokio::io::duplex(REPLIES_BYTES);
    let relay = async {
        match relay(reader, refusals, to_source, tap, &shared).await {
            // The other direction may not have ended.
            Ok(()) => std::future::pending().await,
            Err(error) => Err(WireError::Local(error)),
        }
    };
    let carried = async {
        tokio::select! {
            outcome = carry(peer, replies, writer, options) => outcome,
            outcome = relay => outcome,
        }
    };
    until_cut("rpc", &shared, carried).await;
}

/// Calls of the source's libvirtd, on their way in.
struct GateKeeper {
    gate: Gate,
    tap: Arc<Mutex<Tap>>,
    /// Replies to what is refused, on their way to the source.
    refuse: mpsc::Sender<Vec<u8>>,
}

impl GateKeeper {
    /// Has the source's libvirtd told in its own words, and passes what it says to take its leave.
    ///
    /// # Errors
    /// The stream cannot be followed, or the source goes on with what is refused.
    fn tell(&mut self, refusal: Refusal, out: &mut Vec<u8>) -> Result<(), String> {
        let mut next = Some(refusal);
        while let Some(refusal) = next {
            let reason = chain(&refusal);
            error!(reason, "a call of the source's libvirtd is refused");
            if refusal.reply.is_empty() || self.refuse.try_send(refusal.reply).is_err() {
                return Err(reason);
            }
            next = self.gate.pass(&[], out).err();
        }
        Ok(())
    }
}

impl Inspect for GateKeeper {
    fn pass(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        let before = out.len();
        if let Err(refusal) = self.gate.pass(bytes, out) {
            self.tell(refusal, out)?;
        }
        // Before libvirt has them: its reply cannot come first.
        let mut tap = lock(&self.tap);
        tap.calls(&out[before..]).map_err(|error| error.to_string())
    }
}

/// QEMU takes any connection for its main channel: exactly one is made for each that the source's side opened.
pub(super) async fn carry_memory(index: u16, peer: Connection, window_max: u64, shared: Arc<Shared>) {
    let Some(local) = connect(shared.board.hypervisor.reach(&shared.bound.memory_socket)).await else { return };
    info!(index, "memory begins to arrive");
    widen_local(&local);
    let (reader, writer) = local.into_split();
    let options = bulk_options(&peer, window_max, &shared);
    until_cut("memory", &shared, carry(peer, reader, writer, options)).await;
}

/// QEMU's server for disks takes one connection for each.
pub(super) async fn carry_disk(index: u16, peer: Connection, window_max: u64, shared: Arc<Shared>) {
    let Some(local) = connect(shared.board.hypervisor.reach(&shared.bound.disk_socket)).await else { return };
    info!(index, "a disk begins to arrive");
    widen_local(&local);
    if !shared.writes_out.swap(true, Ordering::SeqCst) {
        shared.board.spawn(write_out(Arc::clone(&shared)));
    }
    let (reader, writer) = local.into_split();
    let mut options = bulk_options(&peer, window_max, &shared);
    let spared: Arc<NbdMeter> = Arc::default();
    let files = Files::new(Arc::clone(&shared));
    let (requests, replies) = nbd::destination(files, Arc::clone(&spared));
    options.inbound = Some(Box::new(requests));
    options.outbound = Some(Box::new(replies));
    until_cut("disk", &shared, carry(peer, reader, writer, options)).await;
    info!(
        index,
        zero_bytes = spared.elided_bytes(),
        held_bytes = spared.referenced_bytes(),
        mismatches = spared.mismatches(),
        "what was not written anew of a disk"
    );
}

/// What comes for a disk waits in this host's page cache. It is written out as it comes, from the first byte: QEMU flushes
/// a disk before it says that it is in sync, and again while the guest stands still, and that has little to do then. Ends
/// before the guest stands still.
async fn write_out(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(WRITE_OUT_EVERY).await;
        let stopped = lock(&shared.stopped_at).is_some();
        if stopped || shared.board.known().stage != Stage::Performing {
            return;
        }
        let paths: Vec<PathBuf> =
            shared.incoming_disks.iter().map(|incoming_disk| incoming_disk.path.clone()).collect();
        // One after the other and one at a time. What goes wrong is found by QEMU, too, which does something about it.
        let written = tokio::task::spawn_blocking(move || {
            paths.iter().for_each(|path| drop(std::fs::File::open(path).and_then(|file| file.sync_data())));
        });
        let _ = written.await;
    }
}

/// For a channel of memory or of a disk.
fn bulk_options(peer: &Connection, window_max: u64, shared: &Shared) -> Options {
    widen(peer);
    let traffic = Arc::clone(&shared.traffic);
    Options { traffic, window_max, ..Options::new(shared.downtime_limit, Arc::clone(&shared.meter)) }
}

/// Carries a channel until it ends, or the channels are to end.
async fn until_cut(name: &str, shared: &Shared, carried: impl Future<Output = Result<(), WireError>>) {
    let mut cut = shared.cut.subscribe();
    tokio::select! {
        outcome = carried => drop(channel_ended(name, outcome)),
        // The sender lives as long as what it is a part of.
        _ = cut.wait_for(|cut| *cut) => warn!(channel = name, "the channel was ended with the move"),
    }
}

async fn connect(socket: PathBuf) -> Option<UnixStream> {
    match UnixStream::connect(&socket).await {
        Ok(stream) => Some(stream),
        Err(error) => {
            error!(socket = %socket.display(), %error, "the local socket could not be reached");
            None
        }
    }
}
