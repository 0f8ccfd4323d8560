//! The handshake that opens a pipe: session, channel, and the abilities of both ends.
//!
//! ```text
//! hello   "FERRYWIR" · version min u16 · version max u16 · session 16 · secret 32
//!         channel kind u8 · zero u8 · channel index u16 · lane u8 · lanes u8 · codecs u8 (a bit for each) · zero u8
//! answer  version u16 (0: refused) · length u16 · reason, or from version 3 on the responder's abilities
//! ```
//! The transport authenticates both ends before any of this is sent; the secret binds the pipe to one session.
//!
//! The first pipe of a session asks only for what every version supports. The answer lists the other end's further
//! abilities, and later pipes ask for no more than those: [`Terms`] are what both ends can do. Any other unknown request
//! is answered with "not supported: …".

use ferry_core::{id::SessionId, pin::Secret};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use uuid::Uuid;

use crate::{WireError, channel::LANES_MAX, codec::Codecs};

/// The newest protocol version that this program speaks. 2: windows of more than 8 MiB. 3: answers state abilities;
/// offline moves have their own channels. 4: what is held of an offline move's file is told as a content index.
pub const VERSION_MAX: u16 = 4;
/// The oldest version that this program speaks.
pub const VERSION_MIN: u16 = 1;
/// Size of a hello in bytes.
pub const HELLO_BYTES: usize = 68;

const MAGIC: &[u8; 8] = b"FERRYWIR";
/// Largest text or abilities of an answer, in bytes.
const ANSWER_BYTES_MAX: u16 = 512;
const ABILITIES_BYTES: usize = 12;
/// The version from which answers state abilities, and offline moves have their own channels.
const VERSION_OF_ABILITIES: u16 = 3;

/// What a connection carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Channel {
    /// Control messages.
    Control,
    /// Management calls; never queued behind bulk data. Before version 3 also [`Channel::Definition`].
    Rpc,
    /// Memory; the number counts connections in the order of opening.
    Memory(u16),
    /// A disk; the number counts connections in the order of opening. Before version 3 also [`Channel::File`].
    Disk(u16),
    /// The content of the destination's file of that disk: an index, sent by the destination.
    Partial(u16),
    /// The definition of a VM that is shut off.
    Definition,
    /// A file of a VM that is shut off ([`crate::file`]), by its index among them.
    File(u16),
}

impl Channel {
    /// Whether it is a stream ([`crate::channel`]), for which terms can be agreed. Any other channel is one pipe, and its
    /// bytes are not coded.
    pub(crate) fn is_stream(self) -> bool {
        match self {
            Self::Memory(_) | Self::Disk(_) => true,
            Self::Control | Self::Rpc | Self::Partial(_) | Self::Definition | Self::File(_) => false,
        }
    }

    /// The channel's name for a peer of this version, or for one whose version is not known yet.
    fn for_version(self, version: u16) -> Self {
        match self {
            Self::Definition if version < VERSION_OF_ABILITIES => Self::Rpc,
            Self::File(index) if version < VERSION_OF_ABILITIES => Self::Disk(index),
            Self::Control
            | Self::Rpc
            | Self::Memory(_)
            | Self::Disk(_)
            | Self::Partial(_)
            | Self::Definition
            | Self::File(_) => self,
        }
    }

    fn to_wire(self) -> (u8, u16) {
        match self {
            Self::Control => (0, 0),
            Self::Rpc => (1, 0),
            Self::Memory(index) => (2, index),
            Self::Disk(index) => (3, index),
            Self::Partial(index) => (4, index),
            Self::Definition => (5, 0),
            Self::File(index) => (6, index),
        }
    }

    fn from_wire(kind: u8, index: u16) -> Option<Self> {
        Some(match (kind, index) {
            (0, 0) => Self::Control,
            (1, 0) => Self::Rpc,
            (2, index) => Self::Memory(index),
            (3, index) => Self::Disk(index),
            (4, index) => Self::Partial(index),
            (5, 0) => Self::Definition,
            (6, index) => Self::File(index),
            _ => return None,
        })
    }
}

/// Abilities of an end beyond those of every version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// Codecs that it decodes: one bit for each number on the wire. Always includes the lowest, which is that of
    /// [`Codec::Raw`](crate::frame::Codec::Raw).
    pub codecs: u32,
    /// Largest number of lanes per channel.
    pub lanes_max: u8,
    /// For future use: an end ignores bits that it does not know.
    pub features: u32,
}

impl Default for Abilities {
    /// The abilities of every version.
    fn default() -> Self {
        Self { codecs: Codecs::NONE.to_abilities(), lanes_max: 1, features: 0 }
    }
}

impl Abilities {
    /// The abilities of this program.
    pub fn ours() -> Self {
        Self { codecs: Codecs::all().to_abilities(), lanes_max: LANES_MAX, features: 0 }
    }

