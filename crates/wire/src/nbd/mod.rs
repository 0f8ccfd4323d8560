//! Disk channels: QEMU's mirror at the source writes to the NBD server of QEMU at the destination.
//!
//! ```text
//! client ─requests─▶ source ══ the same, WRITEs in parts ══▶ destination ─▶ server
//! client ◀─replies── source ◀═════════ replies ════════════ destination ◀── server
//! ```
//! A mirror writes more than necessary: zeroes, and blocks that the destination already has. Therefore
//! - pages of zeroes are neither sent nor written as data, and the server is never asked to allocate space for them;
//! - zeroes for ranges that already read as zeroes, in an image created for this copy or in a seed, do not reach the
//!   server at all, because they would fill a disk with `discard=ignore`;
//! - blocks that the destination's image has at the same offset ([`crate::content::index`]) are sent as hashes. The
//!   destination reads and compares them before it answers.
//!
//! *Content.* Each client request gets exactly one reply, after the last of the server requests that replace it, with
//! the first error among them. *Order.* A range counts as written when its data pass, before their reply, so later
//! zeroes for it reach the server. *No reply without the server*: a request of which nothing remains becomes a READ of
//! one page, so every reply is triggered by one of the server's, and no byte has to be inserted into an idle direction.
//!
//! The handshake is forwarded, without options that change the format of requests. Unknown bytes before the first
//! request make the connection opaque from that byte on; unknown bytes later end the channel, and with it the copy: the
//! VM stays at the source. A request that its client leaves unfinished is dropped.
//!
//! *Bounds.* Either end withholds at most 1 MiB of an unfinished WRITE; at most 1024 requests are in flight; tracking
//! the written ranges of an image takes at most 64 MiB, even for terabytes.

mod destination;
mod end;
mod error;
mod handshake;
mod image;
mod meter;
mod parts;
mod protocol;
mod source;
mod written;

use std::sync::Arc;

use crate::filter::{Direction, FilterError, Outputs, StreamFilter};
use end::End;
pub use error::NbdError;
pub use image::{Image, ImageCatalog, ImageContent};
pub use meter::NbdMeter;

/// The filter at the source's end.
pub fn source(image: Image, meter: Arc<NbdMeter>) -> impl StreamFilter + use<> {
    Filter { end: source::Source::new(image, meter), outbound_is_requests: true }
}

/// The filter at the destination's end. `catalog` knows the images.
pub fn destination<K: ImageCatalog + 'static>(catalog: K, meter: Arc<NbdMeter>) -> impl StreamFilter + use<K> {
    Filter { end: destination::Destination::new(Box::new(catalog), meter), outbound_is_requests: false }
}

struct Filter<E> {
    end: E,
    /// The client is at this end: outbound bytes are requests.
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
