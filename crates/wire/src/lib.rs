//! Moves bytes between two sockets over TLS, and counts them.
//!
//! ```text
//! local ─▶ sender: read → filter → frame ─▶ ══ lanes ══ ─▶ receiver: deframe → verify → filter → write ─▶ local
//! ```
//! A *session* belongs to one migration attempt. A *channel* is one local connection and has its own pipes to the other
//! carrier, its lanes, which provide priorities, half-close and back-pressure; one more pipe carries [`control`] messages. Each
//! channel carries both directions: an end has one sender and one receiver, written as mirror files. Only [`transport`]
//! knows what pipes consist of: TLS 1.3 over TCP, or files on a share.
//!
//! The plain stream that leaves a receiver is byte-identical to what entered the sender; this is checked per frame, and
//! over the whole channel when it ends. [`window`] bounds the bytes accepted and not yet delivered by one channel,
//! [`traffic`] those of all channels of a carrier. A [`filter`] sees the plain bytes at an end; it may change them and
//! answer them.
//!
//! Only [`nbd`] interprets bytes: those of disk channels.
pub mod channel;
pub mod codec;
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
pub mod rate;
pub mod session;
pub mod traffic;
pub mod transport;
pub mod window;

pub use error::WireError;
