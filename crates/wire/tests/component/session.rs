//! Sessions over real TLS on loopback, and channels over in-memory pipes.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use ferry_core::id::SessionId;
use ferry_trust::{Clients, KeyPair, client_config, random_secret, server_config};
use ferry_wire::{
    WireError,
    channel::{Options, carry},
    filter::{Direction, FilterError, Outputs, StreamFilter},
    hello::{Abilities, Agreed, Channel, Hello, Terms, VERSION_MAX},
    meter::Meter,
    session::{Acceptor, Dialer, SessionKey},
    transport::{
        Listener as _, Transport as _,
        tcp::{TcpAcceptor, TcpDialer},
    },
    window::{WAITING_BYTES_MAX, WINDOW_BYTES_MIN},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex, split},
    net::TcpStream,
    task::JoinHandle,
};
use uuid::Uuid;

const DEADLINE: Duration = Duration::from_secs(20);
const LIMIT: Duration = Duration::from_millis(300);

fn key() -> SessionKey {
    SessionKey { session: SessionId(Uuid::new_v4()), secret: random_secret() }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("done in time")
}

struct Pair {
    acceptor: Acceptor,
    dialer: Dialer,
    source: KeyPair,
    destination: KeyPair,
    key: SessionKey,
}

async fn pair() -> Pair {
    let (source, destination) = (KeyPair::generate().expect("keys"), KeyPair::generate().expect("keys"));
    let key = key();
    let tls = server_config(&destination, Clients::Only(source.pin())).expect("config");
    let acceptor = Acceptor::bind([127, 0, 0, 1].into(), 0..=0, tls, key).await.expect("a free port");
    let tls = client_config(Some(&source), destination.pin()).expect("config");
    let dialer = Dialer::new(acceptor.address(), tls, key);
    Pair { acceptor, dialer, source, destination, key }
}

/// Runs one end of a channel in a task; returns the far end of its local socket.
fn end<P>(peer: P, options: Options) -> (DuplexStream, JoinHandle<Result<(), WireError>>)
where
    P: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let (local, far) = duplex(64 << 10);
    let (reader, writer) = split(local);
    (far, tokio::spawn(async move { carry(vec![peer], reader, writer, options).await }))
}

