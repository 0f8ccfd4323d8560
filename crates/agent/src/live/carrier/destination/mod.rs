//! The destination's side: accepts the source's connections, filters libvirt's calls through the gate, and runs the VM
//! after the hand-over. Mirror of `source/`.
//!
//! ```text
//! Prepared ─first channel▶ Performing ─hand-over reported by source▶ Delivered ─resume▶ Resumed
//!                              └─ the source gave up, or abort ─▶ Failed | Aborted: the VM runs at the source
//! ```
//! `handover.rs` runs the VM; `takeover.rs` refuses one whose disks cannot be opened here; `channels.rs` carries the
//! bytes; `exports.rs` finds the disk behind a channel; `partial.rs` reports the content of a partial copy to the source.

mod channels;
mod exports;
mod handover;
mod partial;
mod state;
mod takeover;

use std::{
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::{Duration, Instant},
};

use ferry_core::{api::agent::Stage, carried::Carried, finding::Finding, vm::NVRAM};
use ferry_drivers::hypervisor::{
    DISK_SOCKET, MEMORY_SOCKET,
    rpc::{GatePolicy, definition::DefinitionPolicy},
};
use ferry_wire::{
    control::{Control, Message},
    hello::Channel,
    session::Acceptor,
};
use tokio::sync::watch;
use tracing::warn;

use self::{
    channels::{carry_disk, carry_memory, carry_rpc},
    exports::known_at_first,
    handover::{RESUME_ANSWER_WITHIN, handed_over, not_resumed, resume},
    partial::report_partial,
    state::Shared,
};
use super::{board::Board, meters::Meters};
use crate::{
    AgentError,
    config::Config,
    live::journal::{Journal, Task},
    lock::lock,
    peers,
    refusal::past_pivot,
};

pub(super) struct Destination {
    shared: Arc<Shared>,
    address: String,
}

impl Destination {
    /// Listens for the source's carrier.
    pub(super) async fn start(config: &Config, journal: &Journal, board: Arc<Board>) -> Result<Self, AgentError> {
        let Task::Destination { request: task, roots, incoming_disks } = &journal.task else {
            return Err(AgentError::failed("The journal is not one of a destination"));
        };
        let acceptor = peers::listen(config, task.source_pin, task.session, task.secret, task.route).await?;
        let address = acceptor.address().to_string();
        let shared = Arc::new(Shared {
            policy: GatePolicy {
                definition: DefinitionPolicy { vm: task.vm, name: task.vm_name.clone(), roots: roots.clone() },
                memory_socket: journal.socket_dir.join(MEMORY_SOCKET),
                disk_socket: journal.socket_dir.join(DISK_SOCKET),
                // UEFI variables arrive with the memory, not as a disk.
                disks: incoming_disks
                    .iter()
                    .map(|incoming_disk| incoming_disk.device.clone())
                    .filter(|name| name != NVRAM)
                    .collect(),
            },
            downtime_limit: Duration::from_millis(u64::from(task.downtime_limit_ms)),
            board,
            meters: Meters::default(),
            traffic: Arc::default(),
            stopped_at: Mutex::new(None),
            ran_at: Mutex::new(None),
            resuming: tokio::sync::Mutex::new(()),
            contents: Mutex::new(incoming_disks.iter().map(known_at_first).collect()),
            incoming_disks: incoming_disks.clone(),
            writes_out: AtomicBool::default(),
            control: Mutex::default(),
            cut: watch::Sender::new(false),
        });
        shared.board.spawn(accept(acceptor, Arc::clone(&shared)));
        Ok(Self { shared, address })
    }

    /// The address to which the source's carrier must connect.
    pub(super) fn address(&self) -> String {
        self.address.clone()
    }

    pub(super) fn carried(&self) -> Carried {
        self.shared.meters.carried()
    }

