//! How fast one channel carries bytes between two UNIX sockets over TLS on loopback.
//! `cargo run --release -p ferry-wire --example throughput [MiB]`

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ferry_core::id::SessionId;
use ferry_trust::{Clients, KeyPair, client_config, random_secret, server_config};
use ferry_wire::{
    channel::{Options, carry},
    hello::Channel,
    meter::Meter,
    session::{Acceptor, Dialer, SessionKey},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mib: usize = std::env::args().nth(1).map_or(Ok(2048), |text| text.parse())?;
    let (source, destination) = (KeyPair::generate()?, KeyPair::generate()?);
    let key = SessionKey { session: SessionId(uuid::Uuid::new_v4()), secret: random_secret() };
    let tls = server_config(&destination, Clients::Only(source.pin()))?;
    let mut acceptor = Acceptor::bind([127, 0, 0, 1].into(), 0..=0, tls, key).await?;
    let dialer = Dialer::new(acceptor.address(), client_config(Some(&source), destination.pin())?, key);
    let (dialed, accepted) = tokio::join!(dialer.open(Channel::Memory(0)), acceptor.accept());
    let (_, accepted) = accepted.ok_or("not accepted")?;
    let limit = Duration::from_millis(300);
    let meter = Arc::new(Meter::default());
    let (mut feed, near) = UnixStream::pair()?;
    let (far, mut drain) = UnixStream::pair()?;
    let sent = Arc::clone(&meter);
    let dialed = dialed?;
    tokio::spawn(async move {
        let (reader, writer) = near.into_split();
        carry(dialed, reader, writer, Options::new(limit, sent)).await
    });
    tokio::spawn(async move {
        let (reader, writer) = far.into_split();
        carry(accepted, reader, writer, Options::new(limit, Arc::default())).await
    });
    let started = Instant::now();
    tokio::spawn(async move {
        let chunk = vec![0xa5; 1 << 20];
        for _ in 0..mib {
            feed.write_all(&chunk).await?;
        }
        feed.shutdown().await
    });
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        match drain.read(&mut buffer).await? {
            0 => break,
            count => total += count,
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{} MiB in {seconds:.2} s: {:.0} MB/s, at most {} KiB waiting",
        total >> 20,
        total as f64 / seconds / 1e6,
        meter.waiting_max() >> 10
    );
    Ok(())
}
