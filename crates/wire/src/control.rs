//! The control connection of a session: small messages between the two carriers, in order.
//!
//! On the wire: length u32 (little-endian, bounded), then JSON. An unknown message of a newer version is skipped.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::mpsc,
};

use crate::WireError;

/// Longest message.
const MESSAGE_BYTES_MAX: u32 = 16 << 10;
/// Queue length of outgoing messages, of which there are a few per second.
const QUEUE_MESSAGES: usize = 64;
/// A control connection that is silent for this long is dead: pings are sent every [`PING_EVERY`].
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// How often the round trip is measured.
const PING_EVERY: Duration = Duration::from_secs(1);

/// A message between the two carriers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case")]
pub enum Message {
    /// Asks for a Pong with the same nonce.
    Ping {
        /// Identifies the ping.
        nonce: u64,
    },
    /// Answers a Ping.
    Pong {
        /// The nonce of that ping.
        nonce: u64,
    },
    /// The VM has just been stopped at the source.
    Stopped,
    /// The reply that ends the hand-over has reached the source: the destination owns the VM now.
    HandedOver,
    /// The VM runs at the destination.
    Running,
    /// This end gave up.
    GaveUp {
        /// Why.
        reason: String,
    },
    /// A message of a newer program.
    #[serde(other)]
    Unknown,
}

/// Exchanges messages with the other carrier.
#[derive(Debug)]
pub struct Control {
    outbox: mpsc::Sender<Message>,
    inbox: mpsc::Receiver<Message>,
    round_trip_us: Arc<AtomicU64>,
}

/// The sending half; can be cloned.
#[derive(Clone, Debug)]
pub struct ControlSender {
    outbox: mpsc::Sender<Message>,
    round_trip_us: Arc<AtomicU64>,
}

impl ControlSender {
    /// Queues a message. It is dropped if the connection is lost, which [`Control::receive`] reports.
    pub async fn send(&self, message: Message) {
        let _ = self.outbox.send(message).await;
    }

    /// As [`ControlSender::send`], without waiting: the message is also dropped if the queue is full.
    pub fn send_now(&self, message: Message) {
        let _ = self.outbox.try_send(message);
    }

    /// The shortest round trip measured; zero before the first.
    pub fn round_trip(&self) -> Duration {
        match self.round_trip_us.load(Relaxed) {
            u64::MAX => Duration::ZERO,
            microseconds => Duration::from_micros(microseconds),
        }
    }
}

impl Control {
    /// Runs the protocol over a stream in a separate task, which ends with the connection or when both halves of this
    /// are dropped.
    pub fn start<S: AsyncRead + AsyncWrite + Send + 'static>(stream: S) -> Self {
        let (outbox, to_send) = mpsc::channel(QUEUE_MESSAGES);
        let (heard, inbox) = mpsc::channel(QUEUE_MESSAGES);
        let round_trip_us = Arc::new(AtomicU64::new(u64::MAX));
        let (reader, writer) = tokio::io::split(stream);
        let pongs = outbox.downgrade();
        let trip = Arc::clone(&round_trip_us);
        tokio::spawn(async move {
            let (sent_at, pinged) = mpsc::channel(4);
            tokio::select! {
                _ = speak(writer, to_send, sent_at) => {}
                _ = hear(reader, heard, pongs, pinged, trip) => {}
            }
        });
        Self { outbox, inbox, round_trip_us }
    }

    /// The sending half.
    pub fn sender(&self) -> ControlSender {
        ControlSender { outbox: self.outbox.clone(), round_trip_us: Arc::clone(&self.round_trip_us) }
    }

    /// The next message; `None` when the connection is lost.
    pub async fn receive(&mut self) -> Option<Message> {
        self.inbox.recv().await
    }
}

