//! Reports the content of a partial copy to the source while reading it, before anything is written to it. The source
//! names blocks that it has as well by their hashes; each is compared again when it is used (`ferry_wire::nbd`).

use std::{
    fs, io,
    os::unix::fs::FileExt as _,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use ferry_core::{error::chain, vm::DiskFormat};
use ferry_drivers::image;
use ferry_wire::{
    content::index::{BLOCK_BYTES, ContentIndex, ContentKey, RUN_BLOCKS_MAX},
    nbd::ImageContent,
    session::Connection,
};
use tokio::{io::AsyncWriteExt as _, sync::mpsc};
use tracing::{info, warn};

use super::state::Shared;
use crate::lock::lock;

/// Queued pieces of the report: each covers at most 64 MiB of data.
const QUEUED_PIECES: usize = 4;
/// While a file is read, the source receives something at least this often, so that it does not wait for a dead peer.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// Reports the content of a disk's file to the source while reading it.
pub(super) async fn report_partial(index: u16, mut peer: Connection, shared: Arc<Shared>) {
    let place = usize::from(index);
    let Some(incoming_disk) = shared.incoming_disks.get(place).cloned() else { return };
    let Some(partial) = incoming_disk.lifecycle.partial() else { return };
    let (key, disk, begun) = (ContentKey(partial.key.0), incoming_disk.device.clone(), Instant::now());
    let (sender, mut pieces) = mpsc::channel(QUEUED_PIECES);
    let known = Arc::clone(&shared);
    let reading = tokio::task::spawn_blocking(move || {
        let found = |data| {
            let mut content = lock(&known.contents);
            // Unless its copy has already begun.
            if let Some(Some(content)) = content.get_mut(place) {
                *content = ImageContent::Partial { key, data: Some(data) };
            }
        };
        read(&incoming_disk.path, incoming_disk.format, key, found, |piece| sender.blocking_send(piece).is_ok())
    });
    let mut bytes = 0;
    let telling = async {
        while let Some(piece) = pieces.recv().await {
            bytes += piece.len();
            peer.write_all(&piece).await?;
            peer.flush().await?;
        }
        peer.shutdown().await
    };
    let outcome = telling.await;
    // The receiver is gone: the rest of the file is not read.
    drop(pieces);
    let read = reading.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    match outcome.and(read) {
        Ok(()) => info!(disk, bytes, took_ms = begun.elapsed().as_millis() as u64, "The source knows what is here"),
        Err(error) => warn!(disk, bytes, error = %chain(&error), "The source is not told all of what is here"),
    }
}

/// Reads the content of an image that has no writer. Reports first the ranges of its data (start, end), then the bytes
/// of its index ([`ContentIndex::encode`]) piece by piece, until `send` returns that the receiver is gone. Blocks for as
/// long as reading takes.
///
/// # Errors
/// If the image cannot be read. What was reported until then is correct.
fn read(
    path: &Path,
    format: DiskFormat,
    key: ContentKey,
    found: impl FnOnce(Vec<(u64, u64)>),
    mut send: impl FnMut(Vec<u8>) -> bool,
) -> io::Result<()> {
    let extents = image::extents(path, format)?;
    let file = fs::File::open(path)?;
    found(extents.iter().map(|extent| (extent.start, extent.start + extent.length)).collect());
    let mut is_open = send(ContentIndex::new(key).encode());
    let (mut index, mut blocks, mut reported_at) = (ContentIndex::new(key), 0, Instant::now());
    // A block consists of all parts that overlap it, with zeroes between them.
    let (mut number, mut block) = (None, vec![0; BLOCK_BYTES as usize]);
    for extent in &extents {
        let (mut at, end) = (extent.start, extent.start + extent.length);
        while at < end && is_open {
            let here = at / BLOCK_BYTES;
            if number != Some(here) {
                if let Some(number) = number.replace(here) {
                    index.insert(number, &block);
                    blocks += 1;
                }
                if blocks >= RUN_BLOCKS_MAX || (blocks > 0 && reported_at.elapsed() >= REPORT_EVERY) {
                    is_open = send(index.runs());
                    (index, blocks, reported_at) = (ContentIndex::new(key), 0, Instant::now());
                }
                block.fill(0);
            }
            let part_end = end.min((here + 1) * BLOCK_BYTES);
            let part = &mut block[(at % BLOCK_BYTES) as usize..][..(part_end - at) as usize];
            file.read_exact_at(part, extent.offset + (at - extent.start))?;
            at = part_end;
        }
    }
    if let Some(number) = number {
        index.insert(number, &block);
        send(index.runs());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use ferry_core::units::ByteCount;

    use super::*;

    const KEY: ContentKey = ContentKey([4; 32]);

    struct Image {
        path: std::path::PathBuf,
        format: DiskFormat,
    }

    fn image(path: std::path::PathBuf, format: DiskFormat, size: ByteCount) -> Image {
        let owner = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        image::create(&path, format, size, owner).expect("made");
        Image { path, format }
    }

    fn scanned(path: &Path, format: DiskFormat) -> (Vec<(u64, u64)>, ContentIndex) {
        let (mut data, mut bytes) = (Vec::new(), Vec::new());
        let send = |piece: Vec<u8>| {
            bytes.extend(piece);
            true
        };
        read(path, format, KEY, |found| data = found, send).expect("read");
        (data, ContentIndex::decode(&bytes).expect("whole"))
    }

    #[test]
    fn blocks_with_holes_inside_are_known() {
        let folder = tempfile::tempdir().expect("a folder");
        let plain = folder.path().join("plain.raw");
        fs::File::create(&plain).expect("made").set_len(9 << 30).expect("sparse");
        // From 8 GiB on, the parts of a qcow2 cluster are 16 KiB.
        let images = [(DiskFormat::Raw, "disk.raw"), (DiskFormat::Qcow2, "disk.qcow2")];
        let images = images.map(|(format, name)| image(folder.path().join(name), format, ByteCount::gib(9)));
        let writes = ["write -P 3 1M 16k", "write -P 4 1072k 16k", "write -P 5 3M 512k", "write -P 6 5120k 4k"];
        for (path, format) in images.iter().map(|image| (&image.path, image.format)).chain([(&plain, DiskFormat::Raw)])
        {
            let mut tool = Command::new("qemu-io");
            for write in writes {
                tool.args(["-c", write]);
            }
            let done = tool.args(["-f", format.name()]).arg(path).output().expect("qemu-io is installed");
            assert!(done.status.success(), "{done:?}");
        }
        let (mut expected, content) = (ContentIndex::new(KEY), fs::File::open(&plain).expect("there"));
        let mut bytes = vec![0; BLOCK_BYTES as usize];
        for block in 0..(6 << 20) / BLOCK_BYTES {
            content.read_exact_at(&mut bytes, block * BLOCK_BYTES).expect("read");
            expected.insert(block, &bytes);
        }
        assert_eq!(expected.blocks(), 10);
        for image in images {
            let (data, index) = scanned(&image.path, image.format);
            assert_eq!(index, expected, "{:?}", image.format);
            assert!(data.iter().map(|(start, end)| end - start).sum::<u64>() < 1 << 20, "{data:?}");
        }
    }

    #[test]
    fn a_file_is_read_for_as_long_as_somebody_listens() {
        let folder = tempfile::tempdir().expect("a folder");
        let disk = image(folder.path().join("disk.raw"), DiskFormat::Raw, ByteCount::mib(256));
        let file = fs::File::options().write(true).open(&disk.path).expect("there");
        file.write_all_at(&vec![7; 200 << 20], 0).expect("written");
        let mut pieces = 0;
        let send = |piece: Vec<u8>| {
            assert!(piece.len() <= 12 + 16 * RUN_BLOCKS_MAX);
            pieces += 1;
            pieces < 2
        };
        read(&disk.path, disk.format, KEY, |_| {}, send).expect("read");
        assert!(pieces <= 3, "{pieces} pieces");
        assert_eq!(scanned(&disk.path, disk.format).1.blocks(), 3200);
    }
}
