//! Pipes over a spool: any schedule gives the same bytes or an error, and whoever else can write to the share changes
//! nothing.

use std::{
    collections::VecDeque,
    io,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use ferry_core::{id::SessionId, pin::Secret};
use ferry_trust::{Clients, KeyPair, client_config, random_secret, server_config};
use ferry_wire::{
    WireError,
    channel::Options,
    hello::{Channel, Terms},
    meter::Meter,
    session::{Acceptor, Dialer, SessionKey},
    transport::{
        Listener as _, Pipe, Transport as _,
        spool::{
            FOLDER, Spool, SpoolAcceptor, SpoolDialer, conformance,
            local::LocalShare,
            share::{Entry, Operation, Share, Watch},
        },
    },
};
use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf, duplex, split},
    sync::watch,
};
use uuid::Uuid;

const DEADLINE: Duration = Duration::from_secs(120);
const MIB: usize = 1 << 20;

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("done in time")
}

/// What becomes of one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Done,
    /// The server is gone before it is done.
    Lost,
    /// It is done, and the answer is lost.
    Unanswered,
}

/// A local folder whose server fails as planned, and which can be told to be away.
struct Flaky {
    inner: LocalShare,
    fates: Mutex<VecDeque<Fate>>,
    is_away: watch::Sender<bool>,
    /// Copies of what was published, for those who keep it.
    kept: Mutex<Vec<(String, Bytes)>>,
}

impl Flaky {
    fn new(root: &Path, fates: impl IntoIterator<Item = Fate>) -> Arc<Self> {
        Arc::new(Self {
            inner: LocalShare::new(root),
            fates: Mutex::new(fates.into_iter().collect()),
            is_away: watch::Sender::new(false),
            kept: Mutex::default(),
        })
    }

    fn operation<'a, T: Send + 'a>(&'a self, operation: Operation<'a, T>) -> Operation<'a, T> {
        Box::pin(async move {
            let gone = || io::Error::from(io::ErrorKind::ConnectionReset);
            if *self.is_away.borrow() {
                return Err(gone());
            }
            let fate = self.fates.lock().expect("no panic").pop_front().unwrap_or(Fate::Done);
            match fate {
                Fate::Done => operation.await,
                Fate::Lost => Err(gone()),
                Fate::Unanswered => operation.await.and(Err(gone())),
            }
        })
    }
}

impl Share for Flaky {
    fn name(&self) -> &str {
        r"\\fs1.ferry.test\spool"
    }
    fn make(&self, folder: &str) -> Operation<'_, ()> {
        self.inner.make(folder)
    }
    fn list(&self, folder: &str) -> Operation<'_, Vec<Entry>> {
        // Evaluated when it is awaited, as a real one is.
        let folder = folder.to_owned();
        self.operation(Box::pin(async move { self.inner.list(&folder).await }))
    }
    fn publish(&self, path: &str, bytes: Bytes) -> Operation<'_, ()> {
        let path = path.to_owned();
        self.operation(Box::pin(async move {
            self.kept.lock().expect("no panic").push((path.clone(), bytes.clone()));
            self.inner.publish(&path, bytes).await
        }))
    }
    fn read(&self, path: &str, bytes_max: usize) -> Operation<'_, Option<Vec<u8>>> {
        let path = path.to_owned();
        self.operation(Box::pin(async move { self.inner.read(&path, bytes_max).await }))
    }
    fn delete(&self, path: &str) -> Operation<'_, ()> {
        let path = path.to_owned();
        self.operation(Box::pin(async move { self.inner.delete(&path).await }))
    }
    fn remove(&self, folder: &str) -> Operation<'_, ()> {
        self.inner.remove(folder)
    }
    fn watch(&self, folder: &str) -> Operation<'_, Box<dyn Watch>> {
        self.inner.watch(folder)
    }
}

/// One pipe of a session, and the folder below it.
struct Site {
    near: Pipe,
    far: Pipe,
    share: Arc<Flaky>,
    folder: String,
    _ends: (SpoolDialer, SpoolAcceptor),
    directory: tempfile::TempDir,
}