async fn speak<W: AsyncWrite + Unpin>(
    mut writer: W,
    mut to_send: mpsc::Receiver<Message>,
    sent_at: mpsc::Sender<(u64, Instant)>,
) -> Result<(), WireError> {
    let mut ping = tokio::time::interval(PING_EVERY);
    let mut nonce = 0;
    loop {
        let message = tokio::select! {
            biased;
            message = to_send.recv() => match message {
                Some(message) => message,
                None => return writer.shutdown().await.map_err(WireError::Peer),
            },
            _ = ping.tick() => {
                nonce += 1;
                let _ = sent_at.try_send((nonce, Instant::now()));
                Message::Ping { nonce }
            }
        };
        let body = serde_json::to_vec(&message).expect("a message is always JSON");
        let mut bytes = (body.len() as u32).to_le_bytes().to_vec();
        bytes.extend_from_slice(&body);
        writer.write_all(&bytes).await.map_err(WireError::Peer)?;
        writer.flush().await.map_err(WireError::Peer)?;
    }
}

async fn hear<R: AsyncRead + Unpin>(
    mut reader: R,
    heard: mpsc::Sender<Message>,
    pongs: mpsc::WeakSender<Message>,
    mut pinged: mpsc::Receiver<(u64, Instant)>,
    round_trip_us: Arc<AtomicU64>,
) -> Result<(), WireError> {
    loop {
        let read = read_message(&mut reader);
        let message = tokio::time::timeout(SILENCE_MAX, read)
            .await
            .map_err(|_| WireError::Timeout("the control connection was silent"))??;
        match message {
            Message::Ping { nonce } => {
                if let Some(pongs) = pongs.upgrade() {
                    let _ = pongs.send(Message::Pong { nonce }).await;
                }
            }
            Message::Pong { nonce } => {
                while let Ok((sent, at)) = pinged.try_recv() {
                    if sent == nonce {
                        round_trip_us.fetch_min(at.elapsed().as_micros() as u64, Relaxed);
                    }
                }
            }
            Message::Unknown => {}
            Message::Stopped | Message::HandedOver | Message::Running | Message::GaveUp { .. } => {
                if heard.send(message).await.is_err() {
                    // The receiver is gone, but a sender may remain: keep the connection.
                }
            }
        }
    }
}

/// Reads one message.
///
/// # Errors
/// [`WireError::Peer`]; [`WireError::Protocol`] for a length out of bounds or bytes that are no valid message.
pub async fn read_message<R: AsyncRead + Unpin>(reader: &mut R) -> Result<Message, WireError> {
    let length = reader.read_u32_le().await.map_err(WireError::Peer)?;
    if length == 0 || length > MESSAGE_BYTES_MAX {
        return Err(WireError::Protocol(format!("a control message of {length} bytes")));
    }
    let mut body = vec![0; length as usize];
    reader.read_exact(&mut body).await.map_err(WireError::Peer)?;
    serde_json::from_slice(&body)
        .map_err(|error| WireError::Protocol(format!("a control message that is not one: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_arrive_in_order_and_the_round_trip_is_measured() {
        let (one, other) = tokio::io::duplex(1 << 16);
        let (one, mut other) = (Control::start(one), Control::start(other));
        let sender = one.sender();
        sender.send(Message::Stopped).await;
        sender.send(Message::HandedOver).await;
        assert_eq!(other.receive().await, Some(Message::Stopped));
        assert_eq!(other.receive().await, Some(Message::HandedOver));
        tokio::time::timeout(Duration::from_secs(5), async {
            while sender.round_trip().is_zero() {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("a ping is answered");
    }

    #[tokio::test]
    async fn a_lost_connection_ends_the_inbox() {
        let (one, other) = tokio::io::duplex(1 << 16);
        let mut control = Control::start(one);
        drop(other);
        assert_eq!(control.receive().await, None);
    }

    #[tokio::test]
    async fn a_message_of_a_newer_program_is_skipped_and_nonsense_is_refused() {
        let frame = |text: &str| [&(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
        let newer = frame("{\"message\":\"teleport\"}");
        assert_eq!(read_message(&mut &newer[..]).await.expect("skipped"), Message::Unknown);
        for bad in [frame("{}"), frame(""), vec![0xff; 8]] {
            assert!(matches!(read_message(&mut &bad[..]).await, Err(WireError::Protocol(_))), "{bad:?}");
        }
    }
}
