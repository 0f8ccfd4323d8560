//! A client sees the same disk and gets the same replies with and without the recogniser: random requests, cut into
//! random pieces, against a server of a few lines.

use std::{
    collections::{BTreeMap, VecDeque},
    os::unix::fs::FileExt as _,
    sync::{Arc, Mutex},
};

use crate::scan::scan;
use ferry_wire::{
    content::index::{BLOCK_BYTES, ContentIndex, ContentKey},
    filter::{
        Direction::{self, Inbound, Outbound},
        FilterError, Outputs, StreamFilter,
    },
    nbd::{self, Image, ImageCatalog, ImageContent, NbdMeter},
};
use proptest::prelude::*;

const PAGE: usize = 4096;
/// Not a whole number of blocks, nor of pages.
const DISK_BYTES: usize = 16 * BLOCK_BYTES as usize + PAGE + 512;
const KEY: ContentKey = ContentKey([5; 32]);

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const WRITE_ZEROES: u16 = 6;
const UNKNOWN: u16 = 99;
const FUA: u16 = 1;
const NO_HOLE: u16 = 2;
const GO: u32 = 7;
const SEND_WRITE_ZEROES: u16 = 1 << 6;
const MULTI_CONN: u16 = 1 << 8;
const FLAGS: u16 = 1 | 1 << 2 | 1 << 3 | 1 << 5 | SEND_WRITE_ZEROES | MULTI_CONN;
const EINVAL: u32 = 22;

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(bytes[at..at + 2].try_into().expect("two"))
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four"))
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight"))
}

/// Takes the front of a queue of bytes if it holds `count`.
fn front(bytes: &mut Vec<u8>, count: usize) -> Option<Vec<u8>> {
    (bytes.len() >= count).then(|| bytes.drain(..count).collect())
}

struct Server {
    disk: Vec<u8>,
    flags: u16,
    input: Vec<u8>,
    output: Vec<u8>,
    /// Replies that are not yet out: they may come in any order.
    replies: Vec<Vec<u8>>,
    stage: Stage,
    /// How many bytes of data it was given.
    data_bytes: usize,
    requests: usize,
    strict: bool,
    /// It takes no pages of zeroes as data either where none of these is set: there it holds nothing.
    filled: Option<Vec<bool>>,
    /// Errors of writes to pages from here on.
    broken_from: usize,
}

#[derive(PartialEq)]
enum Stage {
    ClientFlags,
    Options,
    Transmission,
    Over,
}

impl Server {
    /// With `strict`, it takes no long zeroes as data, nor zeroes that must be allocated.
    fn new(disk: Vec<u8>, flags: u16, strict: bool) -> Self {
        let mut output = b"NBDMAGICIHAVEOPT".to_vec();
        output.extend_from_slice(&[0, 3]);
        Self {
            disk,
            flags,
            input: Vec::new(),
            output,
            replies: Vec::new(),
            stage: Stage::ClientFlags,
            data_bytes: 0,
            requests: 0,
            strict,
            filled: None,
            broken_from: usize::MAX,
        }
    }

    fn work(&mut self) {
        loop {
            match self.stage {
                Stage::ClientFlags => {
                    let Some(flags) = front(&mut self.input, 4) else { return };
                    assert_eq!(flags, [0, 0, 0, 3]);
                    self.stage = Stage::Options;
                }
                Stage::Options => {
                    if !self.option() {
                        return;
                    }
                }
                Stage::Transmission => {
                    if !self.request() {
                        return;
                    }
                }
                Stage::Over => {
                    assert!(self.input.is_empty(), "something came after the goodbye");
                    return;
                }
            }
        }
    }

    fn option(&mut self) -> bool {
        if self.input.len() < 16 || self.input.len() < 16 + be32(&self.input, 12) as usize {
            return false;
        }
        assert_eq!(&self.input[..8], b"IHAVEOPT");
        let (option, length) = (be32(&self.input, 8), be32(&self.input, 12) as usize);
        self.input.drain(..16 + length);
        if option == GO {
            let mut info = vec![0, 3];
            info.extend([1u32, 4096, 32 << 20].iter().flat_map(|number| number.to_be_bytes()));
            self.option_reply(option, 3, &info);
            let mut info = vec![0, 0];
            info.extend_from_slice(&(self.disk.len() as u64).to_be_bytes());
            info.extend_from_slice(&self.flags.to_be_bytes());
            self.option_reply(option, 3, &info);
            self.option_reply(option, 1, &[]);
            self.stage = Stage::Transmission;
        } else {
            // This server would understand them.
            let kind = if [5, 8, 11].contains(&option) { 1 } else { 1 << 31 | 1 };
            self.option_reply(option, kind, b"");
        }
        true
    }

