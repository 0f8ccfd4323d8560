//! Any bytes from the client, the server or the other carrier pass an NBD parser in bounded memory, or end the channel.
//! Whatever a client requests, the disk and the replies are the same as without the carriers. Any bytes are an index of
//! blocks, or cause an error.
#![no_main]

use std::{
    collections::BTreeSet,
    sync::{Arc, LazyLock},
};

use ferry_wire::{
    content::index::{BLOCK_BYTES, ContentIndex, ContentKey},
    filter::{Direction, FilterError, Outputs, StreamFilter},
    nbd::{self, Image, ImageContent, NbdMeter},
};
use libfuzzer_sys::fuzz_target;

const KEY: ContentKey = ContentKey([7; 32]);
const PAGE: usize = 4096;
const BLOCK: usize = BLOCK_BYTES as usize;
/// Four blocks and three pages.
const DISK_BYTES: usize = 4 * BLOCK + 3 * PAGE;
/// Limits of one pass's output beyond its input: the bytes held back before, at most a WRITE of the whole disk or one
/// MiB, and for each input byte the requests of a fifth of a part, which splits into at most 64 ranges.
const HELD_BYTES_MAX: usize = 1 << 20;
const OUT_PER_BYTE_MAX: usize = 28 * 64 / 5 + 2;
const READ: u16 = 0;
const WRITE: u16 = 1;
const TRIM: u16 = 4;
const WRITE_ZEROES: u16 = 6;
const FUA: u16 = 1;

/// Content of the seed: blocks of data, one of zeroes, one with pages of zeroes.
static PARTIAL: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let byte = |at: usize| match (at / BLOCK, at / PAGE % 3) {
        (1, _) | (2, 0) => 0,
        (block, _) => (block * 50 + at % 201) as u8,
    };
    (0..DISK_BYTES).map(byte).collect()
});
static INDEX: LazyLock<ContentIndex> = LazyLock::new(|| {
    let mut index = ContentIndex::new(KEY);
    (0..).zip(PARTIAL.chunks(BLOCK)).for_each(|(number, block)| index.insert(number, block));
    index
});

fuzz_target!(|bytes: &[u8]| {
    let Some((&kind, bytes)) = bytes.split_first() else { return };
    if kind & 0x80 != 0 {
        if let Ok(index) = ContentIndex::decode(bytes) {
            let again = ContentIndex::decode(&index.encode()).expect("its own bytes");
            assert_eq!((again.blocks(), again.encode()), (index.blocks(), index.encode()));
        }
        return;
    }
    let mut line = Line::new(kind & 3);
    if kind & 4 == 0 {
        line.shake_hands();
        let cut = 1 + (usize::from(kind >> 4) & 7) * 700;
        let asked = bytes.len().min(64) & !3;
        let (asks, rest) = bytes.split_at(if kind & 8 == 0 { asked } else { 0 });
        asks.chunks(4).for_each(|ask| line.ask(ask, cut));
        line.check();
        line.feed_all(rest);
    } else {
        line.feed_all(bytes);
    }
});

/// Both ends between a client and a server; the expected content of the disk is known.
struct Line {
    /// The source's end, and the destination's.
    filters: [Box<dyn StreamFilter>; 2],
    near: Arc<NbdMeter>,
    far: Arc<NbdMeter>,
    server: Server,
    expected: Vec<u8>,
    received: Vec<u8>,
    waiting: BTreeSet<u64>,
    cookie: u64,
}

