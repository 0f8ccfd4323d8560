//! Moves bytes between two sockets over TLS, and reports.
//!
//! ```text
//! local ─▶ sender: read → frame ─▶ ══ TLS 1.3 ══ ─▶ receiver: deframe → verify → write ─▶ local
//! ```
//! A *session* belongs to one migration attempt. A *channel* is one local connection and has a TLS connection of its
//! own, so that priorities, half-close and back-pressure come from TCP; one more carries [`control`] messages. Each
//! channel carries both directions: an end has one sender and one receiver, written as mirror files.
//!
//! The plain stream that leaves a receiver is byte-identical to what entered the sender: checked per frame, and over
//! the whole channel when it ends. What was accepted and not yet delivered is bounded by [`window`], and for all
//! channels of a carrier together by [`traffic`]. An inspector
//! ([`channel::Inspect`]) stands before the sender or behind the receiver and may change what passes.
//!
//! Only [`nbd`] knows what bytes mean: those of a disk's channel. Nothing else here does.
#![expect(clippy::wildcard_enum_match_arm, reason = "matches from before the rule; the last one takes this along")]

pub mod channel;
pub mod control;
pub mod file;
pub mod frame;
pub mod hello;
pub mod meter;
pub mod nbd;
mod receiver;
mod sender;
pub mod session;
pub mod traffic;
pub mod window;

use std::io;

use thiserror::Error;

/// Why a channel or session ended badly. Bytes counted in the [`meter::Meter`] until then were delivered.
#[derive(Debug, Error)]
pub enum WireError {
    /// The local socket failed.
    #[error("The local socket failed")]
    Local(#[source] io::Error),
    /// The connection to the peer failed or ended before its stream was complete.
    #[error("The connection to the other agent failed")]
    Peer(#[source] io::Error),
    /// The peer sent what the protocol does not allow, or bytes were changed on the way.
    #[error("The other agent broke the protocol: {0}")]
    Protocol(String),
    /// The peer gave up and said why.
    #[error("The other agent gave up: {0}")]
    Aborted(String),
    /// An inspector refused what passed.
    #[error("Refused: {0}")]
    Refused(String),
    /// A deadline passed.
    #[error("Timed out: {0}")]
    Timeout(&'static str),
    /// A file that is there already, and that is not to be changed, holds other bytes.
    #[error("The destination has the file already, and it holds something else")]
    Differs,
}
