//! How fast one channel carries bytes between two UNIX sockets over TLS on loopback. As in a move, each carrier has a
//! thread of its own, and so have those that write to one and read from the other.
//! `cargo run --release -p ferry-wire --example throughput [MiB] [plain|random|mixed|nbd|nbd-opaque|nbd-zeroes|nbd-seed]
//! [round trip in ms, 0: no relay] [MB/s] [lanes] [none|adaptive|raw|lz4|zstd:LEVEL|long:LEVEL]`
//!
//! - `plain`: one byte again and again; `random`: bytes that do not repeat.
//! - `mixed`: 64 MiB of pages as a guest's memory may hold, again and again: a tenth zeroes, a fifth words, a fifth bytes
//!   that do not repeat, and half of this machine's programs and libraries.
//! - `nbd`: those bytes as WRITEs of 1 MiB, sixteen at once as QEMU's mirror does, through the recogniser, to a server
//!   that only answers; `nbd-zeroes`: pages of zeroes; `nbd-seed`: bytes that the destination's image holds.
//! - `nbd-opaque`: as `nbd`, without the recogniser.
//!
//! `none`: no codecs are agreed, so there are no threads for them; `adaptive`: each end chooses by what it measures;
//! `long`: zstd with long-distance matching.
//!
//! It tells how long each carrier's thread used a processor: where others use it too, that says more than the rate.
//!
//! With a round trip, the bytes go through a relay that delays them, at this rate.

use std::{
    collections::VecDeque,
    error::Error,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream as LocalStream,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use ferry_core::{compression::Choice, id::SessionId};
use ferry_trust::{Clients, KeyPair, client_config, random_secret, server_config};
use ferry_wire::{
    channel::{Compression, Options},
    codec::Codecs,
    content::index::{BLOCK_BYTES, ContentIndex, ContentKey},
    frame::Codec,
    hello::{Channel, Terms},
    meter::{Coded, Meter},
    nbd::{self, Image, ImageContent},
    session::{Acceptor, Dialer, SessionKey},
    transport::{local, tcp::keep_freed_memory},
};
use link::Link;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    runtime::{Builder, Handle},
};

#[path = "../tests/component/link/mod.rs"]
mod link;

const MIB: usize = 1 << 20;
const KEY: ContentKey = ContentKey([1; 32]);
/// What QEMU's mirror has in flight.
const DEPTH: usize = 16;
const READ: u16 = 0;
const WRITE: u16 = 1;
/// What QEMU reads from a stream at once.
const QEMU_READ_BYTES: usize = 32 << 10;

type Fault = Box<dyn Error + Send + Sync>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Fault> {
    keep_freed_memory();
    let mib: usize = std::env::args().nth(1).map_or(Ok(2048), |text| text.parse())?;
    let what = std::env::args().nth(2).unwrap_or_else(|| "plain".to_owned());
    let chunk = match what.as_str() {
        "plain" => vec![0xa5; MIB],
        "mixed" => mixed(),
        "nbd-zeroes" => vec![0; MIB],
        _ => noise(MIB),
    };
    let meter = Arc::new(Meter::default());
    let (near, far) = options(&what, &chunk, mib, &meter)?;
    let carriers = [carrier()?, carrier()?];
    let (feed, drain) = line(&carriers, near, far).await?;
    let started = Instant::now();
    if what.starts_with("nbd") {
        let server = tokio::spawn(serve(tokio_stream(drain)?, (mib * MIB) as u64, chunk.clone()));
        write_disk(tokio_stream(feed)?, chunk, mib).await?;
        server.await??;
    } else {
        stream(feed, drain, chunk, mib)?;
    }
    let (seconds, gb) = (started.elapsed().as_secs_f64(), (mib * MIB) as f64 / 1e9);
    println!(
        "{what}: {mib} MiB in {seconds:.2} s: {:.0} MB/s, {} KiB sent, at most {} KiB waiting",
        gb * 1e3 / seconds,
        meter.sent_plain() >> 10,
        meter.waiting_max() >> 10
    );
    for codec in Codec::ALL {
        let Coded { plain, coded } = meter.coded(*codec);
        if plain > 0 {
            println!("{codec:?}: {:.1} MB became {:.1} MB", plain as f64 / 1e6, coded as f64 / 1e6);
        }
    }
    println!("{:.1} MB on the wire, {:.2} s encoding", meter.wire() as f64 / 1e6, meter.encoding().as_secs_f64());
    let [source, destination] = [busy(&carriers[0]).await?, busy(&carriers[1]).await?];
    println!("processor time for 1 GB: source {:.3} s, destination {:.3} s", source / gb, destination / gb);
    Ok(())
}

