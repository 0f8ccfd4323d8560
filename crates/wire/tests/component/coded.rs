//! Channels with codecs that adapt, over a link with a rate.

use std::{sync::Arc, time::Duration};

use ferry_core::{compression::CpuLoad, id::SessionId};
use ferry_trust::{Clients, KeyPair, client_config, random_secret, server_config};
use ferry_wire::{
    channel::{Compression, Options},
    codec::Codecs,
    frame::Codec,
    hello::{Channel, Terms},
    meter::Meter,
    session::{Acceptor, Connection, Dialer, SessionKey},
    traffic::Traffic,
    window::Law,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex, split},
    time::Instant,
};
use uuid::Uuid;

use crate::link::Link;

const DEADLINE: Duration = Duration::from_secs(30);
/// Slow enough for every codec, and fast enough for a test.
const LINK: Link =
    Link { rate_bytes_per_s: 8_000_000, round_trip: Duration::from_millis(2), queue: Duration::from_millis(50) };

fn words(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        format!("the page {} of a guest; ", state >> 20).into_bytes()
    };
    (0..length / 24).flat_map(next).collect()
}

fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..length).map(next).collect()
}

/// Both ends of a channel for which all codecs are agreed.
async fn pair() -> (Connection, Connection) {
    let (source, destination) = (KeyPair::generate().expect("keys"), KeyPair::generate().expect("keys"));
    let key = SessionKey { session: SessionId(Uuid::new_v4()), secret: random_secret() };
    let tls = server_config(&destination, Clients::Only(source.pin())).expect("config");
    let mut acceptor = Acceptor::bind([127, 0, 0, 1].into(), 0..=0, tls, key).await.expect("a free port");
    let address = LINK.before(acceptor.address()).await.expect("a free port");
    let dialer = Dialer::new(address, client_config(Some(&source), destination.pin()).expect("config"), key);
    // From then on the dialer knows the destination's abilities.
    let (control, _) = tokio::join!(dialer.open(Channel::Control), acceptor.accept());
    control.expect("accepted");
    let terms = Terms { codecs: Codecs::all(), lanes: 1 };
    let (dialed, accepted) = tokio::join!(dialer.open_on(terms, Channel::Memory(0)), acceptor.accept());
    let (dialed, (_, accepted)) = (dialed.expect("accepted"), accepted.expect("it listens"));
    assert_eq!((dialed.agreed().terms, accepted.agreed().terms), (terms, terms));
    (dialed, accepted)
}

fn end(connection: Connection, options: Options) -> DuplexStream {
    let (local, far) = duplex(256 << 10);
    let (reader, writer) = split(local);
    tokio::spawn(async move { connection.carry(reader, writer, options).await });
    far
}

/// Sends `bytes` again and again until it is done by the meter, or half of the deadline has passed; all of it arrives.
async fn sends(bytes: &[u8], cpu: CpuLoad, law: Law, is_done: impl Fn(&Meter) -> bool) -> Arc<Meter> {
    let (dialed, accepted) = pair().await;
    let (meter, traffic) = (Arc::<Meter>::default(), Arc::<Traffic>::default());
    traffic.set_law(law);
    let compression = Compression { fixed: None, cpu: Some(Arc::new(move || cpu)) };
    let options = Options { compression, traffic, ..Options::new(Duration::from_millis(300), Arc::clone(&meter)) };
    let mut near = end(dialed, options);
    let mut far = end(accepted, Options::new(Duration::from_millis(300), Arc::default()));
    let until = Instant::now() + DEADLINE / 2;
    let sending = async {
        while Instant::now() < until && !is_done(&meter) {
            near.write_all(bytes).await.expect("taken");
        }
        near.shutdown().await.expect("closed");
    };
    let receiving = async {
        let (mut heard, mut at) = (vec![0; 64 << 10], 0);
        loop {
            let count = far.read(&mut heard).await.expect("open");
            for byte in &heard[..count] {
                assert!(*byte == bytes[at], "another byte");
                at = (at + 1) % bytes.len();
            }
            if count == 0 {
                break at;
            }
        }
    };
    let (_, at) = tokio::time::timeout(DEADLINE, async { tokio::join!(sending, receiving) }).await.expect("in time");
    assert_eq!(at, 0, "not all arrived");
    meter
}

fn coded(meter: &Meter) -> u64 {
    Codec::ALL.iter().filter(|codec| **codec != Codec::Raw).map(|codec| meter.coded(*codec).plain).sum()
}

/// So much takes a second and a half, in which several choices are made.
fn is_enough(meter: &Meter) -> bool {
    meter.sent_plain() > 12 << 20
}

const IDLE: CpuLoad = CpuLoad { idle_cpus: Some(2.0), some_percent: Some(0.0) };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_link_gets_what_shrinks_coded_and_the_rest_as_it_is() {
    let words = words(1 << 20);
    let meter = sends(&words, IDLE, Law::Bulk, |meter| coded(meter) > 20 << 20).await;
    assert!(coded(&meter) > 20 << 20, "{meter:?}");
    let meter = sends(&noise(1 << 20), IDLE, Law::Bulk, is_enough).await;
    assert_eq!(coded(&meter), 0, "{meter:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_coded_while_guests_wait_for_a_cpu_and_nothing_new_near_the_switchover() {
    let words = words(1 << 20);
    let crowded = CpuLoad { idle_cpus: Some(0.0), some_percent: Some(80.0) };
    for (cpu, law) in [(crowded, Law::Bulk), (IDLE, Law::Tail)] {
        let meter = sends(&words, cpu, law, is_enough).await;
        assert_eq!((coded(&meter), meter.coded(Codec::Raw).plain), (0, meter.sent_plain()), "{cpu:?} {law:?}");
        // What waits is bounded by the law, in plain bytes.
        assert!(law == Law::Bulk || meter.waiting_max() <= 1 << 20, "{}", meter.waiting_max());
    }
}
