//! What every share does, and what pipes do on every share.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use ferry_core::{id::SessionId, pin::Secret};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use uuid::Uuid;

use super::{
    SpoolAcceptor, SpoolDialer,
    session::Spool,
    share::{Change, Entry, Share},
};
use crate::{
    hello::Channel,
    transport::{Listener as _, Pipe, Transport as _},
};

const MIB: usize = 1 << 20;
const DEADLINE: Duration = Duration::from_secs(60);

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("{what}: not within {DEADLINE:?}"))
}

/// The suite, with two accesses to one empty share.
///
/// # Panics
/// If one of them does not do what a share does.
pub async fn run(one: Arc<dyn Share>, other: Arc<dyn Share>) {
    within("folders", folders(&*one, &*other)).await;
    within("files", files(&*one, &*other)).await;
    within("whole files", whole_files(&one, &*other)).await;
    within("changes", changes(&*one, &*other)).await;
    within("pipes", pipes(one, other)).await;
}

fn names(mut entries: Vec<Entry>) -> Vec<String> {
    entries.sort();
    entries.into_iter().map(|entry| entry.name).collect()
}

async fn folders(one: &dyn Share, other: &dyn Share) {
    one.make("top/inner").await.expect("made");
    one.make("top/inner").await.expect("made again");
    let listed = other.list("top").await.expect("listed");
    assert_eq!(listed.len(), 1);
    assert!(listed[0].is_folder && listed[0].name == "inner");
    other.publish("top/inner/file", Bytes::from_static(b"x")).await.expect("published");
    one.remove("top/inner").await.expect_err("it holds a file");
    other.delete("top/inner/file").await.expect("deleted");
    one.remove("top/inner").await.expect("removed");
    one.remove("top/inner").await.expect("there is none any more");
    let kind = |error: io::Error| error.kind();
    assert_eq!(one.list("top/inner").await.map_err(kind), Err(io::ErrorKind::NotFound));
    let lost = one.publish("top/inner/file", Bytes::from_static(b"x")).await;
    assert_eq!(lost.map_err(kind), Err(io::ErrorKind::NotFound));
    one.remove("top").await.expect("removed");
}

