//! The files and the definition, from the source's agent to the destination's. No process of its own: nothing runs that
//! an agent's restart could harm, and the next attempt sends only what differs.

use std::{
    fs::File,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ferry_core::{
    api::agent::{OfflineStage, ReceiveOffline, SendOffline},
    storage::DiskStage,
    units::ByteCount,
};
use ferry_drivers::hypervisor::Hypervisor;
use ferry_trust::{Clients, KeyPair, client_config, server_config};
use ferry_wire::{
    WireError,
    file::{FileMeter, receive, send},
    hello::Channel,
    session::{Acceptor, Dialer, SessionKey},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tracing::{info, warn};

use super::{Move, journal::Task, off_thread};
use crate::{AgentError, config::Config, error::chain};

/// Longest definition.
const DEFINITION_BYTES_MAX: u64 = 1 << 20;
/// How long the destination may take to write a definition down.
const DEFINITION_WITHIN: Duration = Duration::from_secs(60);
/// How often it is shown how far a file is.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Listens for the source's agent.
pub(super) async fn listen(config: &Config, request: &ReceiveOffline) -> Result<Acceptor, AgentError> {
    let key = KeyPair::load_or_create(&config.key_path())?;
    let tls = server_config(&key, Clients::Only(request.source_pin))?;
    let ports = config
        .ports()
        .ok_or_else(|| AgentError::Carrier(format!("data_ports = {:?} is no range", config.data_ports)))?;
    let session = SessionKey { session: request.session, secret: request.secret };
    Acceptor::bind(config.data_address, ports, tls, session).await.map_err(|error| {
        AgentError::Carrier(format!(
            "No port of {} is free at {}: {}",
            config.data_ports,
            config.data_address,
            chain(&error)
        ))
    })
}

/// Takes what the source sends until this is ended.
pub(super) async fn take(mut acceptor: Acceptor, page: Arc<Move>) {
    while let Some((channel, mut peer)) = acceptor.accept().await {
        let outcome = match channel {
            Channel::Disk(index) => take_file(usize::from(index), &mut peer, &page).await,
            Channel::Rpc => take_definition(&mut peer, &page).await,
            other => Err(AgentError::Carrier(format!("A channel {other:?} came, and none is expected"))),
        };
        if let Err(error) = outcome {
            // The source hears of it, or notices, and says so to the server.
            warn!(error = %chain(&error), "what the source sent could not be taken");
        }
    }
}

async fn take_file(
    index: usize,
    peer: &mut tokio_rustls::TlsStream<tokio::net::TcpStream>,
    page: &Arc<Move>,
) -> Result<(), AgentError> {
    let Task::Destination { request, arrivals, .. } = page.journal().task else { return Ok(()) };
    let (Some(wanted), Some(arrival)) = (request.files.get(index), arrivals.get(index)) else {
        return Err(AgentError::Carrier(format!("File {index} came, and it is not expected")));
    };
    page.write(|journal| journal.stage = OfflineStage::Copying)?;
    let file = open(arrival.path.clone(), true).await?;
    let meter = Arc::<FileMeter>::default();
    let fault = |error: WireError| AgentError::Carrier(format!("File {}: {}", arrival.path.display(), chain(&error)));
    receive(peer, file, wanted.length.0, meter).await.map_err(fault)
}

async fn take_definition(
    peer: &mut tokio_rustls::TlsStream<tokio::net::TcpStream>,
    page: &Arc<Move>,
) -> Result<(), AgentError> {
    let taken = async {
        let mut text = String::new();
        (&mut *peer).take(DEFINITION_BYTES_MAX).read_to_string(&mut text).await?;
        let outcome = page.write(|journal| {
            if let Task::Destination { definition, .. } = &mut journal.task {
                *definition = Some(text);
            }
            journal.stage = OfflineStage::Copied;
        });
        outcome.map_err(std::io::Error::other)?;
        peer.write_all(&[0]).await?;
        peer.shutdown().await
    };
    let fault = |source| AgentError::File { path: PathBuf::from("the definition"), source };
    match tokio::time::timeout(DEFINITION_WITHIN, taken).await {
        Ok(outcome) => outcome.map_err(fault),
        Err(_) => Err(AgentError::Carrier("The definition did not come in time".to_owned())),
    }
}

/// Sends every file that differs, then the definition. Ok promises that the destination has all of it on disk.
pub(super) async fn give(config: &Config, hypervisor: Arc<dyn Hypervisor>, page: Arc<Move>) -> Result<(), AgentError> {
    let Task::Source { request, paths, translate, .. } = page.journal().task else { return Ok(()) };
    let dialer = dialer(config, &request)?;
    for (index, path) in (0_u16..).zip(&paths) {
        give_file(&dialer, index, path, &page).await?;
    }
    let vm = request.vm;
    let definition = off_thread(move || Ok(hypervisor.definition(vm, &translate)?)).await?;
    let told = async {
        let mut peer = dialer.open(Channel::Rpc).await?;
        peer.write_all(definition.as_bytes()).await.map_err(WireError::Peer)?;
        peer.shutdown().await.map_err(WireError::Peer)?;
        peer.read_u8().await.map_err(WireError::Peer)
    };
    let fault = |why: String| AgentError::Carrier(format!("The destination did not take the definition: {why}"));
    match tokio::time::timeout(DEFINITION_WITHIN, told).await {
        Ok(Ok(0)) => Ok(()),
        Ok(Ok(_)) => Err(fault("it said something else".to_owned())),
        Ok(Err(error)) => Err(fault(chain(&error))),
        Err(_) => Err(fault("it did not answer in time".to_owned())),
    }
}

fn dialer(config: &Config, request: &SendOffline) -> Result<Dialer, AgentError> {
    let key = KeyPair::load_or_create(&config.key_path())?;
    let said = &request.destination.address;
    let address =
        said.parse().map_err(|_| AgentError::Carrier(format!("The destination says that it listens at {said:?}")))?;
    let tls = client_config(Some(&key), request.destination_pin)?;
    Ok(Dialer::new(address, tls, SessionKey { session: request.session, secret: request.secret }))
}

async fn give_file(dialer: &Dialer, index: u16, path: &Path, page: &Arc<Move>) -> Result<(), AgentError> {
    let fault = |error: WireError| AgentError::Carrier(format!("File {}: {}", path.display(), chain(&error)));
    let file = open(path.to_owned(), false).await?;
    let mut peer = dialer.open(Channel::Disk(index)).await.map_err(fault)?;
    let meter = Arc::<FileMeter>::default();
    let show = |stage: DiskStage| {
        page.tell(|known| {
            known.wires[usize::from(index)] = meter.sent();
            let file = &mut known.files[usize::from(index)];
            file.stage = stage;
            file.copied = file.copied.max(ByteCount(meter.looked_at()));
        });
    };
    let sending = send(&mut peer, file, Arc::clone(&meter));
    tokio::pin!(sending);
    let outcome = loop {
        tokio::select! {
            outcome = &mut sending => break outcome,
            () = tokio::time::sleep(LOOK_EVERY) => show(DiskStage::Copying),
        }
    };
    outcome.map_err(fault)?;
    show(DiskStage::Ready);
    info!(file = %path.display(), sent = meter.sent(), "a file is at the destination");
    Ok(())
}

/// Opens a file, and nothing that a link leads to.
async fn open(path: PathBuf, write: bool) -> Result<File, AgentError> {
    off_thread(move || {
        let mut options = File::options();
        options.read(true).write(write).custom_flags(nix::libc::O_NOFOLLOW);
        options.open(&path).map_err(|source| AgentError::File { path, source })
    })
    .await
}