    fn option_reply(&mut self, option: u32, kind: u32, data: &[u8]) {
        self.output.extend_from_slice(&0x0003_e889_0455_65a9_u64.to_be_bytes());
        for word in [option, kind, data.len() as u32] {
            self.output.extend_from_slice(&word.to_be_bytes());
        }
        self.output.extend_from_slice(data);
    }

    fn request(&mut self) -> bool {
        if self.input.len() < 28 {
            return false;
        }
        assert_eq!(be32(&self.input, 0), 0x2560_9513);
        let (flags, command) = (be16(&self.input, 4), be16(&self.input, 6));
        let (offset, length) = (be64(&self.input, 16) as usize, be32(&self.input, 24) as usize);
        let payload = if command == WRITE { length } else { 0 };
        if self.input.len() < 28 + payload {
            return false;
        }
        let request: Vec<u8> = self.input.drain(..28 + payload).collect();
        self.requests += 1;
        if command == DISCONNECT {
            self.stage = Stage::Over;
            return true;
        }
        let end = offset.saturating_add(length);
        let (mut error, mut data) = (0, Vec::new());
        match command {
            _ if end > self.disk.len() => error = EINVAL,
            READ => data = self.disk[offset..end].to_vec(),
            WRITE | WRITE_ZEROES if end.div_ceil(PAGE) > self.broken_from => error = 5,
            WRITE => {
                self.data_bytes += length;
                self.disk[offset..end].copy_from_slice(&request[28..]);
                let pages = offset.next_multiple_of(PAGE)..end / PAGE * PAGE;
                let mut zero_pages = 0;
                for page in pages.step_by(PAGE) {
                    let is_zero = request[28 + page - offset..][..PAGE].iter().all(|byte| *byte == 0);
                    zero_pages = if is_zero { zero_pages + 1 } else { 0 };
                    assert!(!self.strict || zero_pages < 32, "long zeroes were written as data");
                    let is_filled = self.filled.as_ref().is_none_or(|filled| filled[page / PAGE]);
                    assert!(!is_zero || is_filled || flags & FUA != 0, "zeroes were written where nothing was");
                }
                if let Some(filled) = &mut self.filled {
                    filled[offset / PAGE..end.div_ceil(PAGE)].fill(true);
                }
            }
            WRITE_ZEROES => {
                assert!(!self.strict || flags & NO_HOLE == 0);
                self.disk[offset..end].fill(0);
            }
            // What was trimmed may read as anything: here it stays what it is.
            FLUSH | TRIM => {}
            _ => error = EINVAL,
        }
        let mut reply = 0x6744_6698_u32.to_be_bytes().to_vec();
        reply.extend_from_slice(&error.to_be_bytes());
        reply.extend_from_slice(&request[8..16]);
        reply.extend_from_slice(&data);
        self.replies.push(reply);
        true
    }
}

/// What a client asks.
#[derive(Clone, Debug)]
struct Ask {
    command: u16,
    flags: u16,
    offset: usize,
    length: usize,
    /// Page by page: 0 zeroes, 1 what the seed holds, other numbers fill.
    content: Vec<u8>,
}

fn partial_disk() -> Vec<u8> {
    (0..DISK_BYTES)
        .map(|at| match at / BLOCK_BYTES as usize {
            2 | 9 => 0,
            // Blocks with some pages of zeroes.
            4 if (at / PAGE).is_multiple_of(3) => 0,
            block => (block + at % 251) as u8,
        })
        .collect()
}

impl Ask {
    fn payload(&self, partial: &[u8]) -> Vec<u8> {
        let fill = |at: usize| match self.content[(at / PAGE) % self.content.len()] {
            0 => 0,
            1 => partial.get(at).copied().unwrap_or(1),
            other => other,
        };
        (self.offset..self.offset + self.length).map(fill).collect()
    }

    fn bytes(&self, cookie: u64, partial: &[u8]) -> Vec<u8> {
        let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
        bytes.extend_from_slice(&self.flags.to_be_bytes());
        bytes.extend_from_slice(&self.command.to_be_bytes());
        bytes.extend_from_slice(&cookie.to_be_bytes());
        bytes.extend_from_slice(&(self.offset as u64).to_be_bytes());
        bytes.extend_from_slice(&(self.length as u32).to_be_bytes());
        if self.command == WRITE {
            bytes.extend_from_slice(&self.payload(partial));
        }
        bytes
    }
}