impl Line {
    fn new(kind: u8) -> Self {
        let page = |at: usize| PARTIAL[at * PAGE..DISK_BYTES.min((at + 1) * PAGE)].iter().any(|byte| *byte != 0);
        let data =
            (0..DISK_BYTES / PAGE).filter(|at| page(*at)).map(|at| ((at * PAGE) as u64, ((at + 1) * PAGE) as u64));
        let (image, content, disk) = match kind {
            0 => (Image::Unknown, ImageContent::Unknown, PARTIAL.clone()),
            1 => (Image::Zeroes, ImageContent::Zeroes, vec![0; DISK_BYTES]),
            2 => (Image::Partial(INDEX.clone()), ImageContent::Partial { key: KEY, data: None }, PARTIAL.clone()),
            _ => (
                Image::Partial(INDEX.clone()),
                ImageContent::Partial { key: KEY, data: Some(data.collect()) },
                PARTIAL.clone(),
            ),
        };
        let (near, far) = (Arc::<NbdMeter>::default(), Arc::<NbdMeter>::default());
        Self {
            filters: [
                Box::new(nbd::source(image, Arc::clone(&near))),
                Box::new(nbd::destination(content, Arc::clone(&far))),
            ],
            near,
            far,
            server: Server { disk: disk.clone(), input: Vec::new() },
            expected: disk,
            received: Vec::new(),
            waiting: BTreeSet::new(),
            cookie: 0,
        }
    }

    fn shake_hands(&mut self) {
        for (is_server, bytes) in handshake() {
            self.through(!is_server, &bytes, bytes.len()).expect("nothing is wrong yet");
        }
    }

    /// One correct request of a client: operation, offset, length and content.
    fn ask(&mut self, ask: &[u8], cut: usize) {
        let [what, place, count, content] = *ask else { return };
        let command = [WRITE, WRITE, WRITE, WRITE, WRITE_ZEROES, READ, 3, TRIM][usize::from(what & 7)];
        // Aligned to pages, to blocks, or to neither.
        let grain = [PAGE, BLOCK, 512, 1000][usize::from(what >> 3 & 3)];
        let offset = usize::from(place) * grain % DISK_BYTES;
        let length = (usize::from(count) * grain % (2 * BLOCK)).min(DISK_BYTES - offset);
        let flags = if what & 0x20 != 0 && matches!(command, WRITE | WRITE_ZEROES) { FUA } else { 0 };
        let payload: Vec<u8> = (offset..offset + length).map(|at| byte(content, at)).collect();
        match command {
            WRITE => self.expected[offset..offset + length].copy_from_slice(&payload),
            WRITE_ZEROES => self.expected[offset..offset + length].fill(0),
            _ => {}
        }
        self.cookie += 1;
        self.waiting.insert(self.cookie);
        let mut bytes = head(flags, command, self.cookie, offset as u64, length as u32);
        if command == WRITE {
            bytes.extend(payload);
        }
        let served = self.through(true, &bytes, cut).expect("a client that does nothing wrong");
        let replies = self.server.work(&served);
        let replies = self.through(false, &replies, cut).expect("a server that does nothing wrong");
        self.received.extend(replies);
        let requested = if command == READ { length } else { 0 };
        assert_eq!(self.received.len(), 16 + requested, "one reply, with what was asked for");
        assert_eq!(self.received[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0], "it went well");
        assert_eq!(self.received[8..16], self.cookie.to_be_bytes());
        if command == READ {
            assert!(self.received[16..] == self.expected[offset..offset + length], "another content was read");
        }
        self.received.clear();
        self.waiting.remove(&self.cookie);
    }

    fn check(&self) {
        assert!(self.server.disk == self.expected, "the disk holds something else");
        assert!(self.waiting.is_empty());
        assert_eq!((self.far.mismatches(), self.near.referenced_bytes()), (0, self.far.referenced_bytes()));
    }

    /// Arbitrary bytes: from which side, how many, and their content.
    fn feed_all(&mut self, mut rest: &[u8]) {
        while let [which, count, more @ ..] = rest {
            let (chunk, more) = more.split_at(usize::from(*count).min(more.len()));
            let passed = match which & 3 {
                0 => self.through(true, chunk, chunk.len()),
                1 => self.through(false, chunk, chunk.len()),
                2 => self.pass(1, Direction::Inbound, chunk),
                _ => self.pass(0, Direction::Inbound, chunk),
            };
            // The channel has ended.
            if passed.is_err() {
                return;
            }
            rest = more;
        }
    }
}

