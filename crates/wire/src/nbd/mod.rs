//! Disks on their way: QEMU's mirror at the source writes to the NBD server of QEMU at the destination.
//!
//! ```text
//! client ─requests─▶ source ══ the same, WRITEs in parts ══▶ destination ─▶ server
//! client ◀─replies── source ◀═════════ replies ════════════ destination ◀── server
//! ```
//! A mirror writes more than the disk holds: zeroes, and what the destination has already. So
//! - pages of zeroes are not sent as data and not written as data, and nothing asks the server to allocate for them;
//! - zeroes for what reads as zeroes anyway, of an image made for this copy or of a seed, do not reach the server at
//!   all, because a disk with `discard=ignore` would be filled by them;
//! - blocks which the destination's image holds at the same place ([`seed`]) are named by their hash. The destination
//!   reads and compares them before it answers.
//!
//! *Content.* Each request of the client gets exactly one reply, after the last of what the server was asked instead,
//! with its first error. *Order.* A range counts as written when the data pass, before their reply, so zeroes that
//! follow go the same way. *No reply without the server*: a request of which nothing is left becomes a READ of a page,
//! so each reply follows from one of the server's, and no byte must be put into a direction in which nothing moves.
//!
//! The handshake is passed on, without options that change the form of requests. What is not understood before the
//! first request makes the connection opaque from that byte on; what is not understood later ends the channel, and
//! with it the copy: the VM stays at the source. A request that its client leaves unfinished is dropped with it.
//!
//! *Bounds.* At most 1 MiB of an unfinished WRITE is held back at either end; 1024 requests in flight; what is known of
//! where an image was written costs 64 MiB at the most, for terabytes.

mod destination;
mod error;
mod handshake;
mod parts;
mod protocol;
pub mod seed;
mod source;
mod written;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use crate::filter::{Direction, FilterError, Outputs, StreamFilter};
pub use error::NbdError;
use seed::{SeedIndex, SeedKey};

/// What is told apart: the smallest unit that file systems allocate.
const PAGE_BYTES: u64 = 4096;

/// What the source knows of the image at the destination.
#[derive(Debug, Default)]
pub enum Image {
    /// Nothing.
    #[default]
    Unknown,
    /// It was made for this copy and reads as zeroes. Where it does not have to be written is known at the
    /// destination ([`Held::Zeroes`]).
    Zeroes,
    /// It holds these blocks.
    Seed(SeedIndex),
}

/// What the destination knows of its image. For one connection only, and nobody else may write to the image: other
/// connections know nothing.
#[derive(Debug, Default)]
pub enum Held {
    /// Nothing.
    #[default]
    Unknown,
    /// It was made for this copy and reads as zeroes.
    Zeroes,
    /// It holds blocks that the source may name.
    Seed {
        /// They are hashed with it.
        key: SeedKey,
        /// From where to where, in bytes, it may read as something else than zeroes, if that is known.
        data: Option<Vec<(u64, u64)>>,
    },
}

/// Who knows the images at the destination.
pub trait Keeper: Send {
    /// What is known of the image behind the export that the client chose, by its name and size in bytes. Asked once for
    /// a connection at the most. What is told must not be told of the same image again: it would be written meanwhile.
    fn held(&mut self, export: &str, size_bytes: u64) -> Held;

    /// The block at this offset is not what the source was told that it is; the client was told of an error.
    fn changed(&mut self, offset: u64);
}

/// One image that is known, whatever it is called.
impl Keeper for Held {
    fn held(&mut self, _export: &str, _size_bytes: u64) -> Held {
        std::mem::take(self)
    }

    fn changed(&mut self, offset: u64) {
        tracing::error!(offset, "a block is not what the source was told that it is");
    }
}

/// What was spared, of one or several connections of one end.
#[derive(Debug, Default)]
pub struct NbdMeter {
    elided: AtomicU64,
    referenced: AtomicU64,
    mismatches: AtomicU64,
    waiting: AtomicU64,
    answered: AtomicU64,
}

impl NbdMeter {
    /// Bytes of zeroes: at the source those that the client wrote and that were not sent, at the destination those of
    /// which the server heard nothing.
    pub fn elided_bytes(&self) -> u64 {
        self.elided.load(Relaxed)
    }

    /// Bytes of blocks that were sent as a hash; at the destination those that were found to be held.
    pub fn referenced_bytes(&self) -> u64 {
        self.referenced.load(Relaxed)
    }

    /// Blocks that the destination's image should have held and did not. The client was told of an error.
    pub fn mismatches(&self) -> u64 {
        self.mismatches.load(Relaxed)
    }

    /// At the source: requests of the client that were not answered yet.
    pub fn waiting(&self) -> u64 {
        self.waiting.load(Relaxed)
    }

    /// At the source: requests of the client that were answered.
    pub fn answered(&self) -> u64 {
        self.answered.load(Relaxed)
    }
}

/// The filter of the source's end.
pub fn source(image: Image, meter: Arc<NbdMeter>) -> impl StreamFilter + use<> {
    Filter { end: source::Source::new(image, meter), outbound_is_requests: true }
}

/// The filter of the destination's end. `keeper` knows the images.
pub fn destination<K: Keeper + 'static>(keeper: K, meter: Arc<NbdMeter>) -> impl StreamFilter + use<K> {
    Filter { end: destination::Destination::new(Box::new(keeper), meter), outbound_is_requests: false }
}

/// One end: both directions know of each other.
trait End: Send {
    fn requests(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), NbdError>;
    fn replies(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), NbdError>;
}

struct Filter<E> {
    end: E,
    /// The client is here, and its requests go to the peer.
    outbound_is_requests: bool,
}

impl<E: End> StreamFilter for Filter<E> {
    fn filter(&mut self, direction: Direction, bytes: &[u8], out: &mut Outputs) -> Result<(), FilterError> {
        let is_request = (direction == Direction::Outbound) == self.outbound_is_requests;
        let passed = match is_request {
            true => self.end.requests(bytes, &mut out.forward),
            false => self.end.replies(bytes, &mut out.forward),
        };
        Ok(passed?)
    }
}

/// At the speed of memory: sixty-four bytes at a time, and data are told by their first.
fn all_zero(bytes: &[u8]) -> bool {
    let (lines, rest) = bytes.as_chunks::<64>();
    lines.iter().all(|line| line.iter().fold(0, |all, byte| all | byte) == 0) && rest.iter().all(|byte| *byte == 0)
}