/// 64 MiB of pages, shuffled in runs of four.
fn mixed() -> Vec<u8> {
    const RUN: usize = 16 << 10;
    let folders = ["/usr/bin", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64"];
    let mut paths: Vec<_> =
        folders.iter().flat_map(std::fs::read_dir).flatten().flatten().map(|entry| entry.path()).collect();
    paths.sort();
    let mut programs = Vec::new();
    for path in paths {
        if programs.len() < 32 * MIB && path.metadata().is_ok_and(|file| file.is_file() && file.len() < 8 << 20) {
            programs.extend(std::fs::read(path).unwrap_or_default());
        }
    }
    let (noise, words) =
        (noise(16 * MIB), ["memory ", "page ", "of a guest, ", "which ", "holds ", "a log: ", "done\n"]);
    let words: Vec<u8> =
        noise.iter().flat_map(|byte| words[usize::from(*byte) % words.len()].bytes()).take(13 * MIB).collect();
    let runs = 64 * MIB / RUN;
    let mut at = 0;
    let mut mixed = Vec::with_capacity(64 * MIB);
    for run in 0..runs {
        at = (at + 1663) % runs;
        let from = |source: &[u8]| {
            let from = at * RUN % (source.len() - RUN);
            source[from..from + RUN].to_vec()
        };
        mixed.extend(match run % 10 {
            0 => vec![0; RUN],
            1 | 2 => from(&words),
            3 | 4 => from(&noise),
            _ if programs.len() > RUN => from(&programs),
            _ => from(&words),
        });
    }
    mixed
}

/// Whether codecs are agreed, and the one that is used; `None`: adapted.
fn codecs() -> Result<Option<Option<Choice>>, Fault> {
    let codec = std::env::args().nth(6).unwrap_or_else(|| "none".to_owned());
    Ok(Some(match codec.split_once(':').unwrap_or((&codec, "1")) {
        ("none", _) => return Ok(None),
        ("adaptive", _) => None,
        ("raw", _) => Some(Choice::Raw),
        ("lz4", _) => Some(Choice::Lz4),
        ("zstd", level) => Some(Choice::Zstd(level.parse()?)),
        ("long", level) => Some(Choice::ZstdLong(level.parse()?)),
        _ => return Err(format!("there is no codec {codec}").into()),
    }))
}

fn argument(number: usize) -> Result<Option<u64>, Fault> {
    Ok(std::env::args().nth(number).map(|text| text.parse()).transpose()?)
}

fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

/// What the two ends are run with.
fn options(what: &str, chunk: &[u8], mib: usize, meter: &Arc<Meter>) -> Result<(Options, Options), Fault> {
    let limit = Duration::from_millis(300);
    let compression = Compression { fixed: codecs()?.flatten(), cpu: None };
    let near = Options { compression, ..Options::new(limit, Arc::clone(meter)) };
    let far = Options::new(limit, Arc::default());
    let (image, content) = match what {
        "nbd" => (Image::Unknown, ImageContent::Unknown),
        "nbd-zeroes" => (Image::Zeroes, ImageContent::Zeroes),
        "nbd-seed" => {
            let started = Instant::now();
            let mut index = ContentIndex::new(KEY);
            let blocks = std::iter::repeat_n(chunk, mib).flat_map(|chunk| chunk.chunks_exact(BLOCK_BYTES as usize));
            (0..).zip(blocks).for_each(|(block, bytes)| index.insert(block, bytes));
            println!("hashed {mib} MiB in {:.2} s", started.elapsed().as_secs_f64());
            (Image::Partial(index), ImageContent::Partial { key: KEY, data: None })
        }
        _ => return Ok((near, far)),
    };
    let near = Options { filter: Some(Box::new(nbd::source(image, Arc::default()))), ..near };
    let far = Options { filter: Some(Box::new(nbd::destination(content, Arc::default()))), ..far };
    Ok((near, far))
}

/// The runtime of a carrier, on a thread of its own for as long as this process lives.
fn carrier() -> Result<Handle, Fault> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
    Ok(handle)
}

/// How long a carrier's thread has used a processor, in seconds.
async fn busy(carrier: &Handle) -> Result<f64, Fault> {
    let text = carrier.spawn(async { std::fs::read_to_string("/proc/thread-self/schedstat") }).await??;
    Ok(text.split(' ').next().unwrap_or_default().parse::<f64>()? / 1e9)
}

