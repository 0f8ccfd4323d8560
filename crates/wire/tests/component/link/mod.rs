//! A long link on one machine: a relay with a rate, a delay and a queue. Each connection has one of its own.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    time::{Instant, sleep_until},
};

/// What is read at once: less than a timer's millisecond at 1 Gb/s.
const PIECE_BYTES: usize = 32 << 10;

/// How long and how wide.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// Of each direction.
    pub rate_bytes_per_s: u64,
    /// To the other end and back.
    pub round_trip: Duration,
    /// What waits in front of it at the most; then nothing more is read.
    pub queue: Duration,
}

impl Link {
    /// Lies before a listener from now on; gives the address to dial instead.
    pub async fn before(self, listener: SocketAddr) -> io::Result<SocketAddr> {
        let near = TcpListener::bind("127.0.0.1:0").await?;
        let address = near.local_addr()?;
        tokio::spawn(async move {
            while let Ok((dialed, _)) = near.accept().await {
                tokio::spawn(self.join(dialed, listener));
            }
        });
        Ok(address)
    }

    async fn join(self, dialed: TcpStream, listener: SocketAddr) -> io::Result<()> {
        let accepted = TcpStream::connect(listener).await?;
        dialed.set_nodelay(true)?;
        accepted.set_nodelay(true)?;
        let ((near_in, near_out), (far_in, far_out)) = (dialed.into_split(), accepted.into_split());
        tokio::try_join!(self.pass(near_in, far_out), self.pass(far_in, near_out)).map(|_| ())
    }

    /// One direction. What is under way is bounded by the rate: that of half a round trip and the queue.
    async fn pass(self, reader: OwnedReadHalf, writer: OwnedWriteHalf) -> io::Result<()> {
        let (sent, arriving) = mpsc::unbounded_channel();
        tokio::try_join!(self.take(reader, sent), send(writer, arriving)).map(|_| ())
    }

    async fn take(self, mut reader: OwnedReadHalf, sent: mpsc::UnboundedSender<(Instant, Vec<u8>)>) -> io::Result<()> {
        let mut free = Instant::now();
        loop {
            if let Some(full_until) = free.checked_sub(self.queue) {
                sleep_until(full_until).await;
            }
            let mut piece = vec![0; PIECE_BYTES];
            let count = reader.read(&mut piece).await?;
            if count == 0 {
                return Ok(());
            }
            piece.truncate(count);
            free = free.max(Instant::now()) + Duration::from_secs_f64(count as f64 / self.rate_bytes_per_s as f64);
            if sent.send((free + self.round_trip / 2, piece)).is_err() {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
        }
    }
}

async fn send(mut writer: OwnedWriteHalf, mut arriving: mpsc::UnboundedReceiver<(Instant, Vec<u8>)>) -> io::Result<()> {
    while let Some((at, piece)) = arriving.recv().await {
        sleep_until(at).await;
        writer.write_all(&piece).await?;
    }
    writer.shutdown().await
}
