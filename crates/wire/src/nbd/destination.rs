//! The destination's end: requests on their way to the server, its replies on their way back. Mirror of `source.rs`.
//!
//! The client's request is a *group* of requests to the server, which have cookies of their own. A group ends when
//! nothing more of it is to come from the source and all that was asked is answered.
//!
//! Data, and short zeroes behind them that must reach the server anyway, become one request: where pages of both
//! alternate, each would be one.

use std::{collections::HashMap, sync::Arc, sync::atomic::Ordering::Relaxed};

use super::{
    end::End,
    error::NbdError,
    handshake::{Handshake, Role},
    image::{Held, Keeper},
    meter::NbdMeter,
    protocol::{
        DISCONNECT, EIO, FUA, NO_HOLE, PART_HEAD_BYTES, PARTS, PartKind, READ, REPLY_BYTES, REQUEST_BYTES,
        REQUESTS_MAX, Reply, Request, TRIM, WRITE, WRITE_ZEROES, gather, pass_on, take,
    },
    written::Written,
};
use crate::content::{
    index::{BLOCK_BYTES, BlockHash, HASH_BYTES, SeedKey, cut},
    sparse::PAGE_BYTES,
};

pub(super) struct Destination {
    handshake: Handshake,
    meter: Arc<NbdMeter>,
    /// The first request came: what is known of the image is known.
    has_begun: bool,
    key: Option<SeedKey>,
    /// What was written of an image that reads as zeroes elsewhere.
    written: Option<Written>,
    requests: RequestsAt,
    request_held: Vec<u8>,
    joined: Joined,
    replies: RepliesAt,
    reply_held: Vec<u8>,
    groups: HashMap<u64, Group>,
    /// What the server was asked, by the cookie it got.
    asked: HashMap<u64, Asked>,
    /// The next group or cookie.
    next: u64,
}

/// A request of the client.
struct Group {
    cookie: u64,
    /// Requests to the server without a reply.
    asked: u32,
    /// More may come from the source.
    is_open: bool,
    /// The first, or 0.
    error: u32,
}

struct Asked {
    group: u64,
    of: Wanted,
}

/// What is done with the bytes that follow a good reply.
#[derive(Clone, Copy)]
enum Wanted {
    /// There are none.
    Nothing,
    /// They are the client's.
    Data(u32),
    /// Only the reply matters.
    Reply(u32),
    /// They are the block at this offset, that should have this hash.
    Block { offset: u64, expected: BlockHash },
}

/// Parts of a WRITE that follow each other and become one request. The first are data.
#[derive(Default)]
struct Joined {
    start: u64,
    bytes: Vec<u8>,
    /// How many of the bytes came as zeroes.
    zeroes: u64,
}

enum RequestsAt {
    Head,
    Payload {
        left: u64,
        write: Option<Write>,
    },
    /// The data of a part that is joined with others.
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

/// A WRITE that comes in parts.
#[derive(Clone, Copy)]
struct Write {
    group: u64,
    flags: u16,
    /// Where the next part begins.
    at: u64,
    end: u64,
}

/// Requests to the server without a reply: as many parts as sixteen of QEMU's longest requests can have.
const ASKED_MAX: usize = 1 << 17;
/// Zeroes that are shorter go with the data in front of them: a request costs more than they do.
const JOINED_ZEROES_MAX: u64 = 64 << 10;
/// Longest request that is put together: what QEMU's mirror writes at once.
const JOINED_BYTES_MAX: u64 = 1 << 20;

impl Destination {
    pub(super) fn new(keeper: Box<dyn Keeper>, meter: Arc<NbdMeter>) -> Self {
        Self {
            handshake: Handshake::new(Role::Destination(keeper)),
            meter,
            has_begun: false,
            key: None,
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
        let held = self.handshake.take_held();
        // A server that takes no single pages would refuse what is left of a request, and the page that is read instead.
        if !self.handshake.is_fine_grained() {
            return;
        }
        match held {
            Held::Unknown => {}
            Held::Zeroes => self.written = Some(Written::default()),
            Held::Seed { key, data } => {
                self.key = Some(key);
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
                self.ask(group, request, Wanted::Nothing, out)?;
            }
            WRITE_ZEROES | TRIM if request.length > 0 => self.zero(group, request, out)?,
            READ => self.ask(group, request, Wanted::Data(request.length), out)?,
            _ => self.ask(group, request, Wanted::Nothing, out)?,
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
                // Nothing is held back that has nothing to be joined with.
                if self.joined.bytes.is_empty() && (end == write.end || !self.joined.has_room(whole)) {
                    self.ask(write.group, request, Wanted::Nothing, out)?;
                    return Ok(RequestsAt::Payload { left: whole, write: Some(write) });
                }
                if self.joined.bytes.is_empty() {
                    self.joined.start = start;
                }
                Ok(RequestsAt::Data { left: whole, write })
            }
            PartKind::Held if whole == BLOCK_BYTES && start.is_multiple_of(BLOCK_BYTES) => {
                self.end_joined(&write, out)?;
                Ok(RequestsAt::Hash(write))
            }
            PartKind::Held => Err(NbdError::Parts("a held block that is none")),
        }
    }

