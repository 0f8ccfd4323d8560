//! The destination's end: passes requests to the server and its replies back. Mirror of `source.rs`.
//!
//! Each client request becomes a *group* of requests to the server, which have their own cookies. A group ends when the
//! source has sent all of it and the server has answered all of its requests.
//!
//! Data, and short zeroes after them that must reach the server anyway, are joined into one request; otherwise
//! alternating pages of both would each become one.

use std::{collections::HashMap, sync::Arc, sync::atomic::Ordering::Relaxed};

use super::{
    end::End,
    error::NbdError,
    handshake::{Handshake, Role},
    image::{ImageCatalog, ImageContent},
    meter::NbdMeter,
    protocol::{
        DISCONNECT, EIO, FUA, NO_HOLE, PART_HEAD_BYTES, PARTS, PartKind, READ, REPLY_BYTES, REQUEST_BYTES,
        REQUESTS_MAX, Reply, Request, TRIM, WRITE, WRITE_ZEROES, gather, pass_on, take,
    },
    written::Written,
};
use crate::content::{
    index::{BLOCK_BYTES, BlockHash, HASH_BYTES, Hashing, cut},
    sparse::PAGE_BYTES,
};

pub(super) struct Destination {
    handshake: Handshake,
    meter: Arc<NbdMeter>,
    /// The first request has arrived, so what is known of the image is final.
    has_begun: bool,
    /// How the source hashes the blocks that the image holds.
    hashing: Option<Hashing>,
    /// The ranges written so far, of an image that reads as zeroes elsewhere.
    written: Option<Written>,
    requests: RequestsAt,
    request_held: Vec<u8>,
    joined: Joined,
    replies: RepliesAt,
    reply_held: Vec<u8>,
    groups: HashMap<u64, Group>,
    /// Requests to the server by cookie.
    asked: HashMap<u64, Pending>,
    /// The next number for a group or a cookie.
    next: u64,
}

/// A request of the client.
struct Group {
    cookie: u64,
    /// Requests to the server that await a reply.
    asked: u32,
    /// The source may send more of it.
    is_open: bool,
    /// The first error, or 0.
    error: u32,
}

struct Pending {
    group: u64,
    of: ReplyUse,
}

/// What to do with the payload of a successful reply.
#[derive(Clone, Copy)]
enum ReplyUse {
    /// There is no payload.
    Nothing,
    /// Pass this many bytes to the client.
    Data(u32),
    /// Discard this many bytes: only the result matters.
    Reply(u32),
    /// Compare the block at this offset with this hash.
    Block { offset: u64, expected: BlockHash },
}

/// Consecutive parts of a WRITE joined into one request. The first part is data.
#[derive(Default)]
struct Joined {
    start: u64,
    bytes: Vec<u8>,
    /// How many of these bytes arrived as zeroes.
    zeroes: u64,
}

enum RequestsAt {
    Head,
    Payload {
        left: u64,
        write: Option<Write>,
    },
    /// The data of a part that is being joined.
    Data {
        left: u64,
        write: Write,
    },
    PartHead(Write),
    Hash(Write),
    Ended,
}

enum RepliesAt {
    Head,
    Data { left: u64 },
    Dropped { left: u64, group: u64 },
    Block { left: u64, group: u64, hasher: Box<blake3::Hasher>, offset: u64, expected: BlockHash },
}

/// A WRITE that arrives in parts.
#[derive(Clone, Copy)]
struct Write {
    group: u64,
    flags: u16,
    /// The offset of the next part.
    at: u64,
    end: u64,
}

/// Limit of requests to the server without a reply: as many parts as sixteen of QEMU's longest requests can have.
const ASKED_MAX: usize = 1 << 17;
/// Shorter zeroes are joined to the data before them: a separate request would cost more.
const JOINED_ZEROES_MAX: u64 = 64 << 10;
/// Longest joined request: the size that QEMU's mirror writes at once.
const JOINED_BYTES_MAX: u64 = 1 << 20;

impl Destination {
    pub(super) fn new(catalog: Box<dyn ImageCatalog>, meter: Arc<NbdMeter>) -> Self {
        Self {
            handshake: Handshake::new(Role::Destination(catalog)),
            meter,
            has_begun: false,
            hashing: None,
            written: None,
            requests: RequestsAt::Head,
            request_held: Vec::new(),
            joined: Joined::default(),
            replies: RepliesAt::Head,
            reply_held: Vec::new(),
            groups: HashMap::new(),
            asked: HashMap::new(),
            next: 0,
        }
    }

