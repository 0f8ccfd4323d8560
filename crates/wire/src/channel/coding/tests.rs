//! Channels with a codec, which is one for these tests and may take as long as it likes.

use std::{
    sync::{Arc, mpsc},
    time::Duration,
};

use ferry_core::{compression::Choice, id::SessionId};
use ferry_trust::{Clients, KeyPair, client_config, random_secret, server_config};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex, split},
    task::{JoinHandle, yield_now},
};
use uuid::Uuid;

use super::{Coding, Decoder, Encoder};
use crate::{
    WireError,
    channel::{Compression, Options, carry_coded},
    codec::{Codecs, codec_of},
    frame::{Codec, HEADER_BYTES, Header},
    hello::{Channel, Terms},
    meter::Meter,
    session::{Acceptor, Connection, Dialer, SessionKey},
};

const DEADLINE: Duration = Duration::from_secs(20);
const LIMIT: Duration = Duration::from_millis(300);

/// Bytes that are all the same are sent as one, when the gate opens. It takes the place of [`Codec::Lz4`].
struct Repeats {
    gate: Option<mpsc::Receiver<()>>,
}

impl Repeats {
    fn waits(&mut self) {
        if let Some(gate) = &self.gate {
            // Open from when the other end is dropped.
            let _ = gate.recv();
        }
    }
}

impl Encoder for Repeats {
    fn encode(&mut self, plain: &[u8], coded: &mut Vec<u8>) -> Codec {
        self.waits();
        coded.clear();
        coded.push(plain[0]);
        if plain.len() > 1 && plain.iter().all(|byte| *byte == plain[0]) { Codec::Lz4 } else { Codec::Raw }
    }
}

impl Decoder for Repeats {
    fn decode(&mut self, codec: Codec, coded: &[u8], plain: &mut [u8]) -> bool {
        assert_eq!(codec, Codec::Lz4);
        self.waits();
        plain.fill(coded[0]);
        coded.len() == 1
    }
}

/// [`Repeats`], of which the encoder and the decoder of the first lane wait at gates.
fn repeats(mut encoder: Option<mpsc::Receiver<()>>, mut decoder: Option<mpsc::Receiver<()>>) -> Coding {
    Coding {
        codecs: lz4(),
        encoder: Box::new(move || Box::new(Repeats { gate: encoder.take() })),
        decoder: Box::new(move || Box::new(Repeats { gate: decoder.take() })),
    }
}

fn coding(encoder: Option<mpsc::Receiver<()>>, decoder: Option<mpsc::Receiver<()>>) -> Option<Coding> {
    Some(repeats(encoder, decoder))
}

/// [`Codec::Lz4`] alone.
fn lz4() -> Codecs {
    Codecs::from_byte(1).expect("known")
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("done in time")
}

async fn until(is_so: impl Fn() -> bool) {
    within(async {
        while !is_so() {
            yield_now().await;
        }
    })
    .await;
}

struct End {
    local: DuplexStream,
    meter: Arc<Meter>,
    task: JoinHandle<Result<(), WireError>>,
}

fn end(peer: DuplexStream, coding: Option<Coding>) -> End {
    let (local, near) = duplex(64 << 10);
    let (reader, writer) = split(local);
    let meter = Arc::<Meter>::default();
    let options = Options::new(LIMIT, Arc::clone(&meter));
    let task = tokio::spawn(async move { carry_coded(vec![peer], reader, writer, options, coding).await });
    End { local: near, meter, task }
}

fn agreed_end(connection: Connection, fixed: Choice) -> End {
    let (local, near) = duplex(64 << 10);
    let (reader, writer) = split(local);
    let meter = Arc::<Meter>::default();
    let compression = Compression { fixed: Some(fixed), cpu: None };
    let options = Options { compression, ..Options::new(LIMIT, Arc::clone(&meter)) };
    End { local: near, meter, task: tokio::spawn(async move { connection.carry(reader, writer, options).await }) }
}

fn pair(near: Option<Coding>, far: Option<Coding>) -> (End, End) {
    let (one, other) = duplex(1 << 20);
    (end(one, near), end(other, far))
}

async fn carries(from: &mut End, to: &mut End, bytes: &[u8]) {
    let mut heard = vec![0; bytes.len()];
    let (sent, received) =
        within(async { tokio::join!(from.local.write_all(bytes), to.local.read_exact(&mut heard)) }).await;
    sent.expect("taken");
    received.expect("whole");
    assert!(heard == bytes, "the bytes differ");
    until(|| from.meter.waiting() == 0).await;
}

#[tokio::test]
async fn coded_frames_and_frames_as_they_are_arrive_in_order_and_whole() {
    let (mut near, mut far) = pair(coding(None, None), coding(None, None));
    let mixed =
        [vec![7; 900_000], (0..100_000_u32).map(|at| ((at * 31) >> 3) as u8).collect(), vec![9; 900_000]].concat();
    carries(&mut near, &mut far, &mixed).await;
    assert!(near.meter.wire() < 1_000_000, "{} bytes on the wire", near.meter.wire());
    carries(&mut far, &mut near, &[1; 10]).await;
    near.local.shutdown().await.expect("closed");
    far.local.shutdown().await.expect("closed");
    for end in [near, far] {
        within(end.task).await.expect("no panic").expect("complete");
    }
}

