//! Channels that share a limit of their rate.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ferry_wire::{
    channel::{Options, carry},
    meter::Meter,
    rate::RateLimit,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, duplex, split},
    task::JoinHandle,
};

const LIMIT: Duration = Duration::from_millis(300);
const DEADLINE: Duration = Duration::from_secs(20);
const MIB: usize = 1 << 20;

/// Sends this many bytes through a channel; returns when all of them have arrived.
fn send(bytes: usize, rate: Option<Arc<RateLimit>>) -> JoinHandle<()> {
    tokio::spawn(async move {
        let (one, other) = duplex(MIB);
        let ((mut from, near), (far, mut to)) = (duplex(MIB), duplex(MIB));
        let end = |peer, local, rate| {
            let (reader, writer) = split(local);
            let options = Options { rate, ..Options::new(LIMIT, Arc::<Meter>::default()) };
            tokio::spawn(async move { carry(vec![peer], reader, writer, options).await })
        };
        let ends = [end(one, near, rate), end(other, far, None)];
        let (content, mut heard) = (vec![7; bytes], vec![0; bytes]);
        let (sent, received) = tokio::join!(from.write_all(&content), to.read_exact(&mut heard));
        sent.expect("taken");
        received.expect("whole");
        assert!(heard == content, "the bytes differ");
        from.shutdown().await.expect("closed");
        to.shutdown().await.expect("closed");
        for end in ends {
            end.await.expect("no panic").expect("complete");
        }
    })
}

async fn time_of(sending: Vec<JoinHandle<()>>) -> Duration {
    let began = Instant::now();
    for each in sending {
        tokio::time::timeout(DEADLINE, each).await.expect("in time").expect("no panic");
    }
    began.elapsed()
}

#[tokio::test]
async fn channels_that_share_a_limit_keep_it_together_until_it_is_lifted() {
    let rate = Arc::new(RateLimit::new(4 * MIB as u64));
    let both = time_of(vec![send(2 * MIB, Some(Arc::clone(&rate))), send(2 * MIB, Some(Arc::clone(&rate)))]).await;
    assert!(both >= Duration::from_millis(900), "4 MiB at 4 MiB/s took {both:?}");
    assert!(both < Duration::from_secs(4), "4 MiB at 4 MiB/s took {both:?}");
    rate.lift();
    let lifted = time_of(vec![send(4 * MIB, Some(rate))]).await;
    let free = time_of(vec![send(4 * MIB, None)]).await;
    assert!(lifted < both / 2 && free < both / 2, "lifted {lifted:?}, without a limit {free:?}, both {both:?}");
}