    /// The handshake is over.
    fn begin(&mut self) {
        self.has_begun = true;
        let content = self.handshake.take_content();
        // A server without single-page access would reject the remainders of a request, and the one-page READ that
        // replaces a request.
        if !self.handshake.is_fine_grained() {
            return;
        }
        match content {
            ImageContent::Unknown => {}
            ImageContent::Zeroes => self.written = Some(Written::default()),
            ImageContent::Partial { key, data } => {
                self.hashing = Some(Hashing::new(key));
                self.written = data.map(|data| {
                    let mut written = Written::default();
                    data.iter().for_each(|(start, end)| written.mark(*start, *end));
                    written
                });
            }
        }
    }

    fn request(&mut self, out: &mut Vec<u8>) -> Result<RequestsAt, NbdError> {
        let head = self.request_held.as_slice().try_into().expect("the head is whole");
        let mut request = Request::decode(head)?;
        self.request_held.clear();
        if request.command == WRITE_ZEROES {
            request.flags &= !NO_HOLE;
        }
        if request.command == DISCONNECT {
            request.put(out);
            return Ok(RequestsAt::Ended);
        }
        if self.groups.len() >= REQUESTS_MAX {
            return Err(NbdError::TooManyRequests(REQUESTS_MAX));
        }
        let group = self.number();
        self.groups.insert(group, Group { cookie: request.cookie, asked: 0, is_open: true, error: 0 });
        let (start, end) = (request.offset, request.end());
        match request.command {
            PARTS if request.length == 0 => return Err(NbdError::Parts("a WRITE without parts")),
            PARTS => return Ok(RequestsAt::PartHead(Write { group, flags: request.flags, at: start, end })),
            WRITE => {
                self.mark(start, end);
                self.ask(group, request, ReplyUse::Nothing, out)?;
            }
            WRITE_ZEROES | TRIM if request.length > 0 => self.zero(group, request, out)?,
            READ => self.ask(group, request, ReplyUse::Data(request.length), out)?,
            _ => self.ask(group, request, ReplyUse::Nothing, out)?,
        }
        self.close(group, start, out)?;
        let left = if request.command == WRITE { u64::from(request.length) } else { 0 };
        Ok(if left > 0 { RequestsAt::Payload { left, write: None } } else { RequestsAt::Head })
    }

    fn part(&mut self, mut write: Write, out: &mut Vec<u8>) -> Result<RequestsAt, NbdError> {
        let head = self.request_held.as_slice().try_into().expect("the head is whole");
        let (kind, length) = PartKind::decode_head(head)?;
        self.request_held.clear();
        if u64::from(length) > write.end - write.at {
            return Err(NbdError::Parts("a part that is longer than its WRITE"));
        }
        let request = Request { flags: write.flags, command: WRITE, cookie: 0, offset: write.at, length };
        let (start, end, whole) = (write.at, request.end(), u64::from(length));
        match kind {
            PartKind::Zeroes => {
                write.at = end;
                let zeroes = Request { flags: write.flags & FUA, command: WRITE_ZEROES, ..request };
                if self.joined.takes_zeroes(whole) && self.left_of(&zeroes) == [(start, end)] {
                    self.joined.zeroes += whole;
                    self.joined.bytes.resize(self.joined.bytes.len() + length as usize, 0);
                } else {
                    self.end_joined(&write, out)?;
                    self.zero(write.group, zeroes, out)?;
                }
                self.next_part(write, out)
            }
            PartKind::Data => {
                write.at = end;
                self.mark(start, end);
                if !self.joined.has_room(whole) {
                    self.end_joined(&write, out)?;
                }
                // Data are not held back if there is nothing to join them with.
                if self.joined.bytes.is_empty() && (end == write.end || !self.joined.has_room(whole)) {
                    self.ask(write.group, request, ReplyUse::Nothing, out)?;
                    return Ok(RequestsAt::Payload { left: whole, write: Some(write) });
                }
                if self.joined.bytes.is_empty() {
                    self.joined.start = start;
                }
                Ok(RequestsAt::Data { left: whole, write })
            }
            PartKind::Reference if whole == BLOCK_BYTES && start.is_multiple_of(BLOCK_BYTES) => {
                self.end_joined(&write, out)?;
                Ok(RequestsAt::Hash(write))
            }
            PartKind::Reference => Err(NbdError::Parts("a held block that is none")),
        }
    }

    /// Sends the joined parts as one request.
    fn end_joined(&mut self, write: &Write, out: &mut Vec<u8>) -> Result<(), NbdError> {
        let length = u32::try_from(self.joined.bytes.len()).expect("at most a MiB is joined");
        if length > 0 {
            let request = Request { flags: write.flags, command: WRITE, cookie: 0, offset: self.joined.start, length };
            self.ask(write.group, request, ReplyUse::Nothing, out)?;
            out.extend_from_slice(&self.joined.bytes);
            self.joined.bytes.clear();
            self.joined.zeroes = 0;
        }
        Ok(())
    }