    fn encode(self) -> [u8; ABILITIES_BYTES] {
        let mut bytes = [0; ABILITIES_BYTES];
        bytes[..4].copy_from_slice(&self.codecs.to_le_bytes());
        bytes[4] = self.lanes_max;
        bytes[8..].copy_from_slice(&self.features.to_le_bytes());
        bytes
    }

    /// Decodes the output of [`Self::encode`]; a newer version may append more.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (bytes, _) = bytes.split_first_chunk::<ABILITIES_BYTES>()?;
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Some(Self { codecs: u32_at(0) | Self::default().codecs, lanes_max: bytes[4].max(1), features: u32_at(8) })
    }
}

/// How the bytes of a stream travel. By default they are not coded, on one lane, as in every version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The codecs that its frames may use, in both directions: each frame states its own, and any may be sent as it is. Both
    /// ends choose for what they send.
    pub codecs: Codecs,
    /// Its number of lanes, at least 1.
    pub lanes: u8,
}

impl Default for Terms {
    fn default() -> Self {
        Self { codecs: Codecs::NONE, lanes: 1 }
    }
}

impl Terms {
    /// What remains of them for a channel to a peer with these abilities.
    pub(crate) fn within(self, channel: Channel, peer: Abilities) -> Self {
        if !channel.is_stream() {
            return Self::default();
        }
        let codecs = self.codecs.common(Codecs::from_abilities(peer.codecs));
        Self { codecs, lanes: self.lanes.clamp(1, peer.lanes_max.min(LANES_MAX)) }
    }
}

/// What two ends agreed on when opening a pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// The protocol version.
    pub version: u16,
    /// How the channel's bytes travel.
    pub terms: Terms,
    /// The other end's abilities.
    pub peer: Abilities,
}

/// The first bytes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Oldest protocol version that the dialer speaks.
    pub version_min: u16,
    /// Newest protocol version that the dialer speaks.
    pub version_max: u16,
    /// The session: one migration attempt.
    pub session: SessionId,
    /// Shared secret of the session's two agents.
    pub secret: Secret,
    /// What the connection carries.
    pub channel: Channel,
    /// This connection's lane of the channel, from 0.
    pub lane: u8,
    /// How the channel's bytes travel.
    pub terms: Terms,
}

/// Why a hello cannot be served.
#[derive(Debug)]
pub enum HelloError {
    /// The bytes are not a hello.
    NotOne(WireError),
    /// A valid hello that asks for something unknown: from a newer program, which gets an answer.
    NotSupported {
        /// Its session.
        session: SessionId,
        /// Its secret.
        secret: Secret,
        /// What is not supported.
        what: String,
    },
}

impl Hello {
    /// A hello for the only lane of a channel, to a peer known to speak `version`; 0 if its version is unknown.
    pub fn new(session: SessionId, secret: Secret, channel: Channel, version: u16) -> Self {
        let (version_min, version_max, channel) = (VERSION_MIN, VERSION_MAX, channel.for_version(version));
        Self { version_min, version_max, session, secret, channel, lane: 0, terms: Terms::default() }
    }

    /// Encodes the hello for the wire.
    pub fn encode(&self) -> [u8; HELLO_BYTES] {
        let (kind, index) = self.channel.to_wire();
        let mut bytes = [0; HELLO_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..10].copy_from_slice(&self.version_min.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.version_max.to_le_bytes());
        bytes[12..28].copy_from_slice(self.session.0.as_bytes());
        bytes[28..60].copy_from_slice(&self.secret.0);
        bytes[60] = kind;
        bytes[62..64].copy_from_slice(&index.to_le_bytes());
        bytes[64] = self.lane;
        bytes[65] = self.terms.lanes;
        bytes[66] = self.terms.codecs.to_byte();
        bytes
    }

    /// Decodes a hello.
    ///
    /// # Errors
    /// See [`HelloError`].
    pub fn decode(bytes: &[u8; HELLO_BYTES]) -> Result<Self, HelloError> {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let not_one = |what: &str| HelloError::NotOne(WireError::Protocol(format!("hello with {what}")));
        let session = SessionId(Uuid::from_slice(&bytes[12..28]).expect("sixteen bytes"));
        let secret = Secret(bytes[28..60].try_into().expect("thirty-two bytes"));
        let unsupported = |what: String| HelloError::NotSupported { session, secret, what };
        let ([kind, _], index, [lane, lanes, codecs]) =
            ([bytes[60], bytes[61]], u16_at(62), [bytes[64], bytes[65], bytes[66]]);
        if &bytes[..8] != MAGIC {
            return Err(not_one("a wrong magic"));
        }
        if lane >= lanes {
            return Err(not_one("a lane out of bounds"));
        }
        if bytes[61] != 0 || bytes[67] != 0 {
            return Err(unsupported("what its reserved bits ask for".to_owned()));
        }
        if lanes > Abilities::ours().lanes_max {
            return Err(unsupported(format!("{lanes} lanes")));
        }
        let channel =
            Channel::from_wire(kind, index).ok_or_else(|| unsupported(format!("a channel of kind {kind}, {index}")))?;
        let codecs = Codecs::from_byte(codecs).ok_or_else(|| unsupported(format!("codecs {codecs:#b}")))?;
        let terms = Terms { codecs, lanes };
        if !channel.is_stream() && terms != Terms::default() {
            return Err(unsupported(format!("a channel {channel:?} with codecs or several lanes")));
        }
        let (version_min, version_max) = (u16_at(8), u16_at(10));
        Ok(Self { version_min, version_max, session, secret, channel, lane, terms })
    }
}