fn any_ask() -> impl Strategy<Value = Ask> {
    let command = prop_oneof![
        8 => Just(WRITE),
        3 => Just(WRITE_ZEROES),
        2 => Just(READ),
        1 => Just(TRIM),
        1 => Just(FLUSH),
        1 => Just(UNKNOWN),
    ];
    let block = BLOCK_BYTES as usize;
    let range = prop_oneof![
        4 => (0..16usize, 1..5usize).prop_map(move |(at, count)| (at * block, count * block)),
        2 => (0..256usize, 1..40usize).prop_map(|(at, count)| (at * PAGE, count * PAGE)),
        2 => (0..DISK_BYTES, 1..200_000usize),
        1 => (0..DISK_BYTES, Just(0)),
        1 => Just((DISK_BYTES, PAGE)),
        1 => Just((0, DISK_BYTES)),
    ];
    let content = prop::collection::vec(prop_oneof![3 => Just(0u8), 3 => Just(1), 2 => 2..9u8], 1..40);
    let mixed = prop_oneof![Just(vec![1]), Just(vec![0]), content];
    (command, 0..4u16, range, mixed).prop_map(|(command, flags, (offset, length), content)| {
        // A range wholly beyond the end fails; one that crosses it would leave its first part open.
        let length = if offset < DISK_BYTES { length.min(DISK_BYTES - offset) } else { length };
        let flags = match command {
            WRITE_ZEROES => flags,
            WRITE => flags & FUA,
            _ => 0,
        };
        Ask { command, flags, offset, length, content }
    })
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Knowledge {
    Nothing,
    Zeroes,
    Partial,
    /// As a seed, and where its data lie.
    Mapped,
    /// The source knows something, the destination does not.
    SourceOnly,
}

impl Knowledge {
    fn disk(self) -> Vec<u8> {
        if self == Self::Zeroes { vec![0; DISK_BYTES] } else { partial_disk() }
    }

    fn sides(self) -> (Image, ImageContent) {
        let index = || {
            let file = tempfile::tempfile().expect("a file");
            file.write_all_at(&partial_disk(), 0).expect("written");
            let index = scan(&file, KEY);
            ContentIndex::decode(&index.encode()).expect("its own bytes")
        };
        match self {
            Self::Nothing => (Image::Unknown, ImageContent::Unknown),
            Self::Zeroes => (Image::Zeroes, ImageContent::Zeroes),
            Self::Partial => (Image::Partial(index()), ImageContent::Partial { key: KEY, data: None }),
            Self::Mapped => {
                let disk = partial_disk();
                let ranges = disk.chunks(PAGE).enumerate().filter(|(_, page)| page.iter().any(|byte| *byte != 0));
                let data = ranges.map(|(page, bytes)| ((page * PAGE) as u64, (page * PAGE + bytes.len()) as u64));
                (Image::Partial(index()), ImageContent::Partial { key: KEY, data: Some(data.collect()) })
            }
            Self::SourceOnly => (Image::Partial(index()), ImageContent::Unknown),
        }
    }
}

/// A small generator: what happens next, and how much passes at once.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) as usize % sides
    }
}

/// One direction of an end, if there is one, and the bytes that wait in front of it.
type Hop = (Option<End>, VecDeque<u8>);

/// A direction of an end's filter.
#[derive(Clone)]
struct End(Arc<Mutex<dyn StreamFilter>>, Direction);

impl End {
    /// Outbound and inbound.
    fn both(filter: impl StreamFilter + 'static) -> (Self, Self) {
        let filter: Arc<Mutex<dyn StreamFilter>> = Arc::new(Mutex::new(filter));
        (Self(Arc::clone(&filter), Outbound), Self(filter, Inbound))
    }

    fn pass(&self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), FilterError> {
        let mut outputs = Outputs::default();
        self.0.lock().expect("whole").filter(self.1, bytes, &mut outputs)?;
        assert!(outputs.back.is_empty(), "nothing is answered here");
        out.append(&mut outputs.forward);
        Ok(())
    }
}

/// Requests of a client to a server, through what may stand between them.
struct Line {
    /// From the client on.
    there: Vec<Hop>,
    back: Vec<Hop>,
    server: Server,
    dice: Dice,
    chunk_max: usize,
    near: Arc<NbdMeter>,
    far: Arc<NbdMeter>,
}

type Replies = BTreeMap<u64, (u32, Vec<u8>)>;

impl Line {
    fn new(knowledge: Option<Knowledge>, flags: u16, seed: u64, chunk_max: usize) -> Self {
        let (near, far) = (Arc::<NbdMeter>::default(), Arc::<NbdMeter>::default());
        let mut line = Self {
            there: vec![(None, VecDeque::new())],
            back: vec![(None, VecDeque::new())],
            server: Server::new(knowledge.unwrap_or(Knowledge::Nothing).disk(), flags, false),
            dice: Dice(seed | 1),
            chunk_max,
            near: Arc::clone(&near),
            far: Arc::clone(&far),
        };
        if let Some(knowledge) = knowledge {
            let (image, content) = knowledge.sides();
            let (outbound, inbound) = End::both(nbd::source(image, near));
            let (far_outbound, far_inbound) = End::both(nbd::destination(content, far));
            line.there = vec![(Some(outbound), VecDeque::new()), (Some(far_inbound), VecDeque::new())];
            line.back = vec![(Some(far_outbound), VecDeque::new()), (Some(inbound), VecDeque::new())];
            line.server.strict = flags & SEND_WRITE_ZEROES != 0;
            let is_thin = line.server.strict && matches!(knowledge, Knowledge::Zeroes | Knowledge::Mapped);
            let is_data = |page: &[u8]| page.iter().any(|byte| *byte != 0);
            line.server.filled = is_thin.then(|| line.server.disk.chunks(PAGE).map(is_data).collect());
        }
        line
    }