#[tokio::test]
async fn codecs_that_both_ends_agreed_on_are_used_and_the_first_pipe_agrees_on_none() {
    let (source, destination) = (KeyPair::generate().expect("keys"), KeyPair::generate().expect("keys"));
    let key = SessionKey { session: SessionId(Uuid::new_v4()), secret: random_secret() };
    let tls = server_config(&destination, Clients::Only(source.pin())).expect("config");
    let mut acceptor = Acceptor::bind([127, 0, 0, 1].into(), 0..=0, tls, key).await.expect("a free port");
    let tls = client_config(Some(&source), destination.pin()).expect("config");
    let dialer = Dialer::new(acceptor.address(), tls, key);
    let asked = Terms { codecs: Codecs::all(), lanes: 3 };
    let bytes = vec![7; 900_000];
    // Nothing is known of the destination when the first pipe is opened.
    for (terms, choice, wire_min, wire_max) in [
        (Terms::default(), Choice::Zstd(1), 900_000, 1_000_000),
        (asked, Choice::Raw, 900_000, 1_000_000),
        (asked, Choice::Lz4, 1, 12_000),
        (asked, Choice::Zstd(-5), 1, 12_000),
        (asked, Choice::ZstdLong(3), 1, 12_000),
    ] {
        let (dialed, accepted) = tokio::join!(dialer.open_on(asked, Channel::Memory(0)), acceptor.accept());
        let (dialed, (channel, accepted)) = (dialed.expect("accepted"), accepted.expect("it listens"));
        assert_eq!((channel, dialed.agreed().terms), (Channel::Memory(0), terms));
        assert_eq!(accepted.agreed().terms, terms);
        let (mut near, mut far) = (agreed_end(dialed, choice), agreed_end(accepted, choice));
        carries(&mut near, &mut far, &bytes).await;
        let wire = near.meter.wire();
        assert!((wire_min..wire_max).contains(&wire), "{choice:?}: {wire} bytes on the wire");
        for meter in [&near.meter, &far.meter] {
            let coded: Vec<_> = Codec::ALL.iter().map(|codec| meter.coded(*codec)).collect();
            let of = |codec: Codec| coded[usize::from(codec.number())];
            assert_eq!(coded.iter().map(|coded| coded.plain).sum::<u64>(), if terms == asked { 900_000 } else { 0 });
            assert_eq!(of(codec_of(choice)).plain > 0, terms == asked, "{coded:?}");
        }
        assert_eq!(near.meter.encoding() > Duration::ZERO, terms == asked);
        near.local.shutdown().await.expect("closed");
        far.local.shutdown().await.expect("closed");
        for end in [near, far] {
            within(end.task).await.expect("no panic").expect("complete");
        }
    }
}

#[tokio::test]
async fn a_codec_that_takes_long_delays_no_acknowledgement() {
    for slow_encoder in [true, false] {
        let (open, gate) = mpsc::channel();
        let (encoder, decoder) = if slow_encoder { (Some(gate), None) } else { (None, Some(gate)) };
        let (mut near, mut far) = pair(coding(encoder, None), coding(None, decoder));
        let (mut other_near, mut other_far) = pair(None, None);
        let slow = vec![5; 100_000];
        within(near.local.write_all(&slow)).await.expect("taken");
        until(|| near.meter.sent_plain() > 0).await;
        // Of the other direction of this channel, and of another channel on the same thread, in both directions.
        for _ in 0..3 {
            carries(&mut far, &mut near, &[6; 50_000]).await;
            carries(&mut other_near, &mut other_far, &[7; 500_000]).await;
            carries(&mut other_far, &mut other_near, &[8; 500_000]).await;
        }
        assert_eq!((far.meter.received_plain(), near.meter.waiting() > 0), (0, true), "it was not held up");
        drop(open);
        let mut heard = vec![0; slow.len()];
        within(far.local.read_exact(&mut heard)).await.expect("whole");
        assert!(heard == slow);
        until(|| near.meter.waiting() == 0).await;
    }
}

#[tokio::test]
async fn frames_of_another_codec_and_frames_that_are_none_of_it_end_the_channel() {
    let header = Header::Data { codec: Codec::Lz4, plain: 100, coded: 2, offset: 0, checksum: 1 }.encode();
    let frame = |at: usize, byte: u8| {
        let mut frame = [&header[..], &[1, 1]].concat();
        frame[at] = byte;
        frame
    };
    for (coding, frame, what) in [
        (None, frame(0, 1), "not agreed"),
        (coding(None, None), frame(1, 2), "not agreed"),
        (coding(None, None), frame(1, 30), "an unknown codec"),
        (coding(None, None), frame(0, 1), "cannot be decoded"),
        (coding(None, None), frame(8, 1)[..=HEADER_BYTES].to_vec(), "changed on the way"),
    ] {
        let (mut peer, other) = duplex(1 << 20);
        let End { mut local, task, .. } = end(other, coding);
        peer.write_all(&frame).await.expect("taken");
        let error = within(task).await.expect("no panic").expect_err(what);
        assert!(matches!(&error, WireError::Protocol(why) if why.contains(what)), "{what}: {error:?}");
        assert_eq!(within(local.read(&mut [0])).await.expect("dropped"), 0);
    }
}

#[tokio::test]
async fn a_codec_that_panics_ends_the_channel() {
    struct Panics;
    impl Encoder for Panics {
        fn encode(&mut self, _: &[u8], _: &mut Vec<u8>) -> Codec {
            panic!("expected by the test")
        }
    }
    impl Decoder for Panics {
        fn decode(&mut self, _: Codec, _: &[u8], _: &mut [u8]) -> bool {
            panic!("expected by the test")
        }
    }
    let panics = || {
        let (encoder, decoder) = (Box::new(|| Box::new(Panics) as _), Box::new(|| Box::new(Panics) as _));
        Some(Coding { codecs: lz4(), encoder, decoder })
    };
    for (near, far) in [(panics(), coding(None, None)), (coding(None, None), panics())] {
        let (mut near, far) = pair(near, far);
        near.local.write_all(&[3; 1000]).await.expect("taken");
        for end in [near, far] {
            within(end.task).await.expect("caught").expect_err("it is not complete");
        }
    }
}