    /// What was joined becomes a request.
    fn end_joined(&mut self, write: &Write, out: &mut Vec<u8>) -> Result<(), NbdError> {
        let length = u32::try_from(self.joined.bytes.len()).expect("at most a MiB is joined");
        if length > 0 {
            let request = Request { flags: write.flags, command: WRITE, cookie: 0, offset: self.joined.start, length };
            self.ask(write.group, request, Wanted::Nothing, out)?;
            out.extend_from_slice(&self.joined.bytes);
            self.joined.bytes.clear();
            self.joined.zeroes = 0;
        }
        Ok(())
    }

    fn named_block(&mut self, mut write: Write, out: &mut Vec<u8>) -> Result<RequestsAt, NbdError> {
        if self.key.is_none() {
            return Err(NbdError::Parts("a held block of an image that is no seed"));
        }
        let hash = self.request_held.as_slice().try_into().expect("the hash is whole");
        self.request_held.clear();
        let read = Request { flags: 0, command: READ, cookie: 0, offset: write.at, length: BLOCK_BYTES as u32 };
        self.ask(write.group, read, Wanted::Block { offset: write.at, expected: hash }, out)?;
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

    /// What of a request for zeroes, or a TRIM, must reach the server.
    fn left_of(&self, request: &Request) -> Vec<(u64, u64)> {
        // What must be on stable storage, or is not there at all, is the server's business.
        let is_ours = request.flags & FUA == 0 && request.end() <= self.handshake.export().size_bytes;
        match self.written.as_ref().filter(|_| is_ours) {
            Some(written) => written.ranges(request.offset, request.end()),
            None => vec![(request.offset, request.end())],
        }
    }

    /// Asks for zeroes, or a TRIM, but only where there can be anything else.
    fn zero(&mut self, group: u64, request: Request, out: &mut Vec<u8>) -> Result<(), NbdError> {
        let mut spared = u64::from(request.length);
        for (start, end) in self.left_of(&request) {
            spared -= end - start;
            let length = u32::try_from(end - start).expect("it lies within the request");
            self.ask(group, Request { offset: start, length, ..request }, Wanted::Nothing, out)?;
        }
        self.meter.elided.fetch_add(spared, Relaxed);
        Ok(())
    }

    fn mark(&mut self, start: u64, end: u64) {
        if let Some(written) = &mut self.written {
            written.mark(start, end);
        }
    }

    fn ask(&mut self, group: u64, request: Request, of: Wanted, out: &mut Vec<u8>) -> Result<(), NbdError> {
        if self.asked.len() >= ASKED_MAX {
            return Err(NbdError::TooManyParts(ASKED_MAX));
        }
        let cookie = self.number();
        self.groups.get_mut(&group).expect("an open group is kept").asked += 1;
        self.asked.insert(cookie, Asked { group, of });
        Request { cookie, ..request }.put(out);
        Ok(())
    }

    /// Nothing more comes for a group. If all of it is answered, or nothing had to be asked, the server is asked for the
    /// page at `offset`: its reply becomes the client's.
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
        self.ask(group, read, Wanted::Reply(length), out)
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn reply(&mut self, out: &mut Vec<u8>) -> Result<(), NbdError> {
        let reply = Reply::decode(self.reply_held.as_slice().try_into().expect("the head is whole"))?;
        self.reply_held.clear();
        let Asked { group, of } = self.asked.remove(&reply.cookie).ok_or(NbdError::UnknownReply)?;
        let is_good = reply.error == 0;
        match of {
            Wanted::Data(length) => {
                self.answered(group, reply.error, out);
                if is_good && length > 0 {
                    self.replies = RepliesAt::Data { left: u64::from(length) };
                }
            }
            Wanted::Reply(length) if is_good => {
                self.replies = RepliesAt::Dropped { left: u64::from(length), group };
            }
            Wanted::Block { offset, expected } if is_good => {
                let hasher = Box::new(self.key.ok_or(NbdError::Parts("a block for no seed"))?.hasher());
                self.replies = RepliesAt::Block { left: BLOCK_BYTES, group, hasher, offset, expected };
            }
            Wanted::Nothing | Wanted::Reply(_) | Wanted::Block { .. } => self.answered(group, reply.error, out),
        }
        Ok(())
    }

    /// One request of a group is answered; the last of all gives the client its reply.
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

    /// No more than there are data: few bytes of a peer do not become many, and thin stays thin.
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