    fn named_block(&mut self, mut write: Write, out: &mut Vec<u8>) -> Result<RequestsAt, NbdError> {
        if self.hashing.is_none() {
            return Err(NbdError::Parts("a held block of an image that is no seed"));
        }
        let hash = self.request_held.as_slice().try_into().expect("the hash is whole");
        self.request_held.clear();
        let read = Request { flags: 0, command: READ, cookie: 0, offset: write.at, length: BLOCK_BYTES as u32 };
        self.ask(write.group, read, ReplyUse::Block { offset: write.at, expected: hash }, out)?;
        write.at = read.end();
        self.next_part(write, out)
    }

    fn next_part(&mut self, write: Write, out: &mut Vec<u8>) -> Result<RequestsAt, NbdError> {
        if write.at < write.end {
            return Ok(RequestsAt::PartHead(write));
        }
        self.end_joined(&write, out)?;
        self.close(write.group, write.end - 1, out)?;
        Ok(RequestsAt::Head)
    }

    /// The ranges of a zeroing or TRIM request that must reach the server.
    fn left_of(&self, request: &Request) -> Vec<(u64, u64)> {
        // Requests that must reach stable storage, or are out of range, always go to the server.
        let is_ours = request.flags & FUA == 0 && request.end() <= self.handshake.export().size_bytes;
        match self.written.as_ref().filter(|_| is_ours) {
            Some(written) => written.ranges(request.offset, request.end()),
            None => vec![(request.offset, request.end())],
        }
    }

    /// Sends a zeroing or TRIM request for the ranges that may not be zero already.
    fn zero(&mut self, group: u64, request: Request, out: &mut Vec<u8>) -> Result<(), NbdError> {
        let mut spared = u64::from(request.length);
        for (start, end) in self.left_of(&request) {
            spared -= end - start;
            let length = u32::try_from(end - start).expect("it lies within the request");
            self.ask(group, Request { offset: start, length, ..request }, ReplyUse::Nothing, out)?;
        }
        self.meter.elided.fetch_add(spared, Relaxed);
        Ok(())
    }

    fn mark(&mut self, start: u64, end: u64) {
        if let Some(written) = &mut self.written {
            written.mark(start, end);
        }
    }

    fn ask(&mut self, group: u64, request: Request, of: ReplyUse, out: &mut Vec<u8>) -> Result<(), NbdError> {
        if self.asked.len() >= ASKED_MAX {
            return Err(NbdError::TooManyParts(ASKED_MAX));
        }
        let cookie = self.number();
        self.groups.get_mut(&group).expect("an open group is kept").asked += 1;
        self.asked.insert(cookie, Pending { group, of });
        Request { cookie, ..request }.put(out);
        Ok(())
    }

    /// Closes a group: the source sends no more of it. If no server request of it is pending, a page at `offset` is
    /// read from the server, and that reply becomes the client's.
    fn close(&mut self, group: u64, offset: u64, out: &mut Vec<u8>) -> Result<(), NbdError> {
        let entry = self.groups.get_mut(&group).expect("an open group is kept");
        entry.is_open = false;
        if entry.asked > 0 {
            return Ok(());
        }
        let page = offset - offset % PAGE_BYTES;
        let behind = self.handshake.export().size_bytes.saturating_sub(page);
        let length = if behind == 0 { PAGE_BYTES } else { behind.min(PAGE_BYTES) } as u32;
        let read = Request { flags: 0, command: READ, cookie: 0, offset: page, length };
        self.ask(group, read, ReplyUse::Reply(length), out)
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn reply(&mut self, out: &mut Vec<u8>) -> Result<(), NbdError> {
        let reply = Reply::decode(self.reply_held.as_slice().try_into().expect("the head is whole"))?;
        self.reply_held.clear();
        let Pending { group, of } = self.asked.remove(&reply.cookie).ok_or(NbdError::UnknownReply)?;
        let is_good = reply.error == 0;
        match of {
            ReplyUse::Data(length) => {
                self.answered(group, reply.error, out);
                if is_good && length > 0 {
                    self.replies = RepliesAt::Data { left: u64::from(length) };
                }
            }
            ReplyUse::Reply(length) if is_good => {
                self.replies = RepliesAt::Dropped { left: u64::from(length), group };
            }
            ReplyUse::Block { offset, expected } if is_good => {
                let hasher = Box::new(self.hashing.ok_or(NbdError::Parts("a block for no seed"))?.hasher());
                self.replies = RepliesAt::Block { left: BLOCK_BYTES, group, hasher, offset, expected };
            }
            ReplyUse::Nothing | ReplyUse::Reply(_) | ReplyUse::Block { .. } => self.answered(group, reply.error, out),
        }
        Ok(())
    }

    /// Accounts for one reply of a group; the last one sends the client its reply.
    fn answered(&mut self, group: u64, error: u32, out: &mut Vec<u8>) {
        let entry = self.groups.get_mut(&group).expect("a group with something asked is kept");
        entry.asked -= 1;
        if entry.error == 0 {
            entry.error = error;
        }
        if entry.asked == 0 && !entry.is_open {
            Reply { error: entry.error, cookie: entry.cookie }.put(out);
            self.groups.remove(&group);
        }
    }

    fn compared(&mut self, group: u64, offset: u64, is_same: bool, out: &mut Vec<u8>) {
        if is_same {
            self.meter.referenced.fetch_add(BLOCK_BYTES, Relaxed);
            self.answered(group, 0, out);
        } else {
            self.meter.mismatches.fetch_add(1, Relaxed);
            self.handshake.changed(offset);
            self.answered(group, EIO, out);
        }
    }
}

impl Joined {
    fn has_room(&self, length: u64) -> bool {
        self.bytes.len() as u64 + length <= JOINED_BYTES_MAX
    }