fn pattern(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn both_directions_arrive_whole_over_tls() {
    let mut pair = pair().await;
    let (dialed, accepted) = tokio::join!(pair.dialer.open(Channel::Memory(0)), pair.acceptor.accept());
    let (channel, accepted) = accepted.expect("it listens");
    assert_eq!(channel, Channel::Memory(0));
    let meter = Arc::new(Meter::default());
    let (near, source) = end(dialed.expect("accepted"), Options::new(LIMIT, Arc::clone(&meter)));
    let (far, destination) = end(accepted, Options::new(LIMIT, Arc::default()));
    let (there, back) = (pattern(9_000_001, 1), pattern(300_007, 2));
    let exchange = |stream: DuplexStream, send: Vec<u8>, expect: Vec<u8>| async move {
        let (mut reader, mut writer) = split(stream);
        let (sent, received) = tokio::join!(
            async move {
                writer.write_all(&send).await?;
                writer.shutdown().await
            },
            async move {
                let mut all = Vec::new();
                reader.read_to_end(&mut all).await.map(|_| all)
            }
        );
        sent.expect("sent");
        assert!(received.expect("received") == expect, "the streams differ");
    };
    within(async { tokio::join!(exchange(near, there.clone(), back.clone()), exchange(far, back, there)) }).await;
    within(source).await.expect("no panic").expect("complete");
    within(destination).await.expect("no panic").expect("complete");
    assert_eq!((meter.sent_plain(), meter.received_plain(), meter.waiting()), (9_000_001, 300_007, 0));
    assert!(meter.wire() > 9_300_000);
}

#[tokio::test]
async fn half_close_leaves_the_other_direction_open() {
    let (one, other) = duplex(1 << 16);
    let (mut near, source) = end(one, Options::new(LIMIT, Arc::default()));
    let (mut far, destination) = end(other, Options::new(LIMIT, Arc::default()));
    near.shutdown().await.expect("half closed");
    let mut nothing = Vec::new();
    within(far.read_to_end(&mut nothing)).await.expect("end of stream");
    assert!(nothing.is_empty());
    far.write_all(b"still here").await.expect("open");
    far.shutdown().await.expect("closed");
    let mut answer = Vec::new();
    within(near.read_to_end(&mut answer)).await.expect("whole");
    assert_eq!(answer, b"still here");
    within(source).await.expect("no panic").expect("complete");
    within(destination).await.expect("no panic").expect("complete");
}

#[tokio::test]
async fn a_receiver_that_stands_still_bounds_what_is_accepted() {
    let (one, other) = duplex(64 << 20);
    let meter = Arc::new(Meter::default());
    let (near, source) = end(one, Options::new(LIMIT, Arc::clone(&meter)));
    let (mut far, destination) = end(other, Options::new(LIMIT, Arc::default()));
    let (_reader, mut writer) = split(near);
    let total = 32 << 20;
    let feed = tokio::spawn(async move {
        writer.write_all(&vec![7; total]).await?;
        writer.shutdown().await
    });
    // Nothing is read at the far end: what is accepted must come to rest at the window.
    within(async {
        let (mut last, mut unchanged) = (0, 0);
        while unchanged < 200 {
            let sent = meter.sent_plain();
            unchanged = if sent == last && sent > 0 { unchanged + 1 } else { 0 };
            last = sent;
            tokio::time::timeout(Duration::from_millis(1), std::future::pending::<()>())
                .await
                .expect_err("nothing comes");
        }
    })
    .await;
    assert!(meter.waiting_max() <= WINDOW_BYTES_MIN + (64 << 10), "{} waited", meter.waiting_max());
    let mut all = Vec::new();
    far.shutdown().await.expect("closed");
    within(far.read_to_end(&mut all)).await.expect("whole");
    assert_eq!(all.len(), total);
    assert!(meter.waiting_max() <= WAITING_BYTES_MAX);
    within(feed).await.expect("no panic").expect("all taken");
    within(source).await.expect("no panic").expect("complete");
    within(destination).await.expect("no panic").expect("complete");
}

#[tokio::test]
async fn a_peer_that_dies_in_mid_stream_is_an_error_at_once() {
    let (one, other) = duplex(1 << 16);
    let (mut near, source) = end(one, Options::new(LIMIT, Arc::default()));
    near.write_all(b"some bytes").await.expect("taken");
    drop(other);
    let error = within(source).await.expect("no panic").expect_err("incomplete");
    assert!(matches!(error, WireError::Peer(_)), "{error:?}");
    let mut rest = Vec::new();
    within(near.read_to_end(&mut rest)).await.expect("the local socket sees the end");
}

#[tokio::test]
async fn a_changed_byte_anywhere_is_never_delivered_as_good() {
    // A man in the middle who flips one byte of the framed stream: the receiver must fail, or deliver the truth.
    let payload = pattern(3_000, 3);
    for at in (0..3_100).step_by(37) {
        let (one, mut middle_one) = duplex(1 << 16);
        let (mut middle_two, other) = duplex(1 << 16);
        let (mut near, source) = end(one, Options::new(LIMIT, Arc::default()));
        let (mut far, destination) = end(other, Options::new(LIMIT, Arc::default()));
        near.write_all(&payload).await.expect("taken");
        near.shutdown().await.expect("closed");
        let mut framed = vec![0; 32 + payload.len() + 32];
        within(middle_one.read_exact(&mut framed)).await.expect("data and end");
        framed[at % (32 + 3_000 + 32)] ^= 0x10;
        middle_two.write_all(&framed).await.expect("passed on");
        let mut got = Vec::new();
        let outcome = async {
            far.read_to_end(&mut got).await.expect("the local socket ends");
            drop(far);
            drop(middle_two);
            destination.await.expect("no panic")
        };
        assert!(within(outcome).await.is_err(), "a flip at {at} was not seen");
        assert!(got.is_empty() || got == payload, "a flip at {at} was delivered");
        drop(middle_one);
        let _ = within(source).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_secret_session_or_key_is_refused_and_the_next_is_served() {
    let mut pair = pair().await;
    let tls = client_config(Some(&pair.source), pair.destination.pin()).expect("config");
    for wrong in [key(), SessionKey { secret: random_secret(), ..pair.key }] {
        let dialer = Dialer::new(pair.acceptor.address(), Arc::clone(&tls), wrong);
        let error = within(dialer.open(Channel::Control)).await.map(drop).expect_err("unknown");
        assert!(matches!(error, WireError::Refused(_)), "{error:?}");
    }
    let stranger = KeyPair::generate().expect("keys");
    let tls = client_config(Some(&stranger), pair.destination.pin()).expect("config");
    let dialer = Dialer::new(pair.acceptor.address(), tls, pair.key);
    assert!(within(dialer.open(Channel::Control)).await.is_err());
    let (good, accepted) = tokio::join!(pair.dialer.open(Channel::Rpc), pair.acceptor.accept());
    good.expect("served");
    assert_eq!(accepted.expect("it listens").0, Channel::Rpc);
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_who_say_nothing_do_not_hold_up_the_source() {
    let mut pair = pair().await;
    let mut strangers = Vec::new();
    for _ in 0..100 {
        strangers.push(within(TcpStream::connect(pair.acceptor.address())).await.expect("it listens"));
    }
    let (good, accepted) = tokio::join!(pair.dialer.open(Channel::Control), within(pair.acceptor.accept()));
    good.expect("served");
    assert_eq!(accepted.expect("it listens").0, Channel::Control);
    drop(strangers);
}

struct Watch {
    limit: usize,
    passed: usize,
    delivered: Arc<AtomicUsize>,
}

impl StreamFilter for Watch {
    fn filter(&mut self, direction: Direction, bytes: &[u8], out: &mut Outputs) -> Result<(), FilterError> {
        assert_eq!(direction, Direction::Inbound, "nothing is sent");
        self.passed += bytes.len();
        if self.passed > self.limit {
            return Err("too much".into());
        }
        out.forward.extend_from_slice(bytes);
        Ok(())
    }

    fn delivered(&mut self) {
        self.delivered.store(self.passed, Ordering::SeqCst);
    }
}

/// Makes many bytes of each.
struct Swell(usize);

impl StreamFilter for Swell {
    fn filter(&mut self, _direction: Direction, bytes: &[u8], out: &mut Outputs) -> Result<(), FilterError> {
        out.forward.extend(bytes.iter().flat_map(|byte| std::iter::repeat_n(*byte, self.0)));
        Ok(())
    }
}

#[tokio::test]
async fn what_a_filter_lets_out_at_once_stays_within_the_window() {
    let (one, other) = duplex(64 << 20);
    let meter = Arc::new(Meter::default());
    let options = Options { filter: Some(Box::new(Swell(512))), ..Options::new(LIMIT, Arc::clone(&meter)) };
    let (mut near, source) = end(one, options);
    let (mut far, destination) = end(other, Options::new(LIMIT, Arc::default()));
    let there = pattern(64 << 10, 5);
    near.write_all(&there).await.expect("taken");
    near.shutdown().await.expect("closed");
    far.shutdown().await.expect("closed");
    let mut all = Vec::new();
    within(far.read_to_end(&mut all)).await.expect("whole");
    assert!(all.iter().copied().eq(there.iter().flat_map(|byte| std::iter::repeat_n(*byte, 512))));
    assert!(meter.waiting_max() <= WAITING_BYTES_MAX, "{} waited", meter.waiting_max());
    within(source).await.expect("no panic").expect("complete");
    within(destination).await.expect("no panic").expect("complete");
}

#[tokio::test]
async fn a_filter_hears_of_delivery_and_its_refusal_ends_the_channel() {
    let (one, other) = duplex(1 << 16);
    let delivered = Arc::new(AtomicUsize::new(0));
    let watch = Watch { limit: 10, passed: 0, delivered: Arc::clone(&delivered) };
    let (mut near, source) = end(one, Options::new(LIMIT, Arc::default()));
    let options = Options { filter: Some(Box::new(watch)), ..Options::new(LIMIT, Arc::default()) };
    let (mut far, destination) = end(other, options);
    near.write_all(b"0123456789").await.expect("taken");
    let mut got = [0; 10];
    within(far.read_exact(&mut got)).await.expect("passed");
    within(async {
        while delivered.load(Ordering::SeqCst) != 10 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    near.write_all(b"x").await.expect("taken");
    let error = within(destination).await.expect("no panic").expect_err("refused");
    assert!(matches!(&error, WireError::Filter(why) if why.to_string() == "too much"), "{error:?}");
    let error = within(source).await.expect("no panic").expect_err("told");
    assert!(matches!(&error, WireError::Aborted(why) if why.contains("too much")), "{error:?}");
}

/// Lets words pass but "no", which it answers.
struct Answers;

impl StreamFilter for Answers {
    fn filter(&mut self, direction: Direction, bytes: &[u8], out: &mut Outputs) -> Result<(), FilterError> {
        match bytes {
            b"no" => out.back.extend_from_slice(if direction == Direction::Inbound { b"not in" } else { b"not out" }),
            _ => out.forward.extend_from_slice(bytes),
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_filter_answers_what_it_does_not_let_pass() {
    let (one, other) = duplex(1 << 16);
    let (mut near, source) = end(one, Options::new(LIMIT, Arc::default()));
    let options = Options { filter: Some(Box::new(Answers)), ..Options::new(LIMIT, Arc::default()) };
    let (mut far, destination) = end(other, options);
    for (asks_near, asked, answer) in
        [(true, "yes", ""), (true, "no", "not in"), (false, "yes", ""), (false, "no", "not out"), (true, "on", "")]
    {
        let (this, that) = if asks_near { (&mut near, &mut far) } else { (&mut far, &mut near) };
        within(this.write_all(asked.as_bytes())).await.expect("taken");
        let (hears, words) = if answer.is_empty() { (that, asked) } else { (this, answer) };
        let mut heard = vec![0; words.len()];
        within(hears.read_exact(&mut heard)).await.expect("passed");
        assert_eq!(String::from_utf8_lossy(&heard), words);
    }
    near.shutdown().await.expect("closed");
    far.shutdown().await.expect("closed");
    for (mut stream, end) in [(near, source), (far, destination)] {
        let mut rest = Vec::new();
        within(stream.read_to_end(&mut rest)).await.expect("whole");
        assert!(rest.is_empty(), "nothing else passed: {rest:?}");
        within(end).await.expect("no panic").expect("complete");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dialer_connects_from_the_address_that_it_is_given_and_from_no_other() {
    let (source, destination) = (KeyPair::generate().expect("keys"), KeyPair::generate().expect("keys"));
    let tls = server_config(&destination, Clients::Only(source.pin())).expect("config");
    let listener = TcpAcceptor::bind([127, 0, 78, 2].into(), 0..=0, tls).expect("a free port");
    let address = listener.address().expect("it listens");
    assert_eq!(address.ip(), IpAddr::from([127, 0, 78, 2]));
    let tls = client_config(Some(&source), destination.pin()).expect("config");
    let dialer = TcpDialer::from_here([127, 0, 78, 1].into(), address, Arc::clone(&tls));
    let accepted = async {
        let (from, opening) = listener.accept().await.expect("it comes");
        opening.await.expect("a pipe");
        from
    };
    let (opened, from) = within(async { tokio::join!(dialer.open(Channel::Control), accepted) }).await;
    opened.expect("a pipe");
    assert_eq!(from.ip(), IpAddr::from([127, 0, 78, 1]));
    // No host has this address.
    let elsewhere = TcpDialer::from_here([198, 51, 100, 1].into(), address, tls);
    let failed = within(elsewhere.open(Channel::Control)).await.err().expect("it cannot");
    assert!(matches!(failed, WireError::Local(_)), "{failed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_supported_is_answered_and_the_session_goes_on() {
    let mut pair = pair().await;
    let tls = client_config(Some(&pair.source), pair.destination.pin()).expect("config");
    let transport = TcpDialer::new(pair.acceptor.address(), tls);
    let hello = Hello::new(pair.key.session, pair.key.secret, Channel::Memory(0), VERSION_MAX);
    let mut lanes = hello.encode();
    lanes[65] = 9;
    let mut codec = hello.encode();
    codec[66] = 9;
    for (bytes, what) in [(lanes, "not supported: 9 lanes"), (codec, "not supported: codecs 0b1001")] {
        let mut pipe = within(transport.open(Channel::Memory(0))).await.expect("a pipe");
        pipe.write_all(&bytes).await.expect("sent");
        pipe.flush().await.expect("sent");
        let mut answer = vec![0; 4 + what.len()];
        within(pipe.read_exact(&mut answer)).await.expect("answered");
        assert_eq!((answer[0], String::from_utf8_lossy(&answer[4..])), (0, what.into()));
    }
    let (good, accepted) = tokio::join!(pair.dialer.open(Channel::Definition), pair.acceptor.accept());
    let (good, (channel, accepted)) = (good.expect("served"), accepted.expect("it listens"));
    assert_eq!(channel, Channel::Rpc, "nothing was known of the destination yet");
    assert_eq!(
        (good.agreed(), accepted.agreed().version),
        (Agreed { version: VERSION_MAX, terms: Terms::default(), peer: Abilities::ours() }, VERSION_MAX)
    );
    let (good, accepted) = tokio::join!(pair.dialer.open(Channel::Definition), pair.acceptor.accept());
    good.expect("served");
    assert_eq!(accepted.expect("it listens").0, Channel::Definition);
}
