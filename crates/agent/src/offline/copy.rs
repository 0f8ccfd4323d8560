//! Copies the files and the definition from the source's agent to the destination's. No separate process: nothing is
//! running that a restart of the agent could harm, and the next attempt sends only what differs.

use std::{
    fs::File,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ferry_core::{api::agent::SendOffline, error::chain, files::DiskStage, units::ByteCount};
use ferry_drivers::hypervisor::Domains;
use ferry_wire::{
    WireError,
    file::{FileMeter, Form, compare, receive, send, send_same},
    hello::Channel,
    session::{Acceptor, Connection, Dialer},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tracing::{info, warn};

use super::{
    OfflineMoves,
    check::differs,
    journal::{DestinationState, IncomingFile, Task},
    parts,
    state::Move,
};
use crate::{
    AgentError,
    blocking::blocking,
    config::Config,
    files::{fingerprint::FileFingerprint, new_file::Lifecycle},
    peers,
};

/// Longest definition.
const DEFINITION_BYTES_MAX: u64 = 1 << 20;
/// Longest reason for refusing a definition.
const REASON_BYTES_MAX: usize = 512;
/// How long the destination may take to record a definition, and to create the files that follow it.
const DEFINITION_WITHIN: Duration = Duration::from_secs(60);
/// Interval of progress updates.
const POLL_EVERY: Duration = Duration::from_millis(200);

/// Receives what the source sends until the task is ended.
pub(super) async fn receive_all(mut acceptor: Acceptor, moves: Arc<OfflineMoves>, record: Arc<Move>) {
    while let Some((channel, mut peer)) = acceptor.accept().await {
        let outcome = match channel {
            // The second name of each is used by a source that does not yet know this host's version.
            Channel::File(index) | Channel::Disk(index) => {
                receive_file(usize::from(index), &mut peer, &moves, &record).await
            }
            Channel::Definition | Channel::Rpc => receive_definition(&mut peer, &moves, &record).await,
            // The source only tried whether it reaches this host ([`try_route`]).
            Channel::Control => Ok(()),
            other @ (Channel::Memory(_) | Channel::Partial(_)) => {
                Err(AgentError::failed(format!("A channel {other:?} came, and none is expected")))
            }
        };
        if let Err(error) = outcome {
            // The source is informed or notices, and reports it to the server.
            warn!(error = %chain(&error), "What the source sent could not be taken");
        }
    }
}

async fn receive_file(
    index: usize,
    peer: &mut Connection,
    moves: &Arc<OfflineMoves>,
    record: &Arc<Move>,
) -> Result<(), AgentError> {
    let Task::Destination { request, incoming_files, .. } = record.journal().task else { return Ok(()) };
    let (Some(requested), Some(incoming_file)) = (request.files.get(index), incoming_files.get(index)) else {
        return Err(AgentError::failed(format!("File {index} came, and it is not expected")));
    };
    record.write(|journal| {
        if let Some(state) = journal.destination().filter(|state| state.is_open()) {
            *state = DestinationState::Copying;
        }
    })?;
    let (form, meter) = (Form::of(peer.agreed().version), Arc::<FileMeter>::default());
    let taken = match incoming_file {
        IncomingFile::Adopted { path, .. } => {
            compare(peer, form, open(path.clone(), false).await?, requested.length.0, meter).await
        }
        IncomingFile::Part { part, .. } => {
            // The previous version sends its definition last.
            let (making, moves) = (Arc::clone(record), Arc::clone(moves));
            blocking(move || parts::make_all(&making, &*moves.hypervisor, &moves.partials)).await?;
            receive(peer, form, open(part.clone(), true).await?, requested.length.0, meter).await
        }
    };
    taken.map_err(|error| {
        AgentError::because(format!("File {} could not be taken", incoming_file.path().display()), error)
    })?;
    record.write(|journal| match journal.incoming(index) {
        Some(IncomingFile::Adopted { compared, .. }) => *compared = true,
        Some(IncomingFile::Part { lifecycle, .. }) => *lifecycle = lifecycle.then(Lifecycle::Complete),
        None => {}
    })
}

async fn receive_definition(
    peer: &mut Connection,
    moves: &Arc<OfflineMoves>,
    record: &Arc<Move>,
) -> Result<(), AgentError> {
    let taken = async {
        let mut text = String::new();
        (&mut *peer).take(DEFINITION_BYTES_MAX).read_to_string(&mut text).await?;
        let (moves, record) = (Arc::clone(moves), Arc::clone(record));
        let outcome = blocking(move || moves.receive_definition(&record, text)).await;
        let mut verdict = vec![u8::from(outcome.is_err())];
        if let Err(error) = &outcome {
            let mut why = chain(error);
            why.truncate(why.floor_char_boundary(REASON_BYTES_MAX));
            verdict.extend_from_slice(why.as_bytes());
        }
        peer.write_all(&verdict).await?;
        peer.shutdown().await?;
        Ok(outcome)
    };
    let fault = |source| AgentError::File { path: PathBuf::from("the definition"), source };
    match tokio::time::timeout(DEFINITION_WITHIN, taken).await {
        Ok(outcome) => outcome.map_err(fault)?,
        Err(_) => Err(AgentError::failed("The definition did not come in time")),
    }
}

fn dialer(config: &Config, request: &SendOffline) -> Result<Dialer, AgentError> {
    let SendOffline { destination, destination_pin, session, secret, route, .. } = request;
    peers::dialer(config, &destination.address, *destination_pin, *session, *secret, *route)
}

/// Connects to the destination in the migration network of the move, if it has one.
///
/// # Errors
/// `host.network` if it does not answer there.
pub(super) async fn try_route(config: &Config, request: &SendOffline) -> Result<(), AgentError> {
    if request.route.is_none() {
        return Ok(());
    }
    let opened = dialer(config, request)?.open(Channel::Control).await;
    opened.map(drop).map_err(|error| peers::not_reached(&request.destination.address, request.route, error))
}

/// Sends every file that differs, and the definition before and after them. Returns the files' fingerprints, if the
/// destination has everything on disk, and no file was written meanwhile.
pub(super) async fn send_all(
    config: &Config,
    hypervisor: Arc<dyn Domains>,
    record: Arc<Move>,
) -> Result<Vec<FileFingerprint>, AgentError> {
    let Task::Source { request, paths, translate, .. } = record.journal().task else { return Ok(Vec::new()) };
    let dialer = dialer(config, &request)?;
    let (vm, files) = (request.vm, paths.clone());
    let places: Vec<_> = request.files.iter().map(|file| file.file.from.clone()).collect();
    let fingerprints_now =
        move || files.iter().zip(&places).map(|(path, place)| FileFingerprint::of(path, place)).collect();
    let fingerprints: Vec<FileFingerprint> = blocking(fingerprints_now.clone()).await?;
    let definition = move || Ok(hypervisor.definition(vm, &translate)?);
    // If the destination would refuse the definition, copying files is pointless.
    send_definition(&dialer, blocking(definition.clone()).await?).await?;
    for (index, path) in (0_u16..).zip(&paths) {
        let adopted = request.destination.adopted.contains(&request.files[usize::from(index)].file.device);
        send_file(&dialer, index, path, adopted, &record).await?;
    }
    let after: Vec<FileFingerprint> = blocking(fingerprints_now).await?;
    if let Some(((path, _), _)) =
        paths.iter().zip(&fingerprints).zip(&after).find(|((_, before), after)| before != after)
    {
        return Err(AgentError::failed(format!(
            "File {} was written to while it was copied, though VM {vm} is shut off: find out what uses it (`fuser -v`), and \
             restart the job when it has ended",
            path.display()
        )));
    }
    // The VM is still shut off, and this is its current definition.
    send_definition(&dialer, blocking(definition).await?).await?;
    Ok(fingerprints)
}

/// Sends the definition. Ok promises that the destination accepts it, and has recorded what arrived of the VM.
async fn send_definition(dialer: &Dialer, definition: String) -> Result<(), AgentError> {
    let exchange = async {
        let mut peer = dialer.open(Channel::Definition).await?;
        peer.write_all(definition.as_bytes()).await.map_err(WireError::Peer)?;
        peer.shutdown().await.map_err(WireError::Peer)?;
        let verdict = peer.read_u8().await.map_err(WireError::Peer)?;
        let mut why = Vec::new();
        if verdict != 0 {
            peer.take(REASON_BYTES_MAX as u64).read_to_end(&mut why).await.map_err(WireError::Peer)?;
        }
        Ok::<_, WireError>((verdict, String::from_utf8_lossy(&why).into_owned()))
    };
    let fault = |why: String| AgentError::failed(format!("The destination did not take the definition: {why}"));
    match tokio::time::timeout(DEFINITION_WITHIN, exchange).await {
        Ok(Ok((0, _))) => Ok(()),
        Ok(Ok((_, why))) => Err(fault(why)),
        Ok(Err(error)) => Err(fault(chain(&error))),
        Err(_) => Err(fault("it did not answer in time".to_owned())),
    }
}

/// Sends a file. One that the destination already has, for a VM that shares it, is only compared.
async fn send_file(
    dialer: &Dialer,
    index: u16,
    path: &Path,
    adopted: bool,
    record: &Arc<Move>,
) -> Result<(), AgentError> {
    let fault = |error: WireError| match (error, record.journal().task) {
        (WireError::Differs, Task::Source { request, .. }) => {
            let index = usize::from(index);
            differs(&request.files[index].file.device, Path::new(&request.destination.paths[index]))
        }
        (error, _) => AgentError::because(format!("File {} could not be sent", path.display()), error),
    };
    let file = open(path.to_owned(), false).await?;
    let mut peer = dialer.open(Channel::File(index)).await.map_err(fault)?;
    let (form, meter) = (Form::of(peer.agreed().version), Arc::<FileMeter>::default());
    let show = |stage: DiskStage| {
        record.update_report(|known| {
            known.wires[usize::from(index)] = meter.sent();
            let file = &mut known.files[usize::from(index)];
            file.stage = stage;
            file.copied = file.copied.max(ByteCount(meter.examined()));
        });
    };
    let sending = async {
        match adopted {
            true => send_same(&mut peer, form, file, Arc::clone(&meter)).await,
            false => send(&mut peer, form, file, Arc::clone(&meter)).await,
        }
    };
    tokio::pin!(sending);
    let outcome = loop {
        tokio::select! {
            outcome = &mut sending => break outcome,
            () = tokio::time::sleep(POLL_EVERY) => show(DiskStage::Copying),
        }
    };
    outcome.map_err(fault)?;
    show(DiskStage::Ready);
    info!(file = %path.display(), sent = meter.sent(), "A file is at the destination");
    Ok(())
}

/// Opens a file without following a link.
async fn open(path: PathBuf, write: bool) -> Result<File, AgentError> {
    blocking(move || {
        let mut options = File::options();
        options.read(true).write(write).custom_flags(nix::libc::O_NOFOLLOW);
        options.open(&path).map_err(|source| AgentError::File { path, source })
    })
    .await
}