    /// Allows at most as many zeroes as data: a peer cannot turn few bytes into many, and thin images stay thin.
    fn takes_zeroes(&self, length: u64) -> bool {
        let data = self.bytes.len() as u64 - self.zeroes;
        length < JOINED_ZEROES_MAX && self.has_room(length) && self.zeroes + length <= data
    }
}

impl End for Destination {
    fn requests(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) -> Result<(), NbdError> {
        self.handshake.client(&mut bytes, out)?;
        if !bytes.is_empty() && !self.has_begun {
            self.begin();
        }
        while !bytes.is_empty() {
            self.requests = match std::mem::replace(&mut self.requests, RequestsAt::Ended) {
                RequestsAt::Head => match gather(&mut self.request_held, REQUEST_BYTES, &mut bytes) {
                    true => self.request(out)?,
                    false => RequestsAt::Head,
                },
                RequestsAt::PartHead(write) => match gather(&mut self.request_held, PART_HEAD_BYTES, &mut bytes) {
                    true => self.part(write, out)?,
                    false => RequestsAt::PartHead(write),
                },
                RequestsAt::Hash(write) => match gather(&mut self.request_held, HASH_BYTES, &mut bytes) {
                    true => self.named_block(write, out)?,
                    false => RequestsAt::Hash(write),
                },
                RequestsAt::Payload { mut left, write } => {
                    pass_on(&mut left, &mut bytes, out);
                    match write {
                        _ if left > 0 => RequestsAt::Payload { left, write },
                        Some(write) => self.next_part(write, out)?,
                        None => RequestsAt::Head,
                    }
                }
                RequestsAt::Data { mut left, write } => {
                    pass_on(&mut left, &mut bytes, &mut self.joined.bytes);
                    if left > 0 { RequestsAt::Data { left, write } } else { self.next_part(write, out)? }
                }
                RequestsAt::Ended => return Err(NbdError::AfterGoodbye),
            };
        }
        Ok(())
    }

    fn replies(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) -> Result<(), NbdError> {
        self.handshake.server(&mut bytes, out)?;
        while !bytes.is_empty() {
            match &mut self.replies {
                RepliesAt::Head => {
                    if gather(&mut self.reply_held, REPLY_BYTES, &mut bytes) {
                        self.reply(out)?;
                    }
                }
                RepliesAt::Data { left } => {
                    pass_on(left, &mut bytes, out);
                    if *left == 0 {
                        self.replies = RepliesAt::Head;
                    }
                }
                RepliesAt::Dropped { left, group } => {
                    take(left, &mut bytes);
                    if *left == 0 {
                        let group = *group;
                        self.replies = RepliesAt::Head;
                        self.answered(group, 0, out);
                    }
                }
                RepliesAt::Block { left, group, hasher, offset, expected } => {
                    hasher.update(take(left, &mut bytes));
                    if *left == 0 {
                        let (group, offset, is_same) = (*group, *offset, cut(&hasher.finalize()) == *expected);
                        self.replies = RepliesAt::Head;
                        self.compared(group, offset, is_same, out);
                    }
                }
            }
        }
        Ok(())
    }
}
