//! Channels over several lanes: real TLS on loopback, and in-memory pipes that stand still or end.

use std::{io, sync::Arc, time::Duration};

use ferry_core::id::SessionId;
use ferry_trust::{Clients, KeyPair, client_config, random_secret, server_config};
use ferry_wire::{
    WireError,
    channel::{Options, carry},
    hello::{Channel, Terms},
    meter::Meter,
    session::{Acceptor, Connection, Dialer, SessionKey},
    window::WINDOW_BYTES_MIN,
};
use proptest::prelude::*;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, duplex, split},
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinHandle},
};
use uuid::Uuid;

const DEADLINE: Duration = Duration::from_secs(20);
const LIMIT: Duration = Duration::from_millis(300);

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("done in time")
}

/// Both ends of a session. The relay before the acceptor can cut the connections that it joined, in their order.
struct Pair {
    acceptor: Acceptor,
    dialer: Dialer,
    joined: Arc<std::sync::Mutex<Vec<AbortHandle>>>,
}

impl Pair {
    async fn new() -> Self {
        let (source, destination) = (KeyPair::generate().expect("keys"), KeyPair::generate().expect("keys"));
        let key = SessionKey { session: SessionId(Uuid::new_v4()), secret: random_secret() };
        let tls = server_config(&destination, Clients::Only(source.pin())).expect("config");
        let acceptor = Acceptor::bind([127, 0, 0, 1].into(), 0..=0, tls, key).await.expect("a free port");
        let relay = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let (address, behind) = (relay.local_addr().expect("bound"), acceptor.address());
        let joined = Arc::<std::sync::Mutex<Vec<AbortHandle>>>::default();
        let handles = Arc::clone(&joined);
        tokio::spawn(async move {
            while let Ok((mut near, _)) = relay.accept().await {
                let mut far = TcpStream::connect(behind).await.expect("it listens");
                let pass = async move { tokio::io::copy_bidirectional(&mut near, &mut far).await };
                handles.lock().expect("no panic").push(tokio::spawn(pass).abort_handle());
            }
        });
        let tls = client_config(Some(&source), destination.pin()).expect("config");
        let mut pair = Self { acceptor, dialer: Dialer::new(address, tls, key), joined };
        // From now on the dialer knows the destination's abilities.
        let (control, accepted) = tokio::join!(pair.dialer.open(Channel::Control), pair.acceptor.accept());
        assert_eq!((control.is_ok(), accepted.map(|(channel, _)| channel)), (true, Some(Channel::Control)));
        pair
    }

    async fn open(&mut self, lanes: u8) -> (Connection, Connection) {
        let terms = Terms { lanes, ..Terms::default() };
        let (dialed, accepted) =
            within(async { tokio::join!(self.dialer.open_on(terms, Channel::Memory(0)), self.acceptor.accept()) })
                .await;
        let (dialed, (_, accepted)) = (dialed.expect("accepted"), accepted.expect("it listens"));
        assert_eq!((dialed.agreed().terms, accepted.agreed().terms), (terms, terms));
        (dialed, accepted)
    }
}

/// Runs one end of a channel in a task; returns the far end of its local socket.
fn end(connection: Connection, meter: &Arc<Meter>) -> (DuplexStream, JoinHandle<Result<(), WireError>>) {
    let (local, far) = duplex(64 << 10);
    let (reader, writer) = split(local);
    let options = Options::new(LIMIT, Arc::clone(meter));
    (far, tokio::spawn(async move { connection.carry(reader, writer, options).await }))
}

/// The same over in-memory pipes.
fn end_of<P>(lanes: Vec<P>, meter: &Arc<Meter>) -> (DuplexStream, JoinHandle<Result<(), WireError>>)
where
    P: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (local, far) = duplex(64 << 10);
    let (reader, writer) = split(local);
    let options = Options::new(LIMIT, Arc::clone(meter));
    (far, tokio::spawn(async move { carry(lanes, reader, writer, options).await }))
}

fn pattern(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(next).collect()
}

