//! The source's end: passes requests to the peer and replies back to the client. Mirror of `destination.rs`.

use std::{collections::HashMap, sync::Arc, sync::atomic::Ordering::Relaxed};

use super::{
    end::End,
    error::NbdError,
    handshake::{Handshake, Role},
    image::Image,
    meter::NbdMeter,
    parts::put_parts,
    protocol::{
        DISCONNECT, FUA, HOLDS_PARTIAL, PARTS, READ, REPLY_BYTES, REQUEST_BYTES, REQUESTS_MAX, Reply, Request,
        TAKES_PARTS, TRIM, WRITE, WRITE_ZEROES, gather, pass_on,
    },
};
use crate::content::index::ContentIndex;

pub(super) struct Source {
    handshake: Handshake,
    meter: Arc<NbdMeter>,
    index: Option<ContentIndex>,
    requests: RequestsAt,
    request_held: Vec<u8>,
    /// The piece of a WRITE that is being collected.
    piece: Vec<u8>,
    replies: RepliesAt,
    reply_held: Vec<u8>,
    /// Client requests by cookie: how many bytes follow a successful reply.
    asked: HashMap<u64, u32>,
}

enum RequestsAt {
    Head,
    /// The payload of a WRITE that is forwarded unchanged.
    Payload {
        left: u64,
    },
    Write(Write),
    Ended,
}

enum RepliesAt {
    Head,
    Data { left: u64 },
}

/// A WRITE that is sent in parts.
struct Write {
    request: Request,
    /// The offset of the first byte not yet classified.
    at: u64,
}

/// Bytes classified at once: the size that QEMU's mirror writes at once. Pieces of longer payloads end at multiples of
/// it on the disk.
const PIECE_BYTES: u64 = 1 << 20;

impl Source {
    pub(super) fn new(image: Image, meter: Arc<NbdMeter>) -> Self {
        let index = match image {
            Image::Unknown | Image::Zeroes => None,
            Image::Partial(index) => Some(index),
        };
        Self {
            handshake: Handshake::new(Role::Source),
            meter,
            index,
            requests: RequestsAt::Head,
            request_held: Vec::new(),
            piece: Vec::new(),
            replies: RepliesAt::Head,
            reply_held: Vec::new(),
            asked: HashMap::new(),
        }
    }

    fn request(&mut self, out: &mut Vec<u8>) -> Result<RequestsAt, NbdError> {
        let head = self.request_held.as_slice().try_into().expect("the head is whole");
        let request = Request::decode(head)?;
        self.request_held.clear();
        match request.command {
            DISCONNECT => {
                request.put(out);
                return Ok(RequestsAt::Ended);
            }
            PARTS => return Err(NbdError::CarriersCommand(PARTS)),
            _ => {}
        }
        if self.asked.len() >= REQUESTS_MAX {
            return Err(NbdError::TooManyRequests(REQUESTS_MAX));
        }
        let follows = if request.command == READ { request.length } else { 0 };
        if self.asked.insert(request.cookie, follows).is_some() {
            return Err(NbdError::SameCookie);
        }
        self.meter.waiting.fetch_add(1, Relaxed);
        if request.command == WRITE && request.length > 0 && self.handshake.export().flags & TAKES_PARTS != 0 {
            return Ok(RequestsAt::Write(Write { request, at: request.offset }));
        }
        if let Some(index) = &mut self.index
            && matches!(request.command, WRITE | WRITE_ZEROES | TRIM)
        {
            index.forget(request.offset, request.end());
        }
        request.put(out);
        let left = if request.command == WRITE { u64::from(request.length) } else { 0 };
        Ok(if left > 0 { RequestsAt::Payload { left } } else { RequestsAt::Head })
    }

    /// Collects the next piece and sends its parts; returns whether the WRITE is complete.
    fn write(&mut self, write: &mut Write, bytes: &mut &[u8], out: &mut Vec<u8>) -> bool {
        let request = &write.request;
        let piece_end = request.end().min((write.at / PIECE_BYTES + 1) * PIECE_BYTES);
        if !gather(&mut self.piece, (piece_end - write.at) as usize, bytes) {
            return false;
        }
        if write.at == request.offset {
            Request { command: PARTS, ..*request }.put(out);
        }
        // Data that must reach stable storage are always sent, never named by hash.
        let may_name = self.handshake.export().flags & HOLDS_PARTIAL != 0 && request.flags & FUA == 0;
        let index = match &mut self.index {
            Some(index) if !may_name => {
                index.forget(write.at, piece_end);
                None
            }
            index => index.as_mut(),
        };
        let spared = put_parts(&self.piece, write.at, index, out);
        self.meter.elided.fetch_add(spared.zero_bytes, Relaxed);
        self.meter.referenced.fetch_add(spared.held_bytes, Relaxed);
        self.piece.clear();
        write.at = piece_end;
        piece_end == request.end()
    }
}

impl End for Source {
    fn requests(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) -> Result<(), NbdError> {
        self.handshake.client(&mut bytes, out)?;
        while !bytes.is_empty() {
            match std::mem::replace(&mut self.requests, RequestsAt::Ended) {
                RequestsAt::Head => {
                    let is_whole = gather(&mut self.request_held, REQUEST_BYTES, &mut bytes);
                    self.requests = if is_whole { self.request(out)? } else { RequestsAt::Head };
                }
                RequestsAt::Payload { mut left } => {
                    pass_on(&mut left, &mut bytes, out);
                    self.requests = if left > 0 { RequestsAt::Payload { left } } else { RequestsAt::Head };
                }
                RequestsAt::Write(mut write) => {
                    let is_complete = self.write(&mut write, &mut bytes, out);
                    self.requests = if is_complete { RequestsAt::Head } else { RequestsAt::Write(write) };
                }
                RequestsAt::Ended => return Err(NbdError::AfterGoodbye),
            }
        }
        Ok(())
    }

    fn replies(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) -> Result<(), NbdError> {
        self.handshake.server(&mut bytes, out)?;
        while !bytes.is_empty() {
            match &mut self.replies {
                RepliesAt::Head => {
                    if !gather(&mut self.reply_held, REPLY_BYTES, &mut bytes) {
                        return Ok(());
                    }
                    let reply = Reply::decode(self.reply_held.as_slice().try_into().expect("the head is whole"))?;
                    let follows = self.asked.remove(&reply.cookie).ok_or(NbdError::UnknownReply)?;
                    self.reply_held.clear();
                    self.meter.waiting.fetch_sub(1, Relaxed);
                    self.meter.answered.fetch_add(1, Relaxed);
                    reply.put(out);
                    if reply.error == 0 && follows > 0 {
                        self.replies = RepliesAt::Data { left: u64::from(follows) };
                    }
                }
                RepliesAt::Data { left } => {
                    pass_on(left, &mut bytes, out);
                    if *left == 0 {
                        self.replies = RepliesAt::Head;
                    }
                }
            }
        }
        Ok(())
    }
}