    /// Runs the VM: the server asked both hosts, and the VM is here. Retried until it runs; an error only means that it
    /// does not run yet.
    pub(super) async fn resume_by_verdict(&self) -> Result<(), Box<Finding>> {
        let (board, name) = (&self.shared.board, &self.shared.policy.definition.name);
        let shared = Arc::clone(&self.shared);
        board.spawn(async move { resume(&shared, None).await });
        let over = board.wait_for(|known| matches!(known.stage, Stage::Resumed | Stage::Aborted));
        let _ = tokio::time::timeout(RESUME_ANSWER_WITHIN, over).await;
        let known = board.known();
        if known.stage == Stage::Resumed {
            return Ok(());
        }
        Err(not_resumed(board.vm, name, known.stage, known.error))
    }

    /// Ends the move before the point of no return. The agent destroys the copy afterwards.
    pub(super) fn abort(&self) -> Result<(), Box<Finding>> {
        let board = &self.shared.board;
        // Check and change are atomic: a resume comes before this or not at all.
        let mut late = false;
        board.change(|known| {
            late = known.state.finish_delivered || known.state.resumed;
            let ends = !late && known.stage != Stage::Aborted;
            if ends {
                known.stage = Stage::Aborted;
            }
            ends
        });
        if late {
            return Err(past_pivot(board.vm));
        }
        // Channels end, and with them any work of libvirt for this migration.
        board.end_tasks();
        Ok(())
    }
}

async fn accept(mut acceptor: Acceptor, shared: Arc<Shared>) {
    while let Some((channel, peer)) = acceptor.accept().await {
        let shared = Arc::clone(&shared);
        let board = Arc::clone(&shared.board);
        match channel {
            Channel::Control => {
                board.spawn(hear(Control::start(peer), shared));
            }
            Channel::Rpc => {
                board.change(|known| {
                    let begins = known.stage == Stage::Prepared;
                    if begins {
                        known.stage = Stage::Performing;
                    }
                    begins
                });
                board.spawn(carry_rpc(peer, shared));
            }
            Channel::Memory(index) => {
                board.spawn(carry_memory(index, peer, shared));
            }
            Channel::Disk(_) if shared.policy.disks.is_empty() => warn!("A disk channel came, and none is expected"),
            Channel::Disk(index) => {
                board.spawn(carry_disk(index, peer, shared));
            }
            Channel::Partial(index) => {
                board.spawn(report_partial(index, peer, shared));
            }
            Channel::Definition | Channel::File(_) => {
                warn!("A channel of a VM that is shut off came, and none is expected")
            }
        }
    }
}

async fn hear(mut control: Control, shared: Arc<Shared>) {
    let sender = control.sender();
    *lock(&shared.control) = Some(sender.clone());
    while let Some(message) = control.receive().await {
        match message {
            Message::Stopped => {
                *lock(&shared.stopped_at) = Some(Instant::now());
            }
            Message::HandedOver => {
                shared.board.spawn(handed_over(Arc::clone(&shared), sender.clone()));
            }
            Message::GaveUp { reason } => {
                shared.board.update(|known| {
                    if known.stage == Stage::Performing || known.stage == Stage::Prepared {
                        known.stage = Stage::Failed;
                        known.error = Some(format!("The source gave up: {reason}"));
                    }
                });
            }
            Message::Running | Message::Ping { .. } | Message::Pong { .. } | Message::Unknown => {}
        }
    }
    let board = &shared.board;
    if matches!(board.known().stage, Stage::Prepared | Stage::Performing) {
        // Not a failure by itself: the hand-over may have happened, and both hosts are asked who has the VM. When its
        // connection ends, libvirt destroys an incomplete copy and frees its memory; a source without power would never
        // close it.
        warn!(
            "The control connection from the source is gone; a complete copy stays paused here until it is known who has it"
        );
        board.update(|known| known.error = Some("The connection to the source's carrier is gone".to_owned()));
        shared.cut.send_replace(true);
    }
}