async fn site(fates: impl IntoIterator<Item = Fate>) -> Site {
    let directory = tempfile::tempdir().expect("a directory");
    let share = Flaky::new(directory.path(), []);
    let session = SessionId(Uuid::new_v4());
    let open = || Spool::open(share.clone(), session, &Secret([5; 32]));
    let dialer = SpoolDialer::new(open().await.expect("opened"));
    let acceptor = SpoolAcceptor::new(open().await.expect("opened"));
    let mut near = dialer.open(Channel::Memory(0)).await.expect("opened");
    near.write_all(b"!").await.expect("taken");
    let mut far = within(acceptor.accept()).await.expect("accepted").1.await.expect("opened");
    assert_eq!(within(far.read_u8()).await.expect("arrived"), b'!');
    share.fates.lock().expect("no panic").extend(fates);
    let folder = format!("{FOLDER}/{}", session.0.simple());
    Site { near, far, share, folder, _ends: (dialer, acceptor), directory }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index % 251) as u8 ^ (index >> 12) as u8).collect()
}

#[tokio::test]
async fn a_local_folder_is_a_share() {
    let directory = tempfile::tempdir().expect("a directory");
    let share = Arc::new(LocalShare::new(directory.path()));
    conformance::run(share.clone(), share).await;
}

/// One step of a user of a pipe.
#[derive(Clone, Debug)]
enum Step {
    Write(usize),
    Flush,
    Pause(u64),
    Away(u64),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..400_000_usize).prop_map(Step::Write),
        2 => Just(Step::Flush),
        2 => (0..30_u64).prop_map(Step::Pause),
        1 => (0..40_000_u64).prop_map(Step::Away),
    ]
}

fn any_fate() -> impl Strategy<Value = Fate> {
    prop_oneof![6 => Just(Fate::Done), 1 => Just(Fate::Lost), 1 => Just(Fate::Unanswered)]
}

