//! What a channel waits for is measured where it waits.

use std::{sync::Arc, time::Duration};

use ferry_wire::{
    channel::{Options, carry},
    meter::{Meter, Wait},
    rate::RateLimit,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, duplex, split},
    time::{MissedTickBehavior, interval},
};

const DEADLINE: Duration = Duration::from_secs(20);
const PIECE: usize = 64 << 10;
const PIECES: usize = 40;

/// How the programs at both ends of a channel behave.
#[derive(Default)]
struct Behaviour {
    /// The sending program writes a piece this often.
    writes_every: Option<Duration>,
    /// The receiving program reads a piece this often.
    reads_every: Option<Duration>,
    rate: Option<Arc<RateLimit>>,
}

/// What both ends of a channel have waited for when so many pieces have arrived: at the sender, and at the receiver.
async fn carried(Behaviour { writes_every, reads_every, rate }: Behaviour) -> [Arc<Meter>; 2] {
    // Programs with small sockets between each other, so that little waits unseen.
    let (one, other) = duplex(PIECE);
    let ((mut from, near), (far, mut to)) = (duplex(PIECE), duplex(PIECE));
    let meters = [Arc::<Meter>::default(), Arc::default()];
    let end = |peer, local, rate, meter: &Arc<Meter>| {
        let (reader, writer) = split(local);
        let options = Options { rate, ..Options::new(Duration::from_millis(300), Arc::clone(meter)) };
        tokio::spawn(async move { carry(vec![peer], reader, writer, options).await })
    };
    let ends = [end(one, near, rate, &meters[0]), end(other, far, None, &meters[1])];
    let pace = |every: Option<Duration>| {
        every.map(|every| {
            let mut pace = interval(every);
            pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
            pace
        })
    };
    let (mut writes, mut reads) = (pace(writes_every), pace(reads_every));
    let sends = async {
        for _ in 0..PIECES {
            if let Some(pace) = &mut writes {
                pace.tick().await;
            }
            from.write_all(&[7; PIECE]).await.expect("taken");
        }
        from.shutdown().await.expect("closed");
    };
    let receives = async {
        let mut piece = vec![0; PIECE];
        for _ in 0..PIECES {
            if let Some(pace) = &mut reads {
                pace.tick().await;
            }
            to.read_exact(&mut piece).await.expect("it comes");
        }
        to.shutdown().await.expect("closed");
    };
    tokio::time::timeout(DEADLINE, async { tokio::join!(sends, receives) }).await.expect("in time");
    for end in ends {
        end.await.expect("no panic").expect("complete");
    }
    meters
}

/// What it waited for most, except for [`Wait::Delivery`], which is another direction's.
fn most(meter: &Meter) -> Wait {
    let sending = Wait::ALL.into_iter().filter(|wait| *wait != Wait::Delivery);
    sending.max_by_key(|wait| meter.waited(*wait)).expect("there are some")
}

#[tokio::test]
async fn a_slow_program_a_slow_receiver_and_a_limit_are_told_apart() {
    let slowly = Some(Duration::from_millis(20));
    let [source, destination] = carried(Behaviour { writes_every: slowly, ..Behaviour::default() }).await;
    assert_eq!(most(&source), Wait::Source, "{source:?}");
    assert!(destination.waited(Wait::Delivery) < source.waited(Wait::Source) / 4, "{destination:?}");

    let [source, destination] = carried(Behaviour { reads_every: slowly, ..Behaviour::default() }).await;
    assert!(matches!(most(&source), Wait::Window | Wait::Lane), "{source:?}");
    assert!(destination.waited(Wait::Delivery) > Duration::from_millis(20 * PIECES as u64 / 2), "{destination:?}");

    let rate = Some(Arc::new(RateLimit::new(4 << 20)));
    let [source, _] = carried(Behaviour { rate, ..Behaviour::default() }).await;
    assert_eq!(most(&source), Wait::Limit, "{source:?}");
}

#[tokio::test]
async fn silence_of_a_program_is_no_wait_but_for_its_first_moment() {
    let (one, other) = duplex(PIECE);
    let ((mut from, near), (far, mut to)) = (duplex(PIECE), duplex(PIECE));
    let meter = Arc::<Meter>::default();
    let end = |peer, local, meter| {
        let (reader, writer) = split(local);
        tokio::spawn(carry(vec![peer], reader, writer, Options::new(Duration::from_millis(300), meter)))
    };
    let _ends = [end(one, near, Arc::clone(&meter)), end(other, far, Arc::default())];
    let mut pace = interval(Duration::from_secs(1));
    let mut byte = [0];
    // A second before the first byte, and another before the second one.
    for _ in 0..3 {
        pace.tick().await;
        from.write_all(&[7]).await.expect("taken");
        to.read_exact(&mut byte).await.expect("it comes");
    }
    let waited = meter.waited(Wait::Source);
    assert!(waited <= 3 * Wait::SOURCE_MAX, "{waited:?}");
}
