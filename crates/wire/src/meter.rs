//! Counters of channels, readable by any thread.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::frame::Codec;

/// Counters of one or several channels of one end. All except `waiting` only rise.
#[derive(Debug, Default)]
pub struct Meter {
    sent_plain: AtomicU64,
    received_plain: AtomicU64,
    wire: AtomicU64,
    waiting: AtomicU64,
    waiting_max: AtomicU64,
    /// By the codec's number.
    coded: [Counts; Codec::ALL.len()],
    encoding_nanos: AtomicU64,
    /// By [`Wait`].
    waited_nanos: [AtomicU64; Wait::ALL.len()],
}

/// What a stream waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Bytes of the local program. Of each wait, the first [`Wait::SOURCE_MAX`] count, because the program may have nothing
    /// to send; and none before its first byte.
    Source,
    /// A lane that takes the next frame, or its encoder.
    Lane,
    /// Acknowledgements, which make room in the window.
    Window,
    /// A limit of the rate.
    Limit,
    /// The local program, which takes what has arrived.
    Delivery,
}

impl Wait {
    /// All, in the order of their declaration.
    pub const ALL: [Self; 5] = [Self::Source, Self::Lane, Self::Window, Self::Limit, Self::Delivery];
    /// A longer silence of the local program is no wait.
    pub const SOURCE_MAX: Duration = Duration::from_millis(100);
}

#[derive(Debug, Default)]
struct Counts {
    plain: AtomicU64,
    coded: AtomicU64,
}

/// Payloads of frames in one codec, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coded {
    /// What they hold.
    pub plain: u64,
    /// What was sent or received for it.
    pub coded: u64,
}

impl Meter {
    /// Plain bytes read from local sockets and sent.
    pub fn sent_plain(&self) -> u64 {
        self.sent_plain.load(Relaxed)
    }

    /// Plain bytes received and written to local sockets.
    pub fn received_plain(&self) -> u64 {
        self.received_plain.load(Relaxed)
    }

    /// Bytes of frames written to and read from the peer, including headers but not the overhead of TLS and TCP.
    pub fn wire(&self) -> u64 {
        self.wire.load(Relaxed)
    }

    /// Bytes accepted here and not yet delivered at the other end.
    pub fn waiting(&self) -> u64 {
        self.waiting.load(Relaxed)
    }

    /// The maximum of `waiting` so far.
    pub fn waiting_max(&self) -> u64 {
        self.waiting_max.load(Relaxed)
    }

    /// Payloads sent and received in this codec, on channels for which codecs were agreed.
    pub fn coded(&self, codec: Codec) -> Coded {
        let Counts { plain, coded } = &self.coded[usize::from(codec.number())];
        Coded { plain: plain.load(Relaxed), coded: coded.load(Relaxed) }
    }

    /// Time that encoders took, of all lanes together; with what they tried to choose a codec.
    pub fn encoding(&self) -> Duration {
        Duration::from_nanos(self.encoding_nanos.load(Relaxed))
    }

    /// How long the streams waited for this, of all channels together.
    pub fn waited(&self, wait: Wait) -> Duration {
        Duration::from_nanos(self.waited_nanos[wait as usize].load(Relaxed))
    }

    pub(crate) fn add_wait(&self, wait: Wait, took: Duration) {
        self.waited_nanos[wait as usize].fetch_add(took.as_nanos() as u64, Relaxed);
    }

    pub(crate) fn add_coded(&self, codec: Codec, plain: u64, coded: u64) {
        let counts = &self.coded[usize::from(codec.number())];
        counts.plain.fetch_add(plain, Relaxed);
        counts.coded.fetch_add(coded, Relaxed);
    }

    pub(crate) fn add_encoding(&self, took: Duration) {
        self.encoding_nanos.fetch_add(took.as_nanos() as u64, Relaxed);
    }

    pub(crate) fn add_sent(&self, plain: u64) {
        self.sent_plain.fetch_add(plain, Relaxed);
        let waiting = self.waiting.fetch_add(plain, Relaxed) + plain;
        self.waiting_max.fetch_max(waiting, Relaxed);
    }

    pub(crate) fn add_acked(&self, plain: u64) {
        self.waiting.fetch_sub(plain, Relaxed);
    }

    pub(crate) fn add_received(&self, plain: u64) {
        self.received_plain.fetch_add(plain, Relaxed);
    }

    pub(crate) fn add_wire(&self, bytes: u64) {
        self.wire.fetch_add(bytes, Relaxed);
    }
}