    fn hop(hops: &mut [Hop], at: usize, count: usize, end: &mut Vec<u8>) {
        let (end_of, waiting) = &mut hops[at];
        let bytes: Vec<u8> = waiting.drain(..count.min(waiting.len())).collect();
        let mut out = Vec::new();
        match end_of {
            Some(end_of) => end_of.pass(&bytes, &mut out).expect("nothing is wrong"),
            None => out = bytes,
        }
        match hops.get_mut(at + 1) {
            Some((_, next)) => next.extend(out),
            None => end.append(&mut out),
        }
    }

    /// Something passes somewhere.
    fn step(&mut self, received: &mut Vec<u8>) {
        let (count, hop) = (1 + self.dice.roll(self.chunk_max), self.dice.roll(self.there.len()));
        match self.dice.roll(4) {
            0 => Self::hop(&mut self.there, hop, count, &mut self.server.input),
            1 => Self::hop(&mut self.back, hop, count, received),
            2 => self.server.work(),
            _ => {
                if !self.server.replies.is_empty() {
                    let reply = self.server.replies.swap_remove(self.dice.roll(self.server.replies.len()));
                    self.server.output.extend_from_slice(&reply);
                }
                self.back[0].1.extend(self.server.output.drain(..));
            }
        }
    }

    fn until<T>(&mut self, received: &mut Vec<u8>, mut done: impl FnMut(&mut Vec<u8>) -> Option<T>) -> T {
        for _ in 0..20_000_000 {
            if let Some(value) = done(received) {
                return value;
            }
            self.step(received);
        }
        panic!("it stands still");
    }

    fn shake_hands(&mut self, received: &mut Vec<u8>) {
        let greeting = self.until(received, |bytes| front(bytes, 18));
        assert_eq!(&greeting[..], b"NBDMAGICIHAVEOPT\0\x03");
        self.there[0].1.extend([0, 0, 0, 3]);
        let refused: &[u32] = if self.there.len() > 1 { &[11, 8, 5, 77] } else { &[] };
        for option in refused.iter().copied().chain([GO]) {
            let data: &[u8] = if option == GO { &[0, 0, 0, 0, 0, 0] } else { &[] };
            let out = &mut self.there[0].1;
            out.extend(b"IHAVEOPT");
            out.extend(option.to_be_bytes());
            out.extend((data.len() as u32).to_be_bytes());
            out.extend(data);
            loop {
                let head = self.until(received, |bytes| front(bytes, 20));
                assert_eq!(be32(&head, 8), option, "the client's own number");
                let (kind, length) = (be32(&head, 12), be32(&head, 16) as usize);
                let data = self.until(received, |bytes| front(bytes, length));
                if option != GO {
                    assert_eq!(kind, 1 << 31 | 1, "not supported");
                    break;
                }
                if kind == 1 {
                    break;
                }
                if length == 12 {
                    let expected = if refused.is_empty() { self.server.flags } else { self.server.flags & !MULTI_CONN };
                    assert_eq!((be64(&data, 2), be16(&data, 10)), (DISK_BYTES as u64, expected));
                }
            }
        }
    }

    /// Asks with up to `depth` at once; the replies by cookie.
    fn run(&mut self, asks: &[Ask], depth: usize) -> Replies {
        let partial = partial_disk();
        let mut received = Vec::new();
        self.shake_hands(&mut received);
        let mut replies = Replies::new();
        let mut open = VecDeque::new();
        for (cookie, ask) in asks.iter().enumerate() {
            if open.len() == depth {
                self.take_reply(asks, &mut received, &mut replies);
                open.pop_front();
            }
            self.there[0].1.extend(ask.bytes(cookie as u64, &partial));
            open.push_back(cookie);
        }
        for _ in open {
            self.take_reply(asks, &mut received, &mut replies);
        }
        let goodbye = Ask { command: DISCONNECT, flags: 0, offset: 0, length: 0, content: vec![0] };
        self.there[0].1.extend(goodbye.bytes(0, &[]));
        for _ in 0..100_000 {
            if self.server.stage == Stage::Over {
                break;
            }
            self.step(&mut received);
        }
        assert!(self.server.stage == Stage::Over && received.is_empty() && self.server.replies.is_empty());
        replies
    }