async fn act(steps: Vec<Step>, bytes: &[u8], writer: &mut WriteHalf<Pipe>, share: &Flaky) -> io::Result<()> {
    let mut rest = bytes;
    for step in steps {
        match step {
            Step::Write(count) => {
                let (part, after) = rest.split_at(count.min(rest.len()));
                rest = after;
                writer.write_all(part).await?;
            }
            Step::Flush => writer.flush().await?,
            Step::Pause(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
            Step::Away(ms) => {
                share.is_away.send_replace(true);
                tokio::time::sleep(Duration::from_millis(ms)).await;
                share.is_away.send_replace(false);
            }
        }
    }
    writer.shutdown().await
}

async fn drain(reader: &mut ReadHalf<Pipe>, parts: Vec<usize>, out: &mut Vec<u8>) -> io::Result<()> {
    for size in parts.into_iter().cycle() {
        let mut part = vec![0; size];
        match reader.read(&mut part).await? {
            0 => return Ok(()),
            count => out.extend_from_slice(&part[..count]),
        }
    }
    Ok(())
}

fn written(steps: &[Step]) -> usize {
    let count = |step: &Step| match step {
        Step::Write(count) => *count,
        Step::Flush | Step::Pause(_) | Step::Away(_) => 0,
    };
    steps.iter().map(count).sum()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn any_schedule_gives_the_same_bytes_or_an_error(
        steps in prop::collection::vec(any_step(), 0..14),
        parts in prop::collection::vec(1..300_000_usize, 1..6),
        fates in prop::collection::vec(any_fate(), 0..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("one");
        runtime.block_on(async {
            // One may follow another at once.
            let away: u64 = steps.iter().map(|step| if let Step::Away(ms) = step { *ms } else { 0 }).sum();
            let bytes = pattern(written(&steps));
            let Site { near, far, share, folder: _folder, _ends, directory: _directory } = site(fates).await;
            let (mut reader, _far_writer) = split(far);
            let (_near_reader, mut writer) = split(near);
            let mut got = Vec::new();
            let (sent, received) = tokio::time::timeout(Duration::from_secs(3600), async {
                tokio::join!(act(steps, &bytes, &mut writer, &share), drain(&mut reader, parts, &mut got))
            })
            .await
            .expect("it ends");
            assert!(bytes.starts_with(&got), "other bytes arrived");
            match (sent, received) {
                (Ok(()), Ok(())) => assert_eq!(got.len(), bytes.len()),
                // Nobody waits for a share longer than for 30 s, and each waits for so long.
                (sent, received) => assert!(away > 25_000, "failed early: {sent:?} {received:?}"),
            }
        });
    }
}

#[tokio::test(start_paused = true)]
async fn a_share_that_stays_away_is_named() {
    let Site { mut near, mut far, share, folder: _folder, _ends, directory: _directory } = site([]).await;
    share.is_away.send_replace(true);
    near.write_all(b"never").await.expect("taken");
    let begun = tokio::time::Instant::now();
    let error = far.read_u8().await.expect_err("the share is away");
    let waited = begun.elapsed();
    assert!((30..60).contains(&waited.as_secs()), "{waited:?}");
    let told = ferry_core::error::chain(&error);
    assert!(told.contains(r"The share \\fs1.ferry.test\spool did not answer for 3"), "{told}");
    let error = near.shutdown().await.expect_err("it was not sent");
    assert!(ferry_core::error::chain(&error).contains(r"\\fs1.ferry.test\spool"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_user_that_does_not_read_stops_the_other() {
    let Site { mut near, mut far, share, directory, folder, .. } = site([]).await;
    let chunk = vec![1; MIB];
    let mut accepted = 0;
    // Time passes only when nothing can go on.
    while tokio::time::timeout(Duration::from_secs(5), near.write_all(&chunk)).await.is_ok() {
        accepted += 1;
        assert!(accepted < 200, "nobody reads, and {accepted} MiB were accepted");
    }
    let files = std::fs::read_dir(directory.path().join(&folder)).expect("there").count();
    assert!(files <= 5, "{files} files are in flight, with that of the heartbeat");
    drop(share);
    let mut taken = vec![0; MIB];
    far.read_exact(&mut taken).await.expect("they arrive");
    within(near.write_all(&chunk)).await.expect("there is room again");
}

/// Does something to the folder of a session while the share is away for both agents, after four segments were written that
/// are not read yet; returns what the reader gets then.
async fn tampered(tamper: impl FnOnce(&Path, &[String], &[(String, Bytes)])) -> io::Result<Vec<u8>> {
    let Site { mut near, mut far, share, folder, directory, .. } = site([]).await;
    // The reader takes the first segments off the share, and then no more.
    let mut left = Vec::new();
    for number in 0..8_u8 {
        near.write_all(&vec![number; 1000]).await.expect("taken");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    share.is_away.send_replace(true);
    let at = directory.path().join(&folder);
    for entry in std::fs::read_dir(&at).expect("there") {
        let name = entry.expect("an entry").file_name().to_string_lossy().into_owned();
        if name.contains("-d-") {
            left.push(name);
        }
    }
    left.sort();
    assert_eq!(left.len(), 4, "as many as may be in flight");
    // The first two are read already, and wait to be taken.
    left.drain(..2);
    let kept = share.kept.lock().expect("no panic").clone();
    tamper(&at, &left, &kept);
    share.is_away.send_replace(false);
    let mut got = Vec::new();
    let mut part = [0; 500];
    while got.len() < 8000 {
        match tokio::time::timeout(Duration::from_secs(200), far.read(&mut part)).await.expect("an end")? {
            0 => break,
            count => got.extend_from_slice(&part[..count]),
        }
    }
    Ok(got)
}

#[tokio::test(start_paused = true)]
async fn what_somebody_else_did_to_the_share_is_an_error_or_nothing() {
    let expected: Vec<u8> = (0..8).flat_map(|number| vec![number; 1000]).collect();
    assert_eq!(tampered(|_, _, _| {}).await.expect("nobody did anything"), expected);
    let replace = |at: &Path, name: &str, bytes: &[u8]| std::fs::write(at.join(name), bytes).expect("written");
    let read = |at: &Path, name: &str| std::fs::read(at.join(name)).expect("there");
    // Other content, cut, and swapped.
    let changed = tampered(|at, left, _| {
        let mut bytes = read(at, &left[0]);
        bytes[100] ^= 1;
        replace(at, &left[0], &bytes);
    });
    let cut = tampered(|at, left, _| {
        let bytes = read(at, &left[0]);
        replace(at, &left[0], &bytes[..bytes.len() - 1]);
    });
    let swapped = tampered(|at, left, _| {
        let (one, other) = (read(at, &left[0]), read(at, &left[1]));
        replace(at, &left[0], &other);
        replace(at, &left[1], &one);
    });
    let replayed = tampered(|at, left, kept| {
        let (_, first) = kept.iter().find(|(path, _)| path.ends_with("-d-0000000000000000")).expect("kept");
        replace(at, &left[0], first);
    });
    let huge = tampered(|at, left, _| {
        std::fs::File::options().write(true).open(at.join(&left[0])).expect("there").set_len(1 << 34).expect("grown");
    });
    let removed = tampered(|at, left, _| std::fs::remove_file(at.join(&left[0])).expect("removed"));
    for (what, outcome) in [
        ("changed", changed.await),
        ("cut", cut.await),
        ("swapped", swapped.await),
        ("replayed", replayed.await),
        ("huge", huge.await),
        ("removed", removed.await),
    ] {
        let error = outcome.expect_err(what);
        let told = ferry_core::error::chain(&error);
        assert!(told.contains(r"\\fs1.ferry.test\spool"), "{what}: {told}");
    }
    // What has no place is not read.
    let added = tampered(|at, left, kept| {
        let (_, first) = kept.iter().find(|(path, _)| path.ends_with("-d-0000000000000000")).expect("kept");
        let name = left[0].replace(&left[0][35..], "0000000000000000");
        replace(at, &name, first);
        replace(at, "something", b"else");
    });
    assert_eq!(added.await.expect("it is ignored"), expected);
}

#[tokio::test]
async fn a_channel_goes_through_the_share_and_the_rest_directly() {
    let directory = tempfile::tempdir().expect("a directory");
    let share = Flaky::new(directory.path(), []);
    let (source, destination) = (KeyPair::generate().expect("keys"), KeyPair::generate().expect("keys"));
    let key = SessionKey { session: SessionId(Uuid::new_v4()), secret: random_secret() };
    let open = || Spool::open(share.clone(), key.session, &key.secret);
    let (near_spool, far_spool) = (open().await.expect("opened"), open().await.expect("opened"));
    let tls = server_config(&destination, Clients::Only(source.pin())).expect("config");
    let bulk = SpoolAcceptor::new(far_spool.clone());
    let local = [127, 0, 0, 1].into();
    let mut acceptor = Acceptor::bind_with_bulk(local, 0..=0, tls, key, Some(bulk)).await.expect("a free port");
    let tls = client_config(Some(&source), destination.pin()).expect("config");
    let dialer = Dialer::new(acceptor.address(), tls, key).with_bulk(Arc::new(SpoolDialer::new(near_spool.clone())));

    let (control, accepted) = tokio::join!(within(dialer.open(Channel::Control)), within(acceptor.accept()));
    let (_control, _accepted) = (control.expect("opened"), accepted.expect("accepted"));
    assert_eq!(near_spool.published_bytes(), 0, "control is direct");
    let channel = Channel::Memory(3);
    let terms = Terms { lanes: 2, ..Terms::default() };
    let (near, far) = tokio::join!(within(dialer.open_on(terms, channel)), within(acceptor.accept()));
    let (near, (arrived, far)) = (near.expect("opened"), far.expect("accepted"));
    assert_eq!(arrived, channel);

    let bytes = pattern(20 * MIB);
    let run = |connection: ferry_wire::session::Connection| {
        let (local, outside) = duplex(256 << 10);
        let (reader, writer) = split(local);
        let options = Options::new(Duration::from_millis(300), Arc::<Meter>::default());
        (outside, tokio::spawn(async move { connection.carry(reader, writer, options).await }))
    };
    let ((mut near, near_end), (mut far, far_end)) = (run(near), run(far));
    let feed = async {
        near.write_all(&bytes).await.expect("taken");
        near.shutdown().await.expect("closed");
        let mut answer = Vec::new();
        near.read_to_end(&mut answer).await.expect("arrived");
        assert_eq!(answer, b"thanks");
    };
    let drain = async {
        let mut got = Vec::new();
        far.read_to_end(&mut got).await.expect("arrived");
        assert!(got == bytes, "other bytes arrived");
        far.write_all(b"thanks").await.expect("taken");
        far.shutdown().await.expect("closed");
    };
    within(async { tokio::join!(feed, drain) }).await;
    within(near_end).await.expect("no panic").expect("carried");
    within(far_end).await.expect("no panic").expect("carried");
    assert!(near_spool.published_bytes() > 20 << 20, "{}", near_spool.published_bytes());
    drop((acceptor, dialer));
    far_spool.clear().await.expect("cleared");
    assert_eq!(share.list(FOLDER).await.expect("listed"), []);
}

#[tokio::test(start_paused = true)]
async fn a_share_that_refuses_is_named_at_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let share = Arc::new(LocalShare::new(&directory.path().join("none")));
    std::fs::write(directory.path().join("none"), "a file").expect("written");
    let outcome = Spool::open(share, SessionId(Uuid::nil()), &Secret([1; 32])).await;
    let Err(WireError::Peer(error)) = outcome else { panic!("it was opened") };
    let told = ferry_core::error::chain(&error);
    assert!(told.contains("make the folder of the move"), "{told}");
}
