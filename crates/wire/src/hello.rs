//! The handshake that opens a TLS connection: which session, which channel.
//!
//! ```text
//! hello   "FERRYWIR" · version min u16 · version max u16 · session 16 · secret 32
//!         channel kind u8 · zero u8 · channel index u16 · lane u8 · lanes u8 · codec u8 · zero u8
//! answer  version u16 (0: refused) · reason length u16 · reason
//! ```
//! Both ends are authenticated by TLS before a byte of it is sent; the secret binds the connection to one session.

use ferry_core::{id::SessionId, pin::Secret};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use uuid::Uuid;

use crate::{WireError, frame::Codec};

/// The newest protocol version that this program speaks. 2: windows of more than 8 MiB.
pub const VERSION_MAX: u16 = 2;
/// The oldest.
pub const VERSION_MIN: u16 = 1;
/// Size of a hello.
pub const HELLO_BYTES: usize = 68;

const MAGIC: &[u8; 8] = b"FERRYWIR";
const REASON_BYTES_MAX: u16 = 512;

/// What a connection carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Channel {
    /// Control messages.
    Control,
    /// Management calls; never behind bulk data.
    Rpc,
    /// Memory, by connection in the order of opening.
    Memory(u16),
    /// A disk, by connection in the order of opening.
    Disk(u16),
    /// What the destination's file of that disk holds already: an index, from the destination, until its end.
    Seed(u16),
}

/// The first bytes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Oldest protocol version that the dialer speaks.
    pub version_min: u16,
    /// Newest.
    pub version_max: u16,
    /// The migration attempt.
    pub session: SessionId,
    /// Known to the two agents of the session.
    pub secret: Secret,
    /// What the connection carries.
    pub channel: Channel,
    /// Which lane of the channel this connection is, from 0.
    pub lane: u8,
    /// How many lanes the channel has.
    pub lanes: u8,
    /// How data are coded.
    pub codec: Codec,
}

impl Hello {
    /// A hello for the only lane of a channel.
    pub fn new(session: SessionId, secret: Secret, channel: Channel, codec: Codec) -> Self {
        Self { version_min: VERSION_MIN, version_max: VERSION_MAX, session, secret, channel, lane: 0, lanes: 1, codec }
    }

    /// The hello as it stands on the wire.
    pub fn encode(&self) -> [u8; HELLO_BYTES] {
        let (kind, index) = match self.channel {
            Channel::Control => (0, 0),
            Channel::Rpc => (1, 0),
            Channel::Memory(index) => (2, index),
            Channel::Disk(index) => (3, index),
            Channel::Seed(index) => (4, index),
        };
        let mut bytes = [0; HELLO_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..10].copy_from_slice(&self.version_min.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.version_max.to_le_bytes());
        bytes[12..28].copy_from_slice(self.session.0.as_bytes());
        bytes[28..60].copy_from_slice(&self.secret.0);
        bytes[60] = kind;
        bytes[62..64].copy_from_slice(&index.to_le_bytes());
        bytes[64] = self.lane;
        bytes[65] = self.lanes;
        bytes[66] = self.codec.to_wire();
        bytes
    }

    /// Reads a hello.
    ///
    /// # Errors
    /// [`WireError::Protocol`] for anything that is not one.
    pub fn decode(bytes: &[u8; HELLO_BYTES]) -> Result<Self, WireError> {
        let bad = |what: &str| WireError::Protocol(format!("hello with {what}"));
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        if &bytes[..8] != MAGIC {
            return Err(bad("a wrong magic"));
        }
        let index = u16_at(62);
        let channel = match (bytes[60], index) {
            (0, 0) => Channel::Control,
            (1, 0) => Channel::Rpc,
            (2, index) => Channel::Memory(index),
            (3, index) => Channel::Disk(index),
            (4, index) => Channel::Seed(index),
            _ => return Err(bad("an unknown channel")),
        };
        if bytes[61] != 0 || bytes[67] != 0 {
            return Err(bad("reserved bits set"));
        }
        if bytes[64] >= bytes[65] {
            return Err(bad("a lane out of bounds"));
        }
        Ok(Self {
            version_min: u16_at(8),
            version_max: u16_at(10),
            session: SessionId(Uuid::from_slice(&bytes[12..28]).expect("sixteen bytes")),
            secret: Secret(bytes[28..60].try_into().expect("thirty-two bytes")),
            channel,
            lane: bytes[64],
            lanes: bytes[65],
            codec: Codec::from_wire(bytes[66]).ok_or_else(|| bad("an unknown codec"))?,
        })
    }
}

