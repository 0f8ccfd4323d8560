//! Framing of libvirt's RPC stream: a 32-bit length that includes itself, a 24-byte header, a body.
//!
//! Numbers are those of `virnetprotocol.x`, `remote_protocol.x` and `virkeepaliveprotocol.x` in libvirt 11.3; libvirt
//! never changes them, because old clients talk to new daemons.

use thiserror::Error;

use super::xdr::Writer;

/// Program of the hypervisor calls.
pub const REMOTE_PROGRAM: u32 = 0x2000_8086;
/// Program of the keepalive messages.
pub const KEEPALIVE_PROGRAM: u32 = 0x6b65_6570;
/// Version of both programs.
pub const PROGRAM_VERSION: u32 = 1;

/// Length word and header.
pub const PREFIX_BYTES: usize = 28;
/// Limit of a message's length. libvirt allows 32 MiB; the calls of a migration carry one definition and one cookie,
/// which libvirt itself limits to 4 MiB each and which are a few KiB in practice.
pub const MESSAGE_BYTES_MAX: usize = 8 << 20;

/// `CONNECT_OPEN`
pub const OPEN: u32 = 1;
/// `CONNECT_CLOSE`
pub const CLOSE: u32 = 2;
/// `CONNECT_SUPPORTS_FEATURE`
pub const SUPPORTS_FEATURE: u32 = 60;
/// `AUTH_LIST`
pub const AUTH_LIST: u32 = 66;
/// `DOMAIN_MIGRATE_PREPARE3_PARAMS`
pub const PREPARE: u32 = 303;
/// `DOMAIN_MIGRATE_FINISH3_PARAMS`
pub const FINISH: u32 = 306;
/// `CONNECT_REGISTER_CLOSE_CALLBACK`
pub const REGISTER_CLOSE_CALLBACK: u32 = 360;
/// `CONNECT_UNREGISTER_CLOSE_CALLBACK`
pub const UNREGISTER_CLOSE_CALLBACK: u32 = 361;

/// The kind of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Client to server: a request.
    Call,
    /// Server to client: the outcome of a call.
    Reply,
    /// Either way: an event or a keepalive.
    Message,
    /// Stream data, calls and replies with file descriptors, stream holes: no plain move uses them.
    Other(u32),
}

impl Kind {
    fn number(self) -> u32 {
        match self {
            Self::Call => 0,
            Self::Reply => 1,
            Self::Message => 2,
            Self::Other(number) => number,
        }
    }

    fn from_number(number: u32) -> Self {
        match number {
            0 => Self::Call,
            1 => Self::Reply,
            2 => Self::Message,
            number => Self::Other(number),
        }
    }
}

/// Status of a message without error.
pub const STATUS_OK: u32 = 0;
/// Status of a reply whose body is an error.
pub const STATUS_ERROR: u32 = 1;

/// The 24 bytes before a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// [`REMOTE_PROGRAM`], [`KEEPALIVE_PROGRAM`], or another one.
    pub program: u32,
    /// Version of the program.
    pub version: u32,
    /// Procedure's number.
    pub procedure: u32,
    /// The kind of the message.
    pub kind: Kind,
    /// A reply has the serial of its call.
    pub serial: u32,
    /// [`STATUS_OK`], [`STATUS_ERROR`], or 2: a stream continues.
    pub status: u32,
}

impl Header {
    /// Header of a call.
    pub fn call(procedure: u32, serial: u32) -> Self {
        Self {
            program: REMOTE_PROGRAM,
            version: PROGRAM_VERSION,
            procedure,
            kind: Kind::Call,
            serial,
            status: STATUS_OK,
        }
    }

    /// Header of the reply to the call that has this header.
    #[must_use]
    pub fn reply(self, status: u32) -> Self {
        Self { kind: Kind::Reply, status, ..self }
    }

    /// Reads a header.
    pub fn parse(bytes: &[u8; 24]) -> Self {
        let word =
            |index: usize| u32::from_be_bytes(bytes[index * 4..index * 4 + 4].try_into().expect("four of 24 bytes"));
        Self {
            program: word(0),
            version: word(1),
            procedure: word(2),
            kind: Kind::from_number(word(3)),
            serial: word(4),
            status: word(5),
        }
    }

