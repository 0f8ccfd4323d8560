//! An arriving copy: the sockets on which its memory and disks are received.

use std::{
    io::{self, Read, Write},
    net::Shutdown,
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use ferry_core::units::ByteCount;

use super::guest::{self, Memory, PAGE_BYTES};
use crate::hypervisor::MigrationStats;

/// Upper bound of a fake guest's pages.
const PAGES_MAX: u64 = 1 << 18;
/// First word of the memory stream; followed by the number of pages and the guest's dirty ratio.
pub(super) const MEMORY_MAGIC: u64 = 0x4645_5252_5946_414b;
/// Takes the place of a page number at the end of the stream; followed by the checksum of all memory and the statistics
/// of the move.
pub(super) const MEMORY_END: u64 = u64::MAX;

/// An arriving copy.
pub(super) struct Incoming {
    dropped: AtomicBool,
    /// The memory channel, once connected.
    channel: Mutex<Option<UnixStream>>,
    listener: UnixListener,
    socket: PathBuf,
    /// The listener for migrated disks, and their files by name.
    disks: Option<Disks>,
}

pub(super) struct Disks {
    pub(super) listener: UnixListener,
    pub(super) socket: PathBuf,
    pub(super) files: Vec<(String, PathBuf)>,
}

impl Incoming {
    pub(super) fn new(listener: UnixListener, socket: PathBuf, disks: Option<Disks>) -> Self {
        Self { dropped: AtomicBool::new(false), channel: Mutex::new(None), listener, socket, disks }
    }

    /// Whether disks are migrated.
    pub(super) fn has_disks(&self) -> bool {
        self.disks.is_some()
    }

    /// Ends the receiving thread. Afterwards another copy may listen at the same paths.
    pub(super) fn drop_it(&self) {
        let channel = self.channel.lock().expect("no thread panics while holding this lock");
        self.dropped.store(true, Ordering::SeqCst);
        end_listener(&self.listener);
        self.end_sockets();
        if let Some(channel) = &*channel {
            // The channel may be closed already.
            let _ = channel.shutdown(Shutdown::Both);
        }
    }

    /// Removes the sockets. Not for a dropped copy, because another copy may use the paths by now.
    pub(super) fn close(&self) {
        let _channel = self.channel.lock().expect("no thread panics while holding this lock");
        if !self.dropped.load(Ordering::SeqCst) {
            self.end_sockets();
        }
    }

    fn end_sockets(&self) {
        let _ = std::fs::remove_file(&self.socket);
        if let Some(disks) = &self.disks {
            end_listener(&disks.listener);
            let _ = std::fs::remove_file(&disks.socket);
        }
    }

    /// Receives disks, one after the other, until the copy's memory has arrived or the copy is dropped.
    pub(super) fn receive_disks(&self) {
        let Some(disks) = &self.disks else { return };
        while let Ok((stream, _)) = disks.listener.accept() {
            // The source reports a broken transfer.
            let _ = receive_disk(disks, stream);
        }
    }

    /// Receives the copy's memory, and the statistics of the move.
    pub(super) fn receive(&self) -> io::Result<(Memory, MigrationStats)> {
        let (stream, _) = self.listener.accept()?;
        {
            let mut channel = self.channel.lock().expect("no thread panics while holding this lock");
            if self.dropped.load(Ordering::SeqCst) {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            *channel = Some(stream.try_clone()?);
        }
        let mut stream = io::BufReader::new(stream);
        let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what);
        let (magic, pages) = (word(&mut stream)?, word(&mut stream)?);
        if magic != MEMORY_MAGIC || pages > PAGES_MAX {
            return Err(bad("this is no memory stream"));
        }
        let dirty_ratio = f64::from_bits(word(&mut stream)?);
        let mut bytes = vec![0; pages as usize * PAGE_BYTES];
        loop {
            match word(&mut stream)? {
                MEMORY_END if word(&mut stream)? == guest::checksum(&bytes) => {
                    let mut words = [0; 5];
                    for counted in &mut words {
                        *counted = word(&mut stream)?;
                    }
                    return Ok((Memory::arrived(bytes, dirty_ratio), stats_of(words)));
                }
                MEMORY_END => return Err(bad("memory was spoilt on its way")),
                page if page < pages => stream.read_exact(&mut bytes[page as usize * PAGE_BYTES..][..PAGE_BYTES])?,
                _ => return Err(bad("there is no such page")),
            }
        }
    }
}

/// Makes `accept` return, even if the socket's path is gone.
pub(super) fn end_listener(listener: &UnixListener) {
    // A listening socket can be shut down like any other. It may be shut down already.
    if let Ok(socket) = listener.try_clone() {
        let _ = UnixStream::from(OwnedFd::from(socket)).shutdown(Shutdown::Both);
    }
}

fn receive_disk(disks: &Disks, mut stream: UnixStream) -> io::Result<()> {
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what);
    let mut name = vec![0; usize::try_from(word(&mut stream)?.min(64)).unwrap_or(0)];
    stream.read_exact(&mut name)?;
    let length = word(&mut stream)?;
    let found = disks.files.iter().find(|(device, _)| device.as_bytes() == name);
    let (_, file) = found.ok_or_else(|| bad("there is no such disk"))?;
    let mut file = std::fs::File::options().write(true).open(file)?;
    if file.metadata()?.len() != length || io::copy(&mut (&mut stream).take(length), &mut file)? != length {
        return Err(bad("the sizes differ"));
    }
    stream.write_all(&[1])
}

fn word(stream: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes)?;
    Ok(u64::from_be_bytes(bytes))
}

pub(super) fn stats_of(words: [u64; 5]) -> MigrationStats {
    let [total, processed, rate, iteration, downtime_ms] = words;
    MigrationStats {
        memory_total: ByteCount(total),
        memory_processed: ByteCount(processed),
        rate_bytes_per_s: rate,
        iteration: iteration as u32,
        downtime_ms,
        ..MigrationStats::default()
    }
}