impl Line {
    /// Passes bytes through both ends: from the client to the server (`there`), or back.
    fn through(&mut self, there: bool, bytes: &[u8], cut: usize) -> Result<Vec<u8>, FilterError> {
        let mut passed = bytes.to_vec();
        let way = if there { [0, 1] } else { [1, 0] };
        for (end, direction) in way.into_iter().zip([Direction::Outbound, Direction::Inbound]) {
            let mut out = Vec::new();
            for piece in passed.chunks(cut.max(1)) {
                out.extend(self.pass(end, direction, piece)?);
            }
            passed = out;
        }
        Ok(passed)
    }

    fn pass(&mut self, end: usize, direction: Direction, bytes: &[u8]) -> Result<Vec<u8>, FilterError> {
        let mut out = Outputs::default();
        self.filters[end].filter(direction, bytes, &mut out)?;
        let most = HELD_BYTES_MAX + OUT_PER_BYTE_MAX * bytes.len();
        assert!(out.back.is_empty() && out.forward.len() <= most, "{} bytes became {}", bytes.len(), out.forward.len());
        Ok(out.forward)
    }
}

/// The byte of a content at an offset of the disk.
fn byte(content: u8, at: usize) -> u8 {
    let page = at / PAGE;
    match content & 7 {
        0 => 0,
        1 | 2 => PARTIAL[at],
        // Some pages differ.
        3 if page % (2 + usize::from(content >> 3)) == 0 => content,
        3 => PARTIAL[at],
        4 if page % (2 + usize::from(content >> 3)) == 0 => 0,
        4 => content,
        5 if at % PAGE == usize::from(content) => 1,
        5 => 0,
        _ => content ^ at as u8,
    }
}

struct Server {
    disk: Vec<u8>,
    input: Vec<u8>,
}

impl Server {
    /// Returns its replies to all complete requests.
    fn work(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.input.extend_from_slice(bytes);
        let mut replies = Vec::new();
        while self.input.len() >= 28 {
            let number = |at: usize| u64::from_be_bytes(self.input[at..at + 8].try_into().expect("eight"));
            let command = u16::from_be_bytes([self.input[6], self.input[7]]);
            let (cookie, offset) = (number(8), number(16) as usize);
            let length = u32::from_be_bytes(self.input[24..28].try_into().expect("four")) as usize;
            let payload = if command == WRITE { length } else { 0 };
            if self.input.len() < 28 + payload {
                break;
            }
            assert!(offset + length <= self.disk.len(), "beyond the end");
            let request: Vec<u8> = self.input.drain(..28 + payload).collect();
            replies.extend([0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]);
            replies.extend(cookie.to_be_bytes());
            match command {
                WRITE => self.disk[offset..offset + length].copy_from_slice(&request[28..]),
                WRITE_ZEROES => self.disk[offset..offset + length].fill(0),
                READ => replies.extend_from_slice(&self.disk[offset..offset + length]),
                _ => {}
            }
        }
        replies
    }
}

fn head(flags: u16, command: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = vec![0x25, 0x60, 0x95, 0x13];
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

/// The messages before the first request: whether the server sends each, and its bytes.
fn handshake() -> Vec<(bool, Vec<u8>)> {
    let option_reply = |kind: u32, data: &[u8]| {
        let mut bytes = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
        for word in [7, kind, data.len() as u32] {
            bytes.extend_from_slice(&word.to_be_bytes());
        }
        bytes.extend_from_slice(data);
        bytes
    };
    // A disk whose server accepts all requests.
    let mut export = vec![0, 0];
    export.extend((DISK_BYTES as u64).to_be_bytes());
    export.extend([0x05, 0x7d]);
    vec![
        (true, b"NBDMAGICIHAVEOPT\0\x03".to_vec()),
        (false, b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\x06\0\0\0\0\0\0".to_vec()),
        (true, option_reply(3, &export)),
        (true, option_reply(1, &[])),
    ]
}
