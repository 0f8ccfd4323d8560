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
//! - blocks which the destination's image holds at the same place ([`crate::content::index`]) are named by their hash. The destination
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
pub use image::{Held, Image, Keeper};
pub use meter::NbdMeter;

/// The filter of the source's end.
pub fn source(image: Image, meter: Arc<NbdMeter>) -> impl StreamFilter + use<> {
    Filter { end: source::Source::new(image, meter), outbound_is_requests: true }
}

/// The filter of the destination's end. `keeper` knows the images.
pub fn destination<K: Keeper + 'static>(keeper: K, meter: Arc<NbdMeter>) -> impl StreamFilter + use<K> {
    Filter { end: destination::Destination::new(Box::new(keeper), meter), outbound_is_requests: false }
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
