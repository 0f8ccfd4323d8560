//! Moves bytes between two sockets over TLS, and reports.
//!
//! ```text
//! local ─▶ sender: read → filter → frame ─▶ ══ lane ══ ─▶ receiver: deframe → verify → filter → write ─▶ local
//! ```
//! A *session* belongs to one migration attempt. A *channel* is one local connection and has a pipe of its own to the other
//! carrier, so that priorities, half-close and back-pressure come from the pipe; one more carries [`control`] messages.
//! Each channel carries both directions: an end has one sender and one receiver, written as mirror files. What pipes are
//! made of, only [`transport`] knows: TLS 1.3 over TCP.
//!
//! The plain stream that leaves a receiver is byte-identical to what entered the sender: checked per frame, and over
//! the whole channel when it ends. What was accepted and not yet delivered is bounded by [`window`], and for all
//! channels of a carrier together by [`traffic`]. A [`filter`] takes the plain bytes at an end; it may change what passes, and
//! answer it.
//!
//! Only [`nbd`] knows what bytes mean: those of a disk's channel. Nothing else here does.
pub mod channel;
pub mod content;
pub mod control;
mod error;
pub mod file;
pub mod filter;
pub mod frame;
pub mod hello;
mod lane;
pub mod meter;
pub mod nbd;
pub mod session;
pub mod traffic;
pub mod transport;
pub mod window;

pub use error::WireError;