/// The version that both ends speak, newest first.
pub fn common_version(min: u16, max: u16) -> Option<u16> {
    let version = max.min(VERSION_MAX);
    (version >= min.max(VERSION_MIN)).then_some(version)
}

/// Sends a hello and waits for the answer. Ok holds the agreed version.
///
/// # Errors
/// [`WireError::Refused`] with the peer's reason; [`WireError::Peer`].
pub async fn introduce<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, hello: &Hello) -> Result<u16, WireError> {
    stream.write_all(&hello.encode()).await.map_err(WireError::Peer)?;
    stream.flush().await.map_err(WireError::Peer)?;
    let version = stream.read_u16_le().await.map_err(WireError::Peer)?;
    let length = stream.read_u16_le().await.map_err(WireError::Peer)?;
    if length > REASON_BYTES_MAX {
        return Err(WireError::Protocol("an answer with a length out of bounds".to_owned()));
    }
    let mut reason = vec![0; usize::from(length)];
    stream.read_exact(&mut reason).await.map_err(WireError::Peer)?;
    match version {
        0 => Err(WireError::Refused(String::from_utf8_lossy(&reason).into_owned())),
        version if (hello.version_min..=hello.version_max).contains(&version) => Ok(version),
        version => Err(WireError::Protocol(format!("an answer with version {version}, which was not offered"))),
    }
}

/// Reads a hello.
///
/// # Errors
/// [`WireError::Peer`], [`WireError::Protocol`].
pub async fn listen<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Hello, WireError> {
    let mut bytes = [0; HELLO_BYTES];
    stream.read_exact(&mut bytes).await.map_err(WireError::Peer)?;
    Hello::decode(&bytes)
}

/// Answers a hello: the agreed version, or why not.
///
/// # Errors
/// [`WireError::Peer`].
pub async fn answer<S: AsyncWrite + Unpin>(stream: &mut S, answer: Result<u16, &str>) -> Result<(), WireError> {
    let (version, reason) = match answer {
        Ok(version) => (version, ""),
        Err(reason) => (0, reason),
    };
    let reason = &reason.as_bytes()[..reason.len().min(usize::from(REASON_BYTES_MAX))];
    let mut bytes = Vec::with_capacity(4 + reason.len());
    bytes.extend_from_slice(&version.to_le_bytes());
    bytes.extend_from_slice(&(reason.len() as u16).to_le_bytes());
    bytes.extend_from_slice(reason);
    stream.write_all(&bytes).await.map_err(WireError::Peer)?;
    stream.flush().await.map_err(WireError::Peer)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn hellos_survive_the_wire(session: u128, secret: [u8; 32], kind in 0..5u8, index: u16, lane in 0..8u8) {
            let channel = match kind {
                0 => Channel::Control,
                1 => Channel::Rpc,
                2 => Channel::Memory(index),
                3 => Channel::Disk(index),
                _ => Channel::Seed(index),
            };
            let hello = Hello { lane, lanes: 8, ..Hello::new(SessionId(Uuid::from_u128(session)), Secret(secret), channel, Codec::Raw) };
            prop_assert_eq!(Hello::decode(&hello.encode()).expect("legal"), hello);
        }

        #[test]
        fn any_bytes_are_a_hello_or_an_error(bytes in prop::collection::vec(any::<u8>(), HELLO_BYTES)) {
            let mut bytes: [u8; HELLO_BYTES] = bytes.try_into().expect("that many");
            let _ = Hello::decode(&bytes);
            bytes[..8].copy_from_slice(MAGIC);
            let _ = Hello::decode(&bytes);
        }
    }

    #[test]
    fn the_newest_common_version_is_taken() {
        assert_eq!(common_version(VERSION_MIN, VERSION_MAX), Some(VERSION_MAX));
        // A newer program that still speaks ours.
        assert_eq!(common_version(VERSION_MAX, VERSION_MAX + 1), Some(VERSION_MAX));
        assert_eq!(common_version(VERSION_MAX + 1, VERSION_MAX + 2), None);
        assert_eq!(common_version(0, VERSION_MIN - 1), None);
    }
}