    fn take_reply(&mut self, asks: &[Ask], received: &mut Vec<u8>, replies: &mut Replies) {
        let head = self.until(received, |bytes| front(bytes, 16));
        assert_eq!(be32(&head, 0), 0x6744_6698);
        let (error, cookie) = (be32(&head, 4), be64(&head, 8));
        let ask = &asks[cookie as usize];
        let length = if ask.command == READ && error == 0 { ask.length } else { 0 };
        let data = self.until(received, |bytes| front(bytes, length));
        assert!(replies.insert(cookie, (error, data)).is_none(), "one reply for each request");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]
    #[test]
    fn the_disk_and_the_replies_are_those_without(
        asks in prop::collection::vec(any_ask(), 0..24),
        knowledge in prop_oneof![
            Just(Knowledge::Nothing), Just(Knowledge::Zeroes), Just(Knowledge::Partial), Just(Knowledge::Mapped),
            Just(Knowledge::SourceOnly)
        ],
        has_zeroes in prop::bool::weighted(0.9),
        depth in 1..16usize,
        chunk_max in prop_oneof![Just(40usize), Just(5000), Just(100_000), Just(2_000_000)],
        seed in any::<u64>(),
    ) {
        let flags = if has_zeroes { FLAGS } else { FLAGS & !SEND_WRITE_ZEROES };
        let asks: Vec<Ask> = asks.into_iter().filter(|ask| has_zeroes || ask.command != WRITE_ZEROES).collect();
        let mut plain = Line::new(None, flags, seed, 2_000_000);
        plain.server.disk = knowledge.disk();
        let expected = plain.run(&asks, 1);
        let mut line = Line::new(Some(knowledge), flags, seed, chunk_max);
        // One at a time, the order is the client's; many at once, the server still takes them in order.
        let replies = line.run(&asks, depth);
        for (cookie, reply) in &expected {
            prop_assert!(replies.get(cookie) == Some(reply), "the reply to {:?}", asks[*cookie as usize]);
        }
        prop_assert_eq!(replies.len(), expected.len());
        prop_assert!(line.server.disk == plain.server.disk, "the disks differ");
        prop_assert_eq!(line.far.mismatches(), 0);
        prop_assert_eq!(line.near.referenced_bytes(), line.far.referenced_bytes());
        prop_assert!(line.server.data_bytes <= plain.server.data_bytes);
    }
}

fn write(offset: usize, length: usize, content: &[u8]) -> Ask {
    Ask { command: WRITE, flags: 0, offset, length, content: content.to_vec() }
}

#[test]
fn the_first_error_of_the_parts_is_the_clients() {
    for broken_from in [0, 10, 100] {
        let mut line = Line::new(Some(Knowledge::Nothing), FLAGS, 3, 1000);
        line.server.broken_from = broken_from;
        let replies = line.run(&[write(0, 64 * PAGE, &[2, 0, 3, 0]), write(0, PAGE, &[4])], 2);
        let error = |broken| if broken { 5 } else { 0 };
        assert_eq!(replies[&0].0, error(broken_from < 64), "{broken_from}");
        assert_eq!(replies[&1].0, error(broken_from < 1), "{broken_from}");
    }
}

#[test]
fn zeroes_for_what_was_never_written_do_not_reach_the_server() {
    let mut line = Line::new(Some(Knowledge::Zeroes), FLAGS, 3, 100_000);
    // It fails whatever it is asked to write behind page 16.
    line.server.broken_from = 16;
    let zeroes = |flags, offset, length| Ask { command: WRITE_ZEROES, flags, ..write(offset, length, &[0]) };
    let replies = line.run(
        &[
            zeroes(NO_HOLE, 0, DISK_BYTES),
            write(20 * PAGE, 40 * PAGE, &[0]),
            write(0, PAGE, &[7]),
            zeroes(0, 0, DISK_BYTES),
            zeroes(FUA, 20 * PAGE, PAGE),
        ],
        1,
    );
    assert_eq!(replies.values().map(|reply| reply.0).collect::<Vec<_>>(), [0, 0, 0, 0, 5]);
    assert_eq!(line.near.elided_bytes(), 40 * PAGE as u64);
    assert_eq!(line.far.elided_bytes(), (2 * DISK_BYTES + 39 * PAGE) as u64);
    assert!(line.server.disk.iter().all(|byte| *byte == 0));
}