/// Two carriers over TLS; the sockets at their two ends.
async fn line(
    [at_source, at_destination]: &[Handle; 2],
    near_options: Options,
    far_options: Options,
) -> Result<(LocalStream, LocalStream), Fault> {
    let (source, destination) = (KeyPair::generate()?, KeyPair::generate()?);
    let key = SessionKey { session: SessionId(uuid::Uuid::new_v4()), secret: random_secret() };
    let tls = server_config(&destination, Clients::Only(source.pin()))?;
    let mut acceptor = at_destination.spawn(Acceptor::bind([127, 0, 0, 1].into(), 0..=0, tls, key)).await??;
    let address = match argument(3)? {
        None | Some(0) => acceptor.address(),
        Some(trip_ms) => {
            let link = Link {
                rate_bytes_per_s: argument(4)?.unwrap_or(125) * 1_000_000,
                round_trip: Duration::from_millis(trip_ms),
                queue: Duration::from_millis(200),
            };
            // This thread is busy with the sockets.
            let behind = acceptor.address();
            carrier()?.spawn(link.before(behind)).await??
        }
    };
    let dialer = Dialer::new(address, client_config(Some(&source), destination.pin())?, key);
    let lanes = argument(5)?.unwrap_or(1) as u8;
    let codecs = if codecs()?.is_some() { Codecs::all() } else { Codecs::NONE };
    // The first connection tells what the destination is able to do.
    let accepting = at_destination.spawn(async move { (acceptor.accept().await, acceptor.accept().await) });
    let dialing = async move {
        let _control = dialer.open(Channel::Control).await?;
        dialer.open_on(Terms { lanes, codecs }, Channel::Memory(0)).await
    };
    let dialed = at_source.spawn(dialing).await??;
    let (_, accepted) = accepting.await?.1.ok_or("not accepted")?;
    let (feed, near) = LocalStream::pair()?;
    let (far, drain) = LocalStream::pair()?;
    near.set_nonblocking(true)?;
    far.set_nonblocking(true)?;
    at_source.spawn(async move {
        dialed.widen();
        let (reader, writer) = UnixStream::from_std(near).expect("its reactor takes it").into_split();
        dialed.carry(reader, writer, near_options).await
    });
    at_destination.spawn(async move {
        let far = UnixStream::from_std(far).expect("its reactor takes it");
        local::widen(&far);
        let (reader, writer) = far.into_split();
        accepted.carry(reader, writer, far_options).await
    });
    Ok((feed, drain))
}

fn stream(mut feed: LocalStream, mut drain: LocalStream, chunk: Vec<u8>, mib: usize) -> Result<(), Fault> {
    let feeding =
        thread::spawn(move || chunk.chunks(MIB).cycle().take(mib).try_for_each(|chunk| feed.write_all(chunk)));
    let mut buffer = vec![0; QEMU_READ_BYTES];
    while drain.read(&mut buffer)? > 0 {}
    feeding.join().map_err(|_| "the feeder panicked")?.map_err(Fault::from)
}

fn tokio_stream(stream: LocalStream) -> std::io::Result<UnixStream> {
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

fn request(command: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend_from_slice(&[0, 0]);
    bytes.extend_from_slice(&command.to_be_bytes());
    bytes.extend_from_slice(&cookie.to_be_bytes());
    bytes.extend_from_slice(&offset.to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes
}

/// Writes a disk of so many MiB and waits for the last reply.
async fn write_disk(feed: UnixStream, chunk: Vec<u8>, mib: usize) -> Result<(), Fault> {
    let (reader, mut writer): (OwnedReadHalf, OwnedWriteHalf) = feed.into_split();
    let mut reader = BufReader::new(reader);
    reader.read_exact(&mut [0; 18]).await?;
    // Flags and GO; its replies are an information of 12 bytes and the last word.
    writer.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\x06\0\0\0\0\0\0").await?;
    reader.read_exact(&mut [0; 20 + 12 + 20]).await?;
    let mut open = VecDeque::new();
    for number in 0..mib {
        if open.len() == DEPTH {
            reader.read_exact(&mut [0; 16]).await?;
            open.pop_front();
        }
        writer.write_all(&request(WRITE, number as u64, (number * MIB) as u64, MIB as u32)).await?;
        writer.write_all(&chunk).await?;
        open.push_back(number);
    }
    for _ in open {
        reader.read_exact(&mut [0; 16]).await?;
    }
    Ok(())
}

/// A server of NBD that forgets what is written; READs get what the chunk holds. Ends when the client does.
async fn serve(drain: UnixStream, size_bytes: u64, chunk: Vec<u8>) -> Result<(), Fault> {
    let (reader, mut writer) = drain.into_split();
    let mut reader = BufReader::with_capacity(MIB, reader);
    writer.write_all(b"NBDMAGICIHAVEOPT\0\x03").await?;
    reader.read_exact(&mut [0; 4 + 16 + 6]).await?;
    let mut replies = Vec::new();
    for (kind, data) in [(3u32, [[0, 0].as_slice(), &size_bytes.to_be_bytes(), &[0, 0x4d]].concat()), (1, Vec::new())] {
        replies.extend_from_slice(&0x0003_e889_0455_65a9_u64.to_be_bytes());
        for word in [7, kind, data.len() as u32] {
            replies.extend_from_slice(&word.to_be_bytes());
        }
        replies.extend_from_slice(&data);
    }
    writer.write_all(&replies).await?;
    let (mut head, mut payload) = ([0; 28], vec![0; MIB]);
    while reader.read_exact(&mut head).await.is_ok() {
        let (command, length) =
            (u16::from_be_bytes([head[6], head[7]]), u32::from_be_bytes([head[24], head[25], head[26], head[27]]));
        if command == WRITE {
            reader.read_exact(&mut payload[..length as usize]).await?;
        }
        let mut reply = vec![0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0];
        reply.extend_from_slice(&head[8..16]);
        if command == READ {
            let offset = u64::from_be_bytes(head[16..24].try_into()?) as usize % MIB;
            reply.extend_from_slice(&chunk[offset..offset + length as usize]);
        }
        writer.write_all(&reply).await?;
    }
    Ok(())
}