/// The newest version that both ends speak.
pub fn common_version(min: u16, max: u16) -> Option<u16> {
    let version = max.min(VERSION_MAX);
    (version >= min.max(VERSION_MIN)).then_some(version)
}

/// Sends a hello and waits for the answer. Returns what was agreed.
///
/// # Errors
/// [`WireError::Refused`] with the peer's reason; [`WireError::Peer`].
pub async fn introduce<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, hello: &Hello) -> Result<Agreed, WireError> {
    stream.write_all(&hello.encode()).await.map_err(WireError::Peer)?;
    stream.flush().await.map_err(WireError::Peer)?;
    let version = stream.read_u16_le().await.map_err(WireError::Peer)?;
    let length = stream.read_u16_le().await.map_err(WireError::Peer)?;
    let bad = |what: String| Err(WireError::Protocol(format!("an answer with {what}")));
    if length > ANSWER_BYTES_MAX {
        return bad("a length out of bounds".to_owned());
    }
    let mut body = vec![0; usize::from(length)];
    stream.read_exact(&mut body).await.map_err(WireError::Peer)?;
    if version == 0 {
        return Err(WireError::Refused(String::from_utf8_lossy(&body).into_owned()));
    }
    if !(hello.version_min..=hello.version_max).contains(&version) {
        return bad(format!("version {version}, which was not offered"));
    }
    let theirs = if version >= VERSION_OF_ABILITIES { Abilities::decode(&body) } else { Some(Abilities::default()) };
    match theirs {
        Some(peer) => Ok(Agreed { version, terms: hello.terms, peer }),
        None => bad("no abilities".to_owned()),
    }
}

/// Reads a hello.
///
/// # Errors
/// As [`Hello::decode`]; [`WireError::Peer`].
pub async fn listen<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Hello, HelloError> {
    let mut bytes = [0; HELLO_BYTES];
    stream.read_exact(&mut bytes).await.map_err(|error| HelloError::NotOne(WireError::Peer(error)))?;
    Hello::decode(&bytes)
}

