//! The destination's side: accepts the source's connections, lets libvirt's calls through the gate, and runs the VM when
//! it has been handed over. Mirror of `source.rs`.
//!
//! ```text
//! Prepared ─first channel▶ Performing ─hand-over told by the source▶ Delivered ─resume▶ Resumed
//!                              └─ the source gave up, or abort ─▶ Failed | Aborted: the VM runs at the source
//! ```
//! libvirt alone would run the VM twice when the reply to its Finish call is lost. So the VM arrives paused, and is
//! resumed here: at once when the source's carrier saw the reply delivered, or when the server, having asked both
//! hosts, says that the VM is here. Otherwise it stays paused.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use ferry_core::{
    api::agent::Stage,
    finding::{Finding, FindingId},
};
use ferry_drivers::hypervisor::{
    MEMORY_SOCKET,
    rpc::{Bound, Gate},
};
use ferry_trust::{Clients, KeyPair, server_config};
use ferry_wire::{
    channel::{Inspect, Options, carry},
    control::{Control, ControlSender, Message},
    hello::Channel,
    meter::Meter,
    session::{Acceptor, SessionKey},
};
use tokio::{net::{TcpStream, UnixStream}, sync::Notify};
use tokio_rustls::TlsStream;
use tracing::{error, info, warn};

use super::{
    carrier::{Board, blocking, channel_ended, past_pivot},
    journal::{Journal, Task},
};
use crate::{AgentError, config::Config, error::chain};

/// How often a resume that failed is tried again, and how many times: libvirt may be restarting.
const RESUME_EVERY: Duration = Duration::from_millis(250);
const RESUMES_MAX: u32 = 120;

pub(super) struct Destination {
    shared: Arc<Shared>,
    address: String,
}

struct Shared {
    board: Arc<Board>,
    bound: Bound,
    downtime_limit: Duration,
    meter: Arc<Meter>,
    stopped_at: Mutex<Option<Instant>>,
    resuming: tokio::sync::Mutex<()>,
    ended: Notify,
}

impl Destination {
    /// Listens for the source's carrier.
    pub(super) async fn start(
        config: &Config,
        journal: &Journal,
        board: Arc<Board>,
    ) -> Result<Self, AgentError> {
        let Task::Destination { request: task, roots } = &journal.task else {
            return Err(AgentError::Carrier("The journal is not one of a destination".to_owned()));
        };
        let key = KeyPair::load_or_create(&config.key_path())?;
        let tls = server_config(&key, Clients::Only(task.source_pin))?;
        let ports = config
            .ports()
            .ok_or_else(|| AgentError::Carrier(format!("data_ports = {:?} is no range", config.data_ports)))?;
        let session = SessionKey { session: task.session, secret: task.secret };
        let acceptor = Acceptor::bind(config.data_address, ports, tls, session).await.map_err(|error| {
            AgentError::Carrier(format!(
                "No port of {} is free at {}: {}",
                config.data_ports,
                config.data_address,
                chain(&error)
            ))
        })?;
        let address = acceptor.address().to_string();
        let shared = Arc::new(Shared {
            bound: Bound {
                vm: task.vm,
                name: task.vm_name.clone(),
                roots: roots.clone(),
                memory_socket: journal.socket_dir.join(MEMORY_SOCKET),
            },
            downtime_limit: Duration::from_millis(u64::from(task.downtime_limit_ms)),
            board,
            meter: Arc::default(),
            stopped_at: Mutex::new(None),
            resuming: tokio::sync::Mutex::new(()),
            ended: Notify::new(),
        });
        tokio::spawn(accept(acceptor, Arc::clone(&shared)));
        Ok(Self { shared, address })
    }

    /// Where the source's carrier shall connect.
    pub(super) fn address(&self) -> String {
        self.address.clone()
    }

    /// Runs the VM: the server asked both hosts, and the VM is here.
    pub(super) async fn resume_by_verdict(&self) -> Result<(), Box<Finding>> {
        let board = &self.shared.board;
        resume(&self.shared, None).await;
        match board.known().error {
            Some(error) if board.known().stage != Stage::Resumed => Err(Box::new(Finding::blocks(
                FindingId::HostSetup,
                board.vm,
                format!("VM {} is here, paused, and could not be resumed: {error}", board.vm),
                format!("Resume it on this host: `virsh resume {}`; it is the only copy", board.vm),
            ))),
            Some(_) | None => Ok(()),
        }
    }

    /// Ends it before the point of no return. The agent destroys the copy afterwards.
    pub(super) fn abort(&self) -> Result<(), Box<Finding>> {
        let board = &self.shared.board;
        let known = board.known();
        if known.state.finish_delivered || known.state.resumed {
            return Err(past_pivot(board.vm));
        }
        // Channels end, and with them whatever libvirt still does for this migration.
        self.shared.ended.notify_waiters();
        board.tell(|known| known.stage = Stage::Aborted);
        Ok(())
    }
}

