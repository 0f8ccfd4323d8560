//! The destination's end: requests on their way to the server, its replies on their way back. Mirror of `source.rs`.
//!
//! The client's request is a *group* of requests to the server, which have cookies of their own. A group ends when
//! nothing more of it is to come from the source and all that was asked is answered.

use std::{collections::HashMap, sync::Arc, sync::atomic::Ordering::Relaxed};

use super::{
    End, Held, NbdMeter, PAGE_BYTES,
    handshake::{Handshake, Role},
    protocol::{
        DISCONNECT, EIO, FUA, NO_HOLE, PART_HEAD_BYTES, PARTS, PartKind, READ, REPLY_BYTES, REQUEST_BYTES,
        REQUESTS_MAX, Reply, Request, TRIM, WRITE, WRITE_ZEROES, gather, pass_on, take,
    },
    seed::{BLOCK_BYTES, BlockHash, HASH_BYTES, SeedKey, cut},
    written::Written,
};

pub(super) struct Destination {
    handshake: Handshake,
    meter: Arc<NbdMeter>,
    key: Option<SeedKey>,
    /// What was written of an image that reads as zeroes elsewhere.
    written: Option<Written>,
    requests: RequestsAt,
    request_held: Vec<u8>,
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
    /// They are a block that should have this hash.
    Block(BlockHash),
}

enum RequestsAt {
    Head,
    Payload { left: u64, write: Option<Write> },
    PartHead(Write),
    Hash(Write),
    Ended,
}

enum RepliesAt {
    Head,
    Data { left: u64 },
    Dropped { left: u64, group: u64 },
    Block { left: u64, group: u64, hasher: Box<blake3::Hasher>, expected: BlockHash },
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

impl Destination {
    pub(super) fn new(held: Held, meter: Arc<NbdMeter>) -> Self {
        let (key, written) = match held {
            Held::Unknown => (None, None),
            Held::Zeroes => (None, Some(Written::default())),
            Held::Seed(key) => (Some(key), None),
        };
        Self {
            handshake: Handshake::new(Role::Destination { has_seed: key.is_some() }),
            meter,
            key,
            written,
            requests: RequestsAt::Head,
            request_held: Vec::new(),
            replies: RepliesAt::Head,
            reply_held: Vec::new(),
            groups: HashMap::new(),
            asked: HashMap::new(),
            next: 0,
        }
    }