/// Answers a hello: the agreed version with our abilities, or the reason for refusing.
///
/// # Errors
/// [`WireError::Peer`].
pub async fn answer<S: AsyncWrite + Unpin>(stream: &mut S, answer: Result<u16, &str>) -> Result<(), WireError> {
    let abilities = Abilities::ours().encode();
    let (version, body) = match answer {
        Ok(version) if version >= VERSION_OF_ABILITIES => (version, &abilities[..]),
        Ok(version) => (version, &[][..]),
        Err(reason) => (0, reason.as_bytes()),
    };
    let body = &body[..body.len().min(usize::from(ANSWER_BYTES_MAX))];
    let mut bytes = Vec::with_capacity(4 + body.len());
    bytes.extend_from_slice(&version.to_le_bytes());
    bytes.extend_from_slice(&(body.len() as u16).to_le_bytes());
    bytes.extend_from_slice(body);
    stream.write_all(&bytes).await.map_err(WireError::Peer)?;
    stream.flush().await.map_err(WireError::Peer)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::duplex;

    use super::*;

    const SECRET: Secret = Secret([7; 32]);

    fn hello(channel: Channel, version: u16) -> Hello {
        Hello::new(SessionId(Uuid::nil()), SECRET, channel, version)
    }

    proptest! {
        #[test]
        fn hellos_survive_the_wire(session: u128, secret: [u8; 32], kind in 0..7u8, index: u16) {
            let index = if matches!(kind, 0 | 1 | 5) { 0 } else { index };
            let channel = Channel::from_wire(kind, index).expect("known");
            let hello = Hello::new(SessionId(Uuid::from_u128(session)), Secret(secret), channel, VERSION_MAX);
            prop_assert_eq!(Hello::decode(&hello.encode()).expect("legal"), hello);
        }

        #[test]
        fn any_bytes_are_a_hello_or_an_error(bytes in prop::collection::vec(any::<u8>(), HELLO_BYTES)) {
            let mut bytes: [u8; HELLO_BYTES] = bytes.try_into().expect("that many");
            let _ = Hello::decode(&bytes);
            bytes[..8].copy_from_slice(MAGIC);
            let _ = Hello::decode(&bytes);
        }

        #[test]
        fn abilities_survive_the_wire_and_more_may_be_said(codecs: u32, lanes_max in 1..=u8::MAX, features: u32) {
            let abilities = Abilities { codecs: codecs | 1, lanes_max, features };
            let bytes = [&abilities.encode()[..], &[1, 2, 3]].concat();
            prop_assert_eq!(Abilities::decode(&bytes), Some(abilities));
            prop_assert_eq!(Abilities::decode(&bytes[..ABILITIES_BYTES - 1]), None);
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

    #[test]
    fn what_a_newer_program_asks_for_can_be_answered() {
        let good = hello(Channel::Memory(1), 3).encode();
        for (at, byte, what) in [
            (60, 9, "a channel of kind 9, 1"),
            (61, 1, "reserved"),
            (65, 9, "9 lanes"),
            (66, 0b1001, "codecs 0b1001"),
            (67, 1, "reserved"),
        ] {
            let mut bytes = good;
            bytes[at] = byte;
            match Hello::decode(&bytes) {
                Err(HelloError::NotSupported { secret, what: named, .. }) => {
                    assert!(secret == SECRET && named.contains(what), "{named}");
                }
                other => panic!("{what}: {other:?}"),
            }
        }
    }

    #[test]
    fn terms_are_what_both_ends_can_do_and_are_for_streams_only() {
        let terms = Terms { codecs: Codecs::all(), lanes: 4 };
        let zstd = Codecs::from_abilities(0b101);
        for (channel, peer, expected) in [
            (Channel::Disk(1), Abilities::ours(), terms),
            (Channel::Memory(0), Abilities { lanes_max: 2, ..Abilities::ours() }, Terms { lanes: 2, ..terms }),
            (Channel::Memory(0), Abilities { codecs: 1, ..Abilities::ours() }, Terms { codecs: Codecs::NONE, ..terms }),
            // One of ours, and one that this program does not know.
            (
                Channel::Memory(0),
                Abilities { codecs: 0x8000_0005, ..Abilities::ours() },
                Terms { codecs: zstd, ..terms },
            ),
            (Channel::Memory(0), Abilities::default(), Terms::default()),
            (Channel::Rpc, Abilities::ours(), Terms::default()),
        ] {
            assert_eq!(terms.within(channel, peer), expected, "{channel:?} {peer:?}");
        }
        let asked = |channel| Hello { lane: 3, terms, ..hello(channel, VERSION_MAX) };
        let heard = Hello::decode(&asked(Channel::Memory(2)).encode()).expect("it is supported");
        assert_eq!(heard, asked(Channel::Memory(2)));
        let refused = Hello::decode(&asked(Channel::Control).encode());
        assert!(
            matches!(&refused, Err(HelloError::NotSupported { what, .. }) if what.contains("Control")),
            "{refused:?}"
        );
    }

    #[test]
    fn a_peer_of_an_earlier_version_hears_its_own_words() {
        for (version, definition, file) in [(0, 1, 3), (2, 1, 3), (3, 5, 6)] {
            let kind = |channel| hello(channel, version).encode()[60];
            assert_eq!((kind(Channel::Definition), kind(Channel::File(2))), (definition, file), "{version}");
        }
    }

    #[tokio::test]
    async fn two_ends_of_neighbouring_versions_agree_on_the_older() {
        for (spoken, answered, abilities) in
            [(2, 2, 0), (3, 3, ABILITIES_BYTES), (4, 4, ABILITIES_BYTES), (5, 4, ABILITIES_BYTES)]
        {
            let (mut one, mut other) = duplex(1 << 10);
            let dialed = Hello { version_max: spoken, ..hello(Channel::Control, 0) };
            let answering = async {
                let heard = listen(&mut other).await.expect("a hello");
                let version = common_version(heard.version_min, heard.version_max).expect("one in common");
                answer(&mut other, Ok(version)).await.expect("answered");
                version
            };
            let (agreed, version) = tokio::join!(introduce(&mut one, &dialed), answering);
            let peer = if abilities == 0 { Abilities::default() } else { Abilities::ours() };
            assert_eq!(agreed.expect("agreed"), Agreed { version, terms: Terms::default(), peer });
            assert_eq!(version, answered);
            // An earlier version would misread anything after its answer as a frame.
            answer(&mut other, Ok(version)).await.expect("answered");
            drop(other);
            let mut raw = Vec::new();
            one.read_to_end(&mut raw).await.expect("whole");
            assert_eq!(raw.len(), 4 + abilities);
        }
    }
}