#[test]
fn what_the_seed_holds_is_named_and_what_it_lost_is_an_error() {
    let block = BLOCK_BYTES as usize;
    let mut line = Line::new(Some(Knowledge::Partial), FLAGS, 3, 100_000);
    line.server.disk[6 * block + 9] ^= 1;
    let asks = [
        write(5 * block, block, &[1]),
        write(6 * block, 2 * block, &[1]),
        // What must be on stable storage is written.
        Ask { flags: FUA, ..write(8 * block, block, &[1]) },
        // What was not the seed's is written, and then what was.
        write(5 * block, 512, &[9]),
        write(5 * block, block, &[1]),
    ];
    let replies = line.run(&asks, 1);
    assert_eq!(replies.values().map(|reply| reply.0).collect::<Vec<_>>(), [0, 5, 0, 0, 0]);
    assert_eq!((line.near.referenced_bytes(), line.far.referenced_bytes()), (3 * BLOCK_BYTES, 2 * BLOCK_BYTES));
    assert_eq!((line.far.mismatches(), line.server.data_bytes), (1, 2 * block + 512));
}

/// Passes `bytes` piece by piece.
fn pass(end: &End, bytes: &[u8]) -> Result<Vec<u8>, FilterError> {
    let mut out = Vec::new();
    bytes.chunks(3).try_for_each(|piece| end.pass(piece, &mut out)).map(|()| out)
}

#[test]
fn what_is_not_understood_before_the_first_request_passes_as_it_is() {
    let stranger = b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53 and then requests".as_slice();
    let not_fixed = b"NBDMAGICIHAVEOPT\0\0 anything".as_slice();
    for greeting in [stranger, not_fixed, b"SSH-2.0"] {
        let (requests, replies) = End::both(nbd::source(Image::Zeroes, Arc::default()));
        assert_eq!(pass(&replies, greeting).expect("passed"), greeting);
        assert_eq!(pass(&requests, b"whatever").expect("passed"), b"whatever");
        let (replies, requests) = End::both(nbd::destination(ImageContent::Zeroes, Arc::default()));
        assert_eq!(pass(&requests, b"what no option begins with").expect("passed"), b"what no option begins with");
        assert_eq!(pass(&replies, greeting).expect("passed"), greeting);
    }
}

#[test]
fn what_is_not_understood_after_the_handshake_ends_the_channel() {
    let request = |command: u16, cookie: u64| Ask { command, ..write(0, 0, &[0]) }.bytes(cookie, &[]);
    let mut structured = vec![0x66, 0x8e, 0x33, 0xef];
    structured.extend_from_slice(&[0; 12]);
    let mut old = request(READ, 1);
    old[0] = 0;
    let mut no_cookie = 0x6744_6698_u32.to_be_bytes().to_vec();
    no_cookie.extend_from_slice(&[9; 12]);
    let twice = [request(FLUSH, 1), request(FLUSH, 1)].concat();
    let own = request(0xf001, 1);
    let after = [request(DISCONNECT, 1), vec![0]].concat();
    let many: Vec<u8> = (0..1025).flat_map(|cookie| request(FLUSH, cookie)).collect();
    for (is_request, bytes) in
        [(true, old), (true, twice), (true, own), (true, after), (true, many), (false, structured), (false, no_cookie)]
    {
        let mut line = Line::new(Some(Knowledge::Nothing), FLAGS, 1, 100);
        line.shake_hands(&mut Vec::new());
        let hop = if is_request { &mut line.there[0] } else { &mut line.back[1] };
        let mut out = Vec::new();
        assert!(hop.0.as_mut().expect("the source's").pass(&bytes, &mut out).is_err(), "{bytes:?}");
    }
}

#[test]
fn data_and_short_zeroes_that_must_be_written_are_one_request() {
    let pages = 64 * PAGE;
    // Where nothing was, zeroes stay away, and each page of data is a request of its own.
    for (knowledge, first, second) in
        [(Knowledge::Nothing, 1, 1), (Knowledge::Zeroes, 32, 1), (Knowledge::Partial, 1, 1)]
    {
        let mut line = Line::new(Some(knowledge), FLAGS, 3, 100_000);
        line.run(&[write(0, pages, &[2, 0])], 1);
        assert_eq!(line.server.requests, first + 1, "{knowledge:?}");
        let mut line = Line::new(Some(knowledge), FLAGS, 3, 100_000);
        // Long zeroes stay zeroes: data, zeroes, and data with short zeroes in one.
        let mixed: Vec<u8> =
            (0..64).map(|page| if (20..40).contains(&page) || page % 2 == 1 { 0 } else { 3 }).collect();
        line.run(&[write(0, pages, &[2]), write(0, pages, &[3, 0]), write(0, pages, &mixed)], 1);
        assert_eq!(line.server.requests, 1 + second + 3 + 1, "{knowledge:?}");
        // Alone they are no data.
        let mut line = Line::new(Some(knowledge), FLAGS, 3, 100_000);
        line.run(&[write(0, PAGE, &[2]), write(0, PAGE, &[0])], 1);
        assert_eq!((line.server.requests, line.server.data_bytes), (3, PAGE), "{knowledge:?}");
    }
}

