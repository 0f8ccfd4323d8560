//! The end of a channel, whichever of its two streams ends first.

use std::{sync::Arc, time::Duration};

use ferry_wire::{
    channel::{Options, carry},
    meter::Meter,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex, split};

const DEADLINE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_channel_ends_when_its_second_stream_does_whichever_that_is() {
    for sends in [false, true] {
        let (one, other) = duplex(1 << 20);
        let ((mut near, local), (remote, mut far)) = (duplex(1 << 16), duplex(1 << 16));
        let end = |peer, local| {
            let (reader, writer) = split(local);
            let options = Options::new(Duration::from_millis(300), Arc::<Meter>::default());
            tokio::spawn(async move { carry(vec![peer], reader, writer, options).await })
        };
        let ends = [end(one, local), end(other, remote)];
        if sends {
            near.write_all(&[7; 1000]).await.expect("taken");
            let mut heard = [0; 1000];
            far.read_exact(&mut heard).await.expect("whole");
        }
        // The far stream is complete, and known to be, before the near one ends.
        far.shutdown().await.expect("closed");
        let seen = tokio::time::timeout(DEADLINE, near.read(&mut [0])).await.expect("in time");
        assert_eq!(seen.expect("closed"), 0);
        near.shutdown().await.expect("closed");
        for end in ends {
            let ended = tokio::time::timeout(DEADLINE, end).await.expect("the channel ends");
            ended.expect("no panic").expect("complete");
        }
    }
}
