//! The wire format between an NBD client and server, and the carriers' extension of it.
//!
//! Numbers are big-endian. Source: the NBD project's `doc/proto.md`.
//!
//! Between the carriers a client's WRITE may be sent as *parts*: a request in the usual format with the command
//! [`PARTS`] and the WRITE's own offset and length, then parts until the length is reached:
//! ```text
//! kind u8 · length u32 · body       1 zeroes: no body · 2 data: the bytes · 3 held block: its hash, 16 bytes
//! ```
//! The source does so only if the destination announced its support: by [`TAKES_PARTS`] and [`HOLDS_PARTIAL`] among the
//! export's flags, where NBD has unused bits. Neither QEMU process ever sees any of this.

use super::error::NbdError;

/// `NBDMAGIC`, the first word of a server.
pub(super) const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`, the second word of a server of the new style, and the first of each option.
pub(super) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// The first word of each reply to an option.
pub(super) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;

/// Flags of the server's greeting and of the client's answer.
pub(super) const FIXED_NEW_STYLE: u16 = 1;
pub(super) const NO_PADDING: u16 = 1 << 1;

pub(super) const OPTION_EXPORT_NAME: u32 = 1;
pub(super) const OPTION_STARTTLS: u32 = 5;
pub(super) const OPTION_INFO: u32 = 6;
pub(super) const OPTION_GO: u32 = 7;
pub(super) const OPTION_STRUCTURED_REPLY: u32 = 8;
pub(super) const OPTION_EXTENDED_HEADERS: u32 = 11;

pub(super) const REPLY_ACK: u32 = 1;
pub(super) const REPLY_INFO: u32 = 3;
pub(super) const REPLY_IS_ERROR: u32 = 1 << 31;
pub(super) const INFO_EXPORT: u16 = 0;
pub(super) const INFO_BLOCK_SIZE: u16 = 3;

/// Flags of an export.
pub(super) const READ_ONLY: u16 = 1 << 1;
pub(super) const SEND_WRITE_ZEROES: u16 = 1 << 6;
pub(super) const CAN_MULTI_CONN: u16 = 1 << 8;
/// The destination understands [`PARTS`].
pub(super) const TAKES_PARTS: u16 = 1 << 15;
/// The destination's image is a seed: held blocks may be among the parts.
pub(super) const HOLDS_PARTIAL: u16 = 1 << 14;

pub(super) const READ: u16 = 0;
pub(super) const WRITE: u16 = 1;
pub(super) const DISCONNECT: u16 = 2;
pub(super) const TRIM: u16 = 4;
pub(super) const WRITE_ZEROES: u16 = 6;
/// A WRITE in parts; used between carriers only.
pub(super) const PARTS: u16 = 0xf001;

/// Flags of a request.
pub(super) const FUA: u16 = 1;
pub(super) const NO_HOLE: u16 = 1 << 1;

/// I/O error, in NBD's numbering.
pub(super) const EIO: u32 = 5;

pub(super) const REQUEST_BYTES: usize = 28;
pub(super) const REPLY_BYTES: usize = 16;
/// The kind and length of a part.
pub(super) const PART_HEAD_BYTES: usize = 5;

/// Longest payload of a WRITE: the limit that NBD recommends to servers, and QEMU's own.
pub(super) const PAYLOAD_BYTES_MAX: u32 = 32 << 20;
/// The largest possible file, and so the largest disk of QEMU.
const DISK_BYTES_MAX: u64 = i64::MAX as u64;
/// Limit of client requests that await a reply. QEMU has at most 16, nbdcopy 64.
pub(super) const REQUESTS_MAX: usize = 1024;

/// The head of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) flags: u16,
    pub(super) command: u16,
    /// Returned in the reply.
    pub(super) cookie: u64,
    pub(super) offset: u64,
    pub(super) length: u32,
}

impl Request {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&REQUEST_MAGIC.to_be_bytes());
        out.extend_from_slice(&self.flags.to_be_bytes());
        out.extend_from_slice(&self.command.to_be_bytes());
        out.extend_from_slice(&self.cookie.to_be_bytes());
        out.extend_from_slice(&self.offset.to_be_bytes());
        out.extend_from_slice(&self.length.to_be_bytes());
    }

    /// Decodes the head of a request.
    ///
    /// # Errors
    /// If the magic number is wrong, the payload too long, or the end beyond that of any disk.
    pub(super) fn decode(head: &[u8; REQUEST_BYTES]) -> Result<Self, NbdError> {
        if u32_at(head, 0) != REQUEST_MAGIC {
            return Err(NbdError::Unexpected("a simple NBD request"));
        }
        let request = Self {
            flags: u16_at(head, 4),
            command: u16_at(head, 6),
            cookie: u64_at(head, 8),
            offset: u64_at(head, 16),
            length: u32_at(head, 24),
        };
        let end = request.offset.checked_add(u64::from(request.length));
        if end.is_none_or(|end| end > DISK_BYTES_MAX) {
            return Err(NbdError::OutOfBounds { offset: request.offset, length: request.length });
        }
        if matches!(request.command, WRITE | PARTS) && request.length > PAYLOAD_BYTES_MAX {
            return Err(NbdError::TooLong(request.length));
        }
        Ok(request)
    }

    pub(super) fn end(&self) -> u64 {
        self.offset + u64::from(self.length)
    }
}

/// The head of a simple reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    /// 0 for success.
    pub(super) error: u32,
    pub(super) cookie: u64,
}

impl Reply {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&REPLY_MAGIC.to_be_bytes());
        out.extend_from_slice(&self.error.to_be_bytes());
        out.extend_from_slice(&self.cookie.to_be_bytes());
    }

    /// Decodes the head of a reply.
    ///
    /// # Errors
    /// If the magic number is wrong.
    pub(super) fn decode(head: &[u8; REPLY_BYTES]) -> Result<Self, NbdError> {
        if u32_at(head, 0) != REPLY_MAGIC {
            return Err(NbdError::Unexpected("a simple NBD reply"));
        }
        Ok(Self { error: u32_at(head, 4), cookie: u64_at(head, 8) })
    }
}

/// How a part states its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PartKind {
    /// All bytes are zero.
    Zeroes,
    /// The bytes follow.
    Data,
    /// The destination's image has them at the same offset; their hash follows.
    Reference,
}

impl PartKind {
    pub(super) fn put_head(self, length: u32, out: &mut Vec<u8>) {
        out.push(match self {
            Self::Zeroes => 1,
            Self::Data => 2,
            Self::Reference => 3,
        });
        out.extend_from_slice(&length.to_be_bytes());
    }

    /// Decodes the head of a part: kind and length.
    ///
    /// # Errors
    /// If the kind is unknown or the length is 0.
    pub(super) fn decode_head(head: &[u8; PART_HEAD_BYTES]) -> Result<(Self, u32), NbdError> {
        let length = u32_at(head, 1);
        let kind = match head[0] {
            1 => Self::Zeroes,
            2 => Self::Data,
            3 => Self::Reference,
            kind => return Err(NbdError::UnknownPart(kind)),
        };
        if length == 0 {
            return Err(NbdError::Parts("an empty part"));
        }
        Ok((kind, length))
    }
}

/// Moves bytes from `bytes` to `have` until it holds `need`; returns whether it does.
pub(super) fn gather(have: &mut Vec<u8>, need: usize, bytes: &mut &[u8]) -> bool {
    let take = need.saturating_sub(have.len()).min(bytes.len());
    let (taken, rest) = bytes.split_at(take);
    have.extend_from_slice(taken);
    *bytes = rest;
    have.len() >= need
}

/// Moves up to `left` bytes from `bytes` to `out`, and decrements `left`.
pub(super) fn pass_on(left: &mut u64, bytes: &mut &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(take(left, bytes));
}

/// Takes up to `left` bytes from the front of `bytes`, and decrements `left`.
pub(super) fn take<'a>(left: &mut u64, bytes: &mut &'a [u8]) -> &'a [u8] {
    let count = (bytes.len() as u64).min(*left);
    let (taken, rest) = bytes.split_at(count as usize);
    *bytes = rest;
    *left -= count;
    taken
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_replies_stand_as_nbd_says() {
        let request = Request { flags: FUA, command: WRITE, cookie: 0x0102_0304_0506_0708, offset: 9, length: 10 };
        let mut bytes = Vec::new();
        request.put(&mut bytes);
        let expected =
            [0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 10];
        assert_eq!(bytes, expected);
        assert_eq!(Request::decode(&expected), Ok(request));
        let reply = Reply { error: EIO, cookie: 7 };
        bytes.clear();
        reply.put(&mut bytes);
        assert_eq!(bytes, [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 7]);
        assert_eq!(Reply::decode(bytes.as_slice().try_into().expect("16 bytes")), Ok(reply));
    }

    #[test]
    fn a_range_beyond_all_disks_and_a_payload_too_long_are_refused() {
        for (command, offset, length) in
            [(READ, u64::MAX, 1), (READ, i64::MAX as u64, 1), (WRITE, 0, PAYLOAD_BYTES_MAX + 1)]
        {
            let mut bytes = Vec::new();
            Request { flags: 0, command, cookie: 0, offset, length }.put(&mut bytes);
            assert!(Request::decode(bytes.as_slice().try_into().expect("28 bytes")).is_err());
        }
    }
}