/// Sends these pieces and then the end of the stream; returns what arrived until the end of the other.
async fn exchange(stream: DuplexStream, pieces: Vec<Vec<u8>>) -> io::Result<Vec<u8>> {
    let (mut reader, mut writer) = split(stream);
    let send = async move {
        for piece in pieces {
            writer.write_all(&piece).await?;
            // Often it becomes a frame of its own.
            tokio::task::yield_now().await;
        }
        writer.shutdown().await
    };
    let receive = async move {
        let mut all = Vec::new();
        reader.read_to_end(&mut all).await.map(|_| all)
    };
    let (sent, received) = tokio::join!(send, receive);
    sent.and(received)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn whatever_the_lanes_both_streams_arrive_whole_and_in_order(
        lanes in 1..=8_u8,
        there in prop::collection::vec(1..400_000_usize, 0..24),
        back in prop::collection::vec(1..20_000_usize, 0..24),
        seed: u64,
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().expect("built");
        runtime.block_on(async {
            let mut pair = Pair::new().await;
            let (dialed, accepted) = pair.open(lanes).await;
            let meters = [Arc::<Meter>::default(), Arc::default()];
            let ((near, source), (far, destination)) = (end(dialed, &meters[0]), end(accepted, &meters[1]));
            let pieces = |lengths: &[usize]| {
                lengths.iter().zip(seed..).map(|(length, seed)| pattern(*length, seed)).collect::<Vec<_>>()
            };
            let (sent, returned) = (pieces(&there), pieces(&back));
            let (expected, expected_back) = (sent.concat(), returned.concat());
            let (heard_back, heard) = within(async { tokio::join!(exchange(near, sent), exchange(far, returned)) }).await;
            assert!(heard.expect("whole") == expected, "the stream differs");
            assert!(heard_back.expect("whole") == expected_back, "the other stream differs");
            for end in [source, destination] {
                within(end).await.expect("no panic").expect("complete");
            }
            for meter in meters {
                assert_eq!(meter.waiting(), 0);
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_that_dies_ends_the_channel_with_its_name_and_the_other_end_hears_of_it() {
    for lane in 0..4 {
        let mut pair = Pair::new().await;
        let (dialed, accepted) = pair.open(4).await;
        let (meter, meter_there) = (Arc::default(), Arc::default());
        let ((mut near, source), (mut far, destination)) = (end(dialed, &meter), end(accepted, &meter_there));
        within(near.write_all(b"all is well")).await.expect("taken");
        within(far.read_exact(&mut [0; 11])).await.expect("delivered");
        // The relay joined the control connection first.
        pair.joined.lock().expect("no panic")[1 + lane].abort();
        for end in [source, destination] {
            let error = within(end).await.expect("no panic").expect_err("a lane is missing");
            let is_reported = |reason: &str| reason.contains("of 4 to the other agent failed");
            assert!(
                matches!(&error, WireError::Lane { lanes: 4, .. })
                    || matches!(&error, WireError::Aborted(reason) if is_reported(reason)),
                "{error:?}"
            );
        }
        within(near.read_to_end(&mut Vec::new())).await.expect("the local sockets see the end");
        within(far.read_to_end(&mut Vec::new())).await.expect("the local sockets see the end");
    }
}

#[tokio::test]
async fn the_error_names_the_lane_that_ended() {
    for lane in 0..3_u8 {
        let (mut theirs, ours): (Vec<_>, Vec<_>) = (0..3).map(|_| duplex(1 << 16)).unzip();
        let (_local, channel) = end_of(ours, &Arc::default());
        drop(theirs.remove(usize::from(lane)));
        let error = within(channel).await.expect("no panic").expect_err("a lane is missing");
        assert!(matches!(error, WireError::Lane { lane: named, lanes: 3, .. } if named == lane), "{lane}: {error:?}");
    }
}

/// Joins two pipes of lanes, one of which stands still until it is told to go on.
fn lanes_with_one_that_stands(
    count: usize,
) -> (Vec<DuplexStream>, Vec<DuplexStream>, impl Future<Output = io::Result<()>> + Send + 'static) {
    let (mut near, mut far): (Vec<_>, Vec<_>) = (1..count).map(|_| duplex(1 << 16)).unzip();
    // Its pipe takes nothing but a header's worth.
    let (one, mut middle_one) = duplex(1 << 10);
    let (mut middle_two, other) = duplex(1 << 10);
    near.insert(0, one);
    far.insert(0, other);
    let go_on = async move { tokio::io::copy_bidirectional(&mut middle_one, &mut middle_two).await.map(drop) };
    (near, far, go_on)
}

#[tokio::test]
async fn a_lane_that_stands_still_holds_up_the_others_at_the_window_only() {
    let (near, far, go_on) = lanes_with_one_that_stands(3);
    let (meter, meter_there) = (Arc::<Meter>::default(), Arc::<Meter>::default());
    let ((near, source), (far, destination)) = (end_of(near, &meter), end_of(far, &meter_there));
    let bytes = pattern(3_000_000, 9);
    let feed = tokio::spawn(exchange(near, vec![bytes.clone()]));
    // The frame of the lane that stands is missing; those of the others arrive until the window is full.
    within(async {
        while meter.waiting() + (16 << 10) <= WINDOW_BYTES_MIN {
            tokio::task::yield_now().await;
        }
    })
    .await;
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
    let (sent, delivered) = (meter.sent_plain(), meter_there.received_plain());
    assert!(meter_there.wire() >= WINDOW_BYTES_MIN / 2, "the other lanes carried {} bytes", meter_there.wire());
    assert!(sent - delivered <= WINDOW_BYTES_MIN, "{sent} sent, {delivered} delivered");
    tokio::spawn(go_on);
    let heard = within(exchange(far, Vec::new())).await.expect("whole");
    assert!(heard == bytes, "the stream differs");
    within(feed).await.expect("no panic").expect("taken");
    for end in [source, destination] {
        within(end).await.expect("no panic").expect("complete");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lanes_of_several_channels_may_arrive_in_any_order() {
    let mut pair = Pair::new().await;
    let terms = Terms { lanes: 8, ..Terms::default() };
    let dialers = [pair.dialer.clone(), pair.dialer.clone()];
    let [one, other] = [0, 1].map(|index| dialers[index].open_on(terms, Channel::Disk(index as u16)));
    let accept = async { (pair.acceptor.accept().await, pair.acceptor.accept().await) };
    let (one, other, (first, second)) = within(async { tokio::join!(one, other, accept) }).await;
    assert_eq!((one.expect("accepted").agreed().terms, other.expect("accepted").agreed().terms), (terms, terms));
    let mut channels = [first.expect("it listens").0, second.expect("it listens").0];
    channels.sort_unstable();
    assert_eq!(channels, [Channel::Disk(0), Channel::Disk(1)]);
}