async fn files(one: &dyn Share, other: &dyn Share) {
    one.make("files").await.expect("made");
    assert_eq!(one.read("files/none", MIB).await.expect("answered"), None);
    one.delete("files/none").await.expect("there is none");
    for length in [0, 1, 4096, 65_537, 3 * MIB + 1] {
        let content: Vec<u8> = (0..length).map(|index| (index % 251) as u8).collect();
        one.publish("files/a", content.clone().into()).await.expect("published");
        let listed = other.list("files").await.expect("listed");
        assert_eq!(
            listed.iter().map(|entry| (entry.name.as_str(), entry.bytes)).collect::<Vec<_>>(),
            [("a", length as u64)]
        );
        assert!(other.read("files/a", length).await.expect("read") == Some(content), "{length} bytes");
        if length > 0 {
            let error = other.read("files/a", length - 1).await.expect_err("too long");
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }
    one.publish("files/b", Bytes::from_static(b"b")).await.expect("published");
    assert_eq!(names(other.list("files").await.expect("listed")), ["a", "b"]);
    other.delete("files/a").await.expect("deleted");
    assert_eq!(one.read("files/a", MIB).await.expect("answered"), None);
    other.delete("files/b").await.expect("deleted");
    one.remove("files").await.expect("removed");
}

/// Whoever sees the name sees all of it; several are published at once.
async fn whole_files(one: &Arc<dyn Share>, other: &dyn Share) {
    one.make("whole").await.expect("made");
    let publishing: Vec<_> = (0..4_u8)
        .map(|number| {
            let one = Arc::clone(one);
            tokio::spawn(async move { one.publish(&format!("whole/{number}"), vec![number; 2 * MIB].into()).await })
        })
        .collect();
    let mut seen = 0;
    while seen < 4 {
        let Some(content) = other.read(&format!("whole/{seen}"), 2 * MIB).await.expect("answered") else {
            tokio::task::yield_now().await;
            continue;
        };
        assert!(content == vec![seen; 2 * MIB], "a part of file {seen} was seen");
        seen += 1;
    }
    for (number, published) in (0..).zip(publishing) {
        published.await.expect("no panic").expect("published");
        other.delete(&format!("whole/{number}")).await.expect("deleted");
    }
    one.remove("whole").await.expect("removed");
}

/// A watch tells of what the other does, if there is one.
async fn changes(one: &dyn Share, other: &dyn Share) {
    one.make("changes").await.expect("made");
    let mut watch = match one.watch("changes").await {
        Ok(watch) => watch,
        Err(error) => {
            assert_eq!(error.kind(), io::ErrorKind::Unsupported);
            return one.remove("changes").await.expect("removed");
        }
    };
    for round in 0..20 {
        let name = format!("file-{round}");
        let path = format!("changes/{name}");
        let mut told = Vec::new();
        for expected in [Change::Added(name.clone()), Change::Removed(name.clone())] {
            match &expected {
                Change::Added(_) => other.publish(&path, Bytes::from_static(b"x")).await.expect("published"),
                Change::Removed(_) | Change::Unknown => other.delete(&path).await.expect("deleted"),
            }
            while !told.contains(&expected) {
                told.extend(watch.changes().await.expect("told"));
                // Then only a listing tells, and it may tell this.
                let is_there = names(other.list("changes").await.expect("listed")).contains(&name);
                if told.contains(&Change::Unknown) && is_there == matches!(expected, Change::Added(_)) {
                    break;
                }
            }
            told.retain(|change| *change != Change::Unknown);
        }
    }
    drop(watch);
    one.remove("changes").await.expect("removed");
}

/// Both ends of a session's spool.
async fn ends(one: Arc<dyn Share>, other: Arc<dyn Share>) -> (Arc<Spool>, Arc<Spool>) {
    let (session, secret) = (SessionId(Uuid::new_v4()), Secret([7; 32]));
    let source = Spool::open(one, session, &secret).await.expect("opened");
    let destination = Spool::open(other, session, &secret).await.expect("opened");
    (source, destination)
}

async fn opened(dialer: &SpoolDialer, acceptor: &SpoolAcceptor) -> (Pipe, Pipe) {
    let mut near = dialer.open(Channel::Memory(0)).await.expect("opened");
    near.write_all(b"hello").await.expect("taken");
    let (_, opening) = acceptor.accept().await.expect("accepted");
    let mut far = opening.await.expect("opened");
    let mut hello = [0; 5];
    far.read_exact(&mut hello).await.expect("arrived");
    assert_eq!(&hello, b"hello");
    (near, far)
}

/// Bytes arrive as they were sent, in both directions at once, and nothing stays.
async fn pipes(one: Arc<dyn Share>, other: Arc<dyn Share>) {
    let (source, destination) = ends(Arc::clone(&one), other).await;
    let (dialer, acceptor) = (SpoolDialer::new(source.clone()), SpoolAcceptor::new(destination.clone()));
    for round in 0..2_u8 {
        let (near, far) = opened(&dialer, &acceptor).await;
        let bulk: Vec<u8> = (0..9 * MIB + 17).map(|index| (index % 253) as u8 ^ round).collect();
        let (mut near_reader, mut near_writer) = tokio::io::split(near);
        let (mut far_reader, mut far_writer) = tokio::io::split(far);
        let send = async {
            for part in bulk.chunks(256 << 10) {
                near_writer.write_all(part).await.expect("taken");
            }
            near_writer.shutdown().await.expect("closed");
        };
        let receive = async {
            let mut got = Vec::new();
            far_reader.read_to_end(&mut got).await.expect("arrived");
            assert!(got == bulk, "{} bytes arrived changed", got.len());
        };
        let answer = async {
            for part in bulk[..MIB].chunks(10_000) {
                far_writer.write_all(part).await.expect("taken");
            }
            far_writer.shutdown().await.expect("closed");
        };
        let hear = async {
            let mut got = Vec::new();
            near_reader.read_to_end(&mut got).await.expect("arrived");
            assert!(got == bulk[..MIB], "{} bytes arrived changed", got.len());
        };
        tokio::join!(send, receive, answer, hear);
    }
    let (near, mut far) = opened(&dialer, &acceptor).await;
    drop(near);
    let error = far.read(&mut [0; 1]).await.expect_err("the other end is gone");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
    drop((far, acceptor, dialer, source));
    destination.clear().await.expect("cleared");
    // A folder that the other end still watches is gone when it does not.
    while !one.list(super::FOLDER).await.expect("listed").is_empty() {
        tokio::task::yield_now().await;
    }
    one.remove(super::FOLDER).await.expect("removed");
}
