//! The channels of the source: for each connection that libvirt and QEMU open here, one is opened at the destination,
//! in the same order.

use std::{path::Path, sync::Arc, time::Duration};

use ferry_core::{error::chain, transfer::Preset};
use ferry_wire::{
    channel::{Compression, Options},
    codec::Codecs,
    content::index::ContentIndex,
    hello::{Channel, Terms},
    nbd::{self, Image},
    window::WINDOW_BYTES_MIN,
};
use tokio::net::UnixListener;
use tracing::{error, info, warn};

use super::{
    handover,
    state::{Shared, cut, is_ending},
};
use crate::{AgentError, confinement::selinux, live::carrier::channel::channel_ended, lock::lock, records};

/// How long the destination may be silent while it reports a file's content. It sends something every second while it
/// reads the file, but first it spends up to a minute on finding the file's data.
const PARTIAL_SILENCE: Duration = Duration::from_secs(90);

/// Limit of all indexes of a VM's disks together: 256 GiB of data. Data beyond it are sent again.
const INDEX_BYTES_MAX: u64 = 64 << 20;

pub(super) fn listen(dir: &Path, name: &str) -> Result<UnixListener, AgentError> {
    let path = dir.join(name);
    records::remove(&path)?;
    UnixListener::bind(&path).map_err(|source| AgentError::File { path, source })
}

pub(super) fn listen_for_qemu(dir: &Path, name: &str) -> Result<UnixListener, AgentError> {
    selinux::for_qemu(|| Ok(listen(dir, name))).map_err(|source| AgentError::File { path: dir.join(name), source })?
}

/// Asks for the content of the destination's files, which it reads now. Without an answer, more is sent.
pub(super) async fn request_partials(shared: &Shared) -> Vec<Option<Image>> {
    let mut left = INDEX_BYTES_MAX;
    let mut images = Vec::new();
    for (index, file) in (0..).zip(&shared.files) {
        let asked = async {
            let mut peer = shared.dialer.open(Channel::Partial(index)).await?;
            ContentIndex::receive(&mut peer, PARTIAL_SILENCE, left).await
        };
        images.push(Some(match file.from_partial {
            false => Image::Zeroes,
            true => match asked.await {
                Ok(index) => {
                    info!(disk = file.device, blocks = index.blocks(), "The destination holds an unfinished copy");
                    left = left.saturating_sub(index.runs().len() as u64);
                    Image::Partial(index)
                }
                Err(error) => {
                    warn!(disk = file.device, error = %chain(&error), "The destination does not say what it holds");
                    Image::Unknown
                }
            },
        }));
    }
    images
}

/// libvirt opens one management connection for a migration.
pub(super) async fn carry_rpc(listener: UnixListener, shared: Arc<Shared>) {
    loop {
        let Ok((local, _)) = listener.accept().await else { return };
        let peer = match shared.dialer.open(Channel::Rpc).await {
            Ok(peer) => peer,
            Err(error) => {
                error!(error = %chain(&error), "The management channel could not be opened");
                continue;
            }
        };
        let options = Options {
            filter: Some(Box::new(handover::Management::new(&shared))),
            window_max: WINDOW_BYTES_MIN,
            ..Options::new(shared.request.downtime_limit, Arc::default())
        };
        let (reader, writer) = local.into_split();
        let ended = Arc::clone(&shared);
        shared.board.spawn(async move {
            let reason = tokio::select! {
                outcome = peer.carry(reader, writer, options) => channel_ended("rpc", outcome, &ended.board, is_ending(&ended)),
                () = cut(&ended) => Some("it was ended with the move".to_owned()),
            };
            if let Some(reason) = reason {
                *lock(&ended.broken) = Some(reason);
            }
        });
    }
}

/// What the streams of memory and disks are opened with. A destination of an earlier version knows no codec and gets none.
fn terms(performance: Preset) -> Terms {
    match performance {
        Preset::Standard => Terms::default(),
        Preset::Compression => Terms { codecs: Codecs::all(), ..Terms::default() },
    }
}

/// Connections are opened at the destination in the order in which they arrived here.
pub(super) async fn carry_each(listener: UnixListener, channel: fn(u16) -> Channel, shared: Arc<Shared>) {
    for index in 0.. {
        let Ok((local, _)) = listener.accept().await else { return };
        let channel = channel(index);
        let name = if matches!(channel, Channel::Disk(_)) { "disk" } else { "memory" };
        let peer = match shared.dialer.open_on(terms(shared.performance), channel).await {
            Ok(peer) => peer,
            Err(error) => {
                error!(channel = name, error = %chain(&error), "A channel could not be opened");
                continue;
            }
        };
        let (meter, rate) = match matches!(channel, Channel::Disk(_)) {
            true => (&shared.meters.disks, &shared.disk_rate),
            false => (&shared.meters.memory, &shared.memory_rate),
        };
        peer.widen();
        let mut options = Options {
            traffic: Arc::clone(&shared.traffic),
            rate: rate.clone(),
            compression: Compression { cpu: shared.cpu.clone(), ..Compression::default() },
            ..Options::new(shared.request.downtime_limit, Arc::clone(meter))
        };
        let mut disk = None;
        if let Channel::Disk(index) = channel {
            // One connection for each disk: for any further one, nothing is known.
            let mut images = lock(&shared.images);
            let image = images.get_mut(usize::from(index)).and_then(Option::take).unwrap_or_default();
            options.filter = Some(Box::new(nbd::source(image, shared.meters.open_disk(index))));
            disk = Some(index);
        }
        let (reader, writer) = local.into_split();
        let ended = Arc::clone(&shared);
        shared.board.spawn(async move {
            tokio::select! {
                outcome = peer.carry(reader, writer, options) => drop(channel_ended(name, outcome, &ended.board, is_ending(&ended))),
                () = cut(&ended) => warn!(channel = name, "The channel was ended with the move"),
            }
            if let Some(index) = disk {
                ended.meters.end_disk(index);
            }
        });
    }
}