/// Both ends, byte by byte.
struct Peers {
    there: [End; 2],
    back: [End; 2],
}

impl Peers {
    fn new(catalog: impl ImageCatalog + 'static) -> Self {
        let (outbound, inbound) = End::both(nbd::source(Image::Unknown, Arc::default()));
        let (far_outbound, far_inbound) = End::both(nbd::destination(catalog, Arc::default()));
        Self { there: [outbound, far_inbound], back: [far_outbound, inbound] }
    }

    fn pass(hops: &mut [End; 2], bytes: &[u8]) -> Vec<u8> {
        let mut passed = bytes.to_vec();
        for hop in hops {
            let mut out = Vec::new();
            passed.chunks(3).for_each(|piece| hop.pass(piece, &mut out).expect("nothing is wrong"));
            passed = out;
        }
        passed
    }

    /// What the server gets of what the client says.
    fn there(&mut self, bytes: &[u8]) -> Vec<u8> {
        Self::pass(&mut self.there, bytes)
    }

    fn back(&mut self, bytes: &[u8]) -> Vec<u8> {
        Self::pass(&mut self.back, bytes)
    }

    fn greet(&mut self, server_flags: u16, client_flags: u32) {
        let greeting = [b"NBDMAGICIHAVEOPT".as_slice(), &server_flags.to_be_bytes()].concat();
        assert_eq!(self.back(&greeting), greeting);
        assert_eq!(self.there(&client_flags.to_be_bytes()), client_flags.to_be_bytes());
    }
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    [b"IHAVEOPT".as_slice(), &number.to_be_bytes(), &(data.len() as u32).to_be_bytes(), data].concat()
}

fn option_reply(number: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let magic = 0x0003_e889_0455_65a9_u64.to_be_bytes();
    [&magic[..], &number.to_be_bytes(), &kind.to_be_bytes(), &(data.len() as u32).to_be_bytes(), data].concat()
}

/// The data of INFO and GO.
fn choice(name: &str) -> Vec<u8> {
    [&(name.len() as u32).to_be_bytes(), name.as_bytes(), &[0, 0]].concat()
}

fn export(size_bytes: u64, flags: u16) -> Vec<u8> {
    [&size_bytes.to_be_bytes()[..], &flags.to_be_bytes()].concat()
}

fn info_export(size_bytes: u64) -> Vec<u8> {
    [&[0, 0], export(size_bytes, FLAGS).as_slice()].concat()
}

fn info_block_size(least: u32) -> Vec<u8> {
    [&[0, 3][..], &least.to_be_bytes(), &least.max(4096).to_be_bytes(), &(32_u32 << 20).to_be_bytes()].concat()
}

type Asked = Arc<Mutex<Vec<(String, u64)>>>;

/// Notes what it is asked, and says that all is zero.
struct Notes(Asked);

impl ImageCatalog for Notes {
    fn content(&mut self, export: &str, size_bytes: u64) -> ImageContent {
        self.0.lock().expect("alone").push((export.to_owned(), size_bytes));
        ImageContent::Zeroes
    }

    fn changed(&mut self, _offset: u64) {}
}

/// Whether a WRITE of a page of zeroes goes in parts, of which an image that holds zeroes needs nothing.
fn is_understood(peers: &mut Peers) -> bool {
    let served = peers.there(&write(0, PAGE, &[0]).bytes(1, &[]));
    match be16(&served, 6) {
        READ => true,
        WRITE => {
            assert_eq!(served.len(), 28 + PAGE);
            false
        }
        WRITE_ZEROES => panic!("it was told that all is zero"),
        other => panic!("command {other}"),
    }
}

#[test]
fn an_export_that_is_chosen_by_its_name_alone_is_understood() {
    for (server_flags, client_flags, padding) in [(3, 3, 0), (3, 1, 124), (1, 1, 124)] {
        let asked = Asked::default();
        let mut peers = Peers::new(Notes(Arc::clone(&asked)));
        peers.greet(server_flags, client_flags);
        let chosen = option(1, b"drive-virtio-disk0");
        assert_eq!(peers.there(&chosen), chosen);
        let reply = [export(1 << 20, FLAGS), vec![0; padding]].concat();
        let expected = [export(1 << 20, FLAGS & !MULTI_CONN), vec![0; padding]].concat();
        assert_eq!(peers.back(&reply), expected);
        assert!(is_understood(&mut peers), "{server_flags} {client_flags}");
        assert_eq!(*asked.lock().expect("alone"), [("drive-virtio-disk0".to_owned(), 1 << 20)]);
    }
}