async fn accept(mut acceptor: Acceptor, shared: Arc<Shared>) {
    while let Some((channel, peer)) = acceptor.accept().await {
        let shared = Arc::clone(&shared);
        match channel {
            Channel::Control => {
                tokio::spawn(hear(Control::start(peer), shared));
            }
            Channel::Rpc => {
                shared.board.tell(|known| {
                    if known.stage == Stage::Prepared {
                        known.stage = Stage::Performing;
                    }
                });
                tokio::spawn(carry_rpc(peer, shared));
            }
            Channel::Memory(index) => {
                tokio::spawn(carry_memory(index, peer, shared));
            }
            Channel::Disk(_) => warn!("a disk channel came, and none is expected"),
        }
    }
}

async fn hear(mut control: Control, shared: Arc<Shared>) {
    let sender = control.sender();
    while let Some(message) = control.receive().await {
        match message {
            Message::Stopped => {
                *shared.stopped_at.lock().expect("nobody panics while holding it") = Some(Instant::now());
            }
            Message::HandedOver => {
                tokio::spawn(handed_over(Arc::clone(&shared), sender.clone()));
            }
            Message::GaveUp { reason } => {
                shared.board.tell(|known| {
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
        // Not a failure by itself: the hand-over may have happened. Who has the VM is asked of both hosts.
        warn!("the control connection from the source is gone; the VM stays paused here until it is known who has it");
        board.tell(|known| known.error = Some("The connection to the source's carrier is gone".to_owned()));
    }
}

async fn handed_over(shared: Arc<Shared>, control: ControlSender) {
    fail::fail_point!("before-resume");
    resume(&shared, Some(&control)).await;
}

/// Runs the VM. What is written down first is that it may be run: from then on it is never destroyed here.
async fn resume(shared: &Shared, control: Option<&ControlSender>) {
    let board = &shared.board;
    let _one_at_a_time = shared.resuming.lock().await;
    if board.known().state.resumed {
        return;
    }
    // In memory at once, so that no abort comes between; on disk beside the resume, which it must not delay: should
    // this process die between the two, libvirt says that the VM runs.
    board.tell(|known| {
        known.state.finish_delivered = true;
        known.stage = Stage::Delivered;
    });
    let vm = board.vm;
    let mut outcome = Ok(());
    for attempt in 0..RESUMES_MAX {
        outcome = blocking(&board.hypervisor, move |hypervisor| hypervisor.resume(vm)).await;
        match &outcome {
            Ok(()) => break,
            Err(error) => {
                if attempt == 0 {
                    warn!(%vm, error = %chain(error), "the VM could not be resumed; it is tried again");
                }
                tokio::time::sleep(RESUME_EVERY).await;
            }
        }
    }
    if let Err(error) = outcome {
        board.tell(|known| known.error = Some(chain(&error)));
        return;
    }
    let stopped = *shared.stopped_at.lock().expect("nobody panics while holding it");
    // The message took half a round trip; the guest stood still meanwhile.
    let travel = control.map_or(Duration::ZERO, |control| control.round_trip() / 2);
    let downtime = stopped.map(|at| at.elapsed() + travel);
    let stats = blocking(&board.hypervisor, move |hypervisor| hypervisor.completed_stats(vm)).await.ok().flatten();
    let wire = shared.meter.wire();
    let written = board.write_down(|state| {
        state.resumed = true;
        state.finish_delivered = true;
        state.figures.downtime_ms = downtime.map_or(0, |downtime| downtime.as_millis() as u64);
        state.figures.qemu_downtime_ms = stats.map_or(0, |stats| stats.downtime_ms);
        state.figures.wire = ferry_core::units::ByteCount(wire);
    });
    if let Err(error) = written {
        error!(error = %chain(&error), "the resume could not be written down");
    }
    info!(%vm, downtime_ms = downtime.map(|downtime| downtime.as_millis() as u64), "the VM runs here");
    board.tell(|known| {
        known.stage = Stage::Resumed;
        known.error = None;
    });
    if let Some(control) = control {
        control.send(Message::Running).await;
    }
}

/// libvirt's calls, through the gate, to the local libvirtd.
async fn carry_rpc(peer: TlsStream<TcpStream>, shared: Arc<Shared>) {
    let socket = shared.board.hypervisor.rpc_socket();
    let Some(local) = connect(socket).await else { return };
    let options = Options {
        inbound: Some(Box::new(GateKeeper(Gate::new(shared.bound.clone())))),
        ..Options::new(shared.downtime_limit, Arc::default())
    };
    let (reader, writer) = local.into_split();
    tokio::select! {
        outcome = carry(peer, reader, writer, options) => channel_ended("rpc", outcome),
        () = shared.ended.notified() => info!("the management channel ends with the migration"),
    }
}

/// QEMU takes any connection for its main channel: exactly one is made for each that the source's side opened.
async fn carry_memory(index: u16, peer: TlsStream<TcpStream>, shared: Arc<Shared>) {
    let Some(local) = connect(shared.bound.memory_socket.clone()).await else { return };
    info!(index, "memory begins to arrive");
    let (reader, writer) = local.into_split();
    let options = Options::new(shared.downtime_limit, Arc::clone(&shared.meter));
    tokio::select! {
        outcome = carry(peer, reader, writer, options) => channel_ended("memory", outcome),
        () = shared.ended.notified() => info!("the memory channel ends with the migration"),
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

struct GateKeeper(Gate);

impl Inspect for GateKeeper {
    fn pass(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        self.0.pass(bytes, out).map_err(|refusal| chain(&refusal))
    }
}