    fn request(&mut self, out: &mut Vec<u8>) -> Result<RequestsAt, String> {
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
            return Err(format!("more than {REQUESTS_MAX} NBD requests at once"));
        }
        let group = self.number();
        self.groups.insert(group, Group { cookie: request.cookie, asked: 0, is_open: true, error: 0 });
        let (start, end) = (request.offset, request.end());
        match request.command {
            PARTS if request.length == 0 => return Err("a WRITE without parts".to_owned()),
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

    fn part(&mut self, mut write: Write, out: &mut Vec<u8>) -> Result<RequestsAt, String> {
        let head = self.request_held.as_slice().try_into().expect("the head is whole");
        let (kind, length) = PartKind::decode_head(head)?;
        self.request_held.clear();
        if u64::from(length) > write.end - write.at {
            return Err("a part that is longer than its WRITE".to_owned());
        }
        let request = Request { flags: write.flags, command: WRITE, cookie: 0, offset: write.at, length };
        match kind {
            PartKind::Zeroes => {
                self.zero(write.group, Request { flags: write.flags & FUA, command: WRITE_ZEROES, ..request }, out)?;
                write.at = request.end();
                self.next_part(write, out)
            }
            PartKind::Data => {
                self.mark(write.at, request.end());
                self.ask(write.group, request, Wanted::Nothing, out)?;
                write.at = request.end();
                Ok(RequestsAt::Payload { left: u64::from(length), write: Some(write) })
            }
            PartKind::Held if u64::from(length) == BLOCK_BYTES && write.at.is_multiple_of(BLOCK_BYTES) => {
                Ok(RequestsAt::Hash(write))
            }
            PartKind::Held => Err("a held block that is none".to_owned()),
        }
    }

    fn named_block(&mut self, mut write: Write, out: &mut Vec<u8>) -> Result<RequestsAt, String> {
        if self.key.is_none() {
            return Err("a held block of an image that is no seed".to_owned());
        }
        let hash = self.request_held.as_slice().try_into().expect("the hash is whole");
        self.request_held.clear();
        let read = Request { flags: 0, command: READ, cookie: 0, offset: write.at, length: BLOCK_BYTES as u32 };
        self.ask(write.group, read, Wanted::Block(hash), out)?;
        write.at = read.end();
        self.next_part(write, out)
    }

    fn next_part(&mut self, write: Write, out: &mut Vec<u8>) -> Result<RequestsAt, String> {
        if write.at < write.end {
            return Ok(RequestsAt::PartHead(write));
        }
        self.close(write.group, write.end - 1, out)?;
        Ok(RequestsAt::Head)
    }

    /// Asks for zeroes, or a TRIM, but only where there can be anything else.
    fn zero(&mut self, group: u64, request: Request, out: &mut Vec<u8>) -> Result<(), String> {
        // What must be on stable storage, or is not there at all, is the server's business.
        let is_ours = request.flags & FUA == 0 && request.end() <= self.handshake.export().size_bytes;
        let Some(written) = self.written.as_ref().filter(|_| is_ours) else {
            return self.ask(group, request, Wanted::Nothing, out);
        };
        let mut spared = u64::from(request.length);
        for (start, end) in written.ranges(request.offset, request.end()) {
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

    fn ask(&mut self, group: u64, request: Request, of: Wanted, out: &mut Vec<u8>) -> Result<(), String> {
        if self.asked.len() >= ASKED_MAX {
            return Err(format!("more than {ASKED_MAX} parts of NBD requests at once"));
        }
        let cookie = self.number();
        self.groups.get_mut(&group).expect("an open group is kept").asked += 1;
        self.asked.insert(cookie, Asked { group, of });
        Request { cookie, ..request }.put(out);
        Ok(())
    }

    /// Nothing more comes for a group. If all of it is answered, or nothing had to be asked, the server is asked for the
    /// page at `offset`: its reply becomes the client's.
    fn close(&mut self, group: u64, offset: u64, out: &mut Vec<u8>) -> Result<(), String> {
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

    fn reply(&mut self, out: &mut Vec<u8>) -> Result<(), String> {
        let reply = Reply::decode(self.reply_held.as_slice().try_into().expect("the head is whole"))?;
        self.reply_held.clear();
        let Asked { group, of } = self.asked.remove(&reply.cookie).ok_or("an NBD reply that nobody waits for")?;
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
            Wanted::Block(expected) if is_good => {
                let hasher = Box::new(self.key.ok_or("a block for no seed")?.hasher());
                self.replies = RepliesAt::Block { left: BLOCK_BYTES, group, hasher, expected };
            }
            Wanted::Nothing | Wanted::Reply(_) | Wanted::Block(_) => self.answered(group, reply.error, out),
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

    fn compared(&mut self, group: u64, found: BlockHash, expected: BlockHash, out: &mut Vec<u8>) {
        if found == expected {
            self.meter.referenced.fetch_add(BLOCK_BYTES, Relaxed);
            self.answered(group, 0, out);
        } else {
            self.meter.mismatches.fetch_add(1, Relaxed);
            self.answered(group, EIO, out);
        }
    }
}

impl End for Destination {
    fn requests(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        self.handshake.client(&mut bytes, out)?;
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
                RequestsAt::Ended => return Err("an NBD client that goes on after its goodbye".to_owned()),
            };
        }
        Ok(())
    }

    fn replies(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
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
                RepliesAt::Block { left, group, hasher, expected } => {
                    hasher.update(take(left, &mut bytes));
                    if *left == 0 {
                        let (group, found, expected) = (*group, cut(&hasher.finalize()), *expected);
                        self.replies = RepliesAt::Head;
                        self.compared(group, found, expected, out);
                    }
                }
            }
        }
        Ok(())
    }
}