    /// The whole message with this header and `body`.
    pub fn message(self, body: &[u8]) -> Vec<u8> {
        Writer::new()
            .u32((PREFIX_BYTES + body.len()) as u32)
            .u32(self.program)
            .u32(self.version)
            .u32(self.procedure)
            .u32(self.kind.number())
            .u32(self.serial)
            .u32(self.status)
            .raw(body)
            .finish()
    }

    /// The reply, as libvirt's own error, that reports the refusal of the call with this header.
    pub fn refusal_reply(self, message: &str) -> Vec<u8> {
        const VIR_ERR_OPERATION_DENIED: i32 = 29;
        const VIR_FROM_RPC: i32 = 7;
        const VIR_ERR_ERROR: i32 = 2;
        let body = Writer::new()
            .i32(VIR_ERR_OPERATION_DENIED)
            .i32(VIR_FROM_RPC)
            .optional_text(Some(message))
            .i32(VIR_ERR_ERROR)
            .u32(0) // no domain
            .optional_text(Some(message))
            .optional_text(None)
            .optional_text(None)
            .i32(0)
            .i32(0)
            .u32(0) // no network
            .finish();
        self.reply(STATUS_ERROR).message(&body)
    }
}

/// A length that no valid message has.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("A libvirt message claims {bytes} bytes, outside {PREFIX_BYTES} to {MESSAGE_BYTES_MAX}")]
pub struct LengthError {
    /// The length found.
    pub bytes: u32,
}

/// Splits a byte stream into messages. Buffers at most one incomplete message, that is, at most [`MESSAGE_BYTES_MAX`]
/// bytes besides the input of one call.
#[derive(Debug, Default)]
pub struct Splitter {
    pending: Vec<u8>,
}

/// One whole message.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Its header.
    pub header: Header,
    /// The bytes after the header.
    pub body: &'a [u8],
    /// The whole message, as it was in the stream.
    pub bytes: &'a [u8],
}

impl Splitter {
    /// Adds `bytes` and passes each complete message to `each`, in order, until one fails.
    ///
    /// # Errors
    /// A length out of bounds: the stream cannot be parsed after that. Or the error of `each`: its message is consumed,
    /// and the messages behind it wait for the next push.
    pub fn push<E: From<LengthError>>(
        &mut self,
        bytes: &[u8],
        mut each: impl FnMut(Message<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.pending.extend_from_slice(bytes);
        let mut start = 0;
        while let Some(length) = message_length(&self.pending[start..])? {
            let Some(bytes) = self.pending.get(start..start + length) else { break };
            let header: &[u8; 24] = bytes[4..PREFIX_BYTES].try_into().expect("the length is at least the prefix");
            let done = each(Message { header: Header::parse(header), body: &bytes[PREFIX_BYTES..], bytes });
            start += length;
            if done.is_err() {
                self.pending.drain(..start);
                return done;
            }
        }
        self.pending.drain(..start);
        Ok(())
    }
}

/// Length of the message at the front of `bytes`, if its length word is complete.
fn message_length(bytes: &[u8]) -> Result<Option<usize>, LengthError> {
    let Some(word) = bytes.first_chunk::<4>() else { return Ok(None) };
    let claimed = u32::from_be_bytes(*word);
    if (PREFIX_BYTES..=MESSAGE_BYTES_MAX).contains(&(claimed as usize)) {
        Ok(Some(claimed as usize))
    } else {
        Err(LengthError { bytes: claimed })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn messages_are_found_whole_however_the_stream_is_cut(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..8),
            cuts in prop::collection::vec(1..40usize, 1..200),
        ) {
            let stream: Vec<u8> = bodies
                .iter()
                .zip(1..)
                .flat_map(|(body, serial)| Header::call(OPEN, serial).message(body))
                .collect();
            let mut splitter = Splitter::default();
            let mut found = Vec::new();
            let mut rest = &stream[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                rest = later;
                splitter
                    .push::<LengthError>(now, |message| {
                        found.push(message.body.to_vec());
                        Ok(())
                    })
                    .expect("well formed");
            }
            prop_assert!(splitter.pending.is_empty(), "the stream stands between two messages");
            prop_assert_eq!(found, bodies);
        }
    }

    #[test]
    fn a_length_out_of_bounds_is_refused_before_anything_is_kept() {
        for bytes in [0u32, 27, MESSAGE_BYTES_MAX as u32 + 1, u32::MAX] {
            let result = Splitter::default().push::<LengthError>(&bytes.to_be_bytes(), |_| Ok(()));
            assert_eq!(result, Err(LengthError { bytes }));
        }
    }
}