#[test]
fn what_is_said_of_another_export_does_not_count() {
    const INFO: u32 = 6;
    for (first, second, understood) in [(65536, None, true), (65536, Some(4096), true), (512, Some(65536), false)] {
        let asked = Asked::default();
        let mut peers = Peers::new(Notes(Arc::clone(&asked)));
        peers.greet(3, 3);
        for (number, name, size_bytes, least) in [(INFO, "one", 1 << 30, Some(first)), (GO, "other", 1 << 20, second)] {
            let chosen = option(number, &choice(name));
            assert_eq!(peers.there(&chosen), chosen);
            if let Some(least) = least {
                peers.back(&option_reply(number, 3, &info_block_size(least)));
            }
            let reply = peers.back(&option_reply(number, 3, &info_export(size_bytes)));
            assert_eq!(be16(&reply, 30), FLAGS & !MULTI_CONN);
            peers.back(&option_reply(number, 1, &[]));
        }
        assert_eq!(is_understood(&mut peers), understood, "{first} {second:?}");
        assert_eq!(*asked.lock().expect("alone"), [("other".to_owned(), 1 << 20)]);
    }
}

#[test]
fn of_a_second_choice_nothing_is_known() {
    let asked = Asked::default();
    let mut peers = Peers::new(Notes(Arc::clone(&asked)));
    peers.greet(3, 3);
    peers.there(&option(GO, &choice("one")));
    peers.back(&option_reply(GO, 3, &info_export(1 << 20)));
    peers.back(&option_reply(GO, 1 << 31 | 6, b"not that one"));
    peers.there(&option(GO, &choice("other")));
    peers.back(&option_reply(GO, 3, &info_export(1 << 20)));
    peers.back(&option_reply(GO, 1, &[]));
    let served = peers.there(&write(0, PAGE, &[0]).bytes(1, &[]));
    assert_eq!(be16(&served, 6), WRITE_ZEROES, "it may hold anything");
    assert_eq!(*asked.lock().expect("alone"), [("one".to_owned(), 1 << 20)]);
}

#[test]
fn a_server_that_was_not_kept_from_an_option_is_carried_as_it_is() {
    const STRUCTURED_REPLY: u32 = 8;
    // The source's end is not understood either, and hides nothing.
    let (replies, requests) = End::both(nbd::destination(ImageContent::Zeroes, Arc::default()));
    pass(&replies, b"NBDMAGICIHAVEOPT\0\x03").expect("passed");
    pass(&requests, &[0, 0, 0, 3]).expect("passed");
    pass(&requests, &option(STRUCTURED_REPLY, &[])).expect("passed");
    let granted = option_reply(STRUCTURED_REPLY, 1, &[]);
    assert_eq!(pass(&replies, &granted).expect("passed"), granted);
    let rest = [option(GO, &choice("")), b"requests of a form that is not known".to_vec()].concat();
    assert_eq!(pass(&requests, &rest).expect("passed"), rest);
    let rest = [option_reply(GO, 3, &info_export(1 << 20)), b"replies of a form that is not known".to_vec()].concat();
    assert_eq!(pass(&replies, &rest).expect("passed"), rest);
}

#[test]
fn parts_that_are_none_end_the_channel() {
    let block = BLOCK_BYTES as u32;
    let parts = |offset: u64, length: u32, parts: &[(u8, u32)]| {
        let mut bytes = Ask { command: 0xf001, ..write(offset as usize, length as usize, &[0]) }.bytes(1, &[]);
        for (kind, length) in parts {
            bytes.push(*kind);
            bytes.extend_from_slice(&length.to_be_bytes());
        }
        bytes
    };
    for (what, knowledge, bytes) in [
        ("an unknown kind", Knowledge::Nothing, parts(0, 4096, &[(9, 4096)])),
        ("an empty part", Knowledge::Nothing, parts(0, 4096, &[(1, 0)])),
        ("no parts", Knowledge::Nothing, parts(0, 0, &[])),
        ("longer than its WRITE", Knowledge::Nothing, parts(0, 4096, &[(1, 4097)])),
        ("longer than what is left", Knowledge::Nothing, parts(0, 8192, &[(1, 4096), (2, 4097)])),
        ("too long a WRITE", Knowledge::Nothing, parts(0, (32 << 20) + 1, &[])),
        ("a block between two", Knowledge::Partial, parts(4096, 4 * block, &[(3, block)])),
        ("half a block", Knowledge::Partial, parts(0, 4 * block, &[(3, block / 2)])),
        ("a block of no seed", Knowledge::Zeroes, [parts(0, block, &[(3, block)]), vec![1; 16]].concat()),
    ] {
        let mut line = Line::new(Some(knowledge), FLAGS, 1, 100);
        line.shake_hands(&mut Vec::new());
        let mut out = Vec::new();
        assert!(line.there[1].0.as_mut().expect("the destination's").pass(&bytes, &mut out).is_err(), "{what}");
    }
}
