//! Errors of channels and sessions.

use std::io;

use thiserror::Error;

use crate::filter::FilterError;

/// Why a channel or session failed. Bytes counted in the [`crate::meter::Meter`] until then were delivered.
#[derive(Debug, Error)]
pub enum WireError {
    /// The local socket failed.
    #[error("The local socket failed")]
    Local(#[source] io::Error),
    /// The connection to the peer failed or ended before its stream was complete.
    #[error("The connection to the other agent failed")]
    Peer(#[source] io::Error),
    /// One of several lanes of a channel failed, or ended before the peer's stream was complete.
    #[error("Lane {lane} of {lanes} to the other agent failed")]
    Lane {
        /// Its number, from 0.
        lane: u8,
        /// The number of lanes.
        lanes: u8,
        /// The failure.
        #[source]
        source: io::Error,
    },
    /// The peer violated the protocol, or bytes were corrupted on the way.
    #[error("The other agent broke the protocol: {0}")]
    Protocol(String),
    /// The peer gave up, with this reason.
    #[error("The other agent gave up: {0}")]
    Aborted(String),
    /// The peer rejected the connection, with this reason.
    #[error("Refused: {0}")]
    Refused(String),
    /// This end's filter ended the channel.
    #[error("Refused")]
    Filter(#[source] FilterError),
    /// A deadline passed.
    #[error("Timed out: {0}")]
    Timeout(&'static str),
    /// An existing file that must not be changed has different content.
    #[error("The destination has the file already, and it holds something else")]
    Differs,
}
